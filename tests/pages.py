"""README.md, the pages behind it, and the code in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
_NUMBER = r"-?\d+\.\d+"


def blocks(text: str, language: str) -> list[str]:
    """Return the code of a page in one language; what is marked as text is not run."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run(code: str, names: dict, fewer: Mapping[str, str], page: str = "README.md") -> None:
    """Run code of a page with fewer masks and steps than it says."""
    for what, instead in fewer.items():
        code = code.replace(what, instead)
    exec(compile(code, page, "exec"), names)


def assert_prints(printed: str, shown: str) -> None:
    """Fail unless two texts have the same words and, up to rounding, the same decimal numbers."""
    assert re.sub(_NUMBER, "N", " ".join(printed.split())) == re.sub(_NUMBER, "N", " ".join(shown.split()))
    numbers, expected = ([float(number) for number in re.findall(_NUMBER, text)] for text in (printed, shown))
    assert numbers == pytest.approx(expected, abs=0.11)


def lines() -> list[str]:
    """Return the lines of all blocks of all pages; one that ends with a backslash goes on in the next."""
    code = [block for text in (README, *DOCS.values()) for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)]
    return list(dict.fromkeys(line.strip() for line in "\n".join(code).replace("\\\n", " ").splitlines()))


def spans() -> list[str]:
    """Return what all pages have in code between words."""
    prose = (re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in (README, *DOCS.values()))
    return list(dict.fromkeys(" ".join(span.split()) for text in prose for span in re.findall(r"`([^`]+)`", text)))

"""Praat's TextGrid, in its long and its short text format."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

# Praat reads free-standing numbers, quoted strings and flags, and treats everything else, such as "xmin =" and "[1]:",
# as a comment. So one reader handles both formats.
_VALUE = re.compile(
    r'"((?:[^"]|"")*)"|<(exists|absent)>|(?<!\S)([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?!\S)|![^\n]*'
)


@dataclass(frozen=True)
class Interval:
    """A stretch of a tier, in seconds, and its label."""

    start: float
    end: float
    text: str


def read_textgrid(text: str) -> list[tuple[str, list[Interval]]]:
    """Return the interval tiers of a TextGrid as (name, intervals), without point tiers.

    Args:
        text: Content of the file.

    Raises:
        ValueError: If it is not a TextGrid in a text format, or ends early.
    """
    values = _Values(text)
    if values.text() != "ooTextFile" or values.text() != "TextGrid":
        raise ValueError("it is not a TextGrid in a text format; in Praat, save it as a text file or a short text file")
    values.number(), values.number()
    tiers: list[tuple[str, list[Interval]]] = []
    if not values.flag():
        return tiers
    for _ in range(int(values.number())):
        kind, name = values.text(), values.text()
        values.number(), values.number()
        count = int(values.number())
        if kind == "IntervalTier":
            intervals = [Interval(values.number(), values.number(), values.text()) for _ in range(count)]
            tiers.append((name, intervals))
        elif kind == "TextTier":
            for _ in range(count):
                values.number(), values.text()
        else:
            raise ValueError(f"a tier has the class {kind!r}; allowed: IntervalTier, TextTier")
    return tiers


class _Values:
    """The values in a Praat text file, one after the other."""

    def __init__(self, content: str):
        self.found = (match for match in _VALUE.finditer(content) if not match[0].startswith("!"))

    def _next(self, group: int, kind: str) -> str:
        match = next(self.found, None)
        if match is None:
            raise ValueError(f"it ends, but a {kind} is expected")
        if match[group] is None:
            raise ValueError(f"found {match[0]!r}, but a {kind} is expected")
        return match[group]

    def text(self) -> str:
        return self._next(1, "text").replace('""', '"')

    def flag(self) -> bool:
        return self._next(2, "flag") == "exists"

    def number(self) -> float:
        value = float(self._next(3, "number"))
        if not math.isfinite(value):
            raise ValueError("a number is too large")
        return value

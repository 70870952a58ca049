"""Where two texts differ, word by word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spes_hf.text import normalise

# What stands for a word without letters or digits, so that it equals no other word.
_NO_WORD = "\ufffc"


@dataclass(frozen=True)
class Difference:
    """A stretch of words that one text has and another has not.

    Attributes:
        first: Indices of its words in the first text; empty where the second text has words more.
        second: Indices of its words in the second text; empty where the first text has words more.
    """

    first: range
    second: range


def differences(first: Sequence[str], second: Sequence[str], exact: bool = False) -> list[Difference]:
    """Return where two texts differ, in order, by the alignment with the fewest errors (jiwer).

    Words that stand for each other one by one are differences of their own. Where their numbers differ, neighbouring
    words make one: "shoplifting" for "shop lifting". Words that differ in how they are divided alone
    ("would-be", "would be") are equal.

    Args:
        first: Words of one text.
        second: Words of the other.
        exact: Whether case and punctuation count.

    Examples:
        >>> differences("so my fellow country men".split(), "so my yellow countrymen".split())
        [Difference(first=range(2, 5), second=range(2, 4))]
    """
    import jiwer

    one, other = ([word if exact else normalise(word) or _NO_WORD for word in words] for words in (first, second))
    if not (one and other):
        return [Difference(range(len(one)), range(len(other)))] if one or other else []
    found: list[Difference] = []
    open_kinds: list[str] = []
    for chunk in jiwer.process_words([_joined(one)], [_joined(other)]).alignments[0]:
        if chunk.type == "equal":
            open_kinds = []
            continue
        here = Difference(range(chunk.ref_start_idx, chunk.ref_end_idx), range(chunk.hyp_start_idx, chunk.hyp_end_idx))
        if open_kinds:  # the last one ends where this one begins
            last = found.pop()
            here = Difference(range(last.first.start, here.first.stop), range(last.second.start, here.second.stop))
        open_kinds.append(chunk.type)
        found.append(here)
    divided = [d for d in found if "".join(one[i] for i in d.first) != "".join(other[i] for i in d.second)]
    return [part for difference in divided for part in _one_by_one(difference)]


def _joined(words: Sequence[str]) -> str:
    """Return words as jiwer takes them, apart by spaces; a space within a word is none."""
    return " ".join("\u00b7".join(word.split()) or _NO_WORD for word in words)


def _one_by_one(difference: Difference) -> list[Difference]:
    first, second = difference.first, difference.second
    if len(first) != len(second):
        return [difference]
    return [Difference(range(i, i + 1), range(j, j + 1)) for i, j in zip(first, second, strict=True)]

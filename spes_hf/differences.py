"""Where two texts differ, word by word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spes_hf.text import normalise

# Replaces a word without letters or digits, so that it equals no other word.
_NO_WORD = "\ufffc"


@dataclass(frozen=True)
class Difference:
    """A stretch of words in which two texts differ.

    Attributes:
        first: Indices of its words in the first text; empty where the second text has additional words.
        second: Indices of its words in the second text; empty where the first text has additional words.
    """

    first: range
    second: range


@dataclass(frozen=True)
class Pair:
    """What two texts have in one place.

    Attributes:
        first: Indices of its words in the first text; empty where only the second text has words.
        second: Indices of its words in the second text; empty where only the first text has words.
        equal: Whether the words are the same.
    """

    first: Sequence[int]
    second: Sequence[int]
    equal: bool


def pairs(first: Sequence[str], second: Sequence[str]) -> list[Pair]:
    """Return two texts side by side, in order: words that agree, and `differences`.

    Case and punctuation do not count. Words that are split differently make one pair: "would-be", "would be".

    Args:
        first: Words of one text.
        second: Words of the other.

    Examples:
        >>> [(list(p.first), list(p.second), p.equal) for p in pairs(["A", "would-be", "cat"], ["a", "would", "be"])]
        [([0], [0], True), ([1], [1, 2], True), ([2], [], False)]
    """
    one, other = ([normalise(word) or _NO_WORD for word in words] for words in (first, second))
    found: list[Pair] = []
    here = there = 0
    for difference in [*differences(first, second), None]:
        until = (difference.first.start, difference.second.start) if difference else (len(one), len(other))
        for a, b in agreeing(one[here : until[0]], other[there : until[1]]):
            found.append(Pair(range(here, here + a), range(there, there + b), True))
            here, there = here + a, there + b
        if difference:
            found.append(Pair(difference.first, difference.second, False))
            here, there = difference.first.stop, difference.second.stop
    return found


def agreeing(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield how many words of each text go together: one and one, or more where the texts split words differently.

    Args:
        first: Words of one text, normalised.
        second: Words of the other, which says the same.
    """
    i = j = 0
    while i < len(first) and j < len(second):
        a = b = 1
        while True:
            one, other = "".join(first[i : i + a]), "".join(second[j : j + b])
            if len(one) < len(other) and i + a < len(first):
                a += 1
            elif len(one) > len(other) and j + b < len(second):
                b += 1
            else:
                break
        if one != other:
            a = b = 1
        yield a, b
        i, j = i + a, j + b


def differences(first: Sequence[str], second: Sequence[str], exact: bool = False) -> list[Difference]:
    """Return where two texts differ, in order, by the alignment with the fewest errors (jiwer).

    Each word that replaces one other word is a difference of its own. Where the numbers of words differ, neighbouring
    words make one difference: "shoplifting" for "shop lifting". Words that are merely split differently ("would-be",
    "would be") are equal.

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
    """Return words as jiwer takes them, joined by spaces; a space within a word is replaced."""
    return " ".join("\u00b7".join(word.split()) or _NO_WORD for word in words)


def _one_by_one(difference: Difference) -> list[Difference]:
    first, second = difference.first, difference.second
    if len(first) != len(second):
        return [difference]
    return [Difference(range(i, i + 1), range(j, j + 1)) for i, j in zip(first, second, strict=True)]

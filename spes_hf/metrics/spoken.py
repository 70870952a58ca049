"""Which words of an output are scored: explained words with a letter or digit, up to a maximum number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from spes_hf.explanation import Explanation
from spes_hf.text import join_pieces, normalise, word_groups

T = TypeVar("T")


@dataclass(frozen=True)
class SpokenWord:
    """A word of an output that has a letter or digit.

    Attributes:
        index: Index among all words of the output, including punctuation marks, as in ``explain(words=[index])``.
        text: Text of the word.
        tokens: Indices of its tokens in the output.
        row: Its row in `Explanation.words`; None if it is not explained.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    row: int | None


def groups_of(explanation: Explanation) -> list[tuple[int, ...]]:
    """Return all words of an output, explained or not, including punctuation marks, as indices of its tokens."""
    whole = explanation if explanation.part is None else explanation.part
    return word_groups(whole.pieces, whole.special)


def spoken_words(explanation: Explanation) -> list[SpokenWord]:
    """Return the words of an output that have a letter or digit, explained or not.

    Args:
        explanation: Explanation over tokens, without a foil.
    """
    pieces = (explanation if explanation.part is None else explanation.part).pieces
    place = range(len(pieces)) if explanation.part is None else explanation.part.rows
    row_of = {place[k]: row for row, group in enumerate(explanation.words().groups or ()) for k in group}
    found = []
    for index, group in enumerate(groups_of(explanation)):
        text = join_pieces([pieces[k] for k in group]).strip()
        row = next((row_of[k] for k in group if k in row_of), None)
        found.append(SpokenWord(index, text, group, row))
    return [word for word in found if normalise(word.text)]


def spread(items: Sequence[T], most: int | None) -> list[T]:
    """Return at most ``most`` items, evenly spread.

    Args:
        items: The items, in order.
        most: Maximum number, at least 1; None: all.
    """
    if most is None or most >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * most)] for i in range(most)]

"""Which word of an explanation corresponds to which spoken word?"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer

from spes_hf.analysis.alignments import Alignment, Phone, Word
from spes_hf.text import normalise


@dataclass(frozen=True)
class Spoken:
    """A word of an explanation and when it was spoken.

    Attributes:
        index: Index of the word in ``explanation.words()``.
        text: The word, in lower case, without punctuation.
        start: When it begins, in seconds.
        end: When it ends, in seconds.
        phones: Its phones, if the alignment has them.
    """

    index: int
    text: str
    start: float
    end: float
    phones: tuple[Phone, ...] = ()


@dataclass(frozen=True)
class Match:
    """The words of an explanation that were found among the spoken ones.

    Attributes:
        spoken: The words that were found, in order.
        unmatched: Words of the explanation, normalised, that nobody says in that place.
    """

    spoken: tuple[Spoken, ...]
    unmatched: tuple[str, ...]


def match_words(words: Sequence[str], alignment: Alignment) -> Match:
    """Return which words of an explanation correspond to which spoken words.

    The two sequences are aligned as for the word error rate. Words match if they are the same except for case and
    punctuation. A word with hyphens matches the spoken words that it consists of, and vice versa.

    Args:
        words: Texts of the words of an explanation; punctuation marks count neither as matched nor as unmatched.
        alignment: What was spoken, and when.
    """
    written = _parts(words)
    heard = _parts([word.text for word in alignment.words])
    partner = _equal(written, heard)
    spoken, unmatched = [], []
    for index, word in enumerate(words):
        mine = [i for i, (owner, _) in enumerate(written) if owner == index]
        if not mine:
            continue
        theirs = [partner.get(i) for i in mine]
        owners = {heard[j][0] for j in theirs if j is not None}
        # These must be all parts of all these spoken words, and nothing else.
        whole = [j for j, (owner, _) in enumerate(heard) if owner in owners]
        apart = bool(owners) and max(owners) - min(owners) >= len(owners)  # something was said in between
        if whole != theirs or apart:
            unmatched.append(normalise(word))
            continue
        parts = [alignment.words[owner] for owner in sorted(owners)]
        spoken.append(_join(index, normalise(word), parts))
    return Match(tuple(spoken), tuple(unmatched))


def _join(index: int, text: str, parts: Sequence[Word]) -> Spoken:
    phones = tuple(phone for part in parts for phone in part.phones)
    return Spoken(index, text, min(part.start for part in parts), max(part.end for part in parts), phones)


def _parts(words: Iterable[str]) -> list[tuple[int, str]]:
    """Return (index of the word, part) pairs; a word with hyphens has several parts."""
    parts = []
    for index, word in enumerate(words):
        for part in unicodedata.normalize("NFKC", word).replace("‐", "-").replace("‑", "-").split("-"):
            parts += [(index, piece) for piece in [normalise(part)] if piece]
    return parts


def _equal(written: Sequence[tuple[int, str]], heard: Sequence[tuple[int, str]]) -> dict[int, int]:
    """Return which written part corresponds to which spoken part, by index."""
    if not written or not heard:
        return {}
    found = jiwer.process_words(" ".join(p for _, p in heard), " ".join(p for _, p in written))
    return {
        chunk.hyp_start_idx + i: chunk.ref_start_idx + i
        for chunk in found.alignments[0]
        if chunk.type == "equal"
        for i in range(chunk.hyp_end_idx - chunk.hyp_start_idx)
    }

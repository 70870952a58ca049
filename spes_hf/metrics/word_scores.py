"""Corpus scores of the maps of single words: deletion, insertion, and whether a map is specific to its word."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spes_hf import __version__
from spes_hf.errors import ConfigError
from spes_hf.metrics.score import Score, make_score, mean_points

WORD_DELETION, WORD_INSERTION = "word_deletion", "word_insertion"
WORD_SPECIFICITY, WORD_MARGIN = "word_specificity", "word_margin"
_SHARES = {
    WORD_DELETION: "features deleted, most salient for the word first",
    WORD_INSERTION: "features inserted, most salient for the word first",
}


def word_scores(key: str, entries: Sequence[Mapping[str, Any]], **resampling: Any) -> dict[str, Score]:
    """Return the corpus scores of the entries that `WordDeletion` or `WordInsertion` added to rows.

    Values are means over words of probabilities in percent, not relative to the clean ones. Utterances are weighted by
    their number of words; intervals are bootstrapped over utterances, so the words of an utterance stay together.

    Args:
        key: "word_deletion" or "word_insertion".
        entries: For every utterance, the entry with this name.
        **resampling: ``samples``, ``confidence`` and ``seed`` of the intervals.

    Returns:
        The metric's own score, a curve over the fractions; the value is its mean height. Deletion has two more scores,
        over words that are not the only word of their utterance; without such words they are missing.
        "word_specificity" is the probability that the other words keep at the largest fraction. Read it together with
        "word_deletion": a map that points at nothing takes nothing from them. "word_margin" is a curve: the other
        words' probability minus the word's own. It is exactly 0 for maps that are the same for all words of an
        utterance, such as loudness, if all words are scored.

    Raises:
        ConfigError: If no utterance has a word.
    """
    kept = [entry for entry in entries if entry["words"]]
    if not kept:
        raise ConfigError(f"rows have no word for {key!r} ({len(entries)} utterances); explain utterances with words")
    fractions = list(kept[0]["fractions"])
    scores = {
        key: _score(
            key,
            kept,
            [np.array(entry["probabilities"], dtype=np.float64) for entry in kept],
            higher_is_better=key == WORD_INSERTION,
            x=fractions,
            labels=(_SHARES[key], "probability of the word (%)"),
            **resampling,
        )
    }
    company = [entry for entry in kept if any(len(each) for each in entry["others"])]
    if key == WORD_DELETION and company:
        left = [_in_company(entry, "others") for entry in company]
        margins = [others - _in_company(entry, "probabilities") for others, entry in zip(left, company, strict=True)]
        last = [others[:, -1:] for others in left]
        scores[WORD_SPECIFICITY] = _score(WORD_SPECIFICITY, company, last, higher_is_better=True, **resampling)
        scores[WORD_MARGIN] = _score(
            WORD_MARGIN,
            company,
            margins,
            higher_is_better=True,
            x=fractions,
            labels=(_SHARES[key], "probability of the other words minus that of the word (%)"),
            **resampling,
        )
    return scores


def _in_company(entry: Mapping[str, Any], name: str) -> np.ndarray:
    """Return the probabilities of the words that are not the only one of their utterance, (words, S)."""
    values = [own for own, others in zip(entry[name], entry["others"], strict=True) if len(others)]
    return np.array(values, dtype=np.float64)


def _score(name: str, entries: Sequence[Mapping[str, Any]], values: Sequence[np.ndarray], **settings: Any) -> Score:
    """Return the score that is the mean over words of the probabilities, (words, S) per utterance."""
    first, fractions = entries[0], entries[0]["fractions"]
    words = sum(map(len, values))
    at = f"fractions:{fractions[0]:g}-{fractions[-1]:g}:{len(fractions)}" if len(values[0][0]) > 1 else ""
    most = "all" if first["max_words"] is None else first["max_words"]
    names = "\x00".join(f"{entry['prediction']}\x00{list(entry['indices'])}" for entry in entries)
    return make_score(
        name,
        np.stack([np.stack([100 * each.sum(0), np.full(each.shape[1], len(each))], axis=-1) for each in values]),
        mean_points,
        signature=f"{first['method']}|fill:{first['fill']}|{at or f'fraction:{fractions[-1]:g}'}|words:{words}|"
        f"max-words:{most}|spes_hf:{__version__}",
        utterances=hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest(),
        **settings,
    )

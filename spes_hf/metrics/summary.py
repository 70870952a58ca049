"""From rows to corpus scores with confidence intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from spes_hf import __version__
from spes_hf.errors import ConfigError
from spes_hf.metrics import bootstrap
from spes_hf.metrics.deletion import Deletion, Insertion, check_fractions
from spes_hf.metrics.flips import flip_scores
from spes_hf.metrics.quality import Quality, check_texts, get_quality, warn_of
from spes_hf.metrics.rows import Row, failed
from spes_hf.metrics.score import Score, make_score, mean_points, with_ones
from spes_hf.metrics.word_scores import WORD_DELETION, WORD_INSERTION, word_scores

# Names of the metrics' entries in a row.
_KEYS = (Deletion.key, Insertion.key, "size", "contrastive_deletion", WORD_DELETION, WORD_INSERTION)
_SHARE = {Deletion.key: "features deleted, most salient first", Insertion.key: "features inserted, most salient first"}


def summarize(
    rows: Iterable[Row],
    references: str | Sequence[str] | None = None,
    *,
    metric: str | Quality = "wer",
    against: Literal["reference", "prediction"] | None = None,
    samples: int = bootstrap.SAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Score]:
    """Return the corpus scores for all entries that the metrics of this package added to the rows (§5).

    Rows with an "error" are left out.

    Args:
        rows: Rows, or a `datasets.Dataset`.
        references: What the model should have written: one text per row, or the name of the column with the texts.
        metric: "wer" or "cer" (speech recognition), "bleu", or "bleu:zh" and other tokenizers of sacrebleu
            (translation), or a `Quality`. Languages without spaces need "cer", or a tokenizer of their own.
        against: Compare with the "reference", or with the model's own clean "prediction"; None: as set in `Deletion`
            and `Insertion`.
        samples: Number of corpora to draw for the intervals.
        confidence: Confidence of the intervals.
        seed: Same seed, same intervals.

    Returns:
        Scores by name, for the entries that the rows have: "deletion" and "insertion" (area under the curve of the
        metric over the fraction of features), "deletion_probability" and "insertion_probability" (the same for the mean
        probability of the clean tokens, times 100), "size_audio" and "size_token", and "clean", the metric of the clean
        output; from `ContrastiveDeletion`, "flip_to_foil", "flip_to_other" and "coverage"; from `WordDeletion`,
        "word_deletion" (area under the probability of the word, times 100), "word_specificity" (the probability that
        other words keep at the largest fraction) and "word_margin" (how much more they keep than the word; 0 for maps
        that are the same for all words); and from `WordInsertion`, "word_insertion".

    Raises:
        ConfigError: If there are no rows or nothing to score, if references are missing or not one per row, or if the
            rows were made with different methods or settings.

    Examples:
        >>> row = Deletion(model, processor, [0, 1])(Size()({"explanation": ex}))
        >>> scores = summarize([row], references=["Tom sells a big picture."])
        >>> sorted(scores)
        ['clean', 'deletion', 'deletion_probability', 'size_audio', 'size_token']
        >>> scores["clean"].value  # one word of five
        20.0
    """
    rows = list(rows)
    texts = _references(rows, references)
    kept = [i for i, row in enumerate(rows) if not failed(row) and not _is_empty(row)]
    if not kept:
        raise ConfigError(f"rows has no explained utterance: all {len(rows)} rows have an error; explain some first")
    rows = [rows[i] for i in kept]
    texts = None if texts is None else [texts[i] for i in kept]
    present = [key for key in _KEYS if any(row.get(key) for row in rows)]
    if not present:
        raise ConfigError(
            f"rows have no entry to score; expected one of {', '.join(_KEYS)}. Map Deletion, Insertion, Size, "
            "ContrastiveDeletion, WordDeletion or WordInsertion over them first"
        )
    quality = get_quality(metric)
    resampling: dict[str, Any] = dict(samples=samples, confidence=confidence, seed=seed)
    scores: dict[str, Score] = {}
    cautions = []
    for key in present:
        entries = _entries(rows, key)
        if key == "size":
            scores |= _size_scores(entries, **resampling)
        elif key == "contrastive_deletion":
            scores |= flip_scores(entries, **resampling)
        elif key in (WORD_DELETION, WORD_INSERTION):
            scores |= word_scores(key, entries, **resampling)
        else:
            scored, by = _expected(entries, texts, against)
            scores |= _curve_scores(key, entries, scored, quality, by, **resampling)
            cautions.append(quality.caution(scored))
    warn_of(cautions)
    return scores


def score_texts(
    key: Literal["deletion", "insertion"],
    texts: Sequence[Sequence[str]],
    references: Sequence[str],
    fractions: str | Sequence[float] = "paper",
    *,
    metric: str | Quality = "wer",
    signature: str = "",
    **resampling: Any,
) -> Score:
    """Return the score of texts that a model wrote while features were deleted or inserted.

    Args:
        key: "deletion" or "insertion".
        texts: For every utterance, what the model wrote at every fraction.
        references: What it should have written.
        fractions: The fractions of the texts.
        metric: "wer", "cer", "bleu", "bleu:zh" and the like, or a `Quality`.
        signature: How the texts were made.
        **resampling: ``samples``, ``confidence`` and ``seed`` of the interval.

    Raises:
        ConfigError: If there is not one text per fraction and one reference per utterance.
    """
    quality = get_quality(metric)
    score = _text_score(key, texts, references, fractions, quality, signature, **resampling)
    warn_of((quality.caution(references),))
    return score


def _text_score(
    key: str,
    texts: Sequence[Sequence[str]],
    references: Sequence[str],
    fractions: str | Sequence[float],
    quality: Quality,
    signature: str,
    **resampling: Any,
) -> Score:
    """Return the score of texts at every fraction; `score_texts` without its warning."""
    at = check_fractions(fractions)
    uneven = next((i for i, row in enumerate(texts) if len(row) != len(at)), None)
    if uneven is not None:
        raise ConfigError(
            f"row {uneven} has {len(texts[uneven])} texts, but there are {len(at)} fractions; pass one text for each"
        )
    check_texts([row[0] for row in texts], references)
    by_step = [quality.statistics([row[s] for row in texts], references) for s in range(len(at))]
    signature = f"{signature}|" if signature else ""
    return make_score(
        key,
        np.stack(by_step, axis=1),
        quality.score,
        higher_is_better=quality.higher_is_better != (key == Deletion.key),
        signature=f"{signature}fractions:{at[0]:g}-{at[-1]:g}:{len(at)}|{quality.signature}|spes_hf:{__version__}",
        utterances=_identity(references),
        x=at,
        labels=(_SHARE[key], quality.label),
        **resampling,
    )


def _references(rows: Sequence[Row], references: str | Sequence[str] | None) -> Sequence[str] | None:
    """Return the references, one for each row, or None."""
    if isinstance(references, str):
        missing = next((i for i, row in enumerate(rows) if references not in row), None)
        if missing is not None:
            columns = ", ".join(map(str, rows[missing]))
            raise ConfigError(f"references is {references!r}, but row {missing} has no such column; allowed: {columns}")
        return [row[references] for row in rows]
    if references is not None:
        references = list(references)
        if len(references) != len(rows):
            raise ConfigError(
                f"references has {len(references)} texts, but there are {len(rows)} rows; pass one for each row, "
                "including rows with an error"
            )
    return references


def _is_empty(row: Row) -> bool:
    """Return whether a row is a recording for which the model wrote nothing, so that all its metrics are None."""
    own = [row[key] for key in _KEYS if key in row]
    return bool(own) and row.get("verdict") == "nothing written" and all(entry is None for entry in own)


def _entries(rows: Sequence[Row], key: str) -> list[Mapping[str, Any]]:
    """Return a metric's entries of all rows, after checking that they come from one method with one setting."""
    missing = next((i for i, row in enumerate(rows) if not row.get(key)), None)
    if missing is not None:
        raise ConfigError(
            f"row {missing} (not counting rows with errors) has no {key!r}, but other rows have; map it over all rows"
        )
    entries = [row[key] for row in rows]
    for name in ("method", "fill", "against", "by", "fractions", "thresholds", "max_words"):
        values = {str(entry[name]) for entry in entries if name in entry}
        if len(values) > 1:
            raise ConfigError(
                f"rows have {key} with different {name}: {'; '.join(sorted(values))}; summarize each separately"
            )
    return entries


def _expected(
    entries: Sequence[Mapping[str, Any]], references: Sequence[str] | None, against: str | None
) -> tuple[Sequence[str], str]:
    """Return the texts to compare with, and their kind: "reference" or "prediction"."""
    against = entries[0]["against"] if against is None else against
    if against not in ("reference", "prediction"):
        raise ConfigError(f'against is {against!r}; allowed: "reference", "prediction"')
    if against == "prediction":
        return [entry["prediction"] for entry in entries], against
    if references is None:
        raise ConfigError(
            "references is missing; pass the dataset's texts or the name of their column, or compare with the model's "
            'own clean output: against="prediction"'
        )
    return references, against


def _curve_scores(
    key: str,
    entries: Sequence[Mapping[str, Any]],
    references: Sequence[str],
    quality: Quality,
    against: str,
    **resampling: Any,
) -> dict[str, Score]:
    """Return the scores of `Deletion` or `Insertion`, and of the clean output."""
    first, deleting = entries[0], key == Deletion.key
    predictions = [entry["prediction"] for entry in entries]
    texts = [entry["texts"] for entry in entries]
    fractions = first["fractions"]
    made = f"{first['method']}|fill:{first['fill']}"
    span = f"fractions:{fractions[0]:g}-{fractions[-1]:g}:{len(fractions)}"
    probability = np.array([entry["token_probability"] for entry in entries], dtype=np.float64)
    return {
        key: _text_score(key, texts, references, fractions, quality, f"{made}|against:{against}", **resampling),
        f"{key}_probability": make_score(
            f"{key}_probability",
            with_ones(100 * probability),
            mean_points,
            higher_is_better=not deleting,
            signature=f"{made}|{span}|token-probability|spes_hf:{__version__}",
            utterances=_identity(predictions),
            x=fractions,
            labels=(_SHARE[key], "mean probability of the clean tokens (%)"),
            **resampling,
        ),
        "clean": make_score(
            "clean",
            quality.statistics(predictions, references)[:, None],
            quality.score,
            higher_is_better=quality.higher_is_better,
            signature=f"{quality.signature}|against:{against}|spes_hf:{__version__}",
            utterances=_identity(references),
            **resampling,
        ),
    }


def _size_scores(entries: Sequence[Mapping[str, Any]], **resampling: Any) -> dict[str, Score]:
    """Return the scores of `Size`: means over utterances."""
    thresholds = entries[0]["thresholds"]
    return {
        f"size_{part}": make_score(
            f"size_{part}",
            with_ones(np.array([entry[part] for entry in entries], dtype=np.float64)),
            mean_points,
            higher_is_better=False,
            signature=f"{entries[0]['method']}|thresholds:0-1:{len(thresholds)}|spes_hf:{__version__}",
            utterances=_identity([entry["prediction"] for entry in entries]),
            x=thresholds,
            labels=(
                "saliency threshold",
                "features at or above it (%)" if part == "audio" else "tokens at or above (%)",
            ),
            **resampling,
        )
        for part in ("audio", "token")
    }


def _identity(texts: Sequence[str]) -> str:
    return hashlib.sha256("\x00".join(texts).encode("utf-8", "surrogatepass")).hexdigest()

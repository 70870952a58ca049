"""Corpus rates of contrastive deletion: how often the model flips to the foil, or to something else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spes_hf import __version__
from spes_hf.errors import ConfigError
from spes_hf.metrics.score import Score, make_score, mean_points

_SHARE = "features deleted, what speaks most for the target first"
_RATES = {
    "flip_to_foil": (("foil",), True, "contrasts in which the model writes the foil (%)"),
    "flip_to_other": (("other",), False, "contrasts in which it writes neither (%)"),
    "coverage": (("target", "foil"), True, "contrasts in which it writes target or foil (%)"),
}


def flip_scores(entries: Sequence[Mapping[str, Any]], **resampling: Any) -> dict[str, Score]:
    """Return the corpus scores of the entries that `ContrastiveDeletion` added to rows.

    A contrast is left out if the model does not write the target even for clean features, since it cannot flip. Rates
    are over contrasts; intervals are bootstrapped over utterances, so the contrasts of an utterance stay together.

    Args:
        entries: For every utterance, the entry "contrastive_deletion".
        **resampling: ``samples``, ``confidence`` and ``seed`` of the intervals.

    Returns:
        "flip_to_foil", "flip_to_other" and "coverage" (target or foil), each a curve over the fractions, in %. The
        value is the mean height of the curve, or the rate itself if there is only one fraction.

    Raises:
        ConfigError: If no contrast is left.
    """
    counted = [_counted(entry) for entry in entries]
    kept = [i for i, rows in enumerate(counted) if len(rows)]
    left_out = sum(len(entry["clean"]) for entry in entries) - sum(map(len, counted))
    if not kept:
        raise ConfigError(
            f"rows have no contrast with a target that the model writes for clean features ({left_out} contrasts left "
            "out); explain the model's own output, without text=…"
        )
    first = entries[0]
    fractions = list(first["fractions"])
    one = len(fractions) < 2
    names = "\x00".join(f"{entries[i]['prediction']}\x00{entries[i]['contrasts']}" for i in kept)
    signature = (
        f"{first['method']}|fill:{first['fill']}|by:{first['by']}|"
        f"fractions:{fractions[0]:g}-{fractions[-1]:g}:{len(fractions)}|"
        f"contrasts:{sum(map(len, counted))}|left-out:{left_out}|spes_hf:{__version__}"
    )
    scores: dict[str, Score] = {}
    for name, (kinds, better, label) in _RATES.items():
        hits = np.array([np.isin(counted[i], kinds).sum(0) for i in kept], dtype=np.float64)
        sizes = np.array([np.full(len(fractions), len(counted[i])) for i in kept], dtype=np.float64)
        scores[name] = make_score(
            name,
            np.stack([100 * hits, sizes], axis=-1),
            mean_points,
            higher_is_better=better,
            signature=signature,
            utterances=hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest(),
            x=None if one else fractions,
            labels=(_SHARE, label),
            **resampling,
        )
    return scores


def _counted(entry: Mapping[str, Any]) -> np.ndarray:
    """Return what the model writes, (K, S), for the contrasts with a target that it writes for clean features."""
    rows = [row for row, clean in zip(entry["written"], entry["clean"], strict=True) if clean == "target"]
    return np.array(rows, dtype=object).reshape(len(rows), len(entry["fractions"]))

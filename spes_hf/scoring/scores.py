"""The result of an estimator: a score for every unit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class UnitScores:
    """Saliency per unit.

    Attributes:
        values: Per level (K, F). Without weights, the scores; with weights, sums Σ_i r_i (1 − M_i) to be divided by the
            weights, so that levels can be pooled.
        weights: Per level (F,), Σ_i (1 − M_i); None if values are scores.
        mean_impact: (K,) impact of the average mask.
        sentence: (T·C,) scores of the features for the sentence, if they are estimated separately; else None.
    """

    values: tuple[Tensor, ...]
    weights: tuple[Tensor, ...] | None
    mean_impact: Tensor
    sentence: Tensor | None = None

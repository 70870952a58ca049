"""What an estimator ends in: a score for every unit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class UnitScores:
    """Saliency by unit.

    Attributes:
        values: Per level (K, F). Without weights, the scores; with them, sums that the weights divide, so that levels
            can be pooled: Σ_i r_i (1 − M_i).
        weights: Per level (F,), Σ_i (1 − M_i); None where values are scores.
        mean_impact: (K,) impact of the average mask.
        sentence: (T·C,) scores of the features for the sentence, where they are estimated on their own; else None.
    """

    values: tuple[Tensor, ...]
    weights: tuple[Tensor, ...] | None
    mean_impact: Tensor
    sentence: Tensor | None = None

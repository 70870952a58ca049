"""What an estimator ends in: a score for every unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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


def weighted_mean(values: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """Return Σ values / Σ weights over all units and levels, (K,) float32; NaN where nothing was perturbed.

    With the sums of Eq. 3 it is the impact of the average mask, weighted by how much the mask perturbs.

    Args:
        values: Per level (K, F), Σ_i r_i (1 − M_i).
        weights: Per level (F,), Σ_i (1 − M_i).
    """
    if not values:
        return torch.zeros(0, dtype=torch.float32, device="cpu")
    total = sum(w.float().double().sum() for w in weights)
    return torch.stack([v.float().double().sum(1) for v in values]).sum(0).div(total).float()

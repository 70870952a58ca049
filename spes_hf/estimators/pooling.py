"""From features to patches: means over the patches of several levels, and a map that several levels make together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spes_hf.perturbation.base import UnitScores


def pooled(values: Tensor, levels: Tensor) -> Tensor:
    """Return the mean over the patch that a feature lies in, at every level, (L, T·C).

    Args:
        values: (T·C,) by feature.
        levels: (L, T, C) patches.
    """
    found = []
    for labels in levels.flatten(1):
        totals = values.new_zeros(int(labels.max()) + 1).index_add_(0, labels, values)
        found.append((totals / torch.bincount(labels))[labels])
    return torch.stack(found)


def combined(scores: UnitScores, levels: Tensor, standardized: bool) -> UnitScores:
    """Return the map by feature that the levels' means make together.

    Args:
        scores: (1, T·C), by feature.
        levels: (L, T, C) patches.
        standardized: Whether every level is brought to mean 0 and deviation 1 first, so that all count alike; means
            over large patches differ less than those over small ones.
    """
    values = pooled(scores.numerators[0][0].double(), levels)
    if standardized:
        largest = values.abs().amax(1, keepdim=True)
        values = values - values.mean(1, keepdim=True)
        deviation = values.square().mean(1, keepdim=True).sqrt()
        # A level of one patch is constant but for rounding, and says nothing.
        values = torch.where(deviation > 1e-12 * largest, values / deviation, 0.0)
    return replace(scores, numerators=(values.mean(0, keepdim=True).float(),))

"""Eq. 3 as running sums: memory does not grow with the number of masks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spes_hf.perturbation.base import Masks, UnitScores


class PerturbationEstimator:
    """Accumulates Σ_i r_i (1 − M_i) and Σ_i (1 − M_i) per unit, for even and odd masks apart.

    The two halves give the split-half reliability at no extra pass; their sum is Eq. 3.

    Args:
        levels: Number of levels.
    """

    def __init__(self, levels: int):
        self.numerators: list[Tensor | None] = [None] * levels  # (2, K, F) each
        self.denominators: list[Tensor | None] = [None] * levels  # (2, F) each

    def update(self, masks: Masks, impact_of: Callable[[Masks], Tensor]) -> None:
        """Run the model under these masks and add what they show."""
        with torch.no_grad():
            self.add(masks, impact_of(masks))

    def add(self, masks: Masks, impact: Tensor) -> None:
        """Add masks, (B, F), and their impacts, (B, K)."""
        # Sums of tens of thousands of terms; MPS devices know no float64.
        exact = torch.float32 if impact.device.type == "mps" else torch.float64
        impact, perturbed = impact.to(exact), 1 - masks.keep.to(exact)
        numerators, denominators = self.numerators[masks.level], self.denominators[masks.level]
        if numerators is None or denominators is None:
            numerators = impact.new_zeros((2, impact.shape[1], perturbed.shape[1]))
            denominators = impact.new_zeros((2, perturbed.shape[1]))
            self.numerators[masks.level], self.denominators[masks.level] = numerators, denominators
        halves = [slice((half - masks.rows.start) % 2, None, 2) for half in (0, 1)]
        # All products first: a batch that runs out of memory must leave no half of itself behind.
        added = [(impact[rows].T @ perturbed[rows], perturbed[rows].sum(0)) for rows in halves]
        for half, (numerator, denominator) in enumerate(added):
            numerators[half] += numerator
            denominators[half] += denominator

    def scores(self) -> UnitScores:
        """Return the sums over all masks."""
        return self._gather(lambda halves: halves.sum(0))

    def half(self, index: int) -> UnitScores:
        """Return the sums over the even (0) or odd (1) masks."""
        return self._gather(lambda halves: halves[index])

    def _gather(self, pick: Callable[[Tensor], Tensor]) -> UnitScores:
        # Levels are filled in order, so a level without masks (fewer masks than levels) can only stand at the end.
        return UnitScores(
            tuple(pick(n).cpu() for n in self.numerators if n is not None),
            tuple(pick(d).cpu() for d in self.denominators if d is not None),
        )

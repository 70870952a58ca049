"""Eq. 3 as running sums: memory does not grow with the number of masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spes_hf.masking.perturbations import Masks
from spes_hf.runtime.ranks import SumsOf
from spes_hf.runtime.transfer import on_device
from spes_hf.scoring.scores import UnitScores


class PerturbationEstimator:
    """Accumulates Σ_i r_i (1 − M_i) and Σ_i (1 − M_i) per unit, separately for the two halves of the masks.

    The two halves give the split-half reliability without extra passes; their sum is Eq. 3.

    Args:
        levels: Number of levels.
        centred: Whether to subtract from r_i its mean over the masks of the level, so that 0 means no effect and the
            sign is meaningful. This shifts all scores of a token equally.
    """

    differentiates = False
    every = False

    def __init__(self, levels: int, centred: bool = False):
        self.centred = centred
        # Per level (2, K + 1, F): numerators of the halves, with their denominators in the last row. If centred, an
        # extra unit is always perturbed; it collects Σ r_i and N.
        self.sums: list[Tensor | None] = [None] * levels

    def backward_passes(self, level: int, rows: range) -> int:
        """Return 0: Eq. 3 needs no backward passes."""
        return 0

    def parts(self, level: int, rows: range) -> Sequence[range]:
        """Return all rows as one part: they can run through the model together."""
        return (rows,)

    def update(self, masks: Masks, impact_of: Callable[[Masks], Tensor]) -> None:
        """Run the model under these masks and add their impacts."""
        with torch.no_grad():
            self.add(masks, impact_of(masks))

    def add(self, masks: Masks, impact: Tensor) -> None:
        """Add masks, (B, F), and their impacts, (B, K)."""
        # Sums of tens of thousands of terms need float64, which MPS devices do not support.
        exact = torch.float32 if impact.device.type == "mps" else torch.float64
        perturbed = 1 - masks.keep.to(exact)
        if self.centred:
            perturbed = torch.cat([perturbed, perturbed.new_ones(len(perturbed), 1)], dim=1)
        odd = on_device(masks.halves, impact.device)
        weights = torch.cat([impact.T, impact.new_ones(1, len(impact))]).to(exact)
        weights = torch.cat([weights * (1 - odd), weights * odd])
        sums = self.sums[masks.level]
        if sums is None:
            shape = (2, impact.shape[1] + 1, perturbed.shape[1])
            sums = self.sums[masks.level] = perturbed.new_zeros(shape)
        # A single in-place step, so that a batch that runs out of memory leaves nothing behind.
        sums.flatten(0, 1).addmm_(weights, perturbed)

    def replace_sums(self, by: SumsOf) -> None:
        """Replace the sums over masks with the result of a function of them."""
        self.sums = by(self.sums)

    def scores(self) -> UnitScores:
        """Return the sums over all masks."""
        return self._gather(lambda halves: halves.sum(0))

    def half(self, index: int) -> UnitScores:
        """Return the sums over one half of the masks."""
        return self._gather(lambda halves: halves[index])

    def _gather(self, pick: Callable[[Tensor], Tensor]) -> UnitScores:
        # Levels are filled in order, so levels without masks (fewer masks than levels) can only be at the end.
        picked = [pick(sums).cpu() for sums in self.sums if sums is not None]
        if self.centred:
            picked = [_centred(sums) for sums in picked]
        values, weights = tuple(sums[:-1] for sums in picked), tuple(sums[-1] for sums in picked)
        return UnitScores(values, weights, weighted_mean(values, weights))


def _centred(sums: Tensor) -> Tensor:
    """Return sums, (K + 1, F), of impacts minus their mean; the last unit of the input is always perturbed."""
    own, total = sums[:, :-1], sums[:, -1:]
    mean = total[:-1] / total[-1:].clamp_min(1)
    return torch.cat([own[:-1] - mean * own[-1:], own[-1:]])


def weighted_mean(values: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """Return Σ values / Σ weights over all units and levels, (K,) float32; NaN if nothing was perturbed.

    For the sums of Eq. 3, this is the impact of the average mask, weighted by how much each mask perturbs.

    Args:
        values: Per level (K, F), Σ_i r_i (1 − M_i).
        weights: Per level (F,), Σ_i (1 − M_i).
    """
    if not values:
        return torch.zeros(0, dtype=torch.float32, device="cpu")
    total = sum(w.float().double().sum() for w in weights)
    return torch.stack([v.float().double().sum(1) for v in values]).sum(0).div(total).float()

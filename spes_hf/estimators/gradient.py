"""The linear part of Eq. 3 by backward passes: one pass tells of every feature, not of one number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from spes_hf.errors import UnsupportedModelError
from spes_hf.perturbation.base import Masks, UnitScores


class GradientEstimator:
    """Averages −∂r/∂m, the fall of the impact when a feature is kept a little more, over random masks.

    The masks are by feature, numbers instead of bits. At a keep probability of ½ the average is the trapezoidal rule
    for E[r | m = 0] − E[r | m = 1], which Eq. 3 is an affine function of (docs/gradient.md). Every mask serves one slot:
    a token of its own, the tokens taking turns, or the whole sentence (the sum over tokens). Sums of even and odd draws
    of a slot are kept apart, for the split-half reliability.

    Args:
        pools: (L, T, C) patches whose features share their mean, at one or more levels that are averaged; on the
            model's device.
        tokens: K, a slot for each token; None: one slot for the sentence.
    """

    def __init__(self, pools: Tensor, tokens: int | None):
        self.pools = pools
        self.slots = 1 if tokens is None else tokens
        self.each = tokens is not None
        shape = (2, self.slots)
        self.sums = torch.zeros(*shape, pools[0].numel(), device=pools.device)  # (2, S, T·C)
        self.counts = torch.zeros(shape, device=pools.device)
        self.impact: Tensor | None = None  # (K,) summed over all masks
        self.masks = 0

    def update(self, masks: Masks, impact_of: Callable[[Masks], Tensor]) -> None:
        """Run the model under these masks, (B, T·C), forwards and backwards, and add what they show.

        Raises:
            UnsupportedModelError: If the impact does not depend on the masks in a way that torch can differentiate.
        """
        with torch.inference_mode(False), torch.enable_grad():
            keep = masks.keep.clone().requires_grad_()
            impact = impact_of(replace(masks, keep=keep))
            if not impact.requires_grad:
                raise UnsupportedModelError(
                    'config.estimator is "gradient", but the model passes no gradient from its output to the '
                    'spectrogram; use estimator="perturbation"'
                )
            slot = torch.arange(masks.rows.start, masks.rows.stop, device=keep.device)
            half, slot = slot // self.slots % 2, slot % self.slots
            chosen = impact.gather(1, slot[:, None]) if self.each else impact
            (gradient,) = torch.autograd.grad(chosen.sum(), keep)
        # A batch that ran out of memory has left nothing behind so far.
        self.sums.index_put_((half, slot), -gradient.float(), accumulate=True)
        self.counts.index_put_((half, slot), self.counts.new_ones(len(slot)), accumulate=True)
        total = impact.detach().float().sum(0)
        self.impact = total if self.impact is None else self.impact + total
        self.masks += len(slot)

    def scores(self) -> UnitScores:
        """Return the means over all masks, pooled over patches."""
        return self._pooled(self.sums.sum(0), self.counts.sum(0))

    def half(self, index: int) -> UnitScores:
        """Return the means over the even (0) or odd (1) masks, pooled over patches."""
        return self._pooled(self.sums[index], self.counts[index])

    def _pooled(self, sums: Tensor, counts: Tensor) -> UnitScores:
        means = sums / counts.clamp_min(1)[:, None]
        numerators = []
        for labels in self.pools.flatten(1):
            sizes = torch.bincount(labels)
            pooled = means.new_zeros(len(means), len(sizes)).index_add_(1, labels, means)
            numerators.append((pooled / sizes).cpu())
        denominators = tuple(torch.ones(n.shape[1]) for n in numerators)
        mean_impact = None if self.impact is None or not self.each else self.impact.cpu() / self.masks
        return UnitScores(tuple(numerators), denominators, mean_impact)

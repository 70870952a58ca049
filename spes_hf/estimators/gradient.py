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
    for E[r | m = 0] − E[r | m = 1], which Eq. 3 is an affine function of (docs/gradient.md).

    All tokens share the masks: a forward pass, then a backward pass for each token. Their gradients add up to that of
    the sentence, Σ_k r_k, for which further masks need one backward pass each. Even and odd masks are kept apart, for
    the split-half reliability.

    Args:
        pools: (L, T, C) patches whose features share their mean, at one or more levels that are averaged; on the
            model's device.
        tokens: K.
        masks_per_token: The first so many masks draw the maps of the tokens; all masks draw that of the sentence.
        levels: Number of levels of the masks; mask i belongs to level i mod ``levels``.
    """

    def __init__(self, pools: Tensor, tokens: int, masks_per_token: int, levels: int = 1):
        self.pools = pools.flatten(1)
        self.sizes = [torch.bincount(labels) for labels in self.pools]
        self.masks_per_token = masks_per_token
        self.levels = levels
        features = sum(len(sizes) for sizes in self.sizes)
        # The tokens, then the sentence: sums over the even and the odd masks, of means over patches.
        self.sums = torch.zeros(2, tokens + 1, features, device=pools.device)
        self.counts = torch.zeros(2, tokens + 1)
        self.impact = torch.zeros(tokens)

    def backward_passes(self, level: int, rows: range) -> int:
        """Return how many times these rows of a level run the model backwards."""
        tokens = len(self.impact)
        return sum(tokens if self._index(level, row) < self.masks_per_token else 1 for row in rows)

    def update(self, masks: Masks, impact_of: Callable[[Masks], Tensor]) -> None:
        """Run the model under these masks, (B, T·C), forwards and backwards, and add what they show.

        Raises:
            UnsupportedModelError: If the impact does not depend on the masks in a way that torch can differentiate.
        """
        first = sum(self._index(masks.level, row) < self.masks_per_token for row in masks.rows)
        parts = [(True, slice(0, first)), (False, slice(first, len(masks.rows)))]
        added = [
            self._observe(replace(masks, keep=masks.keep[part], rows=masks.rows[part]), impact_of, each)
            for each, part in parts
            if masks.rows[part]
        ]
        # In place, and only now: a batch that ran out of memory has left nothing behind.
        for sums, counts, impact in added:
            self.sums += sums
            self.counts += counts
            self.impact += impact

    def _observe(self, masks: Masks, impact_of: Callable[[Masks], Tensor], each: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return what masks add to the sums, the counts and the impact, for each token or the sentence alone."""
        half = torch.tensor([(row + masks.level) % 2 for row in masks.rows])
        tokens = len(self.impact)
        sums, counts = torch.zeros_like(self.sums), torch.bincount(half, minlength=2)[:, None].float()
        with torch.inference_mode(False), torch.enable_grad():
            keep = masks.keep.clone().requires_grad_()
            impact = impact_of(replace(masks, keep=keep))
            for k in range(tokens if each else 1):
                chosen = impact[:, k] if each else impact
                gradient = _gradient(chosen.sum(), keep, last=not each or k == tokens - 1)
                for i in (0, 1):
                    sums[i, k if each else -1] = -self._pooled(gradient[half.to(gradient.device) == i].sum(0))
        if each:
            sums[:, -1] = sums[:, :-1].sum(1)
        else:
            counts = counts * (torch.arange(tokens + 1) == tokens)
        return sums, counts.expand(2, tokens + 1), impact.detach().float().sum(0).cpu()

    def _index(self, level: int, row: int) -> int:
        """Return the index of a mask among those of all levels."""
        return row * self.levels + level

    def _pooled(self, values: Tensor) -> Tensor:
        """Return the means of a map, (T·C,), over the patches of all levels, one level after the other."""
        return torch.cat(
            [
                values.new_zeros(len(sizes)).index_add_(0, labels, values) / sizes
                for labels, sizes in zip(self.pools, self.sizes, strict=True)
            ]
        )

    def scores(self) -> UnitScores:
        """Return the means over all masks: (K + 1, F) for each level of patches, those of the sentence last."""
        return self._means(self.sums.sum(0), self.counts.sum(0))

    def half(self, index: int) -> UnitScores:
        """Return the means over the even (0) or odd (1) masks."""
        return self._means(self.sums[index], self.counts[index])

    def _means(self, sums: Tensor, counts: Tensor) -> UnitScores:
        means = sums.cpu() / counts.clamp_min(1)[:, None]
        levels = means.split([len(sizes) for sizes in self.sizes], dim=1)
        # The sentence is drawn by all masks.
        impact = self.impact / self.counts[:, -1].sum().clamp_min(1)
        return UnitScores(levels, tuple(torch.ones(level.shape[1]) for level in levels), impact)


def tokens_of(scores: UnitScores) -> UnitScores:
    """Return the part of a `GradientEstimator`'s scores that belongs to the tokens, (K, F)."""
    return replace(scores, numerators=tuple(n[:-1] for n in scores.numerators))


def sentence_of(scores: UnitScores) -> UnitScores:
    """Return the part of a `GradientEstimator`'s scores that belongs to the sentence, (1, F)."""
    return replace(scores, numerators=tuple(n[-1:] for n in scores.numerators), mean_impact=None)


def _gradient(value: Tensor, keep: Tensor, last: bool) -> Tensor:
    """Return the gradient with respect to the masks, (B, T·C) float32; the graph is kept but for the last."""
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, keep, retain_graph=not last, allow_unused=True)
    if gradient is None:
        raise UnsupportedModelError(
            'config.estimator is "gradient", but the model passes no gradient from its output to the spectrogram; use '
            'estimator="perturbation"'
        )
    return gradient.float()

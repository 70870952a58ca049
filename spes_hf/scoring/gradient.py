"""The linear part of Eq. 3 by backward passes: one pass tells of every feature, not of one number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from spes_hf.errors import UnsupportedModelError
from spes_hf.finite import check_finite
from spes_hf.masking.perturbations import Masks
from spes_hf.scoring.pooling import Pools
from spes_hf.scoring.scores import UnitScores

# Impacts (nats, for KL) that are much smaller count as none.
EPSILON = 0.01


class GradientEstimator:
    """Averages −∂r/∂m, the fall of the impact when a feature is kept a little more, over random masks.

    The masks are by feature, numbers instead of bits. At a keep probability of ½ the average is the trapezoidal rule
    for E[r | m = 0] − E[r | m = 1], which Eq. 3 is an affine function of (docs/gradient.md).

    All tokens share the masks: a forward pass, then a backward pass for each token. Their gradients add up to that of
    the sentence, Σ_k f(r_k), for which further masks need one backward pass each. Two halves of the masks are kept
    apart, for the split-half reliability.

    Args:
        pools: (L, T, C) patches whose features share their mean in the maps of the tokens, at one or more levels that
            are averaged; on the model's device.
        tokens: K.
        masks_per_token: Number of masks, the first ones, that draw the maps of the tokens; all masks draw that of the
            sentence.
        levels: Number of levels of the masks; mask i belongs to level i mod ``levels``.
        of_sentence: f, what the impact on a token becomes where the sentence's is added up; None: it stays as it is.
        dtype: What the model computes in, for errors.
    """

    differentiates = True

    def __init__(
        self,
        pools: Tensor,
        tokens: int,
        masks_per_token: int,
        levels: int = 1,
        of_sentence: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.pools = Pools(pools)
        self.dtype = dtype
        self.masks_per_token = masks_per_token
        self.levels = levels
        self.of_sentence = of_sentence or (lambda impact: impact)
        # Sums over the halves: by patch for the tokens, by feature for the sentence.
        self.sums = torch.zeros(2, tokens, sum(map(len, self.pools.sizes)), dtype=torch.float32, device=pools.device)
        self.sentence = torch.zeros(2, pools[0].numel(), dtype=torch.float32, device=pools.device)
        self.counts, self.sentence_counts = (torch.zeros(2, dtype=torch.float32, device="cpu") for _ in range(2))
        self.impact = torch.zeros(tokens, dtype=torch.float32, device="cpu")

    def backward_passes(self, level: int, rows: range) -> int:
        """Return how many times these rows of a level run the model backwards."""
        tokens = len(self.impact)
        return sum(tokens if self._index(level, row) < self.masks_per_token else 1 for row in rows)

    def parts(self, level: int, rows: range) -> list[range]:
        """Return those of the rows that draw the maps of the tokens too, and those that draw the sentence's alone."""
        first = sum(self._index(level, row) < self.masks_per_token for row in rows)
        return [part for part in (rows[:first], rows[first:]) if part]

    def update(self, masks: Masks, impact_of: Callable[[Masks], Tensor]) -> None:
        """Run the model under these masks, (B, T·C), forwards and backwards, and add what they show.

        Args:
            masks: Of rows that are one of the `parts`.
            impact_of: Runs the model.

        Raises:
            UnsupportedModelError: If the impact does not depend on the masks in a way that torch can differentiate.
        """
        each = self._index(masks.level, masks.rows[-1]) < self.masks_per_token
        sums, sentence, counts, impact = self._observe(masks, impact_of, each)
        # In place, and only now: a batch that ran out of memory has left nothing behind.
        if sums is not None:
            self.sums += sums
            self.counts += counts
        self.sentence += sentence
        self.sentence_counts += counts
        self.impact += impact

    def _observe(
        self, masks: Masks, impact_of: Callable[[Masks], Tensor], each: bool
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Return what masks add to the tokens' sums (None for the sentence alone), the sentence's, counts, impact."""
        halves = one_hot((masks.halves + masks.level) % 2, 2).T.float()  # (2, B)
        sums = torch.zeros_like(self.sums) if each else None
        sentence = torch.zeros_like(self.sentence)
        with torch.inference_mode(False), torch.enable_grad():
            keep = masks.keep.clone().requires_grad_()
            impact = impact_of(replace(masks, keep=keep))
            into = halves.to(sentence.device)
            if sums is None:
                sentence -= into @ _gradient(self.of_sentence(impact).sum(), keep, last=True)
            else:
                slope = _slope(self.of_sentence, impact).to(sentence.device)
                for k in range(impact.shape[1]):
                    gradient = _gradient(impact[:, k].sum(), keep, last=k == impact.shape[1] - 1)
                    token, share = (torch.cat([into, into * slope[:, k]]) @ gradient).split(2)
                    sums[:, k] -= torch.cat(self.pools.means(token), dim=1)
                    sentence -= share
        found = impact.detach().float().sum(0).cpu()  # waits for the device, so that the next line need not
        check_finite([sentence], "gradients of the impacts", self.dtype)
        return sums, sentence, halves.sum(1), found

    def _index(self, level: int, row: int) -> int:
        """Return the index of a mask among those of all levels."""
        return row * self.levels + level

    def scores(self) -> UnitScores:
        """Return the means over all masks: (K, F) for each level of patches, and (T·C,) of the sentence."""
        return self._means(slice(0, 2))

    def half(self, index: int) -> UnitScores:
        """Return the means over one half of the masks."""
        return self._means(slice(index, index + 1))

    def _means(self, halves: slice) -> UnitScores:
        tokens = self.sums[halves].sum(0).cpu() / self.counts[halves].sum().clamp_min(1)
        sentence = self.sentence[halves].sum(0).cpu() / self.sentence_counts[halves].sum().clamp_min(1)
        levels = tokens.split([len(sizes) for sizes in self.pools.sizes], dim=1)
        # The impact is that of all masks.
        impact = self.impact / self.sentence_counts.sum().clamp_min(1)
        return UnitScores(levels, None, impact, sentence)


def relative(impact: Tensor) -> Tensor:
    """Return log(1 + |r| / ε) of impacts, with their sign, where ε = 0.01.

    Its slope is 1 / (ε + |r|), but for 0 at r = 0: how far an impact moves counts in proportion to how large it is. So
    in a sum no token drowns the others, nor does one mask that breaks the output. For KL, whose gradient vanishes with
    it; other impacts would count most where they moved least.
    """
    return impact.sign() * (impact.abs() / EPSILON).log1p()


def _slope(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Return the derivative of a function that is applied to each value, in float32."""
    at = values.detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(function(at).sum(), at)
    return slope


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

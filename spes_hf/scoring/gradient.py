"""The linear part of Eq. 3 from backward passes: each pass gives a value for every feature, not a single number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from spes_hf.errors import UnsupportedModelError
from spes_hf.finite import check_finite, is_checked
from spes_hf.masking.perturbations import Masks
from spes_hf.runtime.ranks import SumsOf
from spes_hf.runtime.transfer import on_device
from spes_hf.scoring.pooling import Pools
from spes_hf.scoring.scores import UnitScores
from spes_hf.scoring.sharing import Sharing

# Impacts (nats, for KL) much smaller than this count as zero.
EPSILON = 0.01


class GradientEstimator:
    """Averages −∂r/∂m, the drop of the impact when slightly more of a feature is kept, over random masks.

    Masks are per feature, and are numbers instead of bits. With a keep probability of ½, the average is the trapezoidal
    rule for E[r | m = 0] − E[r | m = 1]; Eq. 3 is an affine function of this difference (docs/gradient.md).

    All tokens share the masks. Each mask takes a forward pass, a backward pass for every group of tokens that share one
    (`Sharing`; often each has its own), and a backward pass for the sentence, Σ_k f(r_k). Further masks are for the
    sentence alone. Sums are kept separately for two halves of the masks, for the split-half reliability.

    If only some tokens are explained, only the passes of their groups run, but the sentence is still the whole one, so
    maps do not depend on which other tokens are explained.

    Args:
        pools: (L, T, C) patches at one or more levels, on the model's device; in the maps of the tokens, features of a
            patch share their mean, and levels are averaged.
        tokens: Number of tokens, explained or not.
        masks_per_token: Number of masks used for the maps of the tokens (the first ones); all masks are used for the
            map of the sentence.
        levels: Number of levels of the masks; mask i belongs to level i mod ``levels``.
        of_sentence: f, applied to the impact on each token before summing for the sentence; None: identity.
        dtype: The model's dtype, for error messages.
        rows: Indices of the explained tokens, K; None: all.
        sharing: Which tokens share a backward pass; None: none do.
        sizes: Returns the approximate sizes of the gradients of all tokens, (B, K), for their impacts; required if
            tokens share passes, so that none drowns another.
        of: Indices of the tokens that make up the sentence; None: all.
    """

    differentiates = True
    every = True

    def __init__(
        self,
        pools: Tensor,
        tokens: int,
        masks_per_token: int,
        levels: int = 1,
        of_sentence: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
        rows: Sequence[int] | None = None,
        sharing: Sharing | None = None,
        sizes: Callable[[Tensor], Tensor] | None = None,
        of: Sequence[int] | None = None,
    ):
        self.pools, self.frames = Pools(pools), pools.shape[1]
        self.dtype = dtype
        self.masks_per_token = masks_per_token
        self.levels = levels
        self.of_sentence = of_sentence or (lambda impact: impact)
        self.sharing = Sharing.alone(tokens) if sharing is None else sharing
        self.of = None if of is None or len(of) == tokens else _indices(of, pools.device)
        self.rows = list(range(tokens) if rows is None else rows)
        self._rows = _indices(self.rows, pools.device)
        self._members = [_indices(group, pools.device) for group in self.sharing.groups]
        places = self.sharing.places
        # For every group with explained tokens: their rows in the explanation, and their places in the group.
        self.explained: dict[int, list[tuple[int, int]]] = {}
        for row, k in enumerate(self.rows):
            group, place = places[k]
            self.explained.setdefault(group, []).append((row, place))
        shares = self.sharing.shares
        self.shares = None if shares is None else shares[self.rows].to(pools.device)
        self.sizes = sizes
        # Sums of the two halves: per patch for the tokens, per feature for the sentence.
        units = sum(map(len, self.pools.sizes))
        self.sums = torch.zeros(2, len(self.rows), units, dtype=torch.float32, device=pools.device)
        self.sentence = torch.zeros(2, pools[0].numel(), dtype=torch.float32, device=pools.device)
        self.counts, self.sentence_counts = (torch.zeros(2, dtype=torch.float32, device="cpu") for _ in range(2))
        self.impact = torch.zeros(len(self.rows), dtype=torch.float32, device=pools.device)
        self.calls = 0

    def backward_passes(self, level: int, rows: range) -> int:
        """Return the number of backward passes for these rows of a level."""
        each = len(self.explained)
        return sum(1 + each * (self._index(level, row) < self.masks_per_token) for row in rows)

    def parts(self, level: int, rows: range) -> list[range]:
        """Return the rows that are used for the maps of the tokens too, and those for the sentence alone."""
        first = sum(self._index(level, row) < self.masks_per_token for row in rows)
        return [part for part in (rows[:first], rows[first:]) if part]

    def update(self, masks: Masks, impact_of: Callable[[Masks], Tensor]) -> None:
        """Run the model forwards and backwards under these masks, (B, T·C), and add the gradients.

        Args:
            masks: Masks with rows from a single one of the `parts`.
            impact_of: Runs the model.

        Raises:
            UnsupportedModelError: If torch cannot differentiate the impact with respect to the masks.
        """
        each = self._index(masks.level, masks.rows[-1]) < self.masks_per_token
        sums, sentence, counts, impact = self._observe(masks, impact_of, each)
        # In place, and only now, so that a batch that runs out of memory leaves nothing behind.
        if sums is not None:
            self.sums += sums
            self.counts += counts
        self.sentence += sentence
        self.sentence_counts += counts
        self.impact += impact

    def _observe(
        self, masks: Masks, impact_of: Callable[[Masks], Tensor], each: bool
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Return the masks' additions to the sums of tokens (None for the sentence alone), sentence, counts, impact."""
        second = (masks.halves + masks.level) % 2
        halves = torch.stack([1 - second, second]).float()  # (2, B)
        sums = torch.zeros_like(self.sums) if each else None
        sentence = torch.zeros_like(self.sentence)
        with torch.inference_mode(False), torch.enable_grad():
            keep = masks.keep.clone().requires_grad_()
            impact = impact_of(replace(masks, keep=keep))
            into = on_device(halves, sentence.device)
            if sums is not None:
                for group in self.explained:
                    self._add_group(sums, group, masks, impact, keep, into)
            of = impact if self.of is None else impact[:, self.of]
            sentence -= into @ _gradient(self.of_sentence(of).sum(), keep, last=True)
        self.calls += 1
        if is_checked(self.calls, sentence.device):
            check_finite([sentence], "gradients of the impacts", self.dtype)
        return sums, sentence, halves.sum(1), impact.detach()[:, self._rows].float().sum(0)

    def _add_group(self, sums: Tensor, group: int, masks: Masks, impact: Tensor, keep: Tensor, into: Tensor) -> None:
        """Run a backward pass for a group of tokens and add the gradients to their sums, (2, K, units)."""
        members = self._members[group]
        if len(members) == 1:
            gradient, own = _gradient(impact[:, self.sharing.groups[group][0]].sum(), keep, last=False), into[None]
        else:
            assert self.sizes is not None
            signs = on_device(self.sharing.signs(masks.blocks, len(members)), impact.device).to(impact)  # (B, size)
            sizes = self.sizes(impact.detach())[:, members]
            gradient = _gradient((impact[:, members] * signs / sizes).sum(), keep, last=False)
            own = into * (signs * sizes).T[:, None].to(into)  # (size, 2, B)
        for row, place in self.explained[group]:
            found = own[place] @ gradient
            if self.shares is not None:
                found = (found.unflatten(1, (self.frames, -1)) * self.shares[row, :, None]).flatten(1)
            sums[:, row] -= torch.cat(self.pools.means(found), dim=1)

    def _index(self, level: int, row: int) -> int:
        """Return the index of a mask among the masks of all levels."""
        return row * self.levels + level

    def replace_sums(self, by: SumsOf) -> None:
        """Replace the sums over masks with the result of a function of them."""
        sums = [self.sums, self.sentence, self.counts, self.sentence_counts, self.impact]
        self.sums, self.sentence, self.counts, self.sentence_counts, self.impact = by(sums)

    def scores(self) -> UnitScores:
        """Return the means over all masks: (K, F) for each level of patches, and (T·C,) for the sentence."""
        return self._means(slice(0, 2))

    def half(self, index: int) -> UnitScores:
        """Return the means over one half of the masks."""
        return self._means(slice(index, index + 1))

    def _means(self, halves: slice) -> UnitScores:
        tokens = self.sums[halves].sum(0).cpu() / self.counts[halves].sum().clamp_min(1)
        sentence = self.sentence[halves].sum(0).cpu() / self.sentence_counts[halves].sum().clamp_min(1)
        levels = tokens.split([len(sizes) for sizes in self.pools.sizes], dim=1)
        # The impact is always averaged over all masks.
        impact = self.impact.cpu() / self.sentence_counts.sum().clamp_min(1)
        return UnitScores(levels, None, impact, sentence)


def _indices(values: Sequence[int], device: torch.device) -> Tensor:
    """Return indices on a device: those in a list would be copied to it in every pass."""
    return torch.tensor(list(values), dtype=torch.int64, device=device)


def relative(impact: Tensor) -> Tensor:
    """Return sign(r) · log(1 + |r| / ε) of impacts, where ε = 0.01.

    Its slope is 1 / (ε + |r|), and 0 at r = 0: the change of an impact counts relative to its size. In a sum, no token
    drowns the others, and neither does a single mask that breaks the output. Meant for KL, which has a gradient that
    vanishes with r; other impacts would count most where they move least.
    """
    return impact.sign() * (impact.abs() / EPSILON).log1p()


def _gradient(value: Tensor, keep: Tensor, last: bool) -> Tensor:
    """Return the gradient with respect to the masks, (B, T·C) float32; keeps the graph unless this is the last one."""
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, keep, retain_graph=not last, allow_unused=True)
    if gradient is None:
        raise UnsupportedModelError(
            'config.estimator is "gradient", but no gradient flows from the model\'s output to the spectrogram; use '
            'estimator="perturbation"'
        )
    return gradient.float()

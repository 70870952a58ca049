"""The linear part of Eq. 3 by backward passes: one pass tells of every feature, not of one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from spes_hf.errors import UnsupportedModelError
from spes_hf.finite import check_finite
from spes_hf.masking.perturbations import Masks
from spes_hf.runtime.ranks import SumsOf
from spes_hf.scoring.pooling import Pools
from spes_hf.scoring.scores import UnitScores
from spes_hf.scoring.sharing import Sharing

# Impacts (nats, for KL) that are much smaller count as none.
EPSILON = 0.01


class GradientEstimator:
    """Averages −∂r/∂m, the fall of the impact when a feature is kept a little more, over random masks.

    The masks are by feature, numbers instead of bits. At a keep probability of ½ the average is the trapezoidal rule
    for E[r | m = 0] − E[r | m = 1], which Eq. 3 is an affine function of (docs/gradient.md).

    All tokens share the masks: a forward pass, a backward pass for every group of tokens that share one (`Sharing`;
    often each has its own), and one for the sentence, Σ_k f(r_k). Further masks draw the sentence alone. Two halves of
    the masks are kept apart, for the split-half reliability.

    Where only some tokens are explained, the passes are those of the groups that they belong to and the sentence is
    still the whole one, so that maps do not depend on which others are explained.

    Args:
        pools: (L, T, C) patches whose features share their mean in the maps of the tokens, at one or more levels that
            are averaged; on the model's device.
        tokens: Number of tokens, explained or not.
        masks_per_token: Number of masks, the first ones, that draw the maps of the tokens; all masks draw that of the
            sentence.
        levels: Number of levels of the masks; mask i belongs to level i mod ``levels``.
        of_sentence: f, what the impact on a token becomes where the sentence's is added up; None: it stays as it is.
        dtype: What the model computes in, for errors.
        rows: Indices of the tokens that are explained, K; None: all.
        sharing: Which tokens share a backward pass; None: none do.
        sizes: Returns about how large the gradients of all tokens are, (B, K), for their impacts; needed where tokens
            share passes, so that none drowns another.
        of: Indices of the tokens that the sentence is made of; None: all.
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
        self.of = slice(None) if of is None or len(of) == tokens else list(of)
        self.rows = list(range(tokens) if rows is None else rows)
        places = self.sharing.places
        # The explained tokens of every group that has any: row of the explanation, and place in the group.
        self.explained: dict[int, list[tuple[int, int]]] = {}
        for row, k in enumerate(self.rows):
            group, place = places[k]
            self.explained.setdefault(group, []).append((row, place))
        shares = self.sharing.shares
        self.shares = None if shares is None else shares[self.rows].to(pools.device)
        self.sizes = sizes
        # Sums over the halves: by patch for the tokens, by feature for the sentence.
        units = sum(map(len, self.pools.sizes))
        self.sums = torch.zeros(2, len(self.rows), units, dtype=torch.float32, device=pools.device)
        self.sentence = torch.zeros(2, pools[0].numel(), dtype=torch.float32, device=pools.device)
        self.counts, self.sentence_counts = (torch.zeros(2, dtype=torch.float32, device="cpu") for _ in range(2))
        self.impact = torch.zeros(len(self.rows), dtype=torch.float32, device="cpu")

    def backward_passes(self, level: int, rows: range) -> int:
        """Return how many times these rows of a level run the model backwards."""
        each = len(self.explained)
        return sum(1 + each * (self._index(level, row) < self.masks_per_token) for row in rows)

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
            if sums is not None:
                for group in self.explained:
                    self._add_group(sums, group, masks, impact, keep, into)
            sentence -= into @ _gradient(self.of_sentence(impact[:, self.of]).sum(), keep, last=True)
        found = impact.detach()[:, self.rows].float().sum(0).cpu()  # waits for the device, so that the next need not
        check_finite([sentence], "gradients of the impacts", self.dtype)
        return sums, sentence, halves.sum(1), found

    def _add_group(self, sums: Tensor, group: int, masks: Masks, impact: Tensor, keep: Tensor, into: Tensor) -> None:
        """Add what a backward pass tells of the tokens of a group to their sums, (2, K, units)."""
        members = list(self.sharing.groups[group])
        if len(members) == 1:
            gradient, own = _gradient(impact[:, members[0]].sum(), keep, last=False), into[None]
        else:
            assert self.sizes is not None
            signs = self.sharing.signs(masks.blocks, len(members)).to(impact)  # (B, size)
            sizes = self.sizes(impact.detach())[:, members]
            gradient = _gradient((impact[:, members] * signs / sizes).sum(), keep, last=False)
            own = into * (signs * sizes).T[:, None].to(into)  # (size, 2, B)
        for row, place in self.explained[group]:
            found = own[place] @ gradient
            if self.shares is not None:
                found = (found.unflatten(1, (self.frames, -1)) * self.shares[row, :, None]).flatten(1)
            sums[:, row] -= torch.cat(self.pools.means(found), dim=1)

    def _index(self, level: int, row: int) -> int:
        """Return the index of a mask among those of all levels."""
        return row * self.levels + level

    def replace_sums(self, by: SumsOf) -> None:
        """Replace the sums over masks by what a function makes of them."""
        sums = [self.sums, self.sentence, self.counts, self.sentence_counts, self.impact]
        self.sums, self.sentence, self.counts, self.sentence_counts, self.impact = by(sums)

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

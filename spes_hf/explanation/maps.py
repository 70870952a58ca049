"""Maps over the spectrogram, stored as the factors they are made of, and how reliable they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from spes_hf.functional import ratio, z_score


@dataclass(frozen=True, eq=False)
class PatchMap:
    """A map over the spectrogram: scores of patches, and the patch that each feature lies in.

    Attributes:
        labels: (L, T, C) int32, the patch of every feature at every level.
        values: Per level (K, F) float32. Without weights, these are scores, and the map is their mean over levels. With
            weights, these are sums over masks, Σ_i r_i (1 − M_i).
        weights: Per level (F,) float32, Σ_i (1 − M_i); None if values are scores.

    Examples:
        >>> labels = torch.tensor([[[0, 1], [0, 1]]])  # one level: two frames, and a patch for each of two mel bins
        >>> PatchMap.of(labels, [torch.tensor([[2.0, 3.0]])]).dense(0).tolist()
        [[2.0, 3.0], [2.0, 3.0]]
    """

    labels: Tensor
    values: tuple[Tensor, ...]
    weights: tuple[Tensor, ...] | None = None

    @classmethod
    def of(cls, labels: Tensor, values: Iterable[Tensor], weights: Iterable[Tensor] | None = None) -> PatchMap:
        """Return a map made from labels and scores of any type, on any device."""
        counts = None if weights is None else tuple(w.cpu().float() for w in weights)
        return cls(labels.to("cpu", torch.int32), tuple(v.cpu().float() for v in values), counts)

    def dense(self, token: int) -> Tensor:
        """Return the map of one token, (T, C): Eq. 3 with the masks of all levels pooled, or the mean over levels."""
        total = torch.zeros(self.labels.shape[1:], dtype=torch.float32, device="cpu")
        for labels, scores in zip(self.labels, self.values, strict=False):
            total += scores[token][labels]
        if self.weights is None:
            return total / len(self.values)
        return ratio(total, self.counts)

    @cached_property
    def counts(self) -> Tensor:
        """(T, C) how often each feature was hidden, over all levels; 1 if values are scores."""
        if self.weights is None:
            return torch.ones(self.labels.shape[1:], dtype=torch.float32, device="cpu")
        counts = torch.zeros(self.labels.shape[1:], dtype=torch.float32, device="cpu")
        for labels, weights in zip(self.labels, self.weights, strict=False):
            counts += weights[labels]
        return counts


@dataclass(frozen=True, eq=False)
class EncoderMap:
    """A map over the encoder's output.

    Attributes:
        scores: (K, S) float32 raw scores of the positions that hold sound.
        times: (S,) float32, the centre of each position in seconds.

    Examples:
        >>> over = explain(model, processor, clip, config=SpesConfig.fast(), over="encoder")
        >>> tuple(over.encoder_map.scores.shape) == (len(over), len(over.encoder_map.times))
        True
    """

    scores: Tensor
    times: Tensor


@dataclass(frozen=True)
class Reliability:
    """Split-half reliability of the audio map: would another set of masks have drawn the same map?

    The correlation between the maps from two halves of the masks, stepped up to the full number of masks by the
    Spearman–Brown formula 2r / (1 + r). Masks that are balanced against each other stay in one half. 1 is perfect, 0 is
    noise; NaN if a half has no masks, or its map is constant.

    Attributes:
        tokens: (K,) reliability of each token's (or word's) map.
        sentence: Reliability of the sentence map.

    Examples:
        >>> Reliability.unknown(2)
        Reliability(tokens=tensor([nan, nan]), sentence=nan)
        >>> len(ex.reliability.tokens) == len(ex)
        True
    """

    tokens: Tensor
    sentence: float

    @classmethod
    def unknown(cls, tokens: int) -> Reliability:
        """Return NaN for K maps, since no masks drew them."""
        return cls(torch.full((tokens,), torch.nan, dtype=torch.float32, device="cpu"), float("nan"))


def split_half(even: PatchMap, odd: PatchMap) -> Reliability:
    """Return the reliability of a map from the maps that two halves of the masks draw.

    Pearson's r between the half maps, stepped up to all masks by the Spearman–Brown formula 2r / (1 + r). The sentence
    map of a half is the mean of its tokens' z-scores, or the row itself if there is only one.

    Args:
        even: Map of all tokens from one half.
        odd: Map of all tokens from the other half.

    Examples:
        >>> labels = torch.tensor([[[0, 1], [2, 3]]])
        >>> even = PatchMap.of(labels, [torch.tensor([[1.0, 2.0, 3.0, 4.0]])])
        >>> odd = PatchMap.of(labels, [torch.tensor([[2.0, 1.0, 3.0, 4.0]])])
        >>> round(split_half(even, odd).sentence, 2)  # r is 0.8
        0.89
    """
    if not (even.values and odd.values):
        return Reliability.unknown(1)
    tokens = len(even.values[0])
    labels = even.labels if torch.equal(even.labels, odd.labels) else torch.cat([even.labels, odd.labels])
    cells, sizes = _cells(labels)
    halves = [replace(half, labels=half.labels.flatten(1)[:, cells]) for half in (even, odd)]
    sentence = torch.zeros(2, len(cells), dtype=torch.float64, device="cpu")
    each = torch.empty(tokens, dtype=torch.float32, device="cpu")
    for k in range(tokens):
        one, other = (z_score(half.dense(k), sizes) for half in halves)
        each[k] = _stepped_up(one, other, sizes)
        sentence[0] += one
        sentence[1] += other
    one, other = (z_score(total, sizes) for total in sentence)
    return Reliability(each, _stepped_up(one, other, sizes))


def _cells(labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Group features that lie in the same patch at every level, where every map has a single value.

    Args:
        labels: (L, T, C) the patch of every feature at every level.

    Returns:
        The index of one feature from each of the n groups, (n,) int64, and the number of features in the group, (n,)
        float64; None if every feature is a group of its own.
    """
    levels = labels.flatten(1).long()
    groups = levels[0]
    for level in levels[1:]:
        groups = torch.unique(groups * (level.max() + 1) + level, return_inverse=True)[1]
    sizes = torch.bincount(groups)
    some = sizes > 0
    each = torch.arange(len(groups), dtype=torch.int64, device="cpu")
    cells = torch.empty_like(sizes).scatter_(0, groups, each)[some]
    return cells, None if len(cells) == len(groups) else sizes[some].double()


def _stepped_up(a: Tensor, b: Tensor, sizes: Tensor | None) -> float:
    if not (a.any() and b.any()):
        return float("nan")
    products, number = (a * b, a.numel()) if sizes is None else (a * b * sizes, float(sizes.sum()))
    r = float(products.sum() / (number - 1))
    return 2 * r / (1 + r) if r > -1 else float("nan")

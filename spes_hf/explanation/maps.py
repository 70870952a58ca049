"""A map over the spectrogram, kept as what it is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from spes_hf.functional import ratio


@dataclass(frozen=True, eq=False)
class PatchMap:
    """A map over the spectrogram: scores of patches, and which patch a feature lies in.

    Attributes:
        labels: (L, T, C) int32, the patch of every feature at every level.
        values: Per level (K, F) float32. Without weights, scores, whose mean over levels is the map; with them, sums
            over masks, Σ_i r_i (1 − M_i).
        weights: Per level (F,) float32, Σ_i (1 − M_i); None where values are scores.
    """

    labels: Tensor
    values: tuple[Tensor, ...]
    weights: tuple[Tensor, ...] | None = None

    @classmethod
    def of(cls, labels: Tensor, values: Iterable[Tensor], weights: Iterable[Tensor] | None = None) -> PatchMap:
        """Return a map of labels and scores of any type, on any device."""
        counts = None if weights is None else tuple(w.cpu().float() for w in weights)
        return cls(labels.to("cpu", torch.int32), tuple(v.cpu().float() for v in values), counts)

    def dense(self, token: int) -> Tensor:
        """Return the map of one token, (T, C): Eq. 3 with the masks of all levels pooled, or the mean over levels."""
        total = torch.zeros(self.labels.shape[1:], dtype=torch.float32, device="cpu")
        for labels, scores in zip(self.labels, self.values, strict=False):
            total += scores[token][labels]
        if self.weights is None:
            return total / len(self.values)
        counts = torch.zeros_like(total)
        for labels, weights in zip(self.labels, self.weights, strict=False):
            counts += weights[labels]
        return ratio(total, counts)

"""Tokens that share a backward pass: signs tell their gradients apart, and attention shares out what signs leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

# Attention is smoothed over this many seconds before it shares out a gradient.
SMOOTHING_S = 0.25

# What every token of a group gets everywhere, of the largest attention: evidence may lie where it does not attend.
FLOOR = 0.05


@dataclass(frozen=True, eq=False)
class Sharing:
    """Which tokens share a backward pass, and how the pass is taken apart again.

    One backward pass of Σ_k s_k w_k r_k gives the sum of the gradients of all tokens k of a group, times sign and
    weight. Signs differ from mask to mask, and those of two tokens of a group are orthogonal over all masks. So s_k
    times the gradients, averaged over masks, has token k's own in full, while what the others add has the mean 0,
    whatever their gradients are like: only how much they vary between masks is left, as noise. Of that, and of the
    token's own evidence, each feature gets the token's share of the group's attention at that time.

    Attributes:
        groups: Indices of the tokens that share a pass, for every pass; every token of the output once.
        codes: (L, L) ±1, a row for every token of a group, a column for every block of masks, in turn.
        shares: (K, T) of every token in its group at every frame; over a group they add up to 1. None for tokens that
            have passes of their own.
    """

    groups: tuple[tuple[int, ...], ...]
    codes: Tensor
    shares: Tensor | None = None

    @classmethod
    def alone(cls, tokens: int) -> Sharing:
        """Return passes of their own for all tokens: nothing is shared, and nothing approximated."""
        return cls(tuple((k,) for k in range(tokens)), torch.ones(1, 1, dtype=torch.float32, device="cpu"))

    @classmethod
    def of(cls, tokens: int, passes: int, blocks: int, attention: Callable[[], Tensor], frame_s: float) -> Sharing:
        """Return a sharing of the passes under each mask.

        Neighbours go to different groups, so that the words of a group lie far apart. No group has more tokens than
        there are codes: if need be, there are more passes.

        Args:
            tokens: K.
            passes: Backward passes under each mask.
            blocks: Number of blocks of masks whose signs may differ.
            attention: Returns the cross-attention of every token over frames, (K, T); asked where tokens share.
            frame_s: Distance of two frames in seconds.
        """
        codes = orthogonal_codes(blocks)
        count = max(passes, -(-tokens // len(codes)))
        if count >= tokens:
            return cls.alone(tokens)
        groups = tuple(tuple(range(first, tokens, count)) for first in range(count))
        weights = _smoothed(attention(), frame_s)
        shares = torch.empty_like(weights)
        for group in groups:
            shares[list(group)] = weights[list(group)] / weights[list(group)].sum(0)
        return cls(groups, codes, shares)

    @property
    def is_shared(self) -> bool:
        """Whether any pass has more than one token."""
        return self.shares is not None

    @cached_property
    def places(self) -> dict[int, tuple[int, int]]:
        """For every token its group and its place in it."""
        return {k: (g, place) for g, group in enumerate(self.groups) for place, k in enumerate(group)}

    def signs(self, blocks: Tensor, size: int) -> Tensor:
        """Return the signs of a group's tokens, (B, size), under masks of these blocks, (B,)."""
        return self.codes[:size, blocks % len(self.codes)].T


def orthogonal_codes(blocks: int) -> Tensor:
    """Return a Hadamard matrix, (L, L) of ±1, of the largest order L = 2^n or 12 · 2^n that divides a number.

    By Sylvester's doubling, from Paley's matrix of order 12 where it fits.
    """
    order = blocks & -blocks
    start = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    if blocks % 3 == 0 and order >= 4:
        start, order = _paley(), order // 4
    double = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float32, device="cpu")
    for _ in range(order.bit_length() - 1):
        start = torch.kron(start, double)
    return start


def _paley() -> Tensor:
    """Return the Hadamard matrix of order 12: I + S, where S has the quadratic residues modulo 11."""
    matrix = torch.eye(12, dtype=torch.float32, device="cpu")
    matrix[0, 1:], matrix[1:, 0] = 1, -1
    squares = {i * i % 11 for i in range(1, 11)}
    for i in range(11):
        for j in range(11):
            if i != j:
                matrix[i + 1, j + 1] = 1 if (j - i) % 11 in squares else -1
    return matrix


def _smoothed(attention: Tensor, frame_s: float) -> Tensor:
    """Return attention over frames, (K, T), as running means in units of its largest value, with a floor."""
    width = 2 * max(0, round(SMOOTHING_S / frame_s / 2)) + 1
    padded = pad(attention.float()[:, None], (width // 2, width // 2), mode="replicate")
    smooth = avg_pool1d(padded, width, stride=1)[:, 0]
    return smooth / smooth.amax(1, keepdim=True).clamp_min(1e-12) + FLOOR

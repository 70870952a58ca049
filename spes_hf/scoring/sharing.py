"""Tokens that share a backward pass: signs separate their gradients, and attention divides the remainder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

# Attention is smoothed over this many seconds before it divides a gradient.
SMOOTHING_S = 0.25

# Minimum share of every token everywhere, relative to its largest attention: a token may have evidence where it does
# not attend.
FLOOR = 0.05


@dataclass(frozen=True, eq=False)
class Sharing:
    """Which tokens share a backward pass, and how their gradients are separated again.

    One backward pass of Σ_k s_k w_k r_k gives the sum of the gradients of all tokens k of a group, times sign and
    weight. Signs differ from mask to mask, and those of two tokens of a group are orthogonal over all masks. Averaged
    over masks, s_k times the gradient thus contains token k's own gradient in full, while the contribution of the other
    tokens has mean 0: only their variation between masks remains, as noise. The result is then multiplied, at each
    frame, by the token's share of the group's attention.

    Attributes:
        groups: For every pass, the indices of the tokens that share it; every output token occurs once.
        codes: (L, L) ±1, one row per token of a group; blocks of masks use the columns in turn.
        shares: (K, T) attention share of every token in its group at every frame, summing to 1 over a group. None if
            every token has its own pass.
    """

    groups: tuple[tuple[int, ...], ...]
    codes: Tensor
    shares: Tensor | None = None

    @classmethod
    def alone(cls, tokens: int) -> Sharing:
        """Return a sharing in which every token has its own pass: exact, nothing is shared."""
        return cls(tuple((k,) for k in range(tokens)), torch.ones(1, 1, dtype=torch.float32, device="cpu"))

    @classmethod
    def of(cls, tokens: int, passes: int, blocks: int, attention: Callable[[], Tensor], frame_s: float) -> Sharing:
        """Return how tokens share the passes under each mask.

        Neighbouring tokens go to different groups, so that the words of a group lie far apart. No group has more tokens
        than there are codes; if necessary, more passes are used.

        Args:
            tokens: K.
            passes: Backward passes under each mask.
            blocks: Number of blocks of masks; signs may differ between blocks.
            attention: Returns the cross-attention of every token over frames, (K, T); called only if tokens share.
            frame_s: Time between two frames, in seconds.
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
        """Whether any pass is shared by several tokens."""
        return self.shares is not None

    @cached_property
    def places(self) -> dict[int, tuple[int, int]]:
        """For every token, its group and its place in the group."""
        return {k: (g, place) for g, group in enumerate(self.groups) for place, k in enumerate(group)}

    def signs(self, blocks: Tensor, size: int) -> Tensor:
        """Return the signs of a group's tokens, (B, size), under masks of these blocks, (B,)."""
        return self.codes[:size, blocks % len(self.codes)].T


def orthogonal_codes(blocks: int) -> Tensor:
    """Return a Hadamard matrix, (L, L) of ±1, with the largest order L = 2^n or 12 · 2^n that divides ``blocks``.

    Uses Sylvester's doubling, starting from Paley's matrix of order 12 if possible.
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
    """Return the Hadamard matrix of order 12: I + S, where S is built from the quadratic residues modulo 11."""
    matrix = torch.eye(12, dtype=torch.float32, device="cpu")
    matrix[0, 1:], matrix[1:, 0] = 1, -1
    squares = {i * i % 11 for i in range(1, 11)}
    for i in range(11):
        for j in range(11):
            if i != j:
                matrix[i + 1, j + 1] = 1 if (j - i) % 11 in squares else -1
    return matrix


def _smoothed(attention: Tensor, frame_s: float) -> Tensor:
    """Return attention over frames, (K, T), as running means divided by their largest value, plus a floor."""
    width = 2 * max(0, round(SMOOTHING_S / frame_s / 2)) + 1
    padded = pad(attention.float()[:, None], (width // 2, width // 2), mode="replicate")
    smooth = avg_pool1d(padded, width, stride=1)[:, 0]
    return smooth / smooth.amax(1, keepdim=True).clamp_min(1e-12) + FLOOR

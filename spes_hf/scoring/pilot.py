"""Sizes of tokens' gradients from a few decoder passes, so that no token drowns another in a shared pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from spes_hf.masking.perturbations import Masks
from spes_hf.runtime.ranks import SumsOf
from spes_hf.scoring.scores import UnitScores

# Number of masks: two antithetic pairs.
MASKS = 4

# Impacts (nats) below this count as zero.
LEAST = 1e-9


class Pilot:
    """Measures ‖∂r_k/∂h‖ for the encoder's output h with backward passes of the decoder alone, under a few masks.

    The KL divergence is quadratic near its minimum, so its gradient is proportional to √r. For it, the estimate keeps
    the geometric mean over masks of norm/√r, and multiplies it by the √r of a mask to get the size there. For other
    impacts, it keeps the root mean square of the norm. Masks without a gradient are ignored.

    Args:
        tokens: K.
        quadratic: Whether the impact is quadratic near its minimum, like KL.
        device: Where the impacts are.
    """

    differentiates = True
    every = True

    def __init__(self, tokens: int, quadratic: bool, device: torch.device):
        self.quadratic = quadratic
        self.sum, self.count = (torch.zeros(tokens, dtype=torch.float32, device=device) for _ in range(2))

    def backward_passes(self, level: int, rows: range) -> int:
        """Return 0: no backward pass goes through the encoder."""
        return 0

    def parts(self, level: int, rows: range) -> list[range]:
        """Return the rows one by one: every mask has its own norms."""
        return [range(row, row + 1) for row in rows]

    def update(self, masks: Masks, impact_of: Callable[..., Tensor]) -> None:
        """Run the model under a mask, run its decoder backwards, and add the gradient norms."""
        leaves: list[Tensor] = []

        def cut(states: Tensor) -> Tensor:
            leaves.append(states.detach().requires_grad_())
            return leaves[-1]

        with torch.inference_mode(False), torch.enable_grad():
            impact = impact_of(replace(masks, keep=masks.keep.clone()), encoded=cut)
            # Scaled so that nothing underflows in half precision.
            scaled = impact / self._scale(impact.detach())
            norms = [_norm(scaled[:, k].sum(), leaves[-1], k == impact.shape[1] - 1) for k in range(impact.shape[1])]
        size = torch.stack(norms).to(self.sum.device)
        seen = size.isfinite() & (size > 0)
        # In place, and only now, so that a pass that runs out of memory leaves nothing behind.
        self.sum += torch.where(seen, size.log() if self.quadratic else size.square(), 0.0)
        self.count += seen

    def replace_sums(self, by: SumsOf) -> None:
        """Replace the sums over masks with the result of a function of them."""
        self.sum, self.count = by([self.sum, self.count])

    def sizes(self, impact: Tensor) -> Tensor:
        """Return the approximate sizes of the gradients, (B, K), for these impacts."""
        mean = self.sum / self.count.clamp_min(1)
        typical = mean.exp() if self.quadratic else mean.sqrt()
        known = self.count > 0
        # Tokens that no mask measured are assumed to be large, so that they drown nothing.
        largest = torch.where(known.any(), typical.masked_fill(~known, -torch.inf).max(), 1.0)
        return torch.where(known, typical, largest).to(impact.device) * self._scale(impact)

    def _scale(self, impact: Tensor) -> Tensor:
        return (impact.float().abs() + LEAST).sqrt() if self.quadratic else torch.ones_like(impact, dtype=torch.float32)

    def scores(self) -> UnitScores:
        """Return empty scores: the pilot draws no map."""
        return UnitScores((), None, torch.zeros(0, dtype=torch.float32, device="cpu"))

    def half(self, index: int) -> UnitScores:
        """Return empty scores."""
        return self.scores()


def _norm(value: Tensor, leaf: Tensor, last: bool) -> Tensor:
    """Return the norm of a gradient, () float32; keeps the graph unless this is the last one."""
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, leaf, retain_graph=not last, allow_unused=True)
    return leaf.new_zeros((), dtype=torch.float32) if gradient is None else gradient.float().norm()

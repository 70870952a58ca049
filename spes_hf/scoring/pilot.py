"""How large the gradients of tokens are, from a few passes of the decoder: tokens that share a pass must not drown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from spes_hf.masking.perturbations import Masks
from spes_hf.scoring.scores import UnitScores

# Masks that are looked at: two antithetic pairs.
MASKS = 4

# Impacts (nats) below this count as none.
LEAST = 1e-9


class Pilot:
    """Measures ‖∂r_k/∂h‖ for the encoder's output h, by backward passes of the decoder alone, under a few masks.

    The KL divergence is quadratic near its minimum, so its gradient goes with the root of it: the norm over √r is what
    is kept, as the geometric mean over masks, and the root of the impact under a mask then tells the size there.

    Args:
        tokens: K.
        quadratic: Whether the impact is; if not, the norm itself is kept.
    """

    differentiates = True
    every = True

    def __init__(self, tokens: int, quadratic: bool):
        self.quadratic = quadratic
        self.sum = torch.zeros(tokens, dtype=torch.float32, device="cpu")
        self.count = 0

    def backward_passes(self, level: int, rows: range) -> int:
        """Return 0: none goes through the encoder."""
        return 0

    def parts(self, level: int, rows: range) -> list[range]:
        """Return the rows one by one: every mask has its own norms."""
        return [range(row, row + 1) for row in rows]

    def update(self, masks: Masks, impact_of: Callable[..., Tensor]) -> None:
        """Run the model under a mask, its decoder backwards too, and add what it shows."""
        leaves: list[Tensor] = []

        def cut(states: Tensor) -> Tensor:
            leaves.append(states.detach().requires_grad_())
            return leaves[-1]

        with torch.inference_mode(False), torch.enable_grad():
            impact = impact_of(replace(masks, keep=masks.keep.clone()), encoded=cut)
            norms = []
            for k in range(impact.shape[1]):
                (gradient,) = torch.autograd.grad(
                    impact[:, k].sum(), leaves[-1], retain_graph=k < impact.shape[1] - 1, allow_unused=True
                )
                norms.append(impact.new_zeros(()) if gradient is None else gradient.float().norm())
        size = torch.stack(norms) / self._scale(impact.detach()[0])
        self.sum += size.clamp_min(LEAST).log().cpu()
        self.count += len(masks.keep)

    def sizes(self, impact: Tensor) -> Tensor:
        """Return about how large the gradients are, (B, K), where the impacts are these."""
        return (self.sum / max(self.count, 1)).exp().to(impact.device) * self._scale(impact)

    def _scale(self, impact: Tensor) -> Tensor:
        return (impact.float().abs() + LEAST).sqrt() if self.quadratic else torch.ones_like(impact, dtype=torch.float32)

    def scores(self) -> UnitScores:
        """Return no scores: it draws no map."""
        return UnitScores((), None, torch.zeros(0, dtype=torch.float32, device="cpu"))

    def half(self, index: int) -> UnitScores:
        """Return no scores."""
        return self.scores()

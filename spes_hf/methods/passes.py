"""Which tokens share a backward pass, as far as the config asks for it and the model allows it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from spes_hf.errors import UnsupportedModelError
from spes_hf.masking.perturbations import Perturbation
from spes_hf.methods.run import Problem
from spes_hf.scoring.sharing import Sharing


class SharingSettings(Protocol):
    """The settings that are read from a config."""

    @property
    def masks_per_token(self) -> int:
        """Number of masks used for the maps of the tokens."""

    @property
    def passes_per_mask(self) -> int | None:
        """Backward passes under each of those masks; None for one per token."""


def sharing_of(settings: SharingSettings, problem: Problem, perturbation: Perturbation) -> Sharing:
    """Return which tokens share a backward pass: none if rows are contrasts or the attention cannot be read."""
    passes, tokens = settings.passes_per_mask, problem.every
    if passes is None or passes >= tokens or problem.signed:
        return Sharing.alone(tokens)
    unit = perturbation.block * perturbation.levels
    blocks = settings.masks_per_token // unit if settings.masks_per_token % unit == 0 else 1
    times = problem.utterance.times

    def attention() -> Tensor:
        positions = problem.encoder.positions
        return positions.spread(problem.encoder.token_attention.mean((0, 1)))

    try:
        return Sharing.of(tokens, passes, blocks, attention, float(times[-1] - times[0]) / (len(times) - 1))
    except UnsupportedModelError:
        return Sharing.alone(tokens)

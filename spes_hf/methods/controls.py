"""Controls that do not run the model: random saliency, and loudness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spes_hf.explanation.maps import PatchMap
from spes_hf.masking.draw import uniform
from spes_hf.masking.segments import feature_labels
from spes_hf.methods.base import ExplainConfig
from spes_hf.methods.run import Maps, Problem

# Fields that only methods with perturbations read.
PERTURBING = (
    "num_spectrogram_masks",
    "num_token_masks",
    "spectrogram_mask_prob",
    "token_mask_prob",
    "impact",
    "word_probability",
    "fill",
)


@dataclass(frozen=True, kw_only=True)
class RandomConfig(ExplainConfig):
    """Seeded random saliency, to show what chance achieves. Uniform over [0, 1), new for every token; costs nothing.

    Examples:
        >>> chance = explain(model, processor, clip, config=RandomConfig(), seed=1)
        >>> bool((chance.audio_saliency[0] == chance.audio_saliency[1]).all())
        False
    """

    num_spectrogram_masks: int = 0
    num_token_masks: int = 0

    method: ClassVar[str] = "random"
    unused: ClassVar[tuple[str, ...]] = PERTURBING

    def plan(self, problem: Problem) -> Sequence[Maps]:
        """Return maps of random numbers, new for every token."""

        def numbers(stream: str, units: int) -> Tensor:
            # Draw for tokens that are not explained too, so that the others keep their numbers.
            every = problem.tokens if problem.explained is None else len(problem.target.token_ids)
            drawn = torch.from_numpy(uniform(problem.key(stream), 0, every, units))
            return drawn if problem.explained is None else drawn[list(problem.explained)]

        sound = numbers("random/spectrogram", problem.utterance.features.numel())
        return _finished(problem, sound, numbers("random/token", len(problem.target.context_ids)))


@dataclass(frozen=True, kw_only=True)
class EnergyConfig(ExplainConfig):
    """Loudest feature first, the same for every token: what the spectrogram shows without the model.

    Costs nothing, and is hard to beat on some models. It says nothing about tokens: their map is constant.

    Examples:
        >>> energy = explain(model, processor, clip, config=EnergyConfig())
        >>> bool((energy.audio_saliency[0] == energy.audio_saliency[1]).all())
        True
    """

    num_spectrogram_masks: int = 0
    num_token_masks: int = 0

    method: ClassVar[str] = "energy"
    unused: ClassVar[tuple[str, ...]] = PERTURBING

    def plan(self, problem: Problem) -> Sequence[Maps]:
        """Return the features minus their minimum as every token's map, and a constant map of tokens."""
        features, context = problem.utterance.features, len(problem.target.context_ids)
        sound = (features - features.min()).flatten().expand(problem.tokens, -1)
        return _finished(problem, sound, torch.zeros(problem.tokens, context, dtype=torch.float32, device="cpu"))


def _finished(problem: Problem, sound: Tensor, token: Tensor) -> list[Maps]:
    """Return the maps for these scores of features, (K, T·C), and of decoder inputs, (K, J)."""
    audio = PatchMap.of(feature_labels(problem.utterance.features), (sound,))
    return [Maps.of_sound(audio, problem), Maps.of_tokens(token, problem)]

"""Controls that ask nothing of the model: random saliency, and loudness."""

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

# What only methods read that perturb something.
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
    """Random saliency, seeded: what chance reaches. Uniform over [0, 1), for every token anew; costs nothing.

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
        """Return maps of random numbers, for every token anew."""

        def numbers(stream: str, units: int) -> Tensor:
            # What is left out draws as well, so that the others stay as they are.
            every = problem.tokens if problem.explained is None else len(problem.target.token_ids)
            drawn = torch.from_numpy(uniform(problem.key(stream), 0, every, units))
            return drawn if problem.explained is None else drawn[list(problem.explained)]

        sound = numbers("random/spectrogram", problem.utterance.features.numel())
        return _finished(problem, sound, numbers("random/token", len(problem.target.context_ids)))


@dataclass(frozen=True, kw_only=True)
class EnergyConfig(ExplainConfig):
    """The loudest feature first, for every token the same: what the spectrogram shows without the model.

    Costs nothing, and is hard to beat on some models. Of tokens it says nothing: their map is constant.

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
        """Return the features themselves, from their minimum up, as every token's map, and a constant map of tokens."""
        features, context = problem.utterance.features, len(problem.target.context_ids)
        sound = (features - features.min()).flatten().expand(problem.tokens, -1)
        return _finished(problem, sound, torch.zeros(problem.tokens, context, dtype=torch.float32, device="cpu"))


def _finished(problem: Problem, sound: Tensor, token: Tensor) -> list[Maps]:
    """Return the maps of these scores of features, (K, T·C), and of decoder inputs, (K, J)."""
    audio = PatchMap.of(feature_labels(problem.utterance.features), (sound,))
    return [Maps.of_sound(audio, problem), Maps.of_tokens(token, problem)]

"""What to compare SPES with: feature-wise perturbation, Bubble Noise, random saliency, and loudness (§6, A.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spes_hf.errors import SpesError
from spes_hf.estimators import PerturbationEstimator
from spes_hf.methods import BubbleNoiseConfig, EnergyConfig, FeatureWiseConfig, RandomConfig
from spes_hf.perturbation.base import Masks, Perturbation, SpectrogramPerturbation, UnitScores
from spes_hf.perturbation.bubbles import BubblePerturbation
from spes_hf.perturbation.masks import uniform
from spes_hf.perturbation.plan import Problem, Reading, Run, fill_values, register_method, token_run
from spes_hf.perturbation.segments import feature_labels


@register_method(FeatureWiseConfig)
def plan_feature_wise(config: FeatureWiseConfig, problem: Problem) -> list[Run]:
    """Return a run over single features, and the one over tokens (A.3.1)."""
    features = problem.utterance.features
    labels = feature_labels(features)
    perturbation = SpectrogramPerturbation(
        features=features.to(problem.device),
        fill=fill_values(config.fill, features).to(problem.device),
        labels=labels.to(problem.device),
        units=(features.numel(),),
        keys=(problem.key("spectrogram/features"),),
        mask_prob=config.spectrogram_mask_prob,
        num_masks=config.num_spectrogram_masks,
    )
    return [_audio_run(perturbation, labels), token_run(config, problem)]


@register_method(BubbleNoiseConfig)
def plan_bubble_noise(config: BubbleNoiseConfig, problem: Problem) -> list[Run]:
    """Return a run through bubbles in noise, and the one over tokens (A.3.2)."""
    utterance = problem.utterance
    seconds_per_frame = float(utterance.times[1] - utterance.times[0])
    perturbation = BubblePerturbation(
        features=utterance.features.to(problem.device),
        bubbles=max(1, round(config.bubbles_per_second * utterance.duration_s)),
        radii=(config.bubble_width_s / seconds_per_frame / 2, config.bubble_height_bins / 2),
        bubble_key=problem.key("bubbles"),
        noise_key=problem.key("noise"),
        num_masks=config.num_spectrogram_masks,
    )
    return [_audio_run(perturbation, feature_labels(utterance.features)), token_run(config, problem)]


@register_method(RandomConfig)
def plan_random(config: RandomConfig, problem: Problem) -> list[Run]:
    """Return maps of random numbers, for every token anew."""
    tokens, features = len(problem.target.token_ids), problem.utterance.features

    def numbers(stream: str, units: int) -> Tensor:
        return torch.from_numpy(uniform(problem.key(stream), 0, tokens, units))

    return _fixed_runs(
        audio=numbers("random/spectrogram", features.numel()),
        token=numbers("random/token", len(problem.target.context_ids)),
        labels=feature_labels(features),
    )


@register_method(EnergyConfig)
def plan_energy(config: EnergyConfig, problem: Problem) -> list[Run]:
    """Return the features themselves, from their minimum up, as every token's map, and a constant map of tokens."""
    tokens, features = len(problem.target.token_ids), problem.utterance.features
    return _fixed_runs(
        audio=(features - features.min()).flatten().expand(tokens, -1),
        token=torch.zeros(tokens, len(problem.target.context_ids), dtype=torch.float32, device="cpu"),
        labels=feature_labels(features),
    )


@dataclass(frozen=True)
class NoPerturbation(Perturbation):
    """No masks at all: what a method that asks nothing of the model perturbs."""

    num_masks: int = 0

    def draw(self, level: int, rows: range) -> Masks:
        """Refuse: there are no masks."""
        raise SpesError("this method draws no masks")

    def apply(self, masks: Masks) -> dict[str, Tensor]:
        """Refuse: there are no masks."""
        raise SpesError("this method draws no masks")


@dataclass(frozen=True)
class FixedScores:
    """An estimator that knows its scores, (K, F), beforehand. Its halves are blank, so that reliability is NaN."""

    values: Tensor

    def update(self, masks: Masks, impact_of: Callable[[Masks], Tensor]) -> None:
        """Refuse: there is nothing to add to."""
        raise SpesError("this method draws no masks")

    def scores(self) -> UnitScores:
        """Return the scores, as sums over one mask."""
        return UnitScores((self.values,), (self.values.new_ones(self.values.shape[1]),))

    def half(self, index: int) -> UnitScores:
        """Return scores of 0."""
        return UnitScores(
            (self.values.new_zeros(1).expand(self.values.shape),), (self.values.new_ones(self.values.shape[1]),)
        )


def _audio_run(perturbation: Perturbation, labels: Tensor) -> Run:
    return Run(perturbation, PerturbationEstimator(levels=1), audio=Reading(labels))


def _fixed_runs(audio: Tensor, token: Tensor, labels: Tensor) -> list[Run]:
    """Return runs without masks that end in these scores of features, (K, T·C), and of decoder inputs, (K, J)."""
    return [
        Run(NoPerturbation(), FixedScores(audio), audio=Reading(labels)),
        Run(NoPerturbation(), FixedScores(token), token_scores=lambda scores: scores),
    ]

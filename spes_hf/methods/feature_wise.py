"""Feature-wise perturbation, a baseline of the paper (A.3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from spes_hf.masking.perturbations import SpectrogramPerturbation, fill_values
from spes_hf.masking.segments import feature_labels
from spes_hf.methods.base import ExplainConfig
from spes_hf.methods.reading import read_audio, token_run
from spes_hf.methods.run import Problem, Run


@dataclass(frozen=True, kw_only=True)
class FeatureWiseConfig(ExplainConfig):
    """Feature-wise perturbation, a baseline of the paper: every feature of the spectrogram is its own unit (A.3.1).

    Examples:
        >>> single = FeatureWiseConfig(num_spectrogram_masks=20, num_token_masks=20)
        >>> explain(model, processor, clip, config=single).method
        'feature-wise'
    """

    num_spectrogram_masks: int = 20_000
    num_token_masks: int = 2_000
    spectrogram_mask_prob: float = 0.7
    token_mask_prob: float = 0.1

    method: ClassVar[str] = "feature-wise"

    def plan(self, problem: Problem) -> Sequence[Run]:
        """Return a run over single features, and the run over tokens."""
        features = problem.utterance.features
        labels = feature_labels(features)
        perturbation = SpectrogramPerturbation(
            features=features.to(problem.device),
            fill=fill_values(self.fill, features).to(problem.device),
            labels=labels.to(problem.device),
            units=(features.numel(),),
            keys=(problem.key("spectrogram/features"),),
            mask_prob=self.spectrogram_mask_prob,
            num_masks=self.num_spectrogram_masks,
        )
        sound = Run(perturbation, problem.eq3(), read_audio(labels))
        return [sound, token_run(self, problem)]

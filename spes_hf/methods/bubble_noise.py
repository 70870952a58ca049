"""Bubble Noise, a baseline of the paper (A.3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from spes_hf.checks import check, is_number
from spes_hf.masking.bubbles import BubblePerturbation
from spes_hf.masking.segments import feature_labels
from spes_hf.methods.base import ExplainConfig
from spes_hf.methods.reading import read_audio, token_run
from spes_hf.methods.run import Problem, Run


@dataclass(frozen=True, kw_only=True)
class BubbleNoiseConfig(ExplainConfig):
    """Bubble Noise, a baseline of the paper: noise except in a few ellipses (A.3.2; Trinh and Mandel, 2020).

    The noise is uniform over the utterance's range of intensities. Outside the bubbles it replaces the spectrogram.
    Inside a bubble it is added to the spectrogram, attenuated to zero at the centre and growing with the square of the
    distance from it. Tokens are perturbed as in SPES.

    Attributes:
        bubbles_per_second: Number of bubbles per second of audio.
        bubble_width_s: Width of a bubble, from edge to edge, in seconds.
        bubble_height_bins: Height of a bubble, from edge to edge, in mel bins.

    Examples:
        >>> noisy = BubbleNoiseConfig(num_spectrogram_masks=20, num_token_masks=20)
        >>> explain(model, processor, clip, config=noisy).method
        'bubble-noise'
    """

    num_spectrogram_masks: int = 1_000
    num_token_masks: int = 2_000
    bubbles_per_second: float = 10.0
    bubble_width_s: float = 0.43
    bubble_height_bins: float = 31.0

    method: ClassVar[str] = "bubble-noise"
    unused: ClassVar[tuple[str, ...]] = ("spectrogram_mask_prob", "fill")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bubbles_per_second", "bubble_width_s", "bubble_height_bins"):
            value = getattr(self, name)
            check(self, name, is_number(value) and 0 < value < float("inf"), "a number above 0")

    def plan(self, problem: Problem) -> Sequence[Run]:
        """Return a run through bubbles in noise, and the run over tokens."""
        utterance = problem.utterance
        seconds_per_frame = float(utterance.times[1] - utterance.times[0])
        perturbation = BubblePerturbation(
            features=utterance.features.to(problem.device),
            bubbles=max(1, round(self.bubbles_per_second * utterance.duration_s)),
            radii=(self.bubble_width_s / seconds_per_frame / 2, self.bubble_height_bins / 2),
            bubble_key=problem.key("bubbles"),
            noise_key=problem.key("noise"),
            num_masks=self.num_spectrogram_masks,
        )
        sound = Run(perturbation, problem.eq3(), read_audio(feature_labels(utterance.features)))
        return [sound, token_run(self, problem)]

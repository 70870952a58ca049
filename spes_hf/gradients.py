"""Gradient baselines: saliency, input × gradient and integrated gradients of every token, through Captum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spes_hf.errors import ConfigError
from spes_hf.methods import GradientConfig
from spes_hf.perturbation.base import Masks, Perturbation, UnitScores
from spes_hf.perturbation.plan import (
    Problem,
    Reading,
    Run,
    check_differentiable,
    fill_values,
    register_method,
    token_run,
)
from spes_hf.perturbation.segments import feature_labels


@register_method(GradientConfig)
def plan_gradients(config: GradientConfig, problem: Problem) -> list[Run]:
    """Return a run that differentiates every token's probability, and the one over tokens.

    Raises:
        ConfigError: If Captum is not installed.
        UnsupportedModelError: If the model has no gradients.
    """
    check_differentiable(problem, "config is a GradientConfig", "use SpesConfig.paper(task), which needs none")
    features, tokens = problem.utterance.features, len(problem.target.token_ids)
    steps = config.steps if config.attribution == "integrated_gradients" else 1
    start = fill_values(config.fill, features).expand_as(features)
    return [
        Run(
            perturbation=FeatureValues(features.to(problem.device), num_masks=tokens * steps),
            estimator=CaptumEstimator(config.attribution, tokens, steps, start.flatten().to(problem.device)),
            audio=Reading(feature_labels(features)),
            backward_passes=lambda level, rows: len(rows),
        ),
        token_run(config, problem),
    ]


@dataclass(frozen=True)
class FeatureValues(Perturbation):
    """The spectrogram's values in the place of mask bits, so that an estimator can move and differentiate them.

    Attributes:
        features: (T, C) clean spectrogram, on the model's device.
        num_masks: How many times the model is run.
    """

    features: Tensor
    num_masks: int

    def draw(self, level: int, rows: range) -> Masks:
        """Return the clean values, (B, T·C)."""
        return Masks(self.features.flatten().expand(len(rows), -1), level, rows)

    def apply(self, masks: Masks) -> dict[str, Tensor]:
        """Return the values as spectrograms, (B, T, C)."""
        return {"features": masks.keep.unflatten(1, self.features.shape)}


class CaptumEstimator:
    """Attributes each token's probability to the features. Row i of the run belongs to token i // steps.

    Args:
        attribution: "saliency", "input_x_gradient" or "integrated_gradients".
        tokens: K.
        steps: Runs of the model for each token.
        start: (T·C,) where integrated gradients start from.
    """

    def __init__(self, attribution: str, tokens: int, steps: int, start: Tensor):
        self.captum = _captum()
        self.attribution = attribution
        self.steps = steps
        self.start = start
        self.values = torch.zeros(tokens, len(start), dtype=torch.float32, device="cpu")

    def update(self, masks: Masks, impact_of: Callable[[Masks], Tensor]) -> None:
        """Attribute the tokens whose first row is among these."""
        tokens = [row // self.steps for row in masks.rows if row % self.steps == 0]
        if not tokens:
            return

        def probability(values: Tensor) -> Tensor:
            return -impact_of(Masks(values, masks.level, range(len(values))))

        with torch.inference_mode(False), torch.enable_grad():
            values = masks.keep[: len(tokens)].clone().requires_grad_()
            found = self._attribute(probability, values, tokens, len(masks.rows))
        self.values[tokens] = found.detach().float().cpu()

    def _attribute(self, probability: Any, values: Tensor, tokens: list[int], batch: int) -> Tensor:
        if self.attribution == "saliency":
            return self.captum.Saliency(probability).attribute(values, target=tokens)
        if self.attribution == "input_x_gradient":
            return self.captum.InputXGradient(probability).attribute(values, target=tokens)
        return self.captum.IntegratedGradients(probability).attribute(
            values,
            baselines=self.start.expand_as(values),
            target=tokens,
            n_steps=self.steps,
            internal_batch_size=max(batch, len(tokens)),
        )

    def scores(self) -> UnitScores:
        """Return the attributions, as sums over one mask."""
        return UnitScores((self.values,), (self.values.new_ones(self.values.shape[1]),))

    def half(self, index: int) -> UnitScores:
        """Return scores of 0: gradients have no halves, and reliability is NaN."""
        return UnitScores(
            (self.values.new_zeros(1).expand(self.values.shape),), (self.values.new_ones(self.values.shape[1]),)
        )


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError as error:
        raise ConfigError(
            "config is a GradientConfig, which needs Captum, and it is not installed: pip install 'spes_hf[captum]'"
        ) from error
    return captum.attr

"""Gradients of every token's probability through Captum: saliency, input × gradient, integrated gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from spes_hf.checks import check, is_count
from spes_hf.errors import ConfigError
from spes_hf.explanation.maps import PatchMap
from spes_hf.finite import check_finite
from spes_hf.masking.perturbations import fill_values
from spes_hf.masking.segments import feature_labels
from spes_hf.methods.base import ExplainConfig
from spes_hf.methods.reading import token_run
from spes_hf.methods.run import ImpactOf, Maps, Problem, Step
from spes_hf.names import EXTRAS
from spes_hf.runtime.batching import Batch


@dataclass(frozen=True, kw_only=True)
class CaptumConfig(ExplainConfig):
    """Gradients of a token's probability with respect to the spectrogram, through Captum (the extra "captum").

    Tokens are perturbed as in SPES. The gradient of the KL divergence is 0 at the clean input, so use another impact:
    "probability", "log-probability" or "contrastive". `fill` is the baseline of integrated gradients.

    Attributes:
        attribution: "saliency" (absolute gradient), "input_x_gradient" or "integrated_gradients".
        steps: Number of points of integrated gradients on the path from the fill to the spectrogram.

    Examples:
        >>> gradients = CaptumConfig(attribution="saliency", num_token_masks=20)
        >>> explain(model, processor, clip, config=gradients).method
        'captum'
    """

    num_spectrogram_masks: int = 0
    impact: str = "probability"
    attribution: Literal["saliency", "input_x_gradient", "integrated_gradients"] = "integrated_gradients"
    steps: int = 16

    method: ClassVar[str] = "captum"
    unused: ClassVar[tuple[str, ...]] = ("num_spectrogram_masks", "spectrogram_mask_prob")

    @classmethod
    def unread(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the fields that a config with these values does not read, each with the reason."""
        found = super().unread(values)
        if values["attribution"] != "integrated_gradients":
            found |= dict.fromkeys(("steps", "fill"), f"attribution={values['attribution']!r} does not read it")
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("saliency", "input_x_gradient", "integrated_gradients")
        check(self, "attribution", self.attribution in names, ", ".join(names))
        check(self, "steps", is_count(self.steps), "a whole number, at least 1")
        allowed = "log-probability, probability, contrastive, since the gradient of KL at the clean input is 0"
        check(self, "impact", self.impact != "kl", allowed)

    def plan(self, problem: Problem) -> Sequence[Step]:
        """Return a step that differentiates every token's probability, and the run over tokens.

        Raises:
            ConfigError: If Captum is not installed.
            UnsupportedModelError: If no gradients flow through the model.
        """
        problem.require_gradients("config is a CaptumConfig", "use SpesConfig.paper(task), which needs no gradients")
        return [CaptumStep(self, problem), token_run(self, problem)]


GradientConfig = CaptumConfig
"""The former name."""


class CaptumStep:
    """A `Step` that attributes each token's probability to the features, some tokens at a time.

    Args:
        config: Method and settings.
        problem: The utterance and its output.

    Examples:
        >>> from spes_hf.adapters import Target
        >>> from spes_hf.audio.load import load_audio
        >>> from spes_hf.methods.run import Problem
        >>> utterance = get_adapter(model, processor).encode(load_audio(clip, 16_000))
        >>> target = Target(prefix_ids=torch.tensor([2]), token_ids=torch.tensor([7, 8, 2]), complete=True)
        >>> problem = Problem(utterance, target, torch.device("cpu"), seed=0, utterance_id="one")
        >>> CaptumStep(CaptumConfig(steps=16), problem).passes  # 3 tokens, 16 steps, forwards and backwards
        96
    """

    differentiates = True

    def __init__(self, config: CaptumConfig, problem: Problem):
        self.captum = _captum()
        self.problem = problem
        self.attribution = config.attribution
        self.steps = config.steps if config.attribution == "integrated_gradients" else 1
        features = problem.utterance.features
        self.features = features.to(problem.device)
        self.start = fill_values(config.fill, features).expand_as(features).flatten().to(problem.device)
        self.values = torch.zeros(problem.tokens, features.numel(), dtype=torch.float32, device="cpu")

    @property
    def passes(self) -> int:
        """Number of planned passes: one forward and one backward at every step of every token."""
        return 2 * self.problem.tokens * self.steps

    def run(self, impact_of: ImpactOf, batch: Batch) -> Iterator[int]:
        """Attribute all tokens. Row i of the batches belongs to token i // steps."""

        def probability(values: Tensor) -> Tensor:
            return -impact_of(values, lambda v: {"features": v.unflatten(1, self.features.shape)})

        def attribute(rows: range) -> None:
            tokens = [row // self.steps for row in rows if row % self.steps == 0]
            if not tokens:
                return
            with torch.inference_mode(False), torch.enable_grad():
                values = self.features.flatten().expand(len(tokens), -1).clone().requires_grad_()
                found = self._attribute(probability, values, tokens, len(rows))
            self.values[tokens] = found.detach().float().cpu()

        for todo in batch.ranks.share([range(self.problem.tokens * self.steps)]):
            while todo:
                some, todo = todo[: batch.size], todo[batch.size :]
                for done in batch.over(some, attribute):
                    yield 2 * len(done)
        (self.values,) = batch.ranks.total([self.values])

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

    def maps(self, dtype: torch.dtype) -> Maps:
        """Return the attributions as the map of every token.

        Raises:
            NumericsError: If they are NaN or infinite.
        """
        check_finite([self.values], "gradients", dtype)
        labels = feature_labels(self.problem.utterance.features)
        return Maps.of_sound(PatchMap.of(labels, (self.values,)), self.problem)


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError as error:
        raise ConfigError(
            f"config is a CaptumConfig, but Captum is not installed: pip install '{EXTRAS['captum']}' "
            "(the extra 'captum')"
        ) from error
    return captum.attr

"""What to compare SPES with: methods that ask nothing of the model, and the paper's table of methods and ablations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from spes_hf.config import BubbleNoiseConfig, ExplainConfig, FeatureWiseConfig, SpesConfig
from spes_hf.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RandomConfig(ExplainConfig):
    """Random saliency, seeded: what chance reaches. Uniform over [0, 1), for every token anew; costs nothing."""

    num_spectrogram_masks: int = 0
    num_token_masks: int = 0

    method: ClassVar[str] = "random"
    unused: ClassVar[tuple[str, ...]] = ("num_spectrogram_masks", "num_token_masks")


@dataclass(frozen=True, kw_only=True)
class EnergyConfig(ExplainConfig):
    """The loudest feature first, for every token the same: what the spectrogram shows without the model.

    Costs nothing, and is hard to beat on some models. Of tokens it says nothing: their map is constant.
    """

    num_spectrogram_masks: int = 0
    num_token_masks: int = 0

    method: ClassVar[str] = "energy"
    unused: ClassVar[tuple[str, ...]] = ("num_spectrogram_masks", "num_token_masks")


@dataclass(frozen=True, kw_only=True)
class GradientConfig(ExplainConfig):
    """Gradients of a token's probability with respect to the spectrogram, through Captum (the extra "captum").

    Tokens are perturbed as in SPES. The gradient of the KL divergence is 0 at the clean input, so the impact is
    "probability" or "contrastive". `fill` is where integrated gradients start from.

    Attributes:
        attribution: "saliency" (absolute gradient), "input_x_gradient" or "integrated_gradients".
        steps: How many points integrated gradients takes on the way from the fill to the spectrogram.
    """

    num_spectrogram_masks: int = 0
    impact: Literal["kl", "probability", "contrastive"] = "probability"
    attribution: Literal["saliency", "input_x_gradient", "integrated_gradients"] = "integrated_gradients"
    steps: int = 16

    method: ClassVar[str] = "gradient"
    unused: ClassVar[tuple[str, ...]] = ("num_spectrogram_masks",)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("saliency", "input_x_gradient", "integrated_gradients")
        if self.attribution not in names:
            raise ConfigError(f"GradientConfig.attribution is {self.attribution!r}; allowed: {', '.join(names)}")
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ConfigError(f"GradientConfig.steps is {self.steps!r}; allowed: a whole number, at least 1")
        if self.impact == "kl":
            raise ConfigError(
                "GradientConfig.impact is 'kl', whose gradient at the clean input is 0; allowed: probability, "
                "contrastive"
            )


def ablations(task: Literal["asr", "st"] = "asr", **overrides: Any) -> dict[str, ExplainConfig]:
    """Return the rows of the paper's Table 1, then joint perturbation (A.2.2), Table 9 and the methods at no cost.

    Args:
        task: "asr" or "st", as for `SpesConfig.paper`.
        **overrides: Fields to set differently in all of them, such as ``num_spectrogram_masks``; the methods that draw
            no masks keep their 0.

    Raises:
        ConfigError: If the task is neither.
    """

    def spes(**values: Any) -> SpesConfig:
        return SpesConfig.paper(task, **{**values, **overrides})

    masks = ("num_spectrogram_masks", "num_token_masks")
    free = {name: value for name, value in overrides.items() if name not in masks}
    return {
        "feature-wise": FeatureWiseConfig(**overrides),
        "bubble noise": BubbleNoiseConfig(**overrides),
        "SPES": spes(),
        "- multi-scale": spes(patches_per_second=(500.0,)),
        "- clustering": spes(segmentation="grid"),
        "- duration adaptation": spes(patches=(2_000, 2_500, 3_000)),
        "- KL": spes(impact="probability"),
        "joint": spes(perturb="joint"),
        "coarse": spes(patches_per_second=(20.0, 40.0, 60.0), num_spectrogram_masks=1_000),
        "random": RandomConfig(**free),
        "energy": EnergyConfig(**free),
    }

"""What to compare SPES with: methods that ask nothing of the model, and the paper's table of methods and ablations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from spes_hf.config import ExplainConfig, SpesConfig
from spes_hf.config_values import check, is_number
from spes_hf.errors import ConfigError

# What only methods read that perturb something.
_PERTURBING = ("num_spectrogram_masks", "num_token_masks", "spectrogram_mask_prob", "token_mask_prob", "impact", "fill")


@dataclass(frozen=True, kw_only=True)
class FeatureWiseConfig(ExplainConfig):
    """Feature-wise perturbation, a baseline of the paper: every feature of the spectrogram is its own unit (A.3.1)."""

    num_spectrogram_masks: int = 20_000
    num_token_masks: int = 2_000
    spectrogram_mask_prob: float = 0.7
    token_mask_prob: float = 0.1

    method: ClassVar[str] = "feature-wise"


@dataclass(frozen=True, kw_only=True)
class BubbleNoiseConfig(ExplainConfig):
    """Bubble Noise, a baseline of the paper: noise everywhere but in a few ellipses (A.3.2; Trinh and Mandel, 2020).

    The noise is uniform over the utterance's range of intensities. Outside the bubbles it replaces the spectrogram; in
    a bubble it is attenuated, to nothing in the centre and with the square of the distance from there, and added to the
    spectrogram. Tokens are perturbed as in SPES.

    Attributes:
        bubbles_per_second: How many bubbles there are in a second of audio.
        bubble_width_s: Width of a bubble, from edge to edge, in seconds.
        bubble_height_bins: Height of a bubble, from edge to edge, in mel bins.
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


@dataclass(frozen=True, kw_only=True)
class RandomConfig(ExplainConfig):
    """Random saliency, seeded: what chance reaches. Uniform over [0, 1), for every token anew; costs nothing."""

    num_spectrogram_masks: int = 0
    num_token_masks: int = 0

    method: ClassVar[str] = "random"
    unused: ClassVar[tuple[str, ...]] = _PERTURBING


@dataclass(frozen=True, kw_only=True)
class EnergyConfig(ExplainConfig):
    """The loudest feature first, for every token the same: what the spectrogram shows without the model.

    Costs nothing, and is hard to beat on some models. Of tokens it says nothing: their map is constant.
    """

    num_spectrogram_masks: int = 0
    num_token_masks: int = 0

    method: ClassVar[str] = "energy"
    unused: ClassVar[tuple[str, ...]] = _PERTURBING


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
        **overrides: Fields to set differently in all of them that read them, such as ``num_spectrogram_masks``.

    Raises:
        ConfigError: If the task is neither.
    """

    def spes(**values: Any) -> SpesConfig:
        return SpesConfig.paper(task).changed(**values)

    rows = {
        "feature-wise": FeatureWiseConfig(),
        "bubble noise": BubbleNoiseConfig(),
        "SPES": spes(),
        "- multi-scale": spes(patches_per_second=(500.0,)),
        "- clustering": spes(segmentation="grid"),
        "- duration adaptation": spes(patches=(2_000, 2_500, 3_000)),
        "- KL": spes(impact="probability"),
        "joint": spes(perturb="joint"),
        "coarse": spes(patches_per_second=(20.0, 40.0, 60.0), num_spectrogram_masks=1_000),
        "random": RandomConfig(),
        "energy": EnergyConfig(),
    }
    return {name: row.changed(**row.read(overrides)) for name, row in rows.items()}

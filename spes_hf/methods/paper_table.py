"""The paper's table of methods and ablations, and controls that cost almost nothing, as configs."""

from __future__ import annotations

from typing import Any, Literal

from spes_hf.methods.attention import AttentionConfig
from spes_hf.methods.base import ExplainConfig
from spes_hf.methods.bubble_noise import BubbleNoiseConfig
from spes_hf.methods.controls import EnergyConfig, RandomConfig
from spes_hf.methods.feature_wise import FeatureWiseConfig
from spes_hf.methods.spes import SpesConfig


def ablations(task: Literal["asr", "st"] = "asr", **overrides: Any) -> dict[str, ExplainConfig]:
    """Return the rows of the paper's Table 1, then joint perturbation (A.2.2), Table 9, and almost free controls.

    Args:
        task: "asr" or "st", as for `SpesConfig.paper`.
        **overrides: Fields to change in every config that reads them, such as ``num_spectrogram_masks``.

    Raises:
        ConfigError: If the task is not "asr" or "st".

    Examples:
        >>> list(ablations("asr"))[:4]
        ['feature-wise', 'bubble noise', 'SPES', '- multi-scale']
    """

    def spes(**values: Any) -> SpesConfig:
        return SpesConfig.paper(task).changed(**values)

    rows = {
        "feature-wise": FeatureWiseConfig(impact="kl"),
        "bubble noise": BubbleNoiseConfig(impact="kl"),
        "SPES": spes(),
        "- multi-scale": spes(patches_per_second=(500.0,)),
        "- clustering": spes(segmentation="grid"),
        "- duration adaptation": spes(patches=(2_000, 2_500, 3_000)),
        "- KL": spes(impact="probability"),
        "joint": spes(perturb="joint"),
        "coarse": spes(patches_per_second=(20.0, 40.0, 60.0), num_spectrogram_masks=1_000),
        "random": RandomConfig(),
        "energy": EnergyConfig(),
        "attention": AttentionConfig(),
    }
    return {name: row.changed(**row.read(overrides)) for name, row in rows.items()}

"""The methods: one file each, with config and plan. The type of the config selects the method, as in PEFT."""

from spes_hf.methods.attention import AttentionConfig
from spes_hf.methods.base import ExplainConfig, list_methods, register_method
from spes_hf.methods.bubble_noise import BubbleNoiseConfig
from spes_hf.methods.captum import CaptumConfig, GradientConfig
from spes_hf.methods.controls import EnergyConfig, RandomConfig
from spes_hf.methods.feature_wise import FeatureWiseConfig
from spes_hf.methods.paper_table import ablations
from spes_hf.methods.spes import SpesConfig
from spes_hf.names import FORMER_METHODS

# To add a method, write a file and add a line here.
register_method(SpesConfig)
register_method(FeatureWiseConfig)
register_method(BubbleNoiseConfig)
register_method(CaptumConfig, *(former for former, name in FORMER_METHODS.items() if name == CaptumConfig.method))
register_method(RandomConfig)
register_method(EnergyConfig)
register_method(AttentionConfig)

__all__ = [
    "AttentionConfig",
    "BubbleNoiseConfig",
    "CaptumConfig",
    "EnergyConfig",
    "ExplainConfig",
    "FeatureWiseConfig",
    "GradientConfig",
    "RandomConfig",
    "SpesConfig",
    "ablations",
    "list_methods",
    "register_method",
]

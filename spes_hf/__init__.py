"""Why did the speech model write that word? SPES saliency maps for speech-to-text models in `transformers`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spes_hf.adapters import get_adapter, list_adapters, register_adapter
    from spes_hf.config import ExplainConfig, SpesConfig
    from spes_hf.errors import AudioError, ConfigError, ExplanationFormatError, SpesError, UnsupportedModelError
    from spes_hf.engine import Explainer, explain
    from spes_hf.explanation import Explanation

# Where each public name lives; a module is imported when one of its names is first used.
_HOME = {
    "AudioError": "spes_hf.errors",
    "ConfigError": "spes_hf.errors",
    "ExplainConfig": "spes_hf.config",
    "Explainer": "spes_hf.engine",
    "Explanation": "spes_hf.explanation",
    "ExplanationFormatError": "spes_hf.errors",
    "SpesConfig": "spes_hf.config",
    "SpesError": "spes_hf.errors",
    "UnsupportedModelError": "spes_hf.errors",
    "explain": "spes_hf.engine",
    "get_adapter": "spes_hf.adapters",
    "list_adapters": "spes_hf.adapters",
    "register_adapter": "spes_hf.adapters",
}

__all__ = [
    "AudioError",
    "ConfigError",
    "ExplainConfig",
    "Explainer",
    "Explanation",
    "ExplanationFormatError",
    "SpesConfig",
    "SpesError",
    "UnsupportedModelError",
    "__version__",
    "explain",
    "get_adapter",
    "list_adapters",
    "register_adapter",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spes_hf' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

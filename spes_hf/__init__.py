"""Why did the speech model write that word? SPES saliency maps for speech-to-text models in `transformers`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from spes_hf.adapters import get_adapter, list_adapters, register_adapter
    from spes_hf.comparing import compare
    from spes_hf.corpora.diagnoses import Diagnose
    from spes_hf.corpora.mustc import load_mustc
    from spes_hf.corpora.transforms import Explain, SoundCheck
    from spes_hf.diagnosing import Diagnoser, diagnose
    from spes_hf.engine import Explainer, explain
    from spes_hf.errors import (
        AudioError,
        ConfigError,
        ExplanationFormatError,
        NumericsError,
        OutOfMemoryError,
        SpesError,
        UnsupportedModelError,
    )
    from spes_hf.explanation import Explanation
    from spes_hf.explanation.comparison import Comparison
    from spes_hf.explanation.diagnosis import Diagnosis, WordError
    from spes_hf.explanation.diagnosis_rows import diagnosis_of
    from spes_hf.explanation.recording import Recording
    from spes_hf.hearing import Hearing, SoundChecker, sound_check
    from spes_hf.jobs.run import explain_dataset
    from spes_hf.methods import (
        AttentionConfig,
        BubbleNoiseConfig,
        CaptumConfig,
        EnergyConfig,
        ExplainConfig,
        FeatureWiseConfig,
        GradientConfig,
        RandomConfig,
        SpesConfig,
        ablations,
        list_methods,
        register_method,
    )
    from spes_hf.metrics import ContrastiveDeletion, Deletion, Insertion, Size, WordDeletion, WordInsertion, listen_back

# The module that defines each public name. It is imported when one of its names is first used.
_HOME = {
    "AttentionConfig": "spes_hf.methods",
    "AudioError": "spes_hf.errors",
    "BubbleNoiseConfig": "spes_hf.methods",
    "CaptumConfig": "spes_hf.methods",
    "Comparison": "spes_hf.explanation.comparison",
    "ConfigError": "spes_hf.errors",
    "ContrastiveDeletion": "spes_hf.metrics",
    "Deletion": "spes_hf.metrics",
    "Diagnose": "spes_hf.corpora.diagnoses",
    "Diagnoser": "spes_hf.diagnosing",
    "Diagnosis": "spes_hf.explanation.diagnosis",
    "EnergyConfig": "spes_hf.methods",
    "Explain": "spes_hf.corpora.transforms",
    "ExplainConfig": "spes_hf.methods",
    "Explainer": "spes_hf.engine",
    "Explanation": "spes_hf.explanation",
    "ExplanationFormatError": "spes_hf.errors",
    "FeatureWiseConfig": "spes_hf.methods",
    "GradientConfig": "spes_hf.methods",
    "Hearing": "spes_hf.hearing",
    "Insertion": "spes_hf.metrics",
    "NumericsError": "spes_hf.errors",
    "OutOfMemoryError": "spes_hf.errors",
    "RandomConfig": "spes_hf.methods",
    "Recording": "spes_hf.explanation.recording",
    "Size": "spes_hf.metrics",
    "SoundCheck": "spes_hf.corpora.transforms",
    "SoundChecker": "spes_hf.hearing",
    "SpesConfig": "spes_hf.methods",
    "SpesError": "spes_hf.errors",
    "UnsupportedModelError": "spes_hf.errors",
    "WordDeletion": "spes_hf.metrics",
    "WordError": "spes_hf.explanation.diagnosis",
    "WordInsertion": "spes_hf.metrics",
    "ablations": "spes_hf.methods",
    "compare": "spes_hf.comparing",
    "diagnose": "spes_hf.diagnosing",
    "diagnosis_of": "spes_hf.explanation.diagnosis_rows",
    "explain": "spes_hf.engine",
    "explain_dataset": "spes_hf.jobs.run",
    "get_adapter": "spes_hf.adapters",
    "list_adapters": "spes_hf.adapters",
    "list_methods": "spes_hf.methods",
    "listen_back": "spes_hf.metrics",
    "load_mustc": "spes_hf.corpora.mustc",
    "register_adapter": "spes_hf.adapters",
    "register_method": "spes_hf.methods",
    "sound_check": "spes_hf.hearing",
}

__all__ = [
    "AttentionConfig",
    "AudioError",
    "BubbleNoiseConfig",
    "CaptumConfig",
    "Comparison",
    "ConfigError",
    "ContrastiveDeletion",
    "Deletion",
    "Diagnose",
    "Diagnoser",
    "Diagnosis",
    "EnergyConfig",
    "Explain",
    "ExplainConfig",
    "Explainer",
    "Explanation",
    "ExplanationFormatError",
    "FeatureWiseConfig",
    "GradientConfig",
    "Hearing",
    "Insertion",
    "NumericsError",
    "OutOfMemoryError",
    "RandomConfig",
    "Recording",
    "Size",
    "SoundCheck",
    "SoundChecker",
    "SpesConfig",
    "SpesError",
    "UnsupportedModelError",
    "WordDeletion",
    "WordError",
    "WordInsertion",
    "__version__",
    "ablations",
    "compare",
    "diagnose",
    "diagnosis_of",
    "explain",
    "explain_dataset",
    "get_adapter",
    "list_adapters",
    "list_methods",
    "listen_back",
    "load_mustc",
    "register_adapter",
    "register_method",
    "sound_check",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spes_hf' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

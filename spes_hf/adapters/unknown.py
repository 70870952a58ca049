"""Why a model has no adapter, if its kind explains it."""

from __future__ import annotations

import inspect
from typing import Any

# Suffixes of the class names of CTC models and transducers.
_ALIGNING = ("ForCTC", "ForRNNT", "ForTDT")


def why_unknown(model: Any) -> str:
    """Return that a model has no adapter, and why, if no adapter can be written for its kind.

    Args:
        model: A model of an unknown type, or anything else.
    """
    config, forward = getattr(model, "config", None), getattr(type(model), "forward", None)
    inputs = inspect.signature(forward).parameters if callable(forward) else {}
    if type(model).__name__.endswith(_ALIGNING):
        reason = "it aligns tokens with frames (CTC or a transducer) instead of generating one after another"
    elif hasattr(config, "talker_config") or "Talker" in type(model).__name__:
        reason = "it also generates speech; only models that generate text alone can be explained"
    elif any(hasattr(config, name) for name in ("codec_config", "audio_encoder_config")):
        reason = "its input is codes of a neural codec, but explanations perturb a spectrogram"
    elif "input_values" in inputs and "input_features" not in inputs:
        reason = "its input is raw samples, but explanations perturb a spectrogram"
    else:
        return "has no adapter"
    return f"has no adapter: {reason}"

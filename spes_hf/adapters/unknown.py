"""Why a model has no adapter, where its kind alone says so."""

from __future__ import annotations

import inspect
from typing import Any

# Ends of the names of classes of CTC models and transducers.
_ALIGNING = ("ForCTC", "ForRNNT", "ForTDT")


def why_unknown(model: Any) -> str:
    """Return that a model has no adapter, and why if it is of a kind that none can be written for.

    Args:
        model: A model of an unknown type, or anything else.
    """
    config, forward = getattr(model, "config", None), getattr(type(model), "forward", None)
    inputs = inspect.signature(forward).parameters if callable(forward) else {}
    if type(model).__name__.endswith(_ALIGNING):
        reason = "it aligns tokens with frames (CTC or a transducer) instead of writing one after another"
    elif hasattr(config, "talker_config") or "Talker" in type(model).__name__:
        reason = "it speaks as well as it writes; only models that write text alone can be explained"
    elif any(hasattr(config, name) for name in ("codec_config", "audio_encoder_config")):
        reason = "it reads the codes of a neural codec, and what is perturbed is a spectrogram"
    elif "input_values" in inputs and "input_features" not in inputs:
        reason = "it reads samples, and what is perturbed is a spectrogram"
    else:
        return "has no adapter"
    return f"has no adapter: {reason}"

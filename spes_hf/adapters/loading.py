"""Which of transformers' auto classes makes the model of a configuration."""

from __future__ import annotations

from typing import Any


def auto_class_of(config: Any) -> Any:
    """Return the auto class for speech, or for what else turns audio into text: not every speech LLM is among those.

    Args:
        config: Of a checkpoint, as ``AutoConfig.from_pretrained(name)`` reads it.
    """
    from transformers import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

    return AutoModelForSpeechSeq2Seq if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING else AutoModelForSeq2SeqLM

"""Which of transformers' auto classes creates the model of a configuration."""

from __future__ import annotations

from typing import Any


def auto_class_of(config: Any) -> Any:
    """Return the auto class for speech models, or the general one for speech LLMs that the speech class does not know.

    Args:
        config: Configuration of a checkpoint, from ``AutoConfig.from_pretrained(name)``.
    """
    from transformers import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

    return AutoModelForSpeechSeq2Seq if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING else AutoModelForSeq2SeqLM

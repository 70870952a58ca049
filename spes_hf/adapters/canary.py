"""Canary: transcription of 25 languages, and translation between them and English."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from spes_hf.adapters.base import GenerationOptions
from spes_hf.adapters.fast_conformer import FastConformerAdapter


class CanaryAdapter(FastConformerAdapter):
    """Canary is prompted with the languages of the speech and of the text; if both are the same, it transcribes.

    They are ``language`` and ``tgt_lang``, codes or English names, as in the processor's
    ``apply_transcription_request()``. By default, the speech is English, and the text is in the language of the speech.
    """

    processor_classes: ClassVar[tuple[str, ...]] = ("CanaryProcessor",)
    model_classes: ClassVar[tuple[str, ...]] = ("CanaryForConditionalGeneration",)
    options: ClassVar[tuple[str, ...]] = ("language", "tgt_lang")
    since_transformers: ClassVar[str] = "5.17"

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse languages that the processor or the vocabulary does not have.

        Raises:
            ConfigError: If there is one; the message lists the allowed languages.
        """
        from transformers.models.canary.processing_canary import LANGUAGE_CODE_TO_NAME

        super().check_options(options)
        codes = {name.lower(): code for code, name in LANGUAGE_CODE_TO_NAME.items()}
        codes |= {code: code for code in LANGUAGE_CODE_TO_NAME}
        for argument, value in options.given("language", "tgt_lang").items():
            self.check_language(argument, value, codes)

    def prompt_ids(self, options: GenerationOptions) -> list[int]:
        """Return the prompt from the checkpoint's own template; it does not depend on the sound."""
        languages = {"source_language": options.language, "target_language": options.tgt_lang}
        request = self.processor.apply_transcription_request(
            np.zeros(self.sampling_rate // 10, dtype=np.float32),
            punctuation=options.generate_kwargs.get("punctuation", True),
            **{name: value for name, value in languages.items() if value is not None},
        )
        return request["decoder_input_ids"][0].tolist()

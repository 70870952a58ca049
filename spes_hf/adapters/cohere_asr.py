"""Cohere Transcribe: transcription of 14 languages."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from spes_hf.adapters.base import GenerationOptions
from spes_hf.adapters.fast_conformer import FastConformerAdapter
from spes_hf.adapters.pauses import StretchLongForm
from spes_hf.adapters.windows import LongForm
from spes_hf.audio.load import Waveform


class CohereAsrAdapter(FastConformerAdapter):
    """Cohere Transcribe is prompted with the language of the speech, ``language``, which it does not detect.

    Its processor cuts audio of more than 35 s (``max_audio_clip_s``) where it is quiet, and the model writes for each
    part on its own; here such audio is a recording of these parts.
    """

    processor_classes: ClassVar[tuple[str, ...]] = ("CohereAsrProcessor",)
    model_classes: ClassVar[tuple[str, ...]] = ("CohereAsrForConditionalGeneration",)
    options: ClassVar[tuple[str, ...]] = ("language",)
    since_transformers: ClassVar[str] = "5.4"

    @property
    def undivided_s(self) -> float:
        """Seconds of audio that the processor leaves in one piece."""
        return self.uncut_samples / self.sampling_rate

    @property
    def longest_s(self) -> float:
        """Seconds of audio that the processor leaves in one piece, and that the encoder is configured for."""
        return min(super().longest_s, self.undivided_s)

    @property
    def uncut_samples(self) -> int:
        """How many samples the processor leaves in one piece."""
        extractor = self.processor.feature_extractor
        return max(1, round(extractor.max_audio_clip_s * extractor.sampling_rate))

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse a missing or unknown language.

        Raises:
            ConfigError: Naming the languages.
        """
        from transformers.models.cohere_asr.processing_cohere_asr import LANGUAGES

        super().check_options(options)
        self.check_language("language", options.language, {code: code for code in LANGUAGES})

    def prompt_ids(self, options: GenerationOptions) -> list[int]:
        """Return the prompt as the processor makes it."""
        punctuation = options.generate_kwargs.get("punctuation", True)
        return list(self.processor.get_decoder_prompt_ids(language=options.language, punctuation=punctuation))

    def long_form(self, waveform: Waveform) -> LongForm:
        """Return the recording in the parts that the processor cuts it into."""
        return CohereAsrLongForm(self, waveform)


class CohereAsrLongForm(StretchLongForm):
    """A recording cut as the processor cuts it."""

    native = True
    adapter: CohereAsrAdapter

    def stretches(self) -> list[tuple[int, int]]:
        """Return where the processor's parts start and end, in samples.

        Where a part ends does not depend on what comes after the most that it may have, so the recording is never in
        memory as a whole.
        """
        extractor: Any = self.adapter.processor.feature_extractor
        samples, most = self.waveform.samples, self.adapter.uncut_samples
        found, start = [], 0
        while start < len(samples):
            ahead = torch.from_numpy(np.array(samples[start : start + most + 1], dtype=np.float32))
            stop = start + len(extractor._split_audio_chunks_energy(ahead)[0])
            found.append((start, stop))
            start = stop
        return found

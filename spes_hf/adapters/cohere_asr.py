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
    """Cohere Transcribe is prompted with the language of the speech, ``language``; it does not detect languages.

    Its processor cuts audio of more than 35 s (``max_audio_clip_s``) at quiet places, and the model transcribes each
    part separately. Here such audio becomes a recording of these parts.
    """

    processor_classes: ClassVar[tuple[str, ...]] = ("CohereAsrProcessor",)
    model_classes: ClassVar[tuple[str, ...]] = ("CohereAsrForConditionalGeneration",)
    options: ClassVar[tuple[str, ...]] = ("language",)
    since_transformers: ClassVar[str] = "5.4"

    @property
    def undivided_s(self) -> float:
        """Seconds of audio up to which the processor does not cut."""
        return self.uncut_samples / self.sampling_rate

    @property
    def longest_s(self) -> float:
        """Seconds of audio that the processor does not cut and that the encoder is configured for."""
        return min(super().longest_s, self.undivided_s)

    @property
    def uncut_samples(self) -> int:
        """Number of samples up to which the processor does not cut."""
        extractor = self.processor.feature_extractor
        return max(1, round(extractor.max_audio_clip_s * extractor.sampling_rate))

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse a missing or unknown language.

        Raises:
            ConfigError: In that case; the message lists the allowed languages.
        """
        from transformers.models.cohere_asr.processing_cohere_asr import LANGUAGES

        super().check_options(options)
        self.check_language("language", options.language, {code: code for code in LANGUAGES})

    def prompt_ids(self, options: GenerationOptions) -> list[int]:
        """Return the processor's prompt."""
        punctuation = options.generate_kwargs.get("punctuation", True)
        return list(self.processor.get_decoder_prompt_ids(language=options.language, punctuation=punctuation))

    def long_form(self, waveform: Waveform) -> LongForm:
        """Return the recording, cut into the processor's parts."""
        return CohereAsrLongForm(self, waveform)


class CohereAsrLongForm(StretchLongForm):
    """A recording, cut in the same way as by the processor."""

    native = True
    adapter: CohereAsrAdapter

    def stretches(self) -> list[tuple[int, int]]:
        """Return where the processor's parts start and end, in samples.

        The end of a part does not depend on samples beyond its maximum length, so the recording is never in memory as
        a whole.
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

"""Qwen3-ASR: chunks of a second with thirteen audio embeddings each, an optional forced language, and context words."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spes_hf.adapters.base import GenerationOptions, Utterance
from spes_hf.adapters.frames import check_bins, check_length
from spes_hf.adapters.log_mel import log_mel_utterance
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.adapters.speech_llm import SpeechLLMAdapter
from spes_hf.audio.load import Waveform

# Three convolutions of stride 2.
_STRIDE = 8


class Qwen3ASRAdapter(SpeechLLMAdapter):
    """Qwen3-ASR reads the whole utterance, padded to whole chunks; clips below half a second are padded with zeros.

    The prompt is the processor's transcription request. ``prompt`` gives words that may occur (the system message).
    ``language`` forces the language, so that the output is the transcript alone. Without it, the model first writes
    "language …<asr_text>"; these tokens are explained like others, but are not part of the text.
    """

    processor_classes: ClassVar[tuple[str, ...]] = ("Qwen3ASRProcessor",)
    model_classes: ClassVar[tuple[str, ...]] = ("Qwen3ASRForConditionalGeneration",)
    options: ClassVar[tuple[str, ...]] = ("language", "prompt")
    row_settings: ClassVar[tuple[str, ...] | None] = ()
    since_transformers: ClassVar[str] = "5.20"

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        check_bins(processor.feature_extractor.feature_size, model.config.audio_config.num_mel_bins)

    @property
    def chunk_frames(self) -> int:
        """Frames of a chunk, 100 in every released checkpoint."""
        return 2 * int(self.model.config.audio_config.n_window)

    def encode(self, waveform: Waveform) -> Utterance:
        """Return the log-mel features of the sound, with the processor's whole output as the model's input.

        Raises:
            AudioError: If the audio is shorter than two frames.
        """
        extractor = self.processor.feature_extractor
        check_length(len(waveform.samples) // extractor.hop_length, waveform)
        batch = extractor(
            waveform.samples,
            sampling_rate=waveform.sampling_rate,
            padding=True,
            truncation=False,
            return_attention_mask=True,
            n_window=self.chunk_frames // 2,
            return_tensors="pt",
        )
        inputs = {
            "input_features": batch.input_features.to(self.device, self.dtype),
            "input_features_mask": batch.attention_mask.to(self.device),
        }
        frames = min(int(batch.attention_mask.sum()), len(waveform.samples) // extractor.hop_length)
        return log_mel_utterance(waveform, extractor, batch.input_features[0, :, :frames].T, inputs)

    def model_inputs(self, utterance: Utterance, features: Tensor) -> dict[str, Tensor]:
        """Return the padded features, (B, C, T'): these features, then the clean padding; and their mask."""
        padded = utterance.inputs["input_features"].repeat(len(features), 1, 1)
        padded[:, :, : features.shape[1]] = features.transpose(1, 2)
        mask = utterance.inputs["input_features_mask"].expand(len(features), -1)
        return {"input_features": padded, "input_features_mask": mask}

    def prompt_ids(self, options: GenerationOptions) -> list[int]:
        """Return the processor's transcription request; it does not depend on the audio."""
        told = {} if options.prompt is None else {"prompt": options.prompt}
        silence = np.zeros(self.sampling_rate // 2, dtype=np.float32)
        found = self.processor.apply_transcription_request([silence], language=options.language or None, **told)
        return self.with_one_placeholder(found.input_ids[0])

    def audio_length(self, utterance: Utterance) -> int:
        """Return the number of embeddings of the chunks, including those of padding that the mask keeps."""
        return len(self._centres(int(utterance.inputs["input_features_mask"].sum())))

    def _centres(self, frames: int) -> list[int]:
        """Return the centre frame of every embedding of this many frames; every chunk starts a new count."""
        chunk = self.chunk_frames
        return [t for first in range(0, frames, chunk) for t in range(first, min(first + chunk, frames), _STRIDE)]

    def embed_audio(self, **inputs: Tensor) -> Tensor:
        """Return the audio embeddings, (B, S, D); the model packs those of all copies one after the other."""
        packed = self.core.get_audio_features(**inputs, return_dict=True).pooler_output
        return packed.unflatten(0, (len(inputs["input_features"]), -1))

    def encoder_positions(self, utterance: Utterance) -> EncoderPositions:
        """Return the times of the embeddings with sound: eight frames apart, restarting in every chunk."""
        centres = torch.tensor(self._centres(len(utterance.times)), dtype=torch.int64, device="cpu")
        return EncoderPositions(utterance.times[centres], utterance.times)

    def text(self, ids: Tensor) -> str:
        """Return the transcript: the text after the language, if the model wrote the language too."""
        places = (ids == self._marker).nonzero()
        return super().text(ids[int(places[0]) + 1 :] if len(places) else ids)

    def special_ids(self) -> set[int]:
        """Return the tokens that are not text, including the mark between language and transcript."""
        return super().special_ids() | {self._marker}

    @property
    def _marker(self) -> int:
        """The token between language and transcript."""
        return int(self.tokenizer.convert_tokens_to_ids("<asr_text>"))

"""Voxtral: chunks of 30 s, one audio embedding every 80 ms, a transcription mode, and any instruction in a chat."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from spes_hf.adapters.base import GenerationOptions, Target, Utterance
from spes_hf.adapters.frames import check_bins, check_length
from spes_hf.adapters.log_mel import log_mel_utterance
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.adapters.speech_llm import SpeechLLMAdapter
from spes_hf.audio.load import Waveform
from spes_hf.errors import ConfigError


class VoxtralAdapter(SpeechLLMAdapter):
    """Voxtral reads Whisper's features of the whole utterance, padded to whole chunks; it hears the padding too.

    The chunks of an utterance form a batch of their own, so model inputs here are (B, chunks, C, 3000). Without
    ``prompt``, uses the processor's transcription request, with or without ``language``; with ``prompt``, a chat.
    Features are computed from unmodified samples, while the processor's own requests round arrays to 16 bits first.
    """

    processor_classes: ClassVar[tuple[str, ...]] = ("VoxtralProcessor",)
    model_classes: ClassVar[tuple[str, ...]] = ("VoxtralForConditionalGeneration",)
    options: ClassVar[tuple[str, ...]] = ("language", "prompt")
    row_settings: ClassVar[tuple[str, ...] | None] = ()

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        check_bins(processor.feature_extractor.feature_size, model.config.audio_config.num_mel_bins)

    @property
    def chunk_frames(self) -> int:
        """Frames of a chunk, 3000 in every released checkpoint."""
        return 2 * int(self.model.config.audio_config.max_source_positions)

    @property
    def _stride(self) -> int:
        """Frames per embedding, 8 in every released checkpoint: a strided convolution, then four states joined."""
        audio = self.model.config.audio_config
        return 2 * int(audio.intermediate_size) // int(audio.hidden_size)

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse an empty instruction, an unknown language, and a language together with an instruction.

        Raises:
            ConfigError: In that case; the message says what is allowed.
        """
        super().check_options(options)
        if options.prompt and options.language:
            raise ConfigError(
                f"language is {options.language!r} and prompt is set, but Voxtral accepts a language only for its own "
                "transcription mode; leave one of the two out"
            )

    def encode(self, waveform: Waveform) -> Utterance:
        """Return the log-mel features of the true frames, and the padded chunks as the model's input.

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
            pad_to_multiple_of=self.chunk_frames * extractor.hop_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        whole = batch.input_features
        chunks = whole.unflatten(2, (-1, self.chunk_frames)).transpose(1, 2)
        frames = int(batch.attention_mask.sum())
        inputs = {"input_features": chunks.to(self.device, self.dtype)}
        return log_mel_utterance(waveform, extractor, whole[0, :, :frames].T, inputs)

    def model_inputs(self, utterance: Utterance, features: Tensor) -> dict[str, Tensor]:
        """Return the chunks, (B, chunks, C, 3000): these features, then the clean padding."""
        whole = utterance.inputs["input_features"].transpose(1, 2).flatten(2).repeat(len(features), 1, 1)
        whole[:, :, : features.shape[1]] = features.transpose(1, 2)
        return {"input_features": whole.unflatten(2, (-1, self.chunk_frames)).transpose(1, 2)}

    def generation_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the chunks of all rows as one batch, row after row."""
        return {"input_features": inputs["input_features"].flatten(0, 1)}

    def generate_rows(
        self, utterance: Utterance, inputs: Mapping[str, Tensor], options: GenerationOptions
    ) -> list[Target]:
        """Return what one call of ``generate()`` writes after the prompt.

        Raises:
            ConfigError: If there are several beams and several chunks, which ``generate()`` would mix up.
        """
        beams, chunks = self.num_beams(options), inputs["input_features"].shape[1]
        if beams > 1 and chunks > 1:
            raise ConfigError(
                f"num_beams is {beams}, but the audio has {chunks} chunks, and model.generate() mixes up their order "
                'with beam search; leave num_beams out, or pass segment="pauses"'
            )
        return super().generate_rows(utterance, inputs, options)

    def prompt_ids(self, options: GenerationOptions) -> list[int]:
        """Return the processor's transcription request, or a chat in which the user sends audio and instruction."""
        if options.prompt is not None:
            return self._chat(options.prompt)
        found = self.processor.apply_transcription_request(
            [_SILENCE], "voxtral", options.language or None, sampling_rate=self.sampling_rate, format=["wav"]
        )
        return self.with_one_placeholder(found.input_ids[0])

    def _chat(self, prompt: str) -> list[int]:
        text = [{"type": "text", "text": prompt}] if prompt else []
        audio = {"type": "audio", "base64": base64.b64encode(_silent_file(self.sampling_rate)).decode()}
        found = self.processor.apply_chat_template([{"role": "user", "content": [audio, *text]}])
        return self.with_one_placeholder(found.input_ids[0])

    def audio_length(self, utterance: Utterance) -> int:
        """Return the number of embeddings: one for every eight frames of all chunks, including padding."""
        return utterance.inputs["input_features"].shape[1] * self.chunk_frames // self._stride

    def embed_audio(self, **inputs: Tensor) -> Tensor:
        """Return the audio embeddings, (B, S, D); the model packs those of all chunks one after the other."""
        chunks = inputs["input_features"]
        packed = self.core.get_audio_features(chunks.flatten(0, 1), return_dict=True).pooler_output
        return packed.unflatten(0, (len(chunks), -1))

    def encoder_positions(self, utterance: Utterance) -> EncoderPositions:
        """Return the times of the embeddings centred on a true frame; the model hears padding too."""
        centre = self._stride / 2 - 1
        length = max(1, int((len(utterance.times) - 1 - centre) // self._stride) + 1)
        return EncoderPositions.on_frames(utterance.times, self._stride, centre, length)

    # Tokens of mistral-common ----------------------------------------------------------------------------------------

    def added_words(self) -> dict[int, str]:
        """Return an empty dictionary: words cannot be added to this vocabulary."""
        return {}

    def pieces(self, ids: Tensor) -> list[str]:
        """Return the text of every token; bytes of incomplete characters become lone surrogates."""
        tekken, numbers = self.tokenizer.tokenizer.instruct_tokenizer.tokenizer, ids.tolist()
        names, special = self.tokenizer.convert_ids_to_tokens(numbers), self.special_ids()
        return [
            name if i in special else tekken.id_to_byte_piece(i).decode("utf-8", errors="surrogateescape")
            for i, name in zip(numbers, names, strict=True)
        ]

    def special_ids(self) -> set[int]:
        """Return the tokens that are not text; the tokenizer knows all of them."""
        return set(self.tokenizer.all_special_ids)


# Replaces the audio when a prompt is made; its placeholders are reduced to one.
_SILENCE = np.zeros(1_600, dtype=np.float32)


def _silent_file(sampling_rate: int) -> bytes:
    """Return the silence as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, sampling_rate, 0, "NONE", ""))
        writer.writeframes(_SILENCE.astype("<i2").tobytes())
    return file.getvalue()

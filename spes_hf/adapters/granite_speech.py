"""Granite Speech: two frames stacked into one, windows of 0.3 s with three audio embeddings each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from spes_hf.adapters.base import GenerationOptions, Target, Utterance
from spes_hf.adapters.frames import check_length, mel_frequencies
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.adapters.speech_llm import SpeechLLMAdapter
from spes_hf.audio.load import Waveform
from spes_hf.errors import UnsupportedModelError

# Frames of the spectrogram that the model reads as one.
_STACK = 2


class GraniteSpeechAdapter(SpeechLLMAdapter):
    """Granite Speech reads log-mel features of the whole utterance with two frames stacked into one; here unstacked.

    The projector turns every window of frames into a few embeddings, and each of them reads its whole window. A LoRA
    adapter that comes with the model is enabled while the model hears audio, as in ``generate()``, and then restored.
    """

    INSTRUCTION: ClassVar[str] = "can you transcribe the speech into a written format?"

    processor_classes: ClassVar[tuple[str, ...]] = ("GraniteSpeechProcessor",)
    model_classes: ClassVar[tuple[str, ...]] = ("GraniteSpeechForConditionalGeneration",)
    row_settings: ClassVar[tuple[str, ...] | None] = ()

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        bins, read = int(processor.audio_processor.melspec_kwargs["n_mels"]), model.config.encoder_config.input_dim
        if _STACK * bins != read:
            raise UnsupportedModelError(
                f"processor stacks {_STACK} frames of {bins} mel bins, but the model reads {read} values per frame; "
                "load the processor of the same checkpoint"
            )

    @property
    def sampling_rate(self) -> int:
        """Samples per second that the model expects."""
        return int(self.processor.audio_processor.sampling_rate)

    @property
    def encoder(self) -> Any:
        """The module that reads the spectrogram."""
        return self.core.encoder

    @property
    def projector(self) -> torch.nn.Module:
        """The module that outputs the audio embeddings."""
        return self.core.projector

    def encode(self, waveform: Waveform) -> Utterance:
        """Return the log-mel features with frames unstacked, and the stacked ones as the model's input.

        If the number of frames is odd, the processor drops the last one.

        Raises:
            AudioError: If the audio is shorter than two frames.
        """
        extractor = self.processor.audio_processor
        hop = int(extractor.melspec_kwargs["hop_length"])
        check_length(len(waveform.samples) // hop, waveform)
        batch = extractor(torch.as_tensor(waveform.samples, dtype=torch.float32, device="cpu")[None])
        stacked = batch["input_features"].float()
        features = stacked[0].reshape(-1, stacked.shape[-1] // _STACK)
        steps = torch.arange(len(features), dtype=torch.float32, device="cpu")
        return Utterance(
            waveform=waveform,
            features=features,
            inputs={
                "input_features": stacked.to(self.device, self.dtype),
                "input_features_mask": batch["input_features_mask"].to(self.device),
            },
            times=steps * (hop / waveform.sampling_rate),
            frequencies=mel_frequencies(features.shape[1], 0.0, waveform.sampling_rate / 2, "htk"),
        )

    def model_inputs(self, utterance: Utterance, features: Tensor) -> dict[str, Tensor]:
        """Return the stacked features, (B, T / 2, 160), and the mask over embeddings, which is all ones."""
        stacked = features.reshape(len(features), -1, _STACK * features.shape[2]).to(self.dtype)
        mask = utterance.inputs["input_features_mask"].expand(len(features), -1)
        return {"input_features": stacked, "input_features_mask": mask}

    def prompt_ids(self, options: GenerationOptions) -> list[int]:
        """Return a chat in which the user sends the audio, then the instruction (default: IBM's for transcription)."""
        prompt = self.INSTRUCTION if options.prompt is None else options.prompt
        chat = [{"role": "user", "content": f"{self.audio_token}{prompt}"}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text).input_ids)

    @property
    def _window(self) -> int:
        """Frames of the spectrogram in a window of the projector, 30 in every released checkpoint."""
        return _STACK * int(self.model.config.window_size)

    @property
    def _queries(self) -> int:
        """Embeddings of a window, 3 in every released checkpoint."""
        return int(self.model.config.window_size) // int(self.model.config.downsample_rate)

    def audio_length(self, utterance: Utterance) -> int:
        """Return the number of embeddings of all windows."""
        return math.ceil(len(utterance.times) / self._window) * self._queries

    def embed_audio(self, **inputs: Tensor) -> Tensor:
        """Return the audio embeddings, (B, S, D)."""
        return self.core.get_audio_features(inputs["input_features"], return_dict=True).pooler_output

    def encoder_positions(self, utterance: Utterance) -> EncoderPositions:
        """Return the times of the embeddings: spread evenly over their window, although each reads all of it."""
        frames, window, queries = len(utterance.times), self._window, self._queries
        starts = range(0, frames, window)
        widths = [min(window, frames - first) / queries for first in starts]
        pairs = zip(starts, widths, strict=True)
        centres = [first + (q + 0.5) * width - 0.5 for first, width in pairs for q in range(queries)]
        hop = float(utterance.times[-1] - utterance.times[0]) / (frames - 1)
        found = float(utterance.times[0]) + hop * torch.tensor(centres, dtype=torch.float64, device="cpu")
        return EncoderPositions(found.float(), utterance.times)

    def generate_rows(
        self, utterance: Utterance, inputs: Mapping[str, Tensor], options: GenerationOptions
    ) -> list[Target]:
        """Return what one call of ``generate()`` writes after the prompt."""
        with self._hearing():
            return super().generate_rows(utterance, inputs, options)

    def last_logits(self, embeddings: Tensor, count: int) -> Tensor:
        """Return the logits of the last positions of a sequence of embeddings, (B, count, V)."""
        with self._hearing():
            return super().last_logits(embeddings, count)

    def encoder_states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the audio embeddings, (B, S, D)."""
        with self._hearing():
            return super().encoder_states(inputs)

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Enable the model's adapters for a while, if it has any, and restore them afterwards."""
        layers = [m for m in self.model.modules() if isinstance(getattr(m, "disable_adapters", None), bool)]
        off = [layer for layer in layers if layer.disable_adapters]
        for layer in off:
            layer.enable_adapters(True)
        try:
            yield
        finally:
            for layer in off:
                layer.enable_adapters(False)

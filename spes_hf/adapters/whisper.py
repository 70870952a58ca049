"""Whisper: every checkpoint, English-only and multilingual, 80 and 128 mel bins, transcribe and translate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from spes_hf.adapters.base import Adapter, GenerationOptions, Target, Utterance
from spes_hf.adapters.frames import check_length, mel_frequencies
from spes_hf.data.audio import Waveform
from spes_hf.errors import AudioError, ConfigError, UnsupportedModelError
from spes_hf.text import byte_level_piece


class WhisperAdapter(Adapter):
    """Whisper reads a window of 30 s: shorter audio is padded, and the padding is part of what the model sees.

    Features are (mel, time) and log10-scaled as (x + 4) / 4, not normalised per mel bin. Only true frames are
    segmented and perturbed; the padding stays as the processor makes it.
    """

    processor_classes: ClassVar[tuple[str, ...]] = ("WhisperProcessor",)
    model_classes: ClassVar[tuple[str, ...]] = ("WhisperForConditionalGeneration",)
    options: ClassVar[tuple[str, ...]] = ("language", "task")

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        bins = processor.feature_extractor.feature_size
        if bins != model.config.num_mel_bins:
            raise UnsupportedModelError(
                f"processor makes {bins} mel bins, but the model reads {model.config.num_mel_bins}; load the processor "
                "of the same checkpoint"
            )

    @property
    def window_frames(self) -> int:
        """Frames of the window, 3000 in every released checkpoint."""
        encoder = self.model.get_encoder()
        return int(self.model.config.max_source_positions * encoder.conv1.stride[0] * encoder.conv2.stride[0])

    def encode(self, waveform: Waveform) -> Utterance:
        """Return the log-mel features of the true frames, and the padded 30 s window as the model's input.

        Raises:
            AudioError: If the audio is shorter than two frames or longer than the window.
        """
        extractor = self.processor.feature_extractor
        frames = len(waveform.samples) // extractor.hop_length
        check_length(frames, waveform)
        if len(waveform.samples) > self.window_frames * extractor.hop_length:
            window_s = self.window_frames * extractor.hop_length / extractor.sampling_rate
            length_s = len(waveform.samples) / waveform.sampling_rate
            raise AudioError(
                f"audio is {length_s:.1f} s long, but Whisper reads windows of {window_s:.0f} s; cut it where speech "
                "pauses and explain the parts, for example load_segment(path, offset_s, duration_s, sampling_rate) "
                "from spes_hf.data.audio for each segment of model.generate(…, return_timestamps=True, "
                "return_segments=True). If it should be shorter, check sampling_rate"
            )
        batch = extractor(
            waveform.samples,
            sampling_rate=waveform.sampling_rate,
            max_length=self.window_frames * extractor.hop_length,
            return_tensors="pt",
            return_attention_mask=True,
        )
        frames = int(batch.attention_mask.sum())
        window = batch.input_features
        seconds_per_frame = extractor.hop_length / extractor.sampling_rate
        return Utterance(
            waveform=waveform,
            features=window[0, :, :frames].T.contiguous(),
            inputs={"input_features": window.to(self.device, self.dtype)},
            times=torch.arange(frames, dtype=torch.float32, device="cpu") * seconds_per_frame,
            frequencies=mel_frequencies(window.shape[1], 0.0, 8000.0, "slaney"),
        )

    def model_inputs(self, utterance: Utterance, features: Tensor) -> dict[str, Tensor]:
        """Return the 30 s windows, (B, C, 3000), with these features in front of the clean padding."""
        window = utterance.inputs["input_features"].repeat(len(features), 1, 1)
        window[:, :, : features.shape[1]] = features.transpose(1, 2)
        return {"input_features": window}

    def generate_ids(self, utterance: Utterance, inputs: Mapping[str, Tensor], options: GenerationOptions) -> Target:
        """Return prefix and tokens of one unique call of ``generate()``, which keeps both."""
        try:
            output = self.model.generate(
                **inputs,
                generation_config=self.generation_config(),
                return_dict_in_generate=True,
                force_unique_generate_call=True,
                **options.given(*self.options),
                **options.generate_kwargs,
            )
        except ValueError as error:
            raise ConfigError(f"model.generate() refused language, task or generate_kwargs: {error}") from error
        sequence = output.sequences[0]
        return self.split_output(sequence, self._prefix_length(sequence.tolist()))

    def prefix_ids(self, utterance: Utterance, options: GenerationOptions) -> Tensor:
        """Return what ``generate()`` starts from; an unset language is detected from the clean audio, as it does."""
        if options.generate_kwargs.get("return_timestamps"):
            raise ConfigError(
                "text is given, so generate_kwargs must not hold return_timestamps: a text has no timestamps"
            )
        one_token = {**options.generate_kwargs, "max_new_tokens": 1, "num_beams": 1}
        one_token.pop("max_length", None)
        only_prefix = GenerationOptions(options.language, options.task, None, one_token)
        return self.generate(utterance, only_prefix).prefix_ids

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of a text; Whisper's own begin with a space."""
        return super().text_ids(" " + text.strip())

    @contextmanager
    def perturbed_tokens(self, ids: Tensor, keep: Tensor | None) -> Iterator[dict[str, Tensor]]:
        """Yield masked embeddings, which Whisper takes rightly: its positions do not depend on them."""
        if keep is None:
            yield {"decoder_input_ids": ids}
        else:
            embeddings = self.token_embedding(ids)
            yield {"decoder_inputs_embeds": embeddings * keep.unsqueeze(-1).to(embeddings)}

    def pieces(self, ids: Tensor) -> list[str]:
        """Return the text of every token of Whisper's byte-level vocabulary."""
        return [byte_level_piece(token) for token in self.tokenizer.convert_ids_to_tokens(ids.tolist())]

    def is_special(self, ids: Tensor) -> list[bool]:
        """Return for every token whether it is no text: end, start, language, task, timestamps; all come last."""
        return [i >= self.eos_token_id for i in ids.tolist()]

    def _prefix_length(self, sequence: list[int]) -> int:
        """Return where the tokens begin: after the start token and the language, task and no-timestamps tokens."""
        config = self.model.generation_config
        start = config.decoder_start_token_id
        start = self.model.config.decoder_start_token_id if start is None else start
        end = sequence.index(start) + 1
        last = getattr(config, "no_timestamps_token_id", None) or max(self.tokenizer.all_special_ids)
        while end < len(sequence) and start < sequence[end] <= last:
            end += 1
        return end

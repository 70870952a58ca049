"""SeamlessM4T, speech to text: transcription and translation into the language ``tgt_lang``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from spes_hf.adapters import kaldi
from spes_hf.adapters.base import Adapter, GenerationOptions, Target, Utterance
from spes_hf.adapters.frames import check_length
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.audio.load import Waveform
from spes_hf.errors import ConfigError, UnsupportedModelError


class SeamlessM4TAdapter(Adapter):
    """SeamlessM4T reads Kaldi log-mel features, mean-variance normalised per mel bin, with two frames stacked into one.

    Here frames are unstacked: (T, 80) instead of (T / 2, 160). If the number of frames is odd, the last one is stacked
    with padding; the processor's attention mask excludes it, so it does not count as a true frame.

    Full models, which also read text and speak, are used for speech to text only.
    """

    processor_classes: ClassVar[tuple[str, ...]] = ("SeamlessM4TProcessor",)
    model_classes: ClassVar[tuple[str, ...]] = ("SeamlessM4TForSpeechToText", "SeamlessM4TModel")
    options: ClassVar[tuple[str, ...]] = ("tgt_lang",)
    row_settings: ClassVar[tuple[str, ...] | None] = (
        "char_to_id",
        "id_to_text",
        "t2u_lang_code_to_id",
        "text_decoder_lang_to_code_id",
        "vocoder_lang_code_to_id",
    )

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        extractor = processor.feature_extractor
        width = extractor.num_mel_bins * extractor.stride
        if width != model.config.feature_projection_input_dim:
            raise UnsupportedModelError(
                f"processor stacks {extractor.stride} frames of {extractor.num_mel_bins} mel bins, but the model reads "
                f"{model.config.feature_projection_input_dim} values per frame; load the same checkpoint's processor"
            )

    @property
    def languages(self) -> dict[str, int]:
        """Token of every language that the model writes.

        Raises:
            ConfigError: If the model was loaded without its generation config.
        """
        languages = getattr(self.model.generation_config, "text_decoder_lang_to_code_id", None)
        if not languages:
            raise ConfigError(
                "model.generation_config has no text_decoder_lang_to_code_id (the language tokens); load the model "
                "with from_pretrained(), or set model.generation_config to the checkpoint's own"
            )
        return dict(languages)

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse a missing or unknown language.

        Raises:
            ConfigError: In that case; the message lists the allowed languages.
        """
        super().check_options(options)
        self._language_id(options)

    def encode(self, waveform: Waveform) -> Utterance:
        """Return the normalised features with frames unstacked; the model's input is the stacked ones with their mask.

        Raises:
            AudioError: If the audio is shorter than two frames.
        """
        extractor = self.processor.feature_extractor
        check_length(kaldi.num_frames(waveform) // extractor.stride * extractor.stride, waveform)
        batch = extractor(
            waveform.samples, sampling_rate=waveform.sampling_rate, return_tensors="pt", return_attention_mask=True
        )
        stacked = batch.input_features.float()
        features = stacked[0, : int(batch.attention_mask.sum())].reshape(-1, extractor.num_mel_bins)
        times, frequencies = kaldi.axes(features, waveform)
        return Utterance(
            waveform=waveform,
            features=features,
            inputs={
                "input_features": stacked.to(self.device, self.dtype),
                "attention_mask": batch.attention_mask.to(self.device),
            },
            times=times,
            frequencies=frequencies,
        )

    def encoder_positions(self, utterance: Utterance) -> EncoderPositions:
        """Return the times of the positions: the adaptor turns every few stacked frames into one position.

        A convolution of even width is centred between two frames. The last position may lie after the sound.
        """
        config, stack = self.model.config, int(self.processor.feature_extractor.stride)
        length, centre, stride = len(utterance.times) // stack, 0.0, 1
        for _ in range(int(config.num_adapter_layers) if config.add_adapter else 0):
            kernel, step = int(config.adaptor_kernel_size), int(config.adaptor_stride)
            length = (length + 2 * (step // 2) - kernel) // step + 1
            centre += stride * ((kernel - 1) / 2 - step // 2)
            stride *= step
        length = min(length, self.attended(utterance) or length)
        return EncoderPositions.on_frames(utterance.times, stack * stride, stack * centre + (stack - 1) / 2, length)

    def attended(self, utterance: Utterance) -> int | None:
        """Return the number of positions that the decoder's mask keeps; the model derives it from its input mask."""
        mask = utterance.inputs["attention_mask"]
        return int(self.model._compute_sub_sample_lengths_from_attention_mask(mask)[0])

    @property
    def attention_modules(self) -> Sequence[Any]:
        """The cross-attention of every layer of the text decoder."""
        return [layer.cross_attention for layer in self.model.text_decoder.layers]

    def model_inputs(self, utterance: Utterance, features: Tensor) -> dict[str, Tensor]:
        """Return the stacked features, (B, T / 2, 160), then any padding; and their mask."""
        stacked = utterance.inputs["input_features"].repeat(len(features), 1, 1)
        pairs = features.reshape(len(features), -1, stacked.shape[2])
        stacked[:, : pairs.shape[1]] = pairs
        return {
            "input_features": stacked,
            "attention_mask": utterance.inputs["attention_mask"].expand(len(features), -1),
        }

    def generate_rows(
        self, utterance: Utterance, inputs: Mapping[str, Tensor], options: GenerationOptions
    ) -> list[Target]:
        """Return what one call of ``generate()`` writes: start token, language token, then the model's own."""
        prefix = self.prefix_ids(utterance, options)
        # Version 1 of the full model accepts only the languages that it also speaks by name, but all by their token.
        language: dict[str, Any] = {"tgt_lang": options.tgt_lang}
        if self._is_full:
            start = prefix.to(self.device).expand(len(inputs["input_features"]), -1)
            language = {"decoder_input_ids": start, "generate_speech": False}
        with self.refusals(options), self._speech():
            output = self.model.generate(**inputs, **language, **self.generation_settings(options))
        return [self.split_output(sequence, len(prefix)) for sequence in output.sequences]

    def prefix_ids(self, utterance: Utterance, options: GenerationOptions) -> Tensor:
        """Return the start token and the language token."""
        return torch.tensor([self.start_token_id(options), self._language_id(options)], dtype=torch.int64, device="cpu")

    @property
    def encoder(self) -> torch.nn.Module:
        """The speech encoder."""
        return self.model.speech_encoder

    def forward(self, inputs: Mapping[str, Any]) -> Any:
        """Return the model's output for speech."""
        with self._speech():
            return super().forward(inputs)

    @property
    def token_embedding(self) -> torch.nn.Module:
        """The text decoder's token embedding."""
        return self.model.text_decoder.embed_tokens

    @property
    def _is_full(self) -> bool:
        return hasattr(self.model, "set_modality")

    def _language_id(self, options: GenerationOptions) -> int:
        """Return the token of the language, given as "deu" or "__deu__"."""
        languages, name = self.languages, options.tgt_lang
        code = name.replace("__", "") if isinstance(name, str) else name
        if code not in languages:
            problem = "missing" if name is None else f"{name!r}, which this checkpoint does not write"
            raise ConfigError(f"tgt_lang is {problem}; allowed: {', '.join(sorted(languages))}")
        return int(languages[code])

    @contextmanager
    def _speech(self) -> Iterator[None]:
        """Switch a full model to speech input for a while; afterwards its modality is restored."""
        if not self._is_full:
            yield
            return
        attributes = vars(self.model)
        before = {name: attributes[name] for name in ("current_modality", "main_input_name") if name in attributes}
        try:
            self.model.set_modality("speech")
            yield
        finally:
            for name in ("current_modality", "main_input_name"):
                attributes.pop(name, None)
            attributes.update(before)

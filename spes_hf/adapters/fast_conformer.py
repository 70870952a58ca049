"""Shared code of families with a FastConformer encoder and a decoder that starts from a prompt of special tokens."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from spes_hf.adapters.base import Adapter, GenerationOptions, Target, Utterance
from spes_hf.adapters.frames import check_bins, check_length, mel_frequencies
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.audio.load import Waveform
from spes_hf.errors import AudioError, ConfigError, UnsupportedModelError

_CONTROL = re.compile(r"<\|[^|]*\|>")


class FastConformerAdapter(Adapter):
    """Log-mel features at 100 frames per second, normalised per mel bin over true frames; the last frame is padding.

    The processor adds one frame after the sound, sets it to zero and masks it; it stays unchanged. The encoder turns 8
    frames into one position, and also returns the mask of its positions, which the decoder needs.

    Besides languages, the prompt has ``punctuation=``, an argument of the processor. Here, pass it together with the
    arguments of ``generate()``: ``generate_kwargs={"punctuation": False}``.
    """

    prefix_settings: ClassVar[tuple[str, ...]] = ("punctuation",)
    row_settings: ClassVar[tuple[str, ...] | None] = prefix_settings

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        classes = [c.__module__ for c in type(self.model).__mro__ if c.__name__ in self.model_classes]
        if not any(module.startswith("transformers.") for module in classes):
            raise UnsupportedModelError(
                f"model is a {type(self.model).__name__} from the checkpoint's own code, which is not supported; load "
                "model and processor without trust_remote_code, as classes of transformers"
            )
        check_bins(processor.feature_extractor.feature_size, self.model.config.encoder_config.num_mel_bins)

    # What a family defines -------------------------------------------------------------------------------------------

    @abstractmethod
    def prompt_ids(self, options: GenerationOptions) -> list[int]:
        """Return the prompt of the family's processor."""

    # What they share -------------------------------------------------------------------------------------------------

    @property
    def longest_s(self) -> float:
        """Seconds of audio that the encoder is configured for."""
        config, extractor = self.model.config.encoder_config, self.processor.feature_extractor
        frames = int(config.max_position_embeddings) * int(config.subsampling_factor)
        return frames * extractor.hop_length / extractor.sampling_rate

    def check_language(self, argument: str, value: Any, codes: Mapping[str, str]) -> None:
        """Refuse a language that the processor or the vocabulary does not have.

        Args:
            argument: Name of the argument.
            value: Value of the argument.
            codes: Codes of the processor's languages, by the lowercase names that it accepts for them.

        Raises:
            ConfigError: In that case; the message lists the languages that both have.
        """
        vocabulary = self.tokenizer.get_vocab()
        known = sorted({code for code in codes.values() if f"<|{code}|>" in vocabulary})
        if not isinstance(value, str) or codes.get(value.lower()) not in known:
            problem = "missing" if value is None else f"{value!r}, which this checkpoint does not have"
            raise ConfigError(f"{argument} is {problem}; allowed: {', '.join(known)}")

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse an invalid ``punctuation`` setting.

        Raises:
            ConfigError: In that case; the message lists the allowed values.
        """
        super().check_options(options)
        if not isinstance(options.generate_kwargs.get("punctuation", True), bool):
            raise ConfigError(
                f"punctuation is {options.generate_kwargs['punctuation']!r} in generate_kwargs; allowed: True, False"
            )

    def encode(self, waveform: Waveform) -> Utterance:
        """Return the normalised features of the true frames; the model's input is the processor's features and mask.

        Raises:
            AudioError: If the audio is shorter than two frames, or longer than the encoder is configured for.
        """
        extractor = self.processor.feature_extractor
        check_length(len(waveform.samples) // extractor.hop_length, waveform)
        if waveform.duration_s > self.longest_s:
            raise AudioError(
                f"audio is {waveform.duration_s:.1f} s long, but {type(self.model).__name__} reads at most "
                f'{self.longest_s:.1f} s; pass segment="pauses" to explain(), which cuts it where speech pauses'
            )
        batch = extractor(waveform.samples, sampling_rate=waveform.sampling_rate, return_tensors="pt")
        frames = int(batch["attention_mask"].sum())
        features = batch["input_features"][0, :frames].float()
        steps = torch.arange(frames, dtype=torch.float64, device="cpu")
        return Utterance(
            waveform=waveform,
            features=features,
            inputs={
                "input_features": batch["input_features"].to(self.device, self.dtype),
                "attention_mask": batch["attention_mask"].to(self.device),
            },
            times=(steps * (extractor.hop_length / extractor.sampling_rate)).float(),
            frequencies=mel_frequencies(features.shape[1], 0.0, waveform.sampling_rate / 2, "slaney"),
        )

    def encoder_positions(self, utterance: Utterance) -> EncoderPositions:
        """Return the times of the positions: every convolution halves the frames, and is symmetric in time."""
        stride = int(self.model.config.encoder_config.subsampling_factor)
        return EncoderPositions.on_frames(utterance.times, stride, 0.0, self.attended(utterance))

    def attended(self, utterance: Utterance) -> int:
        """Return the number of positions that the encoder's output mask keeps."""
        return int(self._positions_kept(utterance.inputs["attention_mask"]).sum())

    def attention_heads(self, module: Any) -> int:
        """Return the number of heads of a layer's cross-attention, which only its configuration has."""
        return int(module.config.num_attention_heads)

    def model_inputs(self, utterance: Utterance, features: Tensor) -> dict[str, Tensor]:
        """Return the features, (B, T + 1, C), then the frame of padding; and their mask."""
        padded = utterance.inputs["input_features"].repeat(len(features), 1, 1)
        padded[:, : features.shape[1]] = features
        return {
            "input_features": padded,
            "attention_mask": utterance.inputs["attention_mask"].expand(len(features), -1),
        }

    def decoder_inputs(self, inputs: Mapping[str, Tensor], states: Tensor, batch: int) -> dict[str, Any]:
        """Return the encoder's output, (1 or B, S, D), with the mask of its positions."""
        from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderModelOutput

        mask = self._positions_kept(inputs["attention_mask"], states.shape[1])
        output = ParakeetEncoderModelOutput(
            last_hidden_state=states.expand(batch, -1, -1), attention_mask=mask.int().expand(batch, -1)
        )
        return {"encoder_outputs": output}

    def generate_rows(
        self, utterance: Utterance, inputs: Mapping[str, Tensor], options: GenerationOptions
    ) -> list[Target]:
        """Return what one call of ``generate()`` writes after the prompt."""
        prefix = self.prefix_ids(utterance, options)
        start = prefix.expand(len(inputs["input_features"]), -1).to(self.device)
        with self.refusals(options):
            output = self.model.generate(**inputs, decoder_input_ids=start, **self.generation_settings(options))
        return [self.split_output(sequence, len(prefix)) for sequence in output.sequences]

    def generation_settings(self, options: GenerationOptions) -> dict[str, Any]:
        """Return the arguments of ``generate()``, without those of the prompt, which are for the processor."""
        settings = super().generation_settings(options)
        return {name: value for name, value in settings.items() if name not in self.prefix_settings}

    def prefix_ids(self, utterance: Utterance, options: GenerationOptions) -> Tensor:
        """Return the prompt after the start token, which ``generate()`` adds if the prompt starts with another one."""
        if options.prefix is not None:  # a window of a recording, with its original start
            return torch.tensor(options.prefix, dtype=torch.int64, device="cpu")
        start, prompt = self.start_token_id(options), self.prompt_ids(options)
        return torch.tensor(prompt if prompt[0] == start else [start, *prompt], dtype=torch.int64, device="cpu")

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of a text, without the space around it."""
        return super().text_ids(text.strip())

    def is_special(self, ids: Tensor) -> list[bool]:
        """Return for every token whether it is not text; includes the prompt's tokens, whatever the tokenizer says."""
        tokens = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        named = super().is_special(ids)
        return [known or bool(_CONTROL.fullmatch(token)) for known, token in zip(named, tokens, strict=True)]

    def added_words(self) -> dict[int, str]:
        """Return the words that were added to the vocabulary, without the prompt's tokens."""
        return {i: word for i, word in super().added_words().items() if not _CONTROL.fullmatch(word)}

    def _positions_kept(self, mask: Tensor, length: int | None = None) -> Tensor:
        """Return the encoder's mask of its positions, (1, S), for a mask of frames, (1, T + 1).

        Args:
            mask: The processor's mask.
            length: S; None: the number of positions with sound.
        """
        encoder: Any = self.encoder
        return encoder._get_output_attention_mask(mask, target_length=length)

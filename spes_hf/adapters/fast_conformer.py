"""What families share whose encoder is a FastConformer and whose decoder starts from a prompt of special tokens."""

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
    """Log-mel features at 100 frames a second, normalised per mel bin over the true frames; the last frame is padding.

    The processor makes one frame more than the sound has, sets it to zero and masks it; it stays where it is. The
    encoder makes one position of 8 frames and returns the mask of its positions with them, which the decoder needs.

    What the prompt says besides languages, ``punctuation=``, is an argument of the processor. Here it goes with the
    arguments of ``generate()``: ``generate_kwargs={"punctuation": False}``.
    """

    prefix_settings: ClassVar[tuple[str, ...]] = ("punctuation",)
    row_settings: ClassVar[tuple[str, ...] | None] = prefix_settings

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        classes = [c.__module__ for c in type(self.model).__mro__ if c.__name__ in self.model_classes]
        if not any(module.startswith("transformers.") for module in classes):
            raise UnsupportedModelError(
                f"model is a {type(self.model).__name__} of the checkpoint's own code; load it without "
                "trust_remote_code, as transformers' own class, and its processor as well"
            )
        check_bins(processor.feature_extractor.feature_size, self.model.config.encoder_config.num_mel_bins)

    # What a family defines -------------------------------------------------------------------------------------------

    @abstractmethod
    def prompt_ids(self, options: GenerationOptions) -> list[int]:
        """Return the prompt as the family's processor makes it."""

    # What they share -------------------------------------------------------------------------------------------------

    @property
    def longest_s(self) -> float:
        """Seconds of audio that the encoder is configured for."""
        config, extractor = self.model.config.encoder_config, self.processor.feature_extractor
        frames = int(config.max_position_embeddings) * int(config.subsampling_factor)
        return frames * extractor.hop_length / extractor.sampling_rate

    def check_language(self, argument: str, value: Any, codes: Mapping[str, str]) -> None:
        """Refuse a language that processor or vocabulary does not have.

        Args:
            argument: As what it was passed.
            value: What was passed.
            codes: Codes of the languages that the processor takes, by what it takes for them, in lower case.

        Raises:
            ConfigError: Naming the languages that both have.
        """
        vocabulary = self.tokenizer.get_vocab()
        known = sorted({code for code in codes.values() if f"<|{code}|>" in vocabulary})
        if not isinstance(value, str) or codes.get(value.lower()) not in known:
            problem = "missing" if value is None else f"{value!r}, which this checkpoint does not have"
            raise ConfigError(f"{argument} is {problem}; name one of: {', '.join(known)}")

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse a setting of the prompt that it does not have.

        Raises:
            ConfigError: Naming the values that are allowed.
        """
        super().check_options(options)
        if not isinstance(options.generate_kwargs.get("punctuation", True), bool):
            raise ConfigError(
                f"punctuation is {options.generate_kwargs['punctuation']!r} in generate_kwargs; allowed: True, False"
            )

    def encode(self, waveform: Waveform) -> Utterance:
        """Return the normalised features of the true frames, and the processor's features and mask as model's input.

        Raises:
            AudioError: If the audio is shorter than two frames, or longer than the encoder is configured for.
        """
        extractor = self.processor.feature_extractor
        check_length(len(waveform.samples) // extractor.hop_length, waveform)
        if waveform.duration_s > self.longest_s:
            raise AudioError(
                f"audio is {waveform.duration_s:.1f} s long, but {type(self.model).__name__} reads "
                f'{self.longest_s:.1f} s at once; pass segment="pauses" to explain(), which cuts it where speech pauses'
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
        """Return where the positions lie in time: every convolution halves the frames, and looks both ways alike."""
        stride = int(self.model.config.encoder_config.subsampling_factor)
        return EncoderPositions.on_frames(utterance.times, stride, 0.0, self.attended(utterance))

    def attended(self, utterance: Utterance) -> int:
        """Return how many positions the mask keeps that the encoder returns with its output."""
        return int(self._positions_kept(utterance.inputs["attention_mask"]).sum())

    def attention_heads(self, module: Any) -> int:
        """Return how many heads the cross-attention of a layer has; it leaves that to its configuration."""
        return int(module.config.num_attention_heads)

    def model_inputs(self, utterance: Utterance, features: Tensor) -> dict[str, Tensor]:
        """Return the features, (B, T + 1, C), in front of the frame of padding, and their mask."""
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
        """Return what one call of ``generate()`` writes behind the prompt."""
        prefix = self.prefix_ids(utterance, options)
        start = prefix.expand(len(inputs["input_features"]), -1).to(self.device)
        with self.refusals(options):
            output = self.model.generate(**inputs, decoder_input_ids=start, **self.generation_settings(options))
        return [self.split_output(sequence, len(prefix)) for sequence in output.sequences]

    def generation_settings(self, options: GenerationOptions) -> dict[str, Any]:
        """Return the arguments of ``generate()``; those of the prompt are the processor's."""
        settings = super().generation_settings(options)
        return {name: value for name, value in settings.items() if name not in self.prefix_settings}

    def prefix_ids(self, utterance: Utterance, options: GenerationOptions) -> Tensor:
        """Return the prompt, behind the start token, which ``generate()`` adds where the prompt has another."""
        if options.prefix is not None:  # a window of a recording, from where it started then
            return torch.tensor(options.prefix, dtype=torch.int64, device="cpu")
        start, prompt = self.start_token_id(options), self.prompt_ids(options)
        return torch.tensor(prompt if prompt[0] == start else [start, *prompt], dtype=torch.int64, device="cpu")

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of a text; space around it is no part of it."""
        return super().text_ids(text.strip())

    def is_special(self, ids: Tensor) -> list[bool]:
        """Return for every token whether it is no text: the prompt's, too, whatever the tokenizer takes them for."""
        tokens = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        named = super().is_special(ids)
        return [known or bool(_CONTROL.fullmatch(token)) for known, token in zip(named, tokens, strict=True)]

    def added_words(self) -> dict[int, str]:
        """Return the words that were added to the vocabulary; the prompt's tokens are none."""
        return {i: word for i, word in super().added_words().items() if not _CONTROL.fullmatch(word)}

    def _positions_kept(self, mask: Tensor, length: int | None = None) -> Tensor:
        """Return the encoder's mask of its positions, (1, S), for a mask of frames, (1, T + 1).

        Args:
            mask: As the processor makes it.
            length: S; None: as many as hold sound.
        """
        encoder: Any = self.encoder
        return encoder._get_output_attention_mask(mask, target_length=length)

"""What adapters and the engine pass each other: an utterance, an output to explain, and how it is generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from spes_hf.audio.load import Waveform
from spes_hf.errors import ConfigError

# generate() arguments that spes_hf sets itself, by what to do instead.
_LEAVE_OUT = dict.fromkeys(
    (
        "attention_mask",
        "cache",
        "decoder_attention_mask",
        "decoder_input_ids",
        "decoder_inputs_embeds",
        "encoder_outputs",
        "feature_attention_mask",
        "force_unique_generate_call",
        "generate_speech",
        "input_features",
        "input_features_mask",
        "input_ids",
        "inputs",
        "inputs_embeds",
        "past_key_values",
        "return_segments",
        "return_token_timestamps",
    ),
    "leave it out",
)
_RESERVED = {
    **_LEAVE_OUT,
    "eos_token_id": "set model.generation_config.eos_token_id",
    "generation_config": "set model.generation_config, or put the settings themselves into generate_kwargs",
}

# What a user says of the output by an argument of its own.
OPTIONS = ("language", "task", "tgt_lang", "prompt")

# What generate() is to return, whatever generation config or generate_kwargs say: this changes no token.
NOTHING_BESIDE = {
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_logits": False,
    "output_scores": False,
    "return_dict_in_generate": True,
}


@dataclass(frozen=True)
class GenerationOptions:
    """What the user says of the output: language and task as the family's ``generate()`` names them.

    Attributes:
        language: Language of the speech (Whisper).
        task: "transcribe" or "translate" (Whisper).
        tgt_lang: Language of the text (SeamlessM4T, multilingual Speech2Text).
        generate_kwargs: Anything else for ``generate()``: beam search, length limits, ….
        prefix: What the output starts from, where ``generate()`` cannot know: in a window of a recording. None: as
            ``generate()`` works it out.
        prompt: The instruction that comes with the audio (speech LLMs); None: the family's own for transcription.
    """

    language: str | None = None
    task: str | None = None
    tgt_lang: str | None = None
    generate_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prefix: tuple[int, ...] | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.generate_kwargs, Mapping):
            raise ConfigError(
                f'generate_kwargs is {self.generate_kwargs!r}; pass a dictionary such as {{"num_beams": 5}}'
            )
        for name in sorted(_RESERVED.keys() & {str(key).removeprefix("text_") for key in self.generate_kwargs}):
            raise ConfigError(f"generate_kwargs holds {name}, which explain() sets itself; {_RESERVED[name]}")
        for name in OPTIONS:
            if name in self.generate_kwargs:
                raise ConfigError(f"generate_kwargs holds {name}; pass it to explain() as {name}=… instead")

    def with_defaults(self, settings: Mapping[str, Any], text_given: bool = False) -> GenerationOptions:
        """Return these options, and of the settings what they leave open.

        Args:
            settings: Arguments of ``generate()``, language and task among them.
            text_given: Whether a text is explained, which has no timestamps.
        """
        lengths = {"max_length", "max_new_tokens"}
        dropped = {*OPTIONS, *(("return_timestamps",) if text_given else ())}
        dropped |= lengths if lengths & self.generate_kwargs.keys() else set()
        left = {name: value for name, value in settings.items() if name not in dropped}
        known = {name: value for name in OPTIONS if (value := settings.get(name)) is not None}
        return GenerationOptions(**{**known, **self.given(*OPTIONS)}, generate_kwargs={**left, **self.generate_kwargs})

    def given(self, *names: str) -> dict[str, str]:
        """Return those of the named options that are set."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Utterance:
    """One utterance as the model sees it.

    Attributes:
        waveform: The samples that the features were made from.
        features: (T, C) float32 spectrogram on the CPU, true frames only, time first, low frequencies first.
        inputs: The model's own inputs, a batch of one, on the model's device: what `Adapter.model_inputs` fills in.
        times: (T,) centre of every frame, in seconds.
        frequencies: (C,) centre of every mel bin, in Hz.
    """

    waveform: Waveform
    features: Tensor
    inputs: Mapping[str, Tensor]
    times: Tensor
    frequencies: Tensor

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.waveform.samples) / self.waveform.sampling_rate

    def moved(self, start_s: float) -> Utterance:
        """Return the utterance with times that are those of a recording in which it starts then."""
        return replace(self, times=(self.times.double() + start_s).float())


@dataclass(frozen=True)
class Target:
    """The output to explain.

    Attributes:
        prefix_ids: (P,) start and prompt tokens, which the model did not choose.
        token_ids: (K,) y_1 … y_K, the explained tokens, the end-of-sequence token included.
        complete: Whether the model ended the output itself; false where a length limit cut it.
        audio_at: How many tokens of the prefix come before the audio, where audio and text share one sequence (speech
            LLMs); None: the decoder reads the audio apart.
        instruction: Indices of the tokens of the prefix that are the user's instruction, where the model takes one.
    """

    prefix_ids: Tensor
    token_ids: Tensor
    complete: bool
    audio_at: int | None = None
    instruction: tuple[int, ...] = ()

    @property
    def context_ids(self) -> Tensor:
        """(J,) decoder inputs: the prefix, then y_1 … y_{K−1}."""
        return torch.cat([self.prefix_ids, self.token_ids[:-1]])

    @property
    def valid(self) -> Tensor:
        """(K, J) bool: decoder input j comes before token k."""
        decoder_inputs = torch.arange(len(self.context_ids), dtype=torch.int64, device="cpu")
        explained = torch.arange(len(self.token_ids), dtype=torch.int64, device="cpu")
        return decoder_inputs < len(self.prefix_ids) + explained[:, None]

"""What adapters and the engine exchange: an utterance, an output to explain, and generation settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from spes_hf.audio.load import Waveform
from spes_hf.errors import ConfigError

# generate() arguments that spes_hf sets itself, with what to do instead.
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

# Options of the output that have their own argument.
OPTIONS = ("language", "task", "tgt_lang", "prompt")

# What generate() returns, whatever generation config or generate_kwargs say; this does not change any token.
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
    """Options of the output that the user sets: language and task, named as in the family's ``generate()``.

    Attributes:
        language: Language of the speech (Whisper).
        task: "transcribe" or "translate" (Whisper).
        tgt_lang: Language of the text (SeamlessM4T, multilingual Speech2Text).
        generate_kwargs: Anything else for ``generate()``: beam search, length limits, ….
        prefix: Tokens that the output starts from, if ``generate()`` cannot know them, as in a window of a recording.
            None: ``generate()`` determines them.
        prompt: Instruction that accompanies the audio (speech LLMs); None: the family's own for transcription.

    Examples:
        >>> defaults = {"language": "de", "task": "translate", "num_beams": 5}
        >>> GenerationOptions(language="en").with_defaults(defaults)
        GenerationOptions(language='en', task='translate', ..., generate_kwargs={'num_beams': 5}, ...)
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
            raise ConfigError(f"generate_kwargs contains {name}, which explain() sets itself; {_RESERVED[name]}")
        for name in OPTIONS:
            if name in self.generate_kwargs:
                raise ConfigError(f"generate_kwargs contains {name}; pass it to explain() as {name}=… instead")

    def with_defaults(self, settings: Mapping[str, Any], text_given: bool = False) -> GenerationOptions:
        """Return these options, completed from the settings where they leave something open.

        Args:
            settings: Arguments of ``generate()``, including language and task.
            text_given: Whether a given text is explained, which has no timestamps.
        """
        lengths = {"max_length", "max_new_tokens"}
        dropped = {*OPTIONS, *(("return_timestamps",) if text_given else ())}
        dropped |= lengths if lengths & self.generate_kwargs.keys() else set()
        left = {name: value for name, value in settings.items() if name not in dropped}
        known = {name: value for name in OPTIONS if (value := settings.get(name)) is not None}
        return GenerationOptions(**{**known, **self.given(*OPTIONS)}, generate_kwargs={**left, **self.generate_kwargs})

    def given(self, *names: str) -> dict[str, str]:
        """Return the named options that are set."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Utterance:
    """One utterance as the model sees it.

    Attributes:
        waveform: The samples that the features were made from.
        features: (T, C) float32 spectrogram on the CPU, true frames only, time first, low frequencies first.
        inputs: The model's own inputs, a batch of one, on the model's device; `Adapter.model_inputs` fills them in.
        times: (T,) centre of every frame, in seconds.
        frequencies: (C,) centre of every mel bin, in Hz.

    Examples:
        >>> from spes_hf.audio.load import load_audio
        >>> utterance = get_adapter(model, processor).encode(load_audio(clip, 16_000))
        >>> utterance.features.shape == (len(utterance.times), len(utterance.frequencies))
        True
        >>> round(float(utterance.moved(60.0).times[0] - utterance.times[0]), 2)  # in a recording, a minute later
        60.0
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
        """Return the utterance with times relative to a recording in which it starts at ``start_s``."""
        return replace(self, times=(self.times.double() + start_s).float())


@dataclass(frozen=True)
class Target:
    """The output to explain.

    Attributes:
        prefix_ids: (P,) start and prompt tokens, which the model did not choose.
        token_ids: (K,) y_1 … y_K, the explained tokens, including the end-of-sequence token.
        complete: Whether the model ended the output itself; false if a length limit cut it.
        audio_at: Number of prefix tokens before the audio, if audio and text share one sequence (speech LLMs); None:
            the decoder reads the audio separately.
        instruction: Indices of the prefix tokens that are the user's instruction, if the model takes one.

    Examples:
        >>> target = Target(prefix_ids=torch.tensor([2]), token_ids=torch.tensor([7, 8, 2]), complete=True)
        >>> target.context_ids.tolist(), target.valid.int().tolist()
        ([2, 7, 8], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
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

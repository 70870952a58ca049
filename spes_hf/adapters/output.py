"""The output to explain: what a model writes for a waveform, or a given text, with the model ready for more passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spes_hf.adapters.base import Adapter
from spes_hf.adapters.types import GenerationOptions, Target, Utterance
from spes_hf.audio.load import Waveform
from spes_hf.runtime.batching import enough_memory
from spes_hf.runtime.locks import alone
from spes_hf.runtime.preserve import leave_unchanged


@dataclass(frozen=True)
class Output:
    """An utterance and its output.

    Attributes:
        utterance: The utterance as the model sees it.
        target: The text that the model wrote, or the given text.
        states: (1, S, D) the encoder's output if generation kept it; None for a given text.
    """

    utterance: Utterance
    target: Target
    states: Tensor | None


@contextmanager
def output_of(
    adapter: Adapter,
    waveform: Waveform,
    options: GenerationOptions,
    text: str | None,
    seed: int,
    precision: AbstractContextManager[Any] | None = None,
    prepare: Callable[[Utterance, torch.device], AbstractContextManager[Any]] | None = None,
) -> Iterator[Output]:
    """Yield the model's output and hold the model exclusively meanwhile; afterwards the model is as it was.

    Args:
        adapter: The model's adapter.
        waveform: The model's input.
        options: Generation settings.
        text: A text to explain instead of the model's own output.
        seed: Seed for random numbers.
        precision: Context in which the model runs meanwhile.
        prepare: Returns a context for work done in parallel, given the utterance and the model's device.

    Raises:
        AudioError: If the audio is too short or too long.
        ConfigError: If the text cannot be explained.
        OutOfMemoryError: If not even one copy fits.
    """
    with undisturbed(adapter, waveform.duration_s, seed):
        with alone():
            utterance = adapter.encode(waveform)
        prepared = nullcontext() if prepare is None else prepare(utterance, adapter.device)
        with prepared, nullcontext() if precision is None else precision:
            if text is None:
                yield Output(utterance, *adapter.generate_with_states(utterance, options))
            else:
                yield Output(utterance, adapter.encode_text(utterance, text, options), None)


@contextmanager
def undisturbed(adapter: Adapter, duration_s: float, seed: int) -> Iterator[None]:
    """Hold a model exclusively; afterwards it is as it was.

    Args:
        adapter: The model's adapter.
        duration_s: Length of the audio, for error messages.
        seed: Seed for random numbers.

    Raises:
        OutOfMemoryError: If not even one copy fits.
    """
    with (
        leave_unchanged(adapter.model, seed, adapter.device),
        enough_memory(f"model with audio of {duration_s:.1f} s"),
    ):
        yield

"""What a model writes for a waveform, or a text that is given, ready to be looked into."""

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
        utterance: As the model sees it.
        target: What the model wrote, or the text that was given.
        states: (1, S, D) the encoder's output, where generating left it; None for a given text.
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
    """Have the model write, and look into it while nobody else does; afterwards it is as it was.

    Args:
        adapter: Of the model.
        waveform: What it hears.
        options: How it generates.
        text: A text instead of what the model would write.
        seed: Where random numbers start.
        precision: Context in which the model runs meanwhile.
        prepare: Returns the context of what is worked out meanwhile, given the utterance and where the model is.

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
    """Have a model to oneself; afterwards it is as it was.

    Args:
        adapter: Of the model.
        duration_s: Of the audio, for errors.
        seed: Where random numbers start.

    Raises:
        OutOfMemoryError: If not even one copy fits.
    """
    with (
        leave_unchanged(adapter.model, seed, adapter.device),
        enough_memory(f"model with audio of {duration_s:.1f} s"),
    ):
        yield

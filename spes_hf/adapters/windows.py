"""Recordings that are longer than what a model reads at once: the windows that it went through, and what it wrote."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from spes_hf.adapters.types import GenerationOptions, Target, Utterance

Progress = Callable[[float], None]
"""Takes the seconds of a recording that are done."""


def unseen(seconds: float) -> None:
    """Take no notice of progress."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording and what was written for it, as the model's timestamps have it.

    Attributes:
        start_s: Where it starts in the recording, in seconds.
        end_s: Where it ends.
        first: Index of its first token among those of its window.
        stop: Index of the token after its last.
    """

    start_s: float
    end_s: float
    first: int
    stop: int


@dataclass(frozen=True)
class Window:
    """One pass of ``generate()`` over a stretch of a recording.

    Attributes:
        start: Index of the first frame that the model read, in the recording.
        frames: How many it read; what is missing to a whole window is padding.
        until: Index of the frame where the next window starts, or the recording ends.
        prefix_ids: What the output started from: start tokens, a prompt, text of earlier windows.
        token_ids: What the model wrote and kept, the end-of-sequence token included where it came to that.
        complete: False where a length limit cut the output.
        discarded: How many tokens it wrote after those: about sound that the next window reads again.
        segments: Its parts by timestamps.
        temperature: At which it was written; 0 for the likeliest tokens.
        attempts: How many temperatures were tried.
        skipped: Whether it was taken for silence, and nothing was kept.
        audio_at: How many tokens of the prefix come before the audio, as in `Target`.
        instruction: Which of them are the user's instruction, likewise.
    """

    start: int
    frames: int
    until: int
    prefix_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    complete: bool = True
    discarded: int = 0
    segments: tuple[Segment, ...] = ()
    temperature: float = 0.0
    attempts: int = 1
    skipped: bool = False
    audio_at: int | None = None
    instruction: tuple[int, ...] = ()

    @property
    def target(self) -> Target:
        """The output to explain."""
        prefix, tokens = (
            torch.tensor(ids, dtype=torch.int64, device="cpu") for ids in (self.prefix_ids, self.token_ids)
        )
        return Target(prefix, tokens, self.complete, self.audio_at, self.instruction)

    def to_dict(self) -> dict[str, Any]:
        """Return the window ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Window:
        """Return the window that `to_dict` wrote.

        Raises:
            KeyError: If a value is missing.
            TypeError: If a segment has other parts.
        """
        values = {"audio_at": None, "instruction": (), **values}  # recordings of before have neither
        found = {f.name: values[f.name] for f in fields(cls)}
        found |= {name: tuple(found[name]) for name in ("prefix_ids", "token_ids", "instruction")}
        return cls(**{**found, "segments": tuple(Segment(**segment) for segment in found["segments"])})


class LongForm(ABC):
    """How a model goes through one recording.

    Attributes:
        frame_s: Seconds from a frame to the next.
        frames: Frames of the recording.
        native: Whether the windows are those of the model's own ``generate()``.
    """

    frame_s: float
    frames: int
    native: bool

    @abstractmethod
    def write(
        self, options: GenerationOptions, until_s: float | None = None, progress: Progress = unseen
    ) -> list[Window]:
        """Have the model write, and return the windows that it went through.

        Args:
            options: How it generates.
            until_s: Where what is asked for ends, in seconds: windows that start later may be missing, or be other
                than without it. None: at the end.
            progress: Is called as it goes.
        """

    @abstractmethod
    def utterance(self, window: Window) -> Utterance:
        """Return a window as the model read it; its times are those of the recording."""

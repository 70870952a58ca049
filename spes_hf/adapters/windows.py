"""Recordings longer than a model reads at once: the windows that it processed, and what it wrote."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from spes_hf.adapters.types import GenerationOptions, Target, Utterance

Progress = Callable[[float], None]
"""Receives the number of seconds of a recording that are done."""


def unseen(seconds: float) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording and its text, according to the model's timestamps.

    Attributes:
        start_s: Where it starts in the recording, in seconds.
        end_s: Where it ends in the recording, in seconds.
        first: Index of its first token in its window.
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
        frames: Number of frames that it read; the rest of a whole window is padding.
        until: Index of the frame where the next window starts, or the recording ends.
        prefix_ids: Tokens that the output started from: start tokens, a prompt, text of earlier windows.
        token_ids: Tokens that the model wrote and kept, including the end-of-sequence token if it wrote one.
        complete: False if a length limit cut the output.
        discarded: Number of further tokens that it wrote, about sound that the next window reads again.
        segments: Its parts by timestamps.
        temperature: Sampling temperature; 0 for the likeliest tokens.
        attempts: Number of temperatures tried.
        skipped: Whether the window was classified as silence, and nothing was kept.
        audio_at: Number of prefix tokens before the audio, as in `Target`.
        instruction: Indices of the prefix tokens that are the user's instruction, as in `Target`.
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
            TypeError: If a segment has other fields.
        """
        values = {"audio_at": None, "instruction": (), **values}  # recordings of older versions have neither
        found = {f.name: values[f.name] for f in fields(cls)}
        found |= {name: tuple(found[name]) for name in ("prefix_ids", "token_ids", "instruction")}
        return cls(**{**found, "segments": tuple(Segment(**segment) for segment in found["segments"])})


class LongForm(ABC):
    """How a model processes one recording.

    Attributes:
        frame_s: Seconds from one frame to the next.
        frames: Number of frames of the recording.
        native: Whether the windows are those of the model's own ``generate()``.
    """

    frame_s: float
    frames: int
    native: bool

    @abstractmethod
    def write(
        self, options: GenerationOptions, until_s: float | None = None, progress: Progress = unseen
    ) -> list[Window]:
        """Generate the output, and return the windows that the model processed.

        Args:
            options: Generation settings.
            until_s: End of the requested part, in seconds: windows that start later may be missing or differ. None: the
                end of the recording.
            progress: Called during the work.
        """

    @abstractmethod
    def utterance(self, window: Window) -> Utterance:
        """Return a window as the model read it, with times relative to the recording."""

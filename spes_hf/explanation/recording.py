"""The result for a recording: one explanation for every window that the model processed, on one clock."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from spes_hf.bits import Verdict, verdict_of
from spes_hf.errors import ExplanationFormatError
from spes_hf.explanation.maps import Reliability
from spes_hf.explanation.recording_columns import TOP, Columns, HeardSegment
from spes_hf.explanation.recording_plan import (
    AUDIO,
    DESCRIPTION,
    RecordedWindow,
    RecordingPlan,
    RecordingSegment,
    read_plan,
)
from spes_hf.explanation.result import Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Recording(Sequence[Explanation]):
    """Why the model wrote each token for a recording of any length: a sequence of explanations, window by window.

    Made by `explain` for audio that is longer than the model's window. Indexing loads the explanation of a window from
    disk; only one is in memory at a time. Times are those of the recording. A window has no explanation if the model
    wrote nothing for it, or the caller asked for nothing in it; `windows` lists all windows.

    These join the windows, with one entry for each token of all explanations: `tokens`, `token_probabilities`,
    `sound_bits`, `text_bits`, `reliability`, `time_centroids`.

    Args:
        folder: The folder that `save`, or a job, wrote.
        over_words: Whether explanations are over words.
        temporary: The temporary folder to remove with the recording; None if the folder is to stay.

    Raises:
        ExplanationFormatError: If the folder holds no recording.

    Examples:
        >>> recording = explain(model, processor, talk, config=EnergyConfig(), segment="pauses")
        >>> [part.text for part in recording][:2]
        ['Tom sells a small picture.', 'At half past eight Tom needs the beautiful house.']
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        over_words: bool = False,
        temporary: tempfile.TemporaryDirectory[str] | None = None,
    ):
        self.folder = Path(folder)
        self.over_words = over_words
        self._temporary = temporary
        self.plan: RecordingPlan = read_plan(self.folder)
        self._explained = [window for window in self.plan.windows if window.is_there(self.folder)]
        self._latest: tuple[int, Explanation] | None = None

    # A sequence of explanations --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of windows that are explained."""
        return len(self._explained)

    @overload
    def __getitem__(self, index: int) -> Explanation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Explanation]: ...

    def __getitem__(self, index: int | slice) -> Explanation | list[Explanation]:
        """Return the explanation of a window, or a list of them.

        Raises:
            IndexError: If the index is out of range.
            ExplanationFormatError: If it is damaged.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index is {index}, but {len(self)} windows are explained; allowed: 0 … {len(self) - 1}")
        index %= len(self)
        if self._latest is None or self._latest[0] != index:
            window = self._explained[index]
            found = Explanation.load(window.folder(self.folder))
            own = window.written
            if (found.written_ids, found.origin.prefix_ids or ()) != (own.token_ids, own.prefix_ids):
                raise ExplanationFormatError(
                    f"path {str(window.folder(self.folder))!r} holds the explanation of another recording; remove that "
                    "folder and explain again"
                )
            self._latest = index, found.words() if self.over_words else found
        return self._latest[1]

    def __iter__(self) -> Iterator[Explanation]:
        """Yield the explanations in order of time, with one in memory at a time."""
        return (self[i] for i in range(len(self)))

    # The whole -------------------------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """What the model wrote for the whole recording, or for the requested part of it."""
        return self.plan.text

    @property
    def duration_s(self) -> float:
        """Length of the recording in seconds."""
        return self.plan.duration_s

    @property
    def complete(self) -> bool:
        """Whether all requested windows are explained."""
        return all(window.is_there(self.folder) for window in self.plan.windows if window.rows != ())

    @property
    def audio_file(self) -> Path:
        """The recording as FLAC, mono at the processor's rate."""
        return self.folder / AUDIO

    @property
    def reached_length_limit(self) -> bool:
        """Whether a length limit cut the text of a window."""
        return any(window.reached_length_limit for window in self.windows)

    @property
    def windows(self) -> tuple[RecordedWindow, ...]:
        """Every window that the model processed, including those without an explanation."""
        return self.plan.windows

    @property
    def segments(self) -> list[RecordingSegment]:
        """The text, cut by the model's timestamps, including text outside the requested part."""
        return [segment for window in self.plan.windows for segment in window.segments]

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything needed to make this recording again; each window has a provenance of its own as well."""
        return self.plan.provenance

    @cached_property
    def _columns(self) -> list[Columns]:
        """The small data of every window, read in a single pass."""
        return [Columns.of(explanation) for explanation in self]

    @property
    def tokens(self) -> list[str]:
        """Text of every explained token (or word)."""
        return [token for columns in self._columns for token in columns.tokens]

    @property
    def token_probabilities(self) -> Tensor:
        """(K,) probability that the model gave each token; for words, the product over their tokens."""
        return self._joined("probabilities")

    @property
    def sound_bits(self) -> Tensor:
        """(K,) bits of evidence from the sound of the token's window, as `Explanation.sound_bits`."""
        return self._joined("sound_bits")

    @property
    def text_bits(self) -> Tensor:
        """(K,) bits of evidence from the text that the model wrote in the window before the token."""
        return self._joined("text_bits")

    @property
    def reliability(self) -> Reliability:
        """Split-half reliability of every token's map; for the sentence, the mean over windows."""
        sentences = [columns.sentence for columns in self._columns if not math.isnan(columns.sentence)]
        mean = sum(sentences) / len(sentences) if sentences else math.nan
        return Reliability(self._joined("reliability"), mean)

    @property
    def bits_per_token(self) -> float:
        """Mean bits from the sound over all text tokens in explained windows; NaN if there are none."""
        bits = [value for columns in self._columns for value in columns.written_bits.values()]
        return sum(bits) / len(bits) if bits else math.nan

    @property
    def verdict(self) -> Verdict:
        """Whether the model heard the recording's text as a whole or made it up; `heard` says it for each segment."""
        fitted = all(columns.fitted for columns in self._columns)
        return verdict_of(self.text, self.bits_per_token, fitted=fitted)

    @cached_property
    def heard(self) -> list[HeardSegment]:
        """The segments of explained windows with their bits from the sound; one with few bits was probably made up."""
        found = []
        for index, window in enumerate(self._explained):
            columns = self._columns[index]
            bits = columns.written_bits
            for segment in window.segments:
                own = [bits[k] for k in range(segment.first, segment.stop) if k in bits]
                mean = sum(own) / len(own) if own else math.nan
                found.append(HeardSegment(segment.start_s, segment.end_s, segment.text, mean, columns.fitted))
        return found

    @property
    def made_up(self) -> list[HeardSegment]:
        """The segments that the model probably made up."""
        return [segment for segment in self.heard if segment.verdict == "made up"]

    @property
    def times(self) -> Tensor:
        """(T,) time of every row of `sentence_saliency`, in seconds."""
        return torch.cat([self._own(i, explanation.times) for i, explanation in enumerate(self)] or [_none()])

    @property
    def sentence_saliency(self) -> Tensor:
        """(T, C) saliency of the spectrogram for the text of each window, in [0, 1], window after window.

        Where two windows overlap, the later one counts, because it writes the text there. Computed again on every
        access, with one window in memory. Stretches without an explanation are left out; `times` shows which are there.
        """
        return torch.cat([self._own(i, each.sentence_saliency) for i, each in enumerate(self)] or [_none()[:, None]])

    def time_centroids(self, top: float = TOP) -> Tensor:
        """Return the mean time of the most salient features of every token (or word), (K,) in seconds.

        Args:
            top: Share of the window's features that count, as for `Explanation.time_centroids`. Smaller by default,
                since a word fills less of a 30 s window than of a clip.
        """
        if top == TOP:
            return self._centroids
        return self._centroids_of(top)

    @cached_property
    def _centroids(self) -> Tensor:
        return self._centroids_of(TOP)

    def _centroids_of(self, top: float) -> Tensor:
        return torch.cat([explanation.time_centroids(top) for explanation in self] or [_none()])

    def words(self) -> Recording:
        """Return the recording over words, as `Explanation.words`."""
        return self if self.over_words else Recording(self.folder, over_words=True, temporary=self._temporary)

    def at(self, seconds: float) -> Explanation:
        """Return the explanation of the window that covers this time.

        Raises:
            ValueError: If nothing is explained there.
        """
        for index, window in enumerate(self._explained):
            if window.start_s <= seconds < window.until_s:
                return self[index]
        raise ValueError(f"seconds is {seconds!r}, where nothing is explained; see windows for what is")

    def _own(self, index: int, frames: Tensor) -> Tensor:
        """Return the frames of a window that no later window reads."""
        window = self._explained[index]
        count = round((window.until_s - window.start_s) * len(frames) / (window.end_s - window.start_s))
        return frames[: max(1, count)]

    def _joined(self, name: Literal["probabilities", "sound_bits", "text_bits", "reliability"]) -> Tensor:
        return torch.cat([getattr(columns, name) for columns in self._columns] or [_none()])

    # Out of memory ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the recording to a folder, and return the folder.

        Raises:
            ExplanationFormatError: If ``path`` is a file, or a folder with other things.
        """
        path = Path(path)
        if path.exists() and self.folder.exists() and path.samefile(self.folder):
            return path
        there = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        if path.is_file() or (DESCRIPTION not in there and there - {AUDIO, "windows"}):
            raise ExplanationFormatError(f"path {str(path)!r} already holds something else; pass a new folder")
        (path / DESCRIPTION).unlink(missing_ok=True)  # written last: an interrupted save leaves none
        if path.is_dir():
            shutil.rmtree(path / "windows", ignore_errors=True)
        for window in self._explained:
            source = window.folder(self.folder)
            shutil.copytree(source, window.folder(path), dirs_exist_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        if self.audio_file.is_file():
            shutil.copyfile(self.audio_file, path / AUDIO)
        return self.plan.write(path)

    @staticmethod
    def load(path: str | Path) -> Recording:
        """Return the recording that `save`, or ``explain(…, folder=path)``, wrote; maps are read when asked for.

        Raises:
            ExplanationFormatError: If there is none, or it is damaged.
        """
        return Recording(path)

    def to_row(self) -> dict[str, Any]:
        """Return the whole recording as the entries of one row of a table, as `Explanation.to_row`."""
        from spes_hf.explanation.recording_rows import to_row

        return to_row(self)

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Recording:
        """Return the recording of a row that `to_row`, or a corpus job, made.

        Raises:
            ExplanationFormatError: If the row holds an error, or no recording.
        """
        from spes_hf.explanation.recording_rows import from_row

        return from_row(row)

    def to_html(self, path: str | Path) -> Path:
        """Write an interactive page, and return its path; maps lie in a folder next to it."""
        from spes_hf.viz.recording_page import write_recording

        return write_recording(self, Path(path))

    def plot(self) -> tuple[Figure, Sequence[Axes]]:
        """Return a figure of the whole recording: loudness over time, bits of every segment, and texts that fit."""
        from spes_hf.viz.recording_figure import plot_recording

        return plot_recording(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Recording:
        """Return a recording of the same folder; a temporary folder lives as long as either of them."""
        return Recording(self.folder, over_words=self.over_words, temporary=self._temporary)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs.

        Raises:
            ValueError: If the recording is in a temporary folder.
        """
        if self._temporary is not None:
            raise ValueError("recording lies in a temporary folder, which other processes may lose; save() it first")
        return {**self.__dict__, "_latest": None}

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 60 else self.text[:59] + "…"
        kind = "words" if self.over_words else "tokens"
        return (
            f"Recording({shown!r}, {self.duration_s:.0f} s, {len(self.windows)} windows, {len(self)} explained over "
            f"{kind}, {str(self.folder)!r})"
        )

    def _repr_html_(self) -> str:
        from spes_hf.viz.recording_figure import recording_html

        return recording_html(self)


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.float32, device="cpu")

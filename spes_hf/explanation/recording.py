"""The result for a recording: one explanation for every window that the model went through, on one clock."""

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
    disk; one is in memory at a time. Their times are those of the recording. Windows for which nothing was written, or
    nothing was asked for, have no explanation; `windows` has them all.

    What joins the windows has as many entries as all explanations together: `tokens`, `token_probabilities`,
    `sound_bits`, `text_bits`, `reliability`, `time_centroids`.

    Args:
        folder: Where `save`, or a job, wrote it.
        over_words: Whether explanations are over words.
        temporary: What removes the folder in the end; None: nobody does.

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
            raise IndexError(f"index is {index}, but {len(self)} windows are explained: 0 … {len(self) - 1}")
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
        """Yield the explanations in the order of time, one in memory at a time."""
        return (self[i] for i in range(len(self)))

    # The whole -------------------------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """What the model wrote for the whole recording, or for the part of it that was asked for."""
        return self.plan.text

    @property
    def duration_s(self) -> float:
        """Length of the recording in seconds."""
        return self.plan.duration_s

    @property
    def complete(self) -> bool:
        """Whether all windows that were asked for are explained."""
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
        """Every window that the model went through, also those without an explanation."""
        return self.plan.windows

    @property
    def segments(self) -> list[RecordingSegment]:
        """What was written, cut by the model's timestamps; also outside of the part that was asked for."""
        return [segment for window in self.plan.windows for segment in window.segments]

    @property
    def provenance(self) -> dict[str, Any]:
        """What it takes to make this recording again; each window has its own as well."""
        return self.plan.provenance

    @cached_property
    def _columns(self) -> list[Columns]:
        """What is small of every window, read in one go."""
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
        """(K,) bits of evidence from the sound, as `Explanation.sound_bits`: from that of the token's window."""
        return self._joined("sound_bits")

    @property
    def text_bits(self) -> Tensor:
        """(K,) the same for the text that the model wrote in the window before the token."""
        return self._joined("text_bits")

    @property
    def reliability(self) -> Reliability:
        """Split-half reliability of every token's map; for the sentence, the mean over windows."""
        sentences = [columns.sentence for columns in self._columns if not math.isnan(columns.sentence)]
        mean = sum(sentences) / len(sentences) if sentences else math.nan
        return Reliability(self._joined("reliability"), mean)

    @property
    def bits_per_token(self) -> float:
        """Mean bits from the sound of all tokens of the text in explained windows; NaN where there is none."""
        bits = [value for columns in self._columns for value in columns.written_bits.values()]
        return sum(bits) / len(bits) if bits else math.nan

    @property
    def verdict(self) -> Verdict:
        """Whether the whole was heard or made up; see `heard` for its segments."""
        return verdict_of(self.text, self.bits_per_token)

    @cached_property
    def heard(self) -> list[HeardSegment]:
        """The segments of explained windows with their bits from the sound: with few, one was probably made up."""
        found = []
        for index, window in enumerate(self._explained):
            bits, places = self._columns[index].written_bits, window.segments
            for segment in places:
                own = [bits[k] for k in range(segment.first, segment.stop) if k in bits]
                mean = sum(own) / len(own) if own else math.nan
                found.append(HeardSegment(segment.start_s, segment.end_s, segment.text, mean))
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

        What two windows read is that of the later one, which writes its text. Worked out anew each time, with one
        window in memory; stretches without an explanation are left out, `times` says which are there.
        """
        return torch.cat([self._own(i, each.sentence_saliency) for i, each in enumerate(self)] or [_none()[:, None]])

    def time_centroids(self, top: float = TOP) -> Tensor:
        """Return the mean time of the most salient features of every token (or word), (K,) in seconds.

        Args:
            top: Share of the features of the window that count, as for `Explanation.time_centroids`. A word fills less
                of a window of 30 s than of a clip.
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
        """Return the explanation of the window that explains what is said then.

        Raises:
            ValueError: If there is none.
        """
        for index, window in enumerate(self._explained):
            if window.start_s <= seconds < window.until_s:
                return self[index]
        raise ValueError(f"seconds is {seconds!r}, where nothing is explained; windows has what there is")

    def _own(self, index: int, frames: Tensor) -> Tensor:
        """Return those of a window's frames that no later window reads."""
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
            raise ExplanationFormatError(f"path {str(path)!r} is taken by something else; pass a new folder")
        (path / DESCRIPTION).unlink(missing_ok=True)  # first, and written last: interrupted, there is no recording
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
        """Return the recording as the entries of a row of a table, as `Explanation.to_row`; one row for all of it."""
        from spes_hf.explanation.recording_rows import to_row

        return to_row(self)

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Recording:
        """Return the recording of a row that `to_row`, or a corpus job, made.

        Raises:
            ExplanationFormatError: If the row carries an error, or holds no recording.
        """
        from spes_hf.explanation.recording_rows import from_row

        return from_row(row)

    def to_html(self, path: str | Path) -> Path:
        """Write a page to look around in, and return its path; maps lie in a folder next to it."""
        from spes_hf.viz.recording_page import write_recording

        return write_recording(self, Path(path))

    def plot(self) -> tuple[Figure, Sequence[Axes]]:
        """Return a figure of the whole: loudness over time, bits of every segment, and the texts where they fit."""
        from spes_hf.viz.recording_figure import plot_recording

        return plot_recording(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Recording:
        """Return a recording of the same folder, which lives as long as either."""
        return Recording(self.folder, over_words=self.over_words, temporary=self._temporary)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs.

        Raises:
            ValueError: If the recording is in a temporary folder.
        """
        if self._temporary is not None:
            raise ValueError("recording lies in a temporary folder, which other processes lose; save() it first")
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

"""Everything about a recording except its explanations: the windows, the text, and the request."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spes_hf.adapters.windows import Segment, Window
from spes_hf.errors import ExplanationFormatError
from spes_hf.files import whole_file

FORMAT = "spes_hf.recording"
FORMAT_VERSION = 1
DESCRIPTION, AUDIO = "recording.json", "audio.flac"


@dataclass(frozen=True)
class RecordingSegment(Segment):
    """A stretch of a recording between the model's timestamps, and the text written for it.

    Attributes:
        text: Text that the model wrote for it.

    Examples:
        >>> segment = RecordingSegment(start_s=0.0, end_s=1.5, first=0, stop=3, text=" Hello there.")
        >>> segment.end_s, segment.text
        (1.5, ' Hello there.')
    """

    text: str


@dataclass(frozen=True)
class RecordedWindow:
    """A window of a recording.

    Attributes:
        index: Its place among the windows.
        start_s: Where it starts in the recording, in seconds.
        end_s: Where the audio that the model read ends, in seconds.
        until_s: Where the next window starts, or the recording ends, in seconds.
        text: What the model wrote and kept.
        segments: The text by the model's timestamps.
        rows: Which tokens are to be explained; None: all; (): none.
        written: What ``generate()`` read, started from and wrote.

    Examples:
        >>> recording = explain(model, processor, talk, config=EnergyConfig(), segment="pauses")
        >>> window = recording.plan.windows[0]
        >>> window.text, window.skipped, window.is_there(recording.folder)
        ('Tom sells a small picture.', False, True)
    """

    index: int
    start_s: float
    end_s: float
    until_s: float
    text: str
    segments: tuple[RecordingSegment, ...]
    rows: tuple[int, ...] | None
    written: Window

    @property
    def skipped(self) -> bool:
        """Whether the model skipped it as silence."""
        return self.written.skipped

    @property
    def reached_length_limit(self) -> bool:
        """Whether a length limit cut the text."""
        return not self.written.complete

    def folder(self, recording: Path) -> Path:
        """Return the folder of its explanation, in the folder of a recording."""
        return recording / "windows" / f"{self.index:05d}"

    def is_there(self, recording: Path) -> bool:
        """Return whether its explanation has been written."""
        return (self.folder(recording) / "explanation.json").is_file()


@dataclass(frozen=True)
class RecordingPlan:
    """A recording without its explanations.

    Attributes:
        text: What the model wrote, or the requested part of it.
        duration_s: Length in seconds.
        frame_s: Seconds from one frame of a window to the next.
        windows: All windows.
        identity: The request; only a call with the same request can continue.
        provenance: Audio, settings, and where the windows come from.

    Examples:
        >>> plan = explain(model, processor, talk, config=EnergyConfig(), segment="pauses").plan
        >>> read_plan(plan.write(folder / "plan")) == plan
        True
    """

    text: str
    duration_s: float
    frame_s: float
    windows: tuple[RecordedWindow, ...]
    identity: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the plan to a folder atomically, and return the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / DESCRIPTION) as file:
            file.write(self.to_bytes())
        return folder

    def to_bytes(self) -> bytes:
        """Return the plan as the JSON that `read_plan` reads."""
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(values, indent=1, allow_nan=False).encode("ascii")


def read_plan(folder: Path) -> RecordingPlan:
    """Return the plan in a folder.

    Raises:
        ExplanationFormatError: If there is none, it is damaged, or a later version wrote it.

    Examples:
        >>> recording = explain(model, processor, talk, config=EnergyConfig(), segment="pauses")
        >>> [window.index for window in read_plan(recording.folder).windows]
        [0, 1, 2]
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ExplanationFormatError(
            f"path {str(folder)!r} holds no {DESCRIPTION}; pass a folder that Recording.save() wrote"
        )
    try:
        values = json.loads(path.read_bytes())
        if values.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        version = values.pop("format_version")
        if version != FORMAT_VERSION:
            raise ExplanationFormatError(
                f"path {str(folder)!r} has format version {version!r}; this version of spes_hf reads {FORMAT_VERSION}: "
                "install the version that wrote it, or explain again"
            )
        windows = []
        for each in values.pop("windows"):
            segments, rows = tuple(RecordingSegment(**segment) for segment in each.pop("segments")), each.pop("rows")
            written, rows = Window.from_dict(each.pop("written")), None if rows is None else tuple(map(int, rows))
            windows.append(RecordedWindow(**each, segments=segments, rows=rows, written=written))
        return RecordingPlan(**values, windows=tuple(windows))
    except ExplanationFormatError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise ExplanationFormatError(
            f"path {str(folder)!r} is damaged ({type(error).__name__}: {error}); explain again, or restore the folder"
        ) from error

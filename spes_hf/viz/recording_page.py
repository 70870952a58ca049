"""A page for a recording: an overview strip, the transcript, and for every word the page of its window."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from tqdm.auto import tqdm

from spes_hf.bits import NOT_HEARD_BITS, is_fitted
from spes_hf.explanation.recording import HeardSegment
from spes_hf.explanation.recording_plan import RecordedWindow, RecordingSegment
from spes_hf.explanation.stretches import stretches_in_order
from spes_hf.text import clock, join_pieces, word_groups
from spes_hf.viz import report, scale
from spes_hf.viz.timeline import FULL_BITS, counted, loudness, summary, word_starts

if TYPE_CHECKING:
    from spes_hf.explanation import Explanation
    from spes_hf.explanation.recording import Recording


class _Word(NamedTuple):
    """A word of a window: its text, the index of its first token in the output, and its row if it is explained."""

    text: str
    first: int
    row: int | None


def write_recording(recording: Recording, path: Path) -> Path:
    """Write the page, and a folder next to it with the sound and a page for every explained window; return its path.

    The folder has the page's name with ``_files``. Keep both together; they open from disk without a server.
    ``#word=5`` at the end of the page's address opens it at ``recording.words().tokens[5]``.

    Args:
        recording: A recording over tokens or words.
        path: File to write; missing parent folders are created. Pages from an earlier call in the folder are deleted.
    """
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9]*.html"):
        old.unlink()
    sound = folder / recording.audio_file.name
    if recording.audio_file.is_file():
        shutil.copyfile(recording.audio_file, sound)
    else:
        sound.unlink(missing_ok=True)
    pages = _Pages(folder)
    explained = iter(recording.words())
    for window in tqdm(recording.windows, desc="pages of windows", unit="window", delay=2, leave=False):
        pages.add(window, next(explained) if window.is_there(recording.folder) else None)
    styles, scripts = ["report.css", "recording.css"], ["page.js", "recording_strip.js", "recording.js"]
    data = {**page_data(recording, pages), "folder": quote(folder.name), "sound": quote(sound.name)}
    if not sound.is_file():
        data["sound"] = None
    path.write_text(
        report.filled("recording.html", styles, scripts, recording.text.strip(), data, folder=True), encoding="utf-8"
    )
    return path


class _Pages:
    """What a recording's page shows of its windows, collected while writing their pages, so each is read only once.

    Attributes:
        words: For every explained word, its text, bits and start time.
        segments: For every segment, its times, bits, verdict, window, and parts: words by index, other text.
        heard: The same segments in the form of `Recording.heard`.
        windows: For every window, its times, its first word and its page.
        model: The model, from the provenance.
        cut: Number of windows that reached a length limit.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.words: dict[str, list[Any]] = {"text": [], "bits": [], "from": []}
        self.segments: list[dict[str, Any]] = []
        self.heard: list[HeardSegment] = []
        self.windows: list[dict[str, Any]] = []
        self.model: Mapping[str, Any] = {}
        self.cut = 0

    def add(self, window: RecordedWindow, explanation: Explanation | None) -> None:
        """Write a window's page, and collect what the recording's page shows of it.

        Args:
            window: The next window.
            explanation: Its explanation over words; None: there is none.
        """
        name: str | None = None
        words: list[_Word] = []
        bits: list[float] = []
        token_bits: dict[int, float] = {}
        timing: _Timing | None = None
        if explanation is not None:
            name = f"{window.index:05d}.html"
            (self.folder / name).write_text(report.page(explanation, embeddable=True), encoding="utf-8")
            words, token_bits = _words(explanation), explanation.written_bits
            bits, timing = explanation.sound_bits.tolist(), _Timing(explanation)
            self.model = self.model or explanation.origin.model
        fitted = is_fitted(self.model.get("type"))
        self.cut += window.reached_length_limit
        first = len(self.words["text"])
        whole = RecordingSegment(window.start_s, window.until_s, 0, 1 << 31, window.text)
        segments = window.segments or ((whole,) if window.text.strip() else ())
        for place, segment in enumerate(segments):
            # Every explained word gets a place: words between segments go with the segment before.
            low = segment.first if place else 0
            high = segments[place + 1].first if place + 1 < len(segments) else math.inf
            own = [
                word
                for word in words
                if segment.first <= word.first < segment.stop or (word.row is not None and low <= word.first < high)
            ]
            heard = [b for k, b in token_bits.items() if segment.first <= k < segment.stop]
            mean = sum(heard) / len(heard) if heard else math.nan
            parts = [scale.settled(word.text) if word.row is None else first + word.row for word in own]
            rows = [word.row for word in own if word.row is not None]
            begins = timing.starts(rows, segment.start_s, segment.end_s) if timing is not None else []
            self.words["text"] += [_shown(word.text) for word in own if word.row is not None]
            self.words["bits"] += [round(bits[row], 2) for row in rows]
            self.words["from"] += [round(begin, 2) for begin in begins]
            self.heard.append(HeardSegment(segment.start_s, segment.end_s, segment.text, mean, fitted))
            self.segments.append(
                {
                    "start": round(segment.start_s, 2),
                    "end": round(segment.end_s, 2),
                    "bits": round(mean, 2),
                    "verdict": self.heard[-1].verdict,
                    "window": len(self.windows),
                    "parts": parts if rows else [scale.settled(segment.text.strip())],
                }
            )
        silent = window.skipped or not window.text.strip()
        state = "silence" if silent else "explained" if explanation is not None else "unexplained"
        self.windows.append(
            {"start": round(window.start_s, 2), "until": round(window.until_s, 2), "state": state}
            | {"first": first, "count": len(self.words["text"]) - first, "page": name}
        )


def page_data(recording: Recording, pages: _Pages) -> dict[str, Any]:
    """Return all data that the page shows, except the path of its folder.

    Args:
        recording: A recording over tokens or words.
        pages: The data of all windows of the recording.
    """
    audio = recording.provenance.get("audio")
    notes = audio.get("notes", ()) if isinstance(audio, Mapping) else ()
    return {
        "duration": recording.duration_s,
        "clock": clock(recording.duration_s),
        "full_bits": FULL_BITS,
        "not_heard_bits": NOT_HEARD_BITS,
        "loudness": [round(100 * value) for value in loudness(recording.audio_file).tolist()],
        "words": pages.words,
        "segments": pages.segments,
        "windows": pages.windows,
        "summary": summary(pages.heard),
        "warnings": _warnings(recording, pages),
        "notes": [f"Audio: {scale.settled(str(note))}" for note in notes],
        "provenance": report.plain({"model": pages.model, **recording.provenance}),
    }


def _warnings(recording: Recording, pages: _Pages) -> list[str]:
    warnings = []
    if not recording.complete:
        warnings.append("Not all requested windows are explained: the run did not finish.")
    if pages.cut:
        one = pages.cut == 1
        warnings.append(
            f"In {counted(pages.cut, 'window')}, a length limit cut {'the text' if one else 'the texts'} before the "
            "model had finished."
        )
    if not recording.audio_file.is_file():
        warnings.append("The recording's sound is missing: each window plays its own.")
    return warnings


def _words(explanation: Explanation) -> list[_Word]:
    """Return all words that the model wrote in a window, in order.

    Args:
        explanation: An explanation over words.
    """
    part, found, rows = explanation.part, [], 0
    if part is None:
        groups = explanation.groups or ()
        return [_Word(text, groups[row][0], row) for row, text in enumerate(explanation.tokens)]
    explained = set(part.rows)
    for group in word_groups(part.pieces, part.special):
        own = [k for k in group if k in explained]
        text = join_pieces([part.pieces[k] for k in group])
        found.append(_Word(text, group[0], rows if own else None))
        rows += bool(own)
    return found


class _Timing:
    """When the words of a window are heard, according to their maps.

    Args:
        explanation: An explanation over words.
    """

    def __init__(self, explanation: Explanation):
        self.times, self.words = explanation.times, explanation.tokens
        self.profiles = [explanation.evidence(w).clamp_min(0).sum(1).double().numpy() for w in range(len(explanation))]
        self.centroids = explanation.time_centroids().tolist()

    def starts(self, rows: Sequence[int], start_s: float, end_s: float) -> list[float]:
        """Return when each word of a segment begins, in order and within the segment, in seconds.

        Cuts the segment where the maps of its words separate, or by the centres of the maps if these are not in order.
        A punctuation mark begins where the word before it ends.

        Args:
            rows: Rows of the words.
            start_s: Start of the segment, in seconds.
            end_s: End of the segment, in seconds.
        """
        spoken = [row for row in rows if any(c.isalnum() for c in self.words[row])]
        inside = ((self.times >= start_s) & (self.times < end_s)).nonzero().flatten().tolist()
        cut = None
        if spoken and inside:
            place = slice(inside[0], inside[-1] + 1)
            cut = stretches_in_order({row: self.profiles[row][place] for row in spoken}, self.times[place])
        if cut is not None:
            begins = [max(start_s, cut[row][0]) for row in spoken]
            end = min(end_s, cut[spoken[-1]][1])
        else:
            begins, end = word_starts([self.centroids[row] for row in spoken], start_s, end_s), end_s
        following, found = end, []
        for row in reversed(rows):
            if spoken and row == spoken[-1]:
                following = begins.pop()
                spoken.pop()
            found.append(following)
        return found[::-1]


def _shown(text: str) -> str:
    """Return a word in the form shown on the page, with the space before it, if there is one."""
    return " " * text[:1].isspace() + scale.shown(text, 200)

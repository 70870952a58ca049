"""Audio files, decoded with soundfile if it can read them and with `codecs` otherwise; truncated files are detected."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from spes_hf.audio.codecs import MAX_SAMPLES, Decoded, decode_container, too_long
from spes_hf.errors import AudioError

SEGMENT_TOLERANCE_S = 0.1
_BLOCK, _LARGE_BLOCK = 1 << 10, 1 << 18
_MAX_OGG_PAGE = 65_307
# Programs that do not know the length (pipes, live recordings) write sizes like this one.
_UNKNOWN_SIZE = 0x7FFF0000
_FAILURES = (soundfile.SoundFileError, OSError, TypeError, ValueError)


def decode(source: Path | bytes, what: str, stream: int | None = None) -> Decoded:
    """Return all samples of an audio file.

    Args:
        source: A local file, or its content.
        what: Name of the source in error messages.
        stream: Index of the stream, for containers with several; None: the best.

    Raises:
        AudioError: If it cannot be decoded.
    """
    if stream:  # the formats that soundfile reads have only one stream
        return decode_container(source, what, stream)
    try:
        with soundfile.SoundFile(_opened(source)) as file:
            return _whole(file, source, what)
    except AudioError:  # refused on purpose, not because a decoder is missing
        raise
    except _FAILURES as error:
        return _otherwise(source, what, error, stream)


def decode_segment(
    source: Path | bytes, what: str, offset_s: Any, duration_s: Any, stream: int | None = None
) -> Decoded:
    """Return a segment of a recording; the rest is not read if soundfile supports the format.

    Raises:
        AudioError: If it cannot be decoded, or the segment does not lie within the recording.
    """
    offset_s, duration_s = check_seconds(offset_s, "offset_s"), check_seconds(duration_s, "duration_s")
    if offset_s < 0:
        raise AudioError(f"offset_s={offset_s} is negative; give seconds from the start of the file, 0 or more.")
    if duration_s <= 0:
        raise AudioError(f"duration_s={duration_s} leaves nothing to read; give a duration above 0 s.")
    try:
        if stream:
            raise ValueError(f"stream_index={stream}")
        file = soundfile.SoundFile(_opened(source))
    except _FAILURES as error:
        whole = _otherwise(source, what, error, stream, until_s=offset_s + duration_s + 1)
        start, stop, notes = segment_bounds(what, len(whole.samples), whole.rate, offset_s, duration_s, whole.alerts)
        return Decoded(whole.samples[start:stop], whole.rate, (*whole.notes, *notes), whole.alerts)
    with file:
        rate = file.samplerate
        alerts = _what_is_missing(file, source, file.frames, _promised(file, source))
        start, stop, notes = segment_bounds(what, file.frames, rate, offset_s, duration_s, alerts)
        try:
            file.seek(start)
            samples = file.read(stop - start, dtype="float32", always_2d=True)
        except _FAILURES as error:
            raise undecodable(what, error) from error
    if len(samples) < stop - start:
        raise AudioError(
            f"{what} is truncated: only {len(samples)} of the {stop - start} samples of the segment at "
            f"offset_s={offset_s} could be read. Download or copy the file again."
        )
    return Decoded(samples, rate, notes, alerts)


class Blocks:
    """A file that soundfile reads block by block; afterwards, ``alerts`` lists the problems found.

    Attributes:
        rate: Samples per second.
        channels: Number of channels.
        alerts: Says that the file is truncated; set once all blocks have been read.

    Args:
        path: The file.
        what: Name of the file in error messages.

    Raises:
        AudioError: If the file is too long to read.
    """

    def __init__(self, path: Path, what: str):
        self.path, self.what = path, what
        with soundfile.SoundFile(path) as file:
            self.rate, self.channels = file.samplerate, file.channels
            self.promised = _promised(file, path)
            if file.frames * file.channels > MAX_SAMPLES:
                raise too_long(what)
        self.alerts: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield blocks of (N, channels) float32, a few seconds each at most.

        Raises:
            AudioError: If no part of the file can be decoded.
        """
        read = 0
        with soundfile.SoundFile(self.path) as file:
            try:
                while len(block := file.read(_LARGE_BLOCK, dtype="float32", always_2d=True)):
                    read += len(block)
                    yield block
            except _FAILURES as error:
                for block in self._after(read):
                    read += len(block)
                    yield block
                if not read:
                    raise undecodable(self.what, error) from error
            self.alerts = _what_is_missing(file, self.path, read, self.promised)

    def _after(self, read: int) -> Iterator[np.ndarray]:
        """Yield the samples between the last whole block and the point where the decoder gives up."""
        with soundfile.SoundFile(self.path) as file:
            at = 0
            try:
                while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                    at += len(block)
                    if at > read:
                        yield block[-(at - read) :] if at - read < len(block) else block
            except _FAILURES:
                return


def segment_bounds(
    what: str, frames: int, rate: int, offset_s: float, duration_s: float, alerts: tuple[str, ...] = ()
) -> tuple[int, int, tuple[str, ...]]:
    """Return the first sample of a segment, the one after the last, and notes."""
    total_s = frames / rate
    start, stop = round(offset_s * rate), round((offset_s + duration_s) * rate)
    where = f"offset_s={offset_s}, duration_s={duration_s} of {what}, which is {total_s:.3f} s long"
    where += f" ({'; '.join(alerts)})" if alerts else ""
    if start >= frames:
        raise AudioError(f"the segment starts past the end: {where}. Check that it belongs to this recording.")
    if stop - frames > SEGMENT_TOLERANCE_S * rate:
        raise AudioError(f"the segment ends past the end: {where}. Give at most {total_s - offset_s:.3f} s.")
    if stop <= start:
        raise AudioError(f"the segment is shorter than one sample: {where}. Give a longer one.")
    if stop > frames:
        return start, frames, (f"segment cut by {(stop - frames) / rate:.3f} s at the end of the file",)
    return start, stop, ()


def undecodable(what: str, error: BaseException | str) -> AudioError:
    """Return the error for input that is not audio, or is in a format that cannot be read."""
    return AudioError(
        f"{what} cannot be decoded: {error} Check that it is complete and contains audio. Supported: WAV, FLAC, OGG "
        "and MP3; convert others first: `ffmpeg -i input out.wav`."
    )


def _whole(file: soundfile.SoundFile, source: Path | bytes, what: str) -> Decoded:
    promised = _promised(file, source)
    if file.frames * file.channels > MAX_SAMPLES:
        raise too_long(what)
    try:
        samples = file.read(dtype="float32", always_2d=True)
    except _FAILURES:
        samples = _as_far_as_it_goes(source)
        if not len(samples):
            raise
    return Decoded(samples, file.samplerate, (), _what_is_missing(file, source, len(samples), promised))


def _as_far_as_it_goes(source: Path | bytes) -> np.ndarray:
    """Return the samples before the point where a decoder gives up; all samples of a format that cannot be seeked."""
    blocks: list[np.ndarray] = []
    with soundfile.SoundFile(_opened(source)) as file:
        channels = file.channels
        try:
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
        except _FAILURES:
            pass
    return np.concatenate([np.zeros((0, channels), np.float32), *blocks])


def _what_is_missing(
    file: soundfile.SoundFile, source: Path | bytes, frames: int, promised: int | None
) -> tuple[str, ...]:
    """Return an alert if the file is known to be truncated after these frames; empty if there is no sign of it."""
    rate = file.samplerate
    if promised is not None and promised > frames:
        return (f"truncated: ends after {frames / rate:.3f} s, but its header promises {promised / rate:.3f} s",)
    if file.format == "OGG" and not _ogg_ends(source):
        return (f"truncated: ends after {frames / rate:.3f} s, and its last page is not marked as the end",)
    return ()


def _ogg_ends(source: Path | bytes) -> bool:
    """Return whether the last page of an Ogg file is whole, and marked as the end of its stream."""
    tail = _end(source, 2 * _MAX_OGG_PAGE)
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27:
        return False
    lacing = tail[at + 27 : at + 27 + tail[at + 26]]
    whole = len(lacing) == tail[at + 26] and len(tail) >= at + 27 + len(lacing) + sum(lacing)
    return whole and bool(tail[at + 5] & 4)


def _promised(file: soundfile.SoundFile, source: Path | bytes) -> int | None:
    """Return the number of frames that the header promises; None if it does not say."""
    if file.format == "FLAC" or (file.format == "MP3" and re.search(rb"Xing|Info|VBRI", _start(source, 1 << 16))):
        return int(file.frames)  # without such a tag, the length of an MP3 is a guess
    if file.format == "NIST":
        count = re.search(rb"\nsample_count -i (\d+)", _start(source, 1024))
        return int(count[1]) if count else None
    log = file.extra_info
    found = re.search(r"frame count (\d+) does not match value from 'ds64' chunk of (\d+)", log)
    if found:
        return int(found[2])
    found = re.search(r"^\s*(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if found is None:
        return None
    promised, there = int(found[1]), int(found[2])
    if there <= 0 or promised <= there or (promised >= _UNKNOWN_SIZE and there < promised // 2):
        return None
    # The ratio is in bytes; it is close enough for frames, even for formats that compress in blocks.
    return max(file.frames + 1, round(file.frames * promised / there))


def _opened(source: Path | bytes) -> Path | BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _start(source: Path | bytes, size: int) -> bytes:
    if isinstance(source, bytes):
        return source[:size]
    with source.open("rb") as file:
        return file.read(size)


def _end(source: Path | bytes, size: int) -> bytes:
    if isinstance(source, bytes):
        return source[-size:]
    with source.open("rb") as file:
        file.seek(max(0, source.stat().st_size - size))
        return file.read()


def _otherwise(
    source: Path | bytes, what: str, error: Exception, stream: int | None, until_s: float | None = None
) -> Decoded:
    """Decode with the decoders for other formats; if they fail too, raise an error with both reasons."""
    try:
        return decode_container(source, what, stream, until_s)
    except AudioError as second:
        if stream:
            raise
        reason = str(second).split(" cannot be decoded: ", 1)[-1]
        raise AudioError(f"{undecodable(what, error)} Other decoders: {reason}") from second


def check_seconds(value: Any, name: str) -> float:
    """Return a number of seconds; numbers given as text are accepted.

    Raises:
        AudioError: If the value is not a finite number.
    """
    try:
        seconds = float(value)
    except (TypeError, ValueError) as error:
        raise AudioError(f"{name} is {value!r}; it must be a number of seconds.") from error
    if not math.isfinite(seconds):
        raise AudioError(f"{name} is {value!r}; it must be a finite number of seconds.")
    return seconds

"""Recordings of minutes and hours: decoded and resampled block by block into a file, not into memory."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from spes_hf.audio.decoding import Blocks
from spes_hf.audio.load import Waveform, check_rate, check_values, load_audio, mix_down
from spes_hf.audio.locations import is_address, local_file, name_of
from spes_hf.errors import AudioError

# Shorter recordings are read at once; recordings longer than half a day are refused.
AT_ONCE_S, LONGEST_S = 60.0, 12 * 3600.0


class StoredSamples:
    """Samples in a file that is deleted along with this object; slices are read on demand.

    Args:
        path: A file of raw float32 amplitudes.
        folder: The temporary folder that contains it, and removes it in the end.
    """

    def __init__(self, path: Path, folder: tempfile.TemporaryDirectory[str]):
        self.path, self._folder = path, folder
        self._length = path.stat().st_size // 4

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> np.ndarray:
        """Return the samples of a slice with step 1, (N,) float32."""
        start, stop, step = part.indices(self._length)
        if step != 1:
            raise ValueError(f"slice is {part!r}; allowed: slices with step 1")
        return np.fromfile(self.path, np.float32, max(0, stop - start), offset=4 * start)

    def tobytes(self) -> bytes:
        """Return all samples as bytes."""
        return self.path.read_bytes()


def open_audio(audio: Any, sampling_rate: int, source_rate: int | None = None) -> Waveform:
    """Return audio of any length as one mono waveform, as `load_audio` does; samples of long files stay on disk.

    Local files that soundfile reads are decoded and resampled in blocks. All other audio is read into memory.

    Args:
        audio: As for `load_audio`.
        sampling_rate: The processor's rate in Hz.
        source_rate: Rate of `audio` in Hz, if it does not carry its own.

    Raises:
        AudioError: As `load_audio`.
    """
    if isinstance(audio, Waveform) and isinstance(audio.samples, StoredSamples):
        return audio
    if isinstance(audio, (str, os.PathLike)) and not is_address(os.fsdecode(audio)):
        path = local_file(audio)
        try:
            with soundfile.SoundFile(path) as file:
                length_s = file.frames / file.samplerate
        except (soundfile.SoundFileError, OSError, TypeError, ValueError):
            length_s = 0.0  # another format; input that is not audio is refused below
        check_duration(length_s)
        if length_s > AT_ONCE_S:
            return _by_blocks(path, os.fsdecode(audio), sampling_rate, source_rate)
    return load_audio(audio, sampling_rate, source_rate)


def check_duration(seconds: float) -> None:
    """Refuse audio that is too long to explain at once.

    Raises:
        AudioError: If it is longer than half a day.
    """
    if seconds > LONGEST_S:
        raise AudioError(
            f"audio is {seconds / 3600:.1f} hours long; allowed: at most {LONGEST_S / 3600:.0f} hours at once. "
            "Cut it into parts"
        )


def _by_blocks(path: Path, text: str, sampling_rate: int, source_rate: int | None) -> Waveform:
    """Return the waveform of a file; its samples are stored in a temporary file.

    Raises:
        AudioError: If the file is damaged from the start, or contains values that are too large to be real.
    """
    name, target = name_of(text), check_rate(sampling_rate, "the processor's sampling_rate")
    source = f"file {name}"
    blocks = Blocks(path, f"file {text!r}")
    rate, channels = check_rate(blocks.rate, f"the sampling rate of {name!r}"), blocks.channels
    if source_rate is not None and source_rate != rate:
        raise AudioError(f"audio ({source}) is at {rate} Hz, but sampling_rate={source_rate}; leave it out.")
    folder = tempfile.TemporaryDirectory(prefix="spes_hf-")
    resampler = None if rate == target else soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    notes: tuple[str, ...] = ()
    stored = Path(folder.name, "samples")
    with stored.open("wb") as out:
        done = 0
        for block in blocks:
            check_values(block, rate, source, done)
            samples, notes = mix_down(block, source, 1)
            done += len(samples)
            out.write((samples if resampler is None else resampler.resample_chunk(samples)).tobytes())
        if resampler is not None:
            out.write(resampler.resample_chunk(np.zeros(0, np.float32), last=True).tobytes())
    if channels > 1:
        warnings.warn(
            f"audio ({source}): {notes[0]}; to explain one channel, pass only that one.", UserWarning, stacklevel=4
        )
    for alert in blocks.alerts:
        warnings.warn(f"audio ({source}): {alert}.", UserWarning, stacklevel=4)
    resampled = () if rate == target else (f"resampled from {rate} Hz to {target} Hz",)
    found: Any = StoredSamples(stored, folder)
    return Waveform(found, target, source, (*blocks.alerts, *notes, *resampled))

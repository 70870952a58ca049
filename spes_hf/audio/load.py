"""One mono waveform at the processor's rate, from any form of audio.

Files are decoded with soundfile, or with FFmpeg if soundfile cannot read them, and resampled with soxr. `datasets` is
not imported: its audio dicts and decoders are recognised by their keys and methods.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soxr
import torch

from spes_hf.audio.decoding import SEGMENT_TOLERANCE_S, Decoded, check_seconds, decode, decode_segment, undecodable
from spes_hf.audio.locations import fetch, is_address, local_file, name_of, read_open
from spes_hf.errors import AudioError

__all__ = ["SEGMENT_TOLERANCE_S", "AudioAs", "Waveform", "load_audio", "load_segment"]

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 1_000_000
MAX_CHANNELS = 32
NO_RATE = "no sampling rate given"
MAX_AMPLITUDE = 8.0

_FORMS = (
    "a path, the bytes of an audio file, an open file, a NumPy array, a torch tensor, a list of floats, "
    "or a `datasets` audio dict or decoder"
)


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono audio, and where it came from.

    Attributes:
        samples: (N,) float32 amplitudes, nominally in [-1, 1].
        sampling_rate: Samples per second (Hz).
        source: Short description of the origin, for provenance.
        notes: What was done to the audio on the way, in order.
    """

    samples: np.ndarray
    sampling_rate: int
    source: str
    notes: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sampling_rate


@dataclass(frozen=True, eq=False)
class AudioAs:
    """Audio, and how to decode it, as an `Audio` feature of `datasets` says.

    Attributes:
        audio: The audio in any form, usually a file.
        sampling_rate: Rate in Hz to resample to before resampling to the processor's rate; None: its own rate.
        num_channels: 1 to mix down without a warning, 2 for at most two channels, None for any number.
        stream_index: Index of the stream among all streams of the container; None: the best audio stream.
    """

    audio: Any
    sampling_rate: int | None = None
    num_channels: int | None = None
    stream_index: int | None = None


@dataclass(frozen=True, eq=False)
class _Raw:
    """Samples as the user passed them: (N,) or (N, channels), integer PCM or float; `rate` in Hz if known.

    `alerts` are notes that deserve a warning.
    """

    samples: np.ndarray
    rate: int | None
    source: str
    notes: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()


def load_audio(audio: Any, sampling_rate: int, source_rate: int | None = None) -> Waveform:
    """Return `audio` as one mono float32 waveform at `sampling_rate`.

    Args:
        audio: Path (str or `os.PathLike`) or fsspec address, such as ``zip://talk.wav::corpus.zip``; bytes of an audio
            file; file opened for reading bytes, which is read from its start; NumPy array, torch tensor or list of
            floats, (N,) or two-dimensional with the shorter axis as channels; `datasets` audio dict
            (`{"array", "sampling_rate"}` or `{"bytes", "path"}`), segment of a recording as `load_mustc` returns it
            (`{"path", "offset", "duration"}`) or decoder; a `Waveform`; or any of these in an `AudioAs`. Integer PCM
            (int16, int32, uint8) is scaled to [-1, 1]. It is never modified, and the result does not share its memory.
        sampling_rate: The processor's rate in Hz; the waveform is returned at this rate.
        source_rate: Rate of `audio` in Hz, which the user passed as `sampling_rate`. A bare array without one is
            assumed to be at the processor's rate; for audio that carries its own rate, it must match that rate.

    Returns:
        The waveform; its notes say how it was decoded, mixed down, scaled and resampled. Mixing down and truncated
        files also raise a UserWarning.

    Raises:
        AudioError: If the audio is missing, unreadable, empty, of an unknown type or shape, contains NaN, infinite or
            far too large values, or if a rate is impossible or contradicts the audio's own.
    """
    target = check_rate(sampling_rate, "the processor's sampling_rate")
    given = None if source_rate is None else check_rate(source_rate, "sampling_rate")
    asked = audio if isinstance(audio, AudioAs) else AudioAs(audio)
    via = None if asked.sampling_rate is None else check_rate(asked.sampling_rate, "the Audio feature's sampling_rate")
    raw = _open(asked.audio, asked.stream_index)
    rate = _agree(raw, given, via)
    if rate is None:
        rate = target
        raw = replace(raw, notes=(*raw.notes, f"{NO_RATE}: taken to be {target} Hz"))
    return _finish(raw, rate, target, via, asked.num_channels)


def load_segment(path: str | os.PathLike[str], offset_s: float, duration_s: float, sampling_rate: int) -> Waveform:
    """Return the segment `[offset_s, offset_s + duration_s)` of a recording.

    The rest is not read if the file is local and soundfile supports its format.

    Args:
        path: Audio file, or fsspec address.
        offset_s: Start of the segment in seconds, at least 0.
        duration_s: Length of the segment in seconds, above 0. If rounded time stamps put the end up to 0.1 s past the
            end of the file, the segment is cut there and a note is added.
        sampling_rate: Rate in Hz at which the segment is returned.

    Raises:
        AudioError: As `load_audio`, or the segment does not lie within the recording.
    """
    target = check_rate(sampling_rate, "the processor's sampling_rate")
    raw = _read_path(path, None, (offset_s, duration_s))
    return _finish(raw, raw.rate or target, target)


def _open(audio: Any, stream: int | None = None) -> _Raw:
    """Return the raw samples of any accepted form of audio."""
    if isinstance(audio, Waveform):
        own = check_rate(audio.sampling_rate, "the Waveform's sampling_rate")
        return _Raw(_channels_last(np.asarray(audio.samples)), own, audio.source, audio.notes)
    if isinstance(audio, (str, os.PathLike)):
        return _read_path(audio, stream)
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return _read_bytes(bytes(audio), None, stream)
    if isinstance(audio, Mapping):
        return _read_dict(audio, stream)
    if isinstance(audio, (np.ndarray, torch.Tensor, list, tuple)):
        return _read_array(audio)
    if callable(getattr(audio, "get_all_samples", None)):
        return _read_decoder(audio)
    if callable(getattr(audio, "read", None)):
        content, name = read_open(audio)
        return _read_bytes(content, name, stream)
    if hasattr(type(audio), "__getitem__"):
        return _read_indexable(audio)
    raise AudioError(f"audio is of type {type(audio).__name__}; give {_FORMS}.")


def _read_path(path: Any, stream: int | None = None, stretch: tuple[Any, Any] | None = None) -> _Raw:
    """Return the samples of a file, or of a segment of it in seconds."""
    text = os.fsdecode(path)
    source = fetch(text) if is_address(text) else local_file(path)
    what, name = f"file {text!r}", name_of(text)
    if stretch is None:
        return _of_file(decode(source, what, stream), name, f"file {name}")
    offset_s, duration_s = check_seconds(stretch[0], "offset_s"), check_seconds(stretch[1], "duration_s")
    decoded = decode_segment(source, what, offset_s, duration_s, stream)
    return _of_file(decoded, name, f"file {name} [{offset_s:g} s, {offset_s + duration_s:g} s)")


def _of_file(decoded: Decoded, name: str, source: str) -> _Raw:
    rate = check_rate(decoded.rate, f"the sampling rate of {name!r}")
    return _Raw(decoded.samples, rate, source, decoded.notes, decoded.alerts)


def _read_bytes(content: bytes, name: str | None = None, stream: int | None = None) -> _Raw:
    what = f"audio bytes of {name!r}" if name else f"audio bytes ({len(content)} B)"
    if not content:
        raise AudioError(f"{what} are empty; give the complete content of an audio file.")
    return _of_file(decode(content, what, stream), name or what, f"file {name}" if name else what)


def _read_dict(audio: Mapping[str, Any], stream: int | None = None) -> _Raw:
    path = audio.get("path")
    name = name_of(path) if path else None
    if audio.get("array") is not None:
        if audio.get("sampling_rate") is None:
            raise AudioError('the audio dict has an "array" but no "sampling_rate"; add its rate in Hz.')
        raw = _read_array(audio["array"])
        rate = check_rate(audio["sampling_rate"], 'the audio dict\'s "sampling_rate"')
        return _Raw(raw.samples, rate, f"file {name}" if name else raw.source, raw.notes)
    if audio.get("bytes") is not None:
        return _read_bytes(bytes(audio["bytes"]), name, stream)
    if path and audio.get("offset") is not None:
        return _read_path(path, stream, (audio["offset"], audio.get("duration")))
    if path:
        return _read_path(path, stream)
    raise AudioError(
        f'the audio dict has the keys {sorted(map(str, audio))} but no audio; it needs {{"array", "sampling_rate"}} or '
        f'{{"bytes", "path"}} with "bytes" or "path" set.'
    )


def _read_decoder(decoder: Any) -> _Raw:
    """Return all samples of a torchcodec-like decoder with data (channels, N)."""
    try:
        decoded = decoder.get_all_samples()
    except Exception as error:
        raise undecodable(f"audio decoder {type(decoder).__name__}", error) from error
    samples = np.atleast_2d(_to_numpy(decoded.data))
    if samples.ndim > 2:
        raise AudioError(f"the audio decoder returned shape {samples.shape}; expected (channels, samples).")
    rate = check_rate(decoded.sample_rate, "the audio decoder's sample_rate")
    return _Raw(samples.T, rate, f"decoder {type(decoder).__name__}")


def _read_indexable(audio: Any) -> _Raw:
    """Return the samples of an object that answers `["array"]` and `["sampling_rate"]`."""
    try:
        array, rate = audio["array"], audio["sampling_rate"]
    except (KeyError, TypeError, IndexError) as error:
        raise AudioError(f"audio is of type {type(audio).__name__}; give {_FORMS}.") from error
    return _read_dict({"array": array, "sampling_rate": rate})


def _read_array(audio: Any) -> _Raw:
    samples = _to_numpy(audio)
    source = f"array {samples.dtype} {samples.shape}"
    if samples.size == 0:
        raise AudioError(f"audio is empty: {source}; give at least one sample.")
    return _Raw(_channels_last(samples), None, source)


def _to_numpy(audio: Any) -> np.ndarray:
    """Return an array, a tensor on any device, or a list as a NumPy array."""
    try:
        if isinstance(audio, torch.Tensor):
            tensor = audio.detach().cpu()
            return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
        if np.ma.is_masked(audio):
            raise AudioError("audio is a masked array with masked samples; fill or cut them: audio.filled(0).")
        return np.asarray(audio)
    except AudioError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise AudioError(f"audio is a {type(audio).__name__} that is not a plain array of numbers: {error}.") from error


def _channels_last(samples: np.ndarray) -> np.ndarray:
    """Return (N,) as it is and two-dimensional audio as (N, channels): the shorter axis is the channels."""
    if samples.ndim == 1:
        return samples
    if samples.ndim != 2:
        raise AudioError(f"audio has shape {samples.shape}; give (samples,), (channels, samples), (samples, channels).")
    rows, columns = samples.shape
    if rows == columns > 1:
        raise AudioError(
            f"audio has shape {samples.shape}: the channel axis is ambiguous; give one channel, (samples,)."
        )
    if min(rows, columns) > MAX_CHANNELS:
        raise AudioError(
            f"audio has shape {samples.shape}: {min(rows, columns)} channels, at most {MAX_CHANNELS} are allowed. "
            "Give a waveform, not a spectrogram, and one utterance, not a batch."
        )
    return samples if columns <= rows else samples.T


def _finish(raw: _Raw, rate: int, target: int, via: int | None = None, num_channels: int | None = None) -> Waveform:
    """Scale, check, mix down and resample, first to the rate `via` if a feature asks for it.

    Call it directly from a public function: warnings then point to that function's caller.
    """
    if raw.samples.size == 0:
        raise AudioError(f"audio is empty: {raw.source} has no samples; give at least one.")
    for alert in raw.alerts:
        warnings.warn(f"audio ({raw.source}): {alert}.", UserWarning, stacklevel=3)
    samples, scaled = _to_float(raw.samples)
    check_values(samples, rate, raw.source)
    samples, mixed = mix_down(samples, raw.source, num_channels)
    resampled: tuple[str, ...] = ()
    if via is not None:
        samples, resampled = _resample(samples, rate, via, raw.source)
        resampled = tuple(f"{note}, as the Audio feature says" for note in resampled)
    samples, again = _resample(samples, via or rate, target, raw.source)
    notes = (*raw.notes, *raw.alerts, *scaled, *mixed, *resampled, *again)
    return Waveform(samples, target, raw.source, notes)


def _to_float(samples: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a float32 copy of the samples, with integer PCM scaled to [-1, 1)."""
    dtype = samples.dtype.newbyteorder("=")
    if dtype in (np.dtype(np.int16), np.dtype(np.int32)):
        scale = 2.0 ** (8 * dtype.itemsize - 1)
        return (samples / scale).astype(np.float32), (f"{dtype} PCM scaled by 1/{scale:.0f}",)
    if dtype == np.dtype(np.uint8):
        return ((samples.astype(np.float32) - 128) / 128), ("uint8 PCM centred at 128 and scaled by 1/128",)
    if dtype.kind != "f":
        raise AudioError(
            f"audio has dtype {dtype}; allowed are floats in [-1, 1] and int16, int32 or uint8 PCM. "
            "Convert it, for example `audio.astype('int16')` for 16-bit samples."
        )
    with np.errstate(over="ignore"):
        return np.array(samples, dtype=np.float32), ()


def check_values(samples: np.ndarray, rate: int, source: str, before: int = 0) -> None:
    """Refuse NaN, infinity, and amplitudes that are too large to be real.

    Args:
        samples: (N,) or (N, channels).
        rate: Samples per second.
        source: Origin of the samples, for error messages.
        before: Number of samples before these.

    Raises:
        AudioError: If there is such a value; the message says where.
    """
    frames = samples.reshape(len(samples), -1)
    bad = np.flatnonzero(~np.isfinite(frames).all(axis=1))
    if bad.size:
        raise AudioError(
            f"audio ({source}) is NaN or infinite at {bad.size} of {len(samples)} sample positions, first at index "
            f"{before + bad[0]} ({(before + bad[0]) / rate:.3f} s); repair or cut it there."
        )
    peak = float(max(frames.max(), -frames.min()))
    if peak > MAX_AMPLITUDE:
        raise AudioError(
            f"audio ({source}) reaches an amplitude of {peak:g}, where floats must lie in [-1, 1]. It looks like "
            "integer PCM stored as float: divide 16-bit samples by 32768."
        )


def mix_down(samples: np.ndarray, source: str, num_channels: int | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (N, channels) as the mean over the channels, (N,); does not warn if one channel was requested."""
    if num_channels not in (None, 1, 2):
        raise AudioError(f"the Audio feature's num_channels is {num_channels!r}; allowed are 1, 2 and None.")
    if samples.ndim == 1 or samples.shape[1] == 1:
        return np.ascontiguousarray(samples.reshape(-1)), ()
    channels = samples.shape[1]
    if num_channels == 2 < channels:
        raise AudioError(
            f"audio ({source}) has {channels} channels, but the Audio feature's num_channels is 2, and this mix is not "
            "supported. Leave num_channels out to use the mean of all channels, or mix them first."
        )
    note = f"{'stereo' if channels == 2 else f'{channels} channels'} mixed down to mono"
    if num_channels != 1 or channels > 2:
        warnings.warn(
            f"audio ({source}): {note}; to explain one channel, pass only that one.", UserWarning, stacklevel=4
        )
    return samples.mean(axis=1, dtype=np.float32), (note,)


def _resample(samples: np.ndarray, rate: int, target: int, source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (N,) samples at the target rate (Hz)."""
    if rate == target:
        return samples, ()
    resampled = soxr.resample(samples, rate, target, quality="HQ")
    if resampled.size == 0:
        raise AudioError(
            f"audio ({source}) has {samples.size} samples at {rate} Hz, too few to resample to {target} Hz; "
            "give longer audio."
        )
    return np.asarray(resampled, dtype=np.float32), (f"resampled from {rate} Hz to {target} Hz",)


def _agree(raw: _Raw, given: int | None, via: int | None) -> int | None:
    """Return the rate that the audio and the caller agree on, or None if neither gives one.

    If a feature resamples the audio, the caller's rate is compared with the feature's.
    """
    own = raw.rate if via is None else via
    if own is not None and given is not None and own != given:
        raise AudioError(f"audio ({raw.source}) is at {own} Hz, but sampling_rate={given}; leave sampling_rate out.")
    return given if raw.rate is None else raw.rate


def check_rate(rate: Any, name: str) -> int:
    """Return the rate as an int in Hz."""
    whole = isinstance(rate, (int, np.integer)) or (isinstance(rate, (float, np.floating)) and float(rate).is_integer())
    if isinstance(rate, (bool, np.bool_)) or not whole:
        raise AudioError(f"{name} is {rate!r}; it must be a whole number of Hz, such as 16000.")
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise AudioError(
            f"{name} is {rate!r}; it must lie between {MIN_RATE_HZ} and {MAX_RATE_HZ} Hz. Give Hz, not kHz: 16000."
        )
    return int(rate)

"""Containers that libsndfile cannot read (MP4, M4A, AAC, WebM, video), decoded with FFmpeg or torchcodec.

FFmpeg runs in its own process, with limits on time, memory and the files it may open, so a damaged or hostile file
raises an error and does not end the job. torchcodec decodes in this process and is used only if FFmpeg is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from spes_hf.errors import AudioError
from spes_hf.names import EXTRAS

INSTALL = (
    f"MP4, M4A, AAC, WebM and video need FFmpeg: pip install '{EXTRAS['codecs']}' (the extra 'codecs'), or install the "
    "program ffmpeg, or torchcodec with FFmpeg's libraries"
)
TIME_LIMIT_S = 300.0
MAX_SAMPLES = 2**30
_MAX_BLOCK_BYTES = 2**29
# Only formats that contain the sound themselves: playlists and scripts point to other files and addresses.
_FORMATS = (
    "mov,matroska,webm,aac,mp3,ogg,flac,wav,w64,aiff,asf,avi,flv,mpegts,mpeg,amr,amrnb,amrwb,au,caf,ac3,eac3,dts,ape,"
    "wv,tta,tak,mpc,mpc8,dsf,gsm,rm,loas,nistsphere"
)


@dataclass(frozen=True, eq=False)
class Decoded:
    """The decoded content of a file.

    Attributes:
        samples: (N, channels) float32.
        rate: Samples per second (Hz).
        notes: How it was decoded.
        alerts: Problems with the file; they are recorded as notes and also raised as warnings.
    """

    samples: np.ndarray
    rate: int
    notes: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()


def decode_container(
    source: Path | bytes, what: str, stream: int | None = None, until_s: float | None = None
) -> Decoded:
    """Return the sound of a file that libsndfile cannot read.

    Args:
        source: A local file, or its content.
        what: Name of the source in error messages.
        stream: Index of the stream among all streams of the container; None: the best audio stream.
        until_s: Where to stop, in seconds from the start; None: at the end.

    Raises:
        AudioError: If no installed decoder can read it.
    """
    program = find_ffmpeg()
    if program is not None:
        return _by_ffmpeg(program, source, what, stream, until_s)
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        detail = "" if missing else f" (torchcodec is installed but fails to load: {_first_line(error)})"
        raise AudioError(f"{what} cannot be decoded: no decoder for it is installed{detail}. {INSTALL}.") from error
    return _by_torchcodec(AudioDecoder, source, what, stream, until_s)


def find_ffmpeg() -> str | None:
    """Return the path of the FFmpeg program: the one on PATH, or else the one that imageio-ffmpeg ships."""
    program = shutil.which("ffmpeg")
    if program is not None:
        return program
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return str(get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


def _by_ffmpeg(program: str, source: Path | bytes, what: str, stream: int | None, until_s: float | None) -> Decoded:
    with tempfile.TemporaryDirectory(prefix="spes_hf-") as folder:
        if isinstance(source, bytes):  # not through a pipe: MP4 must be seekable
            file = Path(folder, "input")
            file.write_bytes(source)
        else:
            file = source.absolute()
        out, log = Path(folder, "out.wav"), Path(folder, "log")
        limits = ["-max_alloc", str(_MAX_BLOCK_BYTES), "-threads", "1"]
        allowed = ["-protocol_whitelist", "file", "-format_whitelist", _FORMATS]
        chosen = ["-vn", "-sn", "-dn"] if stream is None else ["-map", f"0:{stream}"]
        until = [] if until_s is None else ["-t", f"{until_s:.6f}"]
        command = [program, "-nostdin", "-nostats", "-loglevel", "level+info", *limits, *allowed]
        command += ["-i", f"file:{os.fspath(file)}", *chosen, *until, "-c:a", "pcm_f32le", "-bitexact"]
        command += ["-fs", str(4 * MAX_SAMPLES), "-f", "wav", "-y", os.fspath(out)]
        with log.open("wb") as lines:
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=lines, timeout=TIME_LIMIT_S
                )
            except subprocess.TimeoutExpired as error:
                raise AudioError(
                    f"{what} cannot be decoded: FFmpeg took more than {TIME_LIMIT_S:g} s. Check that it is complete "
                    "and contains audio, or convert it first: `ffmpeg -i input out.wav`."
                ) from error
            except OSError as error:
                raise AudioError(f"{what} cannot be decoded: {program!r} does not run ({error}). {INSTALL}.") from error
        said = _Log(_ends(log))
        try:
            samples, rate = soundfile.read(out, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as error:
            raise AudioError(
                f"{what} cannot be decoded: {said.problem or f'FFmpeg ended with code {done.returncode}'}. "
                "Check that the file is complete and contains audio."
            ) from error
    if samples.size >= MAX_SAMPLES - 2**16:
        raise too_long(what)
    notes = (f"decoded by {said.version}",)
    alerts = []
    if done.returncode or said.problem:
        alerts.append(f"damaged or truncated after {len(samples) / rate:.3f} s: FFmpeg reports {said.problem!r}")
    if stream is None and len(said.audio_streams) > 1:
        alerts.append(
            f"{len(said.audio_streams)} audio streams (stream_index {', '.join(said.audio_streams)}); using stream "
            f"{said.taken}, FFmpeg's default"
        )
    return Decoded(samples, int(rate), notes, tuple(alerts))


class _Log:
    """What FFmpeg logged: its version, the audio streams, the first problem."""

    def __init__(self, text: str):
        version = re.search(r"^(?:\[info\] )?ffmpeg version (\S+)", text, re.MULTILINE)
        self.version = f"FFmpeg {version[1]}" if version else "FFmpeg"
        inputs = text.split("Output #0")[0]
        self.audio_streams = re.findall(r"Stream #0:(\d+)\S*: Audio:", inputs)
        taken = re.search(r"Stream #0:(\d+) -> #0:0", text)
        self.taken = taken[1] if taken else "?"
        wrong = r"^(?:\[[^\]]* @ 0x[0-9a-f]+\] )*(?:\[(?:error|fatal)\] (.+)|\[warning\] (Packet corrupt.*))$"
        # The first message names the cause; later ones are consequences.
        found = [first or second for first, second in re.findall(wrong, text, re.MULTILINE)]
        self.problem = _without_paths(found[0]) if found else ""


def _by_torchcodec(kind: Any, source: Path | bytes, what: str, stream: int | None, until_s: float | None) -> Decoded:
    try:
        decoder = kind(source if isinstance(source, bytes) else os.fspath(source), stream_index=stream)
        about = decoder.metadata
        promised = about.duration_seconds_from_header or 0.0
        if promised * (about.sample_rate or 0) * (about.num_channels or 1) > MAX_SAMPLES:
            raise too_long(what)
        # Decode from the very start: time stamps of some containers begin above 0.
        decoded = decoder.get_all_samples()
    except AudioError:
        raise
    except Exception as error:
        raise AudioError(
            f"{what} cannot be decoded: torchcodec reports {_first_line(error)!r}. "
            "Check that the file is complete and contains audio."
        ) from error
    samples = np.ascontiguousarray(decoded.data.cpu().float().numpy().T)
    rate = int(decoded.sample_rate)
    alerts: tuple[str, ...] = ()
    if promised - len(samples) / rate > 0.1:
        alerts = (f"truncated: ends after {len(samples) / rate:.3f} s, but its header promises {promised:.3f} s",)
    if until_s is not None:
        samples = samples[: round(until_s * rate)]
    return Decoded(samples, rate, ("decoded by torchcodec",), alerts)


def too_long(what: str) -> AudioError:
    """Return the error for a recording that is too long to read into memory."""
    return AudioError(
        f"{what} has more than {MAX_SAMPLES} samples, the most that can be read at once; cut it first: "
        "`ffmpeg -ss START -t SECONDS -i input part.wav`."
    )


def _ends(log: Path, size: int = 1 << 16) -> str:
    """Return the start and the end of a log; a damaged file can make the log very long."""
    with log.open("rb") as lines:
        start = lines.read(size)
        rest = log.stat().st_size - size
        lines.seek(max(size, log.stat().st_size - size))
        return (start + (lines.read() if rest > 0 else b"")).decode("utf-8", "replace")


def _without_paths(line: str) -> str:
    return re.sub(r"\s*\bfile:\S+", "", line).strip().rstrip(".")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

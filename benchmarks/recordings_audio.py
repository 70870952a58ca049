"""Long recordings for `recordings.py`: clips of people joined, sounds that are no speech, and what was said when."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from spes_hf.analysis import Alignment, Word, read_alignment
from spes_hf.files import read_json_lines

RATE = 16000
PAUSE_S = 0.5


def clips(data: Path) -> list[dict[str, Any]]:
    """Return rows of clean read speech, speakers in turn, so that neighbours are different people."""
    rows = [row for row in read_json_lines(data / "manifest.jsonl") if row["set"] == "librispeech-clean"]
    speakers: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        speakers.setdefault(row["speaker"], []).append(row)
    return [row for turn in itertools.zip_longest(*speakers.values()) for row in turn if row is not None]


def samples_of(data: Path, row: dict[str, Any]) -> np.ndarray:
    """Return the samples of a clip, (N,) float32 at 16 kHz."""
    samples, rate = soundfile.read(data / row["file"], dtype="float32")
    if rate != RATE:
        raise SystemExit(f"{row['file']} has {rate} Hz; this benchmark reads {RATE} Hz")
    return samples


def joined(data: Path, rows: list[dict[str, Any]]) -> tuple[np.ndarray, Alignment]:
    """Return clips with pauses of half a second between them, and when each word of them was said."""
    parts, words, at = list[np.ndarray](), list[Word](), 0.0
    for row in rows:
        samples = samples_of(data, row)
        for word in read_alignment(data / row["alignment"]).words:
            words.append(Word(word.text, word.start + at, word.end + at))
        parts += [samples, np.zeros(round(PAUSE_S * RATE), np.float32)]
        at += len(samples) / RATE + PAUSE_S
    return np.concatenate(parts[:-1]), Alignment(tuple(words))


def speech(data: Path, seconds: float, skip: int = 0) -> tuple[np.ndarray, Alignment, list[dict[str, Any]]]:
    """Return at least this number of seconds of speech, when each word was said, and the clips.

    Args:
        data: Folder of real speech.
        seconds: At least so long.
        skip: Clips to leave out at the front.
    """
    rows, total = list[dict[str, Any]](), -PAUSE_S
    for row in clips(data)[skip:]:
        rows.append(row)
        total += row["duration_s"] + PAUSE_S
        if total >= seconds:
            break
    return (*joined(data, rows), rows)


def pink(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return pink noise."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    return np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), n=size)


def chords(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return four notes at a time, struck anew every half second: something like music."""
    found, step = np.zeros(size), RATE // 2
    for start in range(0, size, step):
        t = np.arange(min(step, size - start)) / RATE
        for note in rng.choice([0, 2, 4, 5, 7, 9, 11, 12, 14, 16], 4, replace=False):
            tone = 2 * np.pi * 220 * 2 ** (note / 12) * t
            found[start : start + len(t)] += np.exp(-4 * t) * (np.sin(tone) + 0.4 * np.sin(2 * tone))
    return found


def babble(data: Path, size: int) -> np.ndarray:
    """Return six people who speak at once, backwards."""
    rows = clips(data)[-18:]
    found = np.zeros(size)
    for voice in range(6):
        backwards = np.concatenate([samples_of(data, row)[::-1] for row in rows[voice::6]])
        found += np.resize(backwards, size)
    return found


def backwards(data: Path, size: int) -> np.ndarray:
    """Return one person who speaks backwards."""
    return np.resize(np.concatenate([samples_of(data, row)[::-1] for row in clips(data)[-6:]]), size)


def sounds(data: Path, seconds: float) -> Iterator[tuple[str, np.ndarray]]:
    """Yield sounds in which nobody says anything, by name, at the level of speech (RMS 0.06)."""
    size, rng = round(seconds * RATE), np.random.default_rng(0)
    t = np.arange(size) / RATE
    made = {
        "white noise": rng.standard_normal(size),
        "pink noise": pink(size, rng),
        "pink noise and tones": pink(size, rng) + 0.5 * pink(size, rng).std() * np.sin(2 * np.pi * 440 * t),
        "one tone": np.sin(2 * np.pi * 440 * t),
        "chords": chords(size, rng),
        "babble backwards": babble(data, size),
        "one voice backwards": backwards(data, size),
        "silence": np.zeros(size),
    }
    for name, samples in made.items():
        yield name, (0.06 * samples / max(float(samples.std()), 1e-9)).astype(np.float32)

"""What the model listens to in hallucination.py: sounds without speech, disturbed speech, undisturbed speech."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from plausibility import read_manifest

RATE = 16_000
LONGEST_S = 5.2

NONSPEECH = ("silence", "white", "pink", "hum", "tone", "clicks", "swell", "murmur")
DISTURBED = ("reversed", "drowned", "cut")
UNDISTURBED = ("clip", "phrase")


@dataclass(frozen=True, eq=False)
class Candidate:
    """Something for the model to listen to.

    Attributes:
        id: Its name.
        kind: One of NONSPEECH, DISTURBED, UNDISTURBED.
        samples: (S,) at 16 kHz.
        said: The words in it; empty where nothing is said.
        clip: Id of the recording that it was made of, if any.
        speaker: Who speaks.
        gender: "M", "F", or empty where it is not known.
    """

    id: str
    kind: str
    samples: np.ndarray
    said: str = ""
    clip: str = ""
    speaker: str = ""
    gender: str = ""


def at_level(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Return samples scaled to a root mean square in dB under full scale, clipped at full scale."""
    scaled = samples / max(float(np.sqrt(np.mean(samples**2))), 1e-12) * 10 ** (decibels / 20)
    return np.clip(scaled, -1, 1).astype(np.float32)


def coloured(generator: np.random.Generator, count: int, exponent: float) -> np.ndarray:
    """Return noise whose power falls with frequency to the power of ``exponent``: 0 white, 1 pink."""
    spectrum = np.fft.rfft(generator.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count), 1 / count)
    return np.fft.irfft(spectrum / frequency ** (exponent / 2), count)


def hum(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return 50 Hz and some harmonics, as badly earthed cables make them."""
    t = np.arange(count) / RATE
    return sum(np.sin(2 * np.pi * 50 * h * t) / h for h in (1, 2, 3, 5)) + 0.01 * coloured(generator, count, 0)


def tone(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return one pure tone."""
    return np.sin(2 * np.pi * generator.choice([262, 440, 660, 1000, 2000]) * np.arange(count) / RATE)


def clicks(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return clicks, about four a second."""
    hits = (generator.random(count) < 4 / RATE) * generator.standard_normal(count)
    return hits + 1e-4 * coloured(generator, count, 0)


def swell(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return noise that swells four to five times a second, as syllables do."""
    return coloured(generator, count, 1) * (1 - np.cos(2 * np.pi * generator.uniform(4, 5) * np.arange(count) / RATE))


def murmur(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return a buzz with two wandering resonances: what a voice has but words."""
    t, turn = np.arange(count) / RATE, 2 * np.pi
    melody = np.sin(turn * (generator.uniform(0.5, 1.5) * t + generator.random()))
    pitch = generator.uniform(90, 220) * (1 + 0.1 * melody)
    phase = turn * np.cumsum(pitch) / RATE
    first = 500 + 250 * np.sin(turn * (generator.uniform(1, 3) * t + generator.random()))
    second = 1500 + 600 * np.sin(turn * (generator.uniform(1, 3) * t + generator.random()))
    samples = np.zeros(count)
    for h in range(1, 30):
        loudness = np.exp(-(((h * pitch - first) / 120) ** 2)) + 0.6 * np.exp(-(((h * pitch - second) / 180) ** 2))
        samples += np.sin(h * phase) * (loudness + 0.02)
    return samples * (1 - np.cos(turn * generator.uniform(2.5, 5) * t))


def nonspeech() -> Iterator[Candidate]:
    """Yield sounds in which nobody says anything."""

    def made(kind: str, make: Callable[..., np.ndarray], level: int, seconds: float, number: int = 0) -> Candidate:
        name = f"{kind}{level}dB-{seconds:g}s" + (f"-{number}" if number else "")
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        return Candidate(name, kind, at_level(make(generator, round(seconds * RATE)), level))

    steady = {
        "white": partial(coloured, exponent=0),
        "pink": partial(coloured, exponent=1),
        "hum": hum,
        "tone": tone,
        "clicks": clicks,
    }
    for seconds in (1.0, 2.0, 4.0):
        for level in (-75, -60):
            yield made("silence", steady["white"], level, seconds)
        for kind, make in steady.items():
            for level in (-45, -30, -15):
                yield made(kind, make, level, seconds)
    for kind, level in (("white", -12), ("pink", -12), ("white", -25), ("pink", -25)):
        yield made(kind, steady[kind], level, 28.0)
    for number in range(8):
        yield made("swell", swell, (-12, -30)[number % 2], (2.0, 3.0, 5.0, 10.0)[number // 2], number)
        yield made("murmur", murmur, (-12, -30)[number % 2], (1.5, 2.0, 3.0, 4.0)[number // 2], number)


def speech(data: Path, language: str = "en", longest_s: float = LONGEST_S) -> Iterator[Candidate]:
    """Yield clips as they are, phrases cut between words, and clips with something done to them."""
    for index, row in enumerate(r for r in read_manifest(data).values() if r["language"] == language):
        samples, rate = soundfile.read(data / row["file"], dtype="float32")
        if rate != RATE:
            raise SystemExit(f"error: {row['file']} is at {rate} Hz; recordings are to be at {RATE} Hz")
        words = []
        if row.get("alignment"):
            found = json.loads((data / row["alignment"]).read_text(encoding="utf-8"))["words"]
            words = [w for w in found if not w["word"].startswith("<")]
        about = {"clip": row["id"], "speaker": row.get("speaker") or "", "gender": row.get("gender") or ""}
        generator = np.random.default_rng(zlib.crc32(row["id"].encode()))
        if row["duration_s"] <= longest_s:
            yield Candidate(f"clip-{row['id']}", "clip", samples, row["text"], **about)
            yield Candidate(f"reversed-{row['id']}", "reversed", samples[::-1].copy(), row["text"], **about)
            ratio = (-10, -15, -20)[index % 3]
            noise = coloured(generator, len(samples), index % 2)
            noise *= np.sqrt(np.mean(samples**2) / np.mean(noise**2)) * 10 ** (-ratio / 20)
            drowned = at_level(samples + noise, -20)
            yield Candidate(f"drowned{ratio}dB-{row['id']}", "drowned", drowned, row["text"], **about)
        elif words:
            yield phrase(row["id"], samples, words, generator, about)
        if words:
            yield cut(row["id"], samples, words, generator, about)


def phrase(
    name: str, samples: np.ndarray, words: list[dict[str, Any]], generator: np.random.Generator, about: dict[str, str]
) -> Candidate:
    """Return one to six words in a row, of at most 2.5 s, cut in the middle of pauses where there are any."""
    first = int(generator.integers(0, max(1, len(words) - 6)))
    wanted = int(generator.integers(1, 7))
    chosen = [w for w in words[first : first + wanted] if w["end"] - words[first]["start"] <= 2.5] or [words[first]]
    start, end = chosen[0]["start"] - 0.03, chosen[-1]["end"] + 0.03
    stretch = samples[max(0, round(start * RATE)) : round(end * RATE)]
    return Candidate(f"phrase-{name}", "phrase", stretch, " ".join(w["word"] for w in chosen), **about)


def cut(
    name: str, samples: np.ndarray, words: list[dict[str, Any]], generator: np.random.Generator, about: dict[str, str]
) -> Candidate:
    """Return 0.12 s to 0.3 s out of the middle of a clip; every word of which a part is heard counts as said."""
    seconds = float(generator.uniform(0.12, 0.3))
    low, high = words[0]["start"], max(words[0]["start"] + 1e-3, words[-1]["end"] - seconds)
    start = float(generator.uniform(low, high))
    said = " ".join(w["word"] for w in words if w["end"] > start and w["start"] < start + seconds)
    stretch = samples[round(start * RATE) : round((start + seconds) * RATE)]
    return Candidate(f"cut-{name}", "cut", stretch, said, **about)

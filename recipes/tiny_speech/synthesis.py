# Copyright 2026 The spes_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Synthetic speech with known word times, from espeak-ng and flite, and the tiny corpus that they speak.

espeak-ng runs through its shared library, which reports when every word and phoneme begins. flite runs as a program and
gives no word times.
"""

import ctypes
import ctypes.util
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiny_speech.mustc import Utterance, write_mustc_split
from tiny_speech.sentences import LANGUAGES, Sentence, generate_sentences

SAMPLING_RATE = 16000

# Voices of one split are never heard in another.
ACCENTS = ("en-us", "en-us", "en-us-nyc", "en", "en-gb-x-rp", "en-gb-scotland", "en-029")
TRAIN_VARIANTS = (
    "m1 m2 m3 m5 m6 f1 f3 f4 Alex Alicia Andy Annie Denis Gene Mario Michael Mike adam belinda benjamin david edward "
    "linda max michel robert rob travis"
).split()
TRAIN_FLITE = ("slt", "rms", "awb", "kal16")
DEV_VOICES = ("espeak:en-us+m8", "espeak:en+steph")
TEST_VOICES = ("espeak:en-us+m4", "espeak:en-us+f2", "espeak:en+m7", "espeak:en-gb-x-rp+f5")
# The voices of the splits that sound like women, according to espeak-ng's files; all others sound like men.
FEMALE_VOICES = frozenset("f1 f2 f3 f4 f5 Alicia Andrea Annie anika aunty belinda linda steph slt".split())

_NO_ESPEAK = "espeak-ng is not installed; on Debian and Ubuntu: apt-get install espeak-ng"
_EVENT_END_LIST, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_SYNCHRONOUS, _PHONEME_EVENTS, _NO_EXIT = 2, 1, 0x8000
_RATE, _PITCH, _RANGE = 1, 3, 4
_UTF8 = 1


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Voice:
    """A voice of a synthesiser.

    Args:
        name: "espeak:<accent>+<variant>", e.g. "espeak:en-us+f2", or "flite:<voice>", e.g. "flite:slt".
        rate: Speaking rate in words per minute (flite: relative to 165).
        pitch: Pitch from 0 to 99, 50 is the voice's own (espeak-ng only).
        pitch_range: Intonation from 0 to 99, 50 is the voice's own (espeak-ng only).
    """

    name: str
    rate: int = 165
    pitch: int = 50
    pitch_range: int = 50


class _Espeak:
    """The espeak-ng library: one instance per process, since its state is global."""

    _instance: "_Espeak | None" = None

    def __init__(self) -> None:
        path = ctypes.util.find_library("espeak-ng")
        if path is None:
            raise RuntimeError(_NO_ESPEAK)
        self.library = ctypes.CDLL(path)
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS | _NO_EXIT)
        self.samples: list[np.ndarray] = []
        self.events: list[tuple[int, int, int, bytes]] = []
        self.callback = _Callback(self._receive)
        self.library.espeak_SetSynthCallback(self.callback)

    @classmethod
    def get(cls) -> "_Espeak":
        """The instance of this process."""
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def _receive(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self.samples.append(np.ctypeslib.as_array(wave, shape=(count,)).copy())
        i = 0
        while events[i].type != _EVENT_END_LIST:
            event = events[i]
            self.events.append((event.type, event.text_position, event.sample, bytes(event.id.string)))
            i += 1
        return 0

    def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, list[tuple[int, int, int, bytes]]]:
        self.samples, self.events = [], []
        name = voice.name.removeprefix("espeak:")
        if self.library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {name!r}; see `espeak-ng --voices=en` and `--voices=variant`")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
            self.library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        self.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        self.library.espeak_Synchronize()
        return np.concatenate(self.samples).astype(np.float32) / 32768, self.events


def voice_gender(name: str) -> str:
    """Returns "f" or "m" for the name of a voice of the splits.

    Examples:
        >>> voice_gender("espeak:en-us+f2"), voice_gender("flite:rms")
        ('f', 'm')
    """
    return "f" if re.split(r"[+:]", name)[-1] in FEMALE_VOICES else "m"


def available_synthesisers() -> list[str]:
    """The names of the installed synthesisers among "espeak" and "flite"."""
    found = ["espeak"] if ctypes.util.find_library("espeak-ng") else []
    return found + (["flite"] if shutil.which("flite") else [])


def synthesize(text: str, voice: Voice) -> tuple[np.ndarray, list[tuple[float, float]] | None]:
    """Returns speech and the time of every word.

    Args:
        text: An English sentence.
        voice: Who speaks, how fast and how high.

    Returns:
        Mono samples (n,), float32 in [-1, 1], at 16 kHz, without long silence at either end; and (start, end) in
        seconds for each whitespace-separated word of the text, or None for voices of flite.
    """
    import soxr

    if voice.name.startswith("flite:"):
        samples, rate = _flite(text, voice)
        times = None
    else:
        engine = _Espeak.get()
        samples, events = engine.speak(text, voice)
        rate = engine.rate
        times = _word_times(text, events, len(samples), rate)
    samples = soxr.resample(samples, rate, SAMPLING_RATE).astype(np.float32)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    margin = SAMPLING_RATE // 10
    start, stop = max(loud[0] - margin, 0), min(loud[-1] + margin, len(samples))
    if times is not None:
        shift, length = start / SAMPLING_RATE, (stop - start) / SAMPLING_RATE
        times = [(round(max(a - shift, 0.0), 3), round(min(b - shift, length), 3)) for a, b in times]
    return samples[start:stop], times


def _flite(text: str, voice: Voice) -> tuple[np.ndarray, int]:
    import soundfile

    command = ["flite", "-voice", voice.name.removeprefix("flite:"), "--setf", f"duration_stretch={165 / voice.rate}"]
    result = subprocess.run([*command, "-t", text, "-o", "/dev/stdout"], capture_output=True, check=True)
    # A pipe cannot be rewound, so flite may leave wrong sizes in the header. Read what follows it as raw samples.
    data = result.stdout
    rate = int.from_bytes(data[24:28], "little")
    body = data[data.index(b"data") + 8 :]
    raw, _ = soundfile.read(
        io.BytesIO(body[: len(body) // 2 * 2]), samplerate=rate, channels=1, format="RAW", subtype="PCM_16"
    )
    return raw.astype(np.float32), rate


def _word_times(
    text: str, events: list[tuple[int, int, int, bytes]], num_samples: int, rate: int
) -> list[tuple[float, float]]:
    """Returns (start, end) in seconds per whitespace word.

    A word lasts from its own event to the end of its last phoneme that is not a pause. espeak-ng reads some pairs of
    words as one ("of the"); words without an event share the time of the word before, in proportion to their letters.
    """
    spans = [(match.start(), match.end()) for match in re.finditer(r"\S+", text)]
    starts: dict[int, int] = {}
    for kind, position, sample, _ in events:
        if kind == _EVENT_WORD:
            word = next((i for i, (_, end) in enumerate(spans) if position - 1 < end), len(spans) - 1)
            starts.setdefault(word, sample)
    # A phoneme event marks the beginning of the phoneme that it names.
    phonemes = [(sample, name) for kind, _, sample, name in events if kind == _EVENT_PHONEME]
    heads = sorted(starts)
    times: list[tuple[float, float]] = []
    for head, following in zip(heads, heads[1:] + [len(spans)], strict=True):
        begin, limit = starts[head], starts.get(following, num_samples)
        pauses = (at for at, name in phonemes if begin < at < limit and name.startswith(b"_"))
        end = next(pauses, limit)
        letters = np.cumsum([0] + [spans[i][1] - spans[i][0] for i in range(head, following)])
        edges = begin + (end - begin) * letters / letters[-1]
        times += [(float(a) / rate, float(b) / rate) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return times


def with_noise(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns samples at a random level, with noise of a random kind and level, as float32."""
    noise = rng.standard_normal(len(samples))
    if rng.random() < 0.5:  # pink-like: most of the energy is low
        noise = np.convolve(noise, np.exp(-np.arange(32) / 6.0), mode="same")
    snr = rng.uniform(15, 40)
    noise *= samples.std() / noise.std() * 10 ** (-snr / 20)
    mixed = samples + noise
    mixed *= rng.uniform(0.2, 0.9) / np.abs(mixed).max()
    return mixed.astype(np.float32)


def speak(task: tuple[Sentence, str, int]) -> Utterance:
    """Speaks a sentence in a voice, with random rate, pitch, level and noise, which the seed determines."""
    sentence, name, seed = task
    rng = np.random.default_rng(seed)
    voice = Voice(name, int(rng.integers(140, 205)), int(rng.integers(30, 70)), int(rng.integers(30, 70)))
    samples, times = synthesize(sentence.text, voice)
    return Utterance(sentence, name, with_noise(samples, rng), times)


def make_corpus(
    root: str | os.PathLike[str], sizes: dict[str, int], seed: int = 1, workers: int = 1, speaker_gender: bool = False
) -> None:
    """Writes the tiny corpus in MuST-C's layout under `root`, and `alignments/<split>.json` with the word times.

    Draws the test split first, then the development split, so that neither depends on the size of the next. No sentence
    and no voice is in two splits.

    Args:
        root: Folder of the corpus.
        sizes: Numbers of utterances for "train", "dev" and "tst-COMMON".
        seed: Seed of sentences, voices and noise.
        workers: Number of processes that speak.
        speaker_gender: Also write sentences whose Spanish adjectives agree with the voice. Without them, the corpus is
            the one that the shipped models were trained on.
    """
    found = available_synthesisers()
    if "espeak" not in found:
        raise RuntimeError(_NO_ESPEAK)
    rng = random.Random(seed)
    train_voices = [f"espeak:{accent}+{variant}" for variant in TRAIN_VARIANTS for accent in ACCENTS]
    if "flite" in found:
        train_voices += [f"flite:{voice}" for voice in TRAIN_FLITE] * 4
    voices = {"train": train_voices, "dev": list(DEV_VOICES), "tst-COMMON": list(TEST_VOICES)}
    variants = [{name.split("+")[-1] for name in names} for names in voices.values()]
    if sum(map(len, variants)) != len(set.union(*variants)):
        raise RuntimeError("a voice is in two splits")
    texts: set[str] = set()
    for number, split in enumerate(("tst-COMMON", "dev", "train")):
        sentences = generate_sentences(sizes[split], seed + number, texts, speaker_gender)
        by_gender = {None: voices[split]} | {
            gender: [name for name in voices[split] if voice_gender(name) == gender] for gender in "fm"
        }
        drawn = {sentence.text for sentence in sentences}
        if texts & drawn:
            raise RuntimeError(f"sentences of {split} are in another split: {sorted(texts & drawn)[:3]}")
        texts |= drawn
        base = (seed * 10 + number) * 1_000_000
        tasks = [(sentence, rng.choice(by_gender[sentence.speaker]), base + i) for i, sentence in enumerate(sentences)]
        tasks.sort(key=lambda task: task[1])
        # espeak-ng's sound depends slightly on what it said before. With a new process for every 32 sentences, whatever
        # the number of workers, the same seed gives the same samples.
        with multiprocessing.Pool(workers, maxtasksperchild=1) as pool:
            utterances = pool.map(speak, tasks, chunksize=32)
        write_mustc_split(root, split, utterances, SAMPLING_RATE)
        if split != "train":
            _write_alignments(root, split, utterances)
        hours = sum(len(utterance.samples) for utterance in utterances) / SAMPLING_RATE / 3600
        print(f"{split}: {len(utterances)} utterances, {hours:.2f} h", flush=True)


def _write_alignments(root: str | os.PathLike[str], split: str, utterances: list[Utterance]) -> None:
    rows = []
    for i, utterance in enumerate(utterances):
        sentence = utterance.sentence
        times = utterance.word_times or []
        rows.append(
            {
                "id": f"{split}-{i:04d}",
                "transcript": sentence.text,
                "translation_de": sentence.translation("de"),
                "translation_es": sentence.translation("es"),
                "speaker": utterance.speaker.removeprefix("espeak:"),
                "kind": sentence.kind,
                "words": [
                    {"word": word, "start": start, "end": end}
                    for word, (start, end) in zip(sentence.source, times, strict=True)
                ],
                "alignment": {language: sentence.alignment(language) for language in LANGUAGES},
                "moved": {language: sentence.moved(language) for language in LANGUAGES},
            }
        )
    folder = Path(root) / "alignments"
    folder.mkdir(exist_ok=True)
    with open(folder / f"{split}.json", "w", encoding="utf-8") as file:
        json.dump(rows, file, ensure_ascii=False, indent=1)

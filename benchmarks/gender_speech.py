"""The utterances of the study of gender: sentences that the training never saw, in voices that it never heard.

`sentences` draws them from the grammar of `recipes/train_tiny_models.py corpus --speaker-gender`, `spoken` has each of
them spoken by five women's and five men's voices of espeak-ng, `sweep` by voices whose pitch is moved and whose other
features (formants, breath, …) stay.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes"))  # speech is made by the training recipe

from tiny_speech.lexicon import KIN, PERSONS, PRONOUNS, SPEAKER_MOODS  # noqa: E402
from tiny_speech.sentences import SPEAKER_KINDS, Sentence, SpeakerGrammar  # noqa: E402
from tiny_speech.synthesis import (  # noqa: E402
    SAMPLING_RATE,
    TEST_VOICES,
    Voice,
    speak,
    synthesize,
    voice_gender,
    with_noise,
)

# What tells the gender: nothing but the voice; a noun before or after the adjective; in the third person a pronoun,
# which Spanish drops, or a noun.
GROUPS = ("voice", "noun before", "noun after", "pronoun", "third-person noun")
VOICES = (*(name.split("+")[1] for name in TEST_VOICES), "Andrea", "anika", "aunty", "antonio", "sandro", "victor")
HEARD = ("f1", "f4", "linda", "m1", "adam", "max")  # voices of the training, to compare with
ACCENTS = ("en-us", "en", "en-gb-x-rp")
# Voices of the sweep, and their base pitches in Hz: what espeak-ng's files call the lower end of the pitch.
DONORS = ("m4", "m7", "antonio", "f2", "f5", "Andrea", *HEARD)
BASES = (60, 75, 90, 105, 120, 135, 150, 165, 180, 200, 220)
LOW, HIGH = 75, 165  # a man's and a woman's usual pitch

# Spanish nouns that say somebody's gender, without articles.
NOUNS = {gender: {*(row[2] for row in KIN[gender]), *(row[2].split()[1] for row in PERSONS[gender])} for gender in "fm"}

_MOODS = {row[0]: row for row in SPEAKER_MOODS}


@dataclass(frozen=True)
class Case:
    """A sentence with an adjective whose gender is in question.

    Attributes:
        sentence: English and its translations.
        group: One of `GROUPS`.
        told: Gender that a word of the sentence tells, "f" or "m"; None where no word does.
        mood: Index of the English adjective.
        cue: Index of the English word that tells the gender; None where none does.
        prefix: Spanish text before the adjective.
        endings: The Spanish adjective by gender.
    """

    sentence: Sentence
    group: str
    told: str | None
    mood: int
    cue: int | None
    prefix: str
    endings: dict[str, str]


@dataclass(frozen=True)
class Spoken:
    """A case in a voice: samples at 16 kHz, the (start, end) of every English word in seconds."""

    case: Case
    voice: str
    samples: np.ndarray
    times: list[tuple[float, float]]

    @property
    def gender(self) -> str:
        """Gender of the voice, "f" or "m"."""
        return voice_gender(self.voice)


def case_of(sentence: Sentence, told: str) -> Case:
    """Return what is known of a sentence of a kind of `SPEAKER_KINDS`.

    Args:
        sentence: The sentence.
        told: Gender of its adjective.
    """
    words = [word.strip(".") for word in sentence.source]
    mood = next(i for i, word in enumerate(words) if word.lower() in _MOODS)
    cue, group = None, "voice"
    if sentence.kind != "speaker":
        pronoun = PRONOUNS[told][0]
        names = {pronoun} if pronoun in map(str.lower, words) else {row[0] for row in (*KIN[told], *PERSONS[told])}
        cue = next(i for i, word in enumerate(words) if word.lower() in names)
        if sentence.kind == "speaker-cue":
            group = "noun before" if cue < mood else "noun after"
        else:
            group = "pronoun" if pronoun in names else "third-person noun"
    _, _, masculine, feminine = _MOODS[words[mood].lower()]
    spanish = [word.strip(".") for word in sentence.words("es")]
    place = next(i for i, word in enumerate(spanish) if word in (masculine, feminine))
    endings = {"f": feminine, "m": masculine}
    return Case(sentence, group, None if cue is None else told, mood, cue, " ".join(spanish[:place]), endings)


def sentences(count: int, exclude: set[str], seed: int = 2026) -> list[Case]:
    """Return new sentences of every group, ``count`` each, half of them about women.

    Args:
        count: How many of each group, an even number.
        exclude: English texts that the training saw.
        seed: Same seed, same sentences.
    """
    grammar, seen = SpeakerGrammar(seed), set(exclude)
    found: dict[tuple[str, str], list[Case]] = {(group, gender): [] for group in GROUPS for gender in "fm"}
    while any(len(cases) < count // 2 for cases in found.values()):
        gender = grammar.random.choice("fm")
        sentence = grammar.of_kind(grammar.random.choice(SPEAKER_KINDS), gender)
        case = case_of(sentence, gender)
        cases = found[case.group, gender]
        if sentence.text not in seen and len(cases) < count // 2:
            seen.add(sentence.text)
            cases.append(case)
    return [case for cases in found.values() for case in cases]


def spoken(cases: Sequence[Case], voices: Sequence[str] = VOICES) -> list[Spoken]:
    """Return every case in every voice, at a random rate, pitch, level and noise."""
    tasks = [
        (case.sentence, f"espeak:{ACCENTS[i % len(ACCENTS)]}+{voice}", 77_000_000 + 1000 * i + v)
        for i, case in enumerate(cases)
        for v, voice in enumerate(voices)
    ]
    # New processes, since espeak-ng's sound depends a little on what it said before.
    with multiprocessing.Pool(1, maxtasksperchild=1) as pool:
        utterances = pool.map(speak, tasks, chunksize=32)
    said = (case for case in cases for _ in voices)
    return [
        Spoken(case, u.speaker.split("+")[1], u.samples, u.word_times or [])
        for case, u in zip(said, utterances, strict=True)
    ]


# -------------------------------------------------------------------------------------------------------------- sweep


def _espeak_data() -> Path:
    import subprocess

    told = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True).stdout
    return Path(told.split("Data at: ")[1].strip())


def write_voices(folder: Path) -> None:
    """Write espeak-ng's data with one more voice for every donor and base pitch, named such as "m4-120"."""
    source, target = _espeak_data(), folder / "espeak-ng-data"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "voices":
            (target / path.name).symlink_to(path)
    shutil.copytree(source / "voices", target / "voices", ignore=shutil.ignore_patterns("!v", "mb"))
    (target / "voices" / "!v").mkdir()
    for donor in DONORS:
        lines = (source / "voices" / "!v" / donor).read_text().splitlines()
        kept = [line for line in lines if line.split()[:1] not in (["pitch"], ["name"])]
        for base in BASES:
            head = ["language variant", f"name {donor}-{base}", f"pitch {base} {round(1.45 * base)}"]
            text = "\n".join([*head, *(line for line in kept if not line.startswith("language"))]) + "\n"
            (target / "voices" / "!v" / f"{donor}-{base}").write_text(text)


def _speak_at(task: tuple[Case, str, int, int, str]) -> tuple[Spoken, float]:
    case, donor, base, seed, folder = task
    os.environ["ESPEAK_DATA_PATH"] = folder
    samples, times = synthesize(case.sentence.text, Voice(f"espeak:en-us+{donor}-{base}"))
    noisy = with_noise(samples, np.random.default_rng(seed))
    return Spoken(case, donor, noisy, times or []), fundamental(samples)


def sweep(cases: Sequence[Case], folder: Path) -> list[tuple[Spoken, int, float]]:
    """Return every case in every donor's voice at every base pitch: the utterance, base and median pitch in Hz.

    Args:
        cases: Sentences.
        folder: Where the voices are written.
    """
    write_voices(folder)
    tasks = [
        (case, donor, base, 88_000_000 + i, str(folder))
        for i, case in enumerate(cases)
        for donor in DONORS
        for base in BASES
    ]
    with multiprocessing.Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(_speak_at, tasks, chunksize=32)
    return [(said, task[2], pitch) for (said, pitch), task in zip(found, tasks, strict=True)]


def fundamental(samples: np.ndarray) -> float:
    """Return the median pitch in Hz, from autocorrelation; NaN where nothing is voiced."""
    found = []
    for start in range(0, len(samples) - 1024, 320):
        frame = samples[start : start + 1024] - samples[start : start + 1024].mean()
        if frame.std() < 0.02 * np.abs(samples).max():
            continue
        correlation = np.correlate(frame, frame, "full")[1023:] / (frame**2).sum()
        low, high = SAMPLING_RATE // 420, SAMPLING_RATE // 55
        lag = low + int(np.argmax(correlation[low:high]))
        if correlation[lag] > 0.5:
            found.append(SAMPLING_RATE / lag)
    return float(np.median(found)) if found else float("nan")

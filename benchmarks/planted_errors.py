"""Errors of the shipped models whose cause is known, since the sound was made for it.

A word of a sentence is replaced by another of its class, so that the sentence stays one of the grammar:

- "sound": the sound says the other word, and the transcript the first one. What the model writes was *misheard*.
- "loud", "quiet", "silent": the word is drowned in white noise as loud as speech or 20 dB below, or silenced, and the
  model writes another one. It was *guessed*, or *not heard*.
- "forced": a text with the other word is given, which the sound contradicts. The sound speaks for what was said, so the
  text is *guessed*.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from tiny_speech import lexicon  # noqa: E402
from tiny_speech.sentences import Sentence, generate_sentences  # noqa: E402
from tiny_speech.synthesis import DEV_VOICES, SAMPLING_RATE, TEST_VOICES, Voice, synthesize  # noqa: E402

VOICES = {"dev": DEV_VOICES, "test": TEST_VOICES}
KINDS = ("sound", "loud", "quiet", "silent", "forced")
NOISES = ("loud", "quiet", "silent")

# What a verdict must be.
TRUE_VERDICTS = {
    "sound": ("misheard",),
    **dict.fromkeys(NOISES, ("guessed", "not heard")),
    "forced": ("guessed",),
}

# Words of which each may stand for any other of its class.
CLASSES = (
    tuple(noun[0] for noun in lexicon.NOUNS),
    tuple(noun[1] for noun in lexicon.NOUNS),
    tuple(adjective[0] for adjective in lexicon.ADJECTIVES),
    *(tuple(verb[i] for verb in lexicon.VERBS) for i in range(3)),
    tuple(name for name, _ in lexicon.NAMES),
    tuple(day[0] for day in lexicon.DAYS),
    tuple(lexicon.TENS_EN),
    tuple(lexicon.ONES_EN[1:10]),
)

_MARKS = ".?(),"
_MARGIN_S = 0.02  # of the word's time that is drowned as well


@dataclass(frozen=True)
class Planted:
    """An utterance with a planted error.

    Attributes:
        name: Which sentence and which kind.
        kind: One of `KINDS`.
        samples: (S,) at 16 kHz.
        reference: What the transcript says.
        times: Start and end of every word of the sound, in seconds.
        place: Index of the planted word.
        text: The text that is forced; None: what the model writes.
    """

    name: str
    kind: str
    samples: np.ndarray
    reference: tuple[str, ...]
    times: tuple[tuple[float, float], ...]
    place: int
    text: str | None = None

    @property
    def said(self) -> str:
        """The word of the transcript, in lower case and without marks."""
        return bare(self.reference[self.place])

    @property
    def span(self) -> tuple[float, float]:
        """When the planted word sounds, in seconds."""
        return self.times[self.place]


def bare(word: str) -> str:
    """Return a word in lower case and without marks."""
    return word.strip(_MARKS).lower()


def other_word(word: str, rng: random.Random) -> str | None:
    """Return another word of the same class, with the marks of the first; None where there is none."""
    own = word.strip(_MARKS)
    for words in CLASSES:
        if own.lower() in [w.lower() for w in words]:
            other = rng.choice([w for w in words if w.lower() != own.lower()])
            return word.replace(own, other) if own[0].isupper() == other[0].isupper() else None
    return None


def planted(sentences: int, split: str, seed: int = 0, kinds: Sequence[str] = KINDS) -> Iterator[Planted]:
    """Yield the planted errors of so many sentences, the kinds in turn.

    Args:
        sentences: How many sentences.
        split: "dev" or "test": whose voices speak.
        seed: Of sentences, words, voices and noise.
        kinds: Which of `KINDS`.
    """
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    for number, sentence in enumerate(generate_sentences(sentences, seed)):
        words = list(sentence.source)
        places = [(k, other) for k, word in enumerate(words) if (other := other_word(word, rng))]
        if not places:
            continue
        place, other = rng.choice(places)
        voice = Voice(rng.choice(VOICES[split]), rng.randrange(140, 205), rng.randrange(30, 70), rng.randrange(30, 70))
        yield from _of_sentence(f"{split}-{number}", sentence, place, other, voice, kinds, noise)


def _of_sentence(
    name: str,
    sentence: Sentence,
    place: int,
    other: str,
    voice: Voice,
    kinds: Sequence[str],
    noise: np.random.Generator,
) -> Iterator[Planted]:
    words = tuple(sentence.source)
    changed = (*words[:place], other, *words[place + 1 :])
    own, own_times = synthesize(sentence.text, voice)
    for kind in kinds:
        samples, times, text = own, own_times, None
        if kind == "sound":
            samples, times = synthesize(" ".join(changed), voice)
        elif kind == "forced":
            text = " ".join(changed)
        else:
            samples = drowned(own, own_times[place], kind, noise)
        yield Planted(f"{name}/{kind}", kind, samples, words, tuple(times), place, text)


def drowned(samples: np.ndarray, span: tuple[float, float], kind: str, noise: np.random.Generator) -> np.ndarray:
    """Return speech of which one word is replaced by noise, or by nothing.

    Args:
        samples: (S,) at 16 kHz.
        span: Start and end of the word, in seconds.
        kind: "loud" (white noise as loud as the speech), "quiet" (20 dB below) or "silent".
        noise: Where the noise comes from.
    """
    start = max(0, int((span[0] - _MARGIN_S) * SAMPLING_RATE))
    end = min(len(samples), int((span[1] + _MARGIN_S) * SAMPLING_RATE))
    level = {"loud": 1.0, "quiet": 0.1, "silent": 0.0}[kind] * samples.std()
    found = samples.copy()
    found[start:end] = level * noise.standard_normal(end - start)
    return found.astype(np.float32)

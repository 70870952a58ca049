"""When was each word spoken, if there is no alignment yet? Forced alignment with pocketsphinx (the extra "align")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from spes_hf.analysis.alignments import SILENCES, Alignment, AlignmentError, Phone, Word
from spes_hf.analysis.matching import normalise
from spes_hf.audio.load import load_audio
from spes_hf.errors import SpesError
from spes_hf.explanation import Explanation
from spes_hf.names import EXTRAS

_RATE_HZ = 16_000


def align_words(
    waveform: Any, text: str, sampling_rate: int = _RATE_HZ, pronunciations: Mapping[str, str] | None = None
) -> Alignment:
    """Return when each word of an English text was spoken, and each of its phones, by forced alignment.

    Uses the American English model and dictionary that come with pocketsphinx. Phones are those of the CMU dictionary
    ("S OW" for "so"); times are multiples of 10 ms. If the words are found but their phones are not, as in very fast
    speech, the words have no phones.

    Args:
        waveform: (S,) samples in [-1, 1], mono.
        text: What is said; case and punctuation do not matter.
        sampling_rate: Rate of the samples, in Hz.
        pronunciations: Phones of words that are not in the dictionary, such as ``{"rieti": "R IY EH T IY"}``.

    Raises:
        SpesError: If pocketsphinx is not installed.
        AlignmentError: If a word is not in the dictionary, or the text cannot be found in the audio.

    Examples:
        >>> sells = align_words(ex.waveform, "Tom sells a small picture.").words[1]
        >>> sells.text, [phone.label for phone in sells.phones]
        ('sells', ['S', 'EH', 'L', 'Z'])
    """
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise SpesError(
            f"forced alignment needs pocketsphinx, which is not installed: run `pip install '{EXTRAS['align']}'` "
            "(the extra 'align')"
        ) from error
    words = [part for word in text.replace("-", " ").split() if (part := normalise(word, apostrophes=True))]
    if not words:
        raise AlignmentError(f"text is {text!r}, which has no words to align; pass what is said")
    decoder = Decoder(lm=None, loglevel="FATAL", samprate=float(_RATE_HZ))
    for word, phones in (pronunciations or {}).items():
        decoder.add_word(normalise(word, apostrophes=True), phones, True)
    unknown = sorted({word for word in words if decoder.lookup_word(word) is None})
    if unknown:
        raise AlignmentError(
            f"text has {', '.join(map(repr, unknown))}, not in the dictionary; pass the phones, "
            f'pronunciations={{"{unknown[0]}": …}}, as the CMU dictionary writes them ("K AE T" for "cat")'
        )
    samples = _pcm(waveform, sampling_rate)
    failure = f"text {text!r} cannot be aligned with {len(samples) / 2 / _RATE_HZ:.1f} s of audio; pass what is said"
    try:
        decoder.set_align_text(" ".join(words))
        _decode(decoder, samples)
        aligned = [] if decoder.hyp() is None else _words(decoder)
    except RuntimeError as error:
        raise AlignmentError(failure) from error
    if [word.text for word in aligned] != words:
        raise AlignmentError(failure)
    try:
        decoder.set_alignment()  # a second pass, which usually finds the phones
        _decode(decoder, samples)
        with_phones = _words_and_phones(decoder)
    except RuntimeError:
        return Alignment(tuple(aligned))
    return Alignment(tuple(with_phones if [word.text for word in with_phones] == words else aligned))


def align_explanation(explanation: Explanation) -> Alignment:
    """Return when each word of an explained transcript was spoken; see `align_words`. Only for English transcripts.

    Raises:
        SpesError: If pocketsphinx is not installed.
        AlignmentError: If a word is not in the dictionary, or the text cannot be found in the audio.

    Examples:
        >>> [word.text for word in align_explanation(ex).words]
        ['tom', 'sells', 'a', 'small', 'picture']
    """
    found = align_words(explanation.waveform, explanation.text, explanation.sampling_rate)
    start = float(explanation.origin.window.get("start_s", 0.0))  # of a window in its recording
    return Alignment(tuple(_moved(word, start) for word in found.words)) if start else found


def _moved(word: Word, seconds: float) -> Word:
    """Return a word and its phones, moved later by this time."""
    phones = tuple(replace(phone, start=phone.start + seconds, end=phone.end + seconds) for phone in word.phones)
    return replace(word, start=word.start + seconds, end=word.end + seconds, phones=phones)


def _words(decoder: Any) -> list[Word]:
    """Return the words of the first pass; a segment's last frame belongs to its word."""
    step = 1 / decoder.config["frate"]
    found = [(_spoken(entry.word), entry.start_frame, entry.end_frame + 1) for entry in decoder.seg()]
    return [Word(text, start * step, end * step) for text, start, end in found if text]


def _words_and_phones(decoder: Any) -> list[Word]:
    """Return the words of the second pass, with their phones."""
    step = 1 / decoder.config["frate"]
    found = []
    for entry in decoder.get_alignment():
        phones = tuple(Phone(p.name, p.start * step, (p.start + p.duration) * step) for p in entry)
        if _spoken(entry.name):
            end = (entry.start + entry.duration) * step
            found.append(Word(_spoken(entry.name), entry.start * step, end, phones))
    return found


def _spoken(name: str) -> str:
    """Return a word without its pronunciation number; "" for silence and noise."""
    word = re.sub(r"\(\d+\)$", "", name)
    return "" if word.lower() in SILENCES or word.startswith("[") else word


def _decode(decoder: Any, samples: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)
    decoder.end_utt()


def _pcm(waveform: Any, sampling_rate: int) -> bytes:
    """Return samples as 16-bit PCM at 16 kHz."""
    samples = load_audio(np.asarray(waveform, dtype=np.float32), _RATE_HZ, sampling_rate).samples
    return (np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes()

"""Did the model hear that, or make it up? Bits of evidence from the sound, in three passes and without a map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spes_hf.adapters import get_adapter
from spes_hf.adapters.output import output_of
from spes_hf.audio.load import load_audio
from spes_hf.bits import Verdict, bits_per_word, is_fitted, not_heard, probability_made_up, verdict_of
from spes_hf.checks import check_whole
from spes_hf.masking.draw import mask_key
from spes_hf.runtime.precision import check_autocast, precision_of
from spes_hf.scoring.evidence import measure_evidence
from spes_hf.text import join_pieces, word_groups


@dataclass(frozen=True)
class Hearing:
    """What a model wrote, and how much of it came from the sound.

    Attributes:
        text: The output.
        words: Its words; punctuation marks are words of their own.
        word_bits: For every word, log2 of how much likelier the sound made it (`Explanation.sound_bits`).
        bits_per_token: Mean over all but special tokens, the best indicator; NaN if there are none.
        reached_length_limit: Whether a length limit cut the text.
        text_given: Whether the text was given, not generated.
        fitted: Whether the limit between heard and made up was fitted on such models, as it was on Whisper.

    Examples:
        >>> hearing = sound_check(model, processor, clip, text="Tom sells a small garden.")
        >>> hearing.not_heard
        ('garden',)
    """

    text: str
    words: tuple[str, ...]
    word_bits: tuple[float, ...]
    bits_per_token: float
    reached_length_limit: bool = False
    text_given: bool = False
    fitted: bool = True

    @property
    def verdict(self) -> Verdict:
        """The likelier of "made up" and "heard"; "nothing written" if there are no words, "given" for a given text."""
        return verdict_of(self.text, self.bits_per_token, self.text_given, self.fitted)

    @property
    def bits_per_word(self) -> float:
        """Mean over the words that have a letter or digit; NaN if there are none."""
        return bits_per_word(self.words, self.word_bits)

    @property
    def probability_made_up(self) -> float:
        """Probability that output with these bits a token was made up, if one in ten is; NaN if nothing is written."""
        return probability_made_up(self.bits_per_token if self.fitted else math.nan)

    @property
    def not_heard(self) -> tuple[str, ...]:
        """The words that got under 1 bit from the sound."""
        return tuple(word for word, _ in not_heard(self.words, self.word_bits))

    def __str__(self) -> str:
        shown = {"made up": "probably made up, ", "heard": "heard, "}
        if self.verdict == "nothing written":
            return "nothing written"
        return f"{self.text.strip()!r}: {shown.get(self.verdict, '')}{self.bits_per_token:.1f} bits a token"


def sound_check(
    model: Any,
    processor: Any = None,
    audio: Any = None,
    sampling_rate: int | None = None,
    language: str | None = None,
    task: str | None = None,
    tgt_lang: str | None = None,
    text: str | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    autocast: str | None = None,
    prompt: str | None = None,
) -> Hearing:
    """Return what the model writes for this audio, and whether it heard that or made it up.

    Runs the model once to write, once on its output, and once on the same output without the sound: no masks, no map.
    Arguments as for `explain`. The probability was fitted on Whisper. For a model that knows few sentences, every
    output has fewer bits: compare them with those of outputs that you trust.

    Examples:
        >>> hearing = sound_check(model, processor, clip)
        >>> hearing.words
        (' Tom', ' sells', ' a', ' small', ' picture', '.')
        >>> len(hearing.word_bits), hearing.not_heard
        (6, ())

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        AudioError: If the audio cannot be read, or is too short or too long.
        ConfigError: If an argument has a value that is not allowed.
    """
    return SoundChecker(model, processor, autocast=autocast)(
        audio,
        sampling_rate=sampling_rate,
        language=language,
        task=task,
        tgt_lang=tgt_lang,
        text=text,
        generate_kwargs=generate_kwargs,
        prompt=prompt,
    )


class SoundChecker:
    """`sound_check` for many utterances: checks model and processor once.

    Args:
        model: A speech-to-text model of a known family, or a pipeline; it is left unchanged.
        processor: Its processor.
        seed: Seed for generation that samples.
        autocast: As for `spes_hf.explain`.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If the seed is not a whole number, or autocast is not allowed.

    Examples:
        >>> check = SoundChecker(model, processor)
        >>> [check(path).text for path in clips[:2]]
        ['Tom sells a small picture.', 'At half past eleven Tom needs the beautiful house.']
    """

    def __init__(self, model: Any, processor: Any = None, *, seed: int = 0, autocast: str | None = None):
        self.adapter = get_adapter(model, processor)
        self.seed = check_whole("seed", seed)
        self.autocast = check_autocast(autocast)

    def __call__(
        self,
        audio: Any,
        *,
        sampling_rate: int | None = None,
        language: str | None = None,
        task: str | None = None,
        tgt_lang: str | None = None,
        text: str | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        utterance_id: str = "",
        prompt: str | None = None,
    ) -> Hearing:
        """Return the check of one utterance; arguments as for `Explainer`."""
        adapter = self.adapter
        options = adapter.options_of(language, task, tgt_lang, generate_kwargs, text is not None, prompt)
        waveform = load_audio(audio, adapter.sampling_rate, sampling_rate)
        seed = mask_key(self.seed, utterance_id, "generate")
        precision = precision_of(self.autocast, adapter.device.type)
        with output_of(adapter, waveform, options, text, seed, precision) as output:
            target = output.target
            evidence = measure_evidence(adapter, output.utterance, target, states=output.states, of_text=False)
        pieces, special = adapter.pieces(target.token_ids), adapter.is_special(target.token_ids)
        groups = word_groups(pieces, special)
        words = tuple(join_pieces([pieces[k] for k in group]) for group in groups)
        bits = tuple(float(evidence.sound_bits[list(group)].sum()) for group in groups)
        written = evidence.sound_bits[[not s for s in special]]
        mean = float(written.mean()) if len(written) else math.nan
        return Hearing(
            text=adapter.text(target.token_ids),
            words=words,
            word_bits=bits,
            bits_per_token=mean,
            reached_length_limit=not target.complete,
            text_given=text is not None,
            fitted=is_fitted(adapter.model.config.model_type),
        )

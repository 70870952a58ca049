"""Bits of evidence from the sound: over words, as a verdict, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

# Words with fewer bits: without the sound, the model would have written them half as surely or more.
NOT_HEARD_BITS = 1.0

# Log-odds that an output was made up = INTERCEPT + SLOPE · log2(1 + bits a token), if one output in ten is. Fitted by
# benchmarks/hallucination.py on one half of the speakers and sounds; docs/hallucination.md reports the other half.
INTERCEPT, SLOPE = 17.37, -7.19

# Below this number of bits a token, an output was likelier made up than heard.
MADE_UP_BITS = 2 ** (-INTERCEPT / SLOPE) - 1

# Families that this was fitted on, by their config's model_type. Other models give other numbers of bits.
_FITTED_ON = ("whisper",)

Verdict = Literal["heard", "made up", "nothing written", "given", "not known"]


def verdict_of(text: str, bits_per_token: float, text_given: bool = False, fitted: bool = True) -> Verdict:
    """Return whether an output was heard or made up, whichever is likelier.

    "nothing written": it has no letter or digit; "given": the text was given; "not known": its bits are NaN.

    Args:
        text: The output.
        bits_per_token: Mean bits from the sound; NaN if they are not known.
        text_given: Whether the text was given.
        fitted: Whether the limit was fitted on such models (`is_fitted`); if not, the verdict is "not known".

    Examples:
        >>> verdict_of("Thank you.", 0.3), verdict_of("Thank you.", 12.0), verdict_of("…", 0.3)
        ('made up', 'heard', 'nothing written')
    """
    if not any(c.isalnum() for c in text):
        return "nothing written"
    if text_given:
        return "given"
    if math.isnan(bits_per_token) or not fitted:
        return "not known"
    return "made up" if probability_made_up(bits_per_token) > 0.5 else "heard"


def is_fitted(model_type: str | None) -> bool:
    """Return whether the limit between heard and made up was fitted on models of this type.

    Args:
        model_type: Of the model's config; None, of a provenance that does not say it, counts as fitted.

    Examples:
        >>> is_fitted("whisper"), is_fitted("speech_to_text")
        (True, False)
    """
    return model_type is None or model_type in _FITTED_ON


def bits_per_word(words: Sequence[str], bits: Iterable[float]) -> float:
    """Return the mean of the bits of the words that have a letter or digit; NaN if there are none.

    Examples:
        >>> bits_per_word([" Tom", " sells", "."], [2.0, 4.0, 9.0])
        3.0
    """
    found = [b for _, b in spoken(words, bits)]
    return sum(found) / len(found) if found else math.nan


def spoken(words: Sequence[str], bits: Iterable[float]) -> list[tuple[str, float]]:
    """Return the words that have a letter or digit, without spaces, with their bits.

    Examples:
        >>> spoken([" Tom", " sells", "."], [2.0, 4.0, 9.0])
        [('Tom', 2.0), ('sells', 4.0)]
    """
    return [(w.strip(), float(b)) for w, b in zip(words, bits, strict=True) if any(c.isalnum() for c in w)]


def not_heard(words: Sequence[str], bits: Iterable[float]) -> list[tuple[str, float]]:
    """Return the words that got under 1 bit from the sound, as `spoken` returns them.

    Examples:
        >>> not_heard([" Thank", " you", "."], [0.2, 4.0, 0.1])
        [('Thank', 0.2)]
    """
    return [(word, b) for word, b in spoken(words, bits) if b < NOT_HEARD_BITS]


def probability_made_up(mean_bits: float) -> float:
    """Return the probability that an output was made up, from its bits a token; NaN for NaN.

    Examples:
        >>> [round(probability_made_up(bits), 2) for bits in (0.3, 4.0, 20.0)]
        [1.0, 0.66, 0.0]
    """
    if math.isnan(mean_bits):
        return math.nan
    return 1 / (1 + math.exp(-(INTERCEPT + SLOPE * math.log2(1 + max(0.0, mean_bits)))))


def in_words(bits: float, odds: bool = False) -> str:
    """Return what a number of bits means, such as "8 bits: 256 times likelier with the sound than without".

    Args:
        bits: Bits from the sound.
        odds: Whether the bits are of the odds of one word against another: "the odds are 256 times higher with the
            sound than without".

    Examples:
        >>> in_words(8.0)
        '8.0 bits: 256 times likelier with the sound than without'
        >>> in_words(-1.0, odds=True)
        '-1.0 bits: the odds are 2.0 times lower with the sound than without'
    """
    if math.isnan(bits):
        return "not known"
    times = 2 ** min(abs(bits), 1000.0)
    shown = "over a million" if times > 1e6 else f"{times:,.0f}" if times >= 10 else f"{times:.1f}"
    if abs(bits) < 0.05:
        return f"0 bits: {'the same odds' if odds else 'as likely'} without the sound"
    moved = ("higher" if bits > 0 else "lower") if odds else ("likelier" if bits > 0 else "less likely")
    return f"{bits:.1f} bits: {'the odds are ' * odds}{shown} times {moved} with the sound than without"

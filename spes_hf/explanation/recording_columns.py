"""The small data of a recording's windows: numbers for each token, and how much of each segment was heard."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from spes_hf.bits import Verdict, is_fitted, probability_made_up, verdict_of
from spes_hf.explanation.result import Explanation

# Share of a window's features that decide when a word was heard (docs/recordings.md).
TOP = 0.0025


@dataclass(frozen=True)
class HeardSegment:
    """A segment of a recording, and how much of it came from the sound.

    Attributes:
        start_s: Start, in seconds.
        end_s: End, in seconds.
        text: Text that the model wrote for it.
        bits_per_token: Mean bits from the sound over its tokens; NaN if there are none.
        fitted: Whether the limit between heard and made up was fitted on such models.

    Examples:
        >>> segment = HeardSegment(0.0, 2.5, "Thank you.", bits_per_token=0.3)
        >>> segment.verdict, round(segment.probability_made_up, 2)
        ('made up', 1.0)
    """

    start_s: float
    end_s: float
    text: str
    bits_per_token: float
    fitted: bool = True

    @property
    def verdict(self) -> Verdict:
        """Whether the model heard it or made it up, as `Explanation.verdict`."""
        return verdict_of(self.text, self.bits_per_token, fitted=self.fitted)

    @property
    def probability_made_up(self) -> float:
        """Probability that it was made up, if one output in ten is; NaN if its bits, or the limit, are not known."""
        return probability_made_up(self.bits_per_token if self.fitted else math.nan)


@dataclass(frozen=True)
class Columns:
    """The small data of a window's explanation.

    Attributes:
        tokens: Text of every token or word.
        probabilities: (K,) probability of each.
        sound_bits: (K,) bits from the sound for each.
        text_bits: (K,) bits from the text before each.
        reliability: (K,) reliability of each map.
        sentence: Reliability of the sentence's map.
        written_bits: Bits of all tokens that are text, explained or not, by their index in the window's output.
        fitted: Whether the limit between heard and made up was fitted on such models.

    Examples:
        >>> columns = Columns.of(ex.words())
        >>> columns.tokens[:2], len(columns.sound_bits)
        ([' Tom', ' sells'], 6)
    """

    tokens: list[str]
    probabilities: Tensor
    sound_bits: Tensor
    text_bits: Tensor
    reliability: Tensor
    sentence: float
    written_bits: dict[int, float]
    fitted: bool

    @classmethod
    def of(cls, explanation: Explanation) -> Columns:
        """Return the columns of an explanation, over tokens or words."""
        return cls(
            tokens=explanation.tokens,
            probabilities=explanation.token_probabilities,
            sound_bits=explanation.sound_bits,
            text_bits=explanation.text_bits,
            reliability=explanation.reliability.tokens,
            sentence=explanation.reliability.sentence,
            written_bits=explanation.written_bits,
            fitted=is_fitted(explanation.origin.model.get("type")),
        )

"""What is small of the windows of a recording: numbers by token, and what was heard of each segment."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spes_hf.bits import Verdict, probability_made_up, verdict_of
from spes_hf.explanation.result import Explanation

# Share of a window's features that say when a word was heard (docs/recordings.md).
TOP = 0.0025


@dataclass(frozen=True)
class HeardSegment:
    """A segment of a recording, and how much of it came from the sound.

    Attributes:
        start_s: Where it starts, in seconds.
        end_s: Where it ends.
        text: What was written for it.
        bits_per_token: Mean bits from the sound of its tokens; NaN where there are none.
    """

    start_s: float
    end_s: float
    text: str
    bits_per_token: float

    @property
    def verdict(self) -> Verdict:
        """Whether it was heard or made up, as `Explanation.verdict`."""
        return verdict_of(self.text, self.bits_per_token)

    @property
    def probability_made_up(self) -> float:
        """That it was made up, if one output in ten is; NaN where its bits are not known."""
        return probability_made_up(self.bits_per_token)


@dataclass(frozen=True)
class Columns:
    """What is small of the explanation of a window.

    Attributes:
        tokens: Of every token or word.
        probabilities: (K,) likewise, as what follows.
        sound_bits: (K,).
        text_bits: (K,).
        reliability: (K,).
        sentence: Reliability of the sentence's map.
        written_bits: Bits of all tokens that are text, explained or not, by their index in the window's output.
    """

    tokens: list[str]
    probabilities: Tensor
    sound_bits: Tensor
    text_bits: Tensor
    reliability: Tensor
    sentence: float
    written_bits: dict[int, float]

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
        )

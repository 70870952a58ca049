"""What went wrong, word by word: misheard, guessed or not heard."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from spes_hf.explanation.result import Explanation

ErrorKind = Literal["substitution", "insertion", "deletion", "several words"]
ErrorVerdict = Literal["misheard", "guessed", "not heard", "unsure", "not known"]

VERDICTS: tuple[ErrorVerdict, ...] = ("misheard", "guessed", "not heard", "unsure", "not known")

# A word is misheard from this number of bits from its own stretch of sound. Set by benchmarks/diagnosis.py on voices
# other than those in docs/contrast.md.
MISHEARD_BITS = 1.25

# Within this distance of the bound, the verdict is "unsure".
UNSURE_BITS = 0.25

# If a stretch moves neither word by this number of bits, it holds nothing to hear.
NOTHING_BITS = 0.25


@dataclass(frozen=True)
class WordError:
    """One error: what the model wrote, what was said, and where the wrong words come from.

    All bits are log-odds of what was written against what was said, given the text before it. Above 0, the model
    prefers what it wrote. ``log_odds`` = ``context`` + ``evidence``.

    Attributes:
        kind: "substitution", "insertion" (written, not said), "deletion" (said, not written) or "several words" (the
            texts differ in a stretch of words, and in their number).
        written: The words that the model wrote; "" for none.
        said: The words of the reference; "" for none.
        written_words: Their indices among the words of `Diagnosis.written`.
        said_words: Indices of the words of the reference among those of `Diagnosis.said`.
        log_odds: The log-odds with all of the sound.
        context: The log-odds with the words' own stretch of sound made unintelligible. They come from earlier text and
            the rest of the sound.
        evidence: What that stretch adds.
        without_sound: The log-odds without any sound: what the model would have guessed.
        written_evidence: How many bits the stretch adds to what was written.
        said_evidence: How many bits it adds to what was said.
        deviation: Standard error of the evidence, from several ways of making the stretch unintelligible.
        stretch: Start and end of the words' own stretch, in seconds.
        reliability: Split-half reliability of the contrast's map.
        row: Index of the contrast in `Diagnosis.explanation`; None if there is none.
        why_not: Why the error could not be examined; "" if it was.

    Examples:
        >>> (error,) = diagnose(model, processor, clip, "Tom sells a small pitcher.").errors
        >>> error.kind, error.written, error.said, error.verdict
        ('substitution', 'picture', 'pitcher', 'misheard')
    """

    kind: ErrorKind
    written: str
    said: str
    written_words: tuple[int, ...] = ()
    said_words: tuple[int, ...] = ()
    log_odds: float = math.nan
    context: float = math.nan
    evidence: float = math.nan
    without_sound: float = math.nan
    written_evidence: float = math.nan
    said_evidence: float = math.nan
    deviation: float = math.nan
    stretch: tuple[float, float] = (math.nan, math.nan)
    reliability: float = math.nan
    row: int | None = None
    why_not: str = ""

    @property
    def verdict(self) -> ErrorVerdict:
        """Where the wrong words come from.

        "misheard": their own stretch of sound, as the model hears it, speaks for them. "guessed": the stretch speaks
        for what was said, or hardly at all, and the context decides. "not heard": the stretch says nothing about
        either. "unsure": the evidence is too close to the bound, or too noisy. "not known": the error could not be
        examined; ``why_not`` says why.
        """
        if math.isnan(self.evidence):
            return "not known"
        if abs(self.evidence - MISHEARD_BITS) < max(UNSURE_BITS, self.deviation):
            return "unsure"
        if self.evidence > MISHEARD_BITS:
            return "misheard"
        silent = abs(self.written_evidence) < NOTHING_BITS and abs(self.said_evidence) < NOTHING_BITS
        return "not heard" if silent else "guessed"

    @property
    def name(self) -> str:
        """The error in words: "country, said county"."""
        return f"{self.written or '(nothing)'}, said {self.said or '(nothing)'}"

    def __str__(self) -> str:
        if self.verdict == "not known":
            return f"{self.name}: not known ({self.why_not})"
        start, end = self.stretch
        return (
            f"{self.name}: {self.verdict}; {self.log_odds:+.1f} bits = {self.context:+.1f} context "
            f"{self.evidence:+.1f} sound at {start:.2f}–{end:.2f} s; without any sound {self.without_sound:+.1f}"
        )


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What a model wrote against what was said, and where each error comes from.

    Attributes:
        text: What the model wrote.
        reference: What was said.
        written: Words of the text; punctuation marks are words of their own.
        said: Words of the reference, without marks.
        errors: The errors in the order of the text.
        explanation: The contrasts, with their maps; None if there is no error that could be examined.

    Examples:
        >>> found = diagnose(model, processor, clip, "Tom sells a small pitcher.")
        >>> f"{found.wer:.0%}", found.written[4], found.said[4]
        ('20%', 'picture', 'pitcher')
    """

    text: str
    reference: str
    written: tuple[str, ...]
    said: tuple[str, ...]
    errors: tuple[WordError, ...]
    explanation: Explanation | None = None

    @property
    def wer(self) -> float:
        """Word error rate: wrong, missing and extra words over the words of the reference, without punctuation."""
        wrong = sum(max(len(e.written_words), len(e.said_words)) for e in self.errors)
        return wrong / len(self.said)

    @property
    def verdicts(self) -> dict[ErrorVerdict, int]:
        """Number of errors by verdict, including verdicts that do not occur."""
        found = Counter(error.verdict for error in self.errors)
        return {verdict: found[verdict] for verdict in VERDICTS}

    def __str__(self) -> str:
        if not self.errors:
            return f"{self.text.strip()!r}: no error"
        counted = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts.items() if count)
        errors = f"{len(self.errors)} error{'s' * (len(self.errors) != 1)}"
        lines = [f"{self.text.strip()!r}: {errors} ({counted}), WER {self.wer:.0%}"]
        return "\n".join([*lines, *(f"  {error}" for error in self.errors)])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Return texts, errors and verdicts as values for JSON; NaN becomes None."""
        errors = [{**asdict(error), "verdict": error.verdict} for error in self.errors]
        found = {"text": self.text, "reference": self.reference, "wer": self.wer, "errors": errors}
        return _plain({**found, "written": self.written, "said": self.said})

    @classmethod
    def from_dict(cls, values: dict[str, Any], explanation: Explanation | None = None) -> Diagnosis:
        """Return the diagnosis that `to_dict` converted."""
        return cls(
            values["text"],
            values["reference"],
            tuple(values["written"]),
            tuple(values["said"]),
            tuple(_error(entries) for entries in values["errors"]),
            explanation,
        )

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page with both texts, and the map and the sound of every error; return its path."""
        from spes_hf.viz import write_diagnosis_html

        return write_diagnosis_html(self, Path(path))


def _error(entries: dict[str, Any]) -> WordError:
    values: dict[str, Any] = {name: value for name, value in entries.items() if name != "verdict"}
    numbers = ("log_odds", "context", "evidence", "without_sound", "written_evidence", "said_evidence")
    for name in (*numbers, "deviation", "reliability"):
        values[name] = math.nan if values[name] is None else float(values[name])
    start, end = values["stretch"]
    values["stretch"] = (math.nan if start is None else start, math.nan if end is None else end)
    values |= {name: tuple(values[name]) for name in ("written_words", "said_words")}
    return WordError(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""A capacity plan: what a number of hours of speech costs on a number of devices, in passes, hours and bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spes_hf.adapters import Adapter
from spes_hf.adapters.output import Output
from spes_hf.capacity.measured import Measured
from spes_hf.capacity.operations import Operations, noise_of
from spes_hf.capacity.passes import Passes, dry_run, made_up_target, passes_of
from spes_hf.errors import ConfigError
from spes_hf.methods import ExplainConfig
from spes_hf.metrics import WORD_DELETION_FRACTIONS, WORD_INSERTION_FRACTIONS
from spes_hf.metrics.deletion import check_fractions

# Dense bfloat16 (T4, V100: float16) operations per second, in units of 10^12, from the makers' data sheets.
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "V100": 125, "T4": 65}

TOKENS_PER_WORD = 4 / 3


@dataclass(frozen=True)
class Work:
    """The work for one utterance.

    Attributes:
        seconds: Length of the utterance.
        tokens: Number of tokens the model writes, including the end-of-sequence token.
        passes: Passes of the explanation.
        generations: How many times the model generates the text: once, plus once per step of a curve.
        metrics: Passes of the metrics.
        row_bytes: Size of its row on disk.
    """

    seconds: float
    tokens: int
    passes: Passes
    generations: int
    metrics: Passes
    row_bytes: int

    @classmethod
    def of(
        cls,
        adapter: Adapter,
        config: ExplainConfig,
        seconds: float,
        tokens: int,
        metrics: Sequence[str] = (),
        fractions: str = "paper",
        max_words: int | None = None,
        over: str = "spectrogram",
    ) -> Work:
        """Return the work for an utterance.

        Args:
            adapter: The model's adapter, with or without weights.
            config: Method and settings.
            seconds: Length of the utterance.
            tokens: Number of tokens the model writes.
            metrics: Any of "deletion", "insertion", "size", "word_deletion", "word_insertion".
            fractions: "paper" or "fine", the steps of deletion and insertion.
            max_words: Maximum number of words that the word metrics score.
            over: As for `spes_hf.explain`.
        """
        steps = len(check_fractions(fractions))
        curves = sum(name in metrics for name in ("deletion", "insertion"))
        words = round(tokens / TOKENS_PER_WORD)
        words = words if max_words is None else min(words, max_words)
        of_word = {"word_deletion": len(WORD_DELETION_FRACTIONS), "word_insertion": len(WORD_INSERTION_FRACTIONS)}
        judged = Passes(
            whole=words * sum(count for name, count in of_word.items() if name in metrics), heard=steps * curves
        )
        return cls(
            seconds,
            tokens,
            passes_of(config, tokens, over),
            1 + steps * curves,
            judged,
            row_bytes(adapter, config, seconds, tokens, over),
        )

    def operations(self, each: Operations) -> int:
        """Return the operations of all passes under masks and of the metrics, without those of generation (few)."""
        return each.of(self.passes) + each.of(self.metrics)


def row_bytes(adapter: Adapter, config: ExplainConfig, seconds: float, tokens: int, over: str = "spectrogram") -> int:
    """Return the size of an utterance's row in bytes, from an utterance of noise with the same shapes.

    Args:
        adapter: The model's adapter, with or without weights.
        config: Method and settings.
        seconds: Length of the utterance.
        tokens: Number of tokens the model writes.
        over: As for `spes_hf.explain`.
    """
    for masks in (4, 32, 256):  # as few as the config allows: the number of masks does not change any shape
        try:
            counts = {"num_spectrogram_masks": masks, "num_token_masks": min(masks, 4)}
            config = config.changed(**config.read(counts))
            break
        except ConfigError:
            continue
    utterance = adapter.encode(noise_of(adapter, seconds))
    target = made_up_target(tokens)
    _, found = dry_run(config, utterance, target, over)
    provenance: dict[str, Any] = {"config": config.to_dict()}
    explanation = found.explanation(adapter, Output(utterance, target, None), provenance)
    numbers = 3 * 8 * tokens  # probability, sound bits and text bits of every token
    return len(explanation.to_row()["explanation"]) + numbers


@dataclass(frozen=True)
class Plan:
    """Capacity for a corpus.

    Attributes:
        work: The work for one utterance.
        hours: Hours of speech.
        devices: Number of devices.
        each: Operations per pass; None if seconds were measured.
        teraflops: Operations per second that a device reaches, in units of 10^12; NaN if seconds were measured.
        token_ms: Milliseconds to write a token, one utterance at a time; NaN if seconds were measured.
        measured: Seconds measured on one such device; None if they were not measured.
    """

    work: Work
    hours: float
    devices: int
    each: Operations | None = None
    teraflops: float = math.nan
    token_ms: float = math.nan
    measured: Measured | None = None

    @property
    def utterances(self) -> int:
        """Number of utterances in those hours."""
        return math.ceil(self.hours * 3600 / self.work.seconds)

    @property
    def seconds(self) -> float:
        """Device seconds per utterance."""
        work = self.work
        if self.measured is not None:
            own = self.measured
            judged = work.metrics.whole * own.whole + work.metrics.heard * own.heard
            return own.explaining + (work.generations - 1) * own.writing + judged
        assert self.each is not None
        writing = work.generations * work.tokens * self.token_ms / 1000
        return work.operations(self.each) / (self.teraflops * 1e12) + writing

    @property
    def device_hours(self) -> float:
        """Device hours for the whole corpus."""
        return self.utterances * self.seconds / 3600

    @property
    def wall_hours(self) -> float:
        """Hours until the job is done, if there are enough utterances for all devices."""
        return self.device_hours / self.devices

    @property
    def bytes(self) -> int:
        """Size of the corpus's rows on disk."""
        return self.utterances * self.work.row_bytes

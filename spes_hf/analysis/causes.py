"""Where do the errors of a corpus come from? Shares of misheard, guessed and not heard; confusions; groups."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from spes_hf.analysis.stats import Test, permutation_of_means, to_json
from spes_hf.errors import ConfigError
from spes_hf.explanation.diagnosis import VERDICTS, Diagnosis, ErrorVerdict
from spes_hf.explanation.diagnosis_rows import diagnosis_of, frequency_profile_of
from spes_hf.metrics.bootstrap import bootstrap_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOWEST_COUNT = 2  # minimum count of a confusion to be listed
_NO_PROFILE = np.full((0, 0), np.nan)


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval, by bootstrap over utterances; NaN if there is nothing to count."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:.0%} ({self.low:.0%}–{self.high:.0%})"


@dataclass(frozen=True, eq=False)
class ErrorGroup:
    """Errors of some utterances.

    Attributes:
        name: "all", or a value of the column.
        utterances: Number of utterances.
        words: Number of words in their references.
        errors: Number of errors.
        wer: Word error rate.
        shares: Share of the errors by verdict.

    Examples:
        >>> group = error_causes([diagnosed]).all
        >>> group.words, group.errors, str(group.wer), str(group.shares["misheard"])
        (5, 1, '20% (20%–20%)', '100% (100%–100%)')
    """

    name: str
    utterances: int
    words: int
    errors: int
    wer: Rate
    shares: dict[ErrorVerdict, Rate]


@dataclass(frozen=True, eq=False)
class Confusion:
    """A confusion of words.

    Attributes:
        said: The words of the reference; "" for an insertion.
        written: The words that the model wrote; "" for a deletion.
        count: How often it occurs.
        verdicts: Number of these errors by verdict.
        evidence: Mean bits from the errors' own stretches.
        profile: (C,) mean evidence for the written word by frequency, within the stretch, in bits.
        low: (C,) lower end of the profile's 95 % interval, by bootstrap over the errors; NaN for a single error.
        high: (C,) upper end of the interval.

    Examples:
        >>> (confusion,) = error_causes([diagnosed, diagnosed]).confusions
        >>> confusion.name, confusion.count, confusion.verdicts["misheard"], confusion.evidence > 0
        ('pitcher → picture', 2, 2, True)
    """

    said: str
    written: str
    count: int
    verdicts: dict[ErrorVerdict, int]
    evidence: float
    profile: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def name(self) -> str:
        """The confusion in words."""
        return f"{self.said or '(nothing)'} → {self.written or '(nothing)'}"


@dataclass(frozen=True, eq=False)
class ErrorCauses:
    """Where the errors of a corpus come from.

    Attributes:
        all: All utterances.
        groups: Utterances grouped by the chosen column.
        by: The chosen column.
        tests: For every pair of groups, permutation tests over utterances of the error rate ("wer") and of the share
            of misheard errors ("misheard").
        confusions: Confusions, most frequent first.
        frequencies: (C,) frequencies of the profiles, in Hz.
        skipped: Number of rows with an error.

    Examples:
        >>> print(error_causes([diagnosed]).to_markdown())
        |  | utterances | errors | WER | ...
        ...
        | pitcher → picture | 1 | 1 misheard | ... |
    """

    all: ErrorGroup
    groups: tuple[ErrorGroup, ...]
    by: str | None
    tests: dict[tuple[str, str], dict[str, Test]]
    confusions: tuple[Confusion, ...]
    frequencies: np.ndarray
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        return to_json(
            {
                "all": self.all,
                "by": self.by,
                "groups": self.groups,
                "tests": {" / ".join(pair): tests for pair, tests in self.tests.items()},
                "confusions": self.confusions,
                "frequencies": self.frequencies,
                "skipped": self.skipped,
            }
        )

    def to_markdown(self, most: int = 20) -> str:
        """Return the tables: groups, tests, and the most frequent confusions.

        Args:
            most: Maximum number of confusions.
        """
        head = ["", "utterances", "errors", "WER", *VERDICTS]
        rows = [
            [g.name, str(g.utterances), str(g.errors), str(g.wer), *(str(g.shares[v]) for v in VERDICTS)]
            for g in (self.all, *self.groups)
        ]
        parts = [_table(head, rows)]
        if self.tests:
            tests = [
                [" / ".join(pair), *(_p(found[name]) for name in ("wer", "misheard"))]
                for pair, found in self.tests.items()
            ]
            parts.append(_table([f"{self.by}: permutation test of", "WER", "share misheard"], tests))
        listed = [
            [c.name, str(c.count), ", ".join(f"{n} {v}" for v, n in c.verdicts.items() if n), _bits(c.evidence)]
            for c in self.confusions[:most]
        ]
        if listed:
            parts.append(_table(["said → written", "count", "verdicts", "mean bits of the sound"], listed))
        return "\n\n".join(parts) + "\n"

    def plot(self, most: int = 6) -> tuple[Figure, Sequence[Axes]]:
        """Return a figure: verdicts by group, and which frequencies spoke for the most frequent confusions.

        Args:
            most: Maximum number of confusions.
        """
        from spes_hf.viz.causes import plot_causes

        return plot_causes(self, most)


def error_causes(rows: Iterable[Mapping[str, Any]], by: str | None = None, seed: int = 0) -> ErrorCauses:
    """Return where the errors of a corpus come from.

    Args:
        rows: Rows that `Diagnose` made; those with an "error" are skipped and counted.
        by: A column to compare by, such as "speaker" or "gender".
        seed: Seed of bootstrap and permutations.

    Raises:
        ConfigError: If there are no rows, all rows failed, or there is no such column.

    Examples:
        >>> rows = [{**diagnosed, "speaker": "Anna"}, {"error": "no audio", "speaker": "Tom"}]
        >>> found = error_causes(rows, by="speaker")
        >>> [group.name for group in found.groups], found.skipped
        (['Anna'], 1)
    """
    found: list[tuple[Diagnosis, str]] = []
    examples: dict[tuple[str, str], list[tuple[ErrorVerdict, float, np.ndarray | None]]] = defaultdict(list)
    frequencies, skipped = np.zeros(0), 0
    for row in rows:
        if by is not None and by not in row:
            raise ConfigError(f"by is {by!r}, which is not a column; allowed: {', '.join(map(str, row))}")
        if row.get("error"):
            skipped += 1
            continue
        diagnosis = diagnosis_of(row)
        for index, error in enumerate(diagnosis.errors):
            entry = (error.verdict, error.evidence, frequency_profile_of(diagnosis, index))
            examples[error.said.lower(), error.written.lower()].append(entry)
        if diagnosis.explanation is not None:
            frequencies = diagnosis.explanation.frequencies.double().numpy()
        # Keep only the numbers, since maps are large.
        found.append((Diagnosis.from_dict(diagnosis.to_dict()), "" if by is None else str(row[by])))
    if not found:
        raise ConfigError(f"rows holds no diagnosis ({skipped} rows hold an error); pass rows that Diagnose made")
    names = sorted({name for _, name in found}) if by is not None else []
    parts = {name: [d for d, own in found if own == name] for name in names}
    tests = {
        (a, b): {
            key: permutation_of_means(numbers(parts[a]), numbers(parts[b]), seed=seed)
            for key, numbers in (("wer", _rates), ("misheard", _misheard))
        }
        for a, b in combinations(names, 2)
    }
    confusions = [_confusion(*words, entries, seed) for words, entries in examples.items()]
    confusions.sort(key=lambda c: (-c.count, c.name))
    return ErrorCauses(
        all=_group("all", [d for d, _ in found], seed),
        groups=tuple(_group(name, some, seed) for name, some in parts.items()),
        by=by,
        tests=tests,
        confusions=tuple(confusions),
        frequencies=frequencies,
        skipped=skipped,
    )


def _group(name: str, some: Sequence[Diagnosis], seed: int) -> ErrorGroup:
    words = np.array([len(d.said) for d in some], dtype=np.float64)
    wrong = np.array([d.wer * len(d.said) for d in some])
    errors = np.array([len(d.errors) for d in some], dtype=np.float64)
    counts = {v: np.array([d.verdicts[v] for d in some], dtype=np.float64) for v in VERDICTS}
    shares = {v: _rate(count, errors, seed) for v, count in counts.items()}
    return ErrorGroup(name, len(some), int(words.sum()), int(errors.sum()), _rate(wrong, words, seed), shares)


def _rate(part: np.ndarray, whole: np.ndarray, seed: int) -> Rate:
    if not whole.sum():
        return Rate(math.nan, math.nan, math.nan)
    sums = np.stack([part, whole], axis=1)
    ends = bootstrap_interval(sums, lambda s: s[:, 0] / np.maximum(s[:, 1], 1e-9), seed=seed)
    return Rate(float(part.sum() / whole.sum()), ends.low, ends.high)


def _rates(some: Sequence[Diagnosis]) -> np.ndarray:
    return np.array([d.wer for d in some])


def _misheard(some: Sequence[Diagnosis]) -> np.ndarray:
    return np.array([d.verdicts["misheard"] / len(d.errors) for d in some if d.errors])


def _confusion(
    said: str, written: str, entries: Sequence[tuple[ErrorVerdict, float, np.ndarray | None]], seed: int
) -> Confusion:
    bits = np.array([bits for _, bits, _ in entries if not math.isnan(bits)])
    maps = [profile for _, _, profile in entries if profile is not None]
    values = np.stack(maps) if maps else _NO_PROFILE
    mean = values.mean(0) if maps else np.zeros(0)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    if len(maps) > 1:
        drawn = np.random.default_rng(seed).integers(len(maps), size=(1000, len(maps)))
        low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975], axis=0)
    verdicts = {v: sum(verdict == v for verdict, _, _ in entries) for v in VERDICTS}
    return Confusion(
        said, written, len(entries), verdicts, float(bits.mean()) if len(bits) else math.nan, mean, low, high
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _p(test: Test) -> str:
    if math.isnan(test.p_value):
        return test.note or "–"
    return f"{test.difference:+.2f} (p = {test.p_value:.3f})"


def _bits(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.1f}"

"""Tests and effect sizes that name their method, and report when there is too little data to test."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any, Literal

import numpy as np

from spes_hf.errors import ConfigError

Alternative = Literal["greater", "less", "two-sided"]
TOO_FEW = "too few"


@dataclass(frozen=True)
class Test:
    """A test of a difference or a correlation.

    Attributes:
        name: Name of the test.
        statistic: Its statistic; NaN if there is too little to test.
        p_value: Probability of a statistic at least as extreme if there were no difference.
        effect_size: Cohen's d: the mean difference over the standard deviation of the differences for paired values,
            or over the pooled standard deviation for independent ones. For a correlation, its coefficient.
        difference: Mean of the first minus mean of the second; NaN for a correlation.
        n: Number of pairs, or numbers of values of the first and of the second.
        alternative: Expectation for the first: "greater" or "less" than the second, or "two-sided".
        note: "too few: …" or another objection to the test; otherwise empty.

    Examples:
        >>> print(Test("paired t-test", 2.5, 0.03, 0.8, 0.1, (10,), "two-sided"))
        paired t-test: t = 2.5, p = 0.03, d = 0.80 (n = 10)
    """

    __test__ = False  # not a test for pytest

    name: str
    statistic: float
    p_value: float
    effect_size: float
    difference: float
    n: tuple[int, ...]
    alternative: Alternative
    note: str = ""

    @property
    def too_few(self) -> bool:
        """Whether there was too little to test."""
        return self.note.startswith(TOO_FEW)

    def __str__(self) -> str:
        count = " + ".join(map(str, self.n))
        if math.isnan(self.p_value):
            return f"{self.name}: {self.note} (n = {count})"
        p = f"p = {self.p_value:.2g}" if self.p_value >= 1e-300 else "p < 1e-300"
        found = f"t = {self.statistic:.3g}, {p}, d = {self.effect_size:.2f}"
        if "correlation" in self.name:
            found = f"rho = {self.statistic:.2f}, {p}"
        return f"{self.name}: {found} (n = {count}){'; ' + self.note if self.note else ''}"


def paired_test(first: np.ndarray, second: np.ndarray, alternative: Alternative = "greater") -> Test:
    """Return the paired t-test of two measurements of the same things.

    Args:
        first: (n,) first measurement; pairs with a NaN are left out.
        second: (n,) second measurement.
        alternative: Expectation for the first.

    Raises:
        ConfigError: If the two differ in length.
    """
    from scipy.stats import ttest_1samp

    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ConfigError(f"first has shape {first.shape}, second {second.shape}; pass pairs, of the same shape")
    difference = first - second
    difference = difference[np.isfinite(difference)]
    n, mean = len(difference), _mean(difference)
    name = "paired t-test"
    if n < 2:
        return _untested(name, (n,), alternative, f"{TOO_FEW}: at least 2 pairs are needed", mean)
    deviation = float(difference.std(ddof=1))
    if deviation <= 1e-12 * max(1e-300, float(np.abs(difference).max())):
        return _untested(name, (n,), alternative, "all differences are equal", mean)
    found = ttest_1samp(difference, 0.0, alternative=alternative)
    return Test(name, float(found.statistic), float(found.pvalue), mean / deviation, mean, (n,), alternative)


def independent_test(first: np.ndarray, second: np.ndarray, alternative: Alternative = "greater") -> Test:
    """Return Welch's t-test of two groups, which need not have the same variance.

    Args:
        first: (n,) values of the first group; NaN is left out.
        second: (m,) values of the second group.
        alternative: Expectation for the first.
    """
    from scipy.stats import ttest_ind

    first, second = _finite(first), _finite(second)
    n, mean = (len(first), len(second)), _mean(first) - _mean(second)
    name = "Welch's t-test"
    if min(n) < 2:
        return _untested(name, n, alternative, f"{TOO_FEW}: each group needs at least 2 values", mean)
    deviation = _pooled_deviation(first, second)
    if deviation == 0:
        return _untested(name, n, alternative, "all values of a group are equal", mean)
    found = ttest_ind(first, second, equal_var=False, alternative=alternative)
    return Test(name, float(found.statistic), float(found.pvalue), mean / deviation, mean, n, alternative)


def rank_correlation(first: np.ndarray, second: np.ndarray, alternative: Alternative = "two-sided") -> Test:
    """Return Spearman's correlation of two measurements of the same things.

    Args:
        first: (n,) first measurement; pairs with a NaN are left out.
        second: (n,) second measurement.
        alternative: Expected sign of the correlation.
    """
    from scipy.stats import spearmanr

    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    known = np.isfinite(first) & np.isfinite(second)
    first, second, n, name = first[known], second[known], (int(known.sum()),), "Spearman's correlation"
    if n[0] < 3:
        return _untested(name, n, alternative, f"{TOO_FEW}: at least 3 pairs are needed")
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return _untested(name, n, alternative, "one of the two is constant")
    found = spearmanr(first, second, alternative=alternative)
    return Test(name, float(found.statistic), float(found.pvalue), float(found.statistic), math.nan, n, alternative)


@dataclass(frozen=True, eq=False)
class Permutation:
    """A permutation test of two groups in many bands at once.

    Attributes:
        statistic: (B,) difference of the means over its standard error.
        p_values: (B,) two-sided, for every band on its own.
        corrected: (B,) corrected for all bands: how often the *largest* statistic over all bands of relabelled groups
            is at least as far from 0 as the band's.
        relabellings: Number of ways to label the groups that were tried.
        exact: Whether these were all possible ways.
    """

    statistic: np.ndarray
    p_values: np.ndarray
    corrected: np.ndarray
    relabellings: int
    exact: bool


def permutation_test(first: np.ndarray, second: np.ndarray, permutations: int = 10_000, seed: int = 0) -> Permutation:
    """Return how likely the difference of two groups is by chance, in every band, corrected for the number of bands.

    Tries all ways to label the values if there are at most ``permutations``; otherwise draws that many, and counts the
    observed labelling among them.

    Args:
        first: (n, B) values of the first group, n ≥ 2.
        second: (m, B) values of the second group, m ≥ 2.
        permutations: Maximum number of ways to label the groups to try.
        seed: Same seed, same draws.

    Raises:
        ConfigError: If a group has fewer than 2 values, the bands differ, or ``permutations`` is below 1.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ConfigError(f"first has shape {first.shape}, second {second.shape}; both must be (n, bands), same bands")
    if min(len(first), len(second)) < 2:
        raise ConfigError(f"groups have {len(first)} and {len(second)} values; a permutation test needs 2 in each")
    if not isinstance(permutations, int) or permutations < 1:
        raise ConfigError(f"permutations is {permutations!r}; allowed: a whole number, at least 1")
    values = np.concatenate([first, second]).astype(np.float64)
    count, size = len(values), len(first)
    exact = math.comb(count, size) <= permutations
    observed = _t_statistics(values, np.arange(count)[None] < size)[0]
    single, joint, tried = np.zeros(values.shape[1]), np.zeros(values.shape[1]), 0
    for labels in _relabellings(count, size, permutations, exact, seed):
        drawn = np.abs(_t_statistics(values, labels))
        # A small tolerance, so that statistics that differ only by rounding count as equal.
        single += (drawn >= np.abs(observed) * (1 - 1e-9)).sum(0)
        joint += (drawn.max(1)[:, None] >= np.abs(observed) * (1 - 1e-9)).sum(0)
        tried += len(labels)
    return Permutation(observed, single / tried, joint / tried, tried, exact)


def permutation_of_means(first: np.ndarray, second: np.ndarray, permutations: int = 10_000, seed: int = 0) -> Test:
    """Return the two-sided permutation test of one number per member of two groups; NaN is left out.

    Args:
        first: (n,) values of the first group.
        second: (m,) values of the second group.
        permutations: Maximum number of ways to label the groups to try.
        seed: Same seed, same draws.
    """
    first, second = _finite(first), _finite(second)
    n, mean, name = (len(first), len(second)), _mean(first) - _mean(second), "permutation test"
    if min(n) < 2:
        return _untested(name, n, "two-sided", f"{TOO_FEW}: each group needs at least 2 values", mean)
    deviation = _pooled_deviation(first, second)
    if deviation == 0:
        return _untested(name, n, "two-sided", "all values of a group are equal", mean)
    found = permutation_test(first[:, None], second[:, None], permutations, seed)
    p_value = float(found.p_values[0])
    return Test(
        name, float(found.statistic[0]), p_value, mean / deviation, mean, n, "two-sided", reach(n, found.relabellings)
    )


def reach(n: tuple[int, int], relabellings: int) -> str:
    """Return a note if groups are so small that no difference could be significant at 5 %; otherwise ""."""
    smallest = (2 if n[0] == n[1] else 1) / min(relabellings, math.comb(sum(n), n[0]))
    return f"{TOO_FEW}: no difference can reach p < 0.05 with {n[0]} and {n[1]} values" if smallest >= 0.05 else ""


def to_json(value: Any) -> Any:
    """Return a result as values for JSON: NaN and infinity become None, keys become strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else " / ".join(map(str, key)): to_json(v) for key, v in value.items()}
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _relabellings(count: int, size: int, permutations: int, exact: bool, seed: int) -> Any:
    """Yield (P, count) bool labels, true for the first group, a few thousand at a time."""
    chunk = 2_000
    if exact:
        ways = combinations(range(count), size)
        while members := list(islice(ways, chunk)):
            labels = np.zeros((len(members), count), dtype=bool)
            np.put_along_axis(labels, np.array(members), True, axis=1)
            yield labels
        return
    yield np.arange(count)[None] < size
    generator = np.random.default_rng(seed)
    for start in range(1, permutations, chunk):
        order = generator.random((min(chunk, permutations - start), count)).argsort(1)
        yield order < size


def _t_statistics(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (P, B) differences of means over their standard errors, without pooling variances.

    Args:
        values: (n, B).
        labels: (P, n) bool, true for the first group.
    """
    centred = values - values.mean(0)
    squares = centred**2
    means, errors = [], []
    for member in (labels, ~labels):
        weights = member.astype(np.float64)
        size = weights.sum(1, keepdims=True)
        mean = weights @ centred / size
        variance = np.maximum(weights @ squares / size - mean**2, 0.0) * size / np.maximum(size - 1, 1)
        means.append(mean)
        errors.append(variance / size)
    # Constant bands must not win through a division by zero.
    floor = 1e-9 * np.sqrt(squares.mean(0)) + 1e-300
    return (means[0] - means[1]) / np.maximum(np.sqrt(errors[0] + errors[1]), floor)


def _pooled_deviation(first: np.ndarray, second: np.ndarray) -> float:
    n, m = len(first), len(second)
    variance = ((n - 1) * first.var(ddof=1) + (m - 1) * second.var(ddof=1)) / (n + m - 2)
    return math.sqrt(variance)


def _untested(name: str, n: tuple[int, ...], alternative: Alternative, note: str, difference: float = math.nan) -> Test:
    return Test(name, math.nan, math.nan, math.nan, difference, n, alternative, note)


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return values[np.isfinite(values)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan

"""How certain is a corpus score? Bootstrap over utterances, using additive counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spes_hf.errors import ConfigError

ScoreFunction = Callable[[np.ndarray], np.ndarray]
"""From summed statistics, (B, …), to scores, (B,)."""

SAMPLES = 1_000


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
        confidence: Share of such intervals that contain the true value.

    Examples:
        >>> 1.5 in Interval(1.0, 2.0), 2.5 in Interval(1.0, 2.0)
        (True, False)
        >>> print(Interval(1.0, 2.0))
        [1.00, 2.00]
    """

    low: float
    high: float
    confidence: float = 0.95

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"[{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same utterances.

    Attributes:
        difference: First score minus second.
        interval: Interval of the difference.
        p_value: Probability of a difference at least as large, in either direction, if the methods were equal.

    Examples:
        >>> print(Comparison(-1.5, Interval(-2.0, -1.0), p_value=0.01))
        difference -1.50, 95 % interval [-2.00, -1.00], p = 0.010
    """

    difference: float
    interval: Interval
    p_value: float

    def __str__(self) -> str:
        level = f"{100 * self.interval.confidence:g} %"
        return f"difference {self.difference:+.2f}, {level} interval {self.interval}, p = {self.p_value:.3f}"


def resample(statistics: np.ndarray, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Return the sums of corpora of the same size, drawn from the utterances with replacement.

    The draws depend only on the number of utterances and the seed, so two methods get the same draws.

    Args:
        statistics: (U, …) statistics of every utterance.
        samples: B, number of corpora to draw.
        seed: Same seed, same draws.

    Returns:
        (B, …) float64.

    Raises:
        ConfigError: If there are no utterances, or ``samples`` is below 1.
    """
    if not len(statistics):
        raise ConfigError("statistics has no utterances; pass at least one")
    if not isinstance(samples, int) or samples < 1:
        raise ConfigError(f"samples is {samples!r}; allowed: a whole number, at least 1")
    count = len(statistics)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
    sums = times.astype(np.float64) @ np.asarray(statistics, dtype=np.float64).reshape(count, -1)
    return sums.reshape(samples, *statistics.shape[1:])


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Return the interval between the percentiles of bootstrapped scores, (B,).

    Raises:
        ConfigError: If ``confidence`` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence!r}; allowed: a share above 0 and below 1, such as 0.95")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), confidence)


def bootstrap_interval(
    statistics: np.ndarray,
    score: ScoreFunction,
    samples: int = SAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the percentile bootstrap interval of a corpus score.

    Args:
        statistics: (U, …) statistics of every utterance.
        score: Computes scores, (B,), from sums over utterances, (B, …).
        samples: Number of corpora to draw.
        confidence: Share of such intervals that contain the true value.
        seed: Same seed, same interval.

    Examples:
        >>> counts = np.array([[1.0, 4.0], [3.0, 4.0]])  # errors and words of two utterances
        >>> print(bootstrap_interval(counts, lambda sums: sums[:, 0] / sums[:, 1]))
        [0.25, 0.75]
    """
    return percentile_interval(score(resample(statistics, samples, seed)), confidence)


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    score: ScoreFunction,
    samples: int = SAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Return how two methods differ on the same utterances, and how likely that is by chance.

    Both are scored on the same resampled corpora. The p-value is two-sided: the share of resampled differences that are
    at least as far from their mean as the observed difference is from 0, including the observed difference.

    Args:
        first: (U, …) statistics of every utterance for the first method.
        second: The same for the second method.
        score: Computes scores, (B,), from sums over utterances, (B, …).
        samples: Number of corpora to draw.
        confidence: Confidence of the interval.
        seed: Same seed, same result.

    Raises:
        ConfigError: If the two differ in shape.

    Examples:
        >>> first, second = np.array([[3.0, 4.0], [4.0, 4.0]]), np.array([[1.0, 4.0], [2.0, 4.0]])
        >>> print(paired_bootstrap(first, second, lambda sums: sums[:, 0] / sums[:, 1]))
        difference +0.50, 95 % interval [0.50, 0.50], p = 0.001
    """
    if first.shape != second.shape:
        raise ConfigError(f"statistics have shapes {first.shape} and {second.shape}; compare the same utterances")
    observed = float(score(first.sum(0)[None])[0] - score(second.sum(0)[None])[0])
    drawn = score(resample(first, samples, seed)) - score(resample(second, samples, seed))
    # A small tolerance, so that differences that are equal up to rounding count as equal.
    as_far = np.abs(drawn - drawn.mean()) >= abs(observed) - 1e-9
    p_value = (1 + int(as_far.sum())) / (1 + samples)
    return Comparison(observed, percentile_interval(drawn, confidence), p_value)

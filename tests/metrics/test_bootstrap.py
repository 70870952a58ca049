import numpy as np
import pytest

from spes_hf import ConfigError
from spes_hf.metrics import Interval, bootstrap_interval, paired_bootstrap
from spes_hf.metrics.bootstrap import percentile_interval, resample


def mean(count):
    return lambda sums: sums[:, 0] / count


def test_resampled_sums_are_those_of_as_many_utterances():
    statistics = np.stack([np.ones(7), np.arange(7.0)], axis=1)[:, None]
    sums = resample(statistics, samples=50, seed=3)
    assert sums.shape == (50, 1, 2)
    assert (sums[:, 0, 0] == 7).all()
    assert (sums[:, 0, 1] == sums[:, 0, 1].round()).all() and sums[:, 0, 1].std() > 0


def test_same_seed_same_draws():
    statistics = np.arange(20.0)[:, None]
    assert np.array_equal(resample(statistics, 30, seed=1), resample(statistics, 30, seed=1))
    assert not np.array_equal(resample(statistics, 30, seed=1), resample(statistics, 30, seed=2))


def test_percentiles_by_hand():
    interval = percentile_interval(np.arange(101.0), 0.95)
    assert (interval.low, interval.high) == pytest.approx((2.5, 97.5))
    assert 50 in interval and 99 not in interval
    assert percentile_interval(np.arange(101.0), 0.5) == Interval(25.0, 75.0, 0.5)


def test_width_for_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(0).normal(size=(400, 1))
    interval = bootstrap_interval(values, mean(400), samples=4000)
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_coverage_is_about_95_percent():
    generator = np.random.default_rng(3)
    corpora = generator.normal(3.0, 1.0, size=(600, 100, 1))
    hits = sum(3.0 in bootstrap_interval(corpus, mean(100), samples=400, seed=i) for i, corpus in enumerate(corpora))
    assert 0.92 <= hits / 600 <= 0.97


def test_one_utterance_has_an_interval_of_no_width():
    interval = bootstrap_interval(np.array([[4.0]]), mean(1))
    assert (interval.low, interval.high) == (4, 4)


def test_paired_test_sees_a_small_steady_difference():
    generator = np.random.default_rng(0)
    first = generator.normal(0, 10, size=(100, 1))
    second = first - 0.5 + generator.normal(0, 0.5, size=(100, 1))
    found = paired_bootstrap(first, second, mean(100))
    assert found.difference == pytest.approx((first - second).mean())
    assert found.p_value < 0.01 and 0 not in found.interval
    unpaired = bootstrap_interval(first, mean(100))
    assert unpaired.high - unpaired.low > 3 > found.interval.high - found.interval.low
    assert "p = 0.0" in str(found)


def test_paired_test_of_a_method_with_itself():
    values = np.random.default_rng(0).normal(size=(30, 1))
    found = paired_bootstrap(values, values, mean(30))
    assert (found.difference, found.p_value) == (0, 1)


def test_paired_test_is_symmetric_and_deterministic():
    first, second = np.random.default_rng(0).normal(size=(2, 40, 1))
    forth, back = paired_bootstrap(first, second, mean(40)), paired_bootstrap(second, first, mean(40))
    assert forth == paired_bootstrap(first, second, mean(40))
    assert forth.difference == -back.difference and forth.p_value == back.p_value


def test_false_alarms_are_about_5_percent():
    generator = np.random.default_rng(1)
    pairs = generator.normal(size=(300, 2, 50, 1))
    alarms = sum(paired_bootstrap(a, b, mean(50), samples=200, seed=i).p_value < 0.05 for i, (a, b) in enumerate(pairs))
    assert 0.02 <= alarms / 300 <= 0.09


def test_misuse():
    with pytest.raises(ConfigError, match="no utterance"):
        resample(np.empty((0, 2)))
    with pytest.raises(ConfigError, match="samples is 0"):
        resample(np.ones((3, 1)), samples=0)
    with pytest.raises(ConfigError, match="confidence is 95"):
        percentile_interval(np.ones(3), 95)
    with pytest.raises(ConfigError, match="same utterances"):
        paired_bootstrap(np.ones((3, 1)), np.ones((4, 1)), mean(3))

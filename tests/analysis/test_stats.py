"""Tests and effect sizes: against scipy, by hand, and by what they promise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from spes_hf.analysis.stats import (
    independent_test,
    paired_test,
    permutation_of_means,
    permutation_test,
    rank_correlation,
    reach,
    to_json,
)
from spes_hf.errors import ConfigError

GENERATOR = np.random.default_rng(0)
FIRST, SECOND = GENERATOR.normal(0.6, 1, 20), GENERATOR.normal(0, 2, 20)


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_paired_as_scipy(alternative):
    found = paired_test(FIRST, SECOND, alternative)
    expected = scipy_stats.ttest_rel(FIRST, SECOND, alternative=alternative)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    difference = FIRST - SECOND
    assert found.effect_size == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert found.difference == pytest.approx(difference.mean()) and found.n == (20,)


def test_independent_as_scipy():
    found = independent_test(FIRST, SECOND[:9], "two-sided")
    expected = scipy_stats.ttest_ind(FIRST, SECOND[:9], equal_var=False)
    assert (found.statistic, found.p_value) == pytest.approx((expected.statistic, expected.pvalue))
    pooled = math.sqrt((19 * FIRST.var(ddof=1) + 8 * SECOND[:9].var(ddof=1)) / 27)
    assert found.effect_size == pytest.approx((FIRST.mean() - SECOND[:9].mean()) / pooled)


def test_cohens_d_by_hand():
    assert paired_test(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])).effect_size == pytest.approx(2.0)
    assert independent_test(np.array([1.0, 3.0]), np.array([0.0, 2.0])).effect_size == pytest.approx(1 / math.sqrt(2))


def test_correlation_as_scipy_and_without_nan():
    first = np.append(FIRST, np.nan)
    found = rank_correlation(first, np.append(SECOND, 3.0))
    expected = scipy_stats.spearmanr(FIRST, SECOND)
    assert (found.statistic, found.p_value, found.n) == (
        pytest.approx(expected.statistic),
        pytest.approx(expected.pvalue),
        (20,),
    )


@pytest.mark.parametrize(
    ("test", "why"),
    [
        (paired_test(np.array([1.0]), np.array([0.0])), "too few"),
        (paired_test(np.array([1.0, np.nan]), np.array([0.0, 1.0])), "too few"),
        (paired_test(np.array([1.0, 2.0]), np.array([0.0, 1.0])), "all differences are equal"),
        (independent_test(np.array([1.0]), FIRST), "too few"),
        (independent_test(np.ones(3), np.ones(4)), "all values"),
        (rank_correlation(FIRST[:2], SECOND[:2]), "too few"),
        (rank_correlation(np.ones(5), SECOND[:5]), "constant"),
        (permutation_of_means(FIRST[:1], SECOND), "too few"),
        (permutation_of_means(np.array([]), SECOND), "too few"),
    ],
)
def test_too_little_is_said_not_computed(test, why):
    assert why in test.note and math.isnan(test.p_value) and math.isnan(test.effect_size)
    assert test.too_few == (why == "too few")
    assert why in str(test)
    assert to_json(test)["p_value"] is None


def test_permutation_by_hand():
    """Of the 6 ways to choose 2 of 4, the observed one and its mirror are the most extreme."""
    found = permutation_test(np.array([[1.0, 5.0], [2.0, 5.1]]), np.array([[11.0, 5.2], [12.0, 4.9]]))
    assert found.exact and found.relabellings == 6
    assert found.p_values[0] == pytest.approx(2 / 6)
    assert found.p_values[1] == pytest.approx(1.0, abs=0.35) and found.p_values[1] > found.p_values[0]


def test_correction_holds_the_error_rate():
    """With no difference in 40 bins, any bin is marked in about 5 % of experiments; uncorrected in most of them."""
    generator = np.random.default_rng(1)
    corrected = single = 0
    for seed in range(150):
        values = generator.normal(size=(12, 40))
        found = permutation_test(values[:6], values[6:], permutations=400, seed=seed)
        assert (found.corrected >= found.p_values - 1e-12).all()
        corrected += (found.corrected < 0.05).any()
        single += (found.p_values < 0.05).any()
    assert corrected / 150 <= 0.11 and single / 150 > 0.6


def test_correction_finds_what_is_there():
    generator = np.random.default_rng(2)
    first, second = generator.normal(size=(9, 40)), generator.normal(size=(9, 40))
    first[:, 7] += 6
    found = permutation_test(first, second, permutations=2_000)
    assert found.corrected[7] < 0.01 and found.corrected.argmin() == 7 and not found.exact


def test_drawn_permutations_are_seeded():
    first, second = FIRST[:, None], SECOND[:, None]
    runs = [permutation_test(first, second, 500, seed).p_values[0] for seed in (0, 0, 1, 2, 3)]
    assert runs[0] == runs[1] and len(set(runs)) > 1
    assert runs[0] == pytest.approx(scipy_stats.ttest_ind(FIRST, SECOND).pvalue, abs=0.08)


def test_bins_without_variance_win_nothing():
    first = np.concatenate([np.full((5, 1), 0.3), GENERATOR.normal(size=(5, 1))], axis=1)
    second = np.concatenate([np.full((5, 1), 0.3), GENERATOR.normal(size=(5, 1))], axis=1)
    found = permutation_test(first, second)
    assert found.statistic[0] == 0 and found.p_values[0] == 1


def test_permutation_refuses():
    for first, second in ((np.ones((1, 3)), np.ones((4, 3))), (np.ones((3, 3)), np.ones((3, 4)))):
        with pytest.raises(ConfigError):
            permutation_test(first, second)
    with pytest.raises(ConfigError, match="permutations is 0"):
        permutation_test(np.ones((2, 1)), np.ones((2, 1)), 0)
    with pytest.raises(ConfigError, match="pass pairs, of the same shape"):
        paired_test(FIRST, SECOND[:3])


@pytest.mark.parametrize(
    ("n", "enough"), [((2, 2), False), ((3, 3), False), ((4, 4), True), ((2, 4), False), ((3, 5), True)]
)
def test_reach(n, enough):
    """3 + 3 values: the smallest possible p is 2/20 = 0.1."""
    assert (reach(n, 10_000) == "") == enough
    first, second = np.arange(n[0]) + 100.0, np.arange(n[1]) * 1.0
    assert (permutation_of_means(first, second).p_value < 0.05) == enough


def test_plain_is_json():
    assert json.dumps(
        to_json({("a", "b"): np.float64("nan"), "c": np.arange(2), "d": (np.int64(3), float("inf"))})
    ) == ('{"a / b": null, "c": [0, 1], "d": [3, null]}')

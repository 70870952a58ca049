"""What the map of the sentence is made of: relative impacts, and means over patches of several levels."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import zscore

from spes_hf.estimators.gradient import EPSILON, GradientEstimator, relative, sentence_of
from spes_hf.estimators.pooling import combined, pooled
from spes_hf.perturbation.base import Masks, UnitScores

LABELS = torch.tensor([[[0, 1, 2], [3, 4, 5]], [[0, 0, 1], [0, 1, 1]]])
VALUES = torch.tensor([1.0, 3.0, 0.0, 2.0, 6.0, 3.0])


def scores(values):
    return UnitScores((values[None],), (torch.ones(len(values)),))


def test_pooled_is_the_mean_over_the_patch():
    assert pooled(VALUES, LABELS).tolist() == [VALUES.tolist(), [2, 2, 3, 2, 3, 3]]


def test_levels_are_averaged():
    (found,) = combined(scores(VALUES), LABELS, standardized=False).numerators
    assert found.tolist() == [[1.5, 2.5, 1.5, 2, 4.5, 3]]


def test_as_z_scores_all_levels_count_alike():
    """However little the means over large patches differ."""
    (found,) = combined(scores(VALUES), LABELS, standardized=True).numerators
    expected = sum(torch.from_numpy(zscore(level)) for level in pooled(VALUES, LABELS).numpy()) / 2
    torch.testing.assert_close(found[0], expected, check_dtype=False)
    (again,) = combined(scores(5 + 100 * VALUES), LABELS, standardized=True).numerators
    torch.testing.assert_close(again, found)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-30])
def test_a_constant_map_says_nothing(value):
    """Nor does one patch that covers all, whatever its mean is rounded to."""
    (found,) = combined(scores(torch.full((6,), value)), LABELS, standardized=True).numerators
    assert found.tolist() == [[0] * 6]
    whole = torch.zeros(1, 1, 7, dtype=torch.long)
    uneven = torch.tensor([0.1, 0.2, 0.3, 0.7, 1 / 3, 1e-3, 3e3])
    (found,) = combined(scores(uneven), whole, standardized=True).numerators
    assert found.tolist() == [[0] * 7]


def test_relative_impact():
    """Odd, 0 at 0, steepest there: 1 / ε; beyond ε it grows with the logarithm, so tokens count alike."""
    r = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0], requires_grad=True)
    found = relative(r)
    assert found[2] == 0
    torch.testing.assert_close(found, -found.flip(0))
    torch.testing.assert_close(found[3:], torch.log(1 + r[3:] / EPSILON))
    (slope,) = torch.autograd.grad(found[[0, 1, 3, 4]].sum(), r)
    torch.testing.assert_close(slope[[0, 1, 3, 4]], 1 / (EPSILON + r[[0, 1, 3, 4]].abs()))


@pytest.mark.parametrize("of_sentence", [None, relative])
def test_the_sentence_is_the_same_whether_tokens_are_drawn_or_not(of_sentence):
    """From the tokens' gradients, or by a backward pass of its own."""
    keep = torch.rand(6, 4, generator=torch.Generator().manual_seed(7)).round()
    weights = torch.tensor([[1.0, 0.0, 4.0, 0.1], [0.01, 0.002, 0.0, 0.003]])

    def impact(masks):
        return ((1 - masks.keep) @ weights.T).square()

    each, few = (
        GradientEstimator(torch.arange(4).view(1, 1, 4), 2, masks_per_token=n, of_sentence=of_sentence) for n in (6, 1)
    )
    for estimator in (each, few):
        estimator.update(Masks(keep, 0, range(6)), impact)
    for found in (lambda e: e.scores(), lambda e: e.half(0), lambda e: e.half(1)):
        a, b = (sentence_of(found(e)).numerators[0] for e in (each, few))
        torch.testing.assert_close(a, b)
    exact = keep.clone().requires_grad_()
    impacts = impact(Masks(exact, 0, range(6)))
    (gradient,) = torch.autograd.grad((of_sentence or (lambda r: r))(impacts).sum(), exact)
    torch.testing.assert_close(sentence_of(each.scores()).numerators[0][0], -gradient.mean(0))

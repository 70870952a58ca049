"""What the map of the sentence is made of: relative impacts, and means over patches of several levels."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import zscore

from spes_hf.masking.perturbations import Masks
from spes_hf.scoring.gradient import EPSILON, GradientEstimator, relative
from spes_hf.scoring.pooling import Pools, mean_of_levels, mean_of_scaled_levels

LABELS = torch.tensor([[[0, 1, 2], [3, 4, 5]], [[0, 0, 1], [0, 1, 1]]])
VALUES = torch.tensor([1.0, 3.0, 0.0, 2.0, 6.0, 3.0])


def test_means_are_over_patches():
    single, coarse = Pools(LABELS).means(torch.stack([VALUES, 2 * VALUES]))
    assert single.tolist() == [VALUES.tolist(), (2 * VALUES).tolist()]
    assert coarse.tolist() == [[2, 3], [4, 6]]


def test_spread_gives_every_feature_the_mean_of_its_patch():
    assert Pools(LABELS).spread(VALUES).tolist() == [VALUES.tolist(), [2, 2, 3, 2, 3, 3]]


def test_levels_are_averaged():
    assert mean_of_levels(VALUES, Pools(LABELS)).tolist() == [1.5, 2.5, 1.5, 2, 4.5, 3]


def test_scaled_levels_count_alike_and_zero_stays():
    """However little the means over large patches differ."""
    found = mean_of_scaled_levels(VALUES, Pools(LABELS))
    levels = Pools(LABELS).spread(VALUES).double()
    torch.testing.assert_close(found, (levels / levels.std(1, keepdim=True)).mean(0))
    torch.testing.assert_close(mean_of_scaled_levels(-100 * VALUES, Pools(LABELS)), -found)
    shifted = mean_of_scaled_levels(5 + VALUES, Pools(LABELS))
    torch.testing.assert_close(zscore(shifted), zscore(found))  # the order stays, the zero does not


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-30])
def test_a_constant_map_says_nothing(value):
    assert mean_of_scaled_levels(torch.full((6,), value), Pools(LABELS)).tolist() == [0] * 6


def test_one_patch_that_covers_all_says_nothing():
    """Whatever its mean is rounded to."""
    uneven = torch.tensor([0.1, 0.2, 0.3, 0.7, 1 / 3, 1e-3, 3e3])
    assert mean_of_scaled_levels(uneven, Pools(torch.zeros(1, 1, 7, dtype=torch.long))).tolist() == [0] * 7


def test_relative_impact():
    """Odd, 0 at 0; beyond ε it grows with the logarithm, so tokens count alike."""
    r = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0], requires_grad=True)
    found = relative(r)
    assert found[2] == 0
    torch.testing.assert_close(found, -found.flip(0))
    torch.testing.assert_close(found[3:], torch.log(1 + r[3:] / EPSILON))
    (slope,) = torch.autograd.grad(found.sum(), r)
    torch.testing.assert_close(slope[[0, 1, 3, 4]], 1 / (EPSILON + r[[0, 1, 3, 4]].abs()))
    assert slope[2] == 0


@pytest.mark.parametrize("of_sentence", [None, relative])
def test_the_sentence_is_the_same_whether_tokens_are_drawn_or_not(of_sentence):
    """From the tokens' gradients, or by a backward pass of its own."""
    keep = torch.rand(6, 4, generator=torch.Generator().manual_seed(7)).round()
    weights = torch.tensor([[1.0, 0.0, 4.0, 0.1], [0.01, 0.002, 0.0, 0.003]])

    def impact(masks):
        return ((1 - masks.keep) @ weights.T).square()

    each, few = (
        GradientEstimator(torch.arange(4).view(1, 1, 4), 2, masks_per_token=n, of_sentence=of_sentence) for n in (6, 0)
    )
    for estimator in (each, few):
        estimator.update(Masks(keep, 0, range(6)), impact)
    for found in (lambda e: e.scores(), lambda e: e.half(0), lambda e: e.half(1)):
        a, b = (found(e).sentence for e in (each, few))
        torch.testing.assert_close(a, b)
    exact = keep.clone().requires_grad_()
    impacts = impact(Masks(exact, 0, range(6)))
    (gradient,) = torch.autograd.grad((of_sentence or (lambda r: r))(impacts).sum(), exact)
    torch.testing.assert_close(each.scores().sentence, -gradient.mean(0))

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from spes_hf import functional
from spes_hf.explanation import PatchMap
from spes_hf.masking.draw import mask_key
from spes_hf.masking.perturbations import Masks, SpectrogramPerturbation
from spes_hf.scoring.eq3 import PerturbationEstimator, weighted_mean


def whole(scores, level=0):
    return functional.ratio(scores.values[level], scores.weights[level].expand_as(scores.values[level]))


class FailsAt(TorchDispatchMode):
    """Runs out of memory at the n-th operation that is asked for."""

    def __init__(self, number):
        super().__init__()
        self.left = number
        self.failed = ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left < 0:
            self.failed = str(func)
            raise RuntimeError("CUDA out of memory")
        return func(*args, **(kwargs or {}))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 3))
def test_running_sums_equal_eq_3_for_any_batching(seed, sizes, levels):
    generator = torch.Generator().manual_seed(seed)
    masks, units, tokens = sum(sizes), 5, 3
    keep = torch.rand(levels, masks, units, generator=generator) > 0.6
    impact = torch.rand(levels, masks, tokens, generator=generator)
    estimator = PerturbationEstimator(levels)
    start = 0
    for size in sizes:  # the levels take turns, as in the engine
        for level in range(levels):
            rows = range(start, start + size)
            estimator.add(Masks(keep[level, rows.start : rows.stop], level, rows), impact[level, start : start + size])
        start += size
    for level in range(levels):
        expected = functional.saliency(keep[level], impact[level].double())
        torch.testing.assert_close(whole(estimator.scores(), level), expected, rtol=1e-5, atol=1e-6)
        for half in (0, 1):
            expected = functional.saliency(keep[level, half::2], impact[level, half::2].double())
            torch.testing.assert_close(whole(estimator.half(half), level), expected, rtol=1e-5, atol=1e-6)
        total = estimator.scores().values[level]
        parts = sum(estimator.half(half).values[level] for half in (0, 1))
        assert torch.equal(parts, total)


def test_by_hand():
    estimator = PerturbationEstimator(1)
    # Rows 3, 4, 5: odd, even, odd.
    keep = torch.tensor([[False, True], [False, False], [True, False]])
    estimator.add(Masks(keep, 0, range(3, 6)), torch.tensor([[2.0], [4.0], [6.0]]))
    assert estimator.scores().values[0].tolist() == [[6.0, 10.0]]  # 2 + 4; 4 + 6
    assert estimator.scores().weights[0].tolist() == [2.0, 2.0]
    assert estimator.half(0).values[0].tolist() == [[4.0, 4.0]]
    assert estimator.half(0).weights[0].tolist() == [1.0, 1.0]
    assert estimator.half(1).values[0].tolist() == [[2.0, 6.0]]


def test_fractional_masks():
    estimator = PerturbationEstimator(1)
    estimator.add(Masks(torch.tensor([[0.5], [0.0]]), 0, range(2)), torch.tensor([[6.0], [3.0]]))
    assert whole(estimator.scores()).tolist() == [[4.0]]  # (0.5·6 + 1·3) / 1.5


def test_many_small_terms_are_not_lost():
    # 10⁶ terms of 0.1 in batches of 500: sums in float32 drift by 6e-5.
    estimator = PerturbationEstimator(1)
    keep, impact = torch.zeros(500, 1, dtype=torch.bool), torch.full((500, 1), 0.1)
    for batch in range(2_000):
        estimator.add(Masks(keep, 0, range(500 * batch, 500 * (batch + 1))), impact)
    assert estimator.scores().weights[0].item() == 1_000_000
    assert whole(estimator.scores()).item() == pytest.approx(0.1, rel=3e-6)


def test_update_runs_the_model_without_gradients():
    estimator = PerturbationEstimator(1)
    weight = torch.ones(1, requires_grad=True)
    seen = []

    def impact_of(masks):
        # Not inference mode: what the model keeps from here must not refuse to be trained with.
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return (weight * masks.keep.float().sum(1))[:, None]

    estimator.update(Masks(torch.tensor([[True, False]]), 0, range(1)), impact_of)
    assert seen == [(False, False)]
    assert not estimator.scores().values[0].requires_grad


def test_a_model_that_runs_out_of_memory_leaves_nothing_behind():
    estimator = PerturbationEstimator(1)

    def impact_of(masks):
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError):
        estimator.update(Masks(torch.zeros(4, 3, dtype=torch.bool), 0, range(4)), impact_of)
    assert estimator.scores().values == ()


@pytest.mark.parametrize("first", [True, False])
def test_memory_that_runs_out_within_a_batch_leaves_nothing_behind(first):
    generator = torch.Generator().manual_seed(0)
    keep, impact = torch.rand(6, 4, generator=generator) > 0.5, torch.rand(6, 2, generator=generator)

    def fresh():
        estimator = PerturbationEstimator(1)
        if not first:
            estimator.add(Masks(keep, 0, range(6)), impact)
        return estimator

    def sums(estimator):
        scores = estimator.scores()
        return [*scores.values, *scores.weights] or [torch.zeros(2, 4), torch.zeros(4)]

    expected = fresh()
    expected.add(Masks(keep, 0, range(6, 12)), impact)
    failed = []
    for number in range(100):
        estimator = fresh()
        before = [value.clone() for value in sums(estimator)]
        try:
            with FailsAt(number) as device:
                estimator.add(Masks(keep, 0, range(6, 12)), impact)
            break
        except RuntimeError:
            failed.append(device.failed.split(".")[1])
            for old, new in zip(before, sums(estimator), strict=True):
                torch.testing.assert_close(new, old, rtol=0, atol=0, check_dtype=False)
            estimator.add(Masks(keep[:3], 0, range(6, 9)), impact[:3])  # what the engine does next
            estimator.add(Masks(keep[3:], 0, range(9, 12)), impact[3:])
            for old, new in zip(sums(expected), sums(estimator), strict=True):
                torch.testing.assert_close(new, old)
    assert number < 99 and failed.count("addmm_") == 1  # every operation was tried, the product among them


def test_a_level_without_masks_is_left_out():
    estimator = PerturbationEstimator(3)
    estimator.add(Masks(torch.zeros(1, 2, dtype=torch.bool), 0, range(1)), torch.ones(1, 1))
    estimator.add(Masks(torch.zeros(1, 5, dtype=torch.bool), 1, range(1)), torch.ones(1, 1))
    scores = estimator.scores()
    assert [n.shape[1] for n in scores.values] == [2, 5]
    labels = torch.zeros(3, 2, 2, dtype=torch.long)
    assert PatchMap.of(labels, scores.values, scores.weights).dense(0).tolist() == [[1.0, 1.0], [1.0, 1.0]]


# A planted model: the truth is known ---------------------------------------------------------------------------------


def planted(levels_of_units, weights, prob, num_masks, batch=2_000):
    """Run an impact that adds up what is missing: r = 0.3 + Σ_features w · (1 − M)."""
    rows, columns = weights.shape
    labels = torch.stack(
        [
            (torch.arange(rows)[:, None] // height * (columns // width) + torch.arange(columns) // width)
            for height, width in levels_of_units
        ]
    )
    perturbation = SpectrogramPerturbation(
        features=torch.ones(rows, columns),
        fill=torch.zeros(columns),
        labels=labels,
        units=tuple(int(level.max()) + 1 for level in labels),
        keys=tuple(mask_key(0, "planted", f"spectrogram/{level}") for level in range(len(labels))),
        mask_prob=prob,
        num_masks=num_masks,
    )

    def impact_of(masks):
        missing = 1 - perturbation.apply(masks)["features"]
        total = 0.3 + (missing * weights).sum((1, 2))
        return torch.stack([total, 2 * total], dim=1)

    estimator = PerturbationEstimator(len(labels))
    for level in range(len(labels)):
        todo = perturbation.rows(level)
        while todo:
            estimator.update(perturbation.draw(level, todo[:batch]), impact_of)
            todo = todo[batch:]
    scores = estimator.scores()
    return PatchMap.of(labels, scores.values, scores.weights), labels


@pytest.mark.parametrize("prob", [0.3, 0.5, 0.7])
def test_planted_model_converges_to_the_closed_form(prob):
    weights = torch.rand(4, 6, generator=torch.Generator().manual_seed(3))
    found, _ = planted([(1, 1)], weights, prob, 20_000)
    # E[r | unit f perturbed] = 0.3 + w_f + p·(W − w_f) = 0.3 + (1 − p)·w_f + p·W.
    expected = 0.3 + (1 - prob) * weights + prob * weights.sum()
    # One mask's r spreads by √(p(1 − p)·Σw²); each unit averages N·p of them: five deviations.
    tolerance = 5 * float((prob * (1 - prob) * weights.square().sum()).sqrt()) / (20_000 * prob) ** 0.5
    assert tolerance < 0.1
    torch.testing.assert_close(found.dense(0), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.dense(1), 2 * expected, rtol=0, atol=2 * tolerance)
    # Units whose saliencies lie further apart than that come in the right order.
    truth, map_ = expected.flatten(), found.dense(0).flatten()
    clear = (truth[:, None] - truth).abs() > 2 * tolerance
    assert clear.float().mean() > 0.3
    assert torch.equal((map_[:, None] > map_)[clear], (truth[:, None] > truth)[clear])


def test_planted_model_over_two_levels():
    weights = torch.zeros(8, 8)
    weights[2, 5] = 4.0
    weights[6, 1] = 2.0
    found, labels = planted([(4, 4), (1, 2)], weights, 0.5, 20_000)
    # Per level 0.3 + ½·(weight of the patch) + ½·6; pooled with (almost) equal counts, the mean of both levels.
    patches = [torch.zeros(int(level.max()) + 1).index_add(0, level.flatten(), weights.flatten()) for level in labels]
    expected = 3.3 + 0.25 * sum(patch[level] for patch, level in zip(patches, labels, strict=True))
    torch.testing.assert_close(found.dense(0), expected, rtol=0, atol=0.2)
    assert expected.max() > expected.median() + 1.5
    top = found.dense(0).flatten().topk(2).indices
    assert sorted(divmod(int(i), 8) for i in top) == [(2, 4), (2, 5)]  # the finest patch around the planted feature


def test_mean_impact_is_that_of_the_average_mask():
    found, _ = planted([(1, 1)], torch.rand(4, 6, generator=torch.Generator().manual_seed(3)), 0.5, 2_000)
    weights = torch.rand(4, 6, generator=torch.Generator().manual_seed(3))
    # Weighted by how much a mask perturbs: 0.3 + Σw·p plus the covariance p(1 − p)·Σw / (24·p).
    expected = 0.3 + 0.5 * weights.sum() + 0.25 * weights.sum() / 12
    torch.testing.assert_close(
        weighted_mean(found.values, found.weights), torch.stack([expected, 2 * expected]), rtol=0.02, atol=0
    )

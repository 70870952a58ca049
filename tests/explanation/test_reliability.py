import math

import pytest
import torch
from agreement import GRADIENT, assert_explanations_agree, assert_raw_maps_agree
from hypothesis import given, settings
from hypothesis import strategies as st

from spes_hf.explanation import PatchMap
from spes_hf.explanation.maps import split_half
from spes_hf.functional import z_score
from spes_hf.masking.perturbations import Masks
from spes_hf.scoring.eq3 import PerturbationEstimator


def pixel_map(values):
    """A map of (K, T, C) values, every feature a patch of its own that was perturbed once."""
    values = torch.as_tensor(values, dtype=torch.float32)
    tokens, rows, columns = values.shape
    labels = torch.arange(rows * columns).view(1, rows, columns)
    return PatchMap.of(labels, (values.flatten(1),))


def patch_map(labels, scores):
    return PatchMap.of(labels, scores.values, scores.weights)


def halves(labels, estimator):
    return [patch_map(labels, estimator.half(i)) for i in (0, 1)]


def test_by_hand():
    # (1, 2, 3, 4) against (1, 3, 2, 4): centred −1.5 −0.5 0.5 1.5 and −1.5 0.5 −0.5 1.5;
    # r = (2.25 − 0.25 − 0.25 + 2.25) / 5 = 0.8; stepped up 1.6 / 1.8 = 8/9.
    even, odd = pixel_map([[[1, 2], [3, 4]]]), pixel_map([[[1, 3], [2, 4]]])
    found = split_half(even, odd)
    assert found.tokens.tolist() == pytest.approx([8 / 9])
    assert found.sentence == pytest.approx(8 / 9)
    assert type(found.sentence) is float


def test_a_half_that_is_the_other_scaled_is_perfect_and_one_that_contradicts_it_is_far_below_zero():
    one = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(0))
    for second in (one, 3 * one + 2):
        found = split_half(pixel_map(one), pixel_map(second))
        assert found.sentence == pytest.approx(1, abs=1e-6) and found.tokens.tolist() == pytest.approx([1], abs=1e-6)
    # (1, 2, 3, 4) against (3, 4, 1, 2): r = (−0.75 · 4) / 5 = −0.6, stepped up −1.2 / 0.4 = −3: not cut off at −1.
    found = split_half(pixel_map([[[1, 2], [3, 4]]]), pixel_map([[[3, 4], [1, 2]]]))
    assert found.sentence == pytest.approx(-3) and found.tokens.tolist() == pytest.approx([-3])
    assert not split_half(pixel_map(one), pixel_map(-one)).sentence > -1e3  # the pole at r = −1
    # Unrelated: (1, 2, 3, 4) against (2, 4, 1, 3), r = (0.75 + −0.75 + −0.75 + 0.75) / 5 = 0.
    assert split_half(pixel_map([[[1, 2], [3, 4]]]), pixel_map([[[2, 4], [1, 3]]])).sentence == pytest.approx(0)


def test_sentence_map_is_the_mean_of_the_tokens_z_scores():
    # Token 0 is on a scale 1000 times that of token 1, and must not drown it.
    generator = torch.Generator().manual_seed(1)
    even, odd = (torch.rand(2, 6, 5, generator=generator) for _ in range(2))
    scale = torch.tensor([1_000.0, 1.0])[:, None, None]
    found = split_half(pixel_map(even * scale), pixel_map(odd * scale))

    def z(values):
        return (values - values.mean()) / values.std()

    a, b = (sum(z(token) for token in half).flatten() for half in (even, odd))
    r = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
    assert found.sentence == pytest.approx(2 * r / (1 + r), abs=1e-5)
    for k in range(2):
        r = float(torch.corrcoef(torch.stack([even[k].flatten(), odd[k].flatten()]))[0, 1])
        assert float(found.tokens[k]) == pytest.approx(2 * r / (1 + r), abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e-20, 1e20])
def test_a_constant_half_has_no_reliability(value):
    varied = torch.rand(1, 6, 7, generator=torch.Generator().manual_seed(2))
    constant = torch.full((1, 6, 7), value)
    for even, odd in ((constant, varied), (varied, constant), (constant, constant)):
        found = split_half(pixel_map(even), pixel_map(odd))
        assert found.tokens.isnan().all()
        assert math.isnan(found.sentence)


def test_one_constant_token_leaves_the_others_their_reliability():
    values = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(3))
    values[1] = 0.25
    found = split_half(pixel_map(values), pixel_map(values))
    assert found.tokens.isnan().tolist() == [False, True, False]
    assert found.sentence == pytest.approx(1)


def by_feature(even, odd):
    """The definition, feature by feature: correlations of tokens, and of the sums of their z-scores."""

    def stepped_up(a, b):
        r = float((a * b).sum() / (a.numel() - 1))
        return 2 * r / (1 + r)

    tokens = range(len(even.values[0]))
    scores = [[z_score(half.dense(k)) for k in tokens] for half in (even, odd)]
    sentence = stepped_up(*(z_score(torch.stack(half).sum(0)) for half in scores))
    return [stepped_up(a, b) for a, b in zip(*scores, strict=True)], sentence


@pytest.mark.parametrize("weighted", [True, False], ids=["sums", "scores"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_features_that_share_their_patches_count_one_by_one(levels, weighted):
    generator = torch.Generator().manual_seed(levels)
    # Patches of very different sizes; label 3 of 40 is of no feature.
    labels = torch.rand(levels, 30, 20, generator=generator).square().mul(40).long()
    labels[labels == 3] = 4
    base = torch.randn(levels, 5, 40, generator=generator)
    halves = [base + 0.5 * torch.randn(base.shape, generator=generator) for _ in range(2)]
    weights = [torch.randint(0, 9, (levels, 40), generator=generator) if weighted else None for _ in range(2)]
    even, odd = (PatchMap.of(labels, half, w) for half, w in zip(halves, weights, strict=True))
    found, (tokens, sentence) = split_half(even, odd), by_feature(even, odd)
    assert found.tokens.tolist() == pytest.approx(tokens, rel=1e-6)  # float32
    assert found.sentence == pytest.approx(sentence, rel=1e-12)
    # A half that lies on patches of its own.
    other = PatchMap.of(labels.flip(1), halves[1], weights[1])
    assert split_half(even, other).sentence == pytest.approx(by_feature(even, other)[1], rel=1e-10)


def observed(num_masks, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights, labels = torch.rand(24, generator=generator), torch.arange(24).view(1, 4, 6)
    keep = torch.rand(num_masks, 24, generator=generator) > 0.5
    impact = (~keep).float() @ weights + noise * torch.randn(num_masks, generator=generator)
    estimator = PerturbationEstimator(1)
    estimator.add(Masks(keep, 0, range(num_masks)), impact[:, None])
    maps = [
        PatchMap.of(labels, scores.values, scores.weights)
        for scores in (estimator.half(0), estimator.half(1), estimator.scores())
    ]
    return split_half(maps[0], maps[1]).sentence, maps[2].dense(0).flatten(), weights


def test_one_mask_has_no_reliability():
    estimator = PerturbationEstimator(1)
    estimator.add(Masks(torch.tensor([[True, False]]), 0, range(1)), torch.ones(1, 1))
    labels = torch.tensor([[[0, 1]]])
    found = split_half(*halves(labels, estimator))
    assert math.isnan(found.sentence)
    assert found.tokens.shape == (1,)


def test_no_masks_at_all():
    empty = PatchMap.of(torch.zeros(1, 2, 2, dtype=torch.long), ())
    assert math.isnan(split_half(empty, empty).sentence)


def test_reliability_grows_with_the_number_of_masks():
    few, many = observed(100, 1.0)[0], observed(10_000, 1.0)[0]
    assert few < many
    assert many > 0.95


def test_reliability_predicts_how_another_set_of_masks_agrees():
    # Two independent runs of 400 masks on the same weights: their correlation is what split-half foretells.
    foretold, met = [], []
    for seed in range(8):
        generator = torch.Generator().manual_seed(100 + seed)
        weights, labels = torch.rand(24, generator=generator), torch.arange(24).view(1, 4, 6)
        dense = []
        for _ in range(2):
            keep = torch.rand(400, 24, generator=generator) > 0.5
            estimator = PerturbationEstimator(1)
            estimator.add(Masks(keep, 0, range(400)), ((~keep).float() @ weights)[:, None])
            dense.append(patch_map(labels, estimator.scores()).dense(0).flatten())
            foretold.append(split_half(*halves(labels, estimator)).sentence)
        met.append(float(torch.corrcoef(torch.stack(dense))[0, 1]))
    assert sum(foretold) / len(foretold) == pytest.approx(sum(met) / len(met), abs=0.12)


def test_noise_has_no_reliability():
    values = [torch.randn(1, 60, 60, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5)]
    assert abs(split_half(pixel_map(values[0]), pixel_map(values[1])).sentence) < 0.15


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_scale_shift_and_order_of_the_halves_do_not_matter(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    even = torch.rand(2, 5, 4, generator=generator)
    odd = even + 0.3 * torch.rand(2, 5, 4, generator=generator)
    found = split_half(pixel_map(even), pixel_map(odd))
    assert (found.tokens <= 1 + 1e-6).all()
    swapped = split_half(pixel_map(odd), pixel_map(even))
    assert swapped.sentence == pytest.approx(found.sentence)
    moved = split_half(pixel_map(even.double() * scale + shift), pixel_map(odd.double() * scale + shift))
    if scale > 1e-2 * abs(shift):  # float32 holds the map
        torch.testing.assert_close(moved.tokens, found.tokens, rtol=1e-2, atol=1e-3)


def explained(goal=None, masks=64, **settings):
    """An explanation of a shipped clip by the trained model."""
    from spes_hf import SpesConfig, explain
    from spes_hf.demo import load_tiny_model, tiny_clips

    batch = settings.pop("batch_size", None)
    if settings.get("estimator") != "perturbation":
        settings["masks_per_token"] = 2
    config = SpesConfig(num_spectrogram_masks=masks, num_token_masks=2, target_reliability=goal, **settings)
    clip = tiny_clips()[0]["path"]
    return explain(*load_tiny_model("speech2text-en"), clip, config=config, batch_size=batch, progress=False)


PERTURBATION = {"estimator": "perturbation", "patches_per_second": (80.0, 400.0)}


@pytest.mark.parametrize("settings", [{}, PERTURBATION], ids=["gradient", "perturbation"])
def test_a_run_ends_where_its_map_is_reliable_enough(settings):
    masks = 64 if not settings else 640
    whole, quarter, eighth = (explained(masks=n, **settings) for n in (masks, masks // 4, masks // 8))
    rising = [e.reliability.sentence for e in (eighth, quarter, whole)]
    assert rising[0] < rising[1] < rising[2]
    goal = (rising[0] + rising[1]) / 2
    found = explained(goal, masks=masks, **settings)
    assert_explanations_agree(found, quarter)
    assert found.reliability.sentence >= goal
    for name in ("forward_passes", "backward_passes"):
        assert found.provenance["cost"][name] == quarter.provenance["cost"][name]
    # Where it ends does not hang on how many copies go through the model at once.
    for batch in (1, 5):
        other = explained(goal, masks=masks, batch_size=batch, **settings)
        assert other.provenance["cost"]["forward_passes"] == found.provenance["cost"]["forward_passes"]


def test_every_token_has_its_masks_however_early_the_sentence_is_done():
    from dataclasses import replace

    from spes_hf import SpesConfig, explain
    from spes_hf.demo import load_tiny_model, tiny_clips

    config = SpesConfig(target_reliability=0.01, num_token_masks=2)
    found, stopped = (
        explain(*load_tiny_model("speech2text-en"), tiny_clips()[0]["path"], config=c, progress=False)
        for c in (replace(config, target_reliability=None), config)
    )
    # The first stage would end at 4 of 32 masks, the second at 8.
    # Attention, and a pilot under four masks, tell apart the tokens that share passes.
    assert stopped.provenance["cost"]["forward_passes"] == 3 + 1 + 4 + config.masks_per_token + 2
    assert stopped.provenance["cost"]["backward_passes"] == config.masks_per_token * (5 + 1)
    assert_raw_maps_agree(stopped.raw_audio, found.raw_audio, GRADIENT)


def test_a_goal_out_of_reach_draws_all_masks():
    whole, found = explained(masks=16), explained(0.999999, masks=16)
    assert found.provenance["cost"]["forward_passes"] == whole.provenance["cost"]["forward_passes"] == 3 + 16 + 2
    assert_explanations_agree(found, whole)


def test_a_run_ends_with_whole_pairs():
    # An eighth of 20 masks is 2.5, which would be one pair and half of another.
    found = explained(1e-6, masks=20)
    assert found.provenance["cost"]["forward_passes"] == 3 + 4 + 2
    four = explained(masks=4)
    assert_explanations_agree(found, four)

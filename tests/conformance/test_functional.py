"""The paper's formulas against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spes_hf import functional
from spes_hf.explanation import PatchMap

NAN = float("nan")


def close(actual, expected, tolerance=1e-6):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


# Eq. 2 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "phi", "tau", "expected"),
    [
        (3.0, 400, 7.5, 1_200),  # below τ: 3 · 400
        (7.5, 400, 7.5, 3_000),  # at τ
        (20.0, 400, 7.5, 3_000),  # above τ: 7.5 · 400
        (20.0, 600, 5.0, 3_000),  # 5 · 600
        (20.0, 400, None, 8_000),  # no limit
        (0.123, 500, 7.5, 62),  # 61.5 rounds to the even 62
        (0.1234, 500, 7.5, 62),  # 61.7
        (0.1226, 500, 7.5, 61),  # 61.3
        (0.001, 20, 7.5, 1),  # 0.02 rounds to 0: at least 1
        (0.0, 400, 7.5, 1),
    ],
)
def test_number_of_patches(seconds, phi, tau, expected):
    count = functional.num_patches(seconds, phi, tau)
    assert count == expected
    assert type(count) is int


# KL ------------------------------------------------------------------------------------------------------------------


def test_kl_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4): ½·ln(½ / ¼) + ½·ln(½ / ¾) = ½·ln 2 + ½·ln ⅔ = ½·ln 4/3.
    p, q = torch.tensor([0.0, 0.0]), torch.tensor([0.0, math.log(3)])
    close(functional.kl_divergence(p, q), 0.5 * math.log(4 / 3))
    # The other way round: ¼·ln(¼ / ½) + ¾·ln(¾ / ½) = ¾·ln 1.5 − ¼·ln 2, another number: p is the clean input.
    close(functional.kl_divergence(q, p), 0.75 * math.log(1.5) - 0.25 * math.log(2))


def test_kl_does_not_depend_on_a_shift_of_the_logits():
    p, q = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, -1.0])
    close(functional.kl_divergence(p + 7, q - 11), functional.kl_divergence(p, q), 1e-5)


def test_kl_of_equal_logits_is_exactly_zero():
    logits = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0)) * 10
    assert torch.equal(functional.kl_divergence(logits, logits), torch.zeros(4, 3))


def test_kl_stays_finite_where_a_probability_underflows():
    # p = (1, 0), q = (0, 1) up to e^−10000: 1·(0 − (−10000)) + 0.
    p, q = torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4])
    close(functional.kl_divergence(p, q), 1e4)
    # Where p underflows and q does not, the term is 0, not 0 · ∞: 1·(0 − ln ½).
    close(functional.kl_divergence(p, torch.zeros(2)), math.log(2))
    # Nor is a small probability made larger: e^−30 · (−30) is nothing.
    close(functional.kl_divergence(torch.tensor([30.0, 0.0]), torch.zeros(2)), math.log(2))


def test_kl_takes_a_vocabulary_entry_that_is_ruled_out():
    # −∞ on both sides leaves the other two entries: ½·ln 4/3 as above.
    p, q = torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([0.0, math.log(3), -torch.inf])
    close(functional.kl_divergence(p, q), 0.5 * math.log(4 / 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_kl_is_computed_in_float32_whatever_the_logits(dtype):
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(5, 200, generator=generator).to(dtype) for _ in range(2))
    actual = functional.kl_divergence(p, q)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, functional.kl_divergence(p.float(), q.float()))


def test_kl_broadcasts_the_reference():
    generator = torch.Generator().manual_seed(2)
    p, q = torch.randn(3, 20, generator=generator), torch.randn(6, 3, 20, generator=generator)
    actual = functional.kl_divergence(p, q)
    assert actual.shape == (6, 3)
    close(actual[4, 2], functional.kl_divergence(p[2], q[4, 2]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1e4), st.floats(0, 1e-3))
def test_kl_is_never_negative_and_always_finite(seed, scale, step):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(4, 30, generator=generator) * scale
    q = p + step * torch.randn(4, 30, generator=generator)  # nearly equal: rounding must not push it below 0
    for value in (functional.kl_divergence(p, q), functional.kl_divergence(p, -q)):
        assert (value >= 0).all()
        assert value.isfinite().all()


# Probability difference ----------------------------------------------------------------------------------------------


def test_probability_difference_by_hand():
    # Token 0 explained by entry 1: p = ½, q = ¾, a rise; token 1 by entry 0: p = ½, q = ¼, a fall.
    clean = torch.zeros(2, 2)
    perturbed = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)]]])
    actual = functional.probability_difference(clean, perturbed, torch.tensor([1, 0]))
    assert actual.shape == (1, 2)
    close(actual, [[-0.25, 0.25]])


def test_probability_difference_reaches_its_ends():
    ids = torch.tensor([0])
    sure, never = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    close(functional.probability_difference(sure, never, ids), [1.0])
    close(functional.probability_difference(never, sure, ids), [-1.0])
    assert functional.probability_difference(sure.bfloat16(), never.bfloat16(), ids).dtype == torch.float32


# Eq. 3 ---------------------------------------------------------------------------------------------------------------


def test_saliency_by_hand():
    keep = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 0, 1]])
    impact = torch.tensor([[6.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    # Unit 0 is perturbed in masks 0, 1; unit 1 in masks 1, 2; unit 2 never.
    # Token 0: (6 + 2)/2 = 4, (2 + 4)/2 = 3, 0. Token 1: (1 + 3)/2 = 2, (3 + 5)/2 = 4, 0.
    close(functional.saliency(keep, impact), [[4.0, 3.0, 0.0], [2.0, 4.0, 0.0]])
    close(functional.saliency(keep.bool(), impact), [[4.0, 3.0, 0.0], [2.0, 4.0, 0.0]])


def test_saliency_divides_by_observed_counts_not_by_expected_ones():
    # Perturbed once in four masks, whatever the probability was: 8 / 1.
    keep = torch.tensor([[0], [1], [1], [1]])
    close(functional.saliency(keep, torch.tensor([[8.0], [1.0], [1.0], [1.0]])), [[8.0]])


def test_saliency_with_fractional_masks():
    # 1 − M = (0.5, 1): unit 0: (0.5·6 + 1·3) / 1.5 = 4; 1 − M = (0.25, 0): unit 1: 0.25·6 / 0.25 = 6.
    keep = torch.tensor([[0.5, 0.75], [0.0, 1.0]])
    close(functional.saliency(keep, torch.tensor([[6.0], [3.0]])), [[4.0, 6.0]])


def test_saliency_keeps_negative_impacts_and_the_dtype():
    keep = torch.tensor([[0, 0], [0, 1]])
    impact = torch.tensor([[-3.0], [1.0]], dtype=torch.float64)
    actual = functional.saliency(keep, impact)
    assert actual.dtype == torch.float64
    close(actual, [[-1.0, -3.0]])


def test_levels_are_pooled_into_one_ratio():
    # One feature. Level A perturbs it once, impact 4; level B three times, impact 0.
    # Pooled: (4 + 0 + 0 + 0) / 4 = 1. The mean of the levels' own maps would be (4/1 + 0/3) / 2 = 2.
    impact = torch.tensor([[4.0], [0.0], [0.0], [0.0]])
    close(functional.saliency(torch.zeros(4, 1), impact), [[1.0]])
    labels = torch.zeros(2, 1, 1, dtype=torch.long)
    scores = ((torch.tensor([[4.0]]), torch.tensor([[0.0]])), (torch.tensor([1.0]), torch.tensor([3.0])))
    close(PatchMap.of(labels, *scores).dense(0), [[1.0]])


def test_pooling_patches_of_two_levels_by_hand():
    # Features a b / c d. Level 0: {a b}, {c d}; level 1: {a c}, {b d}.
    labels = torch.tensor([[[0, 0], [1, 1]], [[0, 1], [0, 1]]])
    scores = (
        (torch.tensor([[6.0, 1.0]]), torch.tensor([[2.0, 0.0]])),
        (torch.tensor([2.0, 1.0]), torch.tensor([2.0, 0.0])),
    )
    # a: (6 + 2)/(2 + 2) = 2; b: (6 + 0)/(2 + 0) = 3; c: (1 + 2)/(1 + 2) = 1; d: (1 + 0)/(1 + 0) = 1.
    close(PatchMap.of(labels, *scores).dense(0), [[2.0, 3.0], [1.0, 1.0]])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_patch_map_equals_eq_3_on_full_resolution_masks(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.randint(0, units, (5, 4), generator=generator) for units in (2, 6)])
    numerators, denominators, dense_keep, impacts = [], [], [], []
    for level, units in enumerate((2, 6)):
        keep = torch.rand(9, units, generator=generator) > 0.8  # some units are never perturbed
        impact = torch.rand(9, 3, generator=generator)
        numerators.append(impact.T @ (~keep).float())
        denominators.append((~keep).float().sum(0))
        dense_keep.append(keep[:, labels[level]].flatten(1))
        impacts.append(impact)
    expected = functional.saliency(torch.cat(dense_keep).float(), torch.cat(impacts)).unflatten(1, (5, 4))
    found = PatchMap.of(labels, numerators, denominators)
    close(torch.stack([found.dense(k) for k in range(3)]), expected, 1e-5)


# Bits of evidence -----------------------------------------------------------------------------------------------------


def test_evidence_bits_by_hand():
    # p = 1/2, 1/4, 1/4 for the first token, 1/8 + … for the second; q = 1/4, 1/2, 1/4 and the same.
    p = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.375, 0.5]]).log()
    q = torch.tensor([[0.25, 0.5, 0.25], [0.125, 0.375, 0.5]]).log()
    ids = torch.tensor([0, 2])
    close(functional.evidence_bits(p, q, ids), [1.0, 0.0])  # twice as likely; as likely
    close(functional.evidence_bits(q, p, ids), [-1.0, 0.0])
    close(functional.evidence_bits(5 + p, q - 7, ids), [1.0, 0.0])  # logits are known up to a constant
    close(functional.token_probabilities(p, ids), [0.5, 0.5])


def test_evidence_stays_finite_where_probabilities_do_not():
    sure, off = torch.tensor([[0.0, -900.0]]), torch.tensor([[-900.0, 0.0]])
    close(functional.evidence_bits(sure, off, torch.tensor([0])), [900 / math.log(2)])
    suppressed = torch.tensor([[0.0, -torch.inf]])
    assert functional.evidence_bits(sure, suppressed, torch.tensor([1])).isfinite().all()
    assert functional.evidence_bits(sure * torch.nan, off, torch.tensor([0])).isnan().all()


# The two normalisations ----------------------------------------------------------------------------------------------


def test_normalising_by_hand():
    audio = torch.tensor([[[1.0, 2.0, 3.0]], [[5.0, 5.0, 8.0]]])
    token = torch.tensor([[2.0, 4.0, 99.0], [1.0, 2.0, 6.0]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    audio_z, token_z = functional.standardize(audio, token, valid)
    # Token 0. Audio: mean 2, Σ(x − 2)² = 2, s = √(2/2) = 1: −1, 0, 1.
    # Token map over its two valid columns: mean 3, s = √(2/1) = √2: −1/√2, 1/√2.
    # Token 1. Audio: mean 6, Σ = 1 + 1 + 4 = 6, s = √3: −1/√3, −1/√3, 2/√3.
    # Token map: mean 3, Σ = 4 + 1 + 9 = 14, s = √7: −2/√7, −1/√7, 3/√7.
    r2, r3, r7 = math.sqrt(2), math.sqrt(3), math.sqrt(7)
    close(audio_z, [[[-1, 0, 1]], [[-1 / r3, -1 / r3, 2 / r3]]])
    close(token_z, [[-1 / r2, 1 / r2, NAN], [-2 / r7, -1 / r7, 3 / r7]])

    audio_n, token_n = functional.paired_min_max(audio_z, token_z, valid)
    # Token 0: joint range [−1, 1]: (z + 1)/2. Token 1: low −2/√7 (token), high 2/√3 (audio).
    low, span = -2 / r7, 2 / r3 + 2 / r7
    close(audio_n, [[[0, 0.5, 1]], [[(-1 / r3 - low) / span] * 2 + [1.0]]])
    close(token_n, [[(1 - 1 / r2) / 2, (1 + 1 / r2) / 2, NAN], [0, (-1 / r7 - low) / span, (3 / r7 - low) / span]])


def test_z_score_of_a_constant_map_is_zero():
    audio, token = torch.full((1, 3, 7), 0.1), torch.full((1, 4), 0.3)
    audio_z, token_z = functional.standardize(audio, token, torch.ones(1, 4, dtype=torch.bool))
    assert not audio_z.any()
    assert not token_z.any()


def test_z_score_of_a_one_element_token_map_is_zero():
    # The first explained token sees the start token alone.
    token = torch.tensor([[7.0, NAN], [7.0, 9.0]])
    valid = torch.tensor([[True, False], [True, True]])
    _, token_z = functional.standardize(torch.rand(2, 2, 2), token, valid)
    close(token_z, [[0, NAN], [-1 / math.sqrt(2), 1 / math.sqrt(2)]])


def test_one_explained_token():
    audio, token, valid = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[7.0]]), torch.tensor([[True]])
    audio_n, token_n = functional.paired_min_max(*functional.standardize(audio, token, valid), valid)
    close(audio_n, [[[0, 0.5, 1]]])
    close(token_n, [[0.5]])  # z-score 0 lies half way between −1 and 1


def test_z_score_does_not_lose_a_small_map_or_a_large_offset():
    valid = torch.ones(1, 1, dtype=torch.bool)
    tiny, _ = functional.standardize(torch.tensor([[[1e-20, 2e-20, 3e-20]]]), torch.ones(1, 1), valid)
    close(tiny, [[[-1, 0, 1]]])
    offset, _ = functional.standardize(torch.tensor([[[4097.0, 4098.0, 4099.0]]]), torch.ones(1, 1), valid)
    close(offset, [[[-1, 0, 1]]])


def test_joint_range_of_zero_becomes_zero():
    valid = torch.tensor([[True, False]])
    audio, token = functional.paired_min_max(torch.full((1, 2, 2), 3.0), torch.tensor([[3.0, NAN]]), valid)
    close(audio, torch.zeros(1, 2, 2))
    close(token, [[0.0, NAN]])


def test_min_max_is_joint_not_per_map():
    # Joint range [0, 10]: the token map reaches 0.2 only, because it is the weaker of the two.
    valid = torch.ones(1, 2, dtype=torch.bool)
    audio, token = functional.paired_min_max(torch.tensor([[[0.0, 10.0]]]), torch.tensor([[1.0, 2.0]]), valid)
    close(audio, [[[0.0, 1.0]]])
    close(token, [[0.1, 0.2]])


def test_what_stands_in_columns_not_yet_generated_is_ignored():
    audio, valid = torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[True, True, False]])
    results = []
    for rubbish in (NAN, 1e9, -1e9):
        token = torch.tensor([[1.0, 2.0, rubbish]])
        audio_n, token_n = functional.paired_min_max(*functional.standardize(audio, token, valid), valid)
        assert token_n[0, 2].isnan()
        results.append((audio_n, token_n))
    for audio_n, token_n in results[1:]:
        close(audio_n, results[0][0])
        close(token_n, results[0][1])


def test_normalising_leaves_its_arguments_alone():
    audio, token, valid = torch.rand(2, 3, 2), torch.rand(2, 2), torch.tensor([[True, False], [True, True]])
    before = audio.clone(), token.clone()
    functional.paired_min_max(*functional.standardize(audio, token, valid), valid)
    assert torch.equal(audio, before[0])
    assert torch.equal(token, before[1])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6), st.floats(-10, 10))
def test_normalised_maps_fill_the_unit_interval_whatever_the_scale(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    audio, token = torch.rand(3, 4, 5, generator=generator), torch.rand(3, 4, generator=generator)
    valid = torch.arange(4) < torch.tensor([2, 3, 4])[:, None]

    def normalise(audio, token):
        return functional.paired_min_max(*functional.standardize(audio, token, valid), valid)

    audio_n, token_n = normalise(audio, token)
    for k in range(3):
        both = torch.cat([audio_n[k].flatten(), token_n[k, valid[k]]])
        assert both.min() == 0
        assert both.max() == 1
    assert torch.equal(token_n.isnan(), ~valid)
    # Impacts in another unit, or all shifted: the same maps, map by map.
    scaled = normalise((audio.double() + shift) * scale, (token.double() + shift) * scale)
    close(scaled[0].float(), audio_n, 1e-4)
    close(scaled[1].float(), token_n, 1e-4)


# Deletion ------------------------------------------------------------------------------------------------------------


def test_deletion_order_by_hand():
    saliency = torch.tensor([[0.5, 0.9, 0.5], [0.1, 0.5, 0.9]])
    # Order: (0,1) and (1,2) with 0.9; (0,0), (0,2), (1,1) with 0.5, time first, then frequency; (1,0).
    # 6 features: 0 %: 0; 25 %: ⌊1.5⌋ = 1; 50 %: 3; 70 %: ⌊4.2⌋ = 4; 99 %: ⌊5.94⌋ = 5; 100 %: 6.
    keep = functional.deletion_masks(saliency, [0, 0.25, 0.5, 0.7, 0.99, 1])
    assert keep.dtype == torch.bool
    assert keep.int().tolist() == [
        [[1, 1, 1], [1, 1, 1]],
        [[1, 0, 1], [1, 1, 1]],
        [[0, 0, 1], [1, 1, 0]],
        [[0, 0, 0], [1, 1, 0]],
        [[0, 0, 0], [1, 0, 0]],
        [[0, 0, 0], [0, 0, 0]],
    ]


def test_ties_go_by_time_then_frequency():
    keep = functional.deletion_masks(torch.zeros(3, 4), [5 / 12])
    assert (~keep[0]).int().tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    # Many ties, where an unstable sort would mix them.
    many = functional.deletion_masks(torch.zeros(100, 80), [0.5])[0]
    assert many.flatten().tolist() == [False] * 4_000 + [True] * 4_000


@pytest.mark.parametrize("size", [(6, 10), (7, 11), (10, 10), (1, 1), (300, 80), (1_500, 80)])
def test_number_of_deleted_features(size):
    features = size[0] * size[1]
    percents = [0, 1, 2, 3, 5, 7, 29, 55, 57, 58, 100]
    keep = functional.deletion_masks(torch.rand(size), [percent / 100 for percent in percents])
    deleted = (~keep).flatten(1).sum(1)
    assert deleted.tolist() == [features * percent // 100 for percent in percents]  # whole numbers: exactly ⌊T·C·s⌋


def test_each_step_goes_on_where_the_last_one_stopped():
    keep = functional.deletion_masks(torch.rand(20, 8), [i / 20 for i in range(21)])
    assert not (keep[1:] & ~keep[:-1]).any()


def test_deletion_takes_a_non_contiguous_map():
    saliency = torch.tensor([[3.0, 1.0], [2.0, 0.0]])
    assert torch.equal(
        functional.deletion_masks(saliency.T, [0.25, 0.5]), functional.deletion_masks(saliency, [0.25, 0.5]).mT
    )


@pytest.mark.parametrize("bad", [-0.1, 1.01, 5, NAN])
def test_fractions_outside_zero_to_one_are_refused(bad):
    with pytest.raises(ValueError, match=rf"fractions.*\[0, 1\].*{bad}"):
        functional.deletion_masks(torch.rand(2, 2), [0.5, bad])


# Size and area -------------------------------------------------------------------------------------------------------


def test_size_by_hand():
    # Five values; the NaN is none of them. ≥ 0: 5; ≥ 0.25: 4; ≥ 0.5: 3 (inclusive); ≥ 0.75: 1; ≥ 1: 1 (inclusive).
    maps = torch.tensor([[0.0, 0.25, 0.5], [0.5, 1.0, NAN]])
    curve = functional.size_curve(maps, [0, 0.25, 0.5, 0.75, 1])
    assert curve.dtype == torch.float64
    close(curve, [100, 80, 60, 20, 20])
    # ¼ · (½·100 + 80 + 60 + 20 + ½·20) = ¼ · 220.
    assert functional.area_under_curve(curve, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx(55)


def test_thresholds_are_inclusive_at_every_twentieth():
    # 0.15 has no exact float: a map that holds it must still count as ≥ 0.15.
    thresholds = [i / 20 for i in range(21)]
    maps = torch.tensor(thresholds)
    close(functional.size_curve(maps, thresholds), [100 * (21 - i) / 21 for i in range(21)])


def test_size_pools_all_tokens():
    # Token 0 has 4 values, token 1 as well: 3 of 8, not a mean over tokens of anything else.
    maps = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    close(functional.size_curve(maps, [0.5]), [37.5])


def test_size_of_nothing_is_refused():
    with pytest.raises(ValueError, match="maps"):
        functional.size_curve(torch.full((2, 2), NAN), [0.5])


@pytest.mark.parametrize(
    ("y", "x", "expected"),
    [
        ([100, 100, 100], [0, 0.5, 1], 100),  # a score of 100 throughout has the area 100
        ([0, 0], [0, 1], 0),
        ([0, 50, 100], [0, 0.5, 1], 50),
        ([0, 100, 100], [0, 0.1, 1], 95),  # uneven steps: ½·0.1·100 + 0.9·100
        ([4, 2], [0, 0.5], 1.5),
    ],
)
def test_area_by_hand(y, x, expected):
    area = functional.area_under_curve(y, x)
    assert type(area) is float
    assert area == pytest.approx(expected)
    assert functional.area_under_curve(torch.tensor(y), torch.tensor(x)) == pytest.approx(expected)


@pytest.mark.parametrize(("y", "x"), [([1], [0]), ([], []), ([1, 2, 3], [0, 1]), ([[1, 2]], [[0, 1]])])
def test_area_of_too_little_is_refused(y, x):
    with pytest.raises(ValueError, match="y and x"):
        functional.area_under_curve(y, x)

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spes_hf.errors import ConfigError
from spes_hf.masking.draw import BLOCK, DESIGNS, keep_bits, mask_key
from spes_hf.masking.perturbations import Masks
from spes_hf.methods import SpesConfig

KEY = mask_key(3, "clip", "gradient/0")


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(DESIGNS)),
    width=st.integers(1, 30),
    first=st.integers(0, 40),
    sizes=st.lists(st.integers(1, 11), min_size=1, max_size=6),
)
def test_a_mask_depends_on_its_index_alone(name, width, first, sizes):
    numbers = DESIGNS[name].numbers
    whole = numbers(KEY, first, sum(sizes), width)
    starts = np.cumsum([first, *sizes[:-1]])
    parts = [numbers(KEY, int(start), size, width) for start, size in zip(starts, sizes, strict=True)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(numbers(KEY, 0, first + sum(sizes), width)[first:], whole)


@pytest.mark.parametrize("name", sorted(DESIGNS))
def test_numbers_are_uniform_and_keys_differ(name):
    numbers = DESIGNS[name].numbers
    table = numbers(KEY, 0, 2_048, 33)
    assert table.shape == (2_048, 33)
    assert table.dtype == np.float32
    assert table.min() >= 0 and table.max() < 1
    counts = np.histogram(table, bins=10, range=(0, 1))[0] / table.size
    assert np.abs(counts - 0.1).max() < 0.01
    other = numbers(mask_key(4, "clip", "gradient/0"), 0, 64, 33)
    assert 0.3 < ((other < 0.5) == (table[:64] < 0.5)).mean() < 0.7


@pytest.mark.parametrize("name", sorted(DESIGNS))
def test_units_are_perturbed_with_the_right_probability(name):
    for probability in (0.4, 0.5, 0.7):
        perturbed = ~keep_bits(KEY, 0, 4_096, 20, probability, DESIGNS[name].numbers)
        assert np.abs(perturbed.mean(0) - probability).max() < 0.04


def test_every_design_has_its_name_in_the_config():
    for name in DESIGNS:
        assert SpesConfig(mask_design=name).mask_design == name
    with pytest.raises(ConfigError, match=f"allowed: {', '.join(DESIGNS)}, None"):
        SpesConfig(mask_design="sobol")


@pytest.mark.parametrize("name", sorted(DESIGNS))
def test_units_do_not_hang_together(name):
    perturbed = ~keep_bits(KEY, 0, 8_192, 12, 0.5, DESIGNS[name].numbers)
    assert np.abs(np.corrcoef(perturbed.T) - np.eye(12)).max() < 0.06


def test_the_second_mask_of_a_pair_keeps_what_the_first_perturbs():
    keep = keep_bits(KEY, 0, 200, 1_000, 0.5, DESIGNS["antithetic"].numbers)
    assert np.array_equal(keep[::2], ~keep[1::2])
    assert not np.array_equal(keep[0], keep[2])
    assert np.array_equal(keep[::2], keep_bits(KEY, 0, 100, 1_000, 0.5))  # the first of each is a mask as ever


@pytest.mark.parametrize(("probability", "perturbed"), [(0.5, {4}), (0.25, {2}), (0.4, {3, 4})])
def test_in_a_block_of_balanced_masks_every_unit_is_perturbed_equally_often(probability, perturbed):
    keep = keep_bits(KEY, 0, 40 * BLOCK, 100, probability, DESIGNS["balanced"].numbers)
    counts = (~keep).reshape(40, BLOCK, 100).sum(1)
    assert set(counts.flatten().tolist()) == perturbed


def test_masks_that_balance_one_another_stay_in_one_half():
    bits = torch.ones(6, 3)
    assert Masks(bits, 0, range(3, 9)).halves.tolist() == [1, 0, 1, 0, 1, 0]
    assert Masks(bits, 0, range(3, 9), block=2).halves.tolist() == [1, 0, 0, 1, 1, 0]
    assert Masks(bits, 0, range(3, 9), block=BLOCK).halves.tolist() == [0, 0, 0, 0, 0, 1]


def test_the_paper_draws_independent_masks():
    assert SpesConfig.paper("asr").mask_design == SpesConfig.paper("st").mask_design == "independent"

"""Two grids of frames and mel bins made one: nothing is lost, nothing is made up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spes_hf.errors import ConfigError
from spes_hf.explanation.grid import Axis, Grid


def axis(start, step, count):
    return Axis.of(start + step * torch.arange(count, dtype=torch.float64))


def test_edges_lie_halfway():
    assert Axis.of(torch.tensor([1.0, 2.0, 4.0])).edges.tolist() == [0.5, 1.5, 3.0, 5.0]


def test_two_cells_are_averaged_by_how_far_they_reach():
    fine, coarse = axis(0.5, 1.0, 4), axis(0.75, 1.5, 2)
    values = torch.tensor([[1.0], [4.0], [10.0], [3.0]], dtype=torch.float64)
    found = coarse.average(values, fine)
    # [0, 1.5): all of the first cell, half of the second; [1.5, 3): the other half, and the third.
    assert found[:, 0].tolist() == pytest.approx([(1 + 4 / 2) / 1.5, (4 / 2 + 10) / 1.5])


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.4, 3.0), st.floats(-2.0, 2.0))
def test_averages_stay_within_the_values_and_constants_stay(source, target, step, shift):
    one, other = axis(0.0, 1.0, source), axis(shift, step, target)
    other = other.within(one)
    if not len(other.centres):
        return
    values = torch.rand(source, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(source))
    found = other.average(values, one)
    assert found.shape == (len(other.centres), 3)
    assert float(found.min()) >= float(values.min()) - 1e-9 and float(found.max()) <= float(values.max()) + 1e-9
    constant = other.average(torch.full((source, 1), 7.0, dtype=torch.float64), one)
    assert constant.flatten().tolist() == pytest.approx([7.0] * len(constant))


def test_the_sum_stays_where_all_is_covered():
    fine, coarse = axis(0.005, 0.01, 120), axis(0.0125, 0.025, 48)
    values = torch.rand(120, 1, dtype=torch.float64)
    assert float(coarse.average(values, fine).sum() * 0.025) == pytest.approx(float(values.sum() * 0.01))


def test_equal_grids_change_nothing():
    grid = Grid(axis(0.0, 0.01, 30), axis(100.0, 50.0, 8))
    values = torch.rand(30, 8)
    shared = Grid.shared(grid, Grid(axis(1e-7, 0.01, 30), axis(100.0, 50.0, 8)))
    assert torch.equal(shared.average(values, grid), values)
    assert torch.equal(shared.times, grid.times)


def test_the_coarser_axis_is_shared_as_far_as_both_reach():
    one, other = Grid(axis(0.0, 0.01, 100), axis(50.0, 100.0, 80)), Grid(axis(0.1, 0.02, 60), axis(100.0, 200.0, 30))
    for shared in (Grid.shared(one, other), Grid.shared(other, one)):
        assert torch.allclose(shared.times, torch.arange(0.1, 0.995, 0.02))
        assert torch.allclose(shared.frequencies, other.frequencies)


def test_a_peak_stays_where_it_is():
    fine, coarse = Grid(axis(0.0, 0.01, 200), axis(50.0, 50.0, 80)), Grid(axis(0.0, 0.02, 100), axis(100.0, 100.0, 40))
    values = torch.zeros(200, 80)
    values[120:124, 39:43] = 1.0  # around 1.215 s and 2,075 Hz
    shared = Grid.shared(fine, coarse)
    found = shared.average(values, fine)
    frame, mel = divmod(int(found.argmax()), found.shape[1])
    assert abs(float(shared.times[frame]) - 1.215) <= 0.02
    assert abs(float(shared.frequencies[mel]) - 2075) <= 100


def test_grids_that_do_not_meet_are_refused():
    with pytest.raises(ConfigError, match="which do not overlap"):
        Grid.shared(Grid(axis(0.0, 0.01, 10), axis(1, 1, 4)), Grid(axis(5.0, 0.02, 10), axis(1, 1, 4)))

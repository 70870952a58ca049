"""When was each token heard? On made-up profiles whose answer is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spes_hf.explanation.stretches import in_order, joined, peak_stretch, stretches_in_order

TIMES = torch.arange(100) * 0.01


def bump(centre, width=0.04, height=1.0):
    return height * np.exp(-0.5 * ((TIMES.numpy() - centre) / width) ** 2)


def test_neighbours_meet_halfway():
    found = stretches_in_order({0: bump(0.2), 1: bump(0.5, height=9.0), 2: bump(0.8)}, TIMES)
    edges = [found[k] for k in range(3)]
    assert edges[0][0] == pytest.approx(-0.005) and edges[2][1] == pytest.approx(0.995)
    assert edges[0][1] == pytest.approx(0.35, abs=0.03) and edges[1][1] == pytest.approx(0.65, abs=0.03)
    assert edges[0][1] == pytest.approx(edges[1][0]) and edges[1][1] == pytest.approx(edges[2][0])


def test_tokens_out_of_order_have_no_cut():
    assert stretches_in_order({0: bump(0.9), 1: bump(0.6), 2: bump(0.4), 3: bump(0.1)}, TIMES) is None


def test_a_token_without_evidence_still_gets_its_place():
    found = stretches_in_order({0: bump(0.2), 1: np.zeros(100), 2: bump(0.8)}, TIMES)
    assert found[0][1] <= found[1][0] + 1e-6 and found[1][1] <= found[2][0] + 1e-6
    assert found[1][0] > 0.2 and found[1][1] < 0.8


def test_more_tokens_than_places_have_no_cut():
    assert stretches_in_order({k: bump(0.5) for k in range(60)}, TIMES) is None
    assert stretches_in_order({}, TIMES) is None


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_the_cut_is_the_best_of_all(pieces, more, seed):
    gain = np.random.default_rng(seed).normal(size=(pieces, pieces + more))
    found = in_order(gain)
    assert found[0][0] == 0 and found[-1][1] == gain.shape[1]
    assert all(a < b for a, b in found) and [b for _, b in found[:-1]] == [a for a, _ in found[1:]]

    def best(k, start):
        if k == pieces - 1:
            return gain[k, start:].sum()
        ends = range(start + 1, gain.shape[1] - (pieces - 1 - k) + 1)
        return max(gain[k, start:end].sum() + best(k + 1, end) for end in ends)

    assert sum(gain[k, a:b].sum() for k, (a, b) in enumerate(found)) == pytest.approx(best(0, 0))


def test_the_peak_of_a_map_whatever_its_sign():
    evidence = torch.from_numpy(-bump(0.6, 0.05)[:, None] * np.ones((1, 4)) + 0.5 * bump(0.1, 0.01)[:, None])
    start, end = peak_stretch(evidence, TIMES)
    assert start < 0.55 and end > 0.65 and start > 0.35
    start, end = peak_stretch(evidence, TIMES, within=(0.0, 0.3))
    assert 0.0 <= start + 0.005 and end <= 0.31


def test_joined():
    assert joined([(0.1, 0.2), (0.3, 0.5)]) == (0.1, 0.5)
    assert joined([(math.nan, math.nan)]) is None and joined([]) is None

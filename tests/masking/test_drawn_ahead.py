"""Masks that a thread draws while the model runs are those that would have been drawn anyway."""

from __future__ import annotations

import threading

import pytest
import torch

from spes_hf import SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.masking.ahead import drawn_ahead
from spes_hf.masking.perturbations import TokenPerturbation

CONFIGS = {
    "Eq. 3": SpesConfig(estimator="perturbation", num_spectrogram_masks=60, num_token_masks=20),
    "gradients": SpesConfig(num_spectrogram_masks=8, masks_per_token=4, num_token_masks=20),
    "jointly": SpesConfig(estimator="perturbation", perturb="joint", num_spectrogram_masks=60),
    "until it is reliable": SpesConfig(estimator="perturbation", num_spectrogram_masks=240, target_reliability=0.01),
}


class Watched(TokenPerturbation):
    """Notes which rows are drawn, and whether by the thread that draws ahead."""

    def draw(self, level, rows):
        name = threading.current_thread().name
        seen.append((rows, name.startswith("spes_hf-masks")))
        if rows.start >= 90:
            raise MemoryError("no room for masks")
        return super().draw(level, rows)


seen: list[tuple[range, bool]] = []


@pytest.fixture
def watched():
    seen.clear()
    return Watched(units=6, key=1, mask_prob=0.4, num_masks=100, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def small():
    return load_tiny_model("speech2text-en")


def masks_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("spes_hf-masks")]


@pytest.mark.parametrize("name", CONFIGS)
def test_maps_are_the_same_bit_for_bit(small, monkeypatch, name):
    found = []
    for idle in (0, 1):
        monkeypatch.setattr("spes_hf.plans.spare_cores", lambda device, idle=idle: idle)
        clip = tiny_clips()[0]["path"]
        found.append(explain(*small, clip, config=CONFIGS[name], batch_size=7, progress=False))
    expected, ahead = found
    assert torch.equal(expected.raw_audio, ahead.raw_audio)
    assert torch.equal(expected.raw_token.nan_to_num(), ahead.raw_token.nan_to_num())
    assert expected.origin.cost["forward_passes"] == ahead.origin.cost["forward_passes"]
    assert not masks_threads()


def test_thread_draws_all_but_the_first_masks(small, monkeypatch):
    drawn = []
    draw = TokenPerturbation.draw

    def noted(self, level, rows):
        drawn.append((rows, threading.current_thread().name.startswith("spes_hf-masks")))
        return draw(self, level, rows)

    monkeypatch.setattr("spes_hf.plans.spare_cores", lambda device: 1)
    monkeypatch.setattr(TokenPerturbation, "draw", noted)
    explain(*small, tiny_clips()[0]["path"], config=CONFIGS["Eq. 3"], batch_size=7, progress=False)
    assert drawn == [(range(7), False), (range(7, 14), True), (range(14, 20), True)]


def test_other_rows_than_expected_are_drawn_at_once(watched):
    """As after memory ran out: half of the rows again."""
    with drawn_ahead(watched, True) as masks:
        masks.draw(0, range(8), (0, range(8, 16)))
        half = masks.draw(0, range(4), (0, range(4, 8)))
        rest = masks.draw(0, range(4, 8), None)
    assert [rows for rows, by_a_thread in seen if not by_a_thread] == [range(8), range(4)]
    for found, rows in ((half, range(4)), (rest, range(4, 8))):
        assert torch.equal(found.keep, watched.draw(0, rows).keep) and found.rows == rows


def test_error_of_the_thread_reaches_the_caller_when_its_masks_are_needed(watched):
    with drawn_ahead(watched, True) as masks:
        masks.draw(0, range(80, 90), (0, range(90, 100)))
        with pytest.raises(MemoryError, match="no room for masks"):
            masks.draw(0, range(90, 100), None)
        assert len(masks.draw(0, range(80, 85), (0, range(85, 90))).keep) == 5
    assert not masks_threads()


def test_no_thread_is_left_when_a_run_is_given_up(watched):
    with pytest.raises(KeyboardInterrupt), drawn_ahead(watched, True) as masks:
        masks.draw(0, range(8), (0, range(8, 16)))
        raise KeyboardInterrupt
    assert not masks_threads()


def test_without_an_idle_core_no_thread_is_started(watched):
    with drawn_ahead(watched, False) as masks:
        masks.draw(0, range(8), (0, range(8, 16)))
        masks.draw(0, range(8, 16), None)
    assert seen == [(range(8), False), (range(8, 16), False)]

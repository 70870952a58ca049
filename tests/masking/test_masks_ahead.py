"""Masks that a thread draws while the model runs are those that would have been drawn anyway, without torch."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spes_hf import SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.masking import ahead
from spes_hf.masking.ahead import Draws, drawing_thread
from spes_hf.masking.perturbations import Perturbation, TokenPerturbation
from spes_hf.methods import BubbleNoiseConfig
from spes_hf.methods.run import STAGES

CPU = torch.device("cpu")
EQ_3 = SpesConfig(estimator="perturbation", num_spectrogram_masks=60, num_token_masks=20)
CONFIGS = {
    "Eq. 3": EQ_3,
    "gradients": SpesConfig(num_spectrogram_masks=8, masks_per_token=4, num_token_masks=20),
    "jointly": SpesConfig(estimator="perturbation", perturb="joint", num_spectrogram_masks=60),
    "balanced": dataclasses.replace(EQ_3, mask_design="balanced"),
    "until it is reliable": dataclasses.replace(EQ_3, num_spectrogram_masks=240, target_reliability=0.01),
    "bubbles": BubbleNoiseConfig(num_spectrogram_masks=25, num_token_masks=20),
}
THREAD = "masks"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn: whose masks, which rows, and in which thread."""

    perturbation: Perturbation
    level: int
    rows: range
    by_the_thread: bool


class NoTorch(TorchDispatchMode):
    """Lets no operation of torch through."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        raise AssertionError(f"{operation} ran")


@pytest.fixture(scope="module")
def small():
    return load_tiny_model("speech2text-en")


@pytest.fixture
def idle(monkeypatch):
    """Set how many cores are idle."""
    return lambda cores: monkeypatch.setattr(ahead, "spare_cores", lambda device: cores)


@pytest.fixture
def drawn(monkeypatch):
    """All that is drawn; torch is kept out of it."""
    found: list[Drawn] = []

    def watch(kind):
        really = kind.drawn

        def watched(self, level, rows):
            name = threading.current_thread().name
            found.append(Drawn(self, level, rows, name.startswith(THREAD)))
            with NoTorch():
                return really(self, level, rows)

        monkeypatch.setattr(kind, "drawn", watched)

    for kind in subclasses(Perturbation):
        if "drawn" in vars(kind) and kind.__module__.startswith("spes_hf."):
            watch(kind)
    return found


def subclasses(kind):
    return [kind, *(below for own in kind.__subclasses__() for below in subclasses(own))]


def explained(small, config, **how):
    return explain(*small, tiny_clips()[0]["path"], config=config, batch_size=7, **{"progress": False, **how})


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


def same_bits(one, other):
    assert torch.equal(one.raw_audio, other.raw_audio)
    assert torch.equal(one.raw_token.nan_to_num(), other.raw_token.nan_to_num())
    assert one.origin.cost["forward_passes"] == other.origin.cost["forward_passes"]


@pytest.mark.parametrize(("name", "over"), [*((name, "spectrogram") for name in CONFIGS), ("gradients", "encoder")])
def test_maps_are_the_same_bit_for_bit(small, idle, drawn, name, over):
    idle(0)
    expected = explained(small, CONFIGS[name], over=over)
    assert drawn and not any(each.by_the_thread for each in drawn)
    pieces = [(each.level, each.rows) for each in drawn]
    drawn.clear()
    idle(1)
    same_bits(expected, explained(small, CONFIGS[name], over=over))
    # Nothing is drawn in vain.
    assert sorted(map(str, pieces)) == sorted(str((each.level, each.rows)) for each in drawn)
    assert not threads()


@pytest.mark.parametrize("name", CONFIGS)
def test_thread_draws_all_but_the_first_masks_of_a_run(small, idle, drawn, name):
    idle(1)
    explained(small, CONFIGS[name])
    waited = Counter(id(each.perturbation) for each in drawn if not each.by_the_thread)
    assert max(waited.values()) <= (len(STAGES) if name == "until it is reliable" else 1)
    assert waited.total() < len(drawn) / 2


def test_torch_is_used_in_the_callers_thread_alone(small, idle, drawn, monkeypatch):
    moved = []
    really = ahead.Perturbation.masks

    def noted(self, *arguments):
        moved.append(threading.current_thread())
        return really(self, *arguments)

    monkeypatch.setattr(Perturbation, "masks", noted)
    idle(1)
    explained(small, EQ_3)
    assert any(each.by_the_thread for each in drawn)
    assert set(moved) == {threading.main_thread()}


def test_without_an_idle_core_no_thread_is_started(idle):
    idle(0)
    with drawing_thread(CPU) as thread:
        assert thread is None


@pytest.mark.parametrize("fails_in", ["the thread", "the caller's thread"])
def test_memory_that_runs_out_while_masks_are_drawn(small, idle, monkeypatch, fails_in):
    idle(0)
    expected = explained(small, EQ_3)
    failed = []
    really = TokenPerturbation.drawn

    def scarce(self, level, rows):
        by_the_thread = threading.current_thread().name.startswith(THREAD)
        if len(rows) > 3 and by_the_thread == (fails_in == "the thread"):
            failed.append(rows)
            raise MemoryError("no room for masks")
        return really(self, level, rows)

    monkeypatch.setattr(TokenPerturbation, "drawn", scarce)
    idle(1)
    found = explained(small, EQ_3)
    assert failed
    torch.testing.assert_close(found.raw_token, expected.raw_token, equal_nan=True)
    assert found.origin.cost["forward_passes"] == expected.origin.cost["forward_passes"]
    assert not threads()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_no_thread_is_left_when_a_run_is_given_up(small, idle, drawn, error):
    """Not even while somebody holds on to the error, and with it to the unfinished run."""

    def give_up(share):
        if any(each.by_the_thread for each in drawn):
            raise error

    idle(1)
    with pytest.raises(error) as held:
        explained(small, EQ_3, progress=give_up)
    assert held.tb is not None and not threads()


def test_other_masks_than_expected_are_drawn_at_once(drawn):
    """As after memory ran out: half of the rows again."""
    perturbation = TokenPerturbation(units=6, key=1, mask_prob=0.4, num_masks=100, device=CPU)
    with ThreadPoolExecutor(1, THREAD) as thread:
        masks = Draws(perturbation, thread)
        masks.draw(0, range(8), (0, range(8, 16)))
        half = masks.draw(0, range(4), (0, range(4, 8)))
        rest = masks.draw(0, range(4, 8), None)
    assert [each.rows for each in drawn if not each.by_the_thread] == [range(8), range(4)]
    for found, rows in ((half, range(4)), (rest, range(4, 8))):
        assert torch.equal(found.keep, perturbation.draw(0, rows).keep)
        assert (found.level, found.rows) == (0, rows)

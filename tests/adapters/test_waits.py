"""Between two passes the package waits for nothing on an accelerator, so it draws the next masks while that computes.

What would wait is noted on a pretended device. Left aside are the models' own code, which waits where it checks its
attention masks, and copies by `on_device`, which do not wait on a GPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
import torch
from accelerate import dispatch_model
from pretended_devices import noting_waits, pretended, run_alone, starts_them
from test_wrappers import FOUR, explained

from spes_hf import SpesConfig
from spes_hf.methods import BubbleNoiseConfig
from spes_hf.methods.run import Run
from spes_hf.runtime.transfer import on_device

MASKS = 9
EQ_3 = SpesConfig(estimator="perturbation", num_spectrogram_masks=MASKS, num_token_masks=MASKS)
GRADIENT = SpesConfig(num_spectrogram_masks=MASKS, masks_per_token=6, num_token_masks=MASKS, passes_per_mask=None)
SHARED = dataclasses.replace(GRADIENT, passes_per_mask=2)
CASES = {
    "Eq. 3": {"config": EQ_3},
    "jointly": {"config": SpesConfig(estimator="perturbation", perturb="joint", num_spectrogram_masks=MASKS)},
    "gradients": {"config": GRADIENT},
    "gradients that tokens share": {"config": SHARED},
    "two words": {"config": SHARED, "tokens": [0, 2]},
    "the encoder's output": {"config": GRADIENT, "over": "encoder"},
    "contrasts": {"config": GRADIENT, "text": "der kleine hund", "foil": {"kleine": "garten"}},
    "bubbles": {"config": BubbleNoiseConfig(num_spectrogram_masks=MASKS, num_token_masks=MASKS)},
    **{
        impact: {"config": dataclasses.replace(GRADIENT, impact=impact)}
        for impact in ("log-probability", "probability", "contrastive")
    },
}
# Where checks for NaN wait, and the mechanism that does not wait on a GPU.
CHECK, COPY = "spes_hf/finite.py check_finite", "spes_hf/runtime/transfer.py on_device"


@pytest.fixture
def device(two):
    """Name of a pretended device."""
    return two[0]


@starts_them
def test_pretended_devices_in_a_process_of_their_own():
    run_alone(__file__)


@pretended
@pytest.mark.parametrize(
    "waits",
    [
        lambda there: there.sum().item(),
        lambda there: bool(there.any()),
        lambda there: there.tolist(),
        lambda there: there.cpu(),
        lambda there: torch.ones(3, dtype=torch.float32, device="cpu").to(there.device),
        lambda there: there[[0, 2]],
        lambda there: there[there > 1],
        lambda there: there[there[0].long()],
        lambda there: there.nonzero(),
        lambda there: torch.tensor([1.0], dtype=torch.float32, device=there.device),
    ],
)
def test_what_waits_is_noted(device, waits):
    there = torch.arange(3, dtype=torch.float32, device="cpu").to(device)
    with noting_waits() as noted:
        waits(there)
    assert noted


@pretended
def test_what_does_not_wait_is_not_noted(device):
    there = torch.arange(3, dtype=torch.float32, device="cpu").to(device)
    with noting_waits() as noted:
        first = torch.ones(2, dtype=torch.int64, device=device)
        torch.where(there > 1, there, -1.0).sum() + there[:2][first].to(torch.float64) * 2
        there[1:] += 1
        there.copy_(there * 2)
        torch.ones(3, dtype=torch.float32, device="cpu").sum().item()
    assert not noted


@pretended
@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_between_passes_but_checks(cases, device, monkeypatch, name):
    own = in_runs(cases("whisper-en"), device, monkeypatch, name)
    checks = own.pop(CHECK, 0)
    assert not own
    # After 1, 2, 4, 8, … passes: of all impacts, and of gradients.
    kinds = 1 if name in ("jointly", "contrasts") else 2
    assert checks <= kinds * (1 + math.log2(2 * MASKS + 4))


@pretended
@pytest.mark.parametrize("family", [*FOUR[1:], "qwen3_asr"])
def test_nothing_waits_between_passes_in_other_families(cases, device, monkeypatch, family):
    for name in ("Eq. 3", "gradients that tokens share"):
        assert set(in_runs(cases(family), device, monkeypatch, name)) <= {CHECK}


def in_runs(case, device, monkeypatch, name):
    """Return what of this package waits while masks are drawn and shown to the model, and how often.

    The first pass of a run is left aside, since some things are prepared there once.
    """
    noted = []
    really = Run.run

    def run(self, impact_of, batch):
        passes = really(self, impact_of, batch)
        yield next(passes)
        while True:
            with noting_waits() as waits:
                done = next(passes, None)
            noted.extend(waits)
            if done is None:
                return
            yield done

    model, _ = case.copy()
    model = dispatch_model(model, {"": device}, main_device=device, force_hooks=True)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "run", run)
        explained(case, model, batch_size=1, **CASES[name])
    assert noted
    frames = [[own(frame) for frame in wait.called_by] for wait in noted]
    known = ("spes_hf/", "site-packages/transformers/", "site-packages/accelerate/")
    last = [[frame for frame in wait if any(part in frame for part in known)][-1] for wait in frames]
    mine = [wait for wait, at in zip(frames, last, strict=True) if at.startswith("spes_hf/") and COPY not in wait]
    return Counter(CHECK if CHECK in wait else [f for f in wait if f.startswith("spes_hf/")][-1] for wait in mine)


def own(frame):
    """Return a frame of the package without the folder that it lies in."""
    return "spes_hf/" + frame.rpartition("/spes_hf/")[2] if "/spes_hf/" in frame else frame


def test_copies_have_the_numbers_of_arrays_and_tensors():
    values = torch.tensor([[1.0, 2.0]], dtype=torch.float64, device="cpu")
    for given in (values, values.numpy()):
        assert torch.equal(on_device(given, torch.device("cpu")), values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_to_a_gpu_do_not_wait():
    values = torch.arange(5, dtype=torch.int64, device="cpu")
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = on_device(values, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert there.tolist() == values.tolist()

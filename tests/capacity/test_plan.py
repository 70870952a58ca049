"""A plan's numbers, and ``spes-hf plan`` as a user runs it."""

from __future__ import annotations

import pytest

from spes_hf import SpesConfig, cli, explain
from spes_hf.adapters import get_adapter
from spes_hf.capacity.measured import Measured, measure
from spes_hf.capacity.operations import Operations, noise_of
from spes_hf.capacity.passes import Passes
from spes_hf.capacity.plan import Plan, Work
from spes_hf.demo import load_tiny_model

FEW = SpesConfig(num_spectrogram_masks=4, masks_per_token=2, num_token_masks=5)
EACH = Operations(encoder=1, whole=10, backward=20, decoder=3, heard=4, decoder_backward=5)


@pytest.fixture(scope="module")
def model():
    return load_tiny_model("speech2text-en")


def work(**changes) -> Work:
    values = dict(
        seconds=6.0,
        tokens=20,
        passes=Passes(whole=5, backward=7, decoder=11, heard=1, forward=17),
        generations=1,
        metrics=Passes(),
        row_bytes=1000,
    )
    return Work(**{**values, **changes})


def test_arithmetic():
    plan = Plan(work(), hours=10, devices=4, each=EACH, teraflops=2e-12 * 227, token_ms=50)
    assert work().operations(EACH) == 5 * 10 + 7 * 20 + 11 * 3 + 4 == 227
    assert plan.utterances == 6000 and plan.bytes == 6_000_000
    assert plan.seconds == pytest.approx(0.5 + 20 * 0.05)
    assert plan.device_hours == pytest.approx(6000 * 1.5 / 3600) and plan.wall_hours == plan.device_hours / 4
    curves = Plan(work(generations=22, metrics=Passes(heard=21)), 10, 1, EACH, 2e-12 * 227, 50)
    assert curves.seconds == pytest.approx((227 + 21 * 4) / (2 * 227) + 22 * 20 * 0.05)


def test_arithmetic_of_measured_seconds():
    own = Measured("cpu", writing=0.2, around=0.3, steps=((10, 1.0), (20, 0.5)), whole=0.01, heard=0.001, tokens=20)
    assert Plan(work(), 10, 1, measured=own).seconds == pytest.approx(2.0)
    judged = work(generations=22, metrics=Passes(whole=100, heard=21))
    assert Plan(judged, 10, 1, measured=own).seconds == pytest.approx(2.0 + 21 * 0.2 + 1.0 + 0.021)


def test_work_of_metrics(model):
    adapter = get_adapter(*model)
    plain, judged = (
        Work.of(adapter, FEW, 1.2, 8, metrics, max_words=3) for metrics in ((), ("deletion", "word_deletion"))
    )
    assert (plain.generations, plain.metrics) == (1, Passes())
    assert judged.generations == 22 and judged.metrics.heard == 21
    assert judged.metrics.whole % 3 == 0 and judged.metrics.whole > 0
    fine = Work.of(adapter, FEW, 1.2, 8, ("deletion", "insertion"), fractions="fine")
    assert fine.generations == 1 + 2 * 25


@pytest.mark.parametrize("config", [FEW, SpesConfig.paper("asr", num_spectrogram_masks=60, num_token_masks=5)])
def test_bytes_are_those_of_a_row_of_that_shape(model, config):
    real = explain(*model, noise_of(get_adapter(*model), 1.2).samples, config=config, progress=False)
    planned = Work.of(get_adapter(*model), config, 1.2, len(real.token_ids)).row_bytes
    assert planned == pytest.approx(len(real.to_row()["explanation"]), rel=0.05)


def test_measuring_runs_every_step(model):
    found = measure(*model, FEW, 1.2, 9, limit=0.0)
    assert found.tokens == 9 and found.device == "cpu, float32"
    # Two masks that balance one another leave no signs to share passes by: one for each of the nine tokens.
    assert [passes for passes, _ in found.steps] == [4 + 4 + 2 * 9, 5]
    assert all(seconds > 0 for _, seconds in found.steps) and found.whole > 0 and found.heard > 0
    assert found.explaining == pytest.approx(found.writing + found.around + sum(s for _, s in found.steps))


def plan(*more):
    return cli.main(["plan", "--model", "speech2text-en", "--hours", "1000", "--gpus", "8", *more])


def test_the_command(capsys):
    assert plan("--metrics", "deletion", "--preset", "fast") == 0
    shown = capsys.readouterr().out
    for words in (
        "642,858",
        "wall time on 8 GPUs",
        "backward passes",
        "rows on disk",
        "25 tokens",
        "40% of the 16-bit peak",
    ):
        assert words in shown
    launch = "accelerate launch --multi_gpu --num_processes 8 recipes/explain_dataset.py --model speech2text-en"
    assert launch in shown and "--preset fast --metrics deletion" in shown


def test_numbers_that_are_given(capsys, tmp_path):
    FEW.to_json(tmp_path / "few.json")
    few = ["--config", str(tmp_path / "few.json"), "--utterance-seconds", "2", "--tokens-per-second", "3"]
    assert plan(*few, "--tflops", "100", "--gpus", "1") == 0
    shown = capsys.readouterr().out
    assert "1,800,000" in shown and "6 tokens" in shown and "passes reach 100 TFLOP/s;" in shown
    assert "  python recipes/explain_dataset.py" in shown and f"--config {tmp_path / 'few.json'}" in shown


def test_measured_seconds_are_said_to_be(capsys):
    assert plan("--measure", "--device", "cpu", "--preset", "fast", "--utterance-seconds", "1.2") == 0
    shown = capsys.readouterr().out
    assert "measured here (cpu, float32)" in shown and "machine time" in shown and "FLOP" not in shown


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--hours", "0"], cli.EXIT_USAGE, "--hours is 0.0; allowed: a number above 0"),
        (["--gpus", "-1"], cli.EXIT_USAGE, "--gpus is -1"),
        (["--utilisation", "1.5"], cli.EXIT_USAGE, "--utilisation is 1.5; allowed: a share"),
        (["--gpu", "abacus"], cli.EXIT_USAGE, "--gpu is 'abacus'; known: H200"),
        (["--metrics", "bleu"], cli.EXIT_USAGE, "--metrics is 'bleu'"),
        (["--utterance-seconds", "nan"], cli.EXIT_USAGE, "--utterance-seconds is nan"),
        (["--preset", "fast", "--config", "x.json"], cli.EXIT_USAGE, "each sets method and settings"),
        (["--model", "/no/such/model"], cli.EXIT_MODEL, "cannot be loaded"),
        (["--utterance-seconds", "0.001"], cli.EXIT_AUDIO, "audio is"),
    ],
)
def test_bad_arguments(capsys, arguments, code, message):
    assert plan(*arguments) == code
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown

"""Autocast, compiled code and batch sizes: every way in passes them on, and the provenance says so."""

from __future__ import annotations

import inspect

import datasets
import pytest
import torch

from spes_hf import (
    ConfigError,
    ContrastiveDeletion,
    Deletion,
    Diagnose,
    Diagnoser,
    Explain,
    Explainer,
    Explanation,
    Insertion,
    SoundCheck,
    SoundChecker,
    SpesConfig,
    WordDeletion,
    WordInsertion,
    cli,
    diagnose,
    explain,
    explain_dataset,
    hearing,
    sound_check,
)
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.jobs.run import load_explained

FEW = SpesConfig(num_spectrogram_masks=4, masks_per_token=2, num_token_masks=4)
RUNNING = {"batch_size": "auto", "autocast": "bfloat16", "compile": True}


@pytest.fixture(scope="module")
def model():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def clip():
    return next(c for c in tiny_clips() if c["kind"] == "statement")


@pytest.fixture
def compiled(monkeypatch):
    """The functions that were to be compiled; they run as they are, which is quick."""
    functions = []

    def compile(function, **settings):
        functions.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    return functions


def recorded(found) -> dict:
    return {name: found.provenance["model"].get(name) for name in ("autocast", "compiled")}


def test_every_way_in_has_the_settings():
    for way in (explain, Explainer, diagnose, Diagnoser, Explain, Diagnose, explain_dataset):
        parameters = inspect.signature(way).parameters
        assert [parameters[name].default for name in RUNNING] == [None, None, False], way
    for way in (sound_check, SoundChecker, SoundCheck):  # no batches; one pass that could be compiled
        assert inspect.signature(way).parameters["autocast"].default is None
    for way in (explain, diagnose, Explain, Diagnose, explain_dataset, sound_check, SoundCheck):
        assert inspect.signature(way).parameters["prompt"].default is None
    for way in (Deletion, Insertion, ContrastiveDeletion, WordDeletion, WordInsertion):  # the type is the explanation's
        assert inspect.signature(way).parameters["batch_size"].default is None


def test_explain_and_diagnose_run_as_asked(model, clip, compiled):
    found = explain(*model, clip["path"], config=FEW, progress=False, **RUNNING)
    assert recorded(found) == {"autocast": "bfloat16", "compiled": True} and len(compiled) == 1
    wrong = " ".join([*clip["transcript"].split()[:-1], "house."])
    told = diagnose(*model, clip["path"], wrong, config=FEW, progress=False, **RUNNING)
    assert recorded(told.explanation) == {"autocast": "bfloat16", "compiled": True} and len(compiled) == 2


def test_a_job_and_its_rows_run_as_asked(model, clip, compiled, tmp_path):
    data = datasets.Dataset.from_dict({"id": ["a"], "audio": [clip["path"]]})
    assert explain_dataset(*model, data, tmp_path / "out", FEW, progress=False, **RUNNING).exit_code == 0
    found = Explanation.from_row(load_explained(tmp_path / "out")[0])
    assert recorded(found) == {"autocast": "bfloat16", "compiled": True}
    assert len(compiled) == 1
    with pytest.raises(ConfigError, match="autocast"):  # other rows
        explain_dataset(*model, data, tmp_path / "out", FEW, progress=False, compile=True)
    explain_dataset(*model, data, tmp_path / "out", FEW, progress=False, **{**RUNNING, "batch_size": 3})  # the same


def test_sound_check_runs_in_the_type(model, clip):
    exact = sound_check(*model, clip["path"])
    found = sound_check(*model, clip["path"], autocast="bfloat16")
    assert found.word_bits != exact.word_bits
    assert found.bits_per_token == pytest.approx(exact.bits_per_token, abs=1.5)
    with pytest.raises(ConfigError, match="autocast is 'int8'"):
        sound_check(*model, clip["path"], autocast="int8")


@pytest.mark.parametrize("metric", [Deletion, WordDeletion])
def test_a_metric_runs_in_the_type_of_the_explanation(model, clip, metric):
    seen = set()
    exact, half = (explain(*model, clip["path"], config=FEW, progress=False, autocast=a) for a in (None, "bfloat16"))
    handle = model[0].get_encoder().layers[0].fc1.register_forward_hook(lambda _, args, out: seen.add(out.dtype))
    try:
        for explanation, dtype in ((exact, torch.float32), (half, torch.bfloat16)):
            seen.clear()
            metric(*model, batch_size="auto")(explanation)
            assert seen == {dtype}
    finally:
        handle.remove()


class TestCommandLine:
    @pytest.fixture
    def command(self, clip, tmp_path):
        few = ["--model", "speech2text-en", "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]
        return [clip["path"], *few]

    @pytest.fixture
    def config(self, tmp_path):
        FEW.to_json(tmp_path / "config.json")
        return ["--config", str(tmp_path / "config.json")]

    def test_explain(self, command, config, compiled, tmp_path):
        asked = ["--autocast", "bfloat16", "--compile", "--batch-size", "auto"]
        assert cli.main(["explain", *command, *config, *asked]) == 0
        found = Explanation.load(tmp_path / "out")
        assert recorded(found) == {"autocast": "bfloat16", "compiled": True}
        assert SpesConfig.from_dict(found.provenance["config"]) == FEW.with_impact_for(text_given=False)

    def test_numbers_of_masks_override_those_of_a_config(self, command, config, tmp_path):
        assert cli.main(["explain", *command, *config, "--num-masks", "6", "--num-token-masks", "3"]) == 0
        found = Explanation.load(tmp_path / "out").provenance["config"]
        assert (found["num_spectrogram_masks"], found["num_token_masks"], found["masks_per_token"]) == (6, 3, 2)

    def test_diagnose(self, command, config, clip, tmp_path):
        wrong = " ".join([*clip["transcript"].split()[:-1], "house."])
        assert cli.main(["diagnose", *command, *config, "--reference", wrong, "--autocast", "bfloat16"]) == 0
        found = Explanation.load(tmp_path / "out" / "explanation")
        assert recorded(found)["autocast"] == "bfloat16"
        assert found.provenance["config"]["num_spectrogram_masks"] == 4

    def test_check(self, clip, capsys, monkeypatch):
        types = []
        made = hearing.precision_of
        monkeypatch.setattr(hearing, "precision_of", lambda kind, device: types.append(kind) or made(kind, device))
        assert cli.main(["check", clip["path"], "--model", "speech2text-en", "--device", "cpu"]) == 0
        assert (
            cli.main(["check", clip["path"], "--model", "speech2text-en", "--device", "cpu", "--autocast", "bfloat16"])
            == 0
        )
        exact, half = capsys.readouterr().out.split(clip["path"])[1:]
        assert "bits a token" in exact and "bits a token" in half
        assert types == [None, "bfloat16"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--preset", "fast"], "each sets method and settings"),
            (["--num-masks", "0"], "num_spectrogram_masks is 0"),
            (["--batch-size", "0"], "--batch-size is 0; allowed: a whole number of at least 1"),
        ],
    )
    def test_what_does_not_go_with_a_config(self, command, config, capsys, arguments, message):
        assert cli.main(["explain", *command, *config, *arguments]) == cli.EXIT_USAGE
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize("text", ["no JSON", "[]", '{"method": "nothing"}', '{"method": "spes", "masks": 3}'])
    def test_files_that_hold_no_config(self, command, tmp_path, capsys, text):
        path = tmp_path / "bad.json"
        path.write_text(text)
        assert cli.main(["explain", *command, "--config", str(path)]) == cli.EXIT_USAGE
        shown = capsys.readouterr().err
        assert f"--config {str(path)!r}: " in shown and "Traceback" not in shown
        assert cli.main(["demo", "--config", str(tmp_path / "none.json")]) == cli.EXIT_USAGE

    @pytest.mark.parametrize("wrong", [["--batch-size", "many"], ["--autocast", "float32"]])
    def test_values_that_do_not_exist(self, command, wrong):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["explain", *command, *wrong])
        assert stopped.value.code == cli.EXIT_USAGE

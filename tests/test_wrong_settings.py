"""Values of options and settings that are not allowed are named before a model is loaded or a corpus is read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from spes_hf import ConfigError, UnsupportedModelError, cli, explain
from spes_hf.commands import options
from spes_hf.commands.options import load_model
from spes_hf.commands.placing import check_placing
from spes_hf.demo import load_tiny_model, tiny_clips

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
import compare_methods
import diagnose_corpus
import explain_dataset

MODEL = ["--model", "speech2text-en"]
RECIPES = {
    "compare_methods": compare_methods,
    "diagnose_corpus": diagnose_corpus,
    "explain_dataset": explain_dataset,
}
NUMBERS = {"num_beams": 0, "max_new_tokens": -1}
OF_MASKS = "num_spectrogram_masks is 0; allowed: a whole number, at least 1"


@pytest.fixture
def never_loaded(monkeypatch):
    def load(*arguments, **settings):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(options, "load_model", load)


def refused(command, given, out, capsys):
    """Return the message with which a command or a recipe refuses to begin."""
    clip, to = tiny_clips()[0]["path"], ["--out", str(out)]
    rest = {
        "explain": [clip, *to],
        "check": [clip],
        "demo": to,
        "diagnose": [clip, "--reference", "Tom sells a picture.", *to],
        "evaluate": [str(out), "--metrics", "size"],
        "plan": ["--hours", "1"],
        "app": [],
    }
    model = [] if command in ("app", "demo", "evaluate") else MODEL
    if command in RECIPES:
        corpus = ["--dataset", "no corpus"]
        if command == "compare_methods":
            corpus = ["--methods", "energy", "--data", "no corpus"]
        assert RECIPES[command].main([*model, *corpus, *to, *given]) in (1, cli.EXIT_USAGE)
    else:
        assert cli.main([command, *rest[command], *model, *given]) == cli.EXIT_USAGE
    assert not out.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("command", ["explain", "check", "diagnose", "plan", *RECIPES])
def test_numbers_for_generate(never_loaded, tmp_path, capsys, command, name):
    option = f"--{name.replace('_', '-')}"
    message = refused(command, [option, str(NUMBERS[name])], tmp_path / "out", capsys)
    assert f"{option} is {NUMBERS[name]}; allowed: a whole number of at least 1" in message


@pytest.mark.parametrize("command", ["explain", "demo", "diagnose", "evaluate", "plan", "app", *RECIPES])
def test_batch_sizes(never_loaded, tmp_path, capsys, command):
    message = refused(command, ["--batch-size", "0"], tmp_path / "out", capsys)
    assert '--batch-size is 0; allowed: a whole number of at least 1, or "auto"' in message


@pytest.mark.parametrize("command", ["explain", "demo", "diagnose", "plan", *RECIPES])
def test_numbers_of_masks(never_loaded, tmp_path, capsys, command):
    given = ["--num-masks", "0", *(["--methods", "default"] if command == "compare_methods" else [])]
    assert OF_MASKS in refused(command, given, tmp_path / "out", capsys)


@pytest.mark.parametrize("command", ["evaluate", *RECIPES])
def test_numbers_of_rows(never_loaded, tmp_path, capsys, command):
    option = "--max-utterances" if command == "compare_methods" else "--limit"
    message = refused(command, [option, "-1"], tmp_path / "out", capsys)
    assert f"{option} is -1; allowed: a whole number of at least 1" in message


@pytest.mark.parametrize("command", ["explain_dataset", "plan"])
def test_numbers_of_words(never_loaded, tmp_path, capsys, command):
    message = refused(command, ["--max-words", "0"], tmp_path / "out", capsys)
    assert "--max-words is 0; allowed: a whole number of at least 1" in message


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "two"])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_for_generate_in_python(name, value):
    with pytest.raises(ConfigError, match=rf"{name} is {value!r} in generate_kwargs; allowed: a whole number"):
        explain(*load_tiny_model("speech2text-en"), tiny_clips()[0]["path"], generate_kwargs={name: value})


def test_comparison_ends_at_an_option_that_the_model_does_not_take(tmp_path, capsys):
    """Nothing is measured, so nothing has to be deleted before the next try."""
    asked = [*MODEL, "--methods", "energy", "--prompt", "Translate.", "--out", str(tmp_path / "out")]
    assert compare_methods.main(asked) == 1
    assert "prompt is 'Translate.', but Speech2TextForConditionalGeneration takes" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("spread", "message"),
    [
        ({"": "cpu", "ears": "cpu"}, "names 'ears', which is no part of this Speech2Text"),
        ({"model.encoder": "cpu"}, r"has no device for 'model\.decoder\.embed_tokens\.weight'"),
    ],
)
def test_maps_of_other_models_are_named_before_weights_are_read(tmp_path, monkeypatch, spread, message):
    for part in load_tiny_model("speech2text-en"):
        part.save_pretrained(tmp_path)
    (tmp_path / "map.json").write_text(json.dumps(spread))
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match=message):
        load_model(str(tmp_path), None, "auto", str(tmp_path / "map.json"))


def test_a_checkpoint_that_is_none_is_not_blamed_on_the_map(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of the future"}))
    for spread in (None, "auto"):
        with pytest.raises(UnsupportedModelError, match=r"--model .* cannot be loaded: Pass the id"):
            load_model(str(tmp_path), None, "auto", spread)


def test_the_page_takes_no_map_of_one_model(tmp_path, capsys):
    path = tmp_path / "map.json"
    path.write_text('{"": "cpu"}')
    assert cli.main(["app", "--device-map", str(path)]) == cli.EXIT_USAGE
    assert "the page offers several models" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["gpu0", "meta", "xla", "cuda:99"])
def test_devices_that_are_not_there(device):
    with pytest.raises(ConfigError, match=f"--device is '{device}', which .*; allowed: cpu"):
        check_placing(device, None)


def test_a_device_that_is_there():
    check_placing("cpu", None)
    check_placing("cpu:0", None)


def test_a_plan_counts_no_more_tokens_than_may_be_written(capsys):
    plan = ["plan", *MODEL, "--hours", "1", "--utterance-seconds", "10", "--tokens-per-second", "3"]
    told = []
    for asked in ([], ["--max-new-tokens", "5"], ["--max-new-tokens", "5", "--num-beams", "4"]):
        assert cli.main([*plan, *asked]) == 0
        told.append(capsys.readouterr().out)
    assert "and 30 tokens" in told[0] and "and 5 tokens" in told[1]
    assert "however many beams" not in told[1] and "however many beams" in told[2]

"""The example of docs/adding_a_method.md is a method like any other."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from agreement import assert_explanations_agree

from spes_hf import ConfigError, Deletion, ExplainConfig, Explanation, explain, list_methods
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.methods import base, reading, run

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_method.md"
FEW = {"num_spectrogram_masks": 40, "num_token_masks": 10}


@pytest.fixture(scope="module")
def speech2text():
    return load_tiny_model("speech2text-en")


@pytest.fixture
def method(monkeypatch):
    """The config class of the example, registered for the time of a test."""
    monkeypatch.setattr(base, "_METHODS", dict(base._METHODS))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    exec(compile(code, str(PAGE), "exec"), vars(module))
    return module.TimeConfig


def test_the_example_explains(method, speech2text, tmp_path):
    assert "time" in list_methods()
    path, config = tiny_clips()[0]["path"], method(window_s=0.2, **FEW)
    found = explain(*speech2text, path, config=config, progress=False, batch_size=16)
    assert found.method == "time" and found.origin.cost["forward_passes"] == 3 + 40 + 10
    raw = found.raw_audio_saliency
    assert torch.equal(raw, raw[..., :1].expand_as(raw)), "a window spans all frequencies"
    assert len(raw[0, :, 0].unique()) == int(found.times[-1] / 0.2) + 1
    assert_explanations_agree(explain(*speech2text, path, config=config, progress=False, batch_size=3), found)
    loaded = Explanation.load(found.save(tmp_path / "clip"))
    assert ExplainConfig.from_dict(dict(loaded.origin.config)) == config
    row = Deletion(*speech2text, (0.0, 0.5, 1.0), against="prediction")(loaded)
    assert row["deletion"]["method"].startswith("time|masks:40+10|")


def test_the_example_finds_the_word_that_was_said(method, speech2text):
    """The map of a word is higher where it is spoken than elsewhere."""
    clip = tiny_clips()[0]
    found = explain(*speech2text, clip["path"], config=method(num_token_masks=1), progress=False).words()
    names = [name.strip().strip(".").lower() for name in found.tokens]
    inside = []
    for word in clip["words"]:
        name = word["word"].strip(".").lower()
        if names.count(name) == 1 and word["end"] - word["start"] > 0.2:
            spoken = (found.times >= word["start"]) & (found.times < word["end"])
            raw = found.raw_audio_saliency[names.index(name)].mean(1)
            inside.append(bool(raw[spoken].mean() > raw[~spoken].mean()))
    assert len(inside) >= 3 and all(inside)


def test_the_example_refuses_a_window_without_length(method):
    with pytest.raises(ConfigError, match="TimeConfig.window_s is 0; allowed: seconds above 0"):
        method(window_s=0)


def test_the_page_names_what_exists():
    text = PAGE.read_text(encoding="utf-8")
    for module, name in ((run, "Problem"), (run, "Run"), (run, "Maps"), (run, "Step"), (reading, "read_audio")):
        assert f"`{name}" in text and hasattr(module, name)
    for path in re.findall(r"`methods/(\w+\.py)`", text):
        assert (Path(base.__file__).parent / path).is_file()

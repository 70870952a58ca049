"""Explanation, then deletion: whatever settings `explain` takes, the model is asked in the same way again."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, MaxLengthCriteria, SequenceBiasLogitsProcessor, StoppingCriteriaList

from spes_hf import ConfigError, Deletion, EnergyConfig, Explanation, Insertion, explain
from spes_hf.adapters import get_adapter

ENDS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory):
    """A tiny random Whisper that detects its language."""
    path = Path(__file__).parents[1] / "adapters" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_models_for_settings", path)
    tiny = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    return tiny.whisper(80, multilingual=True)(tmp_path_factory.mktemp("whisper"))


def run(models, tone, settings, **options):
    settings = {"max_new_tokens": 6, "no_repeat_ngram_size": 1, **settings}
    return explain(*models, tone, config=EnergyConfig(), generate_kwargs=settings, progress=False, **options)


def seen_by_generate(model, monkeypatch):
    """Return a list that gets the arguments of every call of ``generate()``."""
    calls, generate = [], type(model).generate

    def spy(self, *args, **kwargs):
        calls.append(kwargs)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", spy)
    return calls


def equal(a, b):
    """Return whether two values are of one type and equal, entry by entry."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    return a == b


ORDINARY = {
    "nothing": {},
    "return_timestamps": {"return_timestamps": True},
    "tensor": {"suppress_tokens": torch.tensor([5, 6], dtype=torch.int32)},
    "array": {"begin_suppress_tokens": np.array([5, 6])},
    "numpy scalars": {"max_new_tokens": np.int64(5), "num_beams": np.int32(2), "length_penalty": np.float32(0.7)},
    "sequence_bias": {"sequence_bias": {(40,): float("-inf"), (50, 60): -3.0}},
    "sequence_bias as lists": {"sequence_bias": [[[40], -3.0]]},
    "tuple": {"temperature": (0.0, 0.0), "compression_ratio_threshold": 1.1},
    "assisted": {"prompt_lookup_num_tokens": 2},
    "forced_decoder_ids": {"forced_decoder_ids": [(1, 303), (2, 305)]},
    "is_multilingual": {"is_multilingual": True},
}


@pytest.mark.parametrize("metric", [Deletion, Insertion])
@pytest.mark.parametrize("setting", ORDINARY)
def test_ordinary_settings_are_kept_and_used_again(multilingual, tone, tmp_path, monkeypatch, setting, metric):
    found = run(multilingual, tone, ORDINARY[setting])
    stored = Explanation.load(found.save(tmp_path / "saved"))
    calls = seen_by_generate(multilingual[0], monkeypatch)
    for explanation in (found, stored):
        entry = metric(*multilingual, ENDS)(explanation)[metric.key]
        assert entry["texts"][0 if metric is Deletion else -1] == found.text == entry["prediction"]
    for name, value in ORDINARY[setting].items():
        if name == "forced_decoder_ids":  # goes through the generation config
            continue
        given = [(call[name], len(call["input_features"])) for call in calls if call["max_new_tokens"] != 1]
        assert sum(rows for _, rows in given) == 6 and all(equal(value, other) for other, _ in given), given


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_prompts_are_kept_and_used_again(multilingual, tone, tmp_path, kind):
    prompt = multilingual[1].tokenizer.get_prompt_ids("der kleine hund").tolist()
    found = run(multilingual, tone, {"prompt_ids": kind(prompt)})
    stored = Explanation.load(found.save(tmp_path / "saved"))
    assert stored.context_tokens[0] == "<|startofprev|>"
    assert stored.provenance["output"]["start"] == len(prompt)
    entry = Deletion(*multilingual, ENDS)(stored)["deletion"]
    assert entry["texts"][0] == found.text
    assert entry["token_probability"][0] == pytest.approx(float(found.probabilities.mean()), abs=1e-4)
    without = run(multilingual, tone, {})
    assert without.token_ids != found.token_ids  # the prompt does something


@pytest.mark.parametrize(
    "options", [{"language": "es"}, {"task": "translate"}, {"language": "de", "task": "translate"}]
)
@pytest.mark.parametrize("route", ["argument", "config"])
def test_language_and_task_are_kept(multilingual, tone, monkeypatch, options, route):
    model, processor = copy.deepcopy(multilingual[0]), multilingual[1]
    if route == "config":
        for name, value in options.items():
            setattr(model.generation_config, name, value)
    found = run((model, processor), tone, {}, **(options if route == "argument" else {}))
    deletion, prefixes = Deletion(model, processor, ENDS), []
    generate = deletion.adapter.generate_rows
    monkeypatch.setattr(deletion.adapter, "generate_rows", lambda *a: prefixes.extend(found := generate(*a)) or found)
    monkeypatch.setattr(type(model), "detect_language", lambda *args, **kwargs: pytest.fail("language detected again"))
    assert deletion(found)["deletion"]["texts"][0] == found.text
    expected = list(found.context_pieces[: found.prefix_length])
    assert len(prefixes) >= 3
    assert all(deletion.adapter.pieces(target.prefix_ids) == expected for target in prefixes)


# What cannot be written down ------------------------------------------------------------------------------------------


def objects(model, name):
    return {
        "logits_processor": lambda: LogitsProcessorList([SequenceBiasLogitsProcessor([[[124], -1e4]])]),
        "stopping_criteria": lambda: StoppingCriteriaList([MaxLengthCriteria(6)]),
        "assistant_model": lambda: copy.deepcopy(model),
        "prefix_allowed_tokens_fn": lambda: lambda batch, ids: list(range(100)),
        "streamer": lambda: Streamer(),
        "monitor_progress": lambda: lambda progress: None,
    }[name]()


class Streamer:
    """Takes what is generated, as a user's own would."""

    def put(self, value):
        pass

    def end(self):
        pass


@pytest.mark.parametrize(
    "name",
    [
        "logits_processor",
        "stopping_criteria",
        "assistant_model",
        "prefix_allowed_tokens_fn",
        "streamer",
        "monitor_progress",
    ],
)
def test_what_cannot_be_stored_is_asked_for_by_name_before_any_pass(multilingual, tone, tmp_path, name):
    model, processor = multilingual
    settings = {"max_new_tokens": 6, name: objects(model, name)}
    found = explain(model, processor, tone, config=EnergyConfig(), generate_kwargs=settings, progress=False)
    stored = Explanation.load(found.save(tmp_path / "saved"))
    assert stored.provenance["output"]["generate_kwargs"]["max_new_tokens"] == 6
    passes = []
    handle = model.get_encoder().register_forward_hook(lambda *_: passes.append(1))
    for explanation in (found, stored):
        asked = rf"could not store: {name}; .*generate_kwargs={{'{name}': …, 'max_new_tokens': 6}}"
        with pytest.raises(ConfigError, match=asked):
            Deletion(model, processor, ENDS)(explanation)
    handle.remove()
    assert not passes
    entry = Deletion(model, processor, ENDS, generate_kwargs=settings)(stored)["deletion"]
    assert entry["texts"][0] == found.text == entry["prediction"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"generation_config": None}, "generation_config, which explain"),
        ({"language": "de"}, "contains language"),
        ([1], r"generate_kwargs is \[1\]"),
    ],
)
def test_wrong_settings_are_refused_when_the_metric_is_made(multilingual, settings, words):
    with pytest.raises(ConfigError, match=words):
        Deletion(*multilingual, generate_kwargs=settings)


def test_wrong_settings_and_models_cost_no_step(multilingual, tone):
    """One pass finds the start tokens; none is made at any fraction."""
    model, processor = multilingual
    found = run(multilingual, tone, {})
    other = copy.deepcopy(model)
    other.get_encoder().conv1.weight.data.mul_(2)
    prompt = {"prompt_ids": processor.tokenizer.get_prompt_ids("hund")}
    for made, words, allowed in (
        (Deletion(model, processor, ENDS, generate_kwargs={"num_return_sequences": 2}), "num_return_sequences is 2", 0),
        (Deletion(other, processor, ENDS), "its weights differ from", 0),
        (Deletion(model, processor, ENDS, generate_kwargs=prompt), "starts its output with <.startofprev.>", 1),
    ):
        passes = []
        handle = made.adapter.encoder.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        with pytest.raises(ConfigError, match=words):
            made(found)
        handle.remove()
        assert len(passes) == allowed


# Which model it was ---------------------------------------------------------------------------------------------------


def test_the_same_weights_from_another_folder_are_the_same_model(multilingual, tone, tmp_path):
    model, processor = multilingual
    folders = [tmp_path / "whisper-mine", tmp_path / "checkpoint-500"]
    for folder in folders:
        model.save_pretrained(folder)
    first, second = (type(model).from_pretrained(folder).eval() for folder in folders)
    for loaded in (first, second):
        loaded.generation_config = copy.deepcopy(model.generation_config)
    found = run((first, processor), tone, {})
    assert found.provenance["model"]["name"].endswith("whisper-mine")
    assert Deletion(second, processor, ENDS)(found)["deletion"]["texts"][0] == found.text


def test_other_weights_under_the_same_name_are_another_model(multilingual, tone):
    model, processor = copy.deepcopy(multilingual[0]), multilingual[1]
    found = run((model, processor), tone, {})
    with torch.no_grad():
        model.get_encoder().conv1.weight[0, 0, 0] += 1
    with pytest.raises(ConfigError, match="its weights differ from.*with its old weights"):
        Deletion(model, processor, ENDS)(found)


def test_another_precision_is_the_model_of_that_name(multilingual, tone):
    found = run(multilingual, tone, {})
    exact = copy.deepcopy(multilingual[0]).double()
    assert get_adapter(exact, multilingual[1]).dtype == torch.float64
    assert Deletion(exact, multilingual[1], ENDS)(found)["deletion"]["texts"][0] == found.text

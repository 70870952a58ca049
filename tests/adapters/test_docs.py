"""The examples of docs/adding_a_family.md are adapters that pass the contract."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import test_contract
import test_contract_llm
import test_contract_llm_output
from tiny import Case

from spes_hf import adapters as module
from spes_hf import get_adapter
from spes_hf.audio.load import load_audio

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_family.md"
EXACT = [
    "test_clean_pass_is_the_model_s_own",
    "test_masks_of_ones_change_nothing",
    "test_perturbed_features_equal_the_literal_edit",
    "test_perturbed_tokens_equal_the_literal_embedding",
    "test_gradient_reaches_the_features",
]
OTHERS = [
    "test_features_go_in_bit_for_bit",
    "test_changed_features_come_back_out_at_their_place",
    "test_axes",
    "test_too_short_audio_is_refused",
    "test_generates_what_the_model_generates",
    "test_end_of_sequence_is_the_last_token_and_explained",
    "test_text_is_written_as_the_model_writes_it",
    "test_explanation_is_the_same_for_every_batch_size",
    "test_model_can_be_trained_afterwards",
]


LLM_EXACT = [
    "test_clean_pass_is_the_model_s_own",
    "test_perturbed_features_equal_the_literal_edit",
    "test_perturbed_tokens_equal_the_literal_embedding",
    "test_several_chunks",
]
LLM_OTHERS = [
    "test_features_go_in_bit_for_bit",
    "test_changed_features_come_back_out_at_their_place",
    "test_axes",
    "test_too_short_audio_is_refused",
    "test_placeholders_are_no_context",
    "test_text_is_written_as_the_model_writes_it",
    "test_bits_have_three_sources",
    "test_attention_as_a_method",
    "test_model_can_be_trained_afterwards",
]


def run_example(monkeypatch, number):
    """Register the adapter of one of the page's examples."""
    monkeypatch.setattr(module, "_ADAPTERS", dict(module._ADAPTERS))
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code) == 2
    exec(compile(code[number], str(PAGE), "exec"), {"__name__": "example"})


@pytest.fixture
def llm_example(monkeypatch, cases):
    """Function that makes a case of the speech LLM's adapter in a dtype."""
    run_example(monkeypatch, 1)

    def make(dtype: str) -> Case:
        import torch

        known = cases("qwen3_asr", getattr(torch, dtype))
        model, processor = known.copy()
        model.config.model_type = "my_speech_llm"
        adapter = get_adapter(model, processor)
        assert type(adapter).__name__ == "MySpeechLLMAdapter"
        utterance = adapter.encode(load_audio(known.audio, 16_000, 16_000))
        target = adapter.generate(utterance, known.options)
        return dataclasses.replace(known, model=model, adapter=adapter, utterance=utterance, target=target)

    return make


@pytest.fixture
def example(monkeypatch, cases):
    """Function that makes a case of the example's adapter in a dtype."""
    run_example(monkeypatch, 0)

    def make(dtype: str) -> Case:
        import torch

        known = cases("speech_to_text", getattr(torch, dtype))
        model, processor = known.copy()
        model.config.model_type = "my_family"
        adapter = get_adapter(model, processor)
        assert type(adapter).__name__ == "MyFamilyAdapter"
        utterance = adapter.encode(load_audio(known.audio, 16_000, 16_000))
        target = adapter.generate(utterance, known.options)
        return dataclasses.replace(known, model=model, adapter=adapter, utterance=utterance, target=target)

    return make


@pytest.mark.parametrize("name", EXACT + OTHERS)
def test_example_passes_the_contract(example, name):
    getattr(test_contract, name)(example("float64" if name in EXACT else "float32"))


@pytest.mark.parametrize("name", LLM_EXACT + LLM_OTHERS)
def test_speech_llm_of_the_page_passes_the_contract(llm_example, name):
    where = test_contract_llm if hasattr(test_contract_llm, name) else test_contract_llm_output
    getattr(where, name)(llm_example("float64" if name in LLM_EXACT else "float32"))


def test_no_file_of_the_adapters_is_longer_than_400_lines():
    files = [*Path(module.__file__).parent.glob("*.py")]
    lengths = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert len(files) > 20 and {name: length for name, length in lengths.items() if length > 400} == {}


def test_page_names_what_exists():
    text = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+)\(", text):
        assert (
            name in dir(module.SpeechLLMAdapter) or name in dir(module) or name in ("explain", "generate", "model")
        ), name

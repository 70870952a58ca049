"""The table of adapters: what it takes, what it refuses."""

from __future__ import annotations

import pytest
import transformers

from spes_hf import UnsupportedModelError, explain, get_adapter, list_adapters, register_adapter
from spes_hf import adapters as module
from spes_hf.adapters import Adapter
from spes_hf.adapters.whisper import WhisperAdapter

KNOWN = ["canary", "cohere_asr", "seamless_m4t", "seamless_m4t_v2", "speech_to_text", "whisper"]


@pytest.fixture
def table(monkeypatch):
    """The table, put back afterwards."""
    monkeypatch.setattr(module, "_ADAPTERS", dict(module._ADAPTERS))
    return module._ADAPTERS


def test_known_families():
    assert list_adapters() == KNOWN


def test_new_family_is_found(table, cases):
    class Mine(WhisperAdapter):
        pass

    assert register_adapter("mine")(Mine) is Mine
    assert list_adapters() == sorted([*KNOWN, "mine"])
    model, processor = cases("whisper-en").copy()
    model.config.model_type = "mine"
    assert type(get_adapter(model, processor)) is Mine


@pytest.mark.parametrize("name", ["", None, 3])
def test_bad_names_are_refused(table, name):
    with pytest.raises(ValueError, match="non-empty string"):
        register_adapter(name)(WhisperAdapter)
    assert list_adapters() == KNOWN


@pytest.mark.parametrize("what", [object, object(), lambda model, processor: None, dict])
def test_what_is_no_adapter_is_refused(table, what):
    with pytest.raises(ValueError, match="no subclass of"):
        register_adapter("mine")(what)
    assert "mine" not in list_adapters()


def test_duplicates_are_refused_and_repetition_is_not(table):
    class Other(Adapter):
        pass

    with pytest.raises(ValueError, match="'whisper' already has the adapter WhisperAdapter"):
        register_adapter("whisper")(Other)
    assert register_adapter("whisper")(WhisperAdapter) is WhisperAdapter


@pytest.mark.parametrize(
    "call",
    [get_adapter, lambda model, processor: explain(model, processor, [0.0, 0.1] * 8_000)],
    ids=["get", "explain"],
)
def test_unknown_family_is_refused_with_the_known_ones(cases, call):
    """Moonshine is a speech-to-text model, but reads samples instead of a spectrogram."""
    config = transformers.MoonshineConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
    )
    model = transformers.MoonshineForConditionalGeneration(config)
    message = "MoonshineForConditionalGeneration of type 'moonshine'.*known types: " + ", ".join(KNOWN)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        call(model, cases("whisper-en").processor)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("model", [None, 3, object()])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(UnsupportedModelError, match="known types: canary"):
        get_adapter(model, None)

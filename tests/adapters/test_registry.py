"""The table of adapters: what it takes, what it refuses."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
import transformers

from spes_hf import UnsupportedModelError, cli, explain, get_adapter, list_adapters, register_adapter
from spes_hf import adapters as module
from spes_hf.adapters import Adapter, missing_version
from spes_hf.adapters.unknown import why_unknown
from spes_hf.adapters.whisper import WhisperAdapter

LLMS = ["granite_speech", "qwen2_audio", "qwen3_asr", "voxtral"]
KNOWN = sorted([*LLMS, "canary", "cohere_asr", "seamless_m4t", "seamless_m4t_v2", "speech_to_text", "whisper"])


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
    with pytest.raises(ValueError, match="is not an adapter; pass a subclass of"):
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
    with pytest.raises(UnsupportedModelError, match=f"known types: {KNOWN[0]}"):
        get_adapter(model, None)


# Kinds of models that no adapter can be written for -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("MoonshineForConditionalGeneration", "MoonshineConfig", "its input is raw samples"),
        ("KyutaiSpeechToTextForConditionalGeneration", "KyutaiSpeechToTextConfig", "codes of a neural codec"),
        ("ParakeetForCTC", "ParakeetCTCConfig", "aligns tokens with frames"),
        ("ParakeetForTDT", "ParakeetTDTConfig", "aligns tokens with frames"),
        ("ParakeetForRNNT", "ParakeetRNNTConfig", "aligns tokens with frames"),
        ("Wav2Vec2ForCTC", "Wav2Vec2Config", "aligns tokens with frames"),
        ("Qwen2_5OmniTalkerForConditionalGeneration", "Qwen2_5OmniTalkerConfig", "it also generates speech"),
    ],
)
def test_kinds_that_cannot_be_explained_say_why(name, config, reason):
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    with torch.device("meta"):  # as large as they are, without weights
        model = getattr(transformers, name)(getattr(transformers, config)())
    with pytest.raises(
        UnsupportedModelError, match=f"{name} of type.*no adapter: .*{reason}.*known types: canary, coh"
    ):
        get_adapter(model, transformers.WhisperProcessor.__new__(transformers.WhisperProcessor))


def test_a_model_that_speaks_says_why():
    config = SimpleNamespace(model_type="qwen2_5_omni", talker_config=object())
    model = SimpleNamespace(config=config)
    assert "it also generates speech" in why_unknown(model) and why_unknown(3) == "has no adapter"


# Families that an older transformers does not have --------------------------------------------------------------------


def pretend(monkeypatch, version):
    """Have transformers say that it is of another version; it may have put a new module in its place meanwhile."""
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)


def test_an_older_transformers_is_named_with_what_is_needed(cases, monkeypatch):
    canary, whisper = cases("canary"), cases("whisper-en")
    for installed, needed in [("5.16.1", True), ("5.17.0.dev0", False), ("5.17.0", False), ("6.0", False)]:
        pretend(monkeypatch, installed)
        assert get_adapter(whisper.model, whisper.processor).since_transformers == ""
        if needed:
            message = f"'canary', which needs transformers 5.17 or newer, but {installed} is installed"
            with pytest.raises(UnsupportedModelError, match=message):
                get_adapter(canary.model, canary.processor)
        else:
            get_adapter(canary.model, canary.processor)
    assert missing_version("gone") is None


def test_the_command_line_names_the_transformers_that_a_checkpoint_needs(monkeypatch, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "cohere_asr"}')
    with pytest.raises(UnsupportedModelError, match="cannot be loaded"):
        cli.load_model(str(tmp_path), "cpu", "auto")
    pretend(monkeypatch, "5.3.0")
    with pytest.raises(UnsupportedModelError, match=r"needs transformers 5.4 or newer, but 5.3.0 is installed; pip"):
        cli.load_model(str(tmp_path), "cpu", "auto")
    with pytest.raises(UnsupportedModelError, match="cannot be loaded"):
        cli.load_model(str(tmp_path / "nowhere"), "cpu", "auto")

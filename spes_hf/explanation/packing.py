"""An explanation as one value of a table: a safetensors file in bytes, with the rest as JSON in its header.

Maps are stored as their factors (scores of patches, and the patch that each feature lies in), so a row grows with
tokens × patches, not with tokens × frames × mel bins. Nothing is rounded. Labels change little from frame to frame, so
they are stored as differences and deflated.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from spes_hf.errors import ExplanationFormatError
from spes_hf.explanation.result import Explanation
from spes_hf.explanation.soundness import no_constant
from spes_hf.explanation.storage import DAMAGE, from_parts, to_parts, version_of

KEY = "spes_hf.explanation"
VERSIONS = (1, 2, 3, 4)

# More levels of patches than anybody draws; the limit keeps a small file from inflating to huge labels.
MAX_LEVELS = 256

_LABELS = ".labels"
# zlib's default takes three times as long for a row that is half a percent smaller.
_LEVEL = 4
# The end of the file. The NumPy and torch formats of `datasets` drop zeros at the end of bytes.
_END = "~end"


def pack(explanation: Explanation) -> bytes:
    """Return the whole explanation as bytes."""
    values, tensors = to_parts(explanation)
    version = version_of(values, tensors)
    shapes = {}
    for name in [name for name in tensors if name.endswith(_LABELS)]:
        shapes[name] = list(tensors[name].shape)
        steps = np.diff(tensors[name].numpy().astype("<i4"), axis=1, prepend=np.int32(0))
        tensors[name] = torch.frombuffer(bytearray(zlib.compress(steps.tobytes(), _LEVEL)), dtype=torch.uint8)
    tensors[_END] = torch.ones(1, dtype=torch.bool, device="cpu")
    header = {"version": version, "labels": shapes, "values": values}
    return save_tensors(tensors, metadata={KEY: json.dumps(header, allow_nan=False)})


def unpack(packed: bytes) -> Explanation:
    """Return the explanation that `pack` turned into bytes.

    Raises:
        ExplanationFormatError: If the bytes hold no explanation, are damaged, or come from a later version.
    """
    packed = bytes(packed)
    if packed[:2] == b"PK":
        raise ExplanationFormatError(
            "the bytes hold a recording of several windows, not one explanation; read them with Recording.from_row(row)"
        )
    header = _header(packed)
    if header.get("version") not in VERSIONS:
        raise ExplanationFormatError(
            f"explanation has format version {header.get('version')!r}; this version of spes_hf reads {VERSIONS[0]} to "
            f"{VERSIONS[-1]}: install the version that wrote it, or explain again"
        )
    try:
        tensors = load_tensors(packed)
        tensors.pop(_END, None)
        for name, shape in header["labels"].items():
            tensors[name] = _labels(tensors[name], shape, tensors["features"])
        return from_parts(header["values"], tensors)
    except (*DAMAGE, zlib.error) as error:
        raise ExplanationFormatError(
            f"explanation ({len(packed)} bytes) is damaged ({type(error).__name__}: {error}); explain again"
        ) from error


def to_row(explanation: Explanation) -> dict[str, Any]:
    """Return an explanation as the entries of a row: bytes for loading it, the rest for reading."""
    return row_of(explanation, pack(explanation))


def row_of(found: Any, packed: bytes) -> dict[str, Any]:
    """Return the entries of a row.

    Args:
        found: An explanation, or a recording, which has the same properties.
        packed: The same as bytes.
    """
    return {
        "explanation": packed,
        "prediction": found.text,
        "tokens": found.tokens,
        "token_probabilities": found.token_probabilities.tolist(),
        "sound_bits": found.sound_bits.tolist(),
        "text_bits": found.text_bits.tolist(),
        "bits_per_token": found.bits_per_token,
        "verdict": found.verdict,
        "reliability": float(found.reliability.sentence),
        "reached_length_limit": found.reached_length_limit,
    }


def from_row(row: Mapping[str, Any]) -> Explanation:
    """Return the explanation of a row.

    Raises:
        ExplanationFormatError: If the row holds an error, or no bytes that `to_row` made.
    """
    if row.get("error"):
        raise ExplanationFormatError(f"row has an error instead of an explanation: {row['error']}; leave out such rows")
    packed = row.get("explanation")
    if not isinstance(packed, (bytes, bytearray, memoryview)):
        raise ExplanationFormatError(
            f"row has {'no' if packed is None else f'a {type(packed).__name__} at'} 'explanation' (its columns: "
            f"{', '.join(map(str, row))}); pass a row that Explain or Explanation.to_row() made"
        )
    return unpack(bytes(packed))


def _header(packed: bytes) -> dict[str, Any]:
    """Return our part of the safetensors file's header."""
    try:
        length = int.from_bytes(packed[:8], "little")
        text = json.loads(packed[8 : 8 + length])["__metadata__"][KEY]
        found = json.loads(text, parse_constant=no_constant)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ExplanationFormatError(
            f"explanation is {len(packed)} bytes, which are damaged or not from Explanation.to_row(); explain again"
        ) from error
    return found if isinstance(found, dict) else {}


def _labels(deflated: Tensor, shape: list[int], features: Tensor) -> Tensor:
    """Return (L, T, C) int32 labels; data that inflates to more is damaged."""
    levels, *rest = shape
    if rest != list(features.shape) or type(levels) is not int or not 0 <= levels <= MAX_LEVELS:
        raise ValueError(f"labels have shape {shape}, but features have shape {list(features.shape)}")
    size = 4 * levels * features.numel()
    inflate = zlib.decompressobj()
    raw = inflate.decompress(deflated.numpy().tobytes(), size + 1)
    if len(raw) != size:
        raise ValueError(f"labels do not inflate to {size} bytes")
    steps = np.frombuffer(raw, dtype="<i4").reshape(shape)
    return torch.from_numpy(steps.cumsum(axis=1, dtype=np.int32))

"""Converts settings to JSON and back: tensors, NumPy values, infinities, keys that are not strings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_KIND = "__kind__"


def to_plain(value: Any) -> Any:
    """Return a value that JSON can hold and `from_plain` turns back into an equal one of the same type.

    What JSON cannot hold (a function, a model, a logits processor) becomes a note of what it was.
    """
    if isinstance(value, np.generic):
        return {_KIND: "scalar", "dtype": str(value.dtype), "value": to_plain(value.item())}
    if isinstance(value, float) and not math.isfinite(value):
        return {_KIND: "float", "value": repr(value)}
    if isinstance(value, (int, float, str, bool, type(None))):
        return value
    if isinstance(value, torch.Tensor) and not value.is_meta and not value.is_complex():
        values = to_plain(value.detach().cpu().tolist())
        return {
            _KIND: "tensor",
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": [*value.shape],
            "value": values,
        }
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {_KIND: "array", "dtype": str(value.dtype), "shape": [*value.shape], "value": to_plain(value.tolist())}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and _KIND not in value:
            return {key: to_plain(entry) for key, entry in value.items()}
        return {_KIND: "mapping", "value": [[to_plain(key), to_plain(entry)] for key, entry in value.items()]}
    if isinstance(value, tuple):
        return {_KIND: "tuple", "value": [to_plain(entry) for entry in value]}
    if isinstance(value, list):
        return [to_plain(entry) for entry in value]
    kind = type(value)
    return {_KIND: "object", "class": f"{kind.__module__}.{kind.__qualname__}"}


def from_plain(value: Any) -> Any:
    """Return the value that `to_plain` converted; tensors are on the CPU."""
    if isinstance(value, list):
        return [from_plain(entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {key: from_plain(entry) for key, entry in value.items()}
    if kind == "mapping":
        return {from_plain(key): from_plain(entry) for key, entry in value["value"]}
    if kind == "tuple":
        return tuple(from_plain(entry) for entry in value["value"])
    if kind == "float":
        return float(value["value"])
    if kind == "scalar":
        return np.dtype(value["dtype"]).type(from_plain(value["value"]))
    if kind == "tensor":
        return torch.tensor(from_plain(value["value"]), dtype=getattr(torch, value["dtype"]), device="cpu").reshape(
            value["shape"]
        )
    if kind == "array":
        return np.array(from_plain(value["value"]), dtype=value["dtype"]).reshape(value["shape"])
    raise ValueError(f"value is only a note of a {value.get('class')}, which was not stored")


def is_lost(value: Any, in_words: bool = False) -> bool:
    """Return whether a stored value is, or holds, a note of something that JSON could not hold.

    Args:
        value: The stored value.
        in_words: Whether it may be a note in words, which older explanations stored for anything that is not JSON.
    """
    if isinstance(value, str):
        return in_words and value.startswith(("tensor(", "array(", "<", "{", "np."))
    if isinstance(value, (list, tuple)):
        return any(is_lost(entry, in_words) for entry in value)
    if not isinstance(value, Mapping):
        return False
    return value.get(_KIND) == "object" or any(is_lost(entry, in_words) for entry in value.values())

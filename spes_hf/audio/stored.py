"""Entries of Arrow tables as stored: audio is not decoded, and numbers keep their type."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from spes_hf.audio.load import AudioAs

_ASKED = ("sampling_rate", "num_channels", "stream_index")


def asked_of(feature: Any) -> dict[str, int]:
    """Return the settings of an `Audio` feature of `datasets` (``cast_column("audio", Audio(sampling_rate=8000))``)."""
    if getattr(feature, "_type", None) != "Audio":
        return {}
    found = {name: getattr(feature, name, None) for name in _ASKED}
    return {name: value for name, value in found.items() if value is not None}


def entries(column: pa.Array | pa.ChunkedArray, feature: Any = None) -> list[Any]:
    """Return the entries of a column; audio comes with the settings of its feature.

    Args:
        column: The column as stored.
        feature: Its type in `datasets`.
    """
    asked = asked_of(feature)
    values = [_value(entry) for entry in column]
    return [AudioAs(value, **asked) for value in values] if asked else values


def row_of(table: pa.Table, features: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of one row as a dictionary."""
    return {name: entries(table[name], features.get(name))[0] for name in table.column_names}


def is_column(value: Any, row: Mapping[str, Any]) -> bool:
    """Return whether the audio of a "row" is a whole column of audio, which makes the row a batch.

    A list of numbers is samples; so is an array of numbers, unless the other columns are as long as it.
    """
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.dtype.kind in "OUST"
    if isinstance(value, torch.Tensor) and value.ndim < 2:
        return False
    if not isinstance(value, (list, tuple, np.ndarray, torch.Tensor)) or not len(value):
        return False
    others = [entry for entry in row.values() if entry is not value]
    if not all(_is_list(entry) and len(entry) == len(value) for entry in others):
        return False
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return bool(others)
    first = next((entry for entry in value if entry is not None), None)
    return not isinstance(first, Number) and not (isinstance(first, torch.Tensor) and first.ndim == 0)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim > 0)


def _value(entry: pa.Scalar) -> Any:
    """Return an entry as a Python object, lists of numbers as arrays of the stored type."""
    if isinstance(entry, pa.ExtensionScalar):
        entry = entry.value
    if entry is None or not entry.is_valid:
        return None
    if pa.types.is_struct(entry.type):
        return {name: _value(value) for name, value in entry.items()}
    if not isinstance(entry, pa.ListScalar):  # the base class of all list types
        return entry.as_py()
    return _numbers(entry.values)


def _numbers(values: pa.Array) -> Any:
    """Return an array of numbers with any number of axes as a NumPy array; anything else as a list."""
    kind = values.type
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not values.null_count:
        return values.to_numpy(zero_copy_only=False)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        rows: list[Any] = [None if not row.is_valid else _numbers(row.values) for row in values]
        if rows and all(isinstance(row, np.ndarray) and row.shape == rows[0].shape for row in rows):
            return np.stack(rows)
        return [row.tolist() if isinstance(row, np.ndarray) else row for row in rows]
    return values.to_pylist()

"""Half precision where it costs more than it saves."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

import torch

_warned: WeakSet[torch.nn.Module] = WeakSet()


def warn_of_float16(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Warn, once for each model, that float16 on a CPU is slow and inexact."""
    if device.type != "cpu" or dtype != torch.float16 or model in _warned:
        return
    _warned.add(model)
    warnings.warn(
        f"model, a {type(model).__name__}, computes in float16 on a CPU, where most processors are many times slower "
        "than in float32, and less exact; call model.float(), or load it with dtype=torch.float32",
        stacklevel=5,
    )

"""The dtype in which a model runs, and how compiled code keeps its graphs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from spes_hf.errors import ConfigError


def check_autocast(autocast: Any) -> str | None:
    """Return the dtype that the user passed for autocast; None for no autocast.

    Raises:
        ConfigError: If it is neither "bfloat16" nor "float16" nor None.
    """
    if autocast not in (None, "bfloat16", "float16"):
        raise ConfigError(f'autocast is {autocast!r}; allowed: "bfloat16", "float16" or None')
    return autocast


def precision_of(autocast: str | None, device: str) -> AbstractContextManager[Any]:
    """Return a context with autocast to a dtype, if any.

    Args:
        autocast: "bfloat16", "float16" or None.
        device: Type of the device, such as "cuda".
    """
    return nullcontext() if autocast is None else torch.autocast(device, getattr(torch, autocast))


def graphs_of(compiled: bool) -> AbstractContextManager[Any]:
    """Return a context in which several backward passes (one per token) can share the graph of compiled code."""
    if not compiled:
        return nullcontext()
    from torch._functorch import config

    return config.patch(donated_buffer=False)

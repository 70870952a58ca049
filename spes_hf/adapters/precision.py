"""Half precision: logits in float32 all the same, and a warning where it costs more than it saves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn.functional import linear

_HALF = (torch.float16, torch.bfloat16)
_warned: WeakSet[torch.nn.Module] = WeakSet()


@contextmanager
def float32_logits(model: Any) -> Iterator[None]:
    """Have a model of half precision work out its logits in float32 meanwhile, from what its decoder ends with.

    A logit of 20 in bfloat16 is right to 0.06. Where a mask moves a token's distribution by less, the difference q − p,
    which the gradient of the KL divergence starts from, would be rounding and nothing else; all that comes before the
    logits is exact enough (docs/scaling.md). Heads other than plain linear layers are left alone.

    Args:
        model: The user's model.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or "forward" in vars(head) or head.weight.is_meta:
        yield
        return

    def exact(states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            bias = None if head.bias is None else head.bias.float()
            return linear(states.float(), head.weight.float(), bias)

    if head.weight.dtype not in _HALF and not torch.is_autocast_enabled(head.weight.device.type):
        yield
        return
    vars(head)["forward"] = exact
    try:
        yield
    finally:
        del vars(head)["forward"]


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

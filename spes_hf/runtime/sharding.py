"""Models whose weights are split over processes: none of the processes has the whole of them."""

from __future__ import annotations

from typing import Any

from torch import nn

_SPLITTING = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")

REMEDY = (
    "every process would have to run every pass with the others, and one that does not leaves them waiting. Load the "
    "checkpoint again in each process and pass that model: Model.from_pretrained(folder); where it does not fit on one "
    'device, Model.from_pretrained(folder, device_map="auto") spreads it over several devices of one process'
)


def split_over_processes(model: nn.Module) -> str | None:
    """Return what splits a model's weights over processes; None: this process has all of them.

    Both generations of FSDP do, and tensor parallelism. Judged by the names of classes: nothing is imported for it.
    """
    for name, module in model.named_modules():
        found = next((kind for kind in _SPLITTING if _is_a(module, kind)), None)
        if found is not None:
            return f"{name or 'model'} is a {type(module).__name__} ({found})"
    found = next((name for name, weight in model.named_parameters() if _is_a(weight, "DTensor")), None)
    return None if found is None else f"{found} is a DTensor"


def _is_a(value: Any, name: str) -> bool:
    """Return whether a value is of a class of torch's or DeepSpeed's distributed packages, by name."""
    return any(
        parent.__name__ == name and parent.__module__.startswith(("torch.distributed", "deepspeed"))
        for parent in type(value).__mro__
    )

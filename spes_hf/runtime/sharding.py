"""Detects models with weights split over processes, so that no process has all of them."""

from __future__ import annotations

from typing import Any

from torch import nn

_SPLITTING = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")

REMEDY = (
    "every process would have to take part in every pass, or the others would hang. Load the checkpoint again in each "
    "process and pass that model: Model.from_pretrained(folder); if it does not fit on one device, "
    'Model.from_pretrained(folder, device_map="auto") spreads it over several devices of one process'
)


def split_over_processes(model: nn.Module) -> str | None:
    """Return what splits a model's weights over processes; None if this process has all of them.

    Detects both generations of FSDP, DeepSpeed, and tensor parallelism by class name, without importing them.
    """
    for name, module in model.named_modules():
        found = next((kind for kind in _SPLITTING if _is_a(module, kind)), None)
        if found is not None:
            return f"{name or 'model'} is a {type(module).__name__} ({found})"
    found = next((name for name, weight in model.named_parameters() if _is_a(weight, "DTensor")), None)
    return None if found is None else f"{found} is a DTensor"


def _is_a(value: Any, name: str) -> bool:
    """Return whether a value is an instance of a torch.distributed or DeepSpeed class with this name."""
    return any(
        parent.__name__ == name and parent.__module__.startswith(("torch.distributed", "deepspeed"))
        for parent in type(value).__mro__
    )

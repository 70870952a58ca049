"""The user's model is left as it was: what has to be switched for a while is switched back, whatever happens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from spes_hf.runtime.locks import alone, model_to_itself, plain_torch, random_numbers
from spes_hf.runtime.offload import at_home
from spes_hf.runtime.offload import devices as computing_devices
from spes_hf.runtime.workers import share_cores
from spes_hf.runtime.wrapping import as_it_is


@contextmanager
def leave_unchanged(model: Any, seed: int = 0, device: torch.device | None = None) -> Iterator[None]:
    """Put the model in evaluation mode, its weights frozen, and torch's global state aside; then all is as it was.

    Random states too. Frozen weights spare a backward pass through the model the gradients that nobody asks for. Other
    threads that want the same model wait.

    Args:
        model: The user's model.
        seed: What sampling in ``generate()`` starts from meanwhile.
        device: Where the model's input goes, `Adapter.device`; None: as its hooks or its first weight say.
    """
    share_cores()
    with model_to_itself(model):
        # By name: where weights are offloaded, every pass puts others into the same places.
        learning = [
            (module._parameters, name, weight.requires_grad)
            for module in model.modules()
            for name, weight in module._parameters.items()
            if weight is not None and not weight.is_inference()
        ]
        training = [(module, module.training) for module in model.modules()]
        devices = {device for device in computing_devices(model) if device.type not in ("cpu", "meta")}
        try:
            model.eval()
            for weights, name, _ in learning:
                weights[name].requires_grad_(False)
            with random_numbers(seed, devices), as_it_is(model), at_home(model, device), plain_torch(devices):
                yield
        finally:
            # Both ways: generate() may switch on what was off, such as the LoRA of Granite Speech, which then learns.
            for weights, name, before in learning:
                weights[name].requires_grad_(before)
            for module, before in training:
                module.training = before


@contextmanager
def quiet_thread() -> Iterator[None]:
    """Keep back what transformers logs in this thread, as `silence_transformers`, and not in others."""
    here, handlers = threading.get_ident(), logging.getLogger("transformers").handlers

    def others(record: logging.LogRecord) -> bool:
        return record.thread != here

    for handler in handlers:
        handler.addFilter(others)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(others)


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Keep back what transformers logs about settings that spes_hf hands to ``generate()`` on the user's behalf."""
    from transformers.utils import logging as theirs

    with alone():
        verbosity = theirs.get_verbosity()
        theirs.set_verbosity_error()
        try:
            yield
        finally:
            theirs.set_verbosity(verbosity)

"""Leaves the user's model as it was: every temporary change is undone, even after an error."""

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
    """Put the model in evaluation mode, freeze its weights, set torch's global state aside, and restore all afterwards.

    Random states are restored too. With frozen weights, backward passes compute no gradients that nobody needs. Other
    threads that use the same model wait.

    Args:
        model: The user's model.
        seed: Seed for sampling in ``generate()`` meanwhile.
        device: The device of the model's input, `Adapter.device`; None: the device of its hooks or its first weight.
    """
    share_cores()
    with model_to_itself(model):
        # By name, since every pass puts new tensors into the same places if weights are offloaded.
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
            # Restore in both directions: generate() may enable what was off, such as the LoRA of Granite Speech.
            for weights, name, before in learning:
                weights[name].requires_grad_(before)
            for module, before in training:
                module.training = before


@contextmanager
def quiet_thread() -> Iterator[None]:
    """Suppress what transformers logs in this thread, but not in others; see also `silence_transformers`."""
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
    """Suppress what transformers logs about settings that spes_hf passes to ``generate()`` on the user's behalf."""
    from transformers.utils import logging as theirs

    with alone():
        verbosity = theirs.get_verbosity()
        theirs.set_verbosity_error()
        try:
            yield
        finally:
            theirs.set_verbosity(verbosity)

"""One thread at a time: for a model, which is switched and hooked, and for what the whole process has only one of."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch


class _Locks:
    """The locks of a process. Weak keys: a lock keeps no model alive. Not in the model: it can still be pickled."""

    def __init__(self) -> None:
        self.process = threading.RLock()
        self.models: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        # Who needs float32 by default now, and what the user's default is.
        self.float32, self.users_dtype = 0, torch.float32

    def of(self, model: Any) -> Any:
        """Return the lock of a model."""
        with self.process:
            return self.models.setdefault(model, threading.RLock())


_LOCKS = _Locks()
_current = threading.local()


def _renew() -> None:
    """Forget the locks that threads of the parent held when this process was forked: nobody will release them.

    Nor will anybody give the user's default type back.
    """
    global _LOCKS
    if _LOCKS.float32:
        torch.set_default_dtype(_LOCKS.users_dtype)
    _LOCKS = _Locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def model_to_itself(model: Any) -> Iterator[None]:
    """Wait until no other thread explains, or measures, with this model, and keep others waiting meanwhile.

    Args:
        model: The model inside all wrappers, which share it.
    """
    with _LOCKS.of(model):
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Have new tensors be float32, which all threads share: the last that needs it gives the user's type back."""
    locks = _LOCKS
    with locks.process:
        if not locks.float32:
            locks.users_dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        locks.float32 += 1
    try:
        yield
    finally:
        with locks.process:
            locks.float32 -= 1
            if not locks.float32:
                torch.set_default_dtype(locks.users_dtype)


@contextmanager
def random_numbers(seed: int, devices: set[torch.device]) -> Iterator[None]:
    """Have all that this thread runs `alone` meanwhile draw from generators of its own, which start from a seed.

    Args:
        seed: Where they start.
        devices: Those that the model lies on, but the CPU.
    """
    before = getattr(_current, "numbers", None)
    _current.numbers = _Numbers(seed, devices)
    try:
        yield
    finally:
        _current.numbers = before


@contextmanager
def alone() -> Iterator[None]:
    """Keep other threads of the package out of what the process has only one of, and leave it as it was.

    Namely the random states of torch and NumPy, where the run's own numbers are found meanwhile, and how much
    transformers logs.
    """
    with _LOCKS.process:
        numbers = getattr(_current, "numbers", None)
        if numbers is None or numbers.drawn_from:
            yield
            return
        users, numbers.drawn_from = numbers.read(), True
        try:
            numbers.write(numbers.states)
            yield
        finally:
            numbers.states, numbers.drawn_from = numbers.read(), False
            numbers.write(users)


class _Numbers:
    """The random states of one run, kept here while the process's generators are in other hands."""

    def __init__(self, seed: int, devices: set[torch.device]):
        self.devices = sorted(devices, key=str)
        self.drawn_from = False
        with _LOCKS.process:
            users = self.read()
            torch.default_generator.manual_seed(seed % 2**63)
            for device in self.devices:
                with torch.get_device_module(device).device(device) if device.type != "mps" else nullcontext():
                    torch.get_device_module(device).manual_seed(seed % 2**63)
            self.states = self.read()
            self.write(users)

    def read(self) -> list[Any]:
        """Return the states of the process's generators: NumPy's, torch's, those of the devices."""
        states = [torch.get_device_module(device).get_rng_state(*_which(device)) for device in self.devices]
        return [np.random.get_state(), torch.get_rng_state(), *states]

    def write(self, states: list[Any]) -> None:
        """Put states into the process's generators."""
        np.random.set_state(states[0])
        torch.set_rng_state(states[1])
        for device, state in zip(self.devices, states[2:], strict=True):
            torch.get_device_module(device).set_rng_state(state, *_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    """Return what names a device to its random state; there is one MPS device, without a name."""
    return () if device.type == "mps" else (device,)


@contextmanager
def plain_torch(devices: Iterable[torch.device]) -> Iterator[None]:
    """Compute as torch does out of the box; afterwards all is as it was.

    Inference mode and autocast are off, new tensors are float32 on the CPU unless they say otherwise. What processors
    and models make inside transformers depends on that.

    Args:
        devices: Where the model computes, besides the CPU.
    """
    with ExitStack() as stack:
        # What inference mode makes takes no part in a backward pass, whatever mode the user is in.
        stack.enter_context(torch.inference_mode(False))
        for kind in {"cpu", *(device.type for device in devices)}:
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(float32_by_default())
        yield

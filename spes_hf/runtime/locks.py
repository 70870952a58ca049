"""Locks: one thread at a time for a model, which is switched and hooked, and for the state that a process shares."""

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
    """The locks of a process. Keys are weak, so a lock keeps no model alive; models stay picklable."""

    def __init__(self) -> None:
        self.process = threading.RLock()
        self.models: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        # How many users need float32 as the default now, and the user's own default.
        self.float32, self.users_dtype = 0, torch.float32

    def of(self, model: Any) -> Any:
        """Return the lock of a model."""
        with self.process:
            return self.models.setdefault(model, threading.RLock())


_LOCKS = _Locks()
_current = threading.local()


def _renew() -> None:
    """After a fork, forget the locks that threads of the parent held, since nothing will release them.

    Also restore the user's default dtype, since no other thread will.
    """
    global _LOCKS
    if _LOCKS.float32:
        torch.set_default_dtype(_LOCKS.users_dtype)
    _LOCKS = _Locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def model_to_itself(model: Any) -> Iterator[None]:
    """Hold this model's lock, so that only one thread at a time explains or measures with it.

    Args:
        model: The model inside all wrappers; they share its lock.
    """
    with _LOCKS.of(model):
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make float32 the default dtype. All threads share it; the last one that needs it restores the user's dtype."""
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
    """Give this thread its own seeded random generators for everything that it runs under `alone`.

    Args:
        seed: Seed of the generators.
        devices: Devices of the model, except the CPU.
    """
    before = getattr(_current, "numbers", None)
    _current.numbers = _Numbers(seed, devices)
    try:
        yield
    finally:
        _current.numbers = before


@contextmanager
def alone() -> Iterator[None]:
    """Give this thread exclusive use of the process's shared state among the package's threads, and restore it.

    Shared state: the random states of torch and NumPy, which are set to the run's own meanwhile, and the logging level
    of transformers.
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
    """The random states of one run, kept here while others use the process's generators."""

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
    """Return the device argument of the functions for random states; there is only one MPS device, so none."""
    return () if device.type == "mps" else (device,)


@contextmanager
def plain_torch(devices: Iterable[torch.device]) -> Iterator[None]:
    """Run torch with its default global settings; restore the user's settings afterwards.

    Inference mode and autocast are off, and new tensors are float32 on the CPU by default. The results of processors
    and models in transformers depend on these settings.

    Args:
        devices: Devices that the model computes on, besides the CPU.
    """
    with ExitStack() as stack:
        # Tensors made in inference mode cannot take part in a backward pass, so leave the user's mode.
        stack.enter_context(torch.inference_mode(False))
        for kind in {"cpu", *(device.type for device in devices)}:
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(float32_by_default())
        yield

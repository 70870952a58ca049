"""Two devices that are none: tensors on them lie on the CPU, but may not meet those of another, as on real GPUs.

torch gets a backend named "pretended" without a driver. What is asked of its tensors is worked out on the CPU, after a
check that all of them are on one device. So a model that is split over devices runs here as it would on GPUs, forwards
and backwards, and fails where it would fail there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "pretended"

# Registering a backend changes torch for as long as the process lives, so tests with these devices have their own.
ALONE = "SPES_HF_TESTS_OF_PRETENDED_DEVICES"
pretended = pytest.mark.skipif(
    ALONE not in os.environ, reason="run by test_pretended_devices_in_a_process_of_their_own"
)
starts_them = pytest.mark.skipif(ALONE in os.environ, reason="this is that process")


def run_alone(file: str) -> None:
    """Run the tests of a file that are marked `pretended`, in a process of their own.

    Args:
        file: The file.
    """
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env={**os.environ, ALONE: "1"}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]


# These may join two devices: copies do by their nature, indices may wait on the CPU.
_COPIES = ("aten::copy_", "aten::_to_copy")
_INDEXED = {"aten::index": 1, "aten::index_put": 2, "aten::index_put_": 2, "aten::_index_put_impl_": 2}
# With these, a program waits until a real device has done all that was asked of it before.
_ASKING = ("aten::_local_scalar_dense", "aten::equal", "aten::masked_select", "aten::nonzero", "aten::_unique2")


class Wait(NamedTuple):
    """What a program would wait for on a real device.

    Attributes:
        operation: The operation of torch.
        called_by: Files and functions on the way to it, outermost first: "spes_hf/scoring/eq3.py add".
    """

    operation: str
    called_by: tuple[str, ...]


_waits: list[Wait] | None = None


@contextmanager
def noting_waits() -> Iterator[list[Wait]]:
    """Yield a list to which everything is added that a program would wait for meanwhile."""
    global _waits
    _waits = []
    try:
        yield _waits
    finally:
        _waits = None


def _note_wait(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    """Add an operation to the list if it waits."""
    if _waits is not None and _has_to_wait(name, args, kwargs):
        stack = traceback.extract_stack()
        _waits.append(Wait(name, tuple(f"{frame.filename} {frame.name}" for frame in stack)))


def _has_to_wait(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether an operation waits: it reads numbers of a device, or moves them without being told not to wait."""
    if name in _COPIES:
        here, there = args[0], args[1] if name == "aten::copy_" else kwargs.get("device") or args[0].device
        near = [torch.device(each.device if isinstance(each, Tensor) else each).type != NAME for each in (here, there)]
        waits = not (kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))
        return near[0] != near[1] and (waits or near[1 if name == "aten::_to_copy" else 0])
    far = any(isinstance(value, FarTensor) for value in tree_leaves((args, kwargs)))
    if name in _INDEXED and far:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        return any(index.device.type != NAME or index.dtype in (torch.bool, torch.uint8) for index in indices)
    return far and name in _ASKING


class FarTensor(Tensor):
    """A tensor that is said to be on a pretended device; ``near`` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor, device: Any = None, requires_grad: bool = False) -> Any:
        """Return it; without a device, where the tensor is: Accelerate makes parameters of the class that was there."""
        if device is None and not isinstance(near, FarTensor):
            return nn.Parameter(near, requires_grad)
        found = Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=near.device if device is None else device,
            requires_grad=requires_grad,
        )
        found.near = near.near if isinstance(near, FarTensor) else near
        return found

    def __init__(self, near: Tensor, device: Any = None, requires_grad: bool = False):
        super().__init__()

    def __repr__(self, **kwargs: Any) -> str:
        return f"FarTensor({self.near!r}, device={self.device})"

    def tolist(self) -> Any:
        """Return the numbers, which torch refuses for subclasses."""
        _note_wait(_ASKING[0], (self,), {})
        return self.near.tolist()

    def data_ptr(self) -> int:
        """Return where the numbers lie, by which Accelerate knows weights that are tied."""
        return self.near.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the result of an operation."""
        return _run(operation, args, kwargs or {})


class _Devices(TorchDispatchMode):
    """Also catches what makes new tensors, which has no far tensor among its arguments."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return the result of an operation on the device of its tensors.

    Raises:
        RuntimeError: If they are on several.
    """
    name = operation._schema.name
    _note_wait(name, args, kwargs)
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    far = [value for value in tree_leaves((args, kwargs)) if isinstance(value, FarTensor)]
    if not far and (asked is None or asked.type != NAME):
        return operation(*args, **kwargs)
    if name == "aten::_local_scalar_dense":
        return operation(far[0].near)
    device = asked or _device_of(name, args, kwargs)
    own = {id(value.near): value for value in far}
    args, kwargs = tree_map_only(FarTensor, lambda value: value.near, (args, kwargs))
    if asked is not None and asked.type == NAME:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = operation(*args, **kwargs)
    if device.type != NAME:
        return result
    return tree_map_only(Tensor, lambda value: own[id(value)] if id(value) in own else FarTensor(value, device), result)


def _device_of(name: str, args: Any, kwargs: dict[str, Any]) -> torch.device:
    """Return the device of an operation's arguments; numbers on the CPU go with any."""
    if name in _COPIES:
        return args[0].device
    here = args[0] if name not in _INDEXED else (args[0], *args[_INDEXED[name] :])
    tensors = tree_leaves((here, kwargs) if name in _INDEXED else (args, kwargs))
    found = {t.device for t in tensors if isinstance(t, Tensor) and (t.ndim or t.device.type != "cpu")}
    if len(found) != 1:
        raise RuntimeError(f"{name}: expected all tensors on the same device, found {sorted(map(str, found))}")
    return found.pop()


class _Module:
    """What torch wants to know of a backend."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return _switched_on

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 2

    def device(self, device: Any) -> Any:
        return nullcontext()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8, device="cpu")

    def set_rng_state(self, state: Tensor, device: Any) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return _switched_on

    def has_primary_context(self, device: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


_switched_on = False
_registered: list[Any] = []


def _grad_here(*args: Any, **kwargs: Any) -> Any:
    """Return what `torch.autograd.grad` does, in this thread: there are none for devices without a driver."""
    with torch.autograd.set_multithreading_enabled(False):
        return _grad(*args, **kwargs)


_grad = torch.autograd.grad


@contextmanager
def pretended_devices() -> Iterator[None]:
    """Have "pretended:0" and "pretended:1" meanwhile."""
    global _switched_on
    if not _registered:
        _registered.extend([_Hooks(), _Guard(), torch.library.Library("aten", "IMPL")])
        torch.utils.rename_privateuse1_backend(NAME)
        # torch.tensor([far, …]) reads the numbers where no subclass is asked.
        _registered[2].impl("_local_scalar_dense", lambda far: far.near.item(), "PrivateUse1")
        torch._register_device_module(NAME, _Module())
        torch._C._acc.register_python_privateuseone_hook(_registered[0])
        torch._C._acc.register_python_privateuseone_device_guard(_registered[1])
    _switched_on, lifted = True, torch._C._only_lift_cpu_tensors()
    try:
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) makes a CPU tensor, then moves it
        torch.autograd.grad = _grad_here
        with _Devices():
            yield
    finally:
        torch.autograd.grad = _grad
        _switched_on = False
        torch._C._set_only_lift_cpu_tensors(lifted)

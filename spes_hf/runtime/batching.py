"""Batch size of perturbed copies: as many as fit in memory, found by halving, and remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import OutOfMemoryError as TorchOutOfMemoryError
from torch import Tensor

from spes_hf.checks import is_count
from spes_hf.errors import ConfigError, OutOfMemoryError, SpesError
from spes_hf.runtime.ranks import ALONE, Ranks

BatchSize = int | Literal["auto"] | None
"""Perturbed copies per pass; "auto" or None: as many as fit in memory."""

# Messages of drivers and allocators about memory, in addition to those that accelerate recognises.
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED", "bad_alloc")


def check_batch_size(batch_size: Any) -> int | None:
    """Return the batch size that the user passed; None to find it automatically.

    Raises:
        ConfigError: If it is not None, "auto" or a whole number of at least 1.
    """
    if batch_size is None or (isinstance(batch_size, str) and batch_size == "auto"):
        return None
    if not is_count(batch_size):
        raise ConfigError(f'batch_size is {batch_size!r}; allowed: a whole number, at least 1, "auto", or None')
    return int(batch_size)


def starting_batch_size(logits: int, device: torch.device, inputs: Mapping[str, Tensor], backward: bool = False) -> int:
    """Return the number of perturbed copies to try first; it is halved whenever memory runs out.

    On CPU, batches stop paying off once the encoder's input has a few thousand frames in all; larger ones only cost
    memory. On an accelerator, the logits, (B, K, V), take up most of the memory.

    Args:
        logits: Number of logits per copy, K · V.
        device: Device of the model.
        inputs: The model's encoder inputs, a batch of one.
        backward: Whether backward passes follow; they need all results of the forward pass, so the size is a quarter.
    """
    values = max(v.numel() for v in inputs.values())
    if device.type == "cpu":
        size = max(4, min(64, 1_000_000 // values))
    else:
        size = max(8, min(512, 2**28 // logits, 2**26 // values))
    return max(1, size // 4) if backward else size


class FoundSizes:
    """Batch sizes to use after memory ran out, by what was run and the size of one copy.

    If a smaller copy did not fit, a larger one will not either, so a size found for one shape also limits larger ones.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[tuple[int, ...], int]]] = {}

    def fitting(self, kind: str, shape: tuple[int, ...], size: int) -> int:
        """Return a batch size of at most ``size`` at which memory has not run out so far.

        Args:
            kind: What is run.
            shape: Size of one copy; memory use grows with each of the numbers.
            size: Size to start with if nothing is known.
        """
        return min([size, *(found for known, found in self._found.get(kind, ()) if _within(known, shape))])

    def remember(self, kind: str, shape: tuple[int, ...], size: int) -> None:
        """Record that memory ran out, and the size to try next."""
        others = [(s, n) for s, n in self._found.get(kind, ()) if n < size or not _within(shape, s)]
        self._found[kind] = [*others, (shape, size)]


_remembered: WeakKeyDictionary[torch.nn.Module, dict[tuple[torch.device, torch.dtype], FoundSizes]]
_remembered = WeakKeyDictionary()


class Running(Protocol):
    """A model and where it runs: an adapter."""

    model: torch.nn.Module

    @property
    def device(self) -> torch.device:
        """Where the model computes."""


def found_sizes_of(running: Running, dtype: torch.dtype) -> FoundSizes:
    """Return the sizes found for this model object so far, so that no call runs out of memory where another one did.

    Args:
        running: The adapter of the model. Sizes belong to one model object on one device.
        dtype: The dtype it computes in.
    """
    return _remembered.setdefault(running.model, {}).setdefault((running.device, dtype), FoundSizes())


@dataclass
class Batch:
    """The batch size of one run.

    Attributes:
        size: Rows per pass.
        kind: What is run, as in `FoundSizes`.
        shape: Size of one copy.
        found: Where the size is remembered.
        ranks: The processes that share the rows.
    """

    size: int
    kind: str
    shape: tuple[int, ...]
    found: FoundSizes
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        self.size = self.found.fitting(self.kind, self.shape, self.size)

    def over(self, rows: range, work: Callable[[range], None]) -> Iterator[range]:
        """Do the work for these rows, as many at once as fit in memory; yield the rows that are done.

        Args:
            rows: The rows.
            work: Does the work for some rows, or runs out of memory without side effects.
        """
        while rows:
            some, fits = rows[: self.size], True
            try:
                work(some)
            except (RuntimeError, MemoryError) as error:
                if len(some) == 1 or not _asks_for_less(error):
                    raise
                fits = False
            if fits:
                rows = rows[len(some) :]
                yield some
            else:
                # Only here, where nothing refers to the tensors of the failed pass any more.
                clear_device_cache(garbage_collection=True)
                self.size = len(some) // 2
                self.found.remember(self.kind, self.shape, self.size)


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Raise an error with remedies if memory runs out even for a single copy.

    Args:
        what: What was to be run, for the message.

    Raises:
        OutOfMemoryError: If memory runs out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, SpesError) or not _out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
        raise OutOfMemoryError(
            f"{what} does not fit in memory, not even one copy at a time ({reason}). Free memory that other programs "
            'use, pass a shorter clip, load the model in bfloat16 or pass Explainer(autocast="bfloat16"), or use '
            'SpesConfig(estimator="perturbation"), which runs no backward passes'
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    """Return whether a device or the machine ran out of memory."""
    return isinstance(error, (TorchOutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in _SIGNS)


def _asks_for_less(error: Exception) -> bool:
    """Return whether a smaller batch may avoid this error."""
    return _out_of_memory(error) or should_reduce_batch_size(RuntimeError(str(error)))


def _within(smaller: tuple[int, ...], larger: tuple[int, ...]) -> bool:
    return all(a <= b for a, b in zip(smaller, larger, strict=True))

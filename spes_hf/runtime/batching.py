"""How many perturbed copies run at once: as many as fit in memory, found by halving, and remembered."""

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
"""Perturbed copies in one pass; "auto", like None: as many as fit in memory."""

# How drivers and allocators say it, beyond what accelerate knows.
_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED", "bad_alloc")


def check_batch_size(batch_size: Any) -> int | None:
    """Return the batch size that a user gave, None for one that is found.

    Raises:
        ConfigError: If it is neither None nor "auto" nor a whole number from 1 up.
    """
    if batch_size is None or (isinstance(batch_size, str) and batch_size == "auto"):
        return None
    if not is_count(batch_size):
        raise ConfigError(f'batch_size is {batch_size!r}; allowed: a whole number, at least 1, "auto", or None')
    return int(batch_size)


def starting_batch_size(logits: int, device: torch.device, inputs: Mapping[str, Tensor], backward: bool = False) -> int:
    """Return how many perturbed copies to try at first; memory that runs out halves it.

    A batch pays off until the encoder's input is a few thousand frames long; beyond that it costs memory alone. On an
    accelerator the logits, (B, K, V), are what fills the memory.

    Args:
        logits: How many logits one copy has, K · V.
        device: Where the model is.
        inputs: The model's encoder inputs, a batch of one.
        backward: Whether backward passes follow, which need all that the forward pass computed: a quarter.
    """
    values = max(v.numel() for v in inputs.values())
    if device.type == "cpu":
        size = max(4, min(64, 1_000_000 // values))
    else:
        size = max(8, min(512, 2**28 // logits, 2**26 // values))
    return max(1, size // 4) if backward else size


class FoundSizes:
    """Batch sizes where memory ran out and that fitted then, by what was run and how large one copy is.

    A larger copy does not fit where a smaller one did not, so what was found holds for larger shapes, too.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[tuple[int, ...], int]]] = {}

    def fitting(self, kind: str, shape: tuple[int, ...], size: int) -> int:
        """Return a batch size of at most ``size`` that memory has not run out at.

        Args:
            kind: What is run.
            shape: How large one copy is, every number of which costs memory.
            size: What to start with where nothing is known.
        """
        return min([size, *(found for known, found in self._found.get(kind, ()) if _within(known, shape))])

    def remember(self, kind: str, shape: tuple[int, ...], size: int) -> None:
        """Take down that memory ran out, and which size is next."""
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
    """Return the sizes that were found for a model while it lives: no call runs out of memory where another did.

    Args:
        running: The model itself, since another copy has sizes of its own, and where it runs.
        dtype: What it computes in.
    """
    return _remembered.setdefault(running.model, {}).setdefault((running.device, dtype), FoundSizes())


@dataclass
class Batch:
    """The batch size of one run.

    Attributes:
        size: Rows at once.
        kind: What is run, as in `FoundSizes`.
        shape: How large one copy is.
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
        """Do the work for these rows, as many at once as fit; yield those that are done.

        Args:
            rows: Which rows.
            work: Does it for some of them, or runs out of memory and leaves nothing behind.
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
                # Only now, when nothing refers to the tensors of the failed pass any more.
                clear_device_cache(garbage_collection=True)
                self.size = len(some) // 2
                self.found.remember(self.kind, self.shape, self.size)


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Say what helps when memory runs out for a single copy.

    Args:
        what: What was to be run, for the message.

    Raises:
        OutOfMemoryError: In that case.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, SpesError) or not _out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
        raise OutOfMemoryError(
            f"{what} does not fit in memory, not even one copy at a time ({reason}). Free memory that others hold; "
            'give a shorter clip; load the model in bfloat16, or pass Explainer(autocast="bfloat16"); or use '
            'SpesConfig(estimator="perturbation"), which runs no backward passes'
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of a device or of the machine."""
    return isinstance(error, (TorchOutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in _SIGNS)


def _asks_for_less(error: Exception) -> bool:
    """Return whether a smaller batch may run where this error came up."""
    return _out_of_memory(error) or should_reduce_batch_size(RuntimeError(str(error)))


def _within(smaller: tuple[int, ...], larger: tuple[int, ...]) -> bool:
    return all(a <= b for a, b in zip(smaller, larger, strict=True))

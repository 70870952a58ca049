"""Processes that share one utterance: which of them does which masks, and the totals over all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from spes_hf.errors import ConfigError, RankError, SpesError

Sums = Sequence[Tensor | None]
"""The state of an estimator: sums over masks; None if it has seen no mask yet."""

T = TypeVar("T")

SAME_CALL = (
    "call explain() in every process with the same audio, model, config and seed (if the processes generate different "
    "texts, pass text=…)"
)

SumsOf = Callable[[Sums], list[Any]]
"""Maps an estimator's sums to other sums."""


@dataclass(frozen=True)
class Ranks:
    """The processes that make the same call, and the index of this one. A single process by default.

    All processes must call every method that communicates, in the same order; `together` makes an error in one of them
    end the call in all.

    Attributes:
        index: Index of this process, from 0.
        count: Number of processes.
        device: Where tensors must be to be summed over processes.
    """

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _within: list[bool] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def of(cls, accelerator: Any) -> Ranks:
        """Return the processes of an `accelerate.Accelerator` or `PartialState`; for None, a single process.

        Raises:
            ConfigError: If `accelerator` is none of these.
        """
        if accelerator is None:
            return cls()
        try:
            return cls(accelerator.process_index, accelerator.num_processes, accelerator.device)
        except AttributeError:
            raise ConfigError(
                f"accelerator is {accelerator!r}; pass accelerate.Accelerator(), the same in every process, or None"
            ) from None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.index == 0

    def share(self, parts: Iterable[range], turn: int = 0) -> list[range]:
        """Return this process's share of each part of the rows.

        Shares of a part are contiguous and differ by one row at most; processes take turns at the extra rows.

        Args:
            parts: Rows that cost the same.
            turn: Whose turn it is at the first part. Raise it by one from level to level, so that the extra rows of the
                same part do not add up in one process.
        """
        return [self._share(part, at) for at, part in enumerate(parts, turn)]

    def _share(self, rows: range, turn: int) -> range:
        place = (self.index + turn) % self.count
        return rows[len(rows) * place // self.count : len(rows) * (place + 1) // self.count]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for all processes at the end, and raise an error in all of them if one fails.

        Does nothing when nested: the outermost context informs the others.

        Raises:
            RankError: If another process fails or is lost.
        """
        if self.count == 1 or self._within:
            yield
            return
        self._within.append(True)
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            self._gather("error", f"{type(error).__name__}: {error}")
            raise
        finally:
            self._within.pop()
        self.gather("end", None)

    def gather(self, what: str, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of the processes.

        Args:
            what: Name of the value; all processes must ask for the same.
            value: Value of this process; must be picklable.

        Raises:
            RankError: If a process failed, is lost, or asks for something else.
        """
        if self.count == 1:
            return [value]
        found = self._gather(what, value)
        failed = [f"process {i}: {theirs}" for i, (kind, theirs) in enumerate(found) if kind == "error"]
        if failed:
            raise RankError(f"the call failed in {len(failed)} of {self.count} processes: {'; '.join(failed)}")
        if {kind for kind, _ in found} != {what}:
            where = ", ".join(f"process {i}: {kind}" for i, (kind, _) in enumerate(found))
            raise RankError(f"processes made different calls ({where}); make the same call in all of them")
        return [theirs for _, theirs in found]

    def from_first(self, what: str, make: Callable[[], T]) -> T:
        """Return what a function returns in the first process, where alone it is called.

        Args:
            what: Name of the value; all processes must ask for the same.
            make: Returns the value; must be picklable.

        Raises:
            RankError: If a process failed, is lost, or asks for something else.
        """
        value = [make() if self.is_first else None]
        if self.count > 1:
            self.gather(what, None)  # so that an error in there reaches all
            with _lost_processes():
                broadcast_object_list(value)
        return cast(T, value[0])

    def check_same(self, what: str, value: Any, remedy: str = SAME_CALL) -> None:
        """Raise an error if the processes work on different inputs.

        Args:
            what: What must be the same, for the message.
            value: Value of this process; must be picklable and comparable.
            remedy: What to do, for the message.

        Raises:
            RankError: If a process has a different value.
        """
        values = self.gather(what, value)
        others = [i for i, theirs in enumerate(values) if theirs != values[0]]
        if others:
            raise RankError(f"{what} of process {', '.join(map(str, others))} differs from that of process 0; {remedy}")

    def decide(self, what: str, value: bool) -> bool:
        """Return the decision of the first process, so that all do the same even if values are rounded differently."""
        return bool(self.gather(what, value)[0])

    def total(self, sums: Sums) -> list[Any]:
        """Return the sums over all processes; None for a sum that no process has."""
        if self.count == 1:
            return list(sums)
        kinds = self.gather("sums", [None if s is None else (tuple(s.shape), s.dtype) for s in sums])
        if any(len({kind for kind in of_one if kind is not None}) > 1 for of_one in zip(*kinds, strict=True)):
            raise RankError("processes have sums of different shapes or dtypes; make the same call in all of them")
        # Take all memory first: a process that has none must say so while the others still listen.
        of_each = [next((kind for kind in of_one if kind is not None), None) for of_one in zip(*kinds, strict=True)]
        mine = [self._copy(own, kind) for own, kind in zip(sums, of_each, strict=True)]
        self.gather("ready", None)
        with _lost_processes():
            for tensor in mine:
                if tensor is not None:
                    torch.distributed.all_reduce(tensor)
        return [t if t is None or own is None else t.to(own.device) for own, t in zip(sums, mine, strict=True)]

    def _copy(self, own: Tensor | None, kind: Any) -> Tensor | None:
        """Return a sum on the device, to add others to; zeros if only other processes have it, None if none has."""
        if own is not None:
            return own.to(self.device, copy=True, memory_format=torch.contiguous_format)
        return None if kind is None else torch.zeros(kind[0], dtype=kind[1], device=self.device)

    def only_first(self, sums: Sums) -> list[Any]:
        """Return the sums in the first process and zeros in the others, so that they can be summed again."""
        return list(sums) if self.is_first else [None if s is None else torch.zeros_like(s) for s in sums]

    def _gather(self, what: str, value: Any) -> list[tuple[str, Any]]:
        with _lost_processes():
            return list(gather_object([(what, value)]))


ALONE = Ranks()
"""One process that works on its own."""


@contextmanager
def _lost_processes() -> Iterator[None]:
    """Raise a clear error when processes cannot reach one another.

    Raises:
        RankError: If another process does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, (SpesError, torch.OutOfMemoryError)):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise RankError(
            f"another process died or did not answer in time ({reason}); check its output, then start all processes "
            "again",
            lost=True,
        ) from error

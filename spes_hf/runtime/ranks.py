"""Processes that work on one utterance together: who does which masks, and what they found in all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object, reduce
from torch import Tensor

from spes_hf.errors import ConfigError, RankError, SpesError

Sums = Sequence[Tensor | None]
"""What an estimator holds: sums over masks; None where it has seen none yet."""

SumsOf = Callable[[Sums], list[Any]]
"""Makes other sums of those that an estimator holds."""


@dataclass(frozen=True)
class Ranks:
    """The processes that make the same call, and which of them this is. A single one by default.

    Every method that talks to the others must be called by all of them, in the same order: `together` sees to it that
    an error in one ends the call in all.

    Attributes:
        index: Of this process, from 0.
        count: How many there are.
        device: Where tensors must be to be added up over processes.
    """

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _within: list[bool] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def of(cls, accelerator: Any) -> Ranks:
        """Return the processes of an `accelerate.Accelerator` or `PartialState`; a single one for None.

        Raises:
            ConfigError: If it is neither.
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
        """Whether this process is the one that writes and shows progress."""
        return self.index == 0

    def share(self, parts: Iterable[range], turn: int = 0) -> list[range]:
        """Return what this process does of each of some parts of the rows.

        Shares of a part are contiguous and differ by one row at most. The processes take turns at the larger one.

        Args:
            parts: Rows that cost the same.
            turn: Whose turn it is at the first part. Raise it by one from level to level, so that the larger shares of
                the same part do not add up in one process.
        """
        return [self._share(part, at) for at, part in enumerate(parts, turn)]

    def _share(self, rows: range, turn: int) -> range:
        place = (self.index + turn) % self.count
        return rows[len(rows) * place // self.count : len(rows) * (place + 1) // self.count]

    @contextmanager
    def together(self) -> Iterator[None]:
        """End with an error in all processes if one fails, and only when all of them are done.

        Within another one it does nothing: the outermost tells the others.

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
        """Return what every process has, in the order of the processes.

        Args:
            what: What it is: all processes must ask for the same.
            value: Of this process; it can be pickled.

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
            raise RankError(f"processes do different things ({where}); make the same call in all of them")
        return [theirs for _, theirs in found]

    def check_same(self, what: str, value: Any) -> None:
        """Refuse to work together on different things.

        Args:
            what: What must be the same, for the message.
            value: Of this process; it can be pickled and compared.

        Raises:
            RankError: If a process has another value.
        """
        values = self.gather(what, value)
        others = [i for i, theirs in enumerate(values) if theirs != values[0]]
        if others:
            raise RankError(
                f"{what} of process {', '.join(map(str, others))} differs from that of process 0; call explain() in "
                "every process with the same audio, model, config and seed (text=… where the processes write different "
                "texts)"
            )

    def decide(self, what: str, value: bool) -> bool:
        """Return the decision of the first process: where values are rounded differently, all do the same."""
        return bool(self.gather(what, value)[0])

    def total(self, sums: Sums) -> list[Any]:
        """Return the sums over all processes; None where no process has any."""
        if self.count == 1:
            return list(sums)
        kinds = self.gather("sums", [None if s is None else (tuple(s.shape), s.dtype) for s in sums])
        if any(len({kind for kind in of_one if kind is not None}) > 1 for of_one in zip(*kinds, strict=True)):
            raise RankError("processes sum up different things; make the same call in all of them")
        found: list[Tensor | None] = []
        for own, *kinds_of_one in zip(sums, *kinds, strict=True):
            known = next((kind for kind in kinds_of_one if kind is not None), None)
            if known is None:
                found.append(None)
                continue
            shape, dtype = known
            mine = torch.zeros(shape, dtype=dtype, device=self.device) if own is None else own
            with _lost_processes():
                added = reduce(mine.to(self.device), "sum")
            found.append(added.to(mine.device))
        return found

    def only_first(self, sums: Sums) -> list[Any]:
        """Return the sums in the first process, and zeros in the others, so that they can be added up again."""
        return list(sums) if self.is_first else [None if s is None else torch.zeros_like(s) for s in sums]

    def _gather(self, what: str, value: Any) -> list[tuple[str, Any]]:
        with _lost_processes():
            return list(gather_object([(what, value)]))


ALONE = Ranks()
"""One process that works on its own."""


@contextmanager
def _lost_processes() -> Iterator[None]:
    """Say what it means when processes cannot reach one another.

    Raises:
        RankError: In that case.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, (SpesError, torch.OutOfMemoryError)):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise RankError(
            f"another process is lost, or took longer than the others wait for it ({reason}); look at its output, and "
            "start all processes again",
            lost=True,
        ) from error

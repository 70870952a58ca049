"""What a job does while the model runs: one thread reads the next row, another writes the previous one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from spes_hf.jobs.shards import ShardWriter

RowT = TypeVar("RowT")


def read_ahead(indices: Sequence[int], read: Callable[[int], RowT]) -> Generator[tuple[int, RowT], None, None]:
    """Yield every index with the row read for it, while a thread reads the next row (and only that one).

    A read error is raised when its row is due. The thread ends with the iterator; close it.

    Args:
        indices: Indices of the rows.
        read: Reads one row.
    """
    with ThreadPoolExecutor(1, "read ahead") as thread:
        coming = [thread.submit(read, index) for index in indices[:1]]
        for position, index in enumerate(indices):
            row = coming.pop().result()
            coming += [thread.submit(read, following) for following in indices[position + 1 : position + 2]]
            yield index, row


class BackgroundWriter:
    """Adds rows to a `ShardWriter` in a thread, one at a time: a row waits until the previous one is added.

    An error is raised at the next row, or in `flush`. With ``flush_seconds=0``, `add` returns only when the row is on
    disk.

    Args:
        writer: The writer; nothing else may add to it meanwhile.
    """

    def __init__(self, writer: ShardWriter):
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, "write behind")
        self._adding: Future[None] | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def add(self, index: int, row: dict[str, Any]) -> None:
        """Take a finished row, as `ShardWriter.add` does.

        Raises:
            ShardError: If the previous row cannot be written; with ``flush_seconds=0``, also if this one cannot.
        """
        self._wait()
        self._adding = self._thread.submit(self._writer.add, index, row)
        if not self._writer.flush_seconds:
            self._wait()

    def flush(self) -> None:
        """Write the waiting rows, if any.

        Raises:
            ShardError: If they cannot be written.
        """
        self._wait()
        self._writer.flush()

    def _wait(self) -> None:
        adding, self._adding = self._adding, None
        if adding is not None:
            adding.result()

"""What a job does while the model runs: one thread reads the next row, another writes the one before."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from spes_hf.jobs.shards import ShardWriter

RowT = TypeVar("RowT")


def read_ahead(indices: Sequence[int], read: Callable[[int], RowT]) -> Generator[tuple[int, RowT], None, None]:
    """Yield every index, and what is read for it; meanwhile a thread reads for the next one, and no further.

    An error in reading comes up where the row would. The thread ends with the iterator; close it.

    Args:
        indices: Of the rows.
        read: Reads one.
    """
    with ThreadPoolExecutor(1, "read ahead") as thread:
        coming = [thread.submit(read, index) for index in indices[:1]]
        for position, index in enumerate(indices):
            row = coming.pop().result()
            coming += [thread.submit(read, following) for following in indices[position + 1 : position + 2]]
            yield index, row


class BackgroundWriter:
    """Has a thread add rows to a `ShardWriter`, one at a time: a row waits until the one before is added.

    An error in adding comes up with the next row, or in `flush`. Where rows are not to wait in memory
    (``flush_seconds=0``), `add` returns once they are on disk.

    Args:
        writer: Where rows go; nobody else may add to it meanwhile.
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
        """Take a finished row, as `ShardWriter.add`.

        Raises:
            ShardError: If the row before cannot be written, or this one at once.
        """
        self._wait()
        self._adding = self._thread.submit(self._writer.add, index, row)
        if not self._writer.flush_seconds:
            self._wait()

    def flush(self) -> None:
        """Write the rows that wait, if there are any.

        Raises:
            ShardError: If they cannot be written.
        """
        self._wait()
        self._writer.flush()

    def _wait(self) -> None:
        adding, self._adding = self._adding, None
        if adding is not None:
            adding.result()

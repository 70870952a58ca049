"""Finished rows on disk: Parquet files, each either complete or absent.

A process writes its finished rows to a file with a hidden name, then renames the file in one step. Names end in the
number of rows, so a listing shows the progress. No file is changed in place, so processes need no coordination, and a
killed process leaves a hidden file behind at most. Only `drop_repeated` deletes files, once all their rows are in
others.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spes_hf.errors import SpesError
from spes_hf.files import whole_file

FOLDER = "data"
INDEX = "row_index"

MAX_ROWS = 1_000
MAX_BYTES = 1 << 26
FLUSH_SECONDS = 60.0
LONG_SECONDS = 1_200.0


class ShardError(SpesError, OSError):
    """Finished rows cannot be written or read."""


@dataclass
class Finished:
    """The rows in the shards.

    Attributes:
        indices: Indices of the finished rows of the dataset.
        failures: Index, id and error of the rows that failed.
        reached_length_limit: Index and id of the rows with a text cut by a length limit.
    """

    indices: set[int] = field(default_factory=set)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    reached_length_limit: list[tuple[int, str]] = field(default_factory=list)


def shard_files(out: Path) -> list[Path]:
    """Return the complete shards of a job, sorted."""
    return sorted(path for path in (out / FOLDER).glob("*.parquet") if not path.name.startswith("."))


def count_rows(out: Path) -> int:
    """Return the number of rows in the shards, according to their names."""
    try:
        names = [entry.name for entry in os.scandir(out / FOLDER)]
    except OSError:
        return 0
    return sum(_rows_of(name) for name in names if name.endswith(".parquet") and not name.startswith("."))


def remove_litter(out: Path, mine: Callable[[int], bool]) -> None:
    """Remove temporary files that dead processes left behind.

    Args:
        out: Folder of the job.
        mine: Returns whether the temporary files of the process with this index may be removed.
    """
    for path in (out / FOLDER).glob(".*.tmp"):
        rank = path.name[1:].split("-")[0]
        if not rank.isdigit() or mine(int(rank)):
            path.unlink(missing_ok=True)


def read_finished(out: Path, id_column: str | None = None) -> Finished:
    """Return the rows in the shards of a job; duplicate rows count once.

    Raises:
        ShardError: If a shard cannot be read.
    """
    finished = Finished()
    for path in shard_files(out):
        columns = _columns(path, (INDEX, "error", "reached_length_limit", id_column))
        for i, index in enumerate(columns.get(INDEX, ())):
            if index in finished.indices:
                continue
            finished.indices.add(index)
            name = str(columns[id_column][i]) if id_column in columns else str(index)
            if columns["error"][i]:
                finished.failures.append((index, name, columns["error"][i]))
            elif columns.get("reached_length_limit", {i: False})[i]:
                finished.reached_length_limit.append((index, name))
    finished.failures.sort()
    finished.reached_length_limit.sort()
    return finished


def drop_repeated(out: Path) -> set[int]:
    """Remove duplicate rows from the shards, and return the indices of all rows.

    A row occurs twice if a process outlived its launcher, or two jobs ran at once; both wrote the same content. The
    rows to keep are written to a new file before the old one is deleted. If that fails (a full disk, a file that has
    vanished), the duplicates stay: readers count each row once.

    Raises:
        ShardError: If a shard cannot be read.
    """
    seen: set[int] = set()
    for path in shard_files(out):
        indices = _columns(path, (INDEX,)).get(INDEX, [])
        new = [i for i, index in enumerate(indices) if index not in seen]
        seen.update(indices)
        if len(new) == len(indices):
            continue
        try:
            if new:
                name = f"{path.name.rsplit('-', 2)[0]}-{uuid.uuid4().hex[:12]}-{len(new)}.parquet"
                _write(pq.read_table(path).take(new), path.with_name(name))
            path.unlink(missing_ok=True)
        except (OSError, ValueError, pa.ArrowException):
            continue
    return seen


class ShardWriter:
    """Collects finished rows and writes them as shards from time to time.

    Writes a shard when it has enough rows or bytes, or when the oldest row has waited for a minute (after the first
    twenty minutes: a twentieth of the time since the start). This limits what a killed process loses, and keeps the
    number of files small.

    Args:
        out: Folder of the job.
        inputs: Returns the kept columns of the dataset for given rows, as an Arrow table.
        schema: Schema of the shards.
        rank: Index of this process.
        flush_seconds: Maximum wait of a finished row in the first twenty minutes; later it grows in proportion.
    """

    def __init__(
        self,
        out: Path,
        inputs: Callable[[list[int]], pa.Table],
        schema: pa.Schema,
        rank: int,
        flush_seconds: float = FLUSH_SECONDS,
    ):
        self.folder = out / FOLDER
        self.inputs = inputs
        self.schema = schema
        self.rank = rank
        self.flush_seconds = flush_seconds
        self.written = 0
        self._rows: list[dict[str, Any]] = []
        self._indices: list[int] = []
        self._bytes = 0
        self._started = self._oldest = time.monotonic()

    @property
    def waiting(self) -> int:
        """Number of finished rows that are only in memory."""
        return len(self._rows)

    def add(self, index: int, row: dict[str, Any]) -> None:
        """Take a finished row, and write a shard if one is due.

        Args:
            index: Index of the row in the dataset.
            row: The columns that were added to it.

        Raises:
            ShardError: If the shard cannot be written; rows written earlier are safe.
        """
        now = time.monotonic()
        if not self._rows:
            self._oldest = now
        self._indices.append(index)
        self._rows.append({name: _plain(value) for name, value in row.items()})
        self._bytes += sum(len(value) for value in row.values() if isinstance(value, (bytes, str)))
        patience = self.flush_seconds * max(1.0, (now - self._started) / LONG_SECONDS)
        if len(self._rows) >= MAX_ROWS or self._bytes >= MAX_BYTES or now - self._oldest >= patience:
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows, if any.

        Raises:
            ShardError: If they cannot be written.
        """
        if not self._rows:
            return
        table = self._table()
        name = f"{self.rank:05d}-{uuid.uuid4().hex[:12]}-{len(self._rows)}.parquet"
        try:
            _write(table, self.folder / name)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise ShardError(
                f"{'no space left for' if full else 'cannot write'} {len(self._rows)} finished rows "
                f"({table.nbytes / 1e6:.1f} MB) in {str(self.folder)!r}: {error}. Rows written earlier are safe: "
                f"{'free some space' if full else 'fix the cause'} and start the job again; it resumes from there"
            ) from error
        count = len(self._rows)
        self._rows, self._indices, self._bytes = [], [], 0
        self.written += count  # last, so that a concurrent reader counts no row twice

    def _table(self) -> pa.Table:
        """Return the waiting rows, with their columns from the dataset."""
        kept = self.inputs(self._indices)
        added = {name: [row.get(name) for row in self._rows] for name in self.schema.names if name != INDEX}
        columns = []
        for entry in self.schema:
            if entry.name == INDEX:
                column = pa.array(self._indices, entry.type)
            elif entry.name in kept.column_names:
                column = kept[entry.name].cast(entry.type)
            else:
                column = pa.array(added[entry.name], entry.type)
            columns.append(column)
        return pa.Table.from_arrays(columns, schema=self.schema)


def row_order(indices: Sequence[int]) -> np.ndarray:
    """Return the positions of the rows in the shards, in the order of the dataset, each row once."""
    return np.unique(np.asarray(indices, dtype=np.int64), return_index=True)[1]


def _write(table: pa.Table, path: Path) -> None:
    """Write a shard completely or not at all."""
    with whole_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def _columns(path: Path, names: Sequence[str | None]) -> dict[str, list[Any]]:
    """Return the named columns that a shard has; empty if the shard has been deleted meanwhile."""
    try:
        metadata = pq.read_metadata(path)
        if metadata.num_rows > MAX_ROWS:
            raise ValueError(f"its header promises {metadata.num_rows} rows, but a shard has at most {MAX_ROWS}")
        known = set(metadata.schema.to_arrow_schema().names)
        found = dict(pq.read_table(path, columns=[name for name in names if name in known]).to_pydict())
        if not {INDEX, "error"}.intersection(names) <= found.keys():
            raise ValueError(f"its columns are {', '.join(sorted(known))}")
        if not all(type(index) is int for index in found[INDEX]):
            raise ValueError(f"its column {INDEX} has values that are not integers")
        if not all(isinstance(entry, (str, type(None))) for entry in found.get("error", ())):
            raise ValueError("its column error has values that are not text")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, MemoryError, OverflowError, pa.ArrowException) as error:
        raise ShardError(
            f"shard {str(path)!r} cannot be read: {error}. Delete it and start the job again to recompute its rows"
        ) from error


def _rows_of(name: str) -> int:
    count = name.removesuffix(".parquet").rsplit("-", 1)[-1]
    return int(count) if count.isdigit() else 0


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value

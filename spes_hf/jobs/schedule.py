"""Which process does which utterances: split by estimated cost, the same way on every machine."""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import soundfile
import torch

from spes_hf.audio.locations import is_address
from spes_hf.errors import ConfigError
from spes_hf.runtime.ranks import ALONE, Ranks
from spes_hf.runtime.workers import count_cores, count_launched

# Cost of the decoder per second of speech, relative to the encoder's cost per second of its window.
DECODER_SHARE = 0.4
PCM_BYTES_PER_SECOND = 32_000
# For MP4, WebM and other formats with headers that soundfile cannot read, and for remote recordings.
CODED_BYTES_PER_SECOND = 16_000
TYPICAL_SECONDS = 10.0

# Share of the time for an utterance that every process spends even if several share it: to generate the text, segment
# patches and run the clean passes.
UNSHARED = 0.15
# Maximum number of shared rows per process. Sharing must bring the time below this fraction to be worth it.
MOST_SHARED = 4
WORTH_SHARING = 0.95


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Attributes:
        index: Index of the process, from 0.
        count: Number of processes.
        together: Whether they were launched together and can communicate.
    """

    index: int
    count: int
    together: bool

    @property
    def ranks(self) -> Ranks:
        """The processes if they can communicate, in the form that `spes_hf.explain` needs to share an utterance."""
        from accelerate import PartialState

        return Ranks.of(PartialState()) if self.together else ALONE


def find_place(process_index: int | None = None, num_processes: int | None = None) -> Place:
    """Return this process's place, as given by the caller or else by the launcher (``accelerate launch``, torchrun).

    Raises:
        ConfigError: If only one of the two arguments is given, or the index is out of range.
    """
    if process_index is None and num_processes is None:
        from accelerate import PartialState

        # Without cpu=True, each process on a machine without an accelerator would believe that it is the only one.
        state = PartialState(cpu=not torch.accelerator.is_available())
        launched = os.environ.get("WORLD_SIZE", "1")
        if launched.isdigit() and int(launched) > state.num_processes == 1:
            raise ConfigError(
                f"WORLD_SIZE is {launched}, but Accelerate knows of only one process; do not create an Accelerator or "
                "PartialState before this call, or pass process_index and num_processes"
            )
        return Place(state.process_index, state.num_processes, state.num_processes > 1)
    if process_index is None or num_processes is None or not 0 <= process_index < num_processes:
        raise ConfigError(
            f"process_index is {process_index!r} and num_processes is {num_processes!r}; allowed: both None (the "
            "launcher sets them), or 0 <= process_index < num_processes"
        )
    return Place(process_index, num_processes, False)


def advise_threads(together: bool) -> str | None:
    """Return advice if the thread count does not match the cores of this machine; None if it does.

    Args:
        together: Whether a launcher started the processes; if so, too few threads (idle cores) also count.
    """
    cores, processes = count_cores(), count_launched()
    threads, fitting = torch.get_num_threads(), max(1, cores // processes)
    # torch uses one thread per physical core, which may count as two cores here.
    if threads <= fitting and (not together or 2 * threads >= fitting):
        return None
    return (
        f"thread count does not match the cores: {processes} processes on this machine with {threads} threads each, "
        f"{cores} cores; start them with OMP_NUM_THREADS={fitting}"
    )


@dataclass(frozen=True)
class Work:
    """Which process does which rows.

    Attributes:
        shared: Rows that all processes do together, one after the other, before their own; the most expensive first.
        own: Rows that each process does alone.
    """

    shared: list[int]
    own: list[list[int]]


def divide_work(costs: Sequence[float], todo: Sequence[int], parts: int) -> Work:
    """Return which process does which rows, so that all processes finish at about the same time.

    Rows are shared if some processes would otherwise sit idle while others are busy: with few rows, or a few very long
    ones. A shared row costs each process its part of the work, plus the work that cannot be shared.

    Args:
        costs: Cost of every row of the dataset.
        todo: Indices of the rows to do.
        parts: Number of processes.

    Returns:
        The work. The same arguments give the same result everywhere.
    """
    by_cost = sorted(todo, key=lambda i: (-costs[i], i))
    before = list(accumulate((costs[i] for i in by_cost), initial=0.0))
    most = range(min(len(by_cost), MOST_SHARED * parts) + 1)

    def duration(shared: int) -> float:
        alone = by_cost[shared:]
        if len(alone) <= MOST_SHARED * parts:
            longest = max(sum(costs[i] for i in share) for share in split_by_cost(costs, alone, parts))
        else:  # this many rows spread evenly, unless one of them is longer than an even share
            longest = max((before[-1] - before[shared]) / parts, costs[alone[0]])
        return (UNSHARED + (1 - UNSHARED) / parts) * before[shared] + longest

    durations = [duration(count) for count in most]
    shared = next(count for count in most if WORTH_SHARING * durations[count] <= min(durations))
    return Work(by_cost[:shared], split_by_cost(costs, by_cost[shared:], parts))


def split_by_cost(costs: Sequence[float], todo: Sequence[int], parts: int) -> list[list[int]]:
    """Return which rows each process does: assigns the most expensive rows first, each to the least loaded process.

    Args:
        costs: Cost of every row of the dataset.
        todo: Indices of the rows to do.
        parts: Number of processes.

    Returns:
        Indices for each process, ascending. The same arguments give the same lists everywhere.
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0.0, part) for part in range(parts)]
    for index in sorted(todo, key=lambda i: (-costs[i], i)):
        load, part = heapq.heappop(loads)
        shares[part].append(index)
        heapq.heappush(loads, (load + costs[index], part))
    return [sorted(share) for share in shares]


def estimate_costs(
    dataset: Any, audio_column: str, window_s: float | None = None, duration_column: str = "duration"
) -> list[float]:
    """Return the cost of every row, in seconds of audio that the encoder reads in each pass.

    Args:
        dataset: A `datasets.Dataset`.
        audio_column: The column with the audio.
        window_s: Fixed length that the encoder reads, whatever the audio's length (Whisper: 30 s); None: the audio's
            own length.
        duration_column: The column with the length in seconds; if it is missing, file headers and sizes are used.
    """
    arrow = dataset.with_format("arrow")
    if duration_column in dataset.column_names and str(dataset.features[duration_column].dtype).startswith(
        ("float", "int", "uint")
    ):
        durations = [float(d or 0) for batch in _batches(arrow, duration_column) for d in batch.to_pylist()]
    else:
        durations = _without_gaps([d for batch in _batches(arrow, audio_column) for d in _durations(batch)])
    durations = [d if math.isfinite(d) else 0.0 for d in durations]
    windows = durations if window_s is None else [max(1, math.ceil(d / window_s)) * window_s for d in durations]
    return [read + DECODER_SHARE * duration for read, duration in zip(windows, durations, strict=True)]


def _without_gaps(durations: list[float]) -> list[float]:
    """Return the lengths, with NaN replaced by the mean of the known lengths."""
    known = [d for d in durations if d > 0]
    typical = sum(known) / len(known) if known else TYPICAL_SECONDS
    return [typical if math.isnan(d) else d for d in durations]


def _batches(arrow: Any, column: str) -> Any:
    for batch in arrow.select_columns(column).iter(1000):
        yield batch[column].combine_chunks()


def _durations(audio: pa.Array) -> list[float]:
    """Return the lengths of a column of audio in seconds, without reading the sound.

    0 for unreadable entries, which will fail later; NaN for remote recordings.
    """
    audio = audio.storage if isinstance(audio, pa.ExtensionArray) else audio
    if isinstance(audio, pa.ChunkedArray):
        return [d for chunk in audio.chunks for d in _durations(chunk)]
    if pa.types.is_struct(audio.type):
        names = {audio.type.field(i).name for i in range(audio.type.num_fields)}
        if "duration" in names:
            return [float(d or 0) for d in pc.struct_field(audio, "duration").to_pylist()]
        if {"array", "sampling_rate"} <= names:
            counts = pc.list_value_length(pc.struct_field(audio, "array")).to_pylist()
            rates = pc.struct_field(audio, "sampling_rate").to_pylist()
            return [(count or 0) / rate if rate else 0.0 for count, rate in zip(counts, rates, strict=True)]
        sizes = _lengths(pc.struct_field(audio, "bytes")) if "bytes" in names else [None] * len(audio)
        paths = pc.struct_field(audio, "path").to_pylist() if "path" in names else [None] * len(audio)
        pairs = zip(sizes, paths, strict=True)
        return [size / PCM_BYTES_PER_SECOND if size else _length(path) for size, path in pairs]
    if pa.types.is_string(audio.type) or pa.types.is_large_string(audio.type):
        return [_length(path) for path in audio.to_pylist()]
    if pa.types.is_binary(audio.type) or pa.types.is_large_binary(audio.type):
        return [(size or 0) / PCM_BYTES_PER_SECOND for size in _lengths(audio)]
    if pa.types.is_list(audio.type) or pa.types.is_large_list(audio.type):
        if pa.types.is_list(audio.type.value_type) or pa.types.is_large_list(audio.type.value_type):  # channels
            counts = [len(row) and max(len(row), len(row[0].values or ())) for row in map(_row, audio)]
        else:
            counts = [size or 0 for size in pc.list_value_length(audio).to_pylist()]
        return [count * 2 / PCM_BYTES_PER_SECOND for count in counts]
    return [0.0] * len(audio)


def _lengths(content: pa.Array) -> list[int | None]:
    """Return the number of bytes in every value."""
    return [None] * len(content) if pa.types.is_null(content.type) else pc.binary_length(content).to_pylist()


def _length(path: str | None) -> float:
    """Return the length of a recording from its header or size; 0 for an unreadable one, which will fail later."""
    if is_address(path):
        return math.nan
    try:
        return float(soundfile.info(path).duration) if path else 0.0
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        pass
    try:
        return os.path.getsize(path or "") / CODED_BYTES_PER_SECOND
    except (OSError, ValueError):
        return 0.0


def _row(entry: pa.Scalar) -> Any:
    return entry.values if entry.is_valid else ()

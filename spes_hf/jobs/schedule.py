"""Who does what: utterances split by estimated cost, the same way on every machine."""

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

# A pass through the decoder, per second of speech, in the time that the encoder takes for a second of its window.
DECODER_SHARE = 0.4
PCM_BYTES_PER_SECOND = 32_000
# Of MP4, WebM and others whose header soundfile does not read, and of recordings that lie elsewhere.
CODED_BYTES_PER_SECOND = 16_000
TYPICAL_SECONDS = 10.0

# Of the time that an utterance takes one process, the part that each of several takes as well: it writes the text,
# looks for patches, runs the clean passes.
UNSHARED = 0.15
# Rows that are shared at most, for each process; and the share of the time that must be saved to share any.
MOST_SHARED = 4
WORTH_SHARING = 0.95


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Attributes:
        index: Its index, from 0.
        count: How many there are.
        together: Whether they were launched together and can talk.
    """

    index: int
    count: int
    together: bool

    @property
    def ranks(self) -> Ranks:
        """The processes, if they can talk, as `spes_hf.explain` needs them to share an utterance."""
        from accelerate import PartialState

        return Ranks.of(PartialState()) if self.together else ALONE


def find_place(process_index: int | None = None, num_processes: int | None = None) -> Place:
    """Return the place that the caller, or else the launcher (``accelerate launch``, torchrun), gave this process.

    Raises:
        ConfigError: If only one of the two is given, or the index is out of range.
    """
    if process_index is None and num_processes is None:
        from accelerate import PartialState

        # Without cpu=True, processes on a machine that has no accelerator would each believe to be alone.
        state = PartialState(cpu=not torch.accelerator.is_available())
        launched = os.environ.get("WORLD_SIZE", "1")
        if launched.isdigit() and int(launched) > state.num_processes == 1:
            raise ConfigError(
                f"WORLD_SIZE is {launched}, but Accelerate knows of one process; make no Accelerator or PartialState "
                "before, or pass process_index and num_processes"
            )
        return Place(state.process_index, state.num_processes, state.num_processes > 1)
    if process_index is None or num_processes is None or not 0 <= process_index < num_processes:
        raise ConfigError(
            f"process_index is {process_index!r} and num_processes {num_processes!r}; allowed: both None (the launcher "
            "says), or an index from 0 and a number above it"
        )
    return Place(process_index, num_processes, False)


def advise_threads(together: bool) -> str | None:
    """Return what to do if the threads of the processes on this machine do not suit its cores; None: they do.

    Args:
        together: Whether a launcher started the processes: then a warning also covers threads that leave cores idle.
    """
    cores, processes = count_cores(), count_launched()
    threads, fitting = torch.get_num_threads(), max(1, cores // processes)
    # torch takes one thread for each physical core, which may be two of these.
    if threads <= fitting and (not together or 2 * threads >= fitting):
        return None
    return (
        f"processes on this machine: {processes}, threads of each: {threads}, cores: {cores}; start them with "
        f"OMP_NUM_THREADS={fitting}"
    )


@dataclass(frozen=True)
class Work:
    """Who does which rows.

    Attributes:
        shared: Rows that all processes do together, one after the other, before their own; the most expensive first.
        own: Rows that each process does by itself.
    """

    shared: list[int]
    own: list[list[int]]


def divide_work(costs: Sequence[float], todo: Sequence[int], parts: int) -> Work:
    """Return who does which rows, so that all are done at about the same time.

    Rows are shared where processes would have nothing left to do while others are busy: of few rows, or with a few very
    long ones. A shared row costs every process its part, and what cannot be shared.

    Args:
        costs: Of every row of the data set.
        todo: Indices of the rows to do.
        parts: How many processes there are.

    Returns:
        The work. The same arguments give the same everywhere.
    """
    by_cost = sorted(todo, key=lambda i: (-costs[i], i))
    before = list(accumulate((costs[i] for i in by_cost), initial=0.0))
    most = range(min(len(by_cost), MOST_SHARED * parts) + 1)

    def duration(shared: int) -> float:
        alone = by_cost[shared:]
        if len(alone) <= MOST_SHARED * parts:
            longest = max(sum(costs[i] for i in share) for share in split_by_cost(costs, alone, parts))
        else:  # so many are spread evenly, unless one of them is longer than all that others do
            longest = max((before[-1] - before[shared]) / parts, costs[alone[0]])
        return (UNSHARED + (1 - UNSHARED) / parts) * before[shared] + longest

    durations = [duration(count) for count in most]
    shared = next(count for count in most if WORTH_SHARING * durations[count] <= min(durations))
    return Work(by_cost[:shared], split_by_cost(costs, by_cost[shared:], parts))


def split_by_cost(costs: Sequence[float], todo: Sequence[int], parts: int) -> list[list[int]]:
    """Return which rows each process does: the most expensive first, always to the one with the least to do.

    Args:
        costs: Of every row of the data set.
        todo: Indices of the rows to do.
        parts: How many processes there are.

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
    """Return what every row costs, in seconds of audio that the encoder reads in each pass.

    Args:
        dataset: A `datasets.Dataset`.
        audio_column: Where the audio is.
        window_s: Length that the encoder reads at once whatever the audio's length is (Whisper: 30 s); None: the
            audio's own.
        duration_column: Where the length in seconds is, if the data set knows it; else headers and sizes tell.
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
    """Return the lengths with the mean of those that are known where one is NaN."""
    known = [d for d in durations if d > 0]
    typical = sum(known) / len(known) if known else TYPICAL_SECONDS
    return [typical if math.isnan(d) else d for d in durations]


def _batches(arrow: Any, column: str) -> Any:
    for batch in arrow.select_columns(column).iter(1000):
        yield batch[column].combine_chunks()


def _durations(audio: pa.Array) -> list[float]:
    """Return the lengths of a column of audio in seconds, without reading the sound.

    0 for what is for later to fail on; NaN for recordings that lie elsewhere.
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
    """Return how many bytes there are in every value."""
    return [None] * len(content) if pa.types.is_null(content.type) else pc.binary_length(content).to_pylist()


def _length(path: str | None) -> float:
    """Return the length of a recording by its header or size; 0 for one that is for later to fail on."""
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

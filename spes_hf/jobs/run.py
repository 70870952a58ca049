"""Explains a whole corpus on any number of processes, devices and nodes, in a job that can be killed and resumed."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spes_hf.audio.stored import row_of
from spes_hf.corpora.failures import describe_error, is_fatal
from spes_hf.corpora.transforms import Explain
from spes_hf.errors import ConfigError
from spes_hf.jobs.ahead import BackgroundWriter, read_ahead
from spes_hf.jobs.job import SUMMARY, JobSummary, claim_folder, describe_job, write_json
from spes_hf.jobs.progress import JobBar, wait_for_others
from spes_hf.jobs.schedule import (
    Place,
    Work,
    advise_threads,
    divide_work,
    estimate_costs,
    find_place,
    split_by_cost,
)
from spes_hf.jobs.shards import (
    FLUSH_SECONDS,
    INDEX,
    ShardError,
    ShardWriter,
    count_rows,
    drop_repeated,
    read_finished,
    remove_litter,
    row_order,
    shard_files,
)
from spes_hf.methods import ExplainConfig
from spes_hf.rows import RowTransform
from spes_hf.runtime.batching import BatchSize

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

__all__ = ["JobSummary", "explain_dataset", "load_explained", "map_rows"]


def explain_dataset(
    model: Any,
    processor: Any,
    dataset: Dataset,
    out: str | Path,
    config: ExplainConfig | None = None,
    *,
    metrics: Sequence[RowTransform] = (),
    audio_column: str = "audio",
    id_column: str = "id",
    text_column: str | None = None,
    duration_column: str = "duration",
    sampling_rate: int | None = None,
    language: str | None = None,
    task: str | None = None,
    tgt_lang: str | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    batch_size: BatchSize = None,
    seed: int = 0,
    progress: bool = True,
    process_index: int | None = None,
    num_processes: int | None = None,
    flush_seconds: float = FLUSH_SECONDS,
    segment: str | None = None,
    over: str = "spectrogram",
    autocast: str | None = None,
    compile: bool = False,
    prompt: str | None = None,
) -> JobSummary:
    """Explain a whole dataset into a folder, and return a summary.

    Call it in every process of ``accelerate launch`` or torchrun, with the model on the process's own device. The work
    is split by estimated cost. Finished rows are written to ``out/data`` as Parquet files. If a job is killed, start it
    again with any number of processes: rows on disk are not computed again. An utterance that fails becomes a row with
    an "error". Rows do not depend on the process that computes them; `load_explained` reads them. While the model runs,
    one thread reads the audio of the next row and another writes finished rows. On CPU, warns when the thread count
    does not match the available cores; under a launcher, only the first process warns.

    Args:
        model: A speech-to-text model of a known family, the same in every process.
        processor: Its processor; None for a pipeline's own.
        dataset: A `datasets.Dataset`, the same in every process. All columns except the audio go into the rows.
        out: Folder of the job.
        config: Method and settings; None for `SpesConfig()`.
        metrics: What to compute for every explanation, in this order, such as ``[Deletion(model, processor), Size()]``.
        audio_column: The column with the audio.
        id_column: The column with the id of the utterance; "id" may be missing.
        text_column: The column with a text to explain instead of the model's own output; None: none.
        duration_column: The column with the length of the audio, in seconds; if it is missing, headers are read.
        sampling_rate: Rate in Hz of bare samples that are not at the processor's rate.
        language: Language of the speech, for families whose ``generate()`` takes it.
        task: "transcribe" or "translate", likewise.
        tgt_lang: Language of the text, likewise.
        generate_kwargs: Further arguments of ``model.generate()``.
        batch_size: Perturbed copies per forward pass; "auto" or None: found automatically, and remembered.
        seed: Same seed, same masks.
        progress: Whether process 0 shows a progress bar for the whole job.
        process_index: Index of this process among processes that were not launched together, such as a Slurm job
            array; None: set by the launcher.
        num_processes: Number of such processes.
        flush_seconds: How long a finished row may wait in memory at first.
        segment: "pauses" to cut audio where speech pauses; None: audio longer than the model's window is handled the
            model's own way. The row of a recording contains all its windows; a killed job keeps its finished windows.
        over: "encoder" to compute saliency over the encoder's output too, as for `explain`.
        autocast: As for `explain`.
        compile: As for `explain`.
        prompt: Instruction for speech LLMs, as for `explain`.

    Returns:
        The summary. If the processes were launched together, process 0 waits for the others and reports; otherwise
        the process that finishes last reports.

    Raises:
        ConfigError: If an argument has a value that is not allowed, or ``out`` contains another job.
        RankError: If another process cannot start, or was given something else.
        ShardError: If rows cannot be written; rows written earlier are safe.
        UnsupportedModelError: If the family has no adapter.

    Examples:
        >>> print(explain_dataset(model, processor, dataset, folder / "job", SpesConfig.fast(), progress=False))
        2 of 2 rows explained in ...job
    """
    explain = Explain(
        model,
        processor,
        config,
        audio_column=audio_column,
        id_column=id_column,
        text_column=text_column,
        sampling_rate=sampling_rate,
        language=language,
        task=task,
        tgt_lang=tgt_lang,
        generate_kwargs=generate_kwargs,
        batch_size=batch_size,
        seed=seed,
        segment=segment,
        over=over,
        autocast=autocast,
        compile=compile,
        prompt=prompt,
    )
    explain.recordings = Path(out) / "recordings"
    adapter = explain.explainer.adapter
    place = find_place(process_index, num_processes)
    with place.ranks.together():
        _check_dataset(dataset)
        for name in (audio_column, text_column):
            if name is not None and name not in dataset.column_names:
                raise ConfigError(f"dataset has no column {name!r}; it has {', '.join(dataset.column_names)}")
    # Among processes launched together, only the first warns; others do not know of each other, so each warns.
    speaks = place.index == 0 or not place.together
    advice = advise_threads(place.together) if speaks and adapter.device.type == "cpu" else None
    if advice is not None:
        warnings.warn(advice, stacklevel=2)
    summary = map_rows(
        dataset,
        [explain, *metrics],
        out,
        costs=lambda: estimate_costs(dataset, audio_column, adapter.window_s, duration_column),
        audio_column=audio_column,
        id_column=id_column,
        progress=progress,
        process_index=process_index,
        num_processes=num_processes,
        flush_seconds=flush_seconds,
    )
    if summary.complete and summary.reports:
        shutil.rmtree(explain.recordings, ignore_errors=True)  # their content is in the rows now
    return summary


def map_rows(
    dataset: Dataset,
    transforms: Sequence[RowTransform],
    out: str | Path,
    *,
    costs: Callable[[], Sequence[float]] | None = None,
    audio_column: str | None = None,
    id_column: str | None = None,
    progress: bool = True,
    process_index: int | None = None,
    num_processes: int | None = None,
    flush_seconds: float = FLUSH_SECONDS,
) -> JobSummary:
    """Run any transforms over a dataset, as `explain_dataset` runs `Explain`.

    Args:
        dataset: A `datasets.Dataset`, the same in every process.
        transforms: Applied one after the other; if one raises an error, the row is recorded as failed.
        out: Folder of the job.
        costs: Returns the cost of every row; None: all rows cost the same.
        audio_column: A column that does not go into the rows.
        id_column: The column that names a row in the summary; None: its index.
        progress: Whether process 0 shows a progress bar for the whole job.
        process_index: As for `explain_dataset`.
        num_processes: As for `explain_dataset`.
        flush_seconds: How long a finished row may wait in memory at first.

    Examples:
        >>> transform = Explain(model, processor, EnergyConfig())
        >>> summary = map_rows(dataset, [transform, Size()], folder / "mapped", audio_column="audio", progress=False)
        >>> summary.finished, summary.failures
        (2, ())
    """
    out, place = Path(out), find_place(process_index, num_processes)
    sharing = transforms[0] if transforms and isinstance(transforms[0], Explain) else None
    with place.ranks.together():
        _check_dataset(dataset)
        features = _features(dataset, transforms, audio_column)
        shared, todo = _prepare(dataset, transforms, out, place, costs, audio_column, sharing is not None)
    arrow = dataset.with_format("arrow")
    kept = arrow.select_columns([name for name in dataset.column_names if name != audio_column])

    def inputs(indices: list[int]) -> pa.Table:
        return kept[indices]

    added = {name: None for name in features if name != INDEX and name not in dataset.column_names}

    def read(index: int) -> dict[str, Any]:
        row = row_of(arrow[index], dataset.features)
        return transforms[0].prepare(row) if transforms else row

    shards = ShardWriter(out, inputs, features.arrow_schema, place.index, flush_seconds)
    ranks, bar_of_job = place.ranks, JobBar(out, len(dataset), shards, shown=progress and place.index == 0)
    with bar_of_job as bar, BackgroundWriter(shards) as writer, closing(read_ahead(todo, read)) as rows:

        def keep(index: int, row: dict[str, Any]) -> None:
            writer.add(index, {name: row.get(name) for name in added})
            bar.update()

        try:
            explained = []
            for number, index in enumerate(shared):
                assert sharing is not None
                with sharing.shared_by(ranks):
                    row = _apply([sharing], row_of(arrow[index], dataset.features), added)
                if number % place.count == place.index:
                    explained.append((index, row))
            for index, row in explained:  # only now, so that no process waits for another's metrics
                keep(index, _apply(transforms[1:], row, added))
            for index, given in rows:
                keep(index, _apply(transforms, given, added))
        except ShardError:
            raise
        except BaseException:
            writer.flush()
            raise
        writer.flush()
        bar.update()
        if place.together and place.index == 0:
            wait_for_others(out, len(dataset), bar)
    finished = read_finished(out, id_column)
    complete = len(finished.indices) == len(dataset)
    summary = JobSummary.of(out, len(dataset), finished, place.index == 0 if place.together else complete)
    if complete and summary.reports:
        write_json(out / SUMMARY, summary.to_dict())
        if count_rows(out) > len(finished.indices):
            drop_repeated(out)
    return summary


def load_explained(out: str | Path, cache_dir: str | Path | None = None) -> Dataset:
    """Return the rows of a job in the order of the dataset, each row once; for an unfinished job, those done so far.

    Args:
        out: Folder of the job.
        cache_dir: Where `datasets` keeps its tables.

    Raises:
        ConfigError: If the folder has no rows.

    Examples:
        >>> summary = explain_dataset(model, processor, dataset, folder / "loaded", EnergyConfig(), progress=False)
        >>> load_explained(folder / "loaded")["id"][:]
        ['1', '2']
    """
    from datasets import Dataset

    files = shard_files(Path(out))
    if not files:
        raise ConfigError(f"out is {str(out)!r}, which has no finished rows; pass the folder of explain_dataset()")
    rows = Dataset.from_parquet([str(path) for path in files], cache_dir=None if cache_dir is None else str(cache_dir))
    return rows.select(row_order(rows.with_format("numpy")[INDEX][:]))


def _check_dataset(dataset: Any) -> None:
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise ConfigError(
            f"dataset is a {type(dataset).__name__}; pass a datasets.Dataset: one split, not streaming (for a stream, "
            "use dataset.map(Explain(…)))"
        )
    if not len(dataset):
        raise ConfigError("dataset has no rows")


def _features(dataset: Dataset, transforms: Sequence[RowTransform], audio_column: str | None) -> Features:
    """Return the features of the rows.

    Raises:
        ConfigError: If the dataset has a column that the job would overwrite.
    """
    from datasets import Features, Value

    kept = {name: kind for name, kind in dataset.features.items() if name != audio_column}
    added: dict[str, Any] = {"error": Value("string")}
    for transform in transforms:
        added |= transform.columns()
    taken = sorted(kept.keys() & {INDEX, *added})
    if taken:
        raise ConfigError(
            f"dataset has the columns {', '.join(taken)}, which the job would overwrite; rename them: "
            f"dataset.rename_column({taken[0]!r}, …)"
        )
    return Features({INDEX: Value("int64"), **kept, **added})


def _prepare(
    dataset: Dataset,
    transforms: Sequence[RowTransform],
    out: Path,
    place: Place,
    costs: Callable[[], Sequence[float]] | None,
    audio_column: str | None,
    sharing: bool,
) -> tuple[list[int], list[int]]:
    """Return the rows that all processes do together, and the rows that this process does alone.

    Processes launched together communicate only before they start: process 0 reads the folder and assigns the remaining
    rows. Separate processes cannot know what the others saw there, so each assigns all rows and then skips the finished
    ones.
    """
    identity = describe_job(dataset, transforms, audio_column)

    def plan() -> Work:
        claim_folder(out, identity)
        if place.together or place.count == 1:
            remove_litter(out, lambda rank: True)
            done = drop_repeated(out)
        else:
            remove_litter(out, lambda rank: rank == place.index or rank >= place.count)
            done = read_finished(out).indices
        prices = [1.0] * len(dataset) if costs is None else costs()
        left = [i for i in range(len(dataset)) if i not in done]
        if place.together and sharing:
            return divide_work(prices, left, place.count)
        if place.together or place.count == 1:
            return Work([], split_by_cost(prices, left, place.count))
        shares = split_by_cost(prices, range(len(dataset)), place.count)
        return Work([], [[i for i in share if i not in done] for share in shares])

    if not place.together:
        return [], plan().own[place.index]
    ranks = place.ranks
    ranks.check_same("model, settings or dataset", identity, "pass the same to every process")
    work = ranks.from_first("the work", plan)
    return work.shared, work.own[place.index]


def _apply(transforms: Sequence[RowTransform], row: dict[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row after all transforms; one that fails leaves its columns empty and sets "error" to the reason."""
    for transform in transforms:
        try:
            row = transform(row)
        except Exception as error:
            if is_fatal(error):
                raise
            row = {**added, **row, "error": f"{transform.key}: {describe_error(error)}"}
    return row

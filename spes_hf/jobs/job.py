"""A corpus job: its identity, so that it resumes where it stopped and never mixes with another; its summary."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from spes_hf.audio.stored import asked_of
from spes_hf.errors import ConfigError
from spes_hf.files import whole_file
from spes_hf.jobs.shards import FOLDER, Finished
from spes_hf.rows import RowTransform

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = "spes_hf.corpus"
FORMAT_VERSION = 1
MANIFEST, SUMMARY = "manifest.json", "summary.json"
SHOWN = 10


@dataclass(frozen=True)
class JobSummary:
    """Progress and failures of a job.

    Attributes:
        out: The job's folder.
        rows: Number of rows in the dataset.
        finished: Number of rows that are done, including failed ones.
        failures: Index, id and error of the rows that failed.
        reached_length_limit: Index and id of the rows with a text cut by a length limit.
        reports: Whether this process reports the result; the others finish silently.

    Examples:
        >>> summary = JobSummary(folder / "job", rows=3, finished=2)
        >>> print(summary)
        2 of 3 rows are done; if no other process is still running, start the job again
        >>> summary.complete, summary.exit_code
        (False, 0)
    """

    out: Path
    rows: int
    finished: int
    failures: tuple[tuple[int, str, str], ...] = ()
    reached_length_limit: tuple[tuple[int, str], ...] = ()
    reports: bool = True

    @classmethod
    def of(cls, out: Path, rows: int, finished: Finished, reports: bool = True) -> JobSummary:
        """Return the summary of the rows in the shards."""
        cut = tuple(finished.reached_length_limit)
        return cls(out, rows, len(finished.indices), tuple(finished.failures), cut, reports)

    @property
    def complete(self) -> bool:
        """Whether every row is done."""
        return self.finished == self.rows

    @property
    def exit_code(self) -> int:
        """1 if the job is complete, rows failed and this process reports the result; else 0.

        The other processes return 0: launchers kill the rest if any process returns something else.
        """
        return int(self.reports and self.complete and bool(self.failures))

    def to_dict(self) -> dict[str, Any]:
        """Return the summary ready for JSON."""
        return {
            "rows": self.rows,
            "finished": self.finished,
            "failed": len(self.failures),
            "failures": [{"row_index": i, "id": name, "error": error} for i, name, error in self.failures],
            "reached_length_limit": [{"row_index": i, "id": name} for i, name in self.reached_length_limit],
        }

    def __str__(self) -> str:
        if not self.complete:
            return (
                f"{self.finished} of {self.rows} rows are done; if no other process is still running, start the job "
                "again"
            )
        lines = [f"{self.rows - len(self.failures)} of {self.rows} rows explained in {self.out}"]
        if self.failures:
            lines.append(f"{len(self.failures)} failed:")
            lines += [f"  {name}: {error}" for _, name, error in self.failures[:SHOWN]]
            lines += [f"  … and {len(self.failures) - SHOWN} more"] * (len(self.failures) > SHOWN)
        if self.reached_length_limit:
            names = [name for _, name in self.reached_length_limit]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{len(names)} reached the length limit: {', '.join(names[:SHOWN])}{more}")
        return "\n".join(lines)


def describe_job(dataset: Dataset, transforms: Sequence[RowTransform], audio_column: str | None) -> dict[str, Any]:
    """Return the identity of a job: its rows, and what is done to them."""
    asked = asked_of(dataset.features.get(audio_column))
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **({"audio_feature": asked} if asked else {}),
        "rows": len(dataset),
        "dataset": dataset_digest(dataset, audio_column),
        "transforms": [transform.identity() for transform in transforms],
    }


def dataset_digest(dataset: Dataset, audio_column: str | None) -> str:
    """Return a digest of the rows: all columns except the audio, and the names of the audio files.

    It does not depend on where the dataset is stored or how it was loaded.
    """
    arrow = dataset.with_format("arrow")
    digest = hashlib.blake2b(digest_size=16)
    for batch in arrow.iter(1000):
        for row in batch.drop_columns([audio_column] if audio_column else []).to_pylist():
            digest.update(json.dumps(row, sort_keys=True, default=repr).encode())
    if audio_column is not None:
        for batch in arrow.select_columns(audio_column).iter(1000):
            digest.update(repr(_names(batch[audio_column].combine_chunks())).encode())
    return digest.hexdigest()


def claim_folder(out: Path, identity: dict[str, Any]) -> None:
    """Create the folder of a job, or check that it belongs to this job.

    Raises:
        ConfigError: If it belongs to another job; the message says what differs.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out is {str(out)!r}, which is not a folder; pass a folder for the rows")
    path = out / MANIFEST
    if path.is_file():
        known = _read_manifest(path)
        try:
            differences = list(_differences(known, json.loads(json.dumps(identity))))
        except RecursionError:
            differences = [f"its {MANIFEST} is nested too deeply"]
        if differences:
            raise ConfigError(
                f"out is {str(out)!r}, which contains another job: {'; '.join(differences[:SHOWN])}. Pass the same "
                "model, settings and dataset to resume that job, or pass another folder"
            )
    elif (out / FOLDER).is_dir() and any((out / FOLDER).iterdir()):
        raise ConfigError(f"out is {str(out)!r}, which has a folder {FOLDER!r} that no job wrote; pass another folder")
    else:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        write_json(path, identity)


def _read_manifest(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"out is {str(path.parent)!r}, where {path.name} is damaged ({type(error).__name__}: {error}); delete the "
            "folder and start again, or pass another folder"
        ) from error


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write the file completely or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def _differences(then: Any, now: Any, where: str = "") -> Iterator[str]:
    """Yield the differences between two JSON values."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*then, *now]):
            yield from _differences(then.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for i, pair in enumerate(zip(then, now, strict=True)):
            yield from _differences(*pair, f"{where}.{i}")
    elif then != now:
        yield f"{where} was {_short(then)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


def _names(audio: Any) -> list[Any]:
    """Return the file names, and the segments of those files, that a column of audio refers to; reads no audio."""
    kind = audio.type
    if pa.types.is_struct(kind):
        fields = [kind.field(i).name for i in range(kind.num_fields)]
        columns = [_names(pc.struct_field(audio, name)) for name in fields if name not in ("bytes", "array")]
        return list(zip(*columns, strict=True))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [os.path.basename(path or "") for path in audio.to_pylist()]
    if pa.types.is_primitive(kind):
        return list(audio.to_pylist())
    return [len(audio)]

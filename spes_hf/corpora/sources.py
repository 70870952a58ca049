"""Loads a corpus by its path or name: MuST-C, a folder of audio, a manifest, a saved dataset, a Hub dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import soundfile

from spes_hf.corpora.mustc import load_mustc
from spes_hf.errors import ConfigError
from spes_hf.files import read_json_lines, read_table

if TYPE_CHECKING:
    from datasets import Dataset


def load_corpus(
    source: str,
    *,
    audio_column: str = "audio",
    pair: str | None = None,
    split: str | None = None,
    name: str | None = None,
    problems: Literal["raise", "skip"] = "raise",
) -> Dataset:
    """Return a corpus without decoding its audio.

    Args:
        source: A folder with MuST-C (with ``pair``), a folder of audio files (with the texts of its metadata.csv or
            metadata.jsonl, if there is one), a .jsonl manifest, a folder written by ``Dataset.save_to_disk()``, or a
            name on the Hub.
        audio_column: The column with the audio; in a manifest, paths relative to the manifest.
        pair: Languages of MuST-C, such as "en-de".
        split: None for "tst-COMMON" of MuST-C, or for the only split of another dataset.
        name: Configuration of a Hub dataset.
        problems: What to do with unusable utterances of MuST-C.

    Raises:
        ConfigError: If there is no such corpus.

    Examples:
        >>> load_corpus(str(corpus), pair="en-de")[0]["transcript"]
        'Tom sells a small picture.'
    """
    from datasets import Audio, DatasetDict, load_dataset, load_from_disk

    path = Path(source).expanduser()
    if pair is not None:
        return load_mustc(path, pair, split or "tst-COMMON", problems=problems)
    if path.suffix.lower() == ".jsonl" and path.is_file():
        return read_listing(path, audio_column, audio_column)
    if path.is_file():
        raise ConfigError(
            f"--dataset is {str(path)!r}, a file; allowed: a folder, a .jsonl manifest, a name on the Hub"
        )
    on_disk = any((path / file).is_file() for file in ("state.json", "dataset_dict.json"))
    if path.is_dir() and not on_disk:
        return read_folder(path if split is None else path / split, audio_column)
    try:
        found: Any = load_from_disk(str(path)) if on_disk else load_dataset(source, name)
    except Exception as error:
        raise ConfigError(f"--dataset {source!r} cannot be loaded: {error}") from error
    if isinstance(found, DatasetDict):
        if split is None and len(found) > 1:
            raise ConfigError(f"--split is missing; {source!r} has {', '.join(map(str, found))}")
        chosen = split or next(iter(found))
        if chosen not in found:
            raise ConfigError(f"--split is {chosen!r}; {source!r} has {', '.join(map(str, found))}")
        found = found[chosen]
    if isinstance(found.features.get(audio_column), Audio):
        found = found.cast_column(audio_column, Audio(decode=False))
    return found


def read_folder(folder: Path, audio_column: str = "audio") -> Dataset:
    """Return the recordings in a folder, with the texts of its metadata.csv or metadata.jsonl if there is one.

    Args:
        folder: The folder; subfolders are searched too.
        audio_column: Name for the column of paths.

    Raises:
        ConfigError: If there is no recording.

    Examples:
        >>> recordings = folder / "recordings"
        >>> recordings.mkdir()
        >>> _ = (recordings / "tom.wav").write_bytes(b"")  # audio is not read before it is needed
        >>> read_folder(recordings)["id"][:]
        ['tom']
    """
    from datasets import Dataset

    for name in ("metadata.jsonl", "metadata.csv"):
        if (folder / name).is_file():
            return read_listing(folder / name, "file_name", audio_column)
    endings = {f".{ending.lower()}" for ending in soundfile.available_formats()}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in endings)
    if not files:
        raise ConfigError(
            f"--dataset is {str(folder)!r}, a folder without audio files; supported endings: {sorted(endings)}"
        )
    ids = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    return Dataset.from_dict({"id": ids, audio_column: [str(path) for path in files]})


def read_listing(path: Path, path_column: str, audio_column: str = "audio") -> Dataset:
    """Return the rows of a listing (JSON lines or CSV); paths in it are relative to it and become the audio.

    Args:
        path: The listing.
        path_column: The column with the paths of the recordings.
        audio_column: Name of that column in the dataset.

    Raises:
        ConfigError: If a row has no path.

    Examples:
        >>> manifest = folder / "manifest.jsonl"
        >>> _ = manifest.write_text('{"sound": "tom.wav", "text": "Tom sells a small picture."}')
        >>> row = read_listing(manifest, "sound")[0]
        >>> row["text"], row["audio"] == str(folder / "tom.wav")
        ('Tom sells a small picture.', True)
    """
    from datasets import Dataset

    rows: list[dict[str, Any]] = [*(read_table(path) if path.suffix.lower() == ".csv" else read_json_lines(path))]
    missing = next((i for i, row in enumerate(rows, 1) if not row.get(path_column)), None)
    if missing is not None or not rows:
        raise ConfigError(
            f"{path}: row {missing or 1} has no {path_column!r}; name the column with the path: --audio-column NAME"
        )
    return Dataset.from_list(
        [
            {k: v for k, v in row.items() if k != path_column} | {audio_column: str(path.parent / row[path_column])}
            for row in rows
        ]
    )

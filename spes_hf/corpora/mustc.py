"""MuST-C as a dataset: long recordings of talks, cut into utterances by offset and duration.

The layout is that of the releases v1 to v3:

    <root>/en-de/data/<split>/wav/ted_1.wav, …
    <root>/en-de/data/<split>/txt/<split>.yaml      one segment per line: duration, offset, speaker_id, wav (v1: rW, uW)
    <root>/en-de/data/<split>/txt/<split>.en, .de   one text per line, in the same order
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import soundfile
import yaml

from spes_hf import __version__, files
from spes_hf.audio.load import SEGMENT_TOLERANCE_S
from spes_hf.errors import ConfigError, SpesError

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

SHOWN_PROBLEMS = 20
STREAM_SHARDS = 64

# A segment as the releases write it; other YAML goes through a parser.
_SEGMENT = re.compile(r"-\s*\{(.*)\}\s*$")
# Characters that YAML forbids or treats as line ends; here only a line feed ends a line.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_ENTRY = re.compile(r"\s*(\w+)\s*:\s*(\"[^\"]*\"|'[^']*'|[^,\"'{}\[\]]+?)\s*(?:,|$)")


class CorpusError(SpesError, ValueError):
    """A corpus on disk is incomplete or damaged.

    Attributes:
        problems: All problems found, each with its file and line.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()):
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class Segment:
    """A line of the segment file.

    Attributes:
        line: Line number, from 1.
        wav: File name of the recording.
        offset: Start of the segment, in seconds.
        duration: Length of the segment, in seconds.
        speaker: Id of the speaker.

    Examples:
        >>> (segment,) = read_segments(next(corpus.rglob("*.yaml")))
        >>> segment.line, segment.offset
        (1, 0.0)
    """

    line: int
    wav: str
    offset: float
    duration: float
    speaker: str


def load_mustc(
    root: str | Path,
    pair: str = "en-de",
    split: str = "tst-COMMON",
    *,
    streaming: bool = False,
    problems: Literal["raise", "skip"] = "raise",
    cache_dir: str | Path | None = None,
) -> Dataset | IterableDataset:
    """Return a split of MuST-C, one row per utterance.

    Columns: "id" (recording and number of the utterance in it), "transcript", "translation", "speaker", "duration" (s)
    and "audio", which says where the sound is: ``{"path", "offset", "duration"}``. `explain`, `Explain` and
    `load_audio` read only that segment of the recording, when they need it. The corpus is checked first; for
    recordings, only the headers are read.

    Args:
        root: Folder that contains the folder of the pair, or that folder itself.
        pair: Languages, such as "en-de".
        split: "train", "dev", "tst-COMMON", "tst-HE", ….
        streaming: Whether to return an `IterableDataset`, which writes nothing to disk.
        problems: What to do with utterances that cannot be used (an empty text, a recording that is missing or too
            short): "raise" an error that lists them, or "skip" them with a warning.
        cache_dir: Where `datasets` keeps its tables.

    Raises:
        ConfigError: If there is no such pair or split.
        CorpusError: If the line counts of the files differ or a segment cannot be read; with "raise", for every other
            problem too. The message names files and lines.

    Examples:
        >>> rows = load_mustc(corpus, "en-de", "tst-COMMON")
        >>> rows[0]["transcript"], rows[0]["translation"]
        ('Tom sells a small picture.', 'Tom verkauft ein kleines Bild.')
    """
    from datasets import Dataset, NamedSplit, disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

    if problems not in ("raise", "skip"):
        raise ConfigError(f'problems is {problems!r}; allowed: "raise", "skip"')
    folder = _folder(Path(root).expanduser(), pair, split)
    rows, found = _read(folder, pair, split)
    if found:
        _report(folder, found, problems, len(rows))
    if not rows:
        raise CorpusError(f"{folder} has no usable utterance", tuple(found))
    features, name = _features(), NamedSplit(re.sub(r"\W", "_", split))
    if streaming:
        whole = Dataset.from_list(rows, features=features, split=name)
        return whole.to_iterable_dataset(num_shards=min(STREAM_SHARDS, len(rows)))
    # Cached on disk under a digest of its content, so that `datasets` also finds cached results of map().
    digest = hashlib.blake2b(repr((__version__, rows, _stamps(rows))).encode(), digest_size=16).hexdigest()
    shown = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        return Dataset.from_generator(
            _Rows(digest, rows), features=features, cache_dir=None if cache_dir is None else str(cache_dir), split=name
        )
    finally:
        if shown:
            enable_progress_bars()


class _Rows:
    """A generator function of rows, which `datasets` identifies by a digest of the rows."""

    def __init__(self, digest: str, rows: list[dict[str, Any]]):
        self.digest = digest
        self.rows = rows

    def __call__(self) -> Iterator[dict[str, Any]]:
        yield from self.rows

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.digest, [])

    def __deepcopy__(self, memo: dict[int, Any]) -> _Rows:
        return self


def _folder(root: Path, pair: str, split: str) -> Path:
    """Return the folder of a split."""
    if not re.fullmatch(r"[a-z]{2,3}-[a-zA-Z]{2,6}", pair):
        raise ConfigError(f'pair is {pair!r}; allowed: two language codes joined by a hyphen, such as "en-de"')
    base = next((b for b in (root / pair / "data", root / "data") if b.is_dir()), None)
    if base is None:
        raise ConfigError(
            f"root is {str(root)!r}, which has no folder {pair}/data; pass the folder into which MuST-C was unpacked, "
            f"which contains {pair!r}"
        )
    if not (base / split / "txt").is_dir():
        known = sorted(f.parent.name for f in base.glob("*/txt"))
        raise ConfigError(f"split is {split!r}; allowed: {', '.join(known) or 'none'} (in {base})")
    return base / split


def _read(folder: Path, pair: str, split: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the usable rows, and the problems of the others."""
    source, target = pair.split("-")
    paths = {kind: folder / "txt" / f"{split}.{kind}" for kind in ("yaml", source, target)}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise CorpusError(f"{', '.join(missing)}: no such file; unpack the corpus again", tuple(missing))
    segments = read_segments(paths["yaml"])
    texts = {language: read_lines(paths[language]) for language in (source, target)}
    counts = {str(paths["yaml"]): len(segments), **{str(paths[k]): len(lines) for k, lines in texts.items()}}
    if len(set(counts.values())) > 1:
        told = [f"{path}: {count} lines" for path, count in counts.items()]
        raise CorpusError(f"line counts differ: {'; '.join(told)}. Unpack the corpus again", tuple(told))
    recordings = {name: _length(folder / "wav" / name) for name in dict.fromkeys(s.wav for s in segments)}
    problems = [f"{folder / 'wav' / name}: {length}" for name, length in recordings.items() if isinstance(length, str)]
    rows, numbers = [], dict.fromkeys(recordings, 0)
    for i, segment in enumerate(segments):
        number = numbers[segment.wav]
        numbers[segment.wav] += 1
        wrong = _problem(segment, recordings[segment.wav], paths["yaml"])
        for language in (source, target):
            if not texts[language][i].strip():
                wrong = wrong or f"{paths[language]}:{i + 1}: the text is empty"
        if wrong:
            problems.append(wrong)
            continue
        path = str(folder / "wav" / segment.wav)
        rows.append(
            {
                "id": f"{Path(segment.wav).stem}_{number}",
                "transcript": texts[source][i].strip(),
                "translation": texts[target][i].strip(),
                "speaker": segment.speaker,
                "duration": segment.duration,
                "audio": {"path": path, "offset": segment.offset, "duration": segment.duration},
            }
        )
    return rows, problems


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; only a line feed ends a line, since texts may contain other Unicode separators.

    Raises:
        CorpusError: If the encoding is unknown; the message names the line.

    Examples:
        >>> read_lines(next(corpus.rglob("*.de")))
        ['Tom verkauft ein kleines Bild.']
    """
    try:
        return files.read_lines(path)
    except files.TextFileError as error:
        raise CorpusError(str(error), (str(path),)) from error


def read_segments(path: Path) -> list[Segment]:
    """Return the segments of a YAML file.

    Raises:
        CorpusError: If it is not a list of segments; the message names the line.

    Examples:
        >>> (segment,) = read_segments(next(corpus.rglob("*.yaml")))
        >>> segment == Segment(1, segment.wav, segment.offset, segment.duration, segment.speaker)
        True
    """
    lines = read_lines(path)
    entries: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        match = _SEGMENT.match(line)
        inside = match.group(1) if match else ""
        pairs = _ENTRY.findall(inside)
        if not match or _ENTRY.sub("", inside).strip():
            entries = _parse(path, lines)
            break
        entries.append((number, {key: value.strip("\"'") for key, value in pairs}))
    return [_segment(path, number, entry) for number, entry in entries]


def _parse(path: Path, lines: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """Return line and entries of every segment, using a YAML parser."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        node = yaml.compose(_CONTROLS.sub(" ", "\n".join(lines)), Loader=loader)
        if not isinstance(node, yaml.SequenceNode):
            raise CorpusError(f"{path}:1: not a list of segments; unpack the corpus again", (f"{path}:1",))
        found = []
        for item in node.value:
            line = item.start_mark.line + 1
            if not isinstance(item, yaml.MappingNode):
                raise CorpusError(
                    f"{path}:{line}: not a segment; expected {{duration: …, offset: …, wav: …}}", (str(line),)
                )
            found.append((line, {key.value: value.value for key, value in item.value}))
        return found
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise CorpusError(f"{where}: not valid YAML: {error}; unpack the corpus again", (where,)) from error


def _segment(path: Path, line: int, entry: dict[str, Any]) -> Segment:
    try:
        offset, duration = float(entry["offset"]), float(entry["duration"])
        return Segment(line, str(entry["wav"]), offset, duration, str(entry.get("speaker_id", "")))
    except (KeyError, TypeError, ValueError) as error:
        kind = "missing" if isinstance(error, KeyError) else "not a number:"
        where = f"{path}:{line}: {kind} {error}"
        raise CorpusError(f"{where}; a segment needs duration, offset, speaker_id and wav", (where,)) from error


def _length(path: Path) -> float | str:
    """Return the length of a recording in seconds, or what is wrong with it."""
    if not path.is_file():
        return "no such recording"
    try:
        return float(soundfile.info(path).duration)
    except (soundfile.SoundFileError, OSError) as error:
        return f"cannot be read: {error}"


def _problem(segment: Segment, length: float | str, path: Path) -> str | None:
    """Return what is wrong with a segment, if anything."""
    where = f"{path}:{segment.line}"
    if isinstance(length, str):
        return f"{where}: {segment.wav}: {length}"
    end = segment.offset + segment.duration
    if not (math.isfinite(end) and segment.offset >= 0 and segment.duration > 0):
        return f"{where}: offset {segment.offset} and duration {segment.duration} are not a valid segment"
    if end > length + SEGMENT_TOLERANCE_S:
        return f"{where}: ends at {end:.3f} s, but {segment.wav} is {length:.3f} s long"
    return None


def _report(folder: Path, problems: list[str], what: str, usable: int) -> None:
    shown = problems[:SHOWN_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"… and {len(problems) - len(shown)} more")
    told = "\n  ".join([f"{folder} has {len(problems)} problems:", *shown])
    if what == "raise":
        raise CorpusError(
            f'{told}\nFix them, or pass problems="skip" to continue with the {usable} usable utterances',
            tuple(problems),
        )
    warnings.warn(f"{told}\nContinuing with the {usable} usable utterances", UserWarning, stacklevel=3)


def _stamps(rows: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Return the size and modification time of every recording."""
    stats = {path: Path(path).stat() for path in dict.fromkeys(row["audio"]["path"] for row in rows)}
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()]


def _features() -> Features:
    from datasets import Features, Value

    text, seconds = Value("string"), Value("float64")
    return Features(
        {
            **dict.fromkeys(("id", "transcript", "translation", "speaker"), text),
            "duration": seconds,
            "audio": {"path": text, "offset": seconds, "duration": seconds},
        }
    )

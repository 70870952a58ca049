"""When was each word spoken? Alignments from JSON (ours, Gentle's) and TextGrid (Praat, Montreal Forced Aligner)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from spes_hf.analysis.textgrid import Interval, read_textgrid
from spes_hf.errors import SpesError
from spes_hf.explanation import Explanation
from spes_hf.files import parse_json, read_text

# Labels that aligners write where nobody speaks.
SILENCES = frozenset({"", "<sil>", "sil", "sp", "spn", "<eps>", "<s>", "</s>", "[noise]", "[silence]", "<unk>"})
SUFFIXES = (".json", ".textgrid")

_LONGEST_S = 1e6


class AlignmentError(SpesError, ValueError):
    """An alignment is missing or cannot be used."""


@dataclass(frozen=True)
class Phone:
    """A phone and when it was spoken, from ``start`` to before ``end``, in seconds.

    Examples:
        >>> words = [{"word": "so", "start": 0.25, "end": 0.5, "phones": [{"phone": "S_B", "duration": 0.125}]}]
        >>> Alignment.of(words).words[0].phones
        (Phone(label='S', start=0.25, end=0.375),)
    """

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Word:
    """A word and when it was spoken, from ``start`` to before ``end``, in seconds; with its phones, if known.

    Examples:
        >>> alignment.words[-1]
        Word(text='picture.', start=1.087, end=1.638, phones=())
    """

    text: str
    start: float
    end: float
    phones: tuple[Phone, ...] = ()


@dataclass(frozen=True)
class Alignment:
    """When the words of a text were spoken, in the order of the text, without silences.

    For a translation, give each word the times of the word that it translates; times may be in any order.

    Examples:
        >>> words = [{"word": "so", "start": 0.2, "end": 0.5}, {"word": "<sil>", "start": 0.5, "end": 0.9}]
        >>> Alignment.of(words)
        Alignment(words=(Word(text='so', start=0.2, end=0.5, phones=()),))
    """

    words: tuple[Word, ...]

    @classmethod
    def of(cls, words: Iterable[Mapping[str, Any]], source: str = "words") -> Alignment:
        """Return an alignment from dictionaries: "word", "start" and "end" in seconds, "phones" if known.

        Leaves out words without times, which Gentle did not find.

        Args:
            words: The words in the order of the text, as in the JSON files that `read_alignment` reads.
            source: Where they come from, for messages.

        Raises:
            AlignmentError: If a word has no text, or its times are not valid.
        """
        found = []
        for index, entry in enumerate(words):
            if not isinstance(entry, Mapping) or not isinstance(entry.get("word"), str):
                raise AlignmentError(f'{source}: word {index} is {entry!r}; expected {{"word", "start", "end"}}')
            if entry.get("start") is None and entry.get("end") is None:
                continue
            start, end = _times(entry, f"{source}: word {index} ({entry['word']!r})")
            if entry["word"].strip().lower() not in SILENCES:
                found.append(Word(entry["word"].strip(), start, end, _phones(entry, start, source)))
        return cls(tuple(found))


Alignments = str | PathLike[str] | Mapping[str, Any] | Callable[[Explanation], Alignment]


def read_alignment(path: str | PathLike[str]) -> Alignment:
    """Return the alignment in a file.

    There are two formats. JSON: ``{"words": [{"word": "so", "start": 0.21, "end": 0.44, "phones": […]}, …]}`` or only
    that list, with phones, if known, as ``{"phone": "S", "start": 0.21, "end": 0.3}`` or with Gentle's "duration".
    Praat's TextGrid, long or short: a tier of words and, optionally, a tier of phones.

    Raises:
        AlignmentError: If the file cannot be read, or is in neither format.

    Examples:
        >>> path = folder / "one.json"
        >>> _ = path.write_text('[{"word": "so", "start": 0.2, "end": 0.5}]')
        >>> read_alignment(path).words
        (Word(text='so', start=0.2, end=0.5, phones=()),)
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise AlignmentError(f"path {str(path)!r} ends in {path.suffix!r}; allowed: .json, .TextGrid")
    try:
        text = read_text(path)
        if path.suffix.lower() == ".textgrid":
            return _of_tiers(read_textgrid(text), path)
        content = parse_json(text, str(path))
    except OSError as error:
        raise AlignmentError(f"path {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, AlignmentError):
            raise
        raise AlignmentError(f"path {str(path)!r} is not what its name says: {error}") from error
    words = content.get("words") if isinstance(content, Mapping) else content
    if not isinstance(words, list):
        raise AlignmentError(f'path {str(path)!r} has no list of "words"; see read_alignment for the format')
    return Alignment.of(words, str(path))


class AlignmentFinder:
    """Finds the alignment of an utterance by its name, or makes it.

    Args:
        alignments: A folder of files named after the utterances (``NAME.json``, ``NAME.TextGrid``), which may be in
            sub-folders; a mapping of names to `Alignment` objects, lists of words or paths; or a function that makes
            the alignment of an explanation, such as `spes_hf.analysis.align_explanation`.

    Raises:
        AlignmentError: If the path is not a folder, or the folder holds no alignment.
    """

    def __init__(self, alignments: Alignments):
        self.alignments = alignments
        self.files: dict[str, list[Path]] = {}
        if not isinstance(alignments, (str, PathLike)):
            return
        folder = Path(alignments)
        if not folder.is_dir():
            raise AlignmentError(f"alignments is {str(folder)!r}, which is not a folder; pass one with NAME.json files")
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                self.files.setdefault(path.stem, []).append(path)
        if not self.files:
            raise AlignmentError(f"alignments {str(folder)!r} holds no .json and no .TextGrid file")

    def __call__(self, name: str, explanation: Explanation) -> Alignment | None:
        """Return the alignment of an utterance, or None if there is none.

        Args:
            name: Name of the utterance.
            explanation: Its explanation, for a function that makes alignments.

        Raises:
            AlignmentError: If the alignment cannot be read, or several are found.
        """
        if isinstance(self.alignments, (str, PathLike)):
            paths = self.files.get(name, [])
            if len(paths) > 1:
                raise AlignmentError(f"utterance {name!r} has {len(paths)} alignments: {', '.join(map(str, paths))}")
            return read_alignment(paths[0]) if paths else None
        found = self.alignments.get(name) if isinstance(self.alignments, Mapping) else self.alignments(explanation)
        if isinstance(found, (str, PathLike)):
            return read_alignment(found)
        if isinstance(found, (list, tuple)):
            return Alignment.of(found, f"alignment of {name!r}")
        if found is not None and not isinstance(found, Alignment):
            raise AlignmentError(f"alignment of {name!r} is a {type(found).__name__}; pass an Alignment or a path")
        return found

    def describe(self) -> str:
        """Return what was searched, for error messages."""
        names = list(self.files or (self.alignments if isinstance(self.alignments, Mapping) else ()))
        if not names:
            return "the function that makes alignments returned None"
        shown = ", ".join(map(repr, names[:5]))
        return f"there are {len(names)} alignments: {shown}{', …' if len(names) > 5 else ''}"


def _of_tiers(tiers: list[tuple[str, list[Interval]]], path: Path) -> Alignment:
    """Return the alignment in a TextGrid's tiers of words and phones."""
    words = _tier(tiers, ("word", "words", "ort"))
    if words is None and len(tiers) == 1:
        words = tiers[0][1]
    if words is None:
        names = ", ".join(repr(name) for name, _ in tiers) or "none"
        raise AlignmentError(f"path {str(path)!r} has no tier 'words' (its interval tiers: {names}); name one so")
    phones = [
        Phone(i.text.strip(), i.start, i.end)
        for i in _tier(tiers, ("phone", "phones", "phoneme", "phonemes", "segments", "mau")) or []
        if i.text.strip().lower() not in SILENCES
    ]
    return Alignment(
        tuple(
            Word(
                interval.text.strip(),
                interval.start,
                interval.end,
                tuple(p for p in phones if interval.start <= (p.start + p.end) / 2 < interval.end),
            )
            for interval in sorted(words, key=lambda i: i.start)
            if interval.text.strip().lower() not in SILENCES
        )
    )


def _tier(tiers: list[tuple[str, list[Interval]]], names: tuple[str, ...]) -> list[Interval] | None:
    """Return the tier with one of these names; aligners put the speaker's name before it ("anna - words")."""
    for name, intervals in tiers:
        if name.lower().replace("-", " ").split()[-1:] and name.lower().replace("-", " ").split()[-1] in names:
            return intervals
    return None


def _phones(word: Mapping[str, Any], start: float, source: str) -> tuple[Phone, ...]:
    phones: list[Phone] = []
    listed = word.get("phones") or ()
    if not isinstance(listed, (list, tuple)):
        raise AlignmentError(f"{source}: phones of {word['word']!r} are {listed!r}; expected a list")
    for entry in listed:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("phone"), str):
            raise AlignmentError(
                f'{source}: phone {entry!r} of {word["word"]!r} is invalid; expected {{"phone", "start", "end"}}'
            )
        if "duration" in entry and "start" not in entry:  # Gentle gives "s_B" and a duration
            lasts = entry["duration"]
            end = start + lasts if isinstance(lasts, (int, float)) and abs(lasts) < _LONGEST_S else None
            entry = {"phone": entry["phone"].split("_")[0], "start": start, "end": end}
        begin, end = _times(entry, f"{source}: phone {entry['phone']!r} of {word['word']!r}")
        phones.append(Phone(entry["phone"], begin, end))
        start = end
    return tuple(phones)


def _times(entry: Mapping[str, Any], what: str) -> tuple[float, float]:
    try:
        start, end = float(entry["start"]), float(entry["end"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise AlignmentError(f"{what} has no start and end in seconds") from error
    if not 0 <= start <= end < _LONGEST_S:
        raise AlignmentError(f"{what} runs from {start} to {end} s; expected: start at least 0 and end after start")
    return start, end

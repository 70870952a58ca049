"""Yields explanations one by one, each with the name of its utterance."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from spes_hf.analysis.alignments import Alignment, AlignmentError, AlignmentFinder, Alignments
from spes_hf.analysis.matching import Match, match_words
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.explanation.storage import DESCRIPTION
from spes_hf.explanation.timestamps import without_timestamps
from spes_hf.metrics.rows import Row, explanation_of, failed, recording_of
from spes_hf.text import join_pieces

Explanations = Iterable[Row | Explanation | str | PathLike[str]] | Explanation | str | PathLike[str]
"""Explanations, folders of saved ones, or rows with one at "explanation"; or the path of a folder of saved ones."""

_NAME_COLUMNS = ("id", "utterance_id", "name")


@dataclass(frozen=True, eq=False)
class Named:
    """An explanation over tokens, the name of its utterance, and the row it came from."""

    name: str
    explanation: Explanation
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Skipped:
    """An utterance that was left out, and why."""

    utterance: str
    reason: str


def saved_explanations(folder: str | PathLike[str]) -> list[Path]:
    """Return the folders of saved explanations in a folder and its sub-folders, sorted by name.

    Raises:
        ConfigError: If there are none.

    Examples:
        >>> _ = ex.save(folder / "saved" / "two"), ex.save(folder / "saved" / "one")
        >>> [path.name for path in saved_explanations(folder / "saved")]
        ['one', 'two']
    """
    found = sorted(path.parent for path in Path(folder).rglob(DESCRIPTION))
    if not found:
        raise ConfigError(
            f"explanations is {str(folder)!r}, which holds no explanation; pass a folder that Explanation.save() wrote"
        )
    return found


def named(explanations: Explanations) -> Iterator[Named]:
    """Yield the explanations with their names, one in memory at a time; skips rows that hold an error.

    The name is the row's "id", the name of a saved explanation's folder, or taken from the provenance: the id of the
    utterance, otherwise the name of the audio file.

    Raises:
        ConfigError: If ``explanations`` is of another type, or empty.
    """
    if isinstance(explanations, Explanation):
        explanations = [explanations]
    elif isinstance(explanations, (str, PathLike)):
        explanations = saved_explanations(explanations)
    elif isinstance(explanations, Mapping) or not isinstance(explanations, Iterable):
        raise ConfigError(f"explanations is a {type(explanations).__name__}; pass a list of explanations or rows")
    count = 0
    for count, item in enumerate(explanations, 1):
        if isinstance(item, Mapping) and failed(item):
            continue
        recording = recording_of(item)  # type: ignore[arg-type]
        for found in [explanation_of(item)] if recording is None else recording:  # type: ignore[arg-type]
            # A copy, so that its dense maps are freed before the next explanation.
            fresh = replace(found, groups=None, context_groups=None)
            if "_normalised" in found.__dict__:
                fresh.__dict__["_normalised"] = found.__dict__["_normalised"]
            fresh = without_timestamps(fresh)
            name = _name(item, fresh) or f"#{count - 1}"
            if recording is not None and "@" not in name:
                name += f"@{fresh.origin.window.get('start_s', 0.0):.2f}"
            yield Named(name, fresh, item if isinstance(item, Mapping) else {})
    if not count:
        raise ConfigError("explanations is empty; pass at least one")


class Aligned:
    """Iterates over explanations over words, with the time of each word, and records what it leaves out.

    Args:
        explanations: The explanations to iterate over.
        alignments: As for `AlignmentFinder`.
        missing: What to do if an utterance has no alignment: "raise" or "skip".

    Attributes:
        skipped: Utterances that were left out.
        unmatched: Per utterance, words of the explanation that nobody says in that place.
        utterances: Number of utterances seen.

    Raises:
        AlignmentError: If an alignment is missing and ``missing`` is "raise", or no word of any utterance matches.
    """

    def __init__(self, explanations: Explanations, alignments: Alignments, missing: Literal["raise", "skip"] = "raise"):
        if missing not in ("raise", "skip"):
            raise ConfigError(f"missing is {missing!r}; allowed: raise, skip")
        self.explanations = explanations
        self.find = AlignmentFinder(alignments)
        self.missing = missing
        self.skipped: list[Skipped] = []
        self.unmatched: dict[str, tuple[str, ...]] = {}
        self.utterances = 0

    def __iter__(self) -> Iterator[tuple[Named, Match]]:
        matched = 0
        for item in named(self.explanations):
            self.utterances += 1
            alignment = self._alignment(item)
            if alignment is None:
                continue
            match = match_words(item.explanation.words().tokens, alignment)
            if match.unmatched:
                self.unmatched[item.name] = match.unmatched
            if not match.spoken:
                self.skipped.append(Skipped(item.name, "none of the explanation's words is in its alignment"))
                continue
            matched += len(match.spoken)
            yield item, match
        if not matched:
            reasons = "; ".join(sorted({entry.reason for entry in self.skipped}))
            raise AlignmentError(
                f"no word of the {self.utterances} utterances matches its alignment ({reasons}); alignments must "
                "belong to the explained transcripts, in the same language, under the same names"
            )

    def _alignment(self, item: Named) -> Alignment | None:
        try:
            found = self.find(item.name, item.explanation)
        except AlignmentError as error:
            if self.missing == "raise":
                raise
            self.skipped.append(Skipped(item.name, str(error)))
            return None
        if found is None:
            if self.missing == "raise":
                raise AlignmentError(
                    f"utterance {item.name!r} has no alignment ({self.find.describe()}); add it, or pass "
                    'missing="skip" to skip such utterances'
                )
            self.skipped.append(Skipped(item.name, "no alignment"))
        return found


def token_label(explanation: Explanation, index: int) -> str:
    """Return the name of a token's type: its text without the space before it; "…ing" continues a word.

    Args:
        explanation: An explanation over tokens; over words, the name is the word's text.
        index: Index of the explained token.
    """
    if explanation.over_words:
        return explanation.tokens[index].strip() or explanation.tokens[index]
    return written_label(explanation, index if explanation.part is None else explanation.part.rows[index])


def written_label(explanation: Explanation, place: int) -> str:
    """Return the name of the type of any token of the output, explained or not.

    Args:
        explanation: An explanation over tokens.
        place: Index of the token in the output.
    """
    whole = explanation if explanation.part is None else explanation.part
    piece, before = whole.pieces[place], whole.pieces[place - 1] if place else " "
    goes_on = place > 0 and piece[:1].isalnum() and before[-1:].isalnum() and not whole.special[place]
    text = join_pieces([piece]).strip() or piece
    return f"…{text}" if goes_on else text


def abbreviate(words: Collection[str], longest: int = 6) -> str:
    """Return a list of words as text, cut to a few, for messages."""
    shown = ", ".join(map(repr, list(words)[:longest]))
    return f"{shown}, … ({len(words)} in all)" if len(words) > longest else shown


def _name(item: Any, explanation: Explanation) -> str:
    if isinstance(item, Mapping):
        for column in _NAME_COLUMNS:
            if item.get(column) not in (None, ""):
                return str(item[column])
        item = item.get("explanation")
    if isinstance(item, (str, PathLike)):
        path = Path(item)
        return path.parent.name if path.suffix in (".json", ".safetensors") else path.name
    own = explanation.origin.utterance_id
    if own and not own.startswith("@"):  # a window of a recording without a name
        return own
    file = re.fullmatch(r"file (.+?)(?: \[.*\))?", explanation.origin.source)
    return (Path(file[1]).stem if file else "") + own

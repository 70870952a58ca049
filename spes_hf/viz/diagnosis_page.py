"""One self-contained page for a diagnosis: both texts, and the odds, map and sound of every error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spes_hf.differences import agreeing
from spes_hf.explanation.diagnosis import MISHEARD_BITS, NOTHING_BITS, UNSURE_BITS
from spes_hf.text import normalise
from spes_hf.viz import report, scale

if TYPE_CHECKING:
    from spes_hf.explanation.diagnosis import Diagnosis, WordError

_ODDS = ("without_sound", "context", "evidence", "log_odds", "deviation", "written_evidence", "said_evidence")


@dataclass(frozen=True)
class Column:
    """What both texts have in one place.

    Attributes:
        written: Words of what the model wrote, with their punctuation; "" for none.
        said: Words of the reference, with their punctuation; "" for none.
        spaced: Whether a space precedes it.
        error: Index of the error; None if the texts agree.
    """

    written: str
    said: str
    spaced: bool
    error: int | None = None


def write_html(diagnosis: Diagnosis, path: Path) -> Path:
    """Write the page and return its path; see `spes_hf.viz.write_diagnosis_html`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(diagnosis), encoding="utf-8")
    return path


def page(diagnosis: Diagnosis) -> str:
    """Return the page: template, style and script, and the diagnosis as JSON."""
    styles, scripts = ["report.css", "diagnosis.css"], ["page.js", "picture.js", "diagnosis.js"]
    return report.filled(
        "diagnosis.html", styles, scripts, f"Diagnosis: {diagnosis.text.strip()}", page_data(diagnosis)
    )


def page_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return all data that the page shows.

    Without an explanation, there is no spectrogram and no sound. Maps are as in `report.signed_png`.

    Args:
        diagnosis: A diagnosis with any number of errors.
    """
    explanation = diagnosis.explanation
    shared: dict[str, Any] = {"warnings": [], "notes": [], "provenance": {}}
    if explanation is not None:
        shared = report.picture_data(explanation)
    columns = [
        {
            "written": scale.shown(column.written, 1000),
            "said": scale.shown(column.said, 1000),
            "spaced": column.spaced,
            "error": column.error,
        }
        for column in aligned(diagnosis)
    ]
    return {
        **shared,
        "summary": summary(diagnosis),
        "bound": MISHEARD_BITS,
        "direction": scale.direction(diagnosis.text + diagnosis.reference),
        "columns": columns,
        "errors": [_error(diagnosis, error) for error in diagnosis.errors],
    }


def _error(diagnosis: Diagnosis, error: WordError) -> dict[str, Any]:
    explanation, drawn = diagnosis.explanation, None
    if explanation is not None and error.row is not None:
        drawn = {**report.signed_png(explanation.evidence(error.row)), "unit": explanation.evidence_unit(error.row)}
    return {
        "written": scale.shown(error.written, 200),
        "said": scale.shown(error.said, 200),
        "verdict": error.verdict,
        "sentence": sentence(error),
        "stretch": list(error.stretch),
        "reliability": error.reliability,
        **{name: round(getattr(error, name), 4) for name in _ODDS},
        "map": drawn,
    }


def summary(diagnosis: Diagnosis) -> str:
    """Return the numbers of errors and verdicts, and the word error rate, in one line."""
    count, words = len(diagnosis.errors), len(diagnosis.said)
    if not count:
        return f"No error: the model wrote {'the word' if words == 1 else f'all {words} words'} of the reference."
    verdicts = ", ".join(f"{number} {verdict}" for verdict, number in diagnosis.verdicts.items() if number)
    return (
        f"{count} error{'s' * (count != 1)}: {verdicts}. "
        f"Word error rate {100 * diagnosis.wer:.0f}\u00a0% over {words} word{'s' * (words != 1)}."
    )


def sentence(error: WordError) -> list[str | dict[str, str]]:
    """Return what an error's verdict means, in plain words.

    Args:
        error: An error, examined or not.

    Returns:
        Parts of the text; a part that quotes one of the two texts is ``{"quoted": …}``.
    """
    written, said = _quoted(error.written), _quoted(error.said)
    # If one text has no word here, the sound speaks for leaving out the other's.
    for_written = [written] if error.written else ["leaving ", said, " out"]
    for_said = [said] if error.said else ["leaving ", written, " out"]
    either = [written, " or ", said] if error.written and error.said else [written if error.written else said]
    apart = ["tells ", written, " from ", said] if len(either) == 3 else ["says whether ", *either, " belongs here"]
    sound = f"The sound at {error.stretch[0]:.2f}–{error.stretch[1]:.2f} s"

    if error.verdict == "not known":
        why = scale.settled(error.why_not) or "no reason is given"
        return ["Not known where this comes from: ", f"{why.rstrip('.')}."]
    if error.verdict == "misheard":
        found = [f"{sound}, as the model hears it, speaks for ", *for_written, ": misheard."]
    elif error.verdict == "not heard":
        found = [f"{sound} says nothing about ", *either, ", and the context decides: not heard."]
    elif error.verdict == "unsure":
        bits = f"{error.evidence:.1f} ± {error.deviation:.1f} bits".replace("-", "−")
        why = f"too close to {MISHEARD_BITS:g} bits" if error.deviation <= UNSURE_BITS else "too noisy"
        found = [f"{sound} speaks for ", *for_written, f" by {bits}, {why} to tell misheard from guessed: unsure."]
    elif error.evidence < -NOTHING_BITS:
        end = (
            ", but the context outweighs it: guessed." if error.log_odds > 0 else ", not for what was written: guessed."
        )
        found = [f"{sound} speaks for ", *for_said, end]
    else:
        found = [f"{sound} hardly ", *apart, ", and the context decides: guessed."]
    if error.log_odds < 0:
        found += [" On the whole, the model finds ", *for_said, " likelier."]
    return found


def aligned(diagnosis: Diagnosis) -> list[Column]:
    """Return both texts side by side, in order: words that agree, and errors."""
    spoken = [i for i, word in enumerate(diagnosis.written) if normalise(word)]
    places = {index: place for place, index in enumerate(spoken)}
    written = _with_marks(diagnosis.text, [diagnosis.written[i] for i in spoken])
    said = _with_marks(diagnosis.reference, diagnosis.said)
    found: list[Column] = []
    here = there = 0
    for number, error in enumerate([*diagnosis.errors, None]):
        own = [places[i] for i in error.written_words] if error else []
        other = list(error.said_words) if error else []
        until = own[0] if own else len(written), other[0] if other else len(said)
        for a, b in agreeing(_bare(written[here : until[0]]), _bare(said[there : until[1]])):
            found.append(_column(written[here : here + a], said[there : there + b]))
            here, there = here + a, there + b
        if error:
            a, b = here + len(own), there + len(other)
            found.append(_column(written[here:a], said[there:b], number))
            here, there = a, b
    return found


class _Word(NamedTuple):
    """A word of one text: with punctuation; without it and in lower case; and whether a space precedes it."""

    shown: str
    bare: str
    spaced: bool


def _column(written: Sequence[_Word], said: Sequence[_Word], error: int | None = None) -> Column:
    return Column(_joined(written), _joined(said), (written or said)[0].spaced, error)


def _joined(words: Sequence[_Word]) -> str:
    return "".join(" " * (word.spaced and i > 0) + word.shown for i, word in enumerate(words))


def _bare(words: Sequence[_Word]) -> list[str]:
    return [word.bare for word in words]


def _with_marks(text: str, words: Sequence[str]) -> list[_Word]:
    """Return the words of a text with their punctuation, or without it if the text has them in another form."""
    spans, end = [], 0
    for word in words:
        start = text.find(word, end)
        if start < 0:
            return [_Word(word, normalise(word), True) for word in words]
        end = start + len(word)
        spans.append((start, end))
    found: list[_Word] = []
    for i, (start, end) in enumerate(spans):
        between = re.fullmatch(r"(\S*)(.*?)(\S*)", text[spans[i - 1][1] if i else 0 : start], re.DOTALL)
        before, middle, after = between.groups() if between else ("", "", "")
        if i == 0:
            before, after = "", f"{before}{middle}{after}".lstrip()
        else:
            loose = f" {middle.strip()}" if middle.strip() else ""
            found[-1] = found[-1]._replace(shown=f"{found[-1].shown}{before}{loose}")
        found.append(_Word(after + text[start:end], normalise(words[i]), i == 0 or bool(middle)))
    if found:
        found[-1] = found[-1]._replace(shown=found[-1].shown + text[spans[-1][1] :].rstrip())
    return found


def _quoted(text: str) -> dict[str, str]:
    return {"quoted": scale.shown(text, 200)}

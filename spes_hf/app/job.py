"""What the page asks of the process that computes, and what that answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One recording to explain.

    Attributes:
        audio: Path of the recording.
        model: As ``--model`` of the command line names it.
        language: Language of the speech; None: the model's own way.
        tgt_lang: Language of the text; None likewise.
        preset: Of the method.
        reference: What was said, for a diagnosis; None: no diagnosis.
        max_seconds: Longer recordings are refused.
        folder: Where to write; made by the job, and empty before.
    """

    audio: str
    model: str
    language: str | None
    tgt_lang: str | None
    preset: str
    reference: str | None
    max_seconds: float
    folder: str


@dataclass(frozen=True)
class Stage:
    """What is being done.

    Attributes:
        name: As the page shows it.
        share: How much of it is done, from 0 to 1; None: not known.
    """

    name: str
    share: float | None = None


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        text: What the model wrote.
        verdict: Whether it heard that, in one sentence.
        evidence: What speaks for the verdict, sentence by sentence.
        pages: Title and HTML of every page.
        archive: Path of a zip with all of it.
    """

    text: str
    verdict: str
    evidence: tuple[str, ...]
    pages: tuple[tuple[str, str], ...]
    archive: str


@dataclass(frozen=True)
class Failure:
    """Why there is no result.

    Attributes:
        what: What cannot be used, or what happened.
        why: The reason, and what to do.
    """

    what: str
    why: str

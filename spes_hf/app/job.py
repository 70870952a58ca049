"""The messages between the page and the worker process: how to run models, jobs, progress, results and failures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One recording to explain.

    Attributes:
        audio: Path of the recording.
        model: The model, as for ``--model`` of the command line.
        language: Language of the speech; None: the model's default.
        tgt_lang: Language of the text; None: the model's default.
        preset: Preset of the method.
        reference: What was said, for a diagnosis; None: no diagnosis.
        max_seconds: Maximum length of a recording.
        folder: Where to write; created by the job, or empty.
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
    """The current stage of a job.

    Attributes:
        name: Its name, as shown on the page.
        share: How much of it is done, from 0 to 1; None: not known.
    """

    name: str
    share: float | None = None


@dataclass(frozen=True)
class Result:
    """The result of a job.

    Attributes:
        text: What the model wrote.
        verdict: Whether it heard that, in one sentence.
        evidence: The evidence for the verdict, sentence by sentence.
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
        what: What cannot be used, or what went wrong.
        why: The reason, and what to do.
    """

    what: str
    why: str


@dataclass(frozen=True)
class Running:
    """How the models of ``spes-hf app`` are loaded and run: values of its options.

    Attributes:
        device: Where models run; None: on the GPU if there is one.
        device_map: How models are spread over devices; None: not at all.
        dtype: Type of the weights.
        batch_size: Perturbed copies in one pass; "auto" or None: found automatically.
        autocast: Type in which models compute; None: that of the weights.
    """

    device: str | None = None
    device_map: str | None = None
    dtype: str = "auto"
    batch_size: int | str | None = None
    autocast: str | None = None

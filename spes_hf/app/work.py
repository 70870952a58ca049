"""One job: read the recording, explain it, diagnose it, and put it all in a zip."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spes_hf.app.job import Job, Result, Running, Stage
from spes_hf.audio.long import open_audio
from spes_hf.bits import in_words, not_heard
from spes_hf.commands.options import load_model
from spes_hf.diagnosing import diagnose
from spes_hf.engine import explain
from spes_hf.errors import AudioError, SpesError
from spes_hf.explanation import Explanation
from spes_hf.methods.presets import preset
from spes_hf.text import clock
from spes_hf.viz.report import page

# Recordings whose loudest sample is below -60 dB of full scale hold nothing to hear.
SILENT = 1e-3

# Shorter recordings hold no word, in seconds.
SHORTEST_S = 0.1

# Audio is looked at at this rate, in Hz, before a model is loaded.
_RATE = 16_000

_VERDICTS = {
    "heard": "The model heard what it wrote.",
    "made up": "The model probably made this up.",
    "nothing written": "The model wrote nothing.",
}


class Workbench:
    """Does one job after another, and keeps the model of the last one.

    Args:
        running: How models are loaded and run.
    """

    def __init__(self, running: Running | None = None) -> None:
        self._running = running or Running()
        self._name: str | None = None
        self._model: tuple[Any, Any] | None = None

    def do(self, job: Job, tell: Callable[[Stage], None]) -> Result:
        """Return the result for a recording.

        Args:
            job: The job.
            tell: Called with each stage of the job.

        Raises:
            AudioError: If the recording cannot be read, is too long or too short, or silent.
            UnsupportedModelError: If the model cannot be loaded or has no adapter.
            ConfigError: If a setting does not suit the model.
        """
        tell(Stage("Reading the recording"))
        check_audio(job.audio, job.max_seconds)
        tell(Stage(f"Loading the model {job.model}"))
        model, processor = self.model(job.model)
        folder = Path(job.folder)
        config: Any = preset(job.preset, "asr" if job.tgt_lang is None else "st")
        settings: dict[str, Any] = {"language": job.language, "tgt_lang": job.tgt_lang}
        settings |= {"batch_size": self._running.batch_size, "autocast": self._running.autocast}
        tell(Stage("Transcribing"))
        found: Any = explain(
            model,
            processor,
            job.audio,
            config=config,
            progress=lambda share: tell(Stage("Explaining", share)),
            folder=folder / "explanation",
            **settings,
        )
        notes, pages = evidence_of(found), []
        if job.reference is not None:
            tell(Stage("Diagnosing"))
            try:
                diagnosis = diagnose(
                    model,
                    processor,
                    job.audio,
                    job.reference,
                    config=config.changed(impact="log-odds"),
                    progress=lambda share: tell(Stage("Diagnosing", share)),
                    **settings,
                )
            except SpesError as error:  # the explanation is there all the same
                notes.append(f"The transcript could not be compared: {plain(error, job.audio)}")
            else:
                written = diagnosis.to_html(folder / "diagnosis.html")
                pages.append(("Errors against your transcript", written.read_text(encoding="utf-8")))
                described = json.dumps(diagnosis.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
                (folder / "diagnosis.json").write_text(described + "\n", encoding="utf-8")
        tell(Stage("Drawing the page"))
        found.words().to_html(folder / "explanation.html")
        return Result(
            text=found.text.strip(),
            verdict=verdict_of(found),
            evidence=tuple(notes),
            pages=(*pages_of(found), *pages),
            archive=str(packed(folder, Path(job.audio).stem)),
        )

    def model(self, name: str) -> tuple[Any, Any]:
        """Return the model of that name and its processor; one model is in memory at a time."""
        if self._model is None or name != self._name:
            self._model = None  # before the next is loaded
            how = self._running
            self._model, self._name = load_model(name, how.device, how.dtype, how.device_map), name
        return self._model


def check_audio(path: str, max_seconds: float) -> None:
    """Refuse what cannot be explained, before a model is loaded.

    Args:
        path: Path of the recording.
        max_seconds: Maximum length.

    Raises:
        AudioError: If it cannot be read, is empty, too short or too long, or silent.
    """
    if not Path(path).stat().st_size:
        raise AudioError("The file is empty. Choose another one.", silent=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the explanation's own notes say it
        waveform = open_audio(path, _RATE)
    if waveform.duration_s < SHORTEST_S:
        raise AudioError(f"It is {waveform.duration_s:.3f} s long, too short to hold a word.", silent=True)
    if waveform.duration_s > max_seconds:
        raise AudioError(
            f"It is {waveform.duration_s:.1f} s long; at most {max_seconds:g} s are explained here. Cut it to the part "
            "that you ask about."
        )
    peak = float(np.abs(waveform.samples[:]).max(initial=0.0))
    if peak < SILENT:
        raise AudioError(
            f"It is silent: its loudest sample is {peak:.1g} of full scale. Check the microphone, or choose "
            "another file.",
            silent=True,
        )


def evidence_of(found: Any) -> list[str]:
    """Return the evidence from the sound for an explanation or a recording, sentence by sentence."""
    if found.verdict == "nothing written":
        return []
    words = found.words()
    guessed = [word for word, _ in not_heard(words.tokens, words.sound_bits.tolist())]
    notes = [f"Evidence from the sound, on average over tokens: {in_words(found.bits_per_token)}."]
    if guessed:
        notes.append(f"Words that the sound had no part in (under 1 bit): {', '.join(guessed)}.")
    if found.verdict == "not known":
        notes.append(
            "How many bits show that a text was heard is known for Whisper alone. For this model, compare the bits "
            "with those of texts that you trust."
        )
    return notes


def verdict_of(found: Any) -> str:
    """Return whether the model heard what it wrote, in a sentence; nothing if that is not known for such models."""
    return _VERDICTS.get(found.verdict, "")


def pages_of(found: Any) -> list[tuple[str, str]]:
    """Return title and HTML of the page of an explanation, or of the pages of a recording's windows."""
    words = found.words()
    if isinstance(words, Explanation):
        return [("What the model listened to", page(words))]
    windows = [window for window in found.windows if window.is_there(found.folder)]
    return [
        (f"What the model listened to, {clock(window.start_s)}–{clock(window.until_s)}", page(each))
        for window, each in zip(windows, words, strict=True)
    ]


def packed(folder: Path, name: str) -> Path:
    """Return a zip of a folder, next to it.

    Args:
        folder: The folder to pack.
        name: Name of the recording, for the file name; unsafe characters are replaced.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:60]
    path = folder.with_name(f"spes_{safe}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def plain(error: Exception, audio: str) -> str:
    """Return an error's message for someone who knows neither this machine's folders nor the command line."""
    shown = str(error).replace(audio, Path(audio).name).replace("--model ", "the model ")
    return shown[:1].upper() + shown[1:]

"""The page, in Gradio."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from spes_hf.app import show
from spes_hf.app.desk import MOST_WAITING, Desk
from spes_hf.app.job import Failure, Job, Result
from spes_hf.app.worker import CancelledError
from spes_hf.demo import DEMO_PACKAGE
from spes_hf.names import TINY_MODELS

# Models that need no hub, with their names on the page; the tiny ones know only the sentences of a small grammar.
NAMES = {
    "demo": "Whisper tiny.en: English",
    "speech2text-en": "Tiny Speech2Text: for a quick try",
    "seamless-en-de-es": "Tiny SeamlessM4T: for a quick try",
    "qwen3-asr-en": "Tiny Qwen3-ASR: for a quick try",
}

# Languages of their text; for other models, visitors may also choose the language of the speech.
LANGUAGES = {
    "demo": (),
    "speech2text-en": (),
    "seamless-en-de-es": (("German", "deu"), ("Spanish", "spa")),
    "qwen3-asr-en": (),
}

# Maximum number of characters of what was actually said.
LONGEST_REFERENCE = 5000

PRESETS = (("Fast: a first look", "fast"), ("Thorough: takes two to three times as long, steadier maps", "default"))

INTRODUCTION = """# Why did the speech model write that?

Upload or record someone speaking. The model transcribes it, and the page shows for every word **which sounds** and
**which earlier words** made it write that word, and whether it heard the words at all."""


def build(desk: Desk, models: Sequence[str], max_seconds: float, any_model: bool) -> gr.Blocks:
    """Return the page.

    Args:
        desk: Takes the jobs.
        models: Names or paths of models to offer besides those that need no hub; the first is preselected.
        max_seconds: Maximum length of a recording.
        any_model: Whether a visitor may type the name or the folder of any other model.
    """
    offered = [name for name in ("demo", *TINY_MODELS) if name != "demo" or importlib.util.find_spec(DEMO_PACKAGE)]
    choices = [*((Path(name).name, name) for name in models if name not in offered)]
    choices += [(NAMES[name], name) for name in offered]
    first = models[0] if models else offered[0]
    blocks = gr.Blocks(title="Why did the speech model write that?", analytics_enabled=False, delete_cache=(600, 3600))
    with blocks:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(min_width=300):
                audio = gr.Audio(
                    sources=["upload", "microphone"],
                    type="filepath",
                    label=f"Recording, at most {max_seconds:g} s",
                    buttons=[],
                    elem_id="audio",
                )
                offer = gr.Button("Use an example: John F. Kennedy, 1961", size="sm", elem_id="example")
            with gr.Column(min_width=300):
                model = gr.Dropdown(
                    choices,
                    value=first,
                    label="Model",
                    info="Or type the id of a Hub model, or a folder." if any_model else None,
                    allow_custom_value=any_model,
                    elem_id="model",
                )
                language, tgt_lang = _languages(first)
                preset = gr.Radio(PRESETS, value="fast", label="How carefully", elem_id="preset")
                reference = gr.Textbox(
                    label="What was actually said (optional)",
                    info="If given, every error of the model is traced to the sound or to the context.",
                    lines=2,
                    max_length=LONGEST_REFERENCE,
                    elem_id="reference",
                )
        with gr.Row():
            explain = gr.Button("Explain", variant="primary", elem_id="explain")
            cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
        status = gr.HTML(elem_id="status")
        archive = gr.DownloadButton("Download everything (zip)", visible=False, elem_id="archive")
        result = gr.HTML(elem_id="result")

        # Hidden from the API, so that nobody can ask for more than the page does.
        plain: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        parts = [status, result, archive, explain, cancel]
        handlers = _Handlers(desk, max_seconds, None if any_model else {name for _, name in choices})
        model.change(lambda name: _languages(name), model, [language, tgt_lang], **plain)
        offer.click(example, None, audio, **plain)
        audio.change(handlers.uploaded, audio, None, **plain)
        run = explain.click(handlers.enter, [audio, model], parts, **plain).success(
            handlers.run,
            [audio, model, language, tgt_lang, preset, reference],
            parts,
            concurrency_limit=1,
            show_progress="hidden",
            api_visibility="private",
        )
        cancel.click(handlers.cancel, None, parts, cancels=[run], **plain)
        blocks.unload(handlers.leave)
    blocks.queue(max_size=4 * MOST_WAITING, default_concurrency_limit=1)
    return blocks


class _Handlers:
    """What the page's buttons do.

    Args:
        desk: Takes the jobs.
        max_seconds: Maximum length of a recording.
        models: Allowed models; None: any.
    """

    def __init__(self, desk: Desk, max_seconds: float, models: set[str] | None):
        self._desk, self._max_seconds, self._models = desk, max_seconds, models

    def uploaded(self, audio: str | None, request: gr.Request) -> None:
        """Remember whose recording it is."""
        self._desk.uploaded(_visitor(request), audio)

    def enter(self, audio: str | None, model: str | None, request: gr.Request) -> list[Any]:
        """Take a place in the queue; without one, `run` does nothing."""
        model = (model or "").strip()
        if audio is None:
            failed = Failure("There is no recording", "Choose or record one first.")
        elif not model or (self._models is not None and model not in self._models):
            failed = Failure("This model cannot be used", "Choose one from the list.")
        else:
            ahead = self._desk.enter(_visitor(request))
            if ahead is not None:
                return _state(show.waiting(ahead), running=True, result="", archive=None)
            failed = Failure("Too many visitors", f"{MOST_WAITING} people are waiting. Try again in a few minutes.")
        return _state(show.failure(failed), running=False, result="", archive=None)

    def run(
        self,
        audio: str,
        model: str,
        language: str | None,
        tgt_lang: str | None,
        preset: str,
        reference: str | None,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Explain the recording, and report progress."""
        job = Job(
            audio=audio,
            model=model.strip(),
            language=_given(language),
            tgt_lang=_given(tgt_lang),
            preset=preset,
            reference=_given((reference or "")[:LONGEST_REFERENCE]),  # a browser keeps to it, others may not
            max_seconds=self._max_seconds,
            folder="",
        )
        if not self._desk.waits(_visitor(request)):
            yield [gr.skip()] * 5
            return
        begun = time.monotonic()
        clock = show.Clock(begun)
        try:
            for answer in self._desk.serve(_visitor(request), job):
                now = time.monotonic()
                if isinstance(answer, Failure):
                    yield _state(show.failure(answer), running=False)
                elif isinstance(answer, Result):
                    yield _state(show.done(now - begun), False, show.result(answer), answer.archive)
                else:
                    yield _state(clock.shown(answer, now), running=True)
        except CancelledError:
            yield _state(show.cancelled(), running=False)

    def cancel(self, request: gr.Request) -> list[Any]:
        """Stop this visitor's job."""
        self._desk.cancel(_visitor(request))
        return _state(show.cancelled(), running=False)

    def leave(self, request: gr.Request) -> None:
        """Stop this visitor's job, and delete the visitor's files."""
        self._desk.leave(_visitor(request))


def _state(status: str, running: bool, result: str | None = None, archive: str | None = None) -> list[Any]:
    """Return updates of the page: status, result, archive and buttons; None leaves the result as it is."""
    kept = result is None
    return [
        status,
        gr.skip() if kept else result,
        gr.skip() if kept else gr.DownloadButton(value=archive, visible=archive is not None),
        gr.Button(interactive=not running),
        gr.Button(visible=running),
    ]


def _languages(model: str | None) -> tuple[gr.Textbox, gr.Dropdown]:
    """Return the language fields that a model takes; unknown models get both."""
    known = LANGUAGES.get(model or "")
    choices, free = known or (), known is None
    return (
        gr.Textbox(
            value="",
            label="Language of the speech (optional)",
            info="In the model's own notation, such as de or german for Whisper.",
            visible=free,
            elem_id="language",
        ),
        gr.Dropdown(
            choices,
            value=choices[0][1] if choices else None,
            label="Language of the text (optional)" if free else "Language of the text",
            info="For models that translate, such as deu for SeamlessM4T." if free else None,
            visible=free or bool(choices),
            allow_custom_value=free,
            elem_id="tgt_lang",
        ),
    )


def example() -> str:
    """Return the path of the recording that the page offers."""
    return str(files("spes_hf") / "assets" / "jfk.flac")


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash)


def _given(text: str | None) -> str | None:
    return (text or "").strip() or None

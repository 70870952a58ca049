"""``spes-hf diagnose``: traces every error of a transcript to the sound or to the context."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from spes_hf.commands.explaining import add_output
from spes_hf.commands.options import (
    add_method,
    add_model,
    check_audio,
    check_folder,
    config_of,
    is_translation,
    model_of,
    running_of,
    text_or_file,
    writing_of,
)


def add_diagnose(command: argparse.ArgumentParser) -> None:
    """Add the options of ``diagnose``."""
    command.add_argument("audio", metavar="AUDIO", help="a recording")
    command.add_argument("--reference", required=True, metavar="TEXT|FILE", help="what was said, as text or as a file")
    command.add_argument("--text", help="diagnose this output instead of the one that the model generates")
    add_model(command)
    add_method(command)
    add_output(command)


def run_diagnose(options: argparse.Namespace) -> None:
    """Trace every error of what a model writes for a recording to the sound or to the context."""
    from spes_hf.diagnosing import diagnose
    from spes_hf.viz.scale import printable

    reference = text_or_file(options.reference)
    config: Any = config_of(options, translation=is_translation(options))
    audio = check_audio(options.audio)
    out = check_folder(options.out or Path(f"spes_{Path(audio).stem}"))
    model, processor = model_of(options)
    found = diagnose(
        model,
        processor,
        audio,
        reference,
        config=config if options.config is not None else config.changed(impact="log-odds"),
        text=options.text,
        seed=options.seed,
        progress=not options.quiet,
        **running_of(options),
        **writing_of(options),
    )
    page = found.to_html(out / "diagnosis.html")
    written = json.dumps(found.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    (out / "diagnosis.json").write_text(written + "\n", encoding="utf-8")
    if found.explanation is not None:
        found.explanation.save(out / "explanation")
    else:  # maps from an earlier run belong to other errors
        for path in (out / "explanation").glob("explanation*.*"):
            path.unlink()
    print("\n".join(["", *map(printable, str(found).splitlines()), "", f"page: {page}"]))

"""``spes-hf explain``, ``demo`` and ``report``: make an explanation, or show a saved one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spes_hf.commands.options import (
    DEMO,
    add_loading,
    add_method,
    add_model,
    add_running,
    check_audio,
    check_folder,
    config_of,
    is_translation,
    model_of,
    running_of,
    writing_of,
)
from spes_hf.summaries import load_saved, show


def add_explain(command: argparse.ArgumentParser) -> None:
    """Add the options of ``explain``."""
    command.add_argument("audio", metavar="AUDIO", help="a recording of any length")
    command.add_argument("--text", help="explain this output instead of the one that the model generates")
    command.add_argument("--words", nargs="+", metavar="WORD", help="explain only these words, which costs less")
    command.add_argument("--start", type=float, metavar="S", help="explain a recording from this second on")
    command.add_argument("--end", type=float, metavar="S", help="explain a recording up to this second")
    command.add_argument("--timestamps", action="store_true", help="explain the model's timestamps too")
    command.add_argument("--segment", choices=("pauses",), help="cut a recording where speech pauses")
    command.add_argument(
        "--over",
        choices=("spectrogram", "encoder"),
        default="spectrogram",
        help="encoder: compute saliency over the encoder's output as well (default: spectrogram)",
    )
    add_model(command)
    add_method(command)
    add_output(command)


def add_demo(command: argparse.ArgumentParser) -> None:
    """Add the options of ``demo``."""
    command.set_defaults(model=DEMO)
    add_method(command, preset="fast")
    add_loading(command)
    add_output(command, "spes_demo")


def add_report(command: argparse.ArgumentParser) -> None:
    """Add the options of ``report``."""
    command.add_argument("folder", type=Path, metavar="DIR", help="a folder that explain or Explanation.save() wrote")


def add_output(command: argparse.ArgumentParser, folder: str = "spes_<name of the clip>") -> None:
    """Add the options for speed, seed and output folder."""
    add_running(command)
    command.add_argument("--seed", type=int, default=0, help="same seed, same masks (default: 0)")
    command.add_argument("--out", type=Path, metavar="DIR", help=f"where to write (default: {folder})")
    command.add_argument("--quiet", action="store_true", help="show no progress bar")


def run_explain(options: argparse.Namespace) -> None:
    """Explain a recording with the user's model."""
    config = config_of(options, translation=is_translation(options))
    audio = check_audio(options.audio)
    options.out = check_folder(options.out or Path(f"spes_{Path(audio).stem}"))
    names = ("text", "words", "start", "end", "timestamps", "segment", "over")
    model, processor = model_of(options)
    found = _explained(
        options,
        config,
        model,
        processor,
        audio=audio,
        **writing_of(options),
        **{name: getattr(options, name) for name in names},
    )
    show(found, options.out)


def run_demo(options: argparse.Namespace) -> None:
    """Explain the shipped clip with the model of the demo extra."""
    from spes_hf.demo import demo_audio
    from spes_hf.metrics import listen_back

    options.out = options.out or Path("spes_demo")
    config = config_of(options, "fast")
    model, processor = model_of(options)
    explanation = _explained(options, config, model, processor, audio=demo_audio())
    show(explanation, options.out, listen_back(model, processor, explanation))


def run_report(options: argparse.Namespace) -> None:
    """Draw the pages and pictures of a saved explanation."""
    folder = options.folder if options.folder.is_dir() else options.folder.parent
    show(load_saved(options.folder), folder)


def _explained(options: argparse.Namespace, config: Any, model: Any, processor: Any, **arguments: Any) -> Any:
    from spes_hf.engine import explain

    return explain(
        model,
        processor,
        config=config,
        seed=options.seed,
        progress=not options.quiet,
        folder=options.out,
        **running_of(options),
        **arguments,
    )

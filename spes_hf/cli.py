"""The command line: ``spes-hf explain | diagnose | check | evaluate | compare | plan | report | demo | app``.

Exit codes: 0 done, 2 wrong arguments or settings, 3 audio that cannot be explained, 4 a model that cannot be loaded or
has no adapter, 5 a folder that holds no explanation, 1 any other error, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence

from spes_hf import __version__
from spes_hf.commands.checking import add_check, run_check
from spes_hf.commands.comparing import add_compare, run_compare
from spes_hf.commands.diagnosing import add_diagnose, run_diagnose
from spes_hf.commands.evaluating import add_evaluate, run_evaluate
from spes_hf.commands.explaining import add_demo, add_explain, add_report, run_demo, run_explain, run_report
from spes_hf.commands.options import DEMO, load_model
from spes_hf.commands.planning import add_plan, run_plan
from spes_hf.commands.serving import add_app, run_app
from spes_hf.errors import AudioError, ConfigError, ExplanationFormatError, SpesError, UnsupportedModelError

__all__ = ["DEMO", "build_parser", "load_model", "main"]

EXIT_ERROR, EXIT_USAGE, EXIT_AUDIO, EXIT_MODEL, EXIT_FORMAT, EXIT_INTERRUPTED = 1, 2, 3, 4, 5, 130

_EXIT_CODES = (
    (ConfigError, EXIT_USAGE),
    (AudioError, EXIT_AUDIO),
    (UnsupportedModelError, EXIT_MODEL),
    (ExplanationFormatError, EXIT_FORMAT),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = build_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # a console that cannot print a character shows its code instead
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        if not isinstance(error, (SpesError, OSError)):
            print(f"spes-hf: {type(error).__name__}: {error} (add --debug for the traceback)", file=sys.stderr)
            return EXIT_ERROR
        print(f"spes-hf: {error}", file=sys.stderr)
        return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_ERROR)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="spes-hf",
        description="Why did the speech model write that word? Saliency over the spectrogram and over earlier tokens.",
        epilog="exit codes: " + (__doc__ or "").split("Exit codes: ")[1].replace("\n", " ").strip(),
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands: tuple[tuple[str, Callable[..., None], Callable[..., None], str], ...] = (
        ("explain", add_explain, run_explain, "explain what a model writes for a recording"),
        (
            "diagnose",
            add_diagnose,
            run_diagnose,
            "classify every error of a transcript: misheard, guessed, or not heard?",
        ),
        ("check", add_check, run_check, "did the model hear what it wrote, or make it up? Three passes, no maps"),
        (
            "evaluate",
            add_evaluate,
            run_evaluate,
            "measure how good an explanation is: deletion, insertion, size, baselines",
        ),
        ("compare", add_compare, run_compare, "compare two saved explanations of one clip: two models, or two methods"),
        ("plan", add_plan, run_plan, "estimate what a corpus will cost: passes, GPU-hours, bytes; print the command"),
        ("report", add_report, run_report, "redraw the pages and pictures of a saved explanation"),
        ("demo", add_demo, run_demo, "explain a clip of J. F. Kennedy with Whisper tiny.en; no hub needed"),
        ("app", add_app, run_app, "serve a web page for people who do not write Python; needs the 'app' extra"),
    )
    added = parser.add_subparsers(title="commands", required=True, metavar=" | ".join(name for name, *_ in commands))
    for name, add, run, summary in commands:
        command = added.add_parser(name, help=summary)
        add(command)
        command.set_defaults(run=run)
        command.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The command line: ``spes-hf explain | diagnose | check | report | demo``.

Exit codes: 0 done, 2 wrong arguments or settings, 3 audio that cannot be explained, 4 a model that cannot be loaded or
has no adapter, 5 a folder that holds no explanation, 1 any other error, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spes_hf import __version__
from spes_hf.errors import AudioError, ConfigError, ExplanationFormatError, SpesError, UnsupportedModelError
from spes_hf.files import TextFileError, read_text
from spes_hf.names import PRESETS, TINY_MODELS
from spes_hf.summaries import load_saved, show

if TYPE_CHECKING:
    from spes_hf.methods import SpesConfig

EXIT_ERROR, EXIT_USAGE, EXIT_AUDIO, EXIT_MODEL, EXIT_FORMAT, EXIT_INTERRUPTED = 1, 2, 3, 4, 5, 130

_EXIT_CODES = (
    (ConfigError, EXIT_USAGE),
    (AudioError, EXIT_AUDIO),
    (UnsupportedModelError, EXIT_MODEL),
    (ExplanationFormatError, EXIT_FORMAT),
)

# The model of the demo extra, which needs no hub, like those that the package ships (`TINY_MODELS`).
DEMO = "demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = build_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # a console that cannot write a letter shows its code instead
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
            print(f"spes-hf: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
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
    names = "explain | diagnose | check | report | demo"
    commands = parser.add_subparsers(title="commands", required=True, metavar=names)

    explain = commands.add_parser("explain", help="explain what a model writes for a recording")
    explain.add_argument("audio", metavar="AUDIO", help="a recording of any length")
    explain.add_argument("--text", help="explain this output instead of the one that the model generates")
    explain.add_argument("--words", nargs="+", metavar="WORD", help="explain these words alone, which costs less")
    explain.add_argument("--start", type=float, metavar="S", help="explain a recording from here on, in seconds")
    explain.add_argument("--end", type=float, metavar="S", help="explain a recording up to here, in seconds")
    explain.add_argument("--timestamps", action="store_true", help="explain the model's timestamps, too")
    explain.add_argument("--segment", choices=("pauses",), help="cut a recording where speech pauses")
    explain.add_argument(
        "--over",
        choices=("spectrogram", "encoder"),
        default="spectrogram",
        help="encoder: saliency over the encoder's output as well (default: spectrogram)",
    )
    explain.set_defaults(run=run_explain, preset="default")

    diagnose = commands.add_parser("diagnose", help="every error of a transcript: misheard, guessed, or not heard?")
    diagnose.add_argument("audio", metavar="AUDIO", help="a recording")
    diagnose.add_argument("--reference", required=True, metavar="TEXT|FILE", help="what was said, or a file with it")
    diagnose.add_argument("--text", help="diagnose this output instead of the one that the model generates")
    diagnose.set_defaults(run=run_diagnose, preset="default")

    check = commands.add_parser("check", help="did the model hear what it writes, or make it up? Three passes, no maps")
    check.add_argument("audio", nargs="+", metavar="AUDIO", help="recordings")
    check.set_defaults(run=run_check)

    for command in (explain, diagnose, check):
        command.add_argument(
            "--model",
            required=True,
            metavar="ID_OR_PATH",
            help=f"a model of the Hub, a folder, or without a hub: {DEMO} (Whisper tiny.en), {', '.join(TINY_MODELS)}",
        )
        command.add_argument("--language", help="language of the speech (Whisper)")
        command.add_argument("--task", choices=("transcribe", "translate"), help="what Whisper shall do")
        command.add_argument("--tgt-lang", help="language of the text (SeamlessM4T, multilingual Speech2Text)")
        command.add_argument("--num-beams", type=int, metavar="N", help="width of beam search")
        command.add_argument("--device", help="where the model runs, for example cuda (default: cuda if any)")
        command.add_argument(
            "--dtype",
            choices=("auto", "float32", "bfloat16", "float16"),
            default="auto",
            help="type of the weights (default: auto, the checkpoint's own, on a CPU float32)",
        )

    demo = commands.add_parser("demo", help="explain a clip of J. F. Kennedy with Whisper tiny.en; no hub needed")
    demo.set_defaults(run=run_demo, preset="fast")

    for command in (explain, diagnose, demo):
        command.add_argument("--preset", choices=PRESETS, help=f"default: {command.get_default('preset')}")
        command.add_argument("--num-masks", type=int, metavar="N", help="how many times the spectrogram is perturbed")
        command.add_argument("--num-token-masks", type=int, metavar="N", help="how many times earlier tokens are")
        command.add_argument("--batch-size", type=int, metavar="B", help="perturbed copies in one forward pass")
        command.add_argument("--seed", type=int, default=0, help="same seed, same masks (default: 0)")
        folder = "spes_demo" if command is demo else "spes_<name of the clip>"
        command.add_argument("--out", type=Path, metavar="DIR", help=f"where to write (default: {folder})")
        command.add_argument("--quiet", action="store_true", help="no progress bar")

    report = commands.add_parser("report", help="draw the pages and pictures of a saved explanation again")
    report.add_argument("folder", type=Path, metavar="DIR", help="a folder that explain or Explanation.save() wrote")
    report.set_defaults(run=run_report)

    for command in (explain, diagnose, check, demo, report):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run_explain(options: argparse.Namespace) -> None:
    """Explain a recording with the user's model."""
    generate_kwargs = {} if options.num_beams is None else {"num_beams": options.num_beams}
    translation = options.task == "translate" or options.tgt_lang is not None
    config = _config(options, "st" if translation else "asr")
    options.out = options.out or Path(f"spes_{Path(options.audio).stem}")
    if not Path(options.audio).is_file():
        raise AudioError(f"audio {options.audio!r} does not exist; pass the path of a recording")
    if options.out.is_file():
        raise ConfigError(f"--out is {str(options.out)!r}, which is a file; pass a folder")
    _explain(
        options,
        config,
        *load_model(options.model, options.device, options.dtype),
        audio=options.audio,
        language=options.language,
        task=options.task,
        tgt_lang=options.tgt_lang,
        text=options.text,
        generate_kwargs=generate_kwargs,
        words=options.words,
        start=options.start,
        end=options.end,
        timestamps=options.timestamps,
        segment=options.segment,
        over=options.over,
    )


def run_diagnose(options: argparse.Namespace) -> None:
    """Trace every error of what a model writes for a recording to the sound or to the context."""
    from spes_hf.diagnosing import diagnose
    from spes_hf.viz.scale import printable

    reference = _reference(options.reference)
    translation = options.task == "translate" or options.tgt_lang is not None
    config = _config(options, "st" if translation else "asr")
    out = options.out or Path(f"spes_{Path(options.audio).stem}")
    if not Path(options.audio).is_file():
        raise AudioError(f"audio {options.audio!r} does not exist; pass the path of a recording")
    if out.is_file():
        raise ConfigError(f"--out is {str(out)!r}, which is a file; pass a folder")
    found = diagnose(
        *load_model(options.model, options.device, options.dtype),
        options.audio,
        reference,
        config=config.changed(impact="log-odds"),
        language=options.language,
        task=options.task,
        tgt_lang=options.tgt_lang,
        text=options.text,
        generate_kwargs={} if options.num_beams is None else {"num_beams": options.num_beams},
        batch_size=options.batch_size,
        seed=options.seed,
        progress=not options.quiet,
    )
    page = found.to_html(out / "diagnosis.html")
    written = json.dumps(found.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    (out / "diagnosis.json").write_text(written + "\n", encoding="utf-8")
    if found.explanation is not None:
        found.explanation.save(out / "explanation")
    else:  # maps of a run before are of other errors
        for path in (out / "explanation").glob("explanation*.*"):
            path.unlink()
    print("\n".join(["", *map(printable, str(found).splitlines()), "", f"page: {page}"]))


def _reference(given: str) -> str:
    """Return the text of a reference: of the file that it names, or itself.

    Raises:
        ConfigError: If the file holds no text.
    """
    path = Path(given)
    try:
        is_file = path.is_file()
    except OSError:  # a text too long for a name
        is_file = False
    if not is_file:
        return given
    try:
        text = read_text(path)
    except (OSError, TextFileError) as error:
        raise ConfigError(f"--reference {given!r} cannot be read as text: {error}") from error
    if not text.strip():
        raise ConfigError(f"--reference is {given!r}, an empty file; pass a file with what was said")
    return " ".join(text.split())


def run_check(options: argparse.Namespace) -> None:
    """Say of recordings whether the model heard what it writes; one that cannot be read does not stop the others."""
    from spes_hf.hearing import SoundChecker
    from spes_hf.viz.scale import printable

    checker = SoundChecker(*load_model(options.model, options.device, options.dtype))
    settings = {"language": options.language, "task": options.task, "tgt_lang": options.tgt_lang}
    beams = {} if options.num_beams is None else {"num_beams": options.num_beams}
    failed: list[SpesError] = []
    for audio in options.audio:
        try:
            found = checker(audio, generate_kwargs=beams, **settings)
        except AudioError as error:
            failed.append(error)
            print(f"{audio}\n  {error}", file=sys.stderr)
            continue
        guessed = ", ".join(map(printable, found.not_heard))
        print(f"{audio}\n  {printable(str(found))}" + (f"\n  not heard (under 1 bit): {guessed}" if guessed else ""))
    if failed:
        raise AudioError(f"{len(failed)} of {len(options.audio)} recordings could not be checked; see above")


def run_demo(options: argparse.Namespace) -> None:
    """Explain the clip that the package ships with the model of the demo extra."""
    from spes_hf.demo import demo_audio

    options.out = options.out or Path("spes_demo")
    _explain(options, _config(options, "asr"), *load_model(DEMO, None, "auto"), audio=demo_audio())


def run_report(options: argparse.Namespace) -> None:
    """Draw the pages and pictures of a saved explanation."""
    folder = options.folder if options.folder.is_dir() else options.folder.parent
    show(load_saved(options.folder), folder)


def load_model(name: str, device: str | None, dtype: str) -> tuple[Any, Any]:
    """Return the model and the processor of a name.

    Raises:
        ConfigError: If torch cannot use the device.
        UnsupportedModelError: If the model cannot be loaded.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto" and device == "cpu":
        dtype = "float32"  # half precision is slower there, and less exact
    try:
        if name == DEMO or (name in TINY_MODELS and not Path(name).exists()):
            from spes_hf.demo import load_demo_model, load_tiny_model

            model, processor = load_demo_model() if name == DEMO else load_tiny_model(name)
            model = model if dtype == "auto" else model.to(getattr(torch, dtype))
        else:
            from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

            processor = AutoProcessor.from_pretrained(name)
            model = AutoModelForSpeechSeq2Seq.from_pretrained(name, dtype=dtype)
    except (ImportError, KeyError, OSError, ValueError) as error:
        if isinstance(error, SpesError):
            raise
        from spes_hf.adapters import missing_version_for

        missing = missing_version_for(name)
        if missing:
            raise UnsupportedModelError(f"--model {name!r} needs {missing}") from error
        raise UnsupportedModelError(
            f"--model {name!r} cannot be loaded: {error}\nPass a speech-to-text model of the Hub, a folder that "
            f"save_pretrained() wrote (model and processor), or one of {DEMO}, {', '.join(TINY_MODELS)}"
        ) from error
    try:
        return model.to(device), processor
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--device is {device!r}, which torch or the model cannot use here: {error}") from error


def _explain(options: argparse.Namespace, config: SpesConfig, model: Any, processor: Any, **arguments: Any) -> None:
    from spes_hf.engine import explain

    explanation = explain(
        model,
        processor,
        config=config,
        batch_size=options.batch_size,
        seed=options.seed,
        progress=not options.quiet,
        folder=options.out,
        **arguments,
    )
    show(explanation, options.out)


def _config(options: argparse.Namespace, task: Any) -> SpesConfig:
    from spes_hf.methods.presets import preset

    counts = {"num_spectrogram_masks": options.num_masks, "num_token_masks": options.num_token_masks}
    return preset(options.preset, task, **{name: count for name, count in counts.items() if count is not None})


if __name__ == "__main__":
    sys.exit(main())

"""``spes-hf evaluate``: how good saved explanations are, next to baselines that cost nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spes_hf.commands.options import (
    METRICS,
    MODELS,
    add_batch_size,
    add_generation,
    add_loading,
    check_numbers,
    generate_kwargs_of,
    listed,
    model_of,
    text_or_file,
)
from spes_hf.errors import ConfigError, SpesError

if TYPE_CHECKING:
    from spes_hf.evaluating import Saved

BASELINES = ("random", "energy")


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """Add the options of ``evaluate``; autocast is that of the explanation, and no metric compiles the model."""
    command.epilog = (
        "The model runs as it was explained: with the autocast of the explanation, and with its arguments of "
        "generate(). --num-beams and --max-new-tokens replace all of these arguments, for deletion and insertion."
    )
    command.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="folder of an explanation, a recording, or a corpus job (explain_dataset)",
    )
    command.add_argument(
        "--model",
        metavar="ID_OR_PATH",
        help=f"the model that was explained, not needed for size: {MODELS}",
    )
    add_loading(command)
    add_generation(command)
    command.add_argument(
        "--metrics",
        default="deletion,insertion,size",
        metavar="LIST",
        help=f"one or more of {','.join(METRICS)} (default: %(default)s)",
    )
    command.add_argument(
        "--baselines", default=",".join(BASELINES), metavar="LIST", help="any of %(default)s (default: all); or none"
    )
    command.add_argument("--reference", metavar="TEXT|FILE", help="what was said, as text or as a file")
    command.add_argument("--reference-column", metavar="COLUMN", help="for a corpus: the column with what was said")
    command.add_argument(
        "--quality",
        metavar="METRIC",
        help="wer, cer, bleu, or bleu with a sacrebleu tokenizer, such as bleu:zh (default: depends on the task)",
    )
    command.add_argument("--fractions", choices=("paper", "fine"), default="paper", help="step size of the curves")
    command.add_argument("--max-words", type=int, metavar="N", help="word metrics: at most N words of an utterance")
    command.add_argument("--limit", type=int, metavar="N", help="for a corpus: use only the first N utterances")
    add_batch_size(command)
    command.add_argument("--seed", type=int, default=0, help="seed of the random baseline (default: 0)")
    command.add_argument("--quiet", action="store_true", help="show no progress bar")


def run_evaluate(options: argparse.Namespace) -> None:
    """Measure, print a table, write evaluation.json and the curves next to the explanations.

    Raises:
        SpesError: If some utterances of a corpus could not be measured; the others are measured all the same.
    """
    names = listed("--metrics", options.metrics, METRICS)
    baselines = [] if options.baselines == "none" else listed("--baselines", options.baselines, BASELINES)
    check_numbers(options)
    if options.model is None and names != ["size"]:
        raise ConfigError(f"--model is missing, but {', '.join(names)} need it; pass the model that was explained")
    if generate_kwargs_of(options) and not {"deletion", "insertion"} & set(names):
        raise ConfigError(
            "--num-beams or --max-new-tokens is given, but of the metrics only deletion and insertion write texts, and "
            f"--metrics is {', '.join(names)}; add one of the two, or leave the option out"
        )
    from spes_hf.evaluating import Saved, evaluate
    from spes_hf.metrics.quality import get_quality

    if options.quality is not None:
        get_quality(options.quality)  # find out now, not after hours
    saved = Saved.load(options.folder, options.limit)
    references = _references(options, saved)
    model, processor = (None, None)
    if options.model is not None:
        model, processor = model_of(options)
    found = evaluate(
        saved,
        [_measure(name, options, model, processor) for name in names],
        model,
        references,
        baselines=baselines,
        metric=options.quality or ("bleu" if saved.translations else "wer"),
        seed=options.seed,
        progress=not options.quiet,
    )
    paths = found.write(saved.folder)
    lines = ["", str(found), "", *(f"written: {path}" for path in paths)]
    if found.skipped:
        lines.append(f"rows skipped because they hold an error instead of an explanation: {found.skipped}")
    print("\n".join(lines))
    if found.failures:
        every = found.utterances + len(found.failures)
        first = "\n".join(f"  {name}: {error}" for name, error in found.failures[:10])
        raise SpesError(f"{len(found.failures)} of {every} explanations could not be measured:\n{first}")


def _references(options: argparse.Namespace, saved: Saved) -> str | list[str] | None:
    """Return the reference, or the name of the column of references; None if there is neither.

    Raises:
        ConfigError: If the option given does not suit the content of the folder.
    """
    if saved.corpus and options.reference is not None:
        raise ConfigError("--reference is given, but the folder holds a corpus; pass --reference-column instead")
    if not saved.corpus and options.reference_column is not None:
        raise ConfigError("--reference-column is given, but the folder holds no corpus; pass --reference instead")
    if options.reference is not None:
        if not options.reference.strip():
            raise ConfigError(f"--reference is {options.reference!r}; pass what was said, or leave it out")
        return [text_or_file(options.reference)]
    column = options.reference_column
    if column is not None and column not in saved.columns:
        raise ConfigError(f"--reference-column is {column!r}; the corpus has {', '.join(saved.columns)}")
    return column


def _measure(name: str, options: argparse.Namespace, model: Any, processor: Any) -> Any:
    """Return the metric of that name."""
    from spes_hf.metrics import Deletion, Insertion, Size, WordDeletion, WordInsertion

    rewriting = generate_kwargs_of(options) or None
    if name == "size":
        return Size()
    if name in ("deletion", "insertion"):
        curve = Deletion if name == "deletion" else Insertion
        return curve(model, processor, options.fractions, generate_kwargs=rewriting, batch_size=options.batch_size)
    of_words = WordDeletion if name == "word_deletion" else WordInsertion
    return of_words(model, processor, max_words=options.max_words, batch_size=options.batch_size)

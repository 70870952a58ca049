"""What the recipes for corpus jobs share: their options, how they load corpus and model, and their exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spes_hf.commands import options as shared
from spes_hf.commands.options import (
    add_method,
    add_running,
    config_of,
    generate_kwargs_of,
    is_translation,
    load_model,
    running_of,
)
from spes_hf.errors import ConfigError, SpesError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "add_data",
    "add_job",
    "add_method",
    "add_model",
    "add_running",
    "config_of",
    "corpus_of",
    "generate_kwargs_of",
    "is_translation",
    "model_of",
    "run_job",
    "running_of",
]


def add_data(parser: argparse.ArgumentParser, reference: str) -> argparse._ArgumentGroup:
    """Add the options that choose the corpus, and return their group.

    Args:
        parser: The recipe's parser.
        reference: What the column of references is, for the help.
    """
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", required=True, metavar="PATH_OR_NAME", help="see above")
    data.add_argument("--pair", metavar="EN-XX", help="language pair of MuST-C, such as en-de")
    data.add_argument("--split", help="default: tst-COMMON for MuST-C, otherwise the only split")
    data.add_argument("--name", help="configuration of a dataset on the Hub")
    data.add_argument(
        "--problems", choices=("raise", "skip"), default="raise", help="handling of bad MuST-C utterances"
    )
    data.add_argument("--audio-column", default="audio", metavar="COLUMN", help="default: %(default)s")
    data.add_argument("--id-column", default="id", metavar="COLUMN", help="may be missing (default: %(default)s)")
    data.add_argument("--reference-column", metavar="COLUMN", help=reference)
    data.add_argument("--limit", type=int, metavar="N", help="use only the first N utterances")
    return data


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the model, how it generates, and where it runs."""
    shared.add_model(parser.add_argument_group("model"), "see above", "the accelerator of this process, otherwise cpu")


def add_job(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where to write the job, and which of its processes this is."""
    job = parser.add_argument_group("job")
    job.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the job, new or to be continued")
    job.add_argument("--process-index", type=int, metavar="I", help="index of this process, without a launcher")
    job.add_argument("--num-processes", type=int, metavar="N", help="number of processes, without a launcher")
    job.add_argument(
        "--flush-seconds", type=float, default=60.0, metavar="S", help="seconds between two writes of rows"
    )
    job.add_argument("--quiet", action="store_true", help="show no progress bar")
    job.add_argument("--debug", action="store_true", help="show the full traceback of an error")


def corpus_of(options: argparse.Namespace) -> Dataset:
    """Return the corpus that the options name, or its first utterances if there is a limit.

    Raises:
        ConfigError: If there is no such corpus.
    """
    from spes_hf.corpora.sources import load_corpus

    dataset = load_corpus(
        options.dataset,
        audio_column=options.audio_column,
        pair=options.pair,
        split=options.split,
        name=options.name,
        problems=options.problems,
    )
    return dataset if options.limit is None else dataset.select(range(min(options.limit, len(dataset))))


def model_of(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the model, on the device of this process unless the options say where, and its processor.

    Raises:
        ConfigError: If torch cannot use the device, or the model cannot be spread in this way.
        UnsupportedModelError: If the model cannot be loaded.
    """
    import torch
    from accelerate import PartialState

    device = options.device
    if device is None and options.device_map is None:
        alone = options.num_processes is not None or not torch.accelerator.is_available()
        device = None if alone else str(PartialState().device)
    return load_model(options.model, device, options.dtype, options.device_map)


def run_job(name: str, run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a job and return its exit code: that of the job, 1 for an error, 2 for wrong arguments, 130 if interrupted.

    Args:
        name: Name of the recipe, for messages.
        run: Runs the job and returns the exit code.
        options: The command line's options.
    """
    from spes_hf.corpora.mustc import CorpusError

    try:
        return run(options)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug or not isinstance(error, (SpesError, OSError)):
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ConfigError, CorpusError)) else 1

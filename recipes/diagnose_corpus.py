# Copyright 2026 The spes_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
# /// script
# requires-python = ">=3.10"
# dependencies = ["spes-hf[demo]"]
# ///
r"""Diagnoses every error that a speech model makes on a corpus: misheard, guessed, or not heard?

What the model writes is aligned with the references, word by word. Of every error, the log-odds of what was written
against what was said are parted into what the word's own stretch of sound adds (evidence) and the rest (context).

Data sets (--dataset):
  a folder with MuST-C, and --pair       MUSTC --pair en-de --split tst-COMMON
  a folder of audio files                with metadata.csv or metadata.jsonl ("file_name" and texts)
  a manifest                             FILE.jsonl, an object a line; --audio-column holds paths, relative to the file
  a folder of Dataset.save_to_disk()
  a name on the Hub                      NAME --split test [--name CONFIGURATION]

Models (--model): of the Hub, a folder, or one that needs no hub: demo (Whisper tiny.en), speech2text-en and
seamless-en-de-es (two tiny models that the package ships).

What is written (--out):
  data/*.parquet    the rows: the columns of the data set but the audio; "diagnosis" (JSON) and "diagnosis_maps",
                    "prediction", the number of errors by verdict, and "error"
  report.md         word error rate with the shares of misheard, guessed and not heard errors; the confusions that occur
                    most; by group (--by): permutation tests
  report.json       the same, ready for a machine
  causes.png        the figure: verdicts by group, and which frequencies spoke for the confusions that occur most
  pages/*.html      a page for each of the --pages utterances with the most errors

  In Python: rows = spes_hf.jobs.run.load_explained(OUT); print(spes_hf.diagnosis_of(rows[0]))

Start the same command again to go on where it was interrupted or killed. Many processes work as with
explain_dataset.py: accelerate launch, torchrun, or --process-index and --num-processes.

Examples:
  uv run recipes/diagnose_corpus.py --model openai/whisper-base --dataset clips.jsonl --audio-column file \
      --reference-column text --by gender --out OUT
  uv run recipes/diagnose_corpus.py --model speech2text-en --dataset FOLDER --reference-column transcript --out OUT

Exit codes: 0 all diagnosed; 1 some utterances failed (the others are complete) or the job could not go on; 2 wrong
arguments or settings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="diagnose_corpus.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", required=True, metavar="PATH_OR_NAME", help="see above")
    data.add_argument("--pair", metavar="EN-XX", help="languages of MuST-C, such as en-de")
    data.add_argument("--split", help="default: tst-COMMON for MuST-C, else the only one there is")
    data.add_argument("--name", help="configuration of a data set of the Hub")
    data.add_argument("--audio-column", default="audio", metavar="COLUMN", help="default: %(default)s")
    data.add_argument("--id-column", default="id", metavar="COLUMN", help="may be missing (default: %(default)s)")
    data.add_argument(
        "--reference-column",
        metavar="COLUMN",
        help="what was said (default: text; for MuST-C transcript, or translation)",
    )
    data.add_argument("--times-column", metavar="COLUMN", help="start and end of every word of the reference, in s")
    data.add_argument("--limit", type=int, metavar="N", help="only the first N utterances")

    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, metavar="ID_OR_PATH", help="see above")
    model.add_argument("--language", help="language of the speech (Whisper)")
    model.add_argument("--task", choices=("transcribe", "translate"), help="what Whisper shall do")
    model.add_argument("--tgt-lang", help="language of the text (SeamlessM4T, multilingual Speech2Text)")
    model.add_argument("--num-beams", type=int, metavar="N", help="width of beam search")
    model.add_argument("--max-new-tokens", type=int, metavar="N", help="limit of the text's length")
    model.add_argument("--device", help="default: the accelerator of this process, else cpu")
    model.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")

    method = parser.add_argument_group("method")
    method.add_argument("--preset", choices=("fast", "default"), default="default", help="default: %(default)s")
    method.add_argument("--num-masks", type=int, metavar="N", help="how many times the spectrogram is perturbed")
    method.add_argument("--batch-size", type=int, metavar="B", help="perturbed copies in one forward pass")
    method.add_argument("--seed", type=int, default=0, help="same seed, same masks (default: 0)")

    report = parser.add_argument_group("report")
    report.add_argument("--by", metavar="COLUMN", help="compare by this column, such as speaker or gender")
    report.add_argument("--pages", type=int, default=5, metavar="N", help="pages of utterances (default: %(default)s)")

    job = parser.add_argument_group("job")
    job.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the job, to go on with as well")
    job.add_argument("--process-index", type=int, metavar="I", help="of processes that no launcher starts together")
    job.add_argument("--num-processes", type=int, metavar="N", help="how many of them there are")
    job.add_argument("--flush-seconds", type=float, default=60.0, metavar="S", help="write finished rows this often")
    job.add_argument("--quiet", action="store_true", help="no progress bar")
    job.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if options.pages < 0:
        parser.error(f"argument --pages: {options.pages}; allowed: a whole number, at least 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return the exit code."""
    options = parse_arguments(arguments)
    from spes_hf import ConfigError, SpesError
    from spes_hf.corpora.mustc import CorpusError

    try:
        return run(options)
    except KeyboardInterrupt:
        print("interrupted; start the same command again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug or not isinstance(error, (SpesError, OSError)):
            raise
        print(f"diagnose_corpus.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ConfigError, CorpusError)) else 1


def run(options: argparse.Namespace) -> int:
    """Diagnose, report; return the exit code."""
    from spes_hf import ConfigError, Diagnose
    from spes_hf.corpora.sources import load_corpus
    from spes_hf.jobs.run import map_rows
    from spes_hf.jobs.schedule import estimate_costs, find_place
    from spes_hf.methods.presets import preset

    find_place(options.process_index, options.num_processes)  # before the model: it chooses the device
    dataset = load_corpus(
        options.dataset,
        audio_column=options.audio_column,
        pair=options.pair,
        split=options.split,
        name=options.name,
    )
    if options.limit is not None:
        dataset = dataset.select(range(min(options.limit, len(dataset))))
    translation = options.task == "translate" or options.tgt_lang is not None
    reference = options.reference_column
    if reference is None:
        reference = "text" if options.pair is None else "translation" if translation else "transcript"
    for option, column in (("--reference-column", reference), ("--by", options.by)):
        if column is not None and column not in dataset.column_names:
            raise ConfigError(f"{option} is {column!r}; the data set has {', '.join(dataset.column_names)}")
    model, processor = load_model(options)
    masks = {} if options.num_masks is None else {"num_spectrogram_masks": options.num_masks}
    given = {"num_beams": options.num_beams, "max_new_tokens": options.max_new_tokens}
    transform = Diagnose(
        model,
        processor,
        preset(options.preset, "st" if translation else "asr", **masks),
        reference_column=reference,
        times_column=options.times_column,
        audio_column=options.audio_column,
        id_column=options.id_column,
        language=options.language,
        task=options.task,
        tgt_lang=options.tgt_lang,
        generate_kwargs={name: value for name, value in given.items() if value is not None},
        batch_size=options.batch_size,
        seed=options.seed,
    )
    summary = map_rows(
        dataset,
        [transform],
        options.out,
        costs=lambda: estimate_costs(dataset, options.audio_column, transform.adapter.window_s, "duration"),
        audio_column=options.audio_column,
        id_column=options.id_column,
        progress=not options.quiet,
        process_index=options.process_index,
        num_processes=options.num_processes,
        flush_seconds=options.flush_seconds,
    )
    if not summary.reports:
        return 0
    print(summary)
    if len(summary.failures) < summary.rows:
        report(options)
    return summary.exit_code


def load_model(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the model, on the device of this process, and its processor."""
    import torch
    from accelerate import PartialState

    from spes_hf.cli import load_model as load

    device = options.device
    if device is None:
        alone = options.num_processes is not None or not torch.accelerator.is_available()
        device = None if alone else str(PartialState().device)
    return load(options.model, device, options.dtype)


def report(options: argparse.Namespace) -> None:
    """Write tables, figure and pages."""
    from spes_hf import diagnosis_of
    from spes_hf.analysis import error_causes
    from spes_hf.jobs.run import load_explained

    rows = load_explained(options.out)
    causes = error_causes(rows, options.by, options.seed)
    title = f"# What {Path(options.model).name} gets wrong on {Path(options.dataset).name}\n\n"
    (options.out / "report.md").write_text(title + causes.to_markdown(), encoding="utf-8")
    numbers = json.dumps(causes.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    (options.out / "report.json").write_text(numbers + "\n", encoding="utf-8")
    causes.plot()[0].savefig(options.out / "causes.png", dpi=130, bbox_inches="tight")
    print(causes.to_markdown())
    errors = rows["word_errors"]
    worst = sorted(range(len(rows)), key=lambda i: (-errors[i], i))[: options.pages]
    for index in worst:
        row = rows[index]
        if row["error"] or not row["word_errors"]:
            continue
        name = re.sub(r"[^\w.-]+", "_", str(row.get(options.id_column) or index))[:80]
        print(f"page: {diagnosis_of(row).to_html(options.out / 'pages' / f'{name}.html')}")
    print(f"report: {options.out / 'report.md'}, figure: {options.out / 'causes.png'}")


if __name__ == "__main__":
    sys.exit(main())

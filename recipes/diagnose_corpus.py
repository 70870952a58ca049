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
#
# [tool.uv.sources]
# spes-hf = { path = "..", editable = true }
# ///
r"""Diagnoses every error that a speech model makes on a corpus: misheard, guessed, or not heard?

Aligns what the model writes with the references, word by word. For every error, splits the log-odds of what was written
against what was said into what the word's own stretch of sound adds (evidence) and the rest (context).

Datasets (--dataset):
  a folder with MuST-C, and --pair       MUSTC --pair en-de --split tst-COMMON
  a folder of audio files                with metadata.csv or metadata.jsonl ("file_name" and texts)
  a manifest                             FILE.jsonl, one object per line; --audio-column has paths relative to the file
  a folder of Dataset.save_to_disk()
  a name on the Hub                      NAME --split test [--name CONFIGURATION]

Models (--model): a Hub id, a folder, or a model that needs no hub: demo (Whisper tiny.en), speech2text-en and
seamless-en-de-es (two tiny models that the package ships).

Output (--out):
  data/*.parquet    the rows: the columns of the dataset except the audio; "diagnosis" (JSON) and "diagnosis_maps",
                    "prediction", the number of errors by verdict, and "error"
  report.md         word error rate with the shares of misheard, guessed and not heard errors; the most frequent
                    confusions; by group (--by): permutation tests
  report.json       the same as JSON
  causes.png        the figure: verdicts by group, and which frequencies spoke for the most frequent confusions
  pages/*.html      a page for each of the --pages utterances with the most errors

  In Python: rows = spes_hf.jobs.run.load_explained(OUT); print(spes_hf.diagnosis_of(rows[0]))

Run the same command again to continue a job that was interrupted or killed. For many processes, use accelerate launch,
torchrun, or --process-index and --num-processes, as with explain_dataset.py.

Examples:
  uv run recipes/diagnose_corpus.py --model openai/whisper-base --dataset clips.jsonl --audio-column file \
      --reference-column text --by gender --out OUT
  uv run recipes/diagnose_corpus.py --model speech2text-en --dataset FOLDER --reference-column transcript --out OUT

Exit codes: 0 all diagnosed; 1 some utterances failed (the others are complete) or the job could not continue; 2 wrong
arguments or settings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from spes_hf import job_options


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="diagnose_corpus.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = job_options.add_data(parser, "what was said (default: text; for MuST-C transcript, or translation)")
    data.add_argument("--times-column", metavar="COLUMN", help="start and end of every reference word, in seconds")
    job_options.add_model(parser)

    method = parser.add_argument_group("method")
    job_options.add_method(method, presets=("fast", "default"), tokens=False)
    job_options.add_running(method)
    method.add_argument("--seed", type=int, default=0, help="same seed, same masks (default: 0)")

    report = parser.add_argument_group("report")
    report.add_argument("--by", metavar="COLUMN", help="compare groups by this column, such as speaker or gender")
    report.add_argument(
        "--pages", type=int, default=5, metavar="N", help="number of pages to write (default: %(default)s)"
    )

    job_options.add_job(parser)
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command-line options."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.pages < 0:
        parser.error(f"argument --pages: {options.pages}; allowed: a whole number of at least 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return the exit code."""
    return job_options.run_job("diagnose_corpus.py", run, parse_arguments(arguments))


def run(options: argparse.Namespace) -> int:
    """Diagnose the corpus, write the report, and return the exit code."""
    from spes_hf import ConfigError, Diagnose
    from spes_hf.jobs.run import map_rows
    from spes_hf.jobs.schedule import estimate_costs, find_place

    find_place(options.process_index, options.num_processes)  # before loading the model, since it chooses the device
    # Find out about these now, not when the corpus is read.
    generate_kwargs = job_options.generate_kwargs_of(options)
    translation = job_options.is_translation(options)
    config = job_options.config_of(options, translation=translation)
    dataset = job_options.corpus_of(options)
    reference = options.reference_column
    if reference is None:
        reference = "text" if options.pair is None else "translation" if translation else "transcript"
    for option, column in (("--reference-column", reference), ("--by", options.by)):
        if column is not None and column not in dataset.column_names:
            raise ConfigError(f"{option} is {column!r}; the dataset has {', '.join(dataset.column_names)}")
    model, processor = job_options.model_of(options)
    transform = Diagnose(
        model,
        processor,
        config,
        reference_column=reference,
        times_column=options.times_column,
        audio_column=options.audio_column,
        id_column=options.id_column,
        language=options.language,
        task=options.task,
        tgt_lang=options.tgt_lang,
        prompt=options.prompt,
        generate_kwargs=generate_kwargs,
        seed=options.seed,
        **job_options.running_of(options),
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

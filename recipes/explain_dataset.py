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
r"""Explains a whole speech corpus with saliency maps, on any number of processes, in a job that can be resumed.

Every utterance gets an explanation of every token that the model wrote: which regions of the spectrogram, and which of
its own earlier tokens, made the model write it. With --metrics, it scores the explanations as well.

Datasets (--dataset):
  a folder with MuST-C, and --pair       MUSTC --pair en-de --split tst-COMMON
  a folder of audio files                optionally with metadata.csv or metadata.jsonl ("file_name" and texts)
  a manifest                             FILE.jsonl, one object per line; --audio-column has paths relative to the file
  a folder of Dataset.save_to_disk()
  a name on the Hub                      NAME --split test [--name CONFIGURATION]

Models (--model): a Hub id, a folder, or a model that needs no hub: demo (Whisper tiny.en), speech2text-en and
seamless-en-de-es (two tiny models that the package ships).

Output (--out):
  data/*.parquet    the rows: the columns of the dataset except the audio; "explanation" (all of it, as bytes),
                    "prediction", "tokens", "token_probabilities", "reliability", "reached_length_limit", the metrics,
                    and "error", which says why an utterance could not be explained
  manifest.json     what identifies the job: model and dataset (digests of weights and texts), settings, seed
  summary.json      how the job ended: what failed, and why
  scores.json       corpus scores with confidence intervals (with --metrics)
  README.md         the dataset card

  In Python: rows = spes_hf.jobs.run.load_explained(OUT); spes_hf.Explanation.from_row(rows[0]).plot()

To continue a job, run the same command again. Rows on disk are never computed again, whether the job was interrupted,
killed, lost a machine or ran out of space, and whatever the number of processes. At most the last minute (later, the
last twentieth of the run so far) is lost. If settings, model or texts differ, the job is refused; use another --out.

Many processes:
  one machine, 8 GPUs     accelerate launch --multi_gpu --num_processes 8 explain_dataset.py …
  CPUs, 4 cores each      OMP_NUM_THREADS=4 torchrun --nproc-per-node 2 explain_dataset.py …
  several nodes, Slurm    srun torchrun --nnodes $SLURM_NNODES --nproc-per-node 8 --rdzv-backend c10d \
                              --rdzv-endpoint HOST:29500 explain_dataset.py …
  a job array             explain_dataset.py --process-index $SLURM_ARRAY_TASK_ID --num-processes 64 …

Examples:
  uv run recipes/explain_dataset.py --model openai/whisper-base --dataset MUSTC --pair en-de --out OUT --num-masks 300
  uv run recipes/explain_dataset.py --model seamless-en-de-es --tgt-lang deu --dataset MUSTC --pair en-de --out OUT \
      --metrics deletion,insertion,size --fractions fine
  uv run recipes/explain_dataset.py --model demo --dataset clips.jsonl --reference-column text --out OUT --limit 20 \
      --push-to-hub NAME/clips-explained --dry-run

Exit codes: 0 all explained; 1 some utterances failed (the others are complete) or the job could not continue; 2 wrong
arguments or settings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spes_hf import job_options

if TYPE_CHECKING:
    from datasets import Dataset

    from spes_hf.jobs.run import JobSummary

METRICS = ("deletion", "insertion", "size", "word_deletion", "word_insertion", "diagnosis")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="explain_dataset.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = job_options.add_data(
        parser, "what the model should have written, for scores (default for MuST-C: transcript, or translation)"
    )
    data.add_argument("--text-column", metavar="COLUMN", help="explain these texts instead of what the model generates")
    data.add_argument("--over", choices=("spectrogram", "encoder"), default="spectrogram", help="what to map")
    data.add_argument("--segment", choices=("pauses",), help="cut audio where speech pauses")
    job_options.add_model(parser)

    method = parser.add_argument_group("method")
    job_options.add_method(method)
    job_options.add_running(method)
    method.add_argument("--seed", type=int, default=0, help="same seed, same masks (default: 0)")

    scores = parser.add_argument_group("scores")
    scores.add_argument("--metrics", default="", metavar="LIST", help=f"one or more of {','.join(METRICS)}")
    scores.add_argument("--fractions", choices=("paper", "fine"), default="paper", help="step size of the curves")
    scores.add_argument(
        "--max-words", type=int, metavar="N", help="word_deletion, word_insertion: at most N words of an utterance"
    )
    scores.add_argument(
        "--against",
        choices=("reference", "prediction"),
        default="reference",
        help="what to compare texts with (default: reference)",
    )
    scores.add_argument(
        "--quality",
        metavar="METRIC",
        help="wer, cer, bleu, or bleu with a sacrebleu tokenizer, such as bleu:zh, bleu:ja-mecab, bleu:char; "
        "languages without spaces need one of these or cer (default: bleu for translation, otherwise wer)",
    )

    job_options.add_job(parser)

    hub = parser.add_argument_group("hub")
    hub.add_argument("--push-to-hub", metavar="NAME/DATASET", help="upload rows and card when the job is complete")
    hub.add_argument("--private", action="store_true", help="upload as a private dataset")
    hub.add_argument("--dry-run", action="store_true", help="do everything except the upload, and list its files")

    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command-line options."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    options.metrics = [name for name in options.metrics.split(",") if name]
    unknown = [name for name in options.metrics if name not in METRICS]
    if unknown:
        parser.error(f"argument --metrics: {', '.join(unknown)}; allowed: {', '.join(METRICS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return the exit code."""
    return job_options.run_job("explain_dataset.py", run, parse_arguments(arguments))


def run(options: argparse.Namespace) -> int:
    """Explain, score, write the card, upload, and return the exit code."""
    from spes_hf import Deletion, Diagnose, Insertion, Size, WordDeletion, WordInsertion, explain_dataset
    from spes_hf.jobs.schedule import find_place
    from spes_hf.metrics.quality import get_quality

    if options.quality is not None:
        get_quality(options.quality)  # find out now, not after hours
    find_place(options.process_index, options.num_processes)  # before loading the model, since it chooses the device
    # Find out about these now, not when the corpus is read.
    generate_kwargs = job_options.generate_kwargs_of(options)
    config = job_options.config_of(options, translation=job_options.is_translation(options))
    dataset = job_options.corpus_of(options)
    reference = reference_column(options, dataset)
    model, processor = job_options.model_of(options)
    curves = {"deletion": Deletion, "insertion": Insertion}
    of_words = {"word_deletion": WordDeletion, "word_insertion": WordInsertion}
    metrics: list[Any] = []
    for metric in options.metrics:
        if metric == "size":
            metrics.append(Size())
        elif metric in of_words:
            metrics.append(
                of_words[metric](model, processor, max_words=options.max_words, batch_size=options.batch_size)
            )
        elif metric == "diagnosis":
            settings = {name: getattr(options, name) for name in ("language", "task", "tgt_lang", "prompt", "seed")}
            settings |= job_options.running_of(options)
            columns = {name: getattr(options, name) for name in ("audio_column", "id_column", "text_column")}
            settings["generate_kwargs"] = generate_kwargs
            maps = config if options.config is not None else config.changed(impact="log-odds")
            metrics.append(Diagnose(model, processor, maps, reference_column=reference, **settings, **columns))
        else:
            how = {"against": options.against, "batch_size": options.batch_size}
            metrics.append(curves[metric](model, processor, options.fractions, **how))
    summary = explain_dataset(
        model,
        processor,
        dataset,
        options.out,
        config,
        metrics=metrics,
        audio_column=options.audio_column,
        id_column=options.id_column,
        text_column=options.text_column,
        language=options.language,
        task=options.task,
        tgt_lang=options.tgt_lang,
        prompt=options.prompt,
        generate_kwargs=generate_kwargs,
        seed=options.seed,
        progress=not options.quiet,
        process_index=options.process_index,
        num_processes=options.num_processes,
        flush_seconds=options.flush_seconds,
        segment=options.segment,
        over=options.over,
        **job_options.running_of(options),
    )
    if not summary.reports:
        return 0
    print(summary)
    finish(options, summary, reference)
    return summary.exit_code


def reference_column(options: argparse.Namespace, dataset: Dataset) -> str | None:
    """Return the column of references that scores need, if they need one."""
    from spes_hf import ConfigError

    column = options.reference_column
    if column is None and options.pair is not None:
        column = "translation" if job_options.is_translation(options) else "transcript"
    curves = options.against == "reference" and {"deletion", "insertion"} & set(options.metrics)
    needed = curves or "diagnosis" in options.metrics
    if column is None and needed:
        raise ConfigError(
            f"--reference-column is missing; the dataset has {', '.join(dataset.column_names)}"
            + ("" if "diagnosis" in options.metrics else ". Or pass --against prediction")
        )
    if column is not None and column not in dataset.column_names:
        raise ConfigError(f"--reference-column is {column!r}; the dataset has {', '.join(dataset.column_names)}")
    return column


def finish(options: argparse.Namespace, summary: JobSummary, reference: str | None) -> None:
    """Score the rows, write the card, upload both."""
    from spes_hf.metrics import summarize

    scores: dict[str, Any] = {}
    scored = [name for name in options.metrics if name != "diagnosis"]
    if scored and len(summary.failures) < summary.rows:
        from spes_hf.jobs.run import load_explained

        rows = load_explained(options.out)
        columns = [name for name in (reference, "error", *scored) if name is not None]
        quality = options.quality or ("bleu" if job_options.is_translation(options) else "wer")
        scores = summarize(rows.select_columns(columns), reference, metric=quality)
        for score in scores.values():
            print(score)
        values = {
            name: {"value": s.value, "low": s.interval.low, "high": s.interval.high, "signature": s.signature}
            for name, s in scores.items()
        }
        (options.out / "scores.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    write_card(options, summary, scores)
    if options.push_to_hub is not None:
        push(options)


CARD = """---
pretty_name: {title}
tags:
- spes_hf
- explainability
- speech
configs:
- config_name: default
  data_files: data/*.parquet
---

# {title}

Explanations of what `{model}` wrote for every utterance of `{dataset}`: which regions of the spectrogram, and which of
its own earlier tokens, made it write each token. Made with spes_hf {version}.

{rows} utterances, {failed} of which could not be explained (see "error").

## Use

```python
from datasets import load_dataset
from spes_hf import Explanation

rows = load_dataset("{name}", split="train").sort("row_index")
explanation = Explanation.from_row(rows[0])
explanation.words().plot()
```

`explanation` holds a whole explanation as bytes (a safetensors file): maps, spectrogram and sound. Columns for reading
are `prediction`, `tokens`, `token_probabilities`, `reliability` (split-half, of the sentence's map) and
`reached_length_limit`. `row_index` is the position in the explained dataset, whose columns, except the audio, are here
as well.
{scores}
## Settings

```json
{settings}
```
"""


def write_card(options: argparse.Namespace, summary: JobSummary, scores: dict[str, Any]) -> None:
    """Write README.md, the dataset card on the Hub."""
    from spes_hf import __version__

    manifest = json.loads((options.out / "manifest.json").read_text(encoding="utf-8"))
    name = options.push_to_hub or str(options.out)
    table = ["", "## Scores", "", "| score | value | 95 % interval | better |", "|---|---|---|---|"]
    table += [
        f"| {n} | {s.value:.2f} | {s.interval} | {'higher' if s.higher_is_better else 'lower'} |"
        for n, s in scores.items()
    ]
    card = CARD.format(
        title=f"{Path(options.dataset).name} explained by {Path(options.model).name}",
        model=options.model,
        dataset=Path(options.dataset).name,
        version=__version__,
        rows=summary.rows,
        failed=len(summary.failures),
        name=name,
        scores="\n".join([*table, ""]) if scores else "",
        settings=json.dumps(manifest["transforms"], indent=1, ensure_ascii=False),
    )
    (options.out / "README.md").write_text(card, encoding="utf-8")


def push(options: argparse.Namespace) -> None:
    """Upload rows and card, or say what would be uploaded."""
    patterns = ["README.md", "manifest.json", "summary.json", "scores.json", "data/*.parquet"]
    files = [path for pattern in patterns for path in sorted(options.out.glob(pattern))]
    size = sum(path.stat().st_size for path in files)
    what = f"{len(files)} files ({size / 1e6:.1f} MB) to the dataset {options.push_to_hub}"
    if options.dry_run:
        print(f"dry run: would upload {what}: {', '.join(str(p.relative_to(options.out)) for p in files)}")
        return
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(options.push_to_hub, repo_type="dataset", private=options.private, exist_ok=True)
    api.upload_folder(
        repo_id=options.push_to_hub, repo_type="dataset", folder_path=options.out, allow_patterns=patterns
    )
    print(f"uploaded {what}")


if __name__ == "__main__":
    sys.exit(main())

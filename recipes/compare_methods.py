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
# dependencies = ["spes-hf[captum,demo]"]
#
# [tool.uv.sources]
# spes-hf = { path = "..", editable = true }
# ///
r"""Finds out which method explains a model best on your data: deletion, insertion, size, with intervals and costs.

Explains every utterance with every method, deletes and inserts the most salient features while the model writes again,
and writes a table (results.md), all numbers (results.json) and the curves (*.png). With --words N, it scores the maps
of single words as well: it deletes and inserts what is most salient for a word, and measures the probabilities of that
word and of the other words.

Methods are named as in the paper's tables: "SPES", "feature-wise", "bubble noise", "- multi-scale", "- clustering",
"- duration adaptation", "- KL", "joint", "coarse", then "random", "energy", "attention", "saliency",
"input x gradient", "integrated gradients", this package's presets "default" and "fast", and FILE.json for a config that
ExplainConfig.to_json() wrote; --config FILE adds such a file too. To change settings, add them after a colon:
"SPES:fill=zero", "SPES:patches_per_second=20/80/400,num_spectrogram_masks=300".

Measurements are saved under OUT/rows, one small file for each method and utterance. So you can continue a stopped run,
add methods later, or let several processes share one OUT (give each a --share).

Examples:
  python recipes/compare_methods.py --model speech2text-en --preset table1 --num-masks 4000
  python recipes/compare_methods.py --model seamless-en-de-es --tgt-lang deu --preset table1 --num-masks 4000
  python recipes/compare_methods.py --model openai/whisper-base --data CORPUS --methods SPES energy random \
      --num-masks 2000 --fractions fine --max-utterances 20
  python recipes/compare_methods.py --model demo --data CORPUS --preset table9 --against prediction --share 1/2
  python recipes/compare_methods.py --model demo --data CORPUS --methods default fast energy --words 6
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from spes_hf import (
    CaptumConfig,
    Deletion,
    ExplainConfig,
    Explainer,
    Insertion,
    Size,
    SpesConfig,
    SpesError,
    WordDeletion,
    WordInsertion,
    ablations,
)
from spes_hf.adapters import get_adapter
from spes_hf.commands.options import (
    add_config,
    add_generation,
    add_loading,
    add_prompt,
    add_running,
    check_numbers,
    config_in,
    generate_kwargs_of,
    model_of,
    running_of,
)
from spes_hf.errors import ConfigError
from spes_hf.files import read_json_lines
from spes_hf.metrics import FINE_FRACTIONS, PAPER_FRACTIONS, Score, compare, plot_curves, summarize
from spes_hf.metrics.quality import get_quality
from spes_hf.metrics.tables import COLUMNS, score_to_json, table_of

TABLE_1 = ("SPES", "feature-wise", "bubble noise", "- multi-scale", "- clustering", "- duration adaptation", "- KL")
BASELINES = ("random", "energy", "attention", "integrated gradients")
PRESETS = {
    "table1": (*TABLE_1, *BASELINES),
    "table9": ("SPES", "coarse", "bubble noise", "random", "energy", "attention"),
    "ablations": ("SPES", *TABLE_1[3:], "joint", "coarse"),
}
FIRST = 0.2  # the share of features at which the cheap deletion curve ends

# What the table shows of a method's scores; the curve of the probability is cut.
SHOWN = tuple((key, heading) for key, heading in COLUMNS if key != "deletion_probability")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write table, JSON and curves; return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        configs = configs_of(options)
        check_numbers(options)  # find out now, not when the corpus is read
        if options.words is not None and options.words < 1:
            raise ConfigError(f"--words is {options.words}; pass a number of at least 1, or leave it out")
        if options.metric is not None:
            get_quality(options.metric)  # find out now, not after hours
        rows = load_rows(options)
        laboratory = Laboratory(options, configs)
        left = laboratory.measure(rows)
        if left:
            print(f"{left} of {len(rows) * len(configs)} measurements are left for the other shares; no table yet")
            return 0
        write(laboratory, rows, options)
    except SpesError as error:
        print(f"compare_methods: {error}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to explain")
    what.add_argument("--model", required=True, help="Hub id or folder; or demo, speech2text-en, …")
    what.add_argument(
        "--data",
        default="shipped",
        help='"shipped" (24 synthetic clips), a folder with a manifest.jsonl (one object per line, with the path of '
        'the recording in "file"), or a dataset for datasets.load_dataset() (default: shipped)',
    )
    what.add_argument("--split", default="test", help="split of a dataset (default: test)")
    what.add_argument("--audio-column", default="audio", help="audio column of a dataset (default: audio)")
    what.add_argument("--reference-column", help="what the model should have written (default: text, or the clips')")
    what.add_argument("--ids", nargs="+", default=[], metavar="ID", help="use only the utterances with these ids")
    what.add_argument("--max-utterances", type=int, metavar="N", help="use only the first N utterances")
    what.add_argument("--language", help="language of the speech (Whisper)")
    what.add_argument("--task", choices=("asr", "st"), help="τ of the paper (default: st with --tgt-lang, else asr)")
    what.add_argument("--tgt-lang", help="language of the text (SeamlessM4T)")
    add_prompt(what)
    add_generation(what)
    add_loading(what)
    how = parser.add_argument_group("which methods to compare")
    how.add_argument("--preset", choices=PRESETS, help="the paper's Table 1, Table 9 or all ablations, with baselines")
    how.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="(more) methods; the others are compared to the first",
    )
    add_config(how, "compared as one more method, before those of --methods")
    how.add_argument(
        "--num-masks", type=int, metavar="N", help="masks over the spectrogram, all methods (default: the paper's)"
    )
    how.add_argument("--num-token-masks", type=int, metavar="N", help="masks over tokens (default: the paper's)")
    add_running(how)
    how.add_argument("--seed", type=int, default=0, help="same seed, same masks (default: 0)")
    score = parser.add_argument_group("how to score them")
    score.add_argument(
        "--metric",
        metavar="METRIC",
        help="wer, cer, bleu, or bleu with a sacrebleu tokenizer, such as bleu:zh, bleu:ja-mecab, bleu:char; "
        "languages without spaces need one of these or cer (default: depends on the task)",
    )
    score.add_argument(
        "--against",
        choices=("reference", "prediction"),
        default="reference",
        help="what to compare texts with (default: reference)",
    )
    score.add_argument(
        "--fractions", nargs="+", default=["fine"], metavar="F", help='"paper", "fine" or shares (default: fine)'
    )
    score.add_argument(
        "--judge-fill",
        nargs="+",
        default=["mean"],
        choices=("mean", "zero", "min"),
        help="value of deleted features; one table for each (default: mean)",
    )
    score.add_argument(
        "--words",
        type=int,
        metavar="N",
        help="also score the maps of at most N words of each utterance; 12 passes per word (default: none)",
    )
    out = parser.add_argument_group("output")
    out.add_argument("--out", type=Path, default=Path("comparison"), metavar="DIR", help="default: comparison")
    out.add_argument(
        "--share", default="1/1", metavar="I/N", help="measure only every N-th row, from the I-th (default: 1/1)"
    )
    out.add_argument("--quiet", action="store_true", help="show no progress bar")
    return parser


def configs_of(options: argparse.Namespace) -> dict[str, ExplainConfig]:
    """Return name and config of every method to compare; the others are compared to the first.

    Raises:
        ConfigError: If there is none, or one is unknown or cannot be read.
    """
    own = {} if options.config is None else {str(options.config): config_in(options.config, counts(options), True)}
    names = dict.fromkeys([*PRESETS.get(options.preset, ()), *own, *options.methods])
    if not names:
        raise ConfigError(
            "--methods and --preset are missing, and so is --config; pass one, for example --preset "
            f"{next(iter(PRESETS))}"
        )
    return {name: own[name] if name in own else method(name, task_of(options), counts(options)) for name in names}


def counts(options: argparse.Namespace) -> dict[str, int]:
    """Return the requested numbers of masks."""
    asked = {"num_spectrogram_masks": options.num_masks, "num_token_masks": options.num_token_masks}
    return {name: value for name, value in asked.items() if value is not None}


def method(name: str, task: str | None, masks: Mapping[str, int]) -> ExplainConfig:
    """Return the config for a method's name, with the settings after its colon.

    Raises:
        ConfigError: If there is no such method or setting.
    """
    base, _, rest = name.partition(":")
    settings: dict[str, Any] = dict(masks)
    for setting in filter(None, rest.split(",")):
        field, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--methods {name!r}: {setting!r} is not a setting; write field=value")
        settings[field.strip()] = [parse(v) for v in value.split("/")] if "/" in value else parse(value)
    token_masks = {k: v for k, v in settings.items() if k != "num_spectrogram_masks"}
    attributions = ("saliency", "input x gradient", "integrated gradients")
    known = ablations(task or "asr")
    try:
        if base in attributions:
            return CaptumConfig(attribution=base.replace(" ", "_"), **token_masks)  # type: ignore[arg-type]
        if base in ("default", "fast"):
            return (SpesConfig if base == "default" else SpesConfig.fast)(**settings)
        if base in known or base.endswith(".json"):
            config = known[base] if base in known else ExplainConfig.from_json(base)
            free = [k for k in masks if k in config.unused]
            return config.changed(**{k: v for k, v in settings.items() if k not in free})
    except TypeError as error:
        raise ConfigError(f"--methods {name!r}: {error}") from error
    raise ConfigError(f"--methods {name!r} is unknown; known: {', '.join([*known, *attributions, 'default', 'fast'])}")


def parse(value: str) -> Any:
    """Return a number, None, True, False or a text."""
    named = {"None": None, "True": True, "False": False}
    if value in named:
        return named[value]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def load_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the utterances: id, audio, reference.

    Raises:
        ConfigError: If there are no utterances, or a column or an id is missing.
    """
    if options.data == "shipped":
        from spes_hf.demo import tiny_clips

        column = {"deu": "translation_de", "spa": "translation_es"}.get(options.tgt_lang or "", "transcript")
        entries, audio, reference = tiny_clips(), "path", options.reference_column or column
    elif (manifest := Path(options.data) / "manifest.jsonl").is_file():
        entries = read_json_lines(manifest)
        entries = [{**entry, "file": str(manifest.parent / entry["file"])} for entry in entries]
        audio, reference = "file", options.reference_column or "text"
    else:
        import datasets

        data = datasets.load_dataset(options.data, split=options.split)
        data = data.cast_column(options.audio_column, datasets.Audio(decode=False))
        entries, audio, reference = list(data), options.audio_column, options.reference_column or "text"
    rows = []
    for i, entry in enumerate(entries):
        missing = [name for name in (audio, reference) if name not in entry]
        if missing:
            raise ConfigError(f"--data {options.data!r}: row {i} has no {missing[0]!r}; it has {', '.join(entry)}")
        rows.append({"id": str(entry.get("id", i)), "audio": entry[audio], "reference": entry[reference]})
    unknown = sorted(set(options.ids) - {row["id"] for row in rows})
    if unknown:
        raise ConfigError(f"--ids has {unknown[0]!r}, which is not an utterance of --data {options.data!r}")
    rows = [row for row in rows if not options.ids or row["id"] in options.ids][: options.max_utterances]
    if not rows:
        raise ConfigError(f"--data {options.data!r} holds no utterances")
    return rows


class Laboratory:
    """Measures methods on utterances, and saves the measurements.

    Args:
        options: The command line.
        configs: Method's name → config.
    """

    def __init__(self, options: argparse.Namespace, configs: Mapping[str, ExplainConfig]):
        self.options = options
        self.configs = configs
        names = {"fine": FINE_FRACTIONS, "paper": PAPER_FRACTIONS}
        first = options.fractions[0]
        self.fractions = names[first] if first in names else tuple(float(f) for f in options.fractions)
        self.of_words = () if options.words is None else (WordDeletion, WordInsertion)
        self.keys = tuple(metric.key for metric in (Deletion, Insertion, *self.of_words))

    @cached_property
    def model(self) -> tuple[Any, Any]:
        """The model and its processor, loaded only if there is something left to measure.

        Raises:
            ConfigError: If the model does not take the options; nothing is measured then.
        """
        found = model_of(self.options)
        get_adapter(*found).options_of(**self.writing)
        return found

    @property
    def writing(self) -> dict[str, Any]:
        """How the model writes, as arguments of an `Explainer`."""
        named = {name: getattr(self.options, name) for name in ("language", "tgt_lang", "prompt")}
        return {**named, "generate_kwargs": generate_kwargs_of(self.options)}

    def path(self, name: str, row: Mapping[str, Any]) -> Path:
        """Return the file for a method's measurement of an utterance; other settings have another file."""
        o = self.options
        settings = [self.configs[name].to_dict(), self.fractions, o.judge_fill, o.model, o.language, o.tgt_lang, o.seed]
        settings += [] if o.words is None else [{"words": o.words}]
        given = {"prompt": o.prompt, "dtype": None if o.dtype == "auto" else o.dtype, **generate_kwargs_of(o)}
        given = {name: value for name, value in given.items() if value is not None}
        settings += [given] if given else []
        settings += [] if o.autocast is None and not o.compile else [{"autocast": o.autocast, "compile": o.compile}]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        folder = re.sub(r"[^\w.=-]+", "_", name).strip("_")
        return Path(o.out) / "rows" / f"{folder}-{digest}" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', row['id'])}.json"

    def measure(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Measure what is missing in this share, method by method; return how many measurements are left to others."""
        from tqdm.auto import tqdm

        try:
            index, shares = (int(part) for part in self.options.share.split("/"))
            mine = rows[index - 1 :: shares]
        except ValueError as error:
            raise ConfigError(f"--share is {self.options.share!r}; write I/N, for example 1/2") from error
        todo = [(name, row) for row in mine for name in self.configs if not self.path(name, row).exists()]
        for name, row in tqdm(todo, desc="measuring", unit="map", disable=self.options.quiet):
            path = self.path(name, row)
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}.part")
            unfinished.write_text(json.dumps(self.measured(name, row), ensure_ascii=False), encoding="utf-8")
            os.replace(unfinished, path)
        return sum(not self.path(name, row).exists() for row in rows for name in self.configs)

    def measured(self, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the measurement of one method on one utterance; if it cannot be explained, it holds an error."""
        model, processor = self.model
        o = self.options
        explainer = Explainer(model, processor, self.configs[name], seed=o.seed, progress=False, **running_of(o))
        try:
            explanation = explainer(row["audio"], utterance_id=row["id"], **self.writing)
            found: dict[str, Any] = {"id": row["id"], "size": Size()({"explanation": explanation})["size"]}
            for fill in o.judge_fill:
                for metric in (Deletion, Insertion):
                    measure = metric(model, processor, self.fractions, fill=fill, batch_size=o.batch_size)
                    found[f"{measure.key} {fill}"] = measure({"explanation": explanation})[measure.key]
                for of_words in self.of_words:
                    judge = of_words(model, processor, max_words=o.words, fill=fill, batch_size=o.batch_size)
                    found[f"{judge.key} {fill}"] = judge({"explanation": explanation})[judge.key]
        except SpesError as error:
            return {"id": row["id"], "error": str(error)}
        return {**found, "cost": explanation.provenance["cost"], "reliability": explanation.reliability.sentence}

    def scores(self, name: str, rows: Sequence[Mapping[str, Any]], fill: str) -> dict[str, Score]:
        """Return the corpus scores of a method for one fill."""
        measured = [json.loads(self.path(name, row).read_text(encoding="utf-8")) for row in rows]
        entries = [
            {**m, **{key: m.get(f"{key} {fill}") for key in self.keys}} if "error" not in m else m for m in measured
        ]
        references = [row["reference"] for row in rows]
        metric = self.options.metric or ("bleu" if task_of(self.options) == "st" else "wer")
        against = self.options.against
        scores = summarize(entries, references, metric=metric, against=against)
        if self.fractions[0] == 0 and FIRST in self.fractions:
            steps = self.fractions.index(FIRST) + 1
            first = [
                entry if "error" in entry else {"deletion": shortened(entry["deletion"], steps)} for entry in entries
            ]
            cut = summarize(first, references, metric=metric, against=against)
            scores["deletion_probability_first"] = cut["deletion_probability"]
        return scores

    def cost(self, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the medians over utterances of seconds, passes and reliability."""
        measured = [json.loads(self.path(name, row).read_text(encoding="utf-8")) for row in rows]
        good = [m for m in measured if "error" not in m]
        costs = {key: statistics.median(m["cost"][key] for m in good) for key in good[0]["cost"]}
        reliabilities = [m["reliability"] for m in good if math.isfinite(m["reliability"])]
        reliability = statistics.median(reliabilities) if reliabilities else None  # methods without masks have none
        return {**costs, "reliability": reliability, "failed": len(measured) - len(good)}


def shortened(entry: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the first steps of a curve."""
    return {k: v[:steps] if k in ("fractions", "texts", "token_probability") else v for k, v in entry.items()}


def task_of(options: argparse.Namespace) -> str:
    """Return the requested task, or by default translation if a target language is given."""
    return options.task or ("st" if options.tgt_lang else "asr")


def write(laboratory: Laboratory, rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Write results.md, results.json and the curves, and print the table."""
    name, _, tokenizer = (options.metric or ("bleu" if task_of(options) == "st" else "wer")).partition(":")
    metric = name.upper() + f" ({tokenizer})" * bool(tokenizer)
    shown = [argument for argument in sys.argv[1:] if argument != "--quiet"]
    lines = [
        f"# {options.model}, {len(rows)} utterances",
        "",
        f"`python recipes/compare_methods.py {shlex.join(shown)}`",
    ]
    result: dict[str, Any] = {"model": options.model, "utterances": [row["id"] for row in rows], "judged": {}}
    result |= {"dtype": options.dtype, **{k: v for k, v in laboratory.writing.items() if v}}
    result["configs"] = {name: config.to_dict() for name, config in laboratory.configs.items()}
    for fill in options.judge_fill:
        scores = {name: laboratory.scores(name, rows, fill) for name in laboratory.configs}
        costs = {name: laboratory.cost(name, rows) for name in laboratory.configs}
        result["judged"][fill] = {
            name: {"scores": {key: score_to_json(s) for key, s in scores[name].items()}, "cost": costs[name]}
            for name in scores
        }
        differences = compared(scores)
        result["judged"][fill]["differences"] = differences
        clean = next(iter(scores.values()))["clean"]
        lines += ["", f'Deleted features become the "{fill}". Clean {metric}: {clean.value:.1f}. 95 % intervals.', ""]
        lines += table_of(scores, metric, SHOWN, cost_columns(costs)) + [
            "",
            f"Against {next(iter(scores))}, paired bootstrap:",
            "",
        ]
        lines += difference_table(differences)
        curves = ("deletion", "insertion", "deletion_probability", "insertion_probability", "size_audio")
        for key in (*curves, *(measure.key for measure in laboratory.of_words)):
            figure, _ = plot_curves({name: found[key] for name, found in scores.items()})
            suffix = "" if len(options.judge_fill) == 1 else f"_{fill}"
            figure.savefig(options.out / f"{key}{suffix}.png", dpi=130)
    text = "\n".join(lines) + "\n"
    (options.out / "results.md").write_text(text, encoding="utf-8")
    (options.out / "results.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text)


def cost_columns(costs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return what the methods cost, as columns of the table."""
    passes = {}
    for name, cost in costs.items():
        passes[name] = f"{cost['forward_passes']:,.0f}"
        if cost.get("backward_passes"):
            passes[name] += f" + {cost['backward_passes']:,.0f} backward"
    return {"s": {name: f"{cost['seconds']:.1f}" for name, cost in costs.items()}, "forward passes": passes}


def compared(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    """Return how the scores of every other method differ from the first method's."""
    reference, *others = scores
    found: dict[str, Any] = {}
    for name in others:
        for key, _ in SHOWN:
            if key in scores[name] and key in scores[reference]:
                c = compare(scores[name][key], scores[reference][key])
                found.setdefault(name, {})[key] = {
                    "difference": c.difference,
                    "interval": [c.interval.low, c.interval.high],
                    "p_value": c.p_value,
                    "better": (c.difference > 0) == scores[name][key].higher_is_better,
                }
    return found


def difference_table(differences: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of differences; a star marks p < 0.05."""
    keys = [key for key, _ in SHOWN if any(key in d for d in differences.values())]
    lines = [f"| method | {' | '.join(key.replace('_', ' ') for key in keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name, found in differences.items():
        cells = [f"{found[k]['difference']:+.1f}{' *' if found[k]['p_value'] < 0.05 else ''}" for k in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", "\\* p < 0.05"]


if __name__ == "__main__":
    sys.exit(main())

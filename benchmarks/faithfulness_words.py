"""Are the maps of single words faithful? Each word's own deletion and insertion, and what other words keep.

    python benchmarks/faithfulness_words.py --data FOLDER --sets librispeech-other librispeech-clean --every 4 --clips 5
    python benchmarks/faithfulness_words.py --data FOLDER --ids ID ID
    python benchmarks/faithfulness_words.py --model speech2text-en
    python benchmarks/faithfulness_words.py --model seamless-en-de-es --tgt-lang deu --every 3

Whisper tiny.en hears clips of ``--data``, a folder with a ``manifest.jsonl`` (id, file, set); the shipped models hear
the shipped clips. For at most ``--words`` words of each clip, evenly spread, the most salient features of *its* map go,
or are all that is there, and the probability of *that* word is read, and of the others (`WordDeletion`,
`WordInsertion`). Only these words are explained. Values are means over words, with bootstrap intervals over clips;
differences from the first method are paired.

Writes benchmarks/results/faithfulness_words/<model>.json after every method and clip. What is in there under the same
settings is not measured again: a run that was stopped continues, and clips, or methods in `METHODS`, can be added. The
table is of the clips that the command names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from spes_hf import (
    AttentionConfig,
    EnergyConfig,
    ExplainConfig,
    Explainer,
    Explanation,
    SpesConfig,
    SpesError,
    WordDeletion,
    WordInsertion,
)
from spes_hf.demo import load_demo_model, load_tiny_model, tiny_clips
from spes_hf.errors import ConfigError
from spes_hf.files import read_json, read_json_lines, whole_file
from spes_hf.metrics import WORD_DELETION_FRACTIONS, WORD_INSERTION_FRACTIONS, Score, compare, summarize
from spes_hf.metrics.spoken import spoken_words, spread

# The first is what the others are compared with.
ONE: dict[str, Any] = {"num_token_masks": 1}  # maps of earlier tokens are not judged here
METHODS: dict[str, ExplainConfig] = {
    "SpesConfig()": SpesConfig(**ONE),
    "12 passes a token, no prior": SpesConfig(masks_per_token=12, passes_per_mask=None, prior_weight=0.0, **ONE),
    "EnergyConfig()": EnergyConfig(),
    "AttentionConfig()": AttentionConfig(),
    'AttentionConfig(heads="alignment")': AttentionConfig(heads="alignment"),
    "SpesConfig.fast()": SpesConfig.fast(**ONE),
}
WHISPER = "whisper-tiny.en"
SCORES = {
    "word_deletion": "probability left, first 5 % deleted",
    "word_specificity": "left to other words at 5 %",
    "word_margin": "others less the word",
    "word_insertion": "probability, insertion",
}
RESULTS = Path(__file__).parent / "results" / "faithfulness_words"


def main() -> None:
    """Measure what is not measured yet, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=(WHISPER, "speech2text-en", "seamless-en-de-es"), default=WHISPER)
    parser.add_argument("--tgt-lang", help="of the text (SeamlessM4T)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="clips for Whisper: a folder with manifest.jsonl")
    parser.add_argument("--ids", nargs="+", metavar="ID", help="only these clips")
    parser.add_argument("--sets", nargs="+", metavar="SET", help="only clips of these sets of --data")
    parser.add_argument(
        "--every", type=count, default=1, metavar="N", help="only every N-th clip of a set (default: 1)"
    )
    parser.add_argument("--clips", type=count, metavar="N", help="of these at most N of each set (default: all)")
    parser.add_argument("--words", type=count, default=6, metavar="N", help="at most N words of a clip (default: 6)")
    parser.add_argument("--device", default="cpu", help="where the model runs (default: cpu)")
    parser.add_argument("--out", type=Path, help="(default: benchmarks/results/faithfulness_words/<model>.json)")
    options = parser.parse_args()
    if options.model != WHISPER:  # nobody has said which heads follow the speech
        METHODS.pop('AttentionConfig(heads="alignment")')
    try:
        clips = clips_of(options)
        results = Results(options.out or RESULTS / f"{options.model}.json", settings_of(options))
        measure(clips, results, options)
        rows = [results.rows[clip["id"]] for clip in clips]
        methods = summary([row for row in rows if row["words"]])
    except SpesError as error:
        parser.error(str(error))
    results.write({"clips": [clip["id"] for clip in clips], "methods": methods})
    print(report(options.model, rows, methods))


# -------------------------------------------------------------------------------------------------------- what is heard


def count(text: str) -> int:
    """Return a number from 1 up."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def clips_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the clips that the command names: id, path.

    Raises:
        ConfigError: If there are none.
    """
    if options.model != WHISPER:
        if options.data is not None or options.sets is not None:
            raise ConfigError(f"--data and --sets are for --model {WHISPER}; {options.model} hears the shipped clips")
        clips = [{"id": clip["id"], "set": "shipped", "path": clip["path"]} for clip in tiny_clips()]
    elif options.data is None:
        raise ConfigError(f"--data is missing; --model {WHISPER} needs a folder with recordings and manifest.jsonl")
    else:
        clips = [
            {"id": str(row["id"]), "set": row.get("set", ""), "path": str(options.data / row["file"])}
            for row in read_json_lines(options.data / "manifest.jsonl")
        ]
    for name, key in (("ids", "id"), ("sets", "set")):
        wanted = getattr(options, name)
        if wanted is not None:
            known = {clip[key] for clip in clips}
            unknown = [value for value in wanted if value not in known]
            if unknown:
                raise ConfigError(f"--{name} {unknown[0]!r} is not there; there are {', '.join(sorted(known))}")
            clips = [clip for value in wanted for clip in clips if clip[key] == value]
    sets = dict.fromkeys(clip["set"] for clip in clips)
    return [clip for name in sets for clip in [c for c in clips if c["set"] == name][:: options.every][: options.clips]]


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what all measurements in a file share."""
    return {
        "model": options.model,
        "tgt_lang": options.tgt_lang,
        "max_words": options.words,
        "seed": 1,
        "fractions": {WordDeletion.key: [*WORD_DELETION_FRACTIONS], WordInsertion.key: [*WORD_INSERTION_FRACTIONS]},
    }


class Results:
    """The file of measurements.

    Args:
        path: Where it is.
        settings: What all measurements share.

    Raises:
        ConfigError: If the file has measurements under other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path, self.settings = path, settings
        before: dict[str, Any] = read_json(path) if path.is_file() else {"settings": settings, "rows": []}
        if before["settings"] != settings:
            raise ConfigError(
                f"--out {str(path)!r} was measured under {before['settings']}, not {settings}; pass another --out"
            )
        self.rows: dict[str, dict[str, Any]] = {row["id"]: row for row in before["rows"]}

    def write(self, found: Mapping[str, Any] | None = None) -> None:
        """Write all rows, and the summary if there is one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        everything = {"settings": self.settings, "summary": found, "rows": list(self.rows.values())}
        with whole_file(self.path) as file:
            file.write((json.dumps(everything, indent=1, ensure_ascii=False) + "\n").encode())


# -------------------------------------------------------------------------------------------------------------- measure


def measure(clips: Sequence[Mapping[str, Any]], results: Results, options: argparse.Namespace) -> None:
    """Measure the methods that a clip lacks, and write after each."""
    configs = {name: json.loads(json.dumps(config.to_dict())) for name, config in METHODS.items()}
    todo = [
        (clip, name)
        for clip in clips
        for name in METHODS
        if not is_measured(results.rows.get(clip["id"]), name, configs[name])
    ]
    if not todo:
        return
    model, processor = load_demo_model() if options.model == WHISPER else load_tiny_model(options.model)
    model.to(options.device)
    # All that are explained are judged, by the same perturbed copies for every method.
    metrics: list[Any] = [WordDeletion(model, processor), WordInsertion(model, processor)]
    seed = results.settings["seed"]
    explainers = {name: Explainer(model, processor, c, seed=seed, progress=False) for name, c in METHODS.items()}
    listener = Explainer(model, processor, EnergyConfig(), progress=False)
    for clip, name in tqdm(todo, unit="map"):
        row = results.rows.get(clip["id"])
        if row is None:
            heard = listener(clip["path"], tgt_lang=options.tgt_lang)
            if not isinstance(heard, Explanation):
                raise ConfigError(f"clip {clip['id']!r} is longer than the model's window; leave it out with --ids")
            chosen = spread(spoken_words(heard), options.words)
            row = {"id": clip["id"], "set": clip["set"], "text": heard.text, "words": [w.index for w in chosen]}
            results.rows[clip["id"]] = {**row, "methods": {}}
        row = results.rows[clip["id"]]
        if row["words"]:
            found = explainers[name](clip["path"], tgt_lang=options.tgt_lang, words=row["words"])
            entry: dict[str, Any] = {"config": configs[name], "cost": found.provenance["cost"]}
            row["methods"][name] = entry | {metric.key: metric(found)[metric.key] for metric in metrics}
        results.write()


def is_measured(row: Mapping[str, Any] | None, name: str, config: Mapping[str, Any]) -> bool:
    """Return whether a clip has a method's measurement under its config, or no words to measure."""
    return row is not None and (not row["words"] or row["methods"].get(name, {}).get("config") == config)


# --------------------------------------------------------------------------------------------------------------- report


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return every method's scores, differences from the first method, and costs of a clip.

    Args:
        rows: Of clips with words.
    """
    scores = {name: summarize([row["methods"][name] for row in rows]) for name in METHODS}
    reference = next(iter(scores.values()))
    found: dict[str, Any] = {}
    for name, own in scores.items():
        costs = [row["methods"][name]["cost"] for row in rows]
        means = {key: sum(cost[key] for cost in costs) / len(costs) for key in costs[0]}
        found[name] = {"cost of a clip": means, "scores": {}}
        for key in (key for key in SCORES if key in own):
            found[name]["scores"][key] = scored(own[key], reference[key])
    return found


def scored(own: Score, reference: Score) -> dict[str, Any]:
    """Return a score as JSON, with its paired difference from that of the first method."""
    against = compare(own, reference)
    return {
        "value": own.value,
        "interval": [own.interval.low, own.interval.high],
        "minus first": [against.difference, against.interval.low, against.interval.high],
        "fractions": None if own.curve is None else own.curve.x.tolist(),
        "curve": None if own.curve is None else own.curve.y.tolist(),
    }


def report(model: str, rows: Sequence[Mapping[str, Any]], methods: Mapping[str, Any]) -> str:
    """Return scores, differences and the curve of deletion as Markdown."""
    first = next(iter(methods.values()))["scores"]
    words = sum(len(row["words"]) for row in rows)
    arrows = {key: "↓" if key == "word_deletion" else "↑" for key in first}
    heads = " | ".join(f"{SCORES[key]} {arrow}" for key, arrow in arrows.items())
    lines = [f"{model}, {len(rows)} clips, {words} words", "", f"| | {heads} | s | passes, forward + backward |"]
    lines.append("|---" * (len(first) + 3) + "|")
    for name, found in methods.items():
        cells = [
            f"{score['value']:.1f} [{score['interval'][0]:.1f}, {score['interval'][1]:.1f}]"
            for score in found["scores"].values()
        ]
        cost = found["cost of a clip"]
        passes = f"{cost['forward_passes']:,.0f} + {cost.get('backward_passes', 0):,.0f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {cost['seconds']:.1f} | {passes} |")
    lines += ["", f"| minus {next(iter(methods))} | {heads} |", "|---" * (len(first) + 1) + "|"]
    for name, found in list(methods.items())[1:]:
        differences = [score["minus first"] for score in found["scores"].values()]
        cells = [f"{by:+.1f} [{low:+.1f}, {high:+.1f}]" for by, low, high in differences]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    fractions = first["word_deletion"]["fractions"]
    lines += ["", f"| probability left | {' | '.join(f'{100 * s:g} %' for s in fractions)} |"]
    lines.append("|---" * (len(fractions) + 1) + "|")
    for name, found in methods.items():
        lines.append(f"| {name} | {' | '.join(f'{y:.1f}' for y in found['scores']['word_deletion']['curve'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

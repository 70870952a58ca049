"""Is cross-attention half an explanation? Its agreement with our maps over time, next to that in the paper.

    python benchmarks/attention_agreement.py --data CORPUS                     # all models; hours on Whisper
    python benchmarks/attention_agreement.py --models speech2text-en --limit 2  # a first look

Papi et al. (2025, arXiv 2509.18010) compare cross-attention with SPES maps: Pearson's correlation over time, token by
token, with the map of the spectrogram (the mean over mel bins and over the frames of a position) and with that of the
encoder's output. Whisper (tiny.en, the demo extra) reads real recordings from a folder with a manifest.jsonl (one
object a line, with the path of the recording at "file"), without --data the clip of the demo; the two shipped models
read the shipped clips. Special tokens are left out.

Writes benchmarks/results/attention_agreement.json after every clip, and continues where it was stopped; settings that
differ start a model anew. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from spes_hf import AudioError, Explainer, Explanation, SpesConfig, SpesError
from spes_hf.adapters import Target
from spes_hf.analysis.attention import (
    MAPS,
    AttentionAgreement,
    UtteranceAgreement,
    attention_agreement,
    utterance_agreement,
)
from spes_hf.audio.load import load_audio
from spes_hf.demo import demo_audio, load_demo_model, load_tiny_model, tiny_clips
from spes_hf.files import read_json_lines, whole_file

MODELS = ("demo", "speech2text-en", "seamless-en-de-es")
# What the paper reports over its models and tasks.
PAPER = {"input": "about 0.50", "encoder": "0.52–0.75 (best)"}


def clips_of(model: str, data: Path | None) -> list[tuple[str, str]]:
    """Return the clips of a model, as id and path."""
    if model != "demo":
        return [(clip["id"], str(clip["path"])) for clip in tiny_clips()]
    if data is None:
        return [("demo", str(demo_audio()))]
    rows = read_json_lines(data / "manifest.jsonl")
    return [(str(row.get("id", i)), str(data / row["file"])) for i, row in enumerate(rows)]


def measured(explainer: Explainer, name: str, path: str, options: dict[str, Any]) -> UtteranceAgreement:
    """Return the agreement for one clip.

    Raises:
        AudioError: If the clip cannot be explained in one piece.
    """
    explanation = explainer(path, utterance_id=name, over="encoder", **options)
    if not isinstance(explanation, Explanation):
        raise AudioError(f"{path} is longer than the model's window; cut it")
    adapter = explainer.adapter
    prefix = torch.tensor(explanation.origin.prefix_ids, dtype=torch.int64)
    target = Target(prefix, torch.tensor(explanation.written_ids, dtype=torch.int64), complete=True)
    utterance = adapter.encode(load_audio(path, adapter.sampling_rate))
    weights = adapter.attention_weights(utterance, target)
    return utterance_agreement(explanation, weights, name, adapter.alignment_heads)


def run(model: str, options: argparse.Namespace, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure a model's clips; yield its entry of the results after every clip.

    Args:
        model: Its name.
        options: Of the command line.
        known: Its entry so far.
    """
    # A pass for each token and no prior: the default's maps know of the attention, and would agree for that alone.
    own = SpesConfig(masks_per_token=12, passes_per_mask=None, prior_weight=0.0)
    config = SpesConfig.paper("st" if model.startswith("seamless") else "asr") if options.paper else own
    config = config.changed(num_token_masks=options.encoder_masks)
    if options.num_masks is not None:
        config = config.changed(num_spectrogram_masks=options.num_masks)
    generation = {"tgt_lang": options.tgt_lang} if model.startswith("seamless") else {}
    settings = json.loads(json.dumps({"config": config.to_dict(), **generation, "seed": options.seed}))
    same = known.get("settings") == settings
    utterances = {row["utterance"]: row for row in known.get("utterances", ())} if same else {}
    loaded = load_demo_model() if model == "demo" else load_tiny_model(model)
    explainer = Explainer(*loaded, config, seed=options.seed, progress=not options.quiet)
    failed: dict[str, str] = {}
    clips = clips_of(model, options.data)[: options.limit]
    for i, (name, path) in enumerate(clips):
        if name not in utterances:
            try:
                utterances[name] = measured(explainer, name, path, generation).to_dict()
            except SpesError as error:
                failed[name] = str(error)
        print(f"{model}: {i + 1} of {len(clips)} clips, {name}{' failed' if name in failed else ''}", file=sys.stderr)
        found = [UtteranceAgreement.from_dict(row) for row in utterances.values()]
        summary = attention_agreement(found).to_dict() if found else None
        yield {"settings": settings, "summary": summary, "failed": failed, "utterances": list(utterances.values())}


def table(found: dict[str, AttentionAgreement]) -> str:
    """Return a Markdown table of the models, next to the paper's numbers."""
    heading = [
        "model",
        "utterances, tokens",
        "map over time",
        "all heads",
        "best layer",
        "best head",
        "alignment heads",
    ]
    rows = [heading, ["---"] * len(heading)]
    for model, agreement in found.items():
        for name in MAPS:
            own = getattr(agreement, name)
            head = f"{own.of_best_head} ({own.best_head[0]}.{own.best_head[1]})"
            counts = f"{agreement.utterances}, {agreement.tokens}" if name == MAPS[0] else ""
            layer = f"{own.of_best_layer} ({own.best_layer})"
            shown = {"input": "spectrogram", "encoder": "encoder's output"}[name]
            rows.append([model if counts else "", counts, shown, str(own.all), layer, head, str(own.alignment)])
        rows.append(["", "", "the two with each other", str(agreement.between), "", "", ""])
    for name in MAPS:
        shown = {"input": "spectrogram", "encoder": "encoder's output"}[name]
        rows.append(["paper" if name == MAPS[0] else "", "", shown, PAPER[name], "", "", ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the results, whole or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(results, indent=1, allow_nan=False) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--data", type=Path, help="recordings for Whisper, a folder with manifest.jsonl")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N clips of each model")
    parser.add_argument("--tgt-lang", default="deu", help="of SeamlessM4T (default: deu)")
    parser.add_argument("--paper", action="store_true", help="maps of the paper's settings, instead of gradients")
    parser.add_argument("--num-masks", type=int, metavar="N", help="of the spectrogram (default: the settings' own)")
    parser.add_argument(
        "--encoder-masks", type=int, default=2_000, metavar="N", help="of the encoder's output, and of tokens (2000)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attention_agreement.json")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    results["paper"] = PAPER
    models = results.setdefault("models", {})
    for model in options.models:
        for entry in run(model, options, models.get(model, {})):
            models[model] = entry
            write(options.out, results)
    found = {}
    for model, entry in models.items():
        if entry["utterances"]:
            found[model] = attention_agreement(UtteranceAgreement.from_dict(row) for row in entry["utterances"])
    print(table(found))


if __name__ == "__main__":
    main()

"""How long does deletion take, copy by copy and in batches, and what share of a job is it?

    python benchmarks/deletion.py                                     # writes benchmarks/results/deletion.json
    python benchmarks/deletion.py --document docs/scaling.md          # and the table of that page
    python benchmarks/deletion.py --models demo --clips 1 --threads 2 # real Whisper tiny.en

Explains clips with the default, then runs `Deletion` at its 21 fractions with ``batch_size=1``, and as it comes. They
take turns in one process, on the same explanations, and must write the same texts. Every number is the median of the
repeats; a ratio is the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from processes import LAYERS, MEAN_TOKENS, POSITIONS, WIDTH, fill, pass_flops, utterance_flops

from spes_hf import Deletion, Explainer, SpesConfig
from spes_hf.demo import demo_audio, load_demo_model, load_tiny_model, tiny_clips
from spes_hf.metrics import PAPER_FRACTIONS

RESULTS = Path(__file__).parent / "results" / "deletion.json"
MODELS: dict[str, dict[str, str]] = {
    "speech2text-en": {},
    "seamless-en-de-es": {"tgt_lang": "deu"},
    "qwen3-asr-en": {"language": "English"},
    "demo": {},
}
PRESETS = {"fast": SpesConfig.fast(), "default": SpesConfig(), "paper": SpesConfig.paper("asr")}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = [name for name in MODELS if name != "demo"]
    parser.add_argument("--models", nargs="+", default=shipped, choices=list(MODELS), help="default: those that ship")
    parser.add_argument("--clips", type=int, default=3, help="utterances in a run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs to take the median of (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of torch, in turn (default: 1 2)")
    parser.add_argument("--beams", type=int, nargs="+", default=[1], help="beams in generating (default: 1)")
    parser.add_argument("--device", default="cpu", help="where the models run (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, metavar="FILE", help="write the table into this page")
    parser.add_argument("--from-results", action="store_true", help="measure nothing; take --out for the table")
    options = parser.parse_args()
    if options.from_results:
        report = json.loads(options.out.read_text(encoding="utf-8"))
    else:
        report = measure(options)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(report))
    if options.document is not None:
        fill(options.document, {"deletion": table(report)}, "deletion.py")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of all runs, and how busy the machine was before."""
    load = os.getloadavg()[0]
    runs = []
    for name in options.models:
        dtype = getattr(torch, options.dtype)
        model, processor = load_demo_model(dtype=dtype) if name == "demo" else load_tiny_model(name, dtype=dtype)
        model.to(options.device)
        clips = [demo_audio()] if name == "demo" else [clip["path"] for clip in tiny_clips()[: options.clips]]
        for threads in options.threads:
            torch.set_num_threads(threads)
            for beams in options.beams:
                arguments = {**MODELS[name], "generate_kwargs": {"num_beams": beams}}
                found = compare(model, processor, clips, arguments, options.repeats)
                runs.append({"model": name, "threads": threads, "beams": beams, "utterances": len(clips), **found})
                print(row(runs[-1]), flush=True)
    return {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load_before": round(load, 2)},
        "device": options.device,
        "dtype": options.dtype,
        "runs": runs,
        "share_of_operations": {name: share_of_operations(config) for name, config in PRESETS.items()},
    }


def compare(
    model: Any, processor: Any, clips: Sequence[Any], arguments: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Return the seconds for all clips: of explaining them, of deletion one by one and in batches, and the ratio."""
    explainer = Explainer(model, processor, SpesConfig(), progress=False)
    deletions = {"one_by_one": Deletion(model, processor, batch_size=1), "in_batches": Deletion(model, processor)}
    seconds: dict[str, list[float]] = {"explain": [], **{way: [] for way in deletions}}
    for _ in range(repeats + 1):
        start = time.perf_counter()
        explanations = [explainer(clip, **arguments) for clip in clips]
        seconds["explain"].append(time.perf_counter() - start)
        texts = []
        for way, deletion in deletions.items():
            start = time.perf_counter()
            texts.append([deletion(explanation)["deletion"]["texts"] for explanation in explanations])
            seconds[way].append(time.perf_counter() - start)
        if texts[0] != texts[1]:
            raise SystemExit("texts differ between one by one and batches")
    seconds = {name: spent[1:] for name, spent in seconds.items()}  # the first is for the caches
    pairs = zip(seconds["one_by_one"], seconds["in_batches"], strict=True)
    return {**seconds, "ratio": statistics.median(one / many for one, many in pairs)}


def share_of_operations(config: Any) -> float:
    """Return deletion's share of the operations of explaining and deleting, for Whisper large-v3 and one beam."""
    whole, _ = pass_flops(MEAN_TOKENS)
    encoder = LAYERS * (2 * 12 * WIDTH**2 * POSITIONS + 4 * POSITIONS**2 * WIDTH)
    # Generating, and the decoder once more for the probabilities.
    deletion = len(PAPER_FRACTIONS) * (2 * whole - encoder)
    return deletion / (deletion + utterance_flops(config, MEAN_TOKENS))


def table(report: dict[str, Any]) -> str:
    """Return the table of the page."""
    machine, first = report["machine"], report["runs"][0]
    where = f"{machine['cores']} cores ({machine['processor']})" if report["device"] == "cpu" else report["device"]
    shares = ", ".join(f"{share:.1%} ({name})" for name, share in report["share_of_operations"].items())
    return "\n".join(
        [
            "| model | threads | beams | explain | deletion, one by one | in batches | ratio | share, one by one "
            "| in batches |",
            "|---" * 9 + "|",
            *map(row, report["runs"]),
            "",
            f"Seconds an utterance, {where}; median of {len(first['one_by_one'])}, runs in turn. The share is that of "
            "deletion, at 21 fractions, in a job that explains by the default and deletes. Operations counted for "
            f"Whisper large-v3, its share is {shares}.",
        ]
    )


def row(run: dict[str, Any]) -> str:
    """Return a line of the table."""
    ways = ("explain", "one_by_one", "in_batches")
    explain, one, many = (statistics.median(run[way]) / run["utterances"] for way in ways)
    return (
        f"| `{run['model']}` | {run['threads']} | {run['beams']} | {explain:.2f} | {one:.2f} | {many:.2f} "
        f"| {run['ratio']:.1f} × | {one / (explain + one):.0%} | {many / (explain + many):.0%} |"
    )


if __name__ == "__main__":
    main()

"""What an explanation costs besides the model's passes, in two versions of the package.

    git worktree add ../before HEAD~10
    python benchmarks/start.py --package ../before --package .

Explains 30 s of audio under a few masks: reading, features, SLIC, masks, reliability, provenance, packing. The start is
the seconds of `explain` and of the row that is made of it, less those in the model. ``generate()`` is timed alone for
that, in turn with the explanations, so that what runs next to it has to pay for slowing it down. Every number comes
from a process of its own for each package, in turn; medians. Writes benchmarks/results/start.json.

Speech2Text, as shipped, reads 15 s. ``--method default`` runs a backward pass for most of the tokens, which takes
minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from start_case import Stopwatches, check_package, in_packages, median_of

RATE = 16_000
MODELS = {"demo": "Whisper tiny.en", "speech2text-en": "Speech2Text (shipped)"}
LONGEST_S = {"demo": 30.0, "speech2text-en": 15.0}
PARTS = ("decode", "features", "SLIC", "masks", "reliability", "provenance", "packing", "the rest")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, action="append", help="folder with spes_hf, once for each version")
    parser.add_argument("--model", choices=list(MODELS), action="append", help="default: both")
    parser.add_argument("--method", choices=("paper", "default"), default="paper", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=30.0, help="of audio (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="processes for each package (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=3, help="explanations in a process (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    parser.add_argument("--device", default="cpu", help="where the models run (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "start.json")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    models = options.model or list(MODELS)
    if options.measure:
        print(json.dumps(measure(models[0], options)))
        return
    packages = options.package or [Path(__file__).parents[1]]
    for package in packages:
        check_package(package)
    rows: list[dict[str, Any]] = []
    for model in models:
        arguments = ["--model", model, "--method", options.method, "--seconds", str(options.seconds)]
        arguments += ["--device", options.device]
        arguments += ["--calls", str(options.calls), *(["--threads", str(options.threads)] if options.threads else [])]
        found = in_packages(__file__, packages, arguments, options.repeats)
        for package, reports in zip(packages, found, strict=True):
            ratios = [then["start"] / now["start"] for then, now in zip(found[0], reports, strict=True)]
            row: dict[str, Any] = {"model": MODELS[model], "package": package.resolve().name}
            row |= {"seconds of audio": min(options.seconds, LONGEST_S[model]), **median_of(reports, statistics.median)}
            rows.append({**row, "faster": statistics.median(ratios), "starts": [r["start"] for r in reports]})
        show(rows[-len(packages) :])
    threads = options.threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or None
    machine = {"cores": os.cpu_count(), "threads": threads, "device": options.device}
    report = {"method": options.method, "seconds": options.seconds, "machine": machine, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"| model | package | tokens | start | {' | '.join(PARTS)} | faster |")
    print("|---" * (len(PARTS) + 5) + "|")
    for row in rows:
        parts = " | ".join(f"{row.get(part, 0.0):.3f}" for part in PARTS)
        start = f"{row['tokens']:.0f} | {row['start']:.3f} s | {parts} | {row['faster']:.2f} ×"
        print(f"| {row['model']} | {row['package']} | {start} |", flush=True)


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of every part, in this process."""
    import torch

    from spes_hf import Explainer, SpesConfig
    from spes_hf.audio.load import load_audio
    from spes_hf.demo import demo_audio, load_demo_model, load_tiny_model, tiny_clips

    if options.threads:
        torch.set_num_threads(options.threads)
    few: dict[str, Any] = {"num_spectrogram_masks": 3, "num_token_masks": 1}
    config = SpesConfig.paper("asr", **few) if options.method == "paper" else SpesConfig(**few, masks_per_token=2)
    model, processor = load_demo_model() if name == "demo" else load_tiny_model(name)
    model.to(options.device)
    explainer = Explainer(model, processor, config, progress=False)
    adapter = explainer.adapter
    longest = max(tiny_clips(), key=lambda clip: clip["words"][-1]["end"])
    source = load_audio(demo_audio() if name == "demo" else longest["path"], RATE).samples
    wanted = round(RATE * min(options.seconds, LONGEST_S[name]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audio.wav"
        soundfile.write(path, np.tile(source, -(-wanted // len(source)))[:wanted], RATE)
        tokens = len(explainer(path))  # what is done once
        utterance, settings = adapter.encode(load_audio(path, RATE)), adapter.options_of()
        generate = type(adapter).generate_with_states
        watches, found = Stopwatches(options.device), []
        watches.on_parts(adapter)
        watches.on(type(adapter), "generate_with_states", "generate")
        for _ in range(options.calls):
            before = watches.clock()
            generate(adapter, utterance, settings)
            alone = watches.clock() - before
            watches.spent.clear()
            before = watches.clock()
            explainer(path).to_row()
            total, spent = watches.clock() - before, dict(watches.spent)
            slowed = spent.pop("generate") - alone
            start = total - spent.pop("model") + slowed
            rest = {"start": start, "the rest": start - sum(spent.values()), "total": total, "generate": alone}
            found.append({**spent, **rest, "tokens": tokens})
    return median_of(found, statistics.median)


if __name__ == "__main__":
    main()

"""What an explanation costs: seconds per mask of the spectrogram and of the tokens, and so per preset.

    python benchmarks/cost.py

prints a table and writes it to benchmarks/results/cost.json. Each cost is the median of several runs of `explain`, the
difference between many masks and few, so that loading, encoding and generating do not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spes_hf import SpesConfig, explain
from spes_hf.demo import demo_audio, load_demo_model, load_tiny_model, tiny_clips

PRESETS = {"fast": SpesConfig.fast(), "default": SpesConfig(), "paper": SpesConfig.paper("asr")}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs to take the median of (default: 3)")
    parser.add_argument("--device", default="cpu", help="where the models run (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cost.json")
    options = parser.parse_args()

    clip = str(tiny_clips()[0]["path"])
    cases: list[tuple[str, Callable[[], tuple[Any, Any]], str, dict[str, Any], int]] = [
        ("Whisper tiny.en, 11 s", load_demo_model, str(demo_audio()), {}, 16),
        ("Speech2Text (shipped)", lambda: load_tiny_model("speech2text-en"), clip, {}, 1000),
        ("SeamlessM4T v2 (shipped)", lambda: load_tiny_model("seamless-en-de-es"), clip, {"tgt_lang": "deu"}, 1000),
    ]
    rows = []
    for name, load, audio, arguments, masks in cases:
        model, processor = load()
        model.to(options.device)
        seconds = {
            kind: seconds_per_mask(model, processor, audio, kind, masks, options.repeats, arguments)
            for kind in ("num_spectrogram_masks", "num_token_masks")
        }
        row = {"model": name, **seconds}
        for preset, config in PRESETS.items():
            row[preset] = sum(seconds[kind] * getattr(config, kind) for kind in seconds)
        rows.append(row)

    print("| model | ms per spectrogram mask | ms per token mask |" + "".join(f" {name} |" for name in PRESETS))
    print("|---|---|---|" + "---|" * len(PRESETS))
    for row in rows:
        costs = "".join(f" {readable(row[name])} |" for name in PRESETS)
        audio_ms, token_ms = 1000 * row["num_spectrogram_masks"], 1000 * row["num_token_masks"]
        print(f"| {row['model']} | {audio_ms:.1f} | {token_ms:.1f} |{costs}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "processor": platform.machine()}
    options.out.write_text(json.dumps({"machine": machine, "device": options.device, "rows": rows}, indent=2) + "\n")


def seconds_per_mask(
    model: Any, processor: Any, audio: str, kind: str, masks: int, repeats: int, arguments: dict[str, Any]
) -> float:
    """Return the median cost of a mask, from runs with few and with many masks in turn."""
    few = {"num_spectrogram_masks": 3, "num_token_masks": 3}
    many = {**few, kind: 3 + masks * (4 if kind == "num_token_masks" else 1)}
    costs = []
    for _ in range(repeats):
        took = []
        for counts in (few, many):
            start = time.perf_counter()
            explain(model, processor, audio, config=SpesConfig.fast(**counts), progress=False, **arguments)
            took.append(time.perf_counter() - start)
        costs.append((took[1] - took[0]) / (many[kind] - few[kind]))
    return statistics.median(costs)


def readable(seconds: float) -> str:
    """Return a duration the way people say it."""
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


if __name__ == "__main__":
    main()

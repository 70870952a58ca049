"""What an explanation costs: seconds per pass forwards, backwards and of the decoder alone, and so per preset.

    python benchmarks/cost.py

prints a table and writes it to benchmarks/results/cost.json. Each cost of a pass is the median of several runs of
`explain`, the difference between many masks and few, so that loading, encoding and generating do not count. "fast" and
"default" are measured, "paper" is computed from the costs of its passes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spes_hf import SpesConfig, explain
from spes_hf.demo import demo_audio, load_demo_model, load_tiny_model, tiny_clips

MEASURED = {"fast": SpesConfig.fast(), "default": SpesConfig()}
PAPER = SpesConfig.paper("asr")
FEW: dict[str, Any] = dict(num_spectrogram_masks=2, masks_per_token=1, num_token_masks=3, patches_per_second=400)


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

        def seconds(config: SpesConfig, loaded: Any = (model, processor, audio), extra: Any = arguments) -> float:
            start = time.perf_counter()
            explain(*loaded, config=config, progress=False, **extra)
            return time.perf_counter() - start

        def per_mask(estimator: Any, kind: str, many: int, measure: Callable[..., float] = seconds) -> float:
            few = SpesConfig.reading(FEW, estimator=estimator)
            more = replace(few, **{kind: many})
            costs = [measure(more) - measure(few) for _ in range(options.repeats)]
            return statistics.median(costs) / (many - getattr(few, kind))

        row: dict[str, Any] = {"model": name}
        row["forward"] = per_mask("perturbation", "num_spectrogram_masks", 2 + masks)
        row["decoder"] = per_mask("perturbation", "num_token_masks", 3 + 4 * masks)
        both = per_mask("gradient", "num_spectrogram_masks", 2 + max(8, masks // 4))
        row["backward"] = both - row["forward"]
        for preset, config in MEASURED.items():
            repeats = options.repeats if row["forward"] < 0.1 else 1
            row[preset] = statistics.median(seconds(config) for _ in range(repeats))
        row["paper"] = row["forward"] * PAPER.num_spectrogram_masks + row["decoder"] * PAPER.num_token_masks
        rows.append(row)

    print("| model | ms forwards | ms backwards | ms, decoder alone | fast | default | paper |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        costs = "".join(f" {1000 * row[kind]:.1f} |" for kind in ("forward", "backward", "decoder"))
        costs += "".join(f" {readable(row[preset])} |" for preset in (*MEASURED, "paper"))
        print(f"| {row['model']} |{costs}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "processor": platform.machine()}
    options.out.write_text(json.dumps({"machine": machine, "device": options.device, "rows": rows}, indent=2) + "\n")


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

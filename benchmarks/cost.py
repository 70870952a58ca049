"""What an explanation costs: seconds per pass forwards, backwards and of the decoder alone, and so per preset.

    python benchmarks/cost.py [--device cuda]

prints a table and writes it to benchmarks/results/cost.json (cost_cuda.json). Each cost of a pass is the median of
several runs of `explain`, the difference between many passes of its kind and few, at least half a second, divided by
how many more the provenance counts: starting, encoding and generating do not count. A mask "both ways" is a pass
forwards and the sentence's backwards; "backwards" is one more backward pass for tokens under the same masks. "fast" and
"default" are measured, "paper" is computed from the costs of its passes. No preset may take less than its passes
should, and no pass no time: else the costs are wrong, and the command says so and fails.
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
from typing import Any, NamedTuple

import torch

from spes_hf import SpesConfig, explain
from spes_hf.demo import demo_audio, load_demo_model, load_tiny_model, tiny_clips

MEASURED = {"fast": SpesConfig.fast(), "default": SpesConfig()}
PAPER = SpesConfig.paper("asr")
FEW: dict[str, Any] = dict(num_spectrogram_masks=2, num_token_masks=3, patches_per_second=400)
EQ_3 = SpesConfig.reading(FEW, estimator="perturbation")
# As many masks for the pilot, which looks at four, and enough for the signs of those who share passes.
GRADIENT = SpesConfig.reading(FEW, masks_per_token=8, num_spectrogram_masks=8)


def wide(masks: int) -> SpesConfig:
    """Return the gradient's config with more masks for the sentence, in whole eights."""
    return replace(GRADIENT, num_spectrogram_masks=8 + max(8, masks // 8) // 8 * 8)


# What a pass of each kind is counted as in the provenance, and configs with few and many of them.
KINDS: dict[str, tuple[str, Callable[[int], tuple[SpesConfig, SpesConfig]]]] = {
    "forward": ("forward", lambda n: (EQ_3, replace(EQ_3, num_spectrogram_masks=2 + n))),
    "decoder": ("forward", lambda n: (EQ_3, replace(EQ_3, num_token_masks=3 + 4 * n))),
    "mask": ("forward", lambda n: (GRADIENT, wide(n))),
    "backward": ("backward", lambda n: (wide(n), replace(wide(n), masks_per_token=wide(n).num_spectrogram_masks))),
}
# What more passes must take than few, so that a difference of two runs says something; in seconds.
LEAST_S = 0.5
# By how much a preset may seem faster than its passes, which other runs measured.
NOISE = 1.1


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs to take the median of (default: 3)")
    parser.add_argument("--device", default="cpu", help="where the models run (default: cpu)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/cost.json, or cost_cuda.json")
    options = parser.parse_args()
    name = "cost.json" if options.device == "cpu" else f"cost_{options.device.split(':')[0]}.json"
    options.out = options.out or Path(__file__).parent / "results" / name

    clip = str(tiny_clips()[0]["path"])
    cases: list[tuple[str, Callable[[], tuple[Any, Any]], str, dict[str, Any], int]] = [
        ("Whisper tiny.en, 11 s", load_demo_model, str(demo_audio()), {}, 16),
        ("Speech2Text (shipped)", lambda: load_tiny_model("speech2text-en"), clip, {}, 1000),
        ("SeamlessM4T v2 (shipped)", lambda: load_tiny_model("seamless-en-de-es"), clip, {"tgt_lang": "deu"}, 1000),
    ]
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for name, load, audio, arguments, masks in cases:
        model, processor = load()
        model.to(options.device)

        def run(config: SpesConfig, loaded: Any = (model, processor, audio), extra: Any = arguments) -> Run:
            start = time.perf_counter()
            explanation = explain(*loaded, config=config, progress=False, **extra)
            cost = explanation.provenance["cost"]
            return Run(time.perf_counter() - start, cost["forward_passes"], cost["backward_passes"])

        run(GRADIENT)  # what is done once
        row: dict[str, Any] = {"model": name}
        for kind, (counted, configs) in KINDS.items():
            row[kind] = per_pass(run, counted, configs, masks, options.repeats)
        if min(row[kind] for kind in KINDS) <= 0:
            wrong.append(f"{name}: a pass takes no time")
        for preset, config in MEASURED.items():
            repeats = options.repeats if row["forward"] < 0.1 else 1
            runs = [run(config) for _ in range(repeats)]
            row[preset] = statistics.median(each.seconds for each in runs)
            masked = config.num_spectrogram_masks
            of_passes = masked * row["mask"] + (runs[0].backward - masked) * row["backward"]
            of_passes += config.num_token_masks * row["decoder"]
            if of_passes > NOISE * row[preset]:
                wrong.append(f"{name}, {preset}: passes {of_passes:.2f} s, all of it {row[preset]:.2f} s")
        row["paper"] = row["forward"] * PAPER.num_spectrogram_masks + row["decoder"] * PAPER.num_token_masks
        rows.append(row)

    print("| model | ms forwards | ms both ways | ms backwards | ms, decoder alone | fast | default | paper |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        costs = "".join(f" {1000 * row[kind]:.1f} |" for kind in ("forward", "mask", "backward", "decoder"))
        costs += "".join(f" {readable(row[preset])} |" for preset in (*MEASURED, "paper"))
        print(f"| {row['model']} |{costs}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    card = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else platform.machine()
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "processor": card}
    machine["date"] = time.strftime("%Y-%m-%d")
    options.out.write_text(json.dumps({"machine": machine, "device": options.device, "rows": rows}, indent=2) + "\n")
    if wrong:
        raise SystemExit(
            "these passes cost more than the whole explanation, so their costs are wrong: " + "; ".join(wrong)
        )


def per_pass(
    run: Callable[[SpesConfig], Run],
    counted: str,
    configs: Callable[[int], tuple[SpesConfig, SpesConfig]],
    masks: int,
    repeats: int,
) -> float:
    """Return the seconds of a pass, from runs with few and with many; takes four times as many until they differ."""
    while True:
        few, many = map(run, configs(masks))
        if many.seconds - few.seconds >= LEAST_S:
            break
        masks *= 4
    runs = [(few, many), *(tuple(map(run, configs(masks))) for _ in range(repeats - 1))]
    return statistics.median((b.seconds - a.seconds) / (getattr(b, counted) - getattr(a, counted)) for a, b in runs)


class Run(NamedTuple):
    """What one explanation took."""

    seconds: float
    forward: int
    backward: int


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

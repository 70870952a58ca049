"""Does ``spes-hf plan --measure`` tell how long an explanation takes? Its seconds against those of a real one.

    python benchmarks/capacity.py                                  # writes benchmarks/results/capacity.json
    python benchmarks/capacity.py --model openai/whisper-large-v3 --device cuda --dtype bfloat16 --configs default

The plan hears noise and makes the model write; the real one hears a clip of the same length and writes as many tokens.
The two take turns, and each number is the median of the repeats. Exit code 1 if one is more than 1.5 times the other.
The operations a second that passes reach are what --tflops of the plan without --measure asks for.
"ratio_by_operations" is its seconds over the real ones, if --tflops is what the default config reached.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spes_hf import ExplainConfig, SpesConfig, explain
from spes_hf.adapters import get_adapter
from spes_hf.capacity.measured import measure
from spes_hf.capacity.operations import Operations, Weightless, noise_of
from spes_hf.capacity.passes import made_up_target, passes_of
from spes_hf.commands.options import load_model
from spes_hf.demo import demo_audio, tiny_clips

MODELS = ("speech2text-en", "seamless-en-de-es", "demo")
CONFIGS = {
    "fast": SpesConfig.fast(),
    "default": SpesConfig(),
    "eq3": SpesConfig.paper("asr", num_spectrogram_masks=300, num_token_masks=100),
}
ALLOWED = 1.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", nargs="+", default=list(MODELS), metavar="NAME", help="default: the shipped, and demo"
    )
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), choices=CONFIGS, help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="runs to take the median of (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the models run (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="type of the weights (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "capacity.json")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.model:
        model, processor = load_model(name, options.device, options.dtype)
        for config in options.configs:
            rows.append({"model": name, "config": config, **compare(model, processor, name, CONFIGS[config], options)})
            print(line(rows[-1]), flush=True)
    reached = {row["model"]: row["tflops_reached"] for row in rows if row["config"] == "default"}
    for row in rows:
        if row["model"] in reached and row["config"] != "default":
            row["ratio_by_operations"] = row["tflops_reached"] / reached[row["model"]]
            print(f"{row['model']}, {row['config']}: ratio by operations {row['ratio_by_operations']:.2f}")
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "processor": platform.machine()}
    report = {"machine": machine, "device": options.device, "dtype": options.dtype, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(any(not 1 / ALLOWED <= row["ratio"] <= ALLOWED for row in rows))


def compare(
    model: Any, processor: Any, name: str, config: ExplainConfig, options: argparse.Namespace
) -> dict[str, Any]:
    """Return what the plan says and what an explanation takes, in seconds."""
    clip = str(demo_audio() if name not in MODELS[:2] else tiny_clips()[0]["path"])
    asked = {"tgt_lang": "deu"} if name.startswith("seamless") else {}
    first = explain(model, processor, clip, config=config, progress=False, **asked)
    seconds, tokens = len(first.waveform) / first.sampling_rate, len(first.written_ids)
    planned, real = [], []
    for _ in range(options.repeats):
        planned.append(measure(model, processor, config, seconds, tokens, options=asked).explaining)
        started = time.perf_counter()
        explain(model, processor, clip, config=config, progress=False, **asked)
        real.append(time.perf_counter() - started)
    passes = passes_of(config, tokens)
    adapter = get_adapter(model, processor)
    weightless = Weightless.of(model.config, processor)
    heard = weightless.adapter.encode(noise_of(adapter, seconds))
    operations = Operations.count(weightless.adapter, heard, made_up_target(tokens), weightless.mode).of(passes)
    plan, took = statistics.median(planned), statistics.median(real)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "forward_passes": passes.forward,
        "backward_passes": passes.backward,
        "counted": first.origin.cost,
        "planned": plan,
        "took": took,
        "ratio": plan / took,
        "tflops_reached": operations / took / 1e12,
    }


def line(row: dict[str, Any]) -> str:
    """Return a row to read."""
    return (
        f"{row['model']}, {row['config']}: planned {row['planned']:.2f} s, took {row['took']:.2f} s, ratio "
        f"{row['ratio']:.2f}; {row['tflops_reached']:.3f} TFLOP/s reached"
    )


if __name__ == "__main__":
    sys.exit(main())

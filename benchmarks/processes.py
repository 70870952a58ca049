"""Do two processes do twice the work? Throughput of a corpus job at one and at two processes, and what follows from it.

    python benchmarks/processes.py                                    # writes benchmarks/results/processes.json
    python benchmarks/processes.py --document docs/scaling.md         # and the tables of that page
    python benchmarks/processes.py --model openai/whisper-large-v3 --device cuda --masks 512 --clips 8

Every process runs `explain_dataset` with one thread (on an accelerator: on a device of its own, if there are enough).
Loading is not counted: the processes load, explain a clip, and start together. Runs with one and with two processes
take turns, and each number is the median of the repeats.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "processes.json"

# Whisper large-v3: 32 + 32 layers of width 1280, 1,500 positions in the encoder, a vocabulary of 51,866.
LAYERS, WIDTH, POSITIONS, VOCABULARY = 32, 1280, 1500, 51_866
# What a GPU reaches of its peak in bfloat16 (dense).
UTILISATION = 0.4
GPUS = {"H100 (989 TFLOP/s)": 989e12, "A100 (312 TFLOP/s)": 312e12}
# tst-COMMON of MuST-C, English–German: utterances, and their mean length in seconds and in tokens.
UTTERANCES, MEAN_SECONDS, MEAN_TOKENS = 2_641, 5.6, 25


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="speech2text-en", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="type of the weights (default: %(default)s)")
    parser.add_argument("--masks", type=int, default=300, help="masks of the spectrogram (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=24, help="utterances in a run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs to take the median of (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, metavar="FILE", help="write the tables into this page")
    parser.add_argument("--from-results", action="store_true", help="measure nothing; take --out for the tables")
    parser.add_argument("--worker", nargs=3, metavar=("INDEX", "COUNT", "DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options, int(options.worker[0]), int(options.worker[1]), Path(options.worker[2]))
        return
    if options.from_results:
        report = json.loads(options.out.read_text(encoding="utf-8"))
    else:
        report = measure(options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(throughput_table(report))
    if options.document is not None:
        fill(options.document, {"throughput": throughput_table(report), "hours": hours_table()})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return throughputs of runs with one and with two processes, in turn."""
    runs: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.repeats):
        for count, rates in runs.items():
            rates.append(throughput(options, count))
            print(f"{count} process{'es' * (count > 1)}: {rates[-1]:.3f} utterances/s", flush=True)
    medians = {count: statistics.median(rates) for count, rates in runs.items()}
    return {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "device": options.device},
        "model": options.model,
        "masks": options.masks,
        "clips": options.clips,
        "utterances_per_second": {str(count): rates for count, rates in runs.items()},
        "median": {str(count): median for count, median in medians.items()},
        "ratio": medians[2] / medians[1],
        "ratios_of_pairs": [two / one for one, two in zip(runs[1], runs[2], strict=True)],
    }


def throughput(options: argparse.Namespace, count: int) -> float:
    """Return how many utterances so many processes explain in a second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, "--model", options.model, "--device", options.device]
        command += ["--dtype", options.dtype, "--masks", str(options.masks), "--clips", str(options.clips)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path}
        processes = [
            subprocess.Popen([*command, "--worker", str(i), str(count), name], env=variables) for i in range(count)
        ]
        while len(list(folder.glob("ready-*"))) < count:
            if any(process.poll() is not None for process in processes):
                raise SystemExit("a process ended before it was ready")
            time.sleep(0.02)
        (folder / "go").touch()
        if any(process.wait() != 0 for process in processes):
            raise SystemExit("a process failed")
        spans = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("span-*.json")]
        rows = sum(int(path.stem.rsplit("-", 1)[1]) for path in (folder / "out" / "data").glob("*.parquet"))
    if rows != options.clips:
        raise SystemExit(f"{rows} of {options.clips} utterances were explained")
    return rows / (max(span["end"] for span in spans) - min(span["start"] for span in spans))


def work(options: argparse.Namespace, index: int, count: int, folder: Path) -> None:
    """Load, wait for the others, explain a share of the clips."""
    import torch
    from datasets import Dataset

    from spes_hf import SpesConfig, explain, explain_dataset
    from spes_hf.cli import load_model
    from spes_hf.demo import tiny_clips

    torch.set_num_threads(1)
    device = options.device
    if device == "cuda":
        device = f"cuda:{index % torch.cuda.device_count()}"
    model, processor = load_model(options.model, device, options.dtype)
    # Forward passes only, so that a run is so many passes.
    config = SpesConfig(
        estimator="perturbation",
        patches_per_second=(20.0, 80.0, 400.0),
        num_spectrogram_masks=options.masks,
        num_token_masks=50,
    )
    clips = (tiny_clips() * (1 + options.clips // len(tiny_clips())))[: options.clips]
    data = Dataset.from_dict({"id": list(map(str, range(len(clips)))), "audio": [clip["path"] for clip in clips]})
    explain(model, processor, clips[0]["path"], config=config, progress=False)
    (folder / f"ready-{index}").touch()
    while not (folder / "go").exists():
        time.sleep(0.005)
    start = time.time()
    place = {"process_index": index, "num_processes": count}
    explain_dataset(model, processor, data, folder / "out", config, progress=False, **place)
    span = {"start": start, "end": time.time()}
    (folder / f"span-{index}.json").write_text(json.dumps(span), encoding="utf-8")


def throughput_table(report: dict[str, Any]) -> str:
    """Return the measured throughput as a table."""
    machine = report["machine"]
    lines = ["| processes | utterances a minute | against one process |", "|---|---|---|"]
    for count in ("1", "2"):
        share = report["median"][count] / report["median"]["1"]
        lines.append(f"| {count} | {60 * report['median'][count]:.1f} | {share:.2f} × |")
    pairs = ", ".join(f"{ratio:.2f}" for ratio in report["ratios_of_pairs"])
    where = f"{machine['cores']} cores ({machine['processor']})" if machine["device"] == "cpu" else machine["device"]
    lines += [
        "",
        f"`{report['model']}`, {report['clips']} clips, {report['masks']} + 50 masks of Eq. 3, {where}, one thread a "
        f"process; median of {len(report['ratios_of_pairs'])}, runs in turn (their ratios: {pairs}).",
    ]
    return "\n".join(lines)


def pass_flops(tokens: int) -> tuple[float, float]:
    """Return operations of Whisper large-v3 for a pass under a mask of the spectrogram, and under one of the tokens."""
    d, s = WIDTH, POSITIONS
    encoder = LAYERS * (2 * 12 * d * d * s + 4 * s * s * d)
    # Keys and values of the cross-attention are made of what the encoder heard: once, where only tokens are perturbed.
    heard = LAYERS * 2 * 2 * d * d * s
    decoder = LAYERS * (2 * 14 * d * d * tokens + 4 * s * d * tokens) + 2 * d * VOCABULARY * tokens
    return float(encoder + heard + decoder), float(decoder)


def utterance_flops(config: Any, tokens: int) -> float:
    """Return operations for an utterance; a backward pass counts for two forward passes."""
    from spes_hf.scoring.sharing import orthogonal_codes

    whole, decoder = pass_flops(tokens)
    forward, backward = config.num_spectrogram_masks, 0
    if config.estimator == "gradient":
        own = min(config.masks_per_token, forward)
        signs = len(orthogonal_codes(own // 2))  # of antithetic pairs
        passes = tokens if config.passes_per_mask is None else max(config.passes_per_mask, math.ceil(tokens / signs))
        backward = own * min(passes, tokens) + forward
    return (forward + 2 * backward) * whole + config.num_token_masks * decoder


def hours_table() -> str:
    """Return GPU-hours for Whisper large-v3, as a table."""
    from spes_hf import SpesConfig

    presets = {"fast": SpesConfig.fast(), "default": SpesConfig(), "paper": SpesConfig.paper("asr")}
    thousand = round(1000 * 3600 / MEAN_SECONDS)
    lines = [
        "| setting | PFLOP an utterance | GPU | tst-COMMON | 1,000 hours of speech |",
        "|---|---|---|---|---|",
    ]
    for name, config in presets.items():
        flops = utterance_flops(config, MEAN_TOKENS)
        for gpu, peak in GPUS.items():
            hours = flops / (UTILISATION * peak) / 3600
            both = f"{readable(hours * UTTERANCES)} | {readable(hours * thousand)}"
            lines.append(f"| {name} | {flops / 1e15:.2f} | {gpu} | {both} |")
    return "\n".join(lines)


def readable(hours: float) -> str:
    """Return GPU-hours to two digits."""
    return f"{hours:.1f} h" if hours < 10 else f"{float(f'{hours:.2g}'):,.0f} h"


def fill(page: Path, tables: dict[str, str], script: str = "processes.py") -> None:
    """Put tables between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name}: python benchmarks/{script} -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

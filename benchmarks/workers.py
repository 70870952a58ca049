"""Do two workers of `Dataset.map` do twice the work of one? With torch's default threads, as a user starts it.

    python benchmarks/workers.py                                      # writes benchmarks/results/workers.json
    python benchmarks/workers.py --document docs/scaling.md           # and the table of that page

Times are those of the whole call of `map`, workers started and all, after the model has run in the parent. Runs with
one and with two workers take turns, and each number is the median of the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from processes import fill

RESULTS = Path(__file__).parent / "results" / "workers.json"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="speech2text-en", help="default: %(default)s")
    parser.add_argument("--clips", type=int, default=16, help="utterances in a run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs to take the median of (default: %(default)s)")
    parser.add_argument("--start", choices=("fork", "spawn"), default="fork", help="default: %(default)s")
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
        fill(options.document, {"workers": table(report)}, "workers.py")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of runs with one and with two workers, in turn, and how busy the machine was before."""
    import datasets
    import multiprocess
    import torch

    from spes_hf import Explain
    from spes_hf.demo import load_tiny_model, tiny_clips

    datasets.disable_caching()
    datasets.disable_progress_bars()
    multiprocess.set_start_method(options.start)
    load = os.getloadavg()[0]
    clips = tiny_clips()[: options.clips]
    data = datasets.Dataset.from_dict({"id": [c["id"] for c in clips], "audio": [c["path"] for c in clips]})
    explain = Explain(*load_tiny_model(options.model))
    explain(data[0])
    runs: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.repeats):
        for workers, seconds in runs.items():
            started = time.perf_counter()
            rows = data.map(explain, num_proc=workers, load_from_cache_file=False)
            seconds.append(time.perf_counter() - started)
            if any(rows["error"]):
                raise SystemExit(f"a row failed: {max(rows['error'])}")
            print(f"{workers} worker{'s' * (workers > 1)}: {seconds[-1]:.1f} s", flush=True)
    medians = {workers: statistics.median(seconds) for workers, seconds in runs.items()}
    return {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load_before": round(load, 2)},
        "threads_of_the_parent": torch.get_num_threads(),
        "model": options.model,
        "start": options.start,
        "clips": len(data),
        "seconds": {str(workers): seconds for workers, seconds in runs.items()},
        "median": {str(workers): median for workers, median in medians.items()},
        "ratio": medians[1] / medians[2],
        "ratios_of_pairs": [one / two for one, two in zip(runs[1], runs[2], strict=True)],
    }


def table(report: dict[str, Any]) -> str:
    """Return the table of the page."""
    one, two = report["median"]["1"], report["median"]["2"]
    ratios = ", ".join(f"{ratio:.2f}" for ratio in report["ratios_of_pairs"])
    return "\n".join(
        [
            "| workers | seconds | speed against one |",
            "|---|---|---|",
            f"| 1 | {one:.1f} | 1.00 × |",
            f"| 2 | {two:.1f} | {one / two:.2f} × |",
            "",
            f"`{report['model']}`, {report['clips']} clips, the default's masks, {report['machine']['cores']} cores "
            f"({report['machine']['processor']}), workers by {report['start']}; median of "
            f"{len(report['seconds']['1'])}, runs in turn (their ratios: {ratios}).",
        ]
    )


if __name__ == "__main__":
    main()

"""How many utterances a corpus job explains in a second, and the model's share of that time, in two versions.

    git worktree add ../before HEAD~10
    python benchmarks/jobs_rate.py --package ../before --package .

Sends clips of the package through `explain_dataset`, in a process of its own for each package, in turn; medians. The
model's share is the seconds of the main thread in the model (encoder, decoder, ``generate()``, backward passes) over
those of the whole call, first row to summary. Writes benchmarks/results/jobs_rate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from start_case import Stopwatches, check_package, in_packages, median_of

PARTS = ("model", "decode", "features", "SLIC", "masks", "reliability", "provenance", "packing")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, action="append", help="folder with spes_hf, once for each version")
    parser.add_argument("--clips", type=int, default=200, help="utterances (default: %(default)s)")
    parser.add_argument(
        "--method", choices=("default", "fast", "paper"), default="default", help="default: %(default)s"
    )
    parser.add_argument("--masks", type=int, default=300, help="of the spectrogram, for paper (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each package (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    parser.add_argument("--device", default="cpu", help="where the model runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "jobs_rate.json")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    packages = options.package or [Path(__file__).parents[1]]
    for package in packages:
        check_package(package)
    arguments = [
        "--device",
        options.device,
        "--clips",
        str(options.clips),
        "--method",
        options.method,
        "--masks",
        str(options.masks),
    ]
    arguments += ["--threads", str(options.threads)] if options.threads else []
    found = in_packages(__file__, packages, arguments, options.repeats)
    rows: list[dict[str, Any]] = []
    print(f"| package | utterances a second | faster | {' | '.join(PARTS)} |")
    print("|---" * (len(PARTS) + 3) + "|")
    for package, reports in zip(packages, found, strict=True):
        ratios = [now["rate"] / then["rate"] for then, now in zip(found[0], reports, strict=True)]
        row: dict[str, Any] = {"package": package.resolve().name, **median_of(reports, statistics.median)}
        rows.append({**row, "faster": statistics.median(ratios), "rates": [report["rate"] for report in reports]})
        shares = " | ".join(f"{row.get(part, 0.0):.1%}" for part in PARTS)
        print(f"| {package} | {row['rate']:.2f} | {rows[-1]['faster']:.2f} × | {shares} |", flush=True)
    machine = {"cores": os.cpu_count(), "threads": options.threads, "device": options.device}
    report = {"method": options.method, "clips": options.clips, "machine": machine, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return utterances a second, and the share of every part, of one job in this process."""
    import torch
    from datasets import Dataset

    from spes_hf import SpesConfig, explain, explain_dataset
    from spes_hf.adapters import get_adapter
    from spes_hf.demo import load_tiny_model, tiny_clips

    if options.threads:
        torch.set_num_threads(options.threads)
    masks = {"num_spectrogram_masks": options.masks, "num_token_masks": max(1, options.masks // 10)}
    configs = {"default": SpesConfig(), "fast": SpesConfig.fast(), "paper": SpesConfig.paper("asr", **masks)}
    config = configs[options.method]
    model, processor = load_tiny_model("speech2text-en")
    model.to(options.device)
    clips = tiny_clips()
    clips = (clips * (1 + options.clips // len(clips)))[: options.clips]
    data = Dataset.from_dict({"id": list(map(str, range(len(clips)))), "audio": [clip["path"] for clip in clips]})
    explain(model, processor, clips[0]["path"], config=config, progress=False)  # what is done once
    watches = Stopwatches(options.device)
    watches.on_parts(get_adapter(model, processor))
    with tempfile.TemporaryDirectory() as folder:
        start = watches.clock()
        summary = explain_dataset(model, processor, data, Path(folder) / "out", config, progress=False)
        seconds = watches.clock() - start
    if not summary.complete or summary.failures:
        raise SystemExit(f"the job went wrong: {summary}")
    return {"rate": len(clips) / seconds, **{part: spent / seconds for part, spent in watches.spent.items()}}


if __name__ == "__main__":
    main()

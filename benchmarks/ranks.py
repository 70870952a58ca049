"""One utterance on several processes: how much faster, and are the maps the same?

    python benchmarks/ranks.py                       # writes benchmarks/results/ranks.json
    python benchmarks/ranks.py --device cuda         # a GPU for each process

Every process has one thread (on an accelerator: a device of its own). Explained are 15 s of the shipped clips, as much
as the shipped Speech2Text model reads at once, by the default config, and the clip of J. F. Kennedy, 11 s, with Whisper
tiny.en, by `SpesConfig.fast()`. Loading is not counted. Runs of one process and of several take turns; numbers are
medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "ranks.json"
SECONDS = 15


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2], help="default: 2")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs to take the median of (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=("speech2text", "whisper"), default=["speech2text", "whisper"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker[0], Path(options.worker[1]), options.device)
        return
    report: dict[str, Any] = {"device": options.device, "processor": platform.processor() or platform.machine()}
    for case in options.cases:
        runs: dict[int, list[dict[str, Any]]] = {count: [] for count in (1, *options.processes)}
        for _ in range(options.repeats):
            for count, found in runs.items():
                found.append(run(case, count, options.device))
        alone = statistics.median(each["seconds"] for each in runs[1])
        report[case] = {}
        for count, found in runs.items():
            seconds = statistics.median(each["seconds"] for each in found)
            worst = max(difference(each["maps"], runs[1][0]["maps"]) for each in found)
            report[case][count] = {"seconds": round(seconds, 2), "speedup": round(alone / seconds, 2), "maps": worst}
            print(f"{case}, {count} processes: {seconds:.1f} s, {alone / seconds:.2f} times as fast, maps differ by")
            print(f"    {worst:.1e} of the largest value; {found[0]['tokens']} tokens", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def difference(maps: Any, others: Any) -> float:
    """Return by how much maps differ at most, in units of the largest value."""
    return float((maps - others).abs().max() / others.abs().max())


def run(case: str, count: int, device: str) -> dict[str, Any]:
    """Return what processes measured that explained a case together."""
    import torch

    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
        free.close()
        shared |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LOCAL_WORLD_SIZE": str(count)}
        shared |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        command = [sys.executable, __file__, "--worker", case, folder, "--device", device]
        ranks = [{"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]
        started = [subprocess.Popen(command, env={**os.environ, **shared, **rank}) for rank in ranks]
        if any([process.wait() for process in started]):
            raise SystemExit(f"{case}: a process failed; see above")
        found: dict[str, Any] = torch.load(Path(folder) / "found.pt")
        return found


def work(case: str, folder: Path, device: str) -> None:
    """Explain a case in one of several processes; the first writes what it took."""
    import numpy as np
    import torch
    from accelerate import Accelerator

    from spes_hf import SpesConfig, explain
    from spes_hf.audio.load import load_audio
    from spes_hf.demo import demo_audio, load_demo_model, load_tiny_model, tiny_clips

    accelerator = Accelerator(cpu=device == "cpu")
    torch.set_num_threads(1)
    if case == "whisper":
        (model, processor), audio, config = (
            load_demo_model(),
            load_audio(demo_audio(), 16_000).samples,
            SpesConfig.fast(),
        )
    else:
        model, processor = load_tiny_model("speech2text-en")
        clips = [load_audio(clip["path"], 16_000).samples for clip in tiny_clips()[:30]]
        audio, config = np.concatenate(clips)[: SECONDS * 16_000], SpesConfig()
    model = model.to(accelerator.device)
    settings: dict[str, Any] = {"sampling_rate": 16_000, "progress": False, "accelerator": accelerator}
    few = replace(config, num_spectrogram_masks=1, masks_per_token=1, num_token_masks=1)
    explain(model, processor, audio[:32_000], config=few, **settings)  # what is done once
    accelerator.wait_for_everyone()
    started = time.perf_counter()
    explanation = explain(model, processor, audio, config=config, **settings)
    accelerator.wait_for_everyone()
    seconds = time.perf_counter() - started
    if accelerator.is_main_process:
        found = {"seconds": seconds, "maps": explanation.raw_audio, "tokens": len(explanation.tokens)}
        torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main()

"""Most of what the documents say of a GPU, measured in one go: at most about 8 minutes on one card, 10 on two.

    python benchmarks/all_gpu.py [--device cuda] [--only NAME ...]

Runs the commands below one after the other, each with a time limit of its own, so that one that fails or hangs costs no
more than itself. Their results are in benchmarks/results/gpu/; all.json there names the card and the date, and says
what ran, how long it took, and what failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gpu"
SHIPPED = ("Speech2Text (shipped)", "SeamlessM4T v2 (shipped)")

# What runs, with what, and for how many seconds at most. {device} is the device.
COMMANDS: dict[str, tuple[list[str], int]] = {
    "cost": (["cost.py", "--device", "{device}", "--repeats", "3"], 120),
    "engine": (
        ["speed.py", "engine", "--device", "{device}", "--masks", "20000", "--repeats", "3", "--seconds", "5"]
        + ["--models", *SHIPPED],
        90,
    ),
    "engine_whisper": (
        ["speed.py", "engine", "--device", "{device}", "--masks", "3000", "--repeats", "3", "--seconds", "15"]
        + ["--models", "Whisper tiny.en"],
        60,
    ),
    "deletion": (["deletion.py", "--device", "{device}", "--clips", "4", "--repeats", "3"], 60),
    "batched_backward": (["batched_backward.py", "--device", "{device}"], 60),
    "start": (["start.py", "--device", "{device}", "--repeats", "2"], 90),
    "ranks": (["ranks.py", "--device", "{device}"], 90),
}


def main() -> None:
    """Run what can run, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="default: all")
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise SystemExit(f"--device is {options.device!r}, and torch finds no such GPU here")
    RESULTS.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "card": torch.cuda.get_device_name(options.device) if cuda else platform.machine(),
        "cards": torch.cuda.device_count() if cuda else 0,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "commands": {},
    }
    for name in options.only:
        if name == "ranks" and cuda and torch.cuda.device_count() < 2:
            report["commands"][name] = {"skipped": "one GPU; it needs two"}
            continue
        arguments, limit = COMMANDS[name]
        command = [sys.executable, str(HERE / arguments[0]), *(a.format(device=options.device) for a in arguments[1:])]
        command += ["--out", str(RESULTS / f"{name}.json")]
        started = time.perf_counter()
        failed = run(command, limit)
        seconds = round(time.perf_counter() - started, 1)
        report["commands"][name] = {"command": " ".join(command[1:]), "seconds": seconds, "failed": failed}
        print(f"{name}: {'done' if failed is None else failed} ({seconds} s)", flush=True)
        (RESULTS / "all.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "all.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run(command: list[str], limit: int) -> str | None:
    """Run a command; return why it failed, or None.

    Args:
        command: The command.
        limit: Seconds after which it is stopped, with all the processes that it has started.
    """
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as started:
        try:
            out, errors = started.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return f"not done after {limit} s"
        finally:  # also where this script is stopped
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
    return None if started.returncode == 0 else (errors or out)[-2000:]


if __name__ == "__main__":
    main()

"""Damaged files: does each end in an object that can be used, or in an error of ours?

Files of every kind that the package reads are damaged at random, from a seed: bits, bytes, stretches, lengths, and,
past the checksums, values and shapes. Each is then read in a process of its own with a limit on memory and time.
Anything but an object or a `SpesError` (another exception, a crash, a hang, more than 200 MB) is a fault.

    python benchmarks/fuzz.py --cases 400      # of every kind; writes benchmarks/results/fuzz.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from fuzz_cases import KINDS

from spes_hf import SpesError

OUT = Path(__file__).parent / "results" / "fuzz.json"
LIMIT_MB, LIMIT_S = 200, 20
LEAST = 10  # cases of every kind, whatever the time


def memory_mb(which: str) -> float:
    """Return a figure of this process from /proc in MB: "VmSize", "VmRSS" or "VmHWM"."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def run_case(kind: str, case: int, seed: int) -> str:
    """Return what became of a case: "object", "refused", or the fault."""
    rng = random.Random(f"{seed}/{kind}/{case}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            KINDS[kind](rng, Path(folder))
        except SpesError:
            return "refused"
        except Exception as error:
            trace, where = error.__traceback__, ""
            while trace:
                where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
                trace = trace.tb_next
            return f"{type(error).__name__} at {where}: {str(error)[:200]}"
    return "object"


def run_some(kind: str, cases: range, seed: int, deadline: float, write: int) -> None:
    """Run cases in this process, which may die of it, and write a line for each."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    limit = int((memory_mb("VmSize") + 1_000) * 1e6)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    run_case(kind, -1, seed)  # what is imported late is no matter of a file
    for case in cases:
        if case >= LEAST and time.monotonic() > deadline:
            return
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before = memory_mb("VmRSS")
        signal.alarm(LIMIT_S)
        outcome = run_case(kind, case, seed)
        signal.alarm(0)
        grown = memory_mb("VmHWM") - before
        if grown > LIMIT_MB:
            outcome = f"took {grown:.0f} MB"
        os.write(write, f"{json.dumps([case, outcome, round(max(0.0, grown), 1)])}\n".encode())


def run_kind(kind: str, cases: int, seed: int, deadline: float) -> dict[str, Any]:
    """Return counts and faults of a kind; a process that dies is a fault, and another one takes over."""
    counts: Counter[str] = Counter()
    faults, most, first = [], 0.0, 0
    while first < cases and (first < LEAST or time.monotonic() < deadline):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            try:
                run_some(kind, range(first, cases), seed, deadline, write)
                os._exit(0)
            except BaseException:
                os._exit(9)
        os.close(write)
        with os.fdopen(read) as lines:
            for line in lines:
                case, outcome, grown = json.loads(line)
                first, most = case + 1, max(most, grown)
                counts[outcome if outcome in ("object", "refused") else "fault"] += 1
                if outcome not in ("object", "refused"):
                    faults.append({"case": case, "what": outcome})
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) or os.WEXITSTATUS(status):
            death = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "exit"
            faults.append({"case": first, "what": "hang" if death == "SIGALRM" else f"crash: {death}"})
            counts["fault"] += 1
            first += 1
        elif first < cases:  # the time is up
            break
    return {"cases": sum(counts.values()), **counts, "most_mb": most, "faults": faults}


def main() -> int:
    """Run the cases, print and write the counts; 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=400, help="of every kind")
    parser.add_argument("--seconds", type=float, default=3_600, help="at most, in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started, found = time.monotonic(), {}
    for number, kind in enumerate(options.kinds):
        left = started + options.seconds - time.monotonic()
        share = max(0.0, left) / (len(options.kinds) - number)
        found[kind] = run_kind(kind, options.cases, options.seed, time.monotonic() + share)
        print(kind, {k: v for k, v in found[kind].items() if k != "faults"}, *found[kind]["faults"][:5], flush=True)
    counted = ("cases", "object", "refused", "fault")
    total = {name: sum(kind.get(name, 0) for kind in found.values()) for name in counted}
    result = {"seed": options.seed, "limit_mb": LIMIT_MB, "limit_s": LIMIT_S, "total": total, "kinds": found}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print("total", total)
    return int(total["fault"] > 0 or total["cases"] == 0)


if __name__ == "__main__":
    sys.exit(main())

"""Does a corpus job end with the same rows, whenever it is killed? Real launchers, real kills.

    python benchmarks/kill.py

Runs a job of two processes (torchrun, recipes/explain_dataset.py, a tiny shipped model) to its end; then, ten times,
starts it again elsewhere, kills all of it with SIGKILL at a random moment, and goes on with it twice: with one process,
and, from a copy, with two. Compares all rows, byte by byte, with those of the undisturbed run, looks for rows that are
there twice, for finished files that were not left alone, and for litter. Writes benchmarks/results/kill.json; the exit
code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from spes_hf import SpesConfig
from spes_hf.demo import tiny_clips

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "explain_dataset.py"
KNOWN = {"manifest.json", "summary.json", "README.md"}


def main() -> int:
    """Run, compare, write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10, help="how often the job is killed (default: 10)")
    parser.add_argument("--masks", type=int, default=60, help="masks per utterance (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kill.json")
    parser.add_argument("--go-on", action="store_true", help="keep the moments that --out has already")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_manifest(work / "clips.jsonl")
        config = SpesConfig(estimator="perturbation", num_spectrogram_masks=options.masks, num_token_masks=20)
        config.to_json(work / "config.json")
        started = time.monotonic()
        finish(start(work, work / "undisturbed", 2))
        length = time.monotonic() - started
        expected = content(work / "undisturbed")
        ready = first_row(work)
        print(f"undisturbed: {len(expected)} rows in {length:.1f} s, the first after {ready:.1f} s")
        cases: list[dict[str, Any]] = []
        if options.go_on and options.out.is_file():
            cases = json.loads(options.out.read_text(encoding="utf-8"))["moments"]
        for moment in range(len(cases), options.moments):
            chance = random.Random(f"{options.seed}-{moment}")
            # Mostly while rows are being computed, now and then while the processes start.
            starting = moment % 5 == 4
            rows = None if starting else chance.randint(1, int(0.8 * len(expected)))
            after_s = chance.uniform(0.3 * ready, ready) if starting else chance.uniform(0, 1)
            cases.append(case(work, moment, rows, after_s, expected))
            print(json.dumps(cases[-1]), flush=True)
            write(options.out, cases, len(expected), length)
    good = write(options.out, cases, len(expected), length)
    print("all equal" if good else "NOT ALL EQUAL")
    return int(not good)


def write(path: Path, cases: list[dict[str, Any]], rows: int, length: float) -> bool:
    """Write what was found so far, and return whether all of it is as it should be."""
    good = all(run["equal"] for c in cases for run in c["gone_on_with"].values())
    good = good and not any(c["was_finished"] for c in cases)
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"rows": rows, "undisturbed_seconds": round(length, 1), "all_equal": good, "moments": cases}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return good


def case(work: Path, moment: int, rows: int | None, after_s: float, expected: list[str]) -> dict[str, Any]:
    """Kill a job, go on with it by one and by two processes, and return what came of it.

    Args:
        work: Folder of everything.
        moment: Number of the case.
        rows: How many rows to wait for; None: none, not even for the processes to start.
        after_s: How long to wait then, in seconds.
        expected: The rows of the undisturbed run.
    """
    out = work / f"killed-{moment}"
    out.mkdir()
    started, process = time.monotonic(), start(work, out, 2)
    wanted = rows or 0
    while rows_in(files(out)) < wanted and process.poll() is None:
        time.sleep(0.005)
    time.sleep(after_s)
    finished = process.poll() is not None
    kill(process)
    seconds = time.monotonic() - started
    process.wait()
    time.sleep(0.2)
    left = files(out)
    runs = {}
    for count in (1, 2):
        again = work / f"killed-{moment}-{count}"
        shutil.copytree(out, again)
        finish(start(work, again, count))
        rows, kept = content(again), files(again)
        litter = [name for name in kept if name not in KNOWN and not is_shard(name)]
        untouched = {name for name in left if is_shard(name)} <= set(kept)
        equal = rows == expected and not litter and untouched
        runs[str(count)] = {"equal": equal, "rows": len(rows), "litter": litter, "finished_rows_untouched": untouched}
        shutil.rmtree(again)
    return {
        "killed_after_seconds": round(seconds, 2),
        "was_finished": finished,
        "rows_on_disk": rows_in(left),
        "half_written_files": [name for name in left if name.endswith(".tmp")],
        "gone_on_with": runs,
    }


def start(work: Path, out: Path, count: int) -> subprocess.Popen[bytes]:
    """Start the recipe with so many processes."""
    launcher = [] if count == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, *launcher, RECIPE, "--model", "speech2text-en", "--dataset", work / "clips.jsonl"]
    command += ["--config", work / "config.json", "--out", out, "--flush-seconds", "0.3", "--quiet"]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(work / "hf"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return subprocess.Popen(
        list(map(str, command)),
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=(work / "log").open("ab"),
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a launcher and its workers, which it gives sessions of their own."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid)
    for member in [*family.children(recursive=True), family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a job that must end well."""
    if process.wait(timeout=1200) != 0:
        raise SystemExit(f"a job ended with exit code {process.returncode}")


def first_row(work: Path) -> float:
    """Return how long it takes until a job has its first rows on disk, in seconds."""
    out = work / "first"
    started, process = time.monotonic(), start(work, work / "first", 2)
    while not any(out.glob("data/*.parquet")):
        time.sleep(0.02)
    taken = time.monotonic() - started
    kill(process)
    process.wait()
    return taken


def write_manifest(path: Path) -> None:
    """Write a manifest of the shipped clips."""
    texts = ["transcript", "translation_de", "translation_es"]
    rows = [{"id": clip["id"], "audio": clip["path"], **{t: clip[t] for t in texts}} for clip in tiny_clips()]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")


def content(out: Path) -> list[str]:
    """Return all rows of a job in order; a row that is there twice is there twice."""
    rows = [row for path in sorted(out.glob("data/*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [repr(row) for row in sorted(rows, key=lambda row: row["row_index"])]


def files(out: Path) -> list[str]:
    """Return all files of a job."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def rows_in(names: list[str]) -> int:
    """Return how many rows files hold, by their names."""
    return sum(int(Path(name).stem.rsplit("-", 1)[1]) for name in names if is_shard(name))


def is_shard(name: str) -> bool:
    """Return whether a file holds finished rows."""
    return name.startswith("data/0") and name.endswith(".parquet")


if __name__ == "__main__":
    sys.exit(main())

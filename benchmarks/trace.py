"""What one call of `explain` goes through: files, functions, edges between files, depth of calls.

    python benchmarks/trace.py [--edges]

Counts what runs of the package itself, from the call until the explanation is there, on a shipped model and clip. To
compare two states of the code, run it with the other state first on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import spes_hf
from spes_hf import explain
from spes_hf.demo import load_tiny_model, tiny_clips

ROOT = str(Path(spes_hf.__file__).parent)


class Trace:
    """Watches calls within the package."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.edges: Counter[tuple[str, str]] = Counter()
        self.depth = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Take a call down; a callback of `sys.setprofile`."""
        if event != "call" or not frame.f_code.co_filename.startswith(ROOT):
            return
        file = name_of(frame)
        self.functions.add((file, f"{frame.f_code.co_firstlineno}:{frame.f_code.co_name}"))
        callers = [name_of(f) for f in ancestors(frame) if f.f_code.co_filename.startswith(ROOT)]
        self.depth = max(self.depth, 1 + len(callers))
        if callers and callers[0] != file:
            self.edges[callers[0], file] += 1

    def numbers(self) -> dict[str, int]:
        """Return the counts."""
        files = {file for file, _ in self.functions}
        return {
            "files": len(files),
            "functions": len(self.functions),
            "edges": len(self.edges),
            "depth": self.depth,
        }


def ancestors(frame: FrameType) -> list[FrameType]:
    """Return the frames that a call came through, the nearest first."""
    found, caller = [], frame.f_back
    while caller is not None:
        found.append(caller)
        caller = caller.f_back
    return found


def name_of(frame: FrameType) -> str:
    """Return a frame's file within the package."""
    return frame.f_code.co_filename.removeprefix(ROOT).lstrip("/")


def main() -> None:
    """Trace and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", action="store_true", help="print the edges, too")
    options = parser.parse_args()
    model, processor = load_tiny_model("speech2text-en")
    path = tiny_clips()[0]["path"]
    explain(model, processor, path, progress=False)  # imports and caches
    trace = Trace()
    sys.setprofile(trace)
    try:
        explain(model, processor, path, progress=False)
    finally:
        sys.setprofile(None)
    print(json.dumps(trace.numbers()))
    if options.edges:
        print(*sorted(f"{one} -> {other}  {count}" for (one, other), count in trace.edges.items()), sep="\n")


if __name__ == "__main__":
    main()

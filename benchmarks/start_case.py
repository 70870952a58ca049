"""The parts of an explanation that are not the model's, timed; for `start.py` and `jobs_rate.py`.

All names that are timed exist in every version of the package that is compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

# What runs the model, by class of the adapter.
MODEL = ("generate_with_states", "encoder_states", "forward", "cross_attention", "attention_weights")


class Stopwatches:
    """Seconds that functions take in the main thread, by label; of those that call each other, the outermost.

    Args:
        device: Where the model runs. A clock waits for an accelerator, so that its work counts where it was started.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.device = device
        self._running: set[str] = set()

    def clock(self) -> float:
        """Return the time in seconds, once the device has done its work."""
        if self.device != "cpu":
            import torch

            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def on(self, owner: Any, name: str, label: str) -> None:
        """Time a function from now on."""
        really = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            if label in self._running or threading.current_thread() is not threading.main_thread():
                return really(*arguments, **keywords)
            self._running.add(label)
            start = self.clock()
            try:
                return really(*arguments, **keywords)
            finally:
                self.spent[label] += self.clock() - start
                self._running.discard(label)

        setattr(owner, name, timed)

    def on_parts(self, adapter: Any) -> None:
        """Time the model, and the parts of an explanation with it."""
        import torch

        import spes_hf.methods.spes
        import spes_hf.plans
        from spes_hf.explanation.result import Explanation
        from spes_hf.masking.perturbations import SpectrogramPerturbation, TokenPerturbation
        from spes_hf.methods.run import Run

        for name in MODEL:
            if hasattr(type(adapter), name):
                self.on(type(adapter), name, "model")
        self.on(torch.autograd, "grad", "model")
        calling = explaining_module()
        self.on(calling, "open_audio", "decode")
        self.on(type(adapter), "encode", "features")
        self.on(spes_hf.methods.spes, "_segments", "SLIC")
        for kind in (SpectrogramPerturbation, TokenPerturbation):
            self.on(kind, "draw", "masks")
        self.on(Run, "_reliability", "reliability")
        self.on(calling, "describe", "provenance")
        self.on(spes_hf.plans.Found, "explanation", "packing")
        self.on(Explanation, "to_row", "packing")


def explaining_module() -> Any:
    """Return the module of `Explainer`, which was the engine's in earlier versions."""
    try:
        return import_module("spes_hf.explainer")
    except ImportError:
        return import_module("spes_hf.engine")


def in_packages(script: str, packages: Sequence[Path], arguments: Sequence[str], repeats: int) -> list[list[Any]]:
    """Return what a script prints as JSON, by package, all packages once in every round.

    Args:
        script: Path of the script.
        packages: Folders that hold the package `spes_hf`, each in a version of its own.
        arguments: Of the script.
        repeats: How many rounds.
    """
    found: list[list[Any]] = [[] for _ in packages]
    for _ in range(repeats):
        for package, reports in zip(packages, found, strict=True):
            path = os.pathsep.join([str(package.resolve()), str(Path(script).parent)])
            environment = {**os.environ, "PYTHONPATH": path}
            command = [sys.executable, script, "--measure", *arguments]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            reports.append(json.loads(output.splitlines()[-1]))
    return found


def median_of(reports: Sequence[dict[str, float]], middle: Callable[[Sequence[float]], float]) -> dict[str, float]:
    """Return reports as one, number by number."""
    names = dict.fromkeys(name for report in reports for name in report)
    return {name: middle([report.get(name, 0.0) for report in reports]) for name in names}


def check_package(package: Path) -> None:
    """Refuse a folder without the package."""
    if not (package / "spes_hf" / "__init__.py").is_file():
        raise SystemExit(f"--package {package}: no folder spes_hf in there")

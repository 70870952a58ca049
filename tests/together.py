"""Processes that work together in a test, over gloo, as ``accelerate launch`` starts them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

TIMEOUT_S = 120


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        value: What its work returned; None if it did not return.
        error: What its work raised.
        exitcode: Of the process, negative for a signal.
        at: When it ended, as `time.monotonic`.
    """

    value: Any
    error: Exception | None
    exitcode: int | None
    at: float


def run_together(count: int, work: Callable[..., Any], *arguments: Any, folder: Path) -> list[Ended]:
    """Return how processes ended that each ran ``work(accelerator, *arguments)``; none may take two minutes.

    Args:
        count: How many processes.
        work: What each does.
        *arguments: What it takes besides the accelerator; inherited, not pickled.
        folder: For what they return.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    paths = [folder / f"ended-{port}-{i}.pickle" for i in range(count)]
    started = [fork.Process(target=_run, args=(i, count, port, paths[i], work, arguments)) for i in range(count)]
    for process in started:
        process.start()
    until, ended = time.monotonic() + TIMEOUT_S, [0.0] * count
    while not all(ended) and time.monotonic() < until:
        for i, process in enumerate(started):
            if not ended[i] and process.exitcode is not None:
                ended[i] = time.monotonic()
        time.sleep(0.02)
    for process in started:
        process.kill()
        process.join()
    assert all(ended), f"processes hang: {[i for i, at in enumerate(ended) if not at]} of {count}"
    found = [pickle.loads(path.read_bytes()) if path.is_file() else (None, None) for path in paths]
    return [Ended(*pair, p.exitcode, at) for pair, p, at in zip(found, started, ended, strict=True)]


def _run(index: int, count: int, port: int, path: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    os.environ |= {name: str(value) for name, value in zip(names, (index, index, count, count), strict=True)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    for state in (GradientState, AcceleratorState, PartialState):  # the parent may have made its own
        state._reset_state()
    accelerator = Accelerator(cpu=True)
    try:
        ended: tuple[Any, Exception | None] = (work(accelerator, *arguments), None)
    except Exception as error:
        error.__cause__ = error.__context__ = None  # what can be pickled
        ended = (None, error)
    path.write_bytes(pickle.dumps(ended))
    os._exit(0)  # what pytest would do at the end is the parent's

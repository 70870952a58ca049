"""Worker processes: how many threads torch may use in one, before it has used any.

OpenMP keeps its threads in a pool, and a process that is forked inherits the pool without the threads: the first
operation that torch runs in parallel waits for them for ever. A process that starts afresh (spawn) has a pool of its
own, with a thread for every core, and so has each of its siblings: together they are far slower than one alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch

_IMPORTED_BY = os.getpid()
# `datasets` and pathos start their processes by the second, which is a copy of the first.
_PACKAGES = ("multiprocessing", "multiprocess")

_done = threading.local()


def share_cores() -> None:
    """Limit the threads of torch in a worker process, once in each of its threads; elsewhere, do nothing.

    A process that was forked gets one. Any other that `multiprocessing` started gets the cores of the machine, divided
    by the number of workers, unless OMP_NUM_THREADS says how many. Threads never become more by it.
    """
    if getattr(_done, "by", None) == os.getpid():
        return
    _done.by = os.getpid()
    if was_forked():
        torch.set_num_threads(1)
    elif "OMP_NUM_THREADS" not in os.environ and any(_children_of(name) for name in _PACKAGES):
        torch.set_num_threads(max(1, min(torch.get_num_threads(), count_cores() // count_workers())))


def was_forked() -> bool:
    """Return whether the process is the copy of one that may have used torch's threads."""
    if os.getpid() != _IMPORTED_BY:
        return True
    for name in _PACKAGES:  # the package was imported only after the fork
        process = _children_of(name)
        if process is not None:
            kind = type(process.current_process()).__name__
            method = sys.modules[name].get_start_method(allow_none=True)
            return kind == "ForkProcess" or (kind == "Process" and method in (None, "fork"))
    return False


def is_datasets_worker() -> bool:
    """Return whether ``Dataset.map(…, num_proc=…)`` started the process."""
    return _children_of("multiprocess") is not None


def count_cores() -> int:
    """Return how many cores the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_launched() -> int:
    """Return how many processes a launcher started on this machine: torchrun and Accelerate say so; else 1."""
    launched = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(launched) if launched.isdigit() and int(launched) else 1


def own_cores() -> int:
    """Return how many cores the process may take for itself: a share of them if a launcher started several processes.

    One in a worker process, whose siblings have the others.
    """
    if was_forked() or any(_children_of(name) for name in _PACKAGES):
        return 1
    return max(1, count_cores() // count_launched())


def spare_cores(device: torch.device) -> int:
    """Return how many of its own cores the process leaves idle while a model runs on this device.

    Threads that share cores with those of torch slow them down by more than they gain.
    """
    return max(0, own_cores() - (torch.get_num_threads() if device.type == "cpu" else 1))


def count_workers() -> int:
    """Return how many processes the parent started to work, this one among them.

    A manager, which holds the queue for their results, does no work of its own.
    """
    import psutil

    commands = list(_commands(psutil))
    started = sum("multiprocess" in command and "resource_tracker" not in command for command in commands)
    managers: set[Any] = set()
    for name in _PACKAGES:
        proxies = getattr(sys.modules.get(f"{name}.managers"), "BaseProxy", None)
        managers |= set(getattr(proxies, "_address_to_local", ()))
    return max(1, started - len(managers))


def _commands(psutil: Any) -> Iterator[str]:
    """Yield the command line of every child of the parent."""
    try:
        siblings = psutil.Process(os.getppid()).children()
    except psutil.Error:
        return
    for sibling in siblings:
        try:
            yield " ".join(sibling.cmdline())
        except psutil.Error:  # it has just ended
            continue


def _children_of(package: str) -> Any:
    """Return the package's module of processes if it started this one, else None."""
    process = sys.modules.get(f"{package}.process")
    return process if process is not None and process.parent_process() is not None else None

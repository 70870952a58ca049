"""Worker processes: how many threads torch may use in each, set before torch starts any.

OpenMP keeps its threads in a pool. A forked process inherits the pool without the threads, so the first operation that
torch runs in parallel waits for them forever. A spawned process has its own pool with a thread for every core, and so
does each of its siblings: together they are far slower than one alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch

_IMPORTED_BY = os.getpid()
# `datasets` and pathos start their processes with the second, which is a copy of the first.
_PACKAGES = ("multiprocessing", "multiprocess")

_done = threading.local()


def share_cores() -> None:
    """Limit torch's threads in a worker process, once in each of its threads; elsewhere, do nothing.

    A forked process gets one thread. Any other process started by `multiprocessing` gets the machine's cores divided by
    the number of workers, unless OMP_NUM_THREADS is set. The number of threads never increases.
    """
    if getattr(_done, "by", None) == os.getpid():
        return
    _done.by = os.getpid()
    if was_forked():
        torch.set_num_threads(1)
    elif "OMP_NUM_THREADS" not in os.environ and any(_children_of(name) for name in _PACKAGES):
        torch.set_num_threads(max(1, min(torch.get_num_threads(), count_cores() // count_workers())))


def was_forked() -> bool:
    """Return whether this process was forked from one that may have used torch's threads."""
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
    """Return the number of cores that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_launched() -> int:
    """Return the number of processes that a launcher (torchrun, Accelerate) started on this machine; 1 without one."""
    launched = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(launched) if launched.isdigit() and int(launched) else 1


def own_cores() -> int:
    """Return the number of cores this process may take for itself: a share if a launcher started several processes.

    1 in a worker process, since its siblings use the others.
    """
    if was_forked() or any(_children_of(name) for name in _PACKAGES):
        return 1
    return max(1, count_cores() // count_launched())


def spare_cores(device: torch.device) -> int:
    """Return the number of its own cores that the process leaves idle while a model runs on this device.

    Threads that share cores with torch's threads slow those down more than they help.
    """
    return max(0, own_cores() - (torch.get_num_threads() if device.type == "cpu" else 1))


def count_workers() -> int:
    """Return the number of workers that the parent started, including this one.

    A manager process, which holds the queue for results, is not counted.
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
    """Return the package's `process` module if the package started this process, else None."""
    process = sys.modules.get(f"{package}.process")
    return process if process is not None and process.parent_process() is not None else None

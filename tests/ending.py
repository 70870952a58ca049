"""Whether a process has ended, on machines where nobody collects orphans, and on busy ones."""

from __future__ import annotations

import time

import psutil


def has_ended(pid: int, seconds: float = 60.0) -> bool:
    """Return whether a process that should end has ended within these seconds: gone, or not yet collected."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False

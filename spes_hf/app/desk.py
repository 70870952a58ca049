"""The queue of visitors and their files: no file is left behind, and no visitor sees another's."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from spes_hf.app.job import Failure, Job, Result, Running, Stage
from spes_hf.app.worker import Worker

# Maximum number of visitors in the queue, including the one being served.
MOST_WAITING = 8

# A visitor whose turn it is, but whose browser has not asked for the run after this number of seconds, loses the place.
TAKEN_UP_S = 30.0

# Files that are still there after this number of seconds are deleted.
KEPT_S = 3600.0


@dataclass(frozen=True, eq=False)
class _Place:
    """A place in the queue, taken at this time (`time.monotonic`)."""

    since: float


class Desk:
    """Takes jobs from visitors, and manages their files.

    A visitor is the session of one browser tab. What a visitor may download lies under ``served``, in a folder whose
    name nobody can guess; a browser cannot reach anything else. Everything is deleted when the visitor leaves or asks
    for the next explanation, and at the latest after an hour.

    Args:
        running: How models are loaded and run.

    Attributes:
        served: The folder whose files a browser may fetch.
    """

    def __init__(self, running: Running | None = None) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="spes_hf-app-"))  # readable only for this user
        self.served = self._root / "served"
        self.served.mkdir()
        self._worker = Worker(folder=self._root, running=running)
        self._lock = threading.Lock()
        self._waiting: dict[str, _Place] = {}
        self._served = 0  # visitors being served now
        self._idle_since = time.monotonic()
        self._uploads: defaultdict[str, set[Path]] = defaultdict(set)
        self._archives: dict[str, Path] = {}

    def enter(self, visitor: str) -> int | None:
        """Take a place in the queue and return the number of visitors ahead; None if the queue is full."""
        self._sweep()
        with self._lock:
            self._drop_abandoned()
            if visitor not in self._waiting and len(self._waiting) >= MOST_WAITING:
                return None
            self._waiting.pop(visitor, None)
            ahead = len(self._waiting)
            self._waiting[visitor] = _Place(time.monotonic())
            return ahead

    def waits(self, visitor: str) -> bool:
        """Return whether a visitor is in the queue or being served."""
        with self._lock:
            return visitor in self._waiting

    def serve(self, visitor: str, job: Job) -> Iterator[Stage | Result | Failure | None]:
        """Yield what `Worker.run` yields; the result's archive lies where the visitor's browser can fetch it.

        Args:
            visitor: Who asked.
            job: The job; its folder is chosen here.

        Raises:
            CancelledError: If the visitor cancelled or left.
        """
        work = self._root / secrets.token_hex(32)
        with self._lock:
            place = self._waiting.get(visitor)
            self._served += 1
        try:
            self._forget_archive(visitor)
            for answer in self._worker.run(visitor, replace(job, folder=str(work / "result"))):
                if isinstance(answer, Result):
                    answer = replace(answer, archive=str(self._hand_out(visitor, Path(answer.archive))))
                yield answer
        finally:
            shutil.rmtree(work, ignore_errors=True)
            with self._lock:
                self._served -= 1
                self._idle_since = time.monotonic()
                if self._waiting.get(visitor) is place:  # keep the place of the visitor's next run
                    self._waiting.pop(visitor, None)

    def uploaded(self, visitor: str, path: str | None) -> None:
        """Remember a visitor's recording, and delete the previous one."""
        kept = {Path(path)} if path is not None and self.served in Path(path).parents else set()
        with self._lock:
            former, self._uploads[visitor] = self._uploads[visitor], kept
            gone = former - set().union(*self._uploads.values())  # two visitors with the same recording share one file
        self._delete(gone)

    def cancel(self, visitor: str) -> None:
        """Stop a visitor's job, running or waiting."""
        with self._lock:
            self._waiting.pop(visitor, None)
        self._worker.cancel(visitor)

    def leave(self, visitor: str) -> None:
        """Stop a visitor's job, and delete the visitor's files."""
        self.cancel(visitor)
        self.uploaded(visitor, None)
        self._forget_archive(visitor)
        with self._lock:
            self._uploads.pop(visitor, None)

    def close(self) -> None:
        """End the worker process, and delete all files."""
        self._worker.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def _drop_abandoned(self) -> None:
        """Free the places of visitors who never asked for their run.

        Gradio starts the next run as soon as nobody is served, so a place that is not taken up then never will be.
        """
        since = time.monotonic() - TAKEN_UP_S
        if not self._served and self._idle_since < since:
            self._waiting = {visitor: place for visitor, place in self._waiting.items() if place.since >= since}

    def _hand_out(self, visitor: str, archive: Path) -> Path:
        place = self.served / secrets.token_hex(32) / archive.name
        place.parent.mkdir()
        archive.replace(place)
        with self._lock:
            self._archives[visitor] = place
        return place

    def _forget_archive(self, visitor: str) -> None:
        with self._lock:
            archive = self._archives.pop(visitor, None)
        self._delete({archive} if archive is not None else set())

    def _delete(self, files: set[Path]) -> None:
        for path in files:
            path.unlink(missing_ok=True)
            if path.parent != self.served:
                with contextlib.suppress(OSError):  # it has other files, or is gone
                    path.parent.rmdir()

    def _sweep(self) -> None:
        """Delete all served files that are too old, of any visitor."""
        oldest = time.time() - KEPT_S
        # Other visitors may leave meanwhile: os.walk passes over folders that are gone, as Path.rglob does not.
        for folder, _, names in os.walk(self.served):
            for path in (Path(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_ctime < oldest:
                        self._delete({path})

"""The worker process. It stays for the next job; if a visitor cancels, it is killed, which stops everything."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from spes_hf.app.job import Failure, Job, Result, Running, Stage
from spes_hf.errors import AudioError, ConfigError, SpesError, UnsupportedModelError

# A job that takes longer is stopped, so that others get their turn.
LONGEST_S = 30 * 60.0

# A job without news yields None at this interval, in seconds.
TICK_S = 0.5

_KINDS = (
    (AudioError, "This recording cannot be explained"),
    (UnsupportedModelError, "This model cannot be used"),
    (ConfigError, "These settings do not work together"),
    (SpesError, "This cannot be explained"),
)


class CancelledError(Exception):
    """The visitor cancelled the job, or left."""


class Worker:
    """The worker process as seen from the page: it does one job at a time.

    A killed process deletes nothing. So each has a folder for its temporary files, which is deleted after it.

    Args:
        longest_s: A job that takes longer is stopped, in seconds.
        folder: Where those folders are; None for the system's temporary folder.
        running: How models are loaded and run.
    """

    def __init__(self, longest_s: float = LONGEST_S, folder: Path | None = None, running: Running | None = None):
        self._longest_s = longest_s
        self._parent = folder
        self._running = running or Running()
        self._lock = threading.Lock()
        self._visitor: str | None = None
        self._closed = False
        self._start()

    def run(self, visitor: str, job: Job) -> Iterator[Stage | Result | Failure | None]:
        """Yield the stages, then the result or the failure; None twice a second while there is no news.

        Closing the iterator stops the job.

        Args:
            visitor: Who may cancel it.
            job: The job.

        Raises:
            CancelledError: If it was cancelled.
        """
        with self._lock:
            if self._visitor is not None or not self._process.is_alive():  # left behind by a visitor who is gone
                self._restart()
            self._visitor, process, connection = visitor, self._process, self._connection
        end, done = time.monotonic() + self._longest_s, False
        try:
            connection.send(job)
            while not done:
                if time.monotonic() > end:
                    minutes = self._longest_s / 60
                    yield Failure("This took too long", f"The limit is {minutes:.0f} minutes. Try a shorter recording.")
                    return
                answer = connection.recv() if connection.poll(TICK_S) else None
                done = isinstance(answer, (Result, Failure))
                if done:
                    self._free(process)
                yield answer
        except (EOFError, OSError) as error:
            with self._lock:
                cancelled = process is not self._process
            if cancelled:
                raise CancelledError from error
            why = "The worker process ended, perhaps because it ran out of memory. Try a shorter recording."
            yield Failure("This could not be finished", why)
        finally:
            with self._lock:
                if not done and process is self._process and not self._closed:
                    self._restart()

    def cancel(self, visitor: str) -> None:
        """Stop a visitor's job at once, if one is running."""
        with self._lock:
            if self._visitor == visitor and not self._closed:
                self._restart()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._closed = True
            self._stop()

    def _free(self, process: Any) -> None:
        with self._lock:
            if process is self._process:
                self._visitor = None

    def _restart(self) -> None:
        self._stop()
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._folder = Path(tempfile.mkdtemp(prefix="spes_hf-worker-", dir=self._parent))
        self._process = context.Process(target=main, args=(theirs, str(self._folder), self._running), daemon=True)
        self._process.start()
        theirs.close()
        self._visitor = None

    def _stop(self) -> None:
        started: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            started = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        for process in started:  # such as FFmpeg, which would go on writing
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.join()
        psutil.wait_procs(started, timeout=5)
        shutil.rmtree(self._folder, ignore_errors=True)


def main(connection: Connection, folder: str, running: Running) -> None:
    """Do jobs until the page is gone.

    Args:
        connection: To the page.
        folder: Where temporary files are.
        running: How models are loaded and run.
    """
    tempfile.tempdir = folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the page ends this process
    from spes_hf.app.work import Workbench, plain

    bench = Workbench(running)
    with contextlib.suppress(EOFError, OSError):
        while True:
            job: Job = connection.recv()
            try:
                answer: Result | Failure = bench.do(job, connection.send)
            except (SpesError, OSError) as error:
                kind = next(
                    (what for kind, what in _KINDS if isinstance(error, kind)), "This cannot be read or written"
                )
                answer = Failure(kind, plain(error, job.audio))
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                answer = Failure("Something went wrong", plain(error, job.audio) or type(error).__name__)
            connection.send(answer)

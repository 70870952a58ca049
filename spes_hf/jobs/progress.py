"""Progress of a job: one bar over all processes, and waiting for processes that are still busy."""

from __future__ import annotations

import time
from pathlib import Path

from tqdm.auto import tqdm

from spes_hf.jobs.shards import ShardError, ShardWriter, count_rows, read_finished

_LISTING_SECONDS = 2.0
_WAIT_SECONDS = 0.2
_PATIENCE_SECONDS = 3600.0


class JobBar:
    """Progress of the whole job: rows on disk from all processes, plus rows waiting in this one."""

    def __init__(self, out: Path, rows: int, writer: ShardWriter, shown: bool):
        self.out, self.writer = out, writer
        self.others = self._listed = 0.0
        self.started = time.monotonic()
        before = count_rows(out) if shown else 0
        # smoothing=0: estimate the time left from the mean rate, since utterances differ and shards come in bursts.
        self.bar = tqdm(total=rows, initial=before, desc="explaining", unit="row", disable=not shown, smoothing=0)
        self.shown = shown

    def __enter__(self) -> JobBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def update(self) -> None:
        """Update the bar."""
        if not self.shown:
            return
        now = time.monotonic()
        if now - self._listed >= _LISTING_SECONDS:
            self.others, self._listed = count_rows(self.out) - self.writer.written, now
        done = int(self.others) + self.writer.written + self.writer.waiting
        self.bar.update(max(0, min(done, self.bar.total) - self.bar.n))


def wait_for_others(out: Path, rows: int, bar: JobBar) -> None:
    """Wait until the other processes have written their rows.

    This watches the disk, since a collective operation gives up after ten minutes. Launchers end this process if
    another one dies; without a launcher, it gives up if no row has arrived for far longer than a shard takes.

    Raises:
        ShardError: If rows are missing and no process seems to be left to write them.
    """
    found, since, started = count_rows(out), time.monotonic(), bar.started
    looked = -1
    while True:
        # Names may count a row twice if a process of an earlier run is still alive.
        if found >= rows and found != looked:
            looked = found
            if len(read_finished(out).indices) >= rows:
                return
        time.sleep(_WAIT_SECONDS)
        bar.update()
        now, before = time.monotonic(), found
        found = count_rows(out)
        since = now if found > before else since
        if now - since > max(_PATIENCE_SECONDS, (now - started) / 4):
            missing = rows - len(read_finished(out).indices)
            raise ShardError(
                f"{missing} of {rows} rows are missing in {str(out)!r}, and no new row has arrived for "
                f"{now - since:.0f} s: another process has probably died. Start the job again; it resumes from there"
            )

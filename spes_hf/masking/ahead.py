"""The masks of the next batch, drawn by a thread while the model runs on those of this one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from spes_hf.masking.perturbations import Masks, Perturbation

# A level, and some of its rows.
Piece = tuple[int, range]


class Draws:
    """Draws masks, and those that are expected next in a thread.

    Masks depend on their level and rows alone. So if others are asked for, such as half as many after memory ran out,
    they are drawn at once, and what was drawn ahead is dropped.

    Args:
        perturbation: Whose masks.
        pool: Draws ahead; None: nothing is drawn ahead.
    """

    def __init__(self, perturbation: Perturbation, pool: ThreadPoolExecutor | None):
        self._perturbation, self._pool = perturbation, pool
        self._expected: Piece | None = None
        self._ahead: Future[Masks] | None = None

    def draw(self, level: int, rows: range, then: Piece | None) -> Masks:
        """Return the masks of these rows of a level, as `Perturbation.draw` does.

        Args:
            level: The level.
            rows: The rows.
            then: What will probably be asked for next; None: nothing.
        """
        ahead = self._ahead if self._expected == (level, rows) else None
        self._ahead = self._expected = None
        found = self._perturbation.draw(level, rows) if ahead is None else ahead.result()
        if self._pool is not None and then is not None:
            self._ahead, self._expected = self._pool.submit(self._perturbation.draw, *then), then
        return found


@contextmanager
def drawn_ahead(perturbation: Perturbation, by_a_thread: bool) -> Iterator[Draws]:
    """Yield what draws the masks of a run; no thread is left afterwards.

    Args:
        perturbation: Whose masks.
        by_a_thread: Whether a thread draws ahead, which pays where a core is idle.
    """
    if not by_a_thread:
        yield Draws(perturbation, None)
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="spes_hf-masks")
    try:
        yield Draws(perturbation, pool)
    finally:
        pool.shutdown(cancel_futures=True)

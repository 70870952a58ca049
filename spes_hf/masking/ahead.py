"""The masks of the next pass, drawn by a thread while the model runs under those of this one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from spes_hf.masking.perturbations import Masks, Perturbation
from spes_hf.runtime.workers import spare_cores

# A level, and some of its rows.
Piece = tuple[int, range]


class Draws:
    """Draws the masks of a run, those that are expected next in a thread.

    What is expected is a guess. If other masks are needed, such as half as many after memory ran out, they are drawn at
    once, and what was drawn ahead is dropped. The masks do not depend on it.

    Args:
        perturbation: Whose masks.
        thread: Draws ahead; None: nothing is drawn ahead.
    """

    def __init__(self, perturbation: Perturbation, thread: Executor | None):
        self._perturbation, self._thread = perturbation, thread
        self._ahead: tuple[Piece, Future[np.ndarray]] | None = None

    def draw(self, level: int, rows: range, expected: Piece | None) -> Masks:
        """Return the masks of these rows of a level, as `Perturbation.draw` does.

        Args:
            level: The level.
            rows: The rows.
            expected: What will probably be needed next; None: nothing.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == (level, rows):
            drawn = ahead[1].result()
        else:
            drawn = self._perturbation.drawn(level, rows)
        if self._thread is not None and expected is not None:
            self._ahead = expected, self._thread.submit(self._perturbation.drawn, *expected)
        # The rest takes place in this thread, since it is torch's: on a GPU, on the stream that the caller uses.
        return self._perturbation.masks(drawn, level, rows)


@contextmanager
def drawing_thread(device: torch.device) -> Iterator[Executor | None]:
    """Yield a thread that draws masks; None where the model leaves no core idle. The thread ends with the context.

    Args:
        device: Where the model runs.
    """
    if not spare_cores(device):
        yield None
        return
    pool = ThreadPoolExecutor(1, "masks")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)

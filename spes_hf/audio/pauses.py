"""Where a speaker pauses: a recording cut into utterances, by level alone."""

from __future__ import annotations

from typing import Any

import numpy as np

FRAME_S = 0.02
# A pause is a stretch of this length whose level is in the lowest quarter between quiet and loud, in dB.
PAUSE_S, QUIET_SHARE = 0.4, 0.25
# What is shorter than this stays with what follows.
SHORTEST_S = 0.6
_QUIET, _LOUD = 5, 95
_SILENCE_DB = -100.0


def cut_at_pauses(samples: Any, sampling_rate: int, longest_s: float = 30.0) -> list[tuple[int, int]]:
    """Return where utterances start and end, in samples: the whole recording, cut in the middle of every pause.

    What lasts longer without a pause is cut where it is quietest in its second half.

    Args:
        samples: (N,) amplitudes; slices of it are read, a minute at a time.
        sampling_rate: In Hz.
        longest_s: The longest that an utterance may be, in seconds.
    """
    level = _levels(samples, round(FRAME_S * sampling_rate))
    quiet, loud = np.percentile(level, (_QUIET, _LOUD)) if len(level) else (0.0, 0.0)
    still = level < quiet + QUIET_SHARE * (loud - quiet)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], still, [False]]).astype(np.int8)))
    middles = [(a + b) // 2 for a, b in edges.reshape(-1, 2) if b - a >= PAUSE_S / FRAME_S and a > 0 and b < len(level)]
    cuts, least, most = [0], SHORTEST_S / FRAME_S, max(2, int(longest_s / FRAME_S))
    for stop in [*middles, len(level)]:
        while stop - cuts[-1] > most:
            half = cuts[-1] + most // 2
            cuts.append(half + int(level[half : cuts[-1] + most].argmin()))
        if stop - cuts[-1] >= least and stop < len(level):
            cuts.append(stop)
    if len(cuts) > 1 and len(level) - cuts[-1] < least:
        cuts.pop()
    step = round(FRAME_S * sampling_rate)
    starts = [cut * step for cut in cuts]
    return list(zip(starts, [*starts[1:], len(samples)], strict=True))


def _levels(samples: Any, step: int) -> np.ndarray:
    """Return the level of every frame in dB, smoothed over a tenth of a second."""
    found = []
    for start in range(0, len(samples), 3000 * step):
        block = np.asarray(samples[start : start + 3000 * step], dtype=np.float64)
        block = block[: len(block) // step * step].reshape(-1, step)
        found.append(np.square(block).mean(1))
    power = np.concatenate(found) if found else np.zeros(0)
    if not len(power):
        return power
    smooth = np.convolve(np.pad(power, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    return np.maximum(10 * np.log10(np.maximum(smooth, 1e-12)), _SILENCE_DB)

"""Where a speaker pauses: cuts a recording into utterances by its level alone."""

from __future__ import annotations

from typing import Any

import numpy as np

FRAME_S = 0.02
# A pause lasts at least this long, with its level in the lowest quarter between quiet and loud, in dB; a margin of it
# is kept with the speech on either side.
PAUSE_S, QUIET_SHARE, MARGIN_S = 0.4, 0.25, 0.1
# Anything shorter than this is not an utterance of its own.
SHORTEST_S = 0.3
_QUIET, _LOUD = 5, 95
_SILENCE_DB, _BELOW_PEAK_DB = -100.0, 20.0


def cut_at_pauses(samples: Any, sampling_rate: int, longest_s: float = 30.0) -> list[tuple[int, int]]:
    """Return where utterances start and end, in samples; pauses between them are left out, except for their edges.

    Speech that lasts longer than ``longest_s`` without a pause is cut at the quietest point of its second half.

    Args:
        samples: (N,) amplitudes; slices of it are read, a minute at a time.
        sampling_rate: In Hz.
        longest_s: Maximum length of an utterance, in seconds.
    """
    step = round(FRAME_S * sampling_rate)
    level = _levels(samples, step)
    margin, least, most = round(MARGIN_S / FRAME_S), round(SHORTEST_S / FRAME_S), max(2, int(longest_s / FRAME_S) - 1)
    found: list[tuple[int, int]] = []
    for start, stop in _spoken(level):
        start, stop = max(0, start - margin), min(len(level), stop + margin)
        while stop - start > most:
            half = start + most // 2
            last = min(start + most, max(half + 1, stop - least))  # so that the rest is long enough to be an utterance
            cut = half + int(level[half:last].argmin())
            found.append((start, cut))
            start = cut
        found.append((start, stop))
    kept = [(a, b) for a, b in found if b - a >= least] or [(0, len(level))]
    ends = [len(samples) if b == len(level) else b * step for _, b in kept]
    return [(int(a) * step, int(end)) for (a, _), end in zip(kept, ends, strict=True)]


def _spoken(level: np.ndarray) -> list[tuple[int, int]]:
    """Return the stretches between pauses, in frames."""
    if not len(level):
        return []
    quiet, loud = np.percentile(level, (_QUIET, _LOUD))
    loud = max(loud, level.max() - _BELOW_PEAK_DB)  # for a recording that is mostly quiet
    still = level < quiet + QUIET_SHARE * (loud - quiet)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], still, [False]]).astype(np.int8))).reshape(-1, 2)
    pauses = [(a, b) for a, b in edges.tolist() if b - a >= PAUSE_S / FRAME_S]
    starts, stops = [0, *(b for _, b in pauses)], [*(a for a, _ in pauses), len(level)]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if stop > start]


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

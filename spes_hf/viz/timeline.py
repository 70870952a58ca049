"""What all pictures of a recording share: loudness, and when each word is heard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from spes_hf.explanation.recording import HeardSegment

# A word with this number of bits has the deepest colour and the highest bar.
FULL_BITS = 10.0

# Number of values of a recording's loudness, more than a screen has pixels.
LEVELS = 2400

# A word is highlighted from at most this long before the centre of its map to at most this long after it.
_BEFORE_S, _AFTER_S = 0.5, 0.9

_BLOCK = 1 << 20


def loudness(path: Path, count: int = LEVELS) -> np.ndarray:
    """Return the loudness of a recording over time, in at most ``count`` steps of equal length.

    Args:
        path: Path of the sound, which is read block by block. If there is no file, there are no values.
        count: Maximum number of values.

    Returns:
        The square root of the root mean square, as a share of the 99.5th percentile, in [0, 1], so that quiet speech is
        visible next to loud speech.
    """
    if not path.is_file():
        return np.zeros(0)
    with soundfile.SoundFile(path) as file:
        samples = file.frames
        count = max(1, min(count, samples))
        power, sizes = np.zeros(count), np.zeros(count)
        for first in range(0, samples, _BLOCK):
            block = file.read(_BLOCK, dtype="float32", always_2d=True)
            places = np.arange(first, first + len(block)) * count // max(1, samples)
            power += np.bincount(places, (block.astype(np.float64) ** 2).mean(1), count)
            sizes += np.bincount(places, minlength=count)
    level = (power / np.maximum(sizes, 1)) ** 0.25
    loud = float(np.percentile(level, 99.5))
    return np.clip(level / loud, 0, 1) if loud > 0 else level


def word_starts(centroids: Sequence[float], start_s: float, end_s: float) -> list[float]:
    """Return when each word of a segment begins, in order and within the segment, in seconds.

    Words whose maps' centres are not in order divide the stretch around the mean of their centres evenly.

    Args:
        centroids: Centre of each word's map, in seconds; NaN if it is not known.
        start_s: Start of the segment, in seconds.
        end_s: End of the segment, in seconds.
    """
    middle = (start_s + end_s) / 2
    blocks: list[tuple[float, int]] = []  # mean centre and number of words that share a stretch
    for time in centroids:
        mean, size = (middle if math.isnan(time) else min(max(time, start_s), end_s)), 1
        while blocks and blocks[-1][0] >= mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    if not blocks:
        return []
    borders = [max(start_s, blocks[0][0] - _BEFORE_S * blocks[0][1])]
    for (one, few), (other, many) in zip(blocks, blocks[1:], strict=False):
        borders.append(one + (other - one) * few / (few + many))
    borders.append(max(borders[-1], min(end_s, blocks[-1][0] + _AFTER_S * blocks[-1][1])))
    return [
        low + (high - low) * i / size
        for (low, high), (_, size) in zip(zip(borders, borders[1:], strict=False), blocks, strict=True)
        for i in range(size)
    ]


def summary(segments: Sequence[HeardSegment]) -> str:
    """Return how many segments were probably made up, in one line."""
    known = [s for s in segments if s.verdict != "nothing written" and not math.isnan(s.bits_per_token)]
    made_up = [s for s in known if s.verdict == "made up"]
    if not segments:
        return "The model wrote nothing for this recording."
    if not known:
        return "No segment is explained."
    missing = sum(s.verdict == "not known" and math.isnan(s.bits_per_token) for s in segments)
    rest = f" {missing} {'is' if missing == 1 else 'are'} not explained." if missing else ""
    if any(s.verdict == "not known" for s in known):
        return f"{counted(len(known), 'segment')}; for this model, it is not known which were made up.{rest}"
    if not made_up:
        return f"{counted(len(known), 'segment')}: all heard.{rest}"
    length = sum(s.end_s - s.start_s for s in made_up)
    return f"{len(made_up)} of {counted(len(known), 'segment')} probably made up, {length:.0f} s in all.{rest}"


def counted(number: int, noun: str) -> str:
    """Return a number of things in words: "1 window", "1,200 windows"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"

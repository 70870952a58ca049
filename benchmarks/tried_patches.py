"""Patches that follow speech: cut where words begin and end, or where the spectrum changes most, as phones do.

After the idea of SGPA (arXiv 2603.02250): units of a map are stretches of sound between the boundaries of words, and
each boundary is moved to where the spectrum changes most nearby. Here a patch is what is left of a SLIC patch between
two boundaries, or the whole stretch.
"""

from __future__ import annotations

import torch
from scipy.signal import find_peaks
from torch import Tensor
from tried_clips import Clip

REACH_S = 0.03  # how far a boundary of a word may be moved
APART_S = 0.05  # changes of the spectrum are at least so far apart


def changes(features: Tensor, width: int = 3) -> Tensor:
    """Return how much the spectrum changes where each frame begins, (T,): the distance of the means on both sides."""
    sums = torch.cat([features.new_zeros(1, features.shape[1]), features.double().cumsum(0)])
    at = torch.arange(len(features))
    before, after = (at - width).clamp_min(0), (at + width).clamp_max(len(features))
    earlier = (sums[at] - sums[before]) / (at - before).clamp_min(1)[:, None]
    later = (sums[after] - sums[at]) / (after - at)[:, None]
    return (later - earlier).norm(dim=1) * (at > 0)


def word_boundaries(clip: Clip) -> Tensor:
    """Return the frames where words begin and end, each moved to the largest change of the spectrum nearby.

    Raises:
        SystemExit: If nobody knows when the words of the clip were spoken.
    """
    if clip.alignment is None:
        raise SystemExit('tried_words.py needs to know when words were spoken: "alignment" in manifest.jsonl')
    times, change = clip.utterance.times, changes(clip.utterance.features)
    spoken = torch.tensor([time for word in clip.alignment.words for time in (word.start, word.end)])
    reach = round(REACH_S / float(times[1] - times[0]))
    frames = torch.searchsorted(times, spoken)
    nearby = (frames[:, None] + torch.arange(-reach, reach + 1)).clamp(0, len(times) - 1)
    return nearby.gather(1, change[nearby].argmax(1, keepdim=True)).unique()


def spectral_boundaries(clip: Clip) -> Tensor:
    """Return the frames where the spectrum changes more than shortly before and after: about where phones begin."""
    times = clip.utterance.times
    distance = max(1, round(APART_S / float(times[1] - times[0])))
    return torch.from_numpy(find_peaks(changes(clip.utterance.features).numpy(), distance=distance)[0])


def stretches(clip: Clip, boundaries: Tensor) -> Tensor:
    """Return the stretch of sound between two boundaries of every feature, (T, C) int64, all frequencies alike."""
    frames, mels = clip.utterance.features.shape
    return cut(torch.zeros(frames, mels, dtype=torch.int64), boundaries)


def cut(labels: Tensor, boundaries: Tensor) -> Tensor:
    """Return patches, (T, C), cut at boundaries: frames that begin a stretch of their own."""
    stretch = torch.bucketize(torch.arange(len(labels)), boundaries, right=True)
    return (labels + (int(labels.max()) + 1) * stretch[:, None]).unique(return_inverse=True)[1]

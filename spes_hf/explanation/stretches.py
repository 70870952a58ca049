"""When was each token heard? Cuts the time axis into one stretch for each token, in order, according to their maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from spes_hf.explanation.result import Explanation
from spes_hf.text import normalise

Stretch = tuple[float, float]
"""Start and end of a piece of the audio, in seconds."""

_SMOOTHING_S = 0.02
_STEP_S = 0.02
_FLOOR = 0.05  # share of a uniform profile that every token gets everywhere

# Tokens count as heard in order unless the rank correlation of their maps' centres with their order is below this.
_IN_ORDER = 0.3

# Without an order to rely on, a stretch reaches as far around the map's peak as the map is this high.
_PEAK_SHARE, _PEAK_SMOOTHING_S = 0.3, 0.06


def profiles_in_time(explanation: Explanation) -> dict[int, np.ndarray]:
    """Return the evidence for each spoken token over time, (T,) by its index; skips special tokens and punctuation.

    Args:
        explanation: An explanation over tokens.
    """
    spoken = [k for k, piece in enumerate(explanation.pieces) if not explanation.special[k] and _is_spoken(piece)]
    return {k: explanation.evidence(k).clamp_min(0).sum(1).double().numpy() for k in spoken}


def stretches_in_order(profiles: Mapping[int, np.ndarray], times: Tensor) -> dict[int, Stretch] | None:
    """Return when each token was heard, in seconds; None if tokens were not heard in order.

    The tokens share the whole time axis, in order, so a pause belongs to one of its neighbours. A piece of time goes to
    the token with the largest share of its profile there, compared with the others.

    Args:
        profiles: (T,) evidence for every token, by its index; in any unit.
        times: (T,) in seconds.
    """
    seconds = _seconds_per_frame(times)
    step = max(1, round(_STEP_S / seconds))
    keys = sorted(profiles)
    if not keys:
        return None
    raw = np.stack([profiles[k] for k in keys])
    smooth = gaussian_filter1d(raw, _SMOOTHING_S / seconds, axis=1)[:, ::step]
    if smooth.shape[1] < len(keys):
        return None
    total = smooth.sum(1, keepdims=True)
    shares = np.where(total > 0, smooth / np.where(total > 0, total, 1.0), 1 / smooth.shape[1])
    if len(keys) > 2 and _order(shares) < _IN_ORDER:
        return None
    gain = np.log(shares + _FLOOR / smooth.shape[1])
    axis, last = times.numpy(), len(times) - 1
    return {
        k: (float(axis[first * step]) - seconds / 2, float(axis[min(end * step - 1, last)]) + seconds / 2)
        for k, (first, end) in zip(keys, in_order(gain - gain.mean(0)), strict=True)
    }


def peak_stretch(evidence: Tensor, times: Tensor, within: Stretch | None = None) -> Stretch:
    """Return the stretch around a map's peak in time in which the map is at least 30 % as high.

    Args:
        evidence: (T, C), signed; both signs count.
        times: (T,) in seconds.
        within: Where to look, in seconds; None: everywhere.
    """
    seconds = _seconds_per_frame(times)
    profile = gaussian_filter1d(evidence.abs().sum(1).numpy(), _PEAK_SMOOTHING_S / seconds)
    axis = times.numpy()
    allowed = np.ones(len(axis), dtype=bool) if within is None else (axis >= within[0]) & (axis <= within[1])
    if not allowed.any():
        allowed[:] = True
    peak = first = last = int(np.where(allowed, profile, -1.0).argmax())
    least = _PEAK_SHARE * profile[peak]
    while first > 0 and allowed[first - 1] and profile[first - 1] > least:
        first -= 1
    while last < len(axis) - 1 and allowed[last + 1] and profile[last + 1] > least:
        last += 1
    return float(axis[first]) - seconds / 2, float(axis[last]) + seconds / 2


def joined(stretches: Iterable[Stretch]) -> Stretch | None:
    """Return the stretch from the start of the first to the end of the last; None if there are no stretches."""
    known = [s for s in stretches if s[0] == s[0]]
    return (min(a for a, _ in known), max(b for _, b in known)) if known else None


def in_order(gain: np.ndarray) -> list[tuple[int, int]]:
    """Return the cut of S places into K neighbouring, non-empty pieces, [start, end), that has the largest gain.

    Args:
        gain: (K, S) gain from giving a place to a piece; K is at most S.
    """
    pieces, places = gain.shape
    best = np.full((pieces, places), -np.inf)
    opened = np.zeros((pieces, places), dtype=bool)  # whether the best cut begins the piece at this place
    best[0] = np.cumsum(gain[0])
    for k in range(1, pieces):
        for s in range(k, places):
            begin, stay = best[k - 1, s - 1], best[k, s - 1]
            opened[k, s] = begin > stay
            best[k, s] = max(begin, stay) + gain[k, s]
    found, end = [], places
    for k in range(pieces - 1, -1, -1):
        start = end - 1
        while k and not opened[k, start]:
            start -= 1
        start = start if k else 0
        found.append((start, end))
        end = start
    return found[::-1]


def _is_spoken(piece: str) -> bool:
    """Return whether a token has a letter, a digit, or part of a character."""
    return bool(normalise(piece)) or any("\udc80" <= c <= "\udcff" for c in piece)


def _seconds_per_frame(times: Tensor) -> float:
    return float(times[1] - times[0]) if len(times) > 1 else 0.01


def _order(shares: np.ndarray) -> float:
    """Return the rank correlation between the tokens' order and the centres of their profiles."""
    sharp = shares**2
    centres = (sharp * np.arange(shares.shape[1])).sum(1) / sharp.sum(1)
    ranks = torch.from_numpy(centres).argsort().argsort().double().numpy()
    return float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])

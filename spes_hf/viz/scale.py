"""Conventions that all pictures of an explanation share: axes in Hz and seconds, and the colours of saliency."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from spes_hf.text import join_pieces

# Frequencies in Hz with a tick, as far as the spectrogram reaches.
TICKS_HZ = (100, 500, 1000, 2000, 4000, 8000)

# The percentile at which a map's colour scale ends, since a few features are outliers.
HIGH_PERCENTILE = 99.7

# The percentiles of a spectrogram's scale; otherwise the few quietest and loudest features would use up the contrast.
SPECTROGRAM_PERCENTILES = (1.0, 99.8)

# Below this split-half reliability, at least half of a map's variance is noise.
LOW_RELIABILITY = 0.5
LOW_RELIABILITY_WARNING = "Another set of masks would have drawn a different map. Use more masks."

# Sound that speaks for a token is orange, against it purple; text is blue. The luminance of each only falls (light) or
# only rises (dark). The spectrogram stays in the light (dark) half of the greys, so that the maps stand out in
# greyscale too.
SOUND_ON_LIGHT = ("#fffaf2", "#fdbb84", "#f16913", "#b52a0a", "#4d0600")
SOUND_ON_DARK = ("#4a1d12", "#a63f12", "#ee7a1f", "#ffc16b", "#fff7dc")
AGAINST_ON_LIGHT = ("#faf7fc", "#cbb7e0", "#9a76c4", "#6a3d9a", "#33155c")
AGAINST_ON_DARK = ("#2a1d40", "#553a86", "#8463c4", "#b79be8", "#efe6ff")
TEXT_ON_LIGHT = ("#f4f8fc", "#c2d9ee", "#6aaed6", "#2070b4", "#08306b")
GREYS_ON_LIGHT = ("#ffffff", "#8f8f8f")
GREYS_ON_DARK = ("#101114", "#7d7f85")


def frequency_ticks(frequencies: Tensor) -> list[tuple[int, float]]:
    """Return the ticks of the frequency axis as (Hz, position in mel bins), low to high.

    Args:
        frequencies: (C,) centre of every mel bin in Hz, rising.
    """
    hertz = frequencies.double().numpy()
    bins = len(hertz)
    if bins < 2:
        return [(round(f), 0.0) for f in hertz.tolist()]
    ticks = []
    for tick in TICKS_HZ:
        position = float(np.interp(tick, hertz, np.arange(bins)))
        if tick > hertz[-1]:  # the last filter reaches about a bin above its centre
            position = bins - 1 + (tick - hertz[-1]) / (hertz[-1] - hertz[-2])
        elif tick < hertz[0]:
            position = (tick - hertz[0]) / (hertz[1] - hertz[0])
        if -0.5 <= position <= bins + 0.25:
            ticks.append((tick, min(position, bins - 0.5)))
    return ticks


def time_extent(times: Tensor) -> tuple[float, float]:
    """Return where the first frame begins and the last one ends, in seconds.

    Args:
        times: (T,) centre of every frame, in seconds.
    """
    first, last = float(times[0]), float(times[-1])
    half = (last - first) / (len(times) - 1) / 2 if len(times) > 1 else 0.005
    return first - half, last + half


def evidence_limit(evidence: Tensor) -> float:
    """Return the evidence at either end of the colour scale: the 99.7th percentile of its magnitude.

    Args:
        evidence: (T, C), signed; 0 = no effect.
    """
    high = float(np.percentile(evidence.abs().numpy(), HIGH_PERCENTILE))
    return high if high > 1e-12 else max(1e-12, float(evidence.abs().max()))


def spectrogram_limits(features: Tensor) -> tuple[float, float]:
    """Return the feature values at the ends of the spectrogram's grey scale.

    Args:
        features: (T, C) as the model saw them.
    """
    low, high = np.percentile(features.numpy(), SPECTROGRAM_PERCENTILES).tolist()
    return (low, high) if high - low > 1e-6 else (low - 0.5, low + 0.5)


def shown(token: str, longest: int = 24) -> str:
    """Return a token's text for display: without the space that starts a word, and with blanks made visible.

    Args:
        token: Text of the token.
        longest: Maximum number of characters.
    """
    text = settled(token)
    text = text.strip(" ") or "␣" * len(text)
    text = text.replace("\n", "↵").replace("\t", "⇥").replace("\r", "↵")
    return text if len(text) <= longest else text[: longest - 1] + "…"


def clean(text: str) -> str:
    r"""Return text that can be written as UTF-8: parts of characters become "\xe4"."""
    return join_pieces([text])


def settled(text: str) -> str:
    r"""Return clean text with "\\u202e" for controls that change the direction of what follows, even an isolate."""
    return re.sub("[\u202a-\u202e\u2066-\u2069]", lambda control: f"\\u{ord(control[0]):x}", clean(text))


def printable(text: str) -> str:
    r"""Return text for a terminal: controls that move the cursor or change direction become "\\x1b", "\\u202e"."""
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
        for c in clean(text)
    )


def direction(text: str) -> str:
    """Return "rtl" if the first letter belongs to a right-to-left script, otherwise "ltr"."""
    first = next((d for d in map(unicodedata.bidirectional, text) if d in ("L", "R", "AL")), "L")
    return "ltr" if first == "L" else "rtl"


def passes(cost: Mapping[str, Any]) -> str:
    """Return how often the model ran, in words: "301 forward passes", "109 forward and 55 backward passes"."""
    if "forward_passes" not in cost:
        return ""
    backward = cost.get("backward_passes", 0)
    return f"{cost['forward_passes']} forward {f'and {backward} backward ' if backward else ''}passes"

"""All words of an utterance against time, in one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import Normalize
from torch import Tensor

from spes_hf.checks import check_count
from spes_hf.viz import fonts, scale
from spes_hf.viz.figures import SIGNED, draw_values, plain_text, shown_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spes_hf.explanation import Explanation

# With more rows than this, rows are drawn smaller.
_FEW = 36


def plot_overview(explanation: Explanation, longest: int) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of all words against time, and its two axes; see `spes_hf.viz.plot_overview`."""
    words = explanation.words()
    count = min(len(words), check_count("longest", longest))
    start, end = scale.time_extent(words.times)
    row, size = (0.26, 9.5) if count <= _FEW else (0.2, 8)
    figure = shown_figure(min(15.0, max(7.0, 3.0 + 0.75 * (end - start))), 2.3 + row * max(count, 3))
    ratios = (1.0, max(1.0, row * max(count, 3)))
    strip, rows = figure.subplots(2, 1, sharex=True, height_ratios=ratios)
    draw_values(strip, words, words.features, "gray_r", scale.spectrogram_limits(words.features))
    strip.set_ylabel("Hz")
    ticks = [(hertz, at) for hertz, at in scale.frequency_ticks(words.frequencies) if hertz in (500, 2000, 8000)]
    strip.set_yticks([at for _, at in ticks], [f"{hertz}" for hertz, _ in ticks], fontsize=8)
    rows.set_xlabel("time (s)")
    if count:
        image = rows.imshow(
            np.stack([word_profile(words.evidence(k)).numpy() for k in range(count)]),
            cmap=SIGNED,
            norm=Normalize(-1.0, 1.0),
            aspect="auto",
            interpolation="nearest",
            extent=(start, end, count - 0.5, -0.5),
        )
        _name_rows(rows, words, count, size)
        bar = figure.colorbar(image, ax=[strip, rows], pad=0.01, fraction=0.04, aspect=30)
        bar.set_label("evidence summed over the frame's mel bins,\nas a share of the word's strongest frame")
    else:
        rows.text(0.5, 0.5, "no words were written", transform=rows.transAxes, ha="center", va="center", color="0.35")
        rows.set_yticks([])
    left_out = f" (the first {count} of {len(words)})" if count < len(words) else ""
    kind = "word" if words.contrasts is None else "contrast"
    title = f"when the sound spoke for each {kind} of “{scale.shown(words.text, 70)}”{left_out}"
    plain_text(figure.suptitle(title, fontsize=11))
    return figure, [strip, rows]


def word_profile(evidence: Tensor) -> Tensor:
    """Return a map summed over mel bins, as a share of its largest magnitude: (T,) in [−1, 1], 0 = no effect.

    Args:
        evidence: (T, C), signed.
    """
    profile = evidence.double().sum(1)
    largest = float(profile.abs().max())
    return profile / largest if largest > 0 else profile


def _name_rows(ax: Axes, words: Explanation, count: int, size: float) -> None:
    """Write the words on the left, and the bits that each got from the sound on the right."""
    ax.set_yticks(range(count), [fonts.drawable(scale.shown(word, 18)) for word in words.tokens[:count]], fontsize=size)
    for text in ax.get_yticklabels():
        plain_text(text)
    ax.tick_params(axis="y", length=0)
    for border in range(1, count):
        ax.axhline(border - 0.5, color="0.9", linewidth=0.6)
    for k, bits in enumerate(words.sound_bits.tolist()[:count]):
        known = "–" if math.isnan(bits) else f"{bits:.1f}".replace("-", "−")
        ax.text(1.005, k, known, transform=ax.get_yaxis_transform(), va="center", fontsize=size - 1, color="0.35")
    ax.text(1.005, -0.6, "bits", transform=ax.get_yaxis_transform(), va="bottom", fontsize=size - 1, color="0.35")

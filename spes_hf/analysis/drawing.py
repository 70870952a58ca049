"""What the figures of all analyses share: colours that also differ in greyscale, and plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Dark, middle and light: distinguishable by luminance or dashes alone.
DARK, MIDDLE, LIGHT = "#08306b", "#f16913", "#b9b9b9"
COLOURS = (DARK, MIDDLE, "#7a7a7a", "#c9a227")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))

# Ticks of a frequency axis in Hz, spaced for human hearing.
TICKS_HZ = (100, 250, 500, 1000, 2000, 4000, 8000)


def new_figure(width: float, height: float) -> Figure:
    """Return a figure, sized in inches, that is independent of pyplot; in IPython, one of pyplot's, so it is shown."""
    from spes_hf.viz.figures import shown_figure

    return shown_figure(width, height)


def take_literally(*texts: Text) -> None:
    """Draw texts literally ("$" starts no formula), in fonts that have their characters."""
    from spes_hf.viz.figures import plain_text

    for text in texts:
        plain_text(text)


def tidy(ax: Axes) -> None:
    """Remove the top and right side of the frame."""
    ax.spines[["top", "right"]].set_visible(False)


def mel(hertz: np.ndarray | float) -> np.ndarray:
    """Return frequencies on the mel scale, on which a spectrogram's bins are evenly spaced."""
    return 2595 * np.log10(1 + np.asarray(hertz, dtype=np.float64) / 700)


def inverse_mel(value: np.ndarray | float) -> np.ndarray:
    """Return values on the mel scale in Hz."""
    return 700 * (10 ** (np.asarray(value, dtype=np.float64) / 2595) - 1)


def hertz_axis(ax: Axes, frequencies: np.ndarray) -> None:
    """Make the horizontal axis show Hz, spaced by the mel scale.

    Args:
        ax: The axes.
        frequencies: (C,) frequencies to show.
    """
    ax.set_xscale("function", functions=(mel, inverse_mel))
    low, high = float(frequencies[0]), float(frequencies[-1])
    ax.set_xlim(low, high)
    ticks = [tick for tick in TICKS_HZ if low <= tick <= high * 1.06]
    ax.set_xlim(low, max(high, ticks[-1] if ticks else high))
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("frequency (Hz)")


def say(ax: Axes, message: str) -> None:
    """Write a message into axes that have nothing to draw."""
    ax.text(0.5, 0.5, message, transform=ax.transAxes, ha="center", va="center", color="0.35", wrap=True)
    ax.set_xticks([])
    ax.set_yticks([])


def bars(ax: Axes, labels: Sequence[str], values: Sequence[float], counts: Sequence[int], colour: str = DARK) -> None:
    """Draw horizontal bars from top to bottom, each with its token's name and number of occurrences.

    Args:
        ax: The axes.
        labels: Names of the bars.
        values: Lengths of the bars.
        counts: Number of occurrences that each value is the mean of.
        colour: Colour of the bars.
    """
    from spes_hf.viz.fonts import drawable

    positions = np.arange(len(labels))
    ax.barh(positions, values, color=colour, height=0.72)
    ax.set_yticks(positions, [f"{drawable(label)}  ({n}×)" for label, n in zip(labels, counts, strict=True)])
    ax.set_ylim(len(labels) - 0.4, -0.6)
    take_literally(*ax.get_yticklabels())
    tidy(ax)

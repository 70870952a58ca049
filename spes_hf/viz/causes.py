"""The figure for a corpus of diagnoses: verdicts by group, and which frequencies spoke for a confusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spes_hf.viz import fonts, scale
from spes_hf.viz.figures import bare_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# By verdict: a colour, and a hatch for readers who cannot see colours.
STYLES = {
    "misheard": ("#f16913", ""),
    "guessed": ("#2070b4", "//"),
    "not heard": ("#9aa3ad", ".."),
    "unsure": ("#d9d9d9", ""),
    "not known": ("#f0f0f0", "xx"),
}


def plot_causes(causes: Any, most: int) -> tuple[Figure, Sequence[Axes]]:
    """Return the figure of an `spes_hf.analysis.ErrorCauses`.

    Args:
        causes: The numbers.
        most: Maximum number of confusions.
    """
    groups = [causes.all, *causes.groups]
    shown = [c for c in causes.confusions[:most] if len(c.profile)]
    rows = (len(shown) + 1) // 2
    figure = bare_figure(9.0, 1.2 + 0.38 * len(groups) + 2.0 * rows)
    grid = figure.add_gridspec(1 + rows, 2, height_ratios=[0.9 + 0.38 * len(groups), *[2.0] * rows])
    top = figure.add_subplot(grid[0, :])
    _bars(top, groups)
    axes = [top]
    for i, confusion in enumerate(shown):
        ax = figure.add_subplot(grid[1 + i // 2, i % 2])
        _profile(ax, confusion, causes.frequencies)
        axes.append(ax)
    return figure, axes


def _bars(ax: Axes, groups: Sequence[Any]) -> None:
    left = np.zeros(len(groups))
    for verdict, (colour, hatch) in STYLES.items():
        values = np.nan_to_num([group.shares[verdict].value for group in groups])
        ax.barh(range(len(groups)), values, left=left, color=colour, hatch=hatch, edgecolor="white", label=verdict)
        for y, (start, value) in enumerate(zip(left, values, strict=True)):
            if value >= 0.07:
                ax.text(start + value / 2, y, f"{value:.0%}", ha="center", va="center", fontsize=8)
        left = left + values
    names = [fonts.drawable(f"{g.name} ({g.errors} errors, WER {g.wer.value:.0%})") for g in groups]
    ax.set_yticks(range(len(groups)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    ax.set_title("where the errors come from", loc="left", fontsize=10)
    ax.legend(ncols=len(STYLES), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.08), frameon=False)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _profile(ax: Axes, confusion: Any, frequencies: np.ndarray) -> None:
    bins = np.arange(len(confusion.profile))
    if np.isfinite(confusion.low).all():
        ax.fill_between(bins, confusion.low, confusion.high, color="#fdbb84", alpha=0.5, linewidth=0)
    ax.plot(bins, confusion.profile, color="#b52a0a", linewidth=1.2)
    ax.axhline(0, color="0.4", linewidth=0.7)
    ticks = scale.frequency_ticks(torch.from_numpy(frequencies))
    ax.set_xticks([position for _, position in ticks], [f"{hertz}" for hertz, _ in ticks], fontsize=7)
    ax.tick_params(axis="y", labelsize=7)
    ax.set_title(fonts.drawable(f"{confusion.name} ({confusion.count}×)"), loc="left", fontsize=9)
    ax.set_xlabel("Hz", fontsize=8)
    ax.set_ylabel("bits", fontsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)

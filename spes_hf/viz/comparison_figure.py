"""Figures of a comparison, with Matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from spes_hf.explanation.comparison import Comparison, rank_correlation, shown
from spes_hf.explanation.grid import Grid
from spes_hf.viz import scale
from spes_hf.viz.figures import draw_overlay, plain_text, shown_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spes_hf.explanation import Explanation

# Distinguishable by luminance or by dashes.
_LINES = (("#08306b", "-"), ("#f16913", (0, (4, 1.5))))


def plot_comparison(comparison: Comparison, token: int | str | None = None) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of both maps, their difference, and both over time; see `spes_hf.viz.plot_comparison`."""
    maps, profiles = comparison.maps(token), comparison.profiles(token)
    limit = shared_limit(maps)
    drawn = on_grid(comparison)
    start, end = scale.time_extent(comparison.grid.times)
    figure = shown_figure(min(16.0, max(7.0, 2.5 + 0.75 * (end - start))), 8.0)
    axes = list(figure.subplots(4, 1, sharex=True, height_ratios=(1, 1, 1, 0.7)))
    both = None if maps[0] is None or maps[1] is None else maps[0] - maps[1]
    texts = ("", "") if token is None else comparison.words[comparison.find(token)]
    titles = [f"{name}{_quoted(text)}" for name, text in zip(comparison.names, texts, strict=True)]
    titles.append("first minus second: orange, more in the first; purple, more in the second")
    for ax, values, explanation, title in zip(axes, (*maps, both), (*drawn, drawn[0]), titles, strict=False):
        image = draw_overlay(ax, explanation, explanation.features * 0 if values is None else values, limit)
        plain_text(ax.set_title(title, loc="left", fontsize=9, color="0.3"))
        if values is None:
            why = "no word here" if ax is not axes[2] else "no difference: only one text has a word here"
            ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color="0.2")
    bar = figure.colorbar(image, ax=axes[:3], extend="both", pad=0.01, fraction=0.04, aspect=40)
    bar.set_label("evidence (standard deviations of each map)\n0: no effect; below 0: against it")
    _draw_profiles(axes[3], comparison, profiles)
    what = f"the whole sentence “{scale.shown(comparison.first.text, 70)}”" if token is None else _both(texts)
    plain_text(figure.suptitle(f"{what}: agreement over time {shown(rank_correlation(*profiles))}", fontsize=12))
    return figure, axes


def on_grid(comparison: Comparison) -> tuple[Explanation, Explanation]:
    """Return both explanations with spectrogram, times and frequencies on the grid used to compare them."""
    grid = comparison.grid
    one, other = (
        replace(
            each,
            features=grid.average(each.features, Grid.of(each)),
            times=grid.times,
            frequencies=grid.frequencies,
        )
        for each in (comparison.first, comparison.second)
    )
    return one, other


def shared_limit(maps: Sequence[Tensor | None]) -> float:
    """Return the evidence at the end of the colour scale that these maps share."""
    return max((scale.evidence_limit(values) for values in maps if values is not None), default=1.0)


def _draw_profiles(ax: Axes, comparison: Comparison, profiles: Sequence[Tensor | None]) -> None:
    """Draw both maps over time, which is what the agreement compares."""
    times = comparison.grid.times.numpy()
    for values, name, (colour, dashes) in zip(profiles, comparison.names, _LINES, strict=True):
        if values is not None:
            ax.plot(times, values.numpy(), color=colour, linestyle=dashes, linewidth=1.3, label=name)
    ax.axhline(0, color="0.6", linewidth=0.6)
    ax.set_xlabel("time (s)")
    ax.set_ylabel("all mel bins")
    ax.spines[["top", "right"]].set_visible(False)
    for text in ax.legend(fontsize=8, frameon=False, loc="best").get_texts():
        plain_text(text)


def _quoted(text: str) -> str:
    return f": “{scale.shown(text, 40)}”" if text else ""


def _both(texts: Sequence[str]) -> str:
    names = [f"“{scale.shown(text, 40)}”" if text else "no word" for text in texts]
    return names[0] if names[0] == names[1] else f"{names[0]} and {names[1]}"

"""Figures of an explanation, with Matplotlib."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from spes_hf.viz import fonts, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from spes_hf.explanation import Explanation

SIGNED = LinearSegmentedColormap.from_list(
    "spes_signed", (*reversed(scale.AGAINST_ON_LIGHT), "#ffffff", *scale.SOUND_ON_LIGHT)
)
_FAINT = 0.05  # share of the scale; smaller values are not drawn
_TEXT = LinearSegmentedColormap.from_list("spes_text", scale.TEXT_ON_LIGHT)
_GREYS = LinearSegmentedColormap.from_list("spes_greys", scale.GREYS_ON_LIGHT)


def plot_saliency(explanation: Explanation, token: int | str | None = None) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of spectrogram, saliency and overlay, and its three axes; see `spes_hf.viz.plot_saliency`."""
    evidence, title, reliability = _map_and_title(explanation, token)
    start, end = scale.time_extent(explanation.times)
    figure = shown_figure(min(16.0, max(7.0, 2.5 + 0.75 * (end - start))), 6.4)
    axes = list(figure.subplots(3, 1, sharex=True, sharey=True))
    end_of_scale = scale.evidence_limit(evidence)
    loudness = scale.spectrogram_limits(explanation.features)
    spectrogram = draw_values(axes[0], explanation, explanation.features, "gray_r", loudness)
    heat = draw_values(axes[1], explanation, evidence, SIGNED, (-end_of_scale, end_of_scale))
    draw_overlay(axes[2], explanation, evidence)

    label = "feature, as the\nmodel sees it"
    figure.colorbar(spectrogram, ax=axes[:1], extend="both", label=label, pad=0.01, fraction=0.05)
    bar = figure.colorbar(heat, ax=axes[1:], extend="both", pad=0.01, fraction=0.05)
    against = float(evidence.min()) < 0
    bar.ax.set_ylim(-end_of_scale if against else 0.0, end_of_scale)
    below = f"; below 0: {_against(explanation, token)}" if against else ""
    bar.set_label(f"evidence from the sound ({explanation.evidence_unit(token)})\n0: no effect{below}")
    plain_text(bar.ax.yaxis.label)
    known = "" if math.isnan(reliability) else f" (split-half reliability {reliability:.2f})"
    names = ("spectrogram", f"evidence{known}", "evidence over spectrogram")
    for ax, name in zip(axes, names, strict=True):
        ax.set_title(name, loc="left", fontsize=9, color="0.3")
    axes[2].set_xlabel("time (s)")
    plain_text(figure.suptitle(title, fontsize=12))
    return figure, axes


def plot_tokens(explanation: Explanation) -> tuple[Figure, Axes]:
    """Return a figure of the token map, and its axes; see `spes_hf.viz.plot_tokens`."""
    saliency = explanation.token_saliency.numpy()
    rows, columns = saliency.shape
    cell = 0.3 if max(rows, columns) <= 30 else 0.22
    figure = shown_figure(max(5.0, 3.2 + cell * columns), max(3.5, 1.8 + cell * rows))
    ax = figure.subplots()
    ax.set_facecolor("0.97")
    ax.patch.set(hatch="////", edgecolor="0.85", linewidth=0)
    image = ax.imshow(
        np.ma.masked_invalid(saliency), cmap=_TEXT, vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest"
    )
    kind = "word" if explanation.over_words else "token"
    ax.set_xlabel(f"earlier {kind} (decoder input)")
    ax.set_ylabel(f"explained {kind}" if explanation.contrasts is None else "contrast")
    size = 9 if max(rows, columns) <= 30 else 7
    ax.set_xticks(
        range(columns), [fonts.drawable(scale.shown(t)) for t in explanation.context_tokens], rotation=60, ha="right"
    )
    ax.set_yticks(range(rows), [fonts.drawable(scale.shown(t)) for t in explanation.tokens])
    for text in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        text.set(fontsize=size, rotation_mode="anchor")
        plain_text(text)
    ax.tick_params(length=2)
    ax.set_xticks(np.arange(-0.5, columns), minor=True)
    ax.set_yticks(np.arange(-0.5, rows), minor=True)
    ax.grid(which="minor", color="white", linewidth=0.6)
    ax.tick_params(which="minor", length=0)
    if 0 < explanation.prefix_length < columns:
        ax.axvline(explanation.prefix_length - 0.5, color="0.25", linewidth=0.8)
    figure.colorbar(image, ax=ax, label="saliency, on one scale with the sound's", pad=0.02, fraction=0.05, aspect=30)
    ax.set_title("the earlier text that mattered for each output (hatched: not yet written)", loc="left", fontsize=9)
    return figure, ax


def draw_overlay(ax: Axes, explanation: Explanation, evidence: Tensor, limit: float | None = None) -> AxesImage:
    """Draw a map over the spectrogram and return the map's image, which fades in from 5 % of the scale.

    Args:
        ax: Axes to draw on.
        explanation: The explanation that has the spectrogram.
        evidence: (T, C), signed; 0 = no effect.
        limit: The evidence at the end of the colour scale; None: the map's own.
    """
    draw_values(ax, explanation, explanation.features, _GREYS, scale.spectrogram_limits(explanation.features))
    end = scale.evidence_limit(evidence) if limit is None else limit
    opacity = ((evidence.abs() / end - _FAINT) / (1 - _FAINT)).clamp(0, 1)
    return draw_values(ax, explanation, evidence, SIGNED, (-end, end), alpha=opacity.T.numpy())


def bare_figure(width: float, height: float, dpi: float = 100) -> Figure:
    """Return a figure, sized in inches, that is independent of pyplot."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def shown_figure(width: float, height: float) -> Figure:
    """Return a figure; in a notebook it belongs to pyplot, so it is shown."""
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return bare_figure(width, height)
    from matplotlib import pyplot

    return pyplot.figure(figsize=(width, height), layout="constrained")


def _map_and_title(explanation: Explanation, token: int | str | None) -> tuple[Tensor, str, float]:
    """Return the map (T, C), its title and its reliability."""
    if token is None:
        what = "whole sentence" if explanation.contrasts is None else "all contrasts"
        title = f"{what}: “{scale.shown(explanation.text, 90)}”"
        return explanation.evidence(), title, explanation.reliability.sentence
    k = explanation.find(token)
    kind = "word" if explanation.over_words else "token"
    reliability = float(explanation.reliability.tokens[k])
    name = scale.shown(explanation.tokens[k], 60)
    if explanation.contrasts is None:
        title = f"“{name}”: {kind} {k}, probability {float(explanation.token_probabilities[k]):.2f}"
    else:
        title = f"“{name}”: contrast {k}, log-odds {explanation.contrasts[k].log_odds:+.1f} bits"
    return explanation.evidence(k), title, reliability


def _against(explanation: Explanation, token: int | str | None) -> str:
    """Return the meaning of evidence below 0."""
    if explanation.contrasts is None:
        return "against it"
    if token is None:
        return "for the other words"
    return f"for “{scale.shown(explanation.contrasts[explanation.find(token)].foil, 20)}”"


def draw_values(
    ax: Axes,
    explanation: Explanation,
    values: Tensor,
    colours: LinearSegmentedColormap | str,
    limits: tuple[float, float],
    alpha: Any = None,
) -> AxesImage:
    """Draw (T, C) values against seconds and Hz."""
    bins = values.shape[1]
    image = ax.imshow(
        values.T.numpy(),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(*scale.time_extent(explanation.times), -0.5, bins - 0.5),
        cmap=colours,
        norm=Normalize(*limits, clip=False),
        alpha=alpha,
    )
    ticks = scale.frequency_ticks(explanation.frequencies)
    ax.set_yticks([position for _, position in ticks], [f"{hertz}" for hertz, _ in ticks])
    ax.set_ylabel("frequency (Hz)")
    return image


def plain_text(text: Text) -> None:
    """Draw a text literally ("$" starts no formula), in a font that has its characters."""
    text.set_parse_math(False)
    fonts.fit([text])

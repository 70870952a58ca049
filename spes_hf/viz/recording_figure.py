"""A figure of a recording, and its view in a notebook."""

from __future__ import annotations

import base64
import html
import io
import math
import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from spes_hf.bits import MADE_UP_BITS
from spes_hf.explanation.recording import HeardSegment
from spes_hf.text import clock
from spes_hf.viz import fonts, scale
from spes_hf.viz.figures import bare_figure, plain_text, shown_figure
from spes_hf.viz.timeline import loudness, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spes_hf.explanation.recording import Recording

_HEARD, _MADE_UP, _GREY = scale.SOUND_ON_LIGHT[2], "#b3124f", "0.72"
_WIDTH = 12.0  # inches
_WORD = 7  # characters that a line must have room for
_POINTS, _LINES, _OFFSET = 7.0, 7, 2  # for the texts: font size, maximum number of lines, points to the left of them
_CHARACTER, _WIDE = 0.06, 0.1  # inches per character; of those as wide as they are high
_MOST_ROWS = 200
_CELL = "text-align:left;vertical-align:top;padding:2px 8px"
_QUIET = "opacity:.75;font-size:12px"


def plot_recording(recording: Recording) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of a recording, and its axes: loudness over time, bits by segment, and texts as far as they fit.

    Segments that were probably made up are hatched. In IPython, the figure belongs to pyplot, so it is shown.

    Args:
        recording: A recording over tokens or words.
    """
    texts = _texts(recording)
    figure = shown_figure(_WIDTH, 4.6 if texts else 3.4)
    return figure, _draw(recording, figure, texts)


def recording_html(recording: Recording) -> str:
    """Return the view in a notebook: a line of numbers, the figure, and a table of the segments, without a script.

    Args:
        recording: A recording over tokens or words.
    """
    segments = _verdicts(recording)
    figure = bare_figure(_WIDTH, 3.0, dpi=80)
    _draw(recording, figure, {})
    shown, rest = segments, ""
    if len(segments) > _MOST_ROWS:
        shown = (recording.made_up or segments)[:_MOST_ROWS]
        what = "that were probably made up" if recording.made_up else "from the start"
        rest = f"{len(shown)} of {len(segments):,} segments, {what}; to_html() writes a page with all of them."
    numbers = [clock(recording.duration_s), f"{len(recording.windows)} windows"]
    if not math.isnan(recording.bits_per_token):
        numbers.append(f"{recording.bits_per_token:.1f} bits a token from the sound")
    if not recording.complete:
        numbers.append("not fully explained yet")
    columns = ("time", "bits a token", "verdict", "text")
    names = "".join(f'<th style="{_CELL};white-space:nowrap">{name}</th>' for name in columns)
    rows = "".join(_row(segment) for segment in shown)
    return (
        '<div style="max-width:960px">'
        f"<div><b>{summary(segments)}</b></div>"
        f'<div style="{_QUIET}">{html.escape(" · ".join(numbers))}</div>'
        '<img alt="Loudness, and bits from the sound by segment, over time" style="max-width:100%;background:#fff" '
        f'src="data:image/png;base64,{_png(figure)}">'
        '<div style="max-height:420px;overflow:auto"><table style="border-collapse:collapse;width:100%">'
        f"<tr>{names}</tr>"
        f"{rows}</table></div>"
        f'<div style="{_QUIET}">{rest}</div>'
        "</div>"
    )


def _verdicts(recording: Recording) -> list[HeardSegment]:
    """Return all segments, including those without an explanation, in order of time."""
    explained = {window.index for window in recording.windows if window.is_there(recording.folder)}
    silent = [
        HeardSegment(segment.start_s, segment.end_s, segment.text, math.nan)
        for window in recording.windows
        if window.index not in explained
        for segment in window.segments
    ]
    return sorted([*recording.heard, *silent], key=lambda segment: segment.start_s)


def _draw(recording: Recording, figure: Figure, texts: dict[float, str]) -> list[Axes]:
    """Draw a recording and return the axes.

    Args:
        recording: A recording over tokens or words.
        figure: Figure to draw on.
        texts: Texts of the segments, by their start in seconds; {}: no axes for texts.
    """
    ratios = [1.0, 1.6, 1.2] if texts else [1.0, 1.8]
    axes = list(figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios))
    segments, duration = _verdicts(recording), recording.duration_s
    level = loudness(recording.audio_file, 1200)
    times = (np.arange(len(level)) + 0.5) * duration / max(1, len(level))
    axes[0].fill_between(times, -level, level, color=_GREY, linewidth=0)
    axes[0].set_ylim(-1.05, 1.05)
    axes[0].set_yticks([])
    axes[0].set_ylabel("loudness" if len(level) else "no sound")

    known = [s for s in segments if not math.isnan(s.bits_per_token)]
    for made_up, colour, hatch in ((False, _HEARD, None), (True, _MADE_UP, "////")):
        own = [s for s in known if (s.verdict == "made up") is made_up]
        axes[1].bar(
            [s.start_s for s in own],
            [max(0.0, s.bits_per_token) for s in own],
            [max(s.end_s - s.start_s, duration / 600) for s in own],
            align="edge",
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5 if len(segments) < 150 else 0,
        )
    for ax in axes:
        for segment in segments:
            if segment.verdict == "made up":
                ax.axvspan(segment.start_s, segment.end_s, color=_MADE_UP, alpha=0.12, linewidth=0)
            elif _is_unexplained(segment):
                ax.axvspan(segment.start_s, segment.end_s, facecolor="0.96", edgecolor="0.8", hatch="...", linewidth=0)
    for segment in segments:
        if segment.verdict == "made up":  # visible even where bars are thin
            axes[0].axvspan(
                segment.start_s, max(segment.end_s, segment.start_s + duration / 400), 0.93, 1, color=_MADE_UP
            )
    fitted = all(segment.fitted for segment in segments)
    if fitted:
        axes[1].axhline(MADE_UP_BITS, color="0.3", linewidth=0.8, linestyle=":")
    axes[1].set_ylabel("bits a token\nfrom the sound")
    axes[1].set_ylim(0, None)
    legend = [Patch(color=_HEARD, label="heard" if fitted else "explained")]
    if any(s.verdict == "made up" for s in segments):
        label = f"probably made up: below {MADE_UP_BITS:.1f} bits (dotted)"
        legend.append(Patch(facecolor=_MADE_UP, edgecolor="white", hatch="////", label=label))
    if any(map(_is_unexplained, segments)):
        legend.append(Patch(facecolor="0.96", edgecolor="0.8", hatch="...", label="not explained"))
    axes[0].legend(handles=legend, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, frameon=False)
    for start, text in texts.items():
        drawn = axes[2].annotate(
            text,
            (start, 0.96),
            xycoords=axes[2].get_xaxis_transform(),
            xytext=(_OFFSET, 0),
            textcoords="offset points",
            fontsize=_POINTS,
            va="top",
            clip_on=True,
        )
        plain_text(drawn)
    if texts:
        axes[2].set_yticks([])
    axes[-1].set_xlim(0, duration)
    axes[-1].xaxis.set_major_locator(MaxNLocator(10, steps=[1, 1.5, 2, 3, 6, 10]))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(max(0.0, value))))
    axes[-1].set_xlabel("time")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return axes


def _texts(recording: Recording) -> dict[float, str]:
    """Return the texts that have room for a word, by their start in seconds, in lines; "…" ends those that are cut.

    Neighbouring segments that were made up share the room that they have.
    """
    inch = (_WIDTH - 1.2) / max(recording.duration_s, 1e-9)
    found = {}
    for made_up, run in groupby(_verdicts(recording), lambda segment: segment.verdict == "made up"):
        segments = list(run)
        for part in [segments] if made_up else [[segment] for segment in segments]:
            texts = (scale.shown(segment.text, 1000).strip() for segment in part)
            text = " ".join(filter(None, texts))
            room = (part[-1].end_s - part[0].start_s) * inch - _OFFSET / 72
            width = int(room / (_WIDE if any(east_asian_width(c) in "WF" for c in text) else _CHARACTER))
            if text and width >= _WORD:
                lines = textwrap.wrap(fonts.drawable(text), width, max_lines=_LINES, placeholder=" …")
                found[part[0].start_s] = "\n".join(lines)
    return found


def _is_unexplained(segment: HeardSegment) -> bool:
    return segment.verdict == "not known" and math.isnan(segment.bits_per_token)


def _row(segment: HeardSegment) -> str:
    bits = "–" if math.isnan(segment.bits_per_token) else f"{segment.bits_per_token:.1f}"
    made_up = segment.verdict == "made up"
    verdict = f'<b style="color:{_MADE_UP}">probably made up</b>' if made_up else segment.verdict
    cells = (
        ("nowrap", f"{clock(segment.start_s)}–{clock(segment.end_s)}"),
        ("nowrap", bits),
        ("nowrap", verdict),
        ("normal", f"<bdi>{html.escape(scale.shown(segment.text, 400))}</bdi>"),
    )
    style = "text-align:left;vertical-align:top;padding:2px 8px"
    return "".join(
        ["<tr>", *(f'<td style="{style};white-space:{space}">{cell}</td>' for space, cell in cells), "</tr>"]
    )


def _png(figure: Figure) -> str:
    """Return a figure as a PNG in base64."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(64).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")

"""What a notebook shows of an explanation: a fragment of HTML. Only the player in it needs a script."""

from __future__ import annotations

import base64
import html
import io
import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from spes_hf.bits import NOT_HEARD_BITS, in_words
from spes_hf.viz import scale
from spes_hf.viz.figures import bare_figure, draw_overlay
from spes_hf.viz.report import player_page

if TYPE_CHECKING:
    from spes_hf.explanation import Explanation
    from spes_hf.explanation.listening import HeardBack

_SOUND_RGB, _TEXT_RGB = "241,105,19", "32,112,180"
_QUIET = "opacity:.75;font-size:12px"
_LOW_PROBABILITY = 0.5
# Number of bits from which on the colour is deepest.
_FULL_BITS = 10.0


def notebook_html(explanation: Explanation, heard: HeardBack | None = None) -> str:
    """Return the fragment: words coloured by their bits from the sound, map, player, numbers; see `spes_hf.viz`."""
    rows, what = _transcript(explanation), "the whole sentence"
    legend = (
        f'<span style="{_tint(_FULL_BITS)}">&nbsp;heard: deeper colour, more bits&nbsp;</span> '
        f'<span style="{_tint(0.0)}">&nbsp;not heard: under {NOT_HEARD_BITS:.0f} bit&nbsp;</span> '
        f'<span style="border-bottom:2px dotted">probability below {_LOW_PROBABILITY:.0%}</span>'
    )
    if explanation.contrasts is not None:
        rows, what = _contrasts(explanation), "all contrasts"
        legend = "3 bits: the model finds what it wrote 8 times likelier than the other words; below 0: less likely."
    return (
        '<div style="max-width:860px">'
        f'<div style="font:17px/1.9 Georgia,serif">{rows}</div>'
        f'<div style="{_QUIET};margin:2px 0 8px">{legend}</div>'
        f'<img alt="Evidence for {what} over the spectrogram" style="max-width:100%;background:#fff" '
        f'src="data:image/png;base64,{_picture(explanation)}">'
        f"{_player(explanation, heard)}"
        f'<div style="{_QUIET};margin-top:4px">{_numbers(explanation)}</div>'
        "</div>"
    )


def _transcript(explanation: Explanation) -> str:
    """Return the words (or tokens), each on the colour of its bits from the sound."""
    shown = explanation.words() if len(explanation.words().groups or ()) else explanation
    parts: list[str] = []
    bits, probability = shown.sound_bits.tolist(), shown.token_probabilities.tolist()
    for k, name in enumerate(shown.tokens):
        if name.startswith(" ") and parts:
            parts.append(" ")
        style = _tint(bits[k]) if any(c.isalnum() for c in name) else _tint(math.nan)
        if probability[k] < _LOW_PROBABILITY:
            style += ";border-bottom:2px dotted"
        about = f"{in_words(bits[k])}; probability {probability[k]:.1%}"
        text = html.escape(scale.shown(name, 200))
        parts.append(f'<bdi style="{style}" title="{about}">{text}</bdi>')
    return "".join(parts)


def _contrasts(explanation: Explanation) -> str:
    """Return the contrasts, one per line, each with its log-odds."""
    lines = []
    for contrast, bits in zip(explanation.contrasts or (), explanation.sound_bits.tolist(), strict=True):
        name = html.escape(scale.shown(contrast.name, 200))
        about = f"from the sound {in_words(bits, odds=True)}"
        lines.append(
            f'<bdi title="{about}">{name}</bdi> <span style="{_QUIET}">{contrast.log_odds:+.1f} bits; '
            f"the sound adds {bits:+.1f}</span>"
        )
    return "<br>".join(lines)


def _tint(bits: float) -> str:
    """Return a style: orange for a word that was heard, deeper with more bits; blue for one that was not."""
    if math.isnan(bits):
        return "padding:1px 2px"
    heard = bits >= NOT_HEARD_BITS
    depth = 0.12 + 0.38 * min(1.0, bits / _FULL_BITS) if heard else 0.4
    return f"background:rgba({_SOUND_RGB if heard else _TEXT_RGB},{depth:.2f});border-radius:3px;padding:1px 2px"


def _picture(explanation: Explanation) -> str:
    """Return the sentence map over the spectrogram as a PNG in base64."""
    figure = bare_figure(8.6, 2.1, dpi=110)
    ax = figure.subplots()
    draw_overlay(ax, explanation, explanation.evidence())
    ax.set_xlabel("time (s)", fontsize=8)
    ax.set_ylabel("frequency (Hz)", fontsize=8)
    ax.tick_params(labelsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(128).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _player(explanation: Explanation, heard: HeardBack | None) -> str:
    """Return a frame with the recording and the switch of the page; "" without samples.

    A frame, so that the names and the style of two outputs, and of the notebook, keep apart. Line breaks are escaped:
    what turns notebooks into pages joins lines.
    """
    if not len(explanation.waveform):
        return ""
    page = html.escape(player_page(explanation, heard)).replace("\n", "&#10;")
    return (
        '<iframe title="The recording: everything, only what mattered, or all but that" '
        f'style="width:100%;height:100px;border:0;display:block" srcdoc="{page}"></iframe>'
    )


def _counted(explanation: Explanation) -> str:
    count = len(explanation.pieces)
    if explanation.contrasts is None:
        return f"{count} tokens"
    return f"{count} contrast{'s' * (count != 1)}"


def _numbers(explanation: Explanation) -> str:
    cost = explanation.origin.cost
    sure = explanation.reliability.sentence
    parts = [
        _counted(explanation),
        f"{len(explanation.waveform) / explanation.sampling_rate:.1f} s of audio",
        "" if explanation.method == "?" else f"method {scale.clean(explanation.method)}",
        scale.passes(cost),
        f"in {cost['seconds']:.0f} s" if "seconds" in cost else "",
        "reliability not known" if math.isnan(sure) else f"reliability {sure:.2f}",
    ]
    line = html.escape(" · ".join(part for part in parts if part))
    mean = explanation.bits_per_token
    if not math.isnan(mean):
        line = f"{mean:.1f} bits a token from the sound · {line}"
    warnings = []
    if explanation.verdict == "made up":
        warnings.append(f"Probably made up: {mean:.1f} bits a token from the sound.")
    if not math.isnan(sure) and sure < scale.LOW_RELIABILITY:
        warnings.append(scale.LOW_RELIABILITY_WARNING)
    if explanation.reached_length_limit:
        warnings.append("The length limit cut the output.")
    return "<br>".join([line, *(f"<b>{html.escape(warning)}</b>" for warning in warnings)])

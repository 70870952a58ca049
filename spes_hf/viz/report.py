"""One self-contained interactive page for an explanation."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from PIL import Image
from torch import Tensor

from spes_hf.bits import in_words
from spes_hf.text import join_pieces, word_groups
from spes_hf.viz import scale
from spes_hf.viz.walk import word_times

if TYPE_CHECKING:
    from spes_hf.explanation import Explanation
    from spes_hf.explanation.listening import HeardBack, Sound

# zlib's strategy for runs: compresses as well as the slowest search, since maps are patches of a single value.
_RUNS = 3


def write_html(explanation: Explanation, path: Path, heard: HeardBack | None = None) -> Path:
    """Write the page and return its path; see `spes_hf.viz.write_html`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(explanation, heard=heard), encoding="utf-8")
    return path


def page(explanation: Explanation, embeddable: bool = False, heard: HeardBack | None = None) -> str:
    """Return the page: template, style and script, and the explanation as JSON.

    Args:
        explanation: An explanation over tokens or words.
        embeddable: Whether the page of a recording may show it in a frame, where it hides what the outer page shows.
        heard: What the model writes for parts of the sound.
    """
    contrasts = explanation.contrasts
    title = explanation.text if contrasts is None else "; ".join(contrast.name for contrast in contrasts)
    styles, scripts = ["report.css", "walk.css"], ["page.js", "picture.js", "listening.js", "report.js", "walk.js"]
    if embeddable:
        styles, scripts = [*styles, "embedded.css"], [*scripts, "embedded.js"]
    return filled("report.html", styles, scripts, title, page_data(explanation, heard))


def player_page(explanation: Explanation, heard: HeardBack | None = None) -> str:
    """Return the page with the recording and the switch alone, for the map of the sentence.

    Args:
        explanation: An explanation over tokens or words.
        heard: What the model writes for parts of the sound; the switch then plays the same parts.
    """
    data = {
        **_sound_data(explanation),
        "contrasts": explanation.contrasts is not None,
        "sentence": signed_png(explanation.evidence()),
        "heard": _heard_data(heard),
        "share": 0.2 if heard is None else heard.top,
    }
    scripts = ["page.js", "listening.js", "notebook.js"]
    return filled("listening.html", ["report.css", "notebook.css"], scripts, explanation.text, data)


def filled(
    template: str, styles: Sequence[str], scripts: Sequence[str], title: str, data: Any, folder: bool = False
) -> str:
    """Return a page from a template in this folder, filled with styles, scripts and data.

    Args:
        template: File name of the template with the page's content.
        styles: Names of the style sheets, in order.
        scripts: Names of the scripts, in order.
        title: Title of the page; any text.
        data: Data for the scripts, ready for JSON.
        folder: Whether the page may show pages, and play sounds, from the folder next to it.
    """

    def read(*names: str) -> str:
        return "".join((files("spes_hf.viz") / name).read_text("utf-8") for name in names)

    parts = {
        "TITLE": html.escape(scale.shown(title, 80)),
        "STYLE": read(*styles),
        "SCRIPT": read(*scripts),
        "DATA": script_json(data),
        "MAIN": read(template).replace("{{LISTENING}}", read("listening.html")),
        "FRAMES": "; frame-src 'self' file:" if folder else "",
        "MEDIA": " 'self' file:" if folder else "",
    }
    return re.sub("{{(TITLE|STYLE|SCRIPT|DATA|MAIN|FRAMES|MEDIA)}}", lambda match: parts[match[1]], read("page.html"))


def script_json(data: Any) -> str:
    """Return JSON that is safe in a script element: ASCII, and nothing that ends the element or opens a comment.

    Args:
        data: Values for JSON; NaN and infinity become null.
    """
    text = json.dumps(_finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(explanation: Explanation, heard: HeardBack | None = None) -> dict[str, Any]:
    """Return all data that the page shows.

    Maps are 8-bit greyscale PNGs with frames in columns and mel bins in rows, the highest on top. Evidence is the grey
    value minus 128, over 127, times the map's "scale". The page computes a word's map as the mean of its tokens'.

    Args:
        explanation: An explanation over tokens or words.
        heard: What the model writes for parts of the sound.
    """
    tokens = replace(explanation, groups=None, context_groups=None) if explanation.over_words else explanation
    return {
        **picture_data(tokens),
        "opens_with": "words" if explanation.over_words else "tokens",
        "contrasts": _contrasts(tokens),
        "heard": _heard_data(heard),
        "sentence": {
            **signed_png(tokens.evidence()),
            "unit": tokens.evidence_unit(),
            "reliability": tokens.reliability.sentence,
            "bits_per_token": tokens.bits_per_token,
            "verdict": tokens.verdict,
            "strongest": _strongest(tokens.evidence()),
        },
        "maps": [signed_png(tokens.evidence(k)) for k in range(len(tokens))],
        "unit": tokens.evidence_unit(0) if len(tokens) else "",
        "levels": {"tokens": _level(tokens), "words": _level(tokens.words())},
        "walk": word_times(tokens),
    }


def picture_data(explanation: Explanation) -> dict[str, Any]:
    """Return the data of an explanation that every page shows: spectrogram, axes, colours, sound and sources.

    Args:
        explanation: An explanation over tokens or words.
    """
    low, high = scale.spectrogram_limits(explanation.features)
    return {
        **_sound_data(explanation),
        "text": scale.clean(explanation.text),
        "frequency_ticks": scale.frequency_ticks(explanation.frequencies),
        "high_percentile": scale.HIGH_PERCENTILE,
        "low_reliability": [scale.LOW_RELIABILITY, scale.LOW_RELIABILITY_WARNING],
        "colours": {
            "light": {"greys": scale.GREYS_ON_LIGHT, "sound": scale.SOUND_ON_LIGHT, "against": scale.AGAINST_ON_LIGHT},
            "dark": {"greys": scale.GREYS_ON_DARK, "sound": scale.SOUND_ON_DARK, "against": scale.AGAINST_ON_DARK},
        },
        "spectrogram": grey_png((explanation.features - low) / (high - low)),
        "duration_s": len(explanation.waveform) / explanation.sampling_rate,
        "warnings": _warnings(explanation),
        "notes": [scale.settled(note) for note in explanation.notes],
        "provenance": plain(explanation.provenance),
    }


def _sound_data(explanation: Explanation) -> dict[str, Any]:
    """Return the sound, and the axes of the maps that it is masked by."""
    start, end = scale.time_extent(explanation.times)
    return {
        "frames": len(explanation.times),
        "bins": len(explanation.frequencies),
        "time_extent": [start, end],
        "frequencies": [round(f, 1) for f in explanation.frequencies.tolist()],
        "sound_from": explanation.sound_start_s,
        "sampling_rate": explanation.sampling_rate,
        "audio": flac(explanation.waveform.numpy(), explanation.sampling_rate),
    }


def _heard_data(heard: HeardBack | None) -> dict[str, Any] | None:
    return None if heard is None else {"top": heard.top, "kept": _said(heard.kept), "rest": _said(heard.rest)}


def plain(data: Any) -> Any:
    """Return data for JSON with all text clean, and values that JSON does not have as text."""
    if isinstance(data, Mapping):
        return {scale.settled(str(key)): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    if isinstance(data, (bool, int, float, type(None))):
        return data
    return scale.settled(str(data))


def _said(text: str) -> str:
    return scale.shown(text.strip(), 500)


def _contrasts(explanation: Explanation) -> list[dict[str, Any]] | None:
    """Return the data that only contrasts have; None if the rows are tokens."""
    if explanation.contrasts is None:
        return None
    return [
        {
            "target": scale.shown(contrast.target, 200),
            "foil": scale.shown(contrast.foil, 200),
            "log_odds": round(contrast.log_odds, 4),
            "start": contrast.start,
        }
        for contrast in explanation.contrasts
    ]


def _strongest(evidence: Tensor) -> list[int]:
    """Return the frame and mel bin with the most evidence for the row."""
    return list(divmod(int(evidence.flatten().argmax()), evidence.shape[1]))


def signed_png(evidence: Tensor) -> dict[str, Any]:
    """Return a map as "map", a greyscale PNG in base64 in which 128 is 0, and "scale", the value of 255.

    Args:
        evidence: (T, C), signed; extreme values are clipped.
    """
    # Twice the end of the colour scale, so that a word's mean map, and its own scale, are seldom clipped.
    end = 2 * scale.evidence_limit(evidence)
    return {"map": grey_png((128 + 127 * evidence / end) / 255), "scale": float(f"{end:.4g}")}


def grey_png(values: Tensor) -> str:
    """Return a map as a greyscale PNG in base64, the highest mel bin on top.

    Args:
        values: (T, C); values outside [0, 1] are clipped.
    """
    grey = (values.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(grey.T[::-1])).save(buffer, format="PNG", compress_type=_RUNS)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _level(explanation: Explanation) -> dict[str, Any]:
    """Return the page's data for every token, or for every word."""
    groups = explanation.groups or tuple((k,) for k in range(len(explanation)))
    if not groups:
        return {"groups": [], "names": [], "context": []}
    tokens = explanation.tokens
    marks, tail = _unexplained(explanation)
    return {
        "names": [scale.clean(name) for name in tokens],
        "shown": [scale.shown(name, 200) for name in tokens],
        "special": [all(explanation.special[k] for k in group) for group in groups],
        "groups": groups,
        "probability": _rounded(explanation.token_probabilities),
        "sound_bits": _rounded(explanation.sound_bits),
        "text_bits": _rounded(explanation.text_bits),
        "instruction_bits": _rounded(explanation.instruction_bits),
        "strongest": [_strongest(explanation.evidence(k)) for k in range(len(explanation))],
        "heard": [in_words(b, explanation.contrasts is not None) for b in explanation.sound_bits.tolist()],
        "reliability": explanation.reliability.tokens.tolist(),
        "prefix": explanation.prefix_length,
        "context": [scale.shown(name, 200) for name in explanation.context_tokens],
        "spaced": [name[:1].isspace() for name in explanation.context_tokens],
        "marks": marks,
        "starts": explanation.starts,
        "tail": scale.shown(tail, 200) if tail else "",
        "text_saliency": [_rounded(row) for row in explanation.token_saliency],
    }


def _unexplained(explanation: Explanation) -> tuple[list[bool], str]:
    """Return which columns of the context are special tokens of the output, and the output's end without column or row.

    Args:
        explanation: An explanation over tokens or words, perhaps of only a part of them.
    """
    p, part = explanation.prefix_length, explanation.part
    columns = explanation.context_groups or tuple((j,) for j in range(len(explanation.context_pieces)))
    if part is None:
        return [False] * len(columns), ""
    marks = [j[0] >= p and part.special[j[0] - p] for j in columns]
    words = word_groups(part.pieces, part.special) if explanation.over_words else [(len(part.pieces) - 1,)]
    last = words[-1] if words else ()
    if set(last) & set(part.rows) or any(part.special[k] for k in last):
        return marks, ""
    return marks, join_pieces([part.pieces[k] for k in last])


def _warnings(explanation: Explanation) -> list[str]:
    """Return warnings that the page may not show what the model would have written."""
    cut = explanation.reached_length_limit
    return ["The length limit cut the output before the model had finished."] if cut else []


def flac(samples: np.ndarray, rate: int) -> str:
    """Return audio as 16-bit FLAC, in base64."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.clip(-1, 1), rate, format="FLAC", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def sound_html(sound: Sound) -> str:
    """Return a player for a notebook; see `spes_hf.viz`."""
    return f'<audio controls src="data:audio/flac;base64,{flac(sound.samples, sound.rate)}"></audio>'


def _rounded(values: Tensor) -> list[float]:
    return [round(v, 4) for v in values.tolist()]


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data

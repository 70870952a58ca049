"""One self-contained page of a comparison: both texts, and for each word both maps and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spes_hf.explanation.comparison import shown
from spes_hf.text import normalise
from spes_hf.viz import report, scale
from spes_hf.viz.comparison_figure import on_grid

if TYPE_CHECKING:
    from spes_hf.explanation import Explanation
    from spes_hf.explanation.comparison import Comparison


def write_html(comparison: Comparison, path: Path) -> Path:
    """Write the page and return its path; see `spes_hf.viz.write_comparison_html`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(comparison), encoding="utf-8")
    return path


def page(comparison: Comparison) -> str:
    """Return the page: template, style and script, and the comparison as JSON."""
    styles, scripts = ["report.css", "comparison.css"], ["page.js", "picture.js", "comparison.js"]
    title = f"Comparison: {comparison.first.text.strip()}"
    return report.filled("comparison.html", styles, scripts, title, page_data(comparison))


def page_data(comparison: Comparison) -> dict[str, Any]:
    """Return all that the page shows.

    Maps and spectrograms lie on the grid of the comparison; maps are as in `report.signed_png`, in standard deviations.

    Args:
        comparison: With any number of words.
    """
    first, second = on_grid(comparison)
    low, high = scale.spectrogram_limits(second.features)
    both = (comparison.first, comparison.second)
    return {
        **report.picture_data(first),
        "spectrogram_second": report.grey_png((second.features - low) / (high - low)),
        "names": [scale.settled(name) for name in comparison.names],
        "texts": [scale.shown(each.text.strip(), 2000) for each in both],
        "direction": scale.direction("".join(each.text for each in both)),
        "warnings": [],
        "notes": _notes(comparison),
        "provenance": {
            scale.settled(name): report.plain(each.provenance)
            for name, each in zip(comparison.names, both, strict=True)
        },
        "sentence": _maps(comparison, None),
        "pairs": [_pair(comparison, k) for k in range(len(comparison))],
    }


def _pair(comparison: Comparison, index: int) -> dict[str, Any]:
    pair = comparison.pairs[index]
    names = [_with_marks(comparison.first, pair.first), _with_marks(comparison.second, pair.second)]
    return {
        "words": [scale.shown(name, 200) if name else "" for name in names],
        "equal": pair.equal,
        "spaced": index == 0 or comparison.first.contrasts is not None or any(name[:1].isspace() for name in names),
        "bits": [
            _bits(each, words) for each, words in ((comparison.first, pair.first), (comparison.second, pair.second))
        ],
        **_maps(comparison, index),
    }


def _with_marks(explanation: Explanation, words: Sequence[int]) -> str:
    """Return the text of words with the punctuation that follows them, and that before the first word of all."""
    if not words or explanation.contrasts is not None:
        return " ".join(explanation.tokens[k] for k in words)
    tokens = explanation.tokens
    first, end = words[0], words[-1] + 1
    while end < len(tokens) and not normalise(tokens[end]):
        end += 1
    return "".join(tokens[0 if not any(map(normalise, tokens[:first])) else first : end])


def _maps(comparison: Comparison, token: int | None) -> dict[str, Any]:
    agreement = comparison.sentence_agreement if token is None else float(comparison.agreement[token])
    return {
        "maps": [None if values is None else report.signed_png(values) for values in comparison.maps(token)],
        "agreement": shown(agreement),
    }


def _bits(explanation: Explanation, words: Sequence[int]) -> float | None:
    """Return the bits that some words got from the sound; None of none."""
    return round(sum(float(explanation.sound_bits[k]) for k in words), 4) if words else None


def _notes(comparison: Comparison) -> list[str]:
    """Return what a reader has to know of both, each said once."""
    own = zip(comparison.names, (comparison.first, comparison.second), strict=True)
    notes = list(dict.fromkeys(f"{name}: {note}" for name, each in own for note in each.notes))
    if not comparison.same_grid:
        grid = comparison.grid
        notes.append(
            "The two saw different frames or mel bins. Their maps were averaged onto "
            f"{len(grid.times)} frames × {len(grid.frequencies)} mel bins that both cover."
        )
    return [scale.settled(note) for note in notes]

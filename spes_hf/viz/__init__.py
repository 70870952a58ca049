"""Pictures of an explanation: figures, one page to look around in, and what a notebook shows.

Nothing heavy is imported before a picture is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spes_hf.explanation import Explanation
    from spes_hf.explanation.diagnosis import Diagnosis
    from spes_hf.explanation.listening import HeardBack, Sound

__all__ = ["notebook_html", "plot_saliency", "plot_tokens", "sound_html", "write_diagnosis_html", "write_html"]


def plot_saliency(explanation: Explanation, token: int | str | None = None) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of a token's map: spectrogram, saliency, and one over the other, against seconds and Hz.

    In IPython the figure is one of pyplot's, so that it shows; elsewhere it is nobody's but yours: save it with
    ``figure.savefig(path)``.

    Args:
        explanation: Over tokens or words.
        token: Index of the token (or word), or its text if it occurs once; None: the whole sentence.

    Returns:
        The figure, and its three axes from top to bottom.

    Raises:
        IndexError: If the index is out of range.
        KeyError: If the text does not occur, or occurs more than once.
    """
    from spes_hf.viz import figures

    return figures.plot_saliency(explanation, token)


def plot_tokens(explanation: Explanation) -> tuple[Figure, Axes]:
    """Return a figure of the token map: explained tokens in rows, decoder inputs in columns.

    Hatched where the decoder input was not yet generated.

    Args:
        explanation: Over tokens or words.
    """
    from spes_hf.viz import figures

    return figures.plot_tokens(explanation)


def write_html(explanation: Explanation, path: str | Path, heard: HeardBack | None = None) -> Path:
    """Write one self-contained page to look around in, and return its path.

    The page loads nothing from anywhere: maps, spectrogram and audio are inside. ``#token=5``, ``#word=3`` or
    ``#sentence`` at the end of its address opens it there.

    Args:
        explanation: Over tokens or words; the page holds both, and opens with the one that is given.
        path: File to write; folders on the way are made.
        heard: What the model writes for parts of the sound (`spes_hf.listen_back`), to be shown with it.
    """
    from spes_hf.viz import report

    return report.write_html(explanation, Path(path), heard)


def write_diagnosis_html(diagnosis: Diagnosis, path: str | Path) -> Path:
    """Write one self-contained page with both texts and every error, and return its path.

    The page loads nothing from anywhere: maps, spectrogram and audio are inside. ``#error=2`` at the end of its address
    opens it at ``diagnosis.errors[2]``.

    Args:
        diagnosis: What went wrong; without an explanation, the page has neither maps nor sound.
        path: File to write; folders on the way are made.
    """
    from spes_hf.viz import diagnosis_page

    return diagnosis_page.write_html(diagnosis, Path(path))


def sound_html(sound: Sound) -> str:
    """Return what a notebook shows of a sound: a player, as a fragment of HTML.

    Args:
        sound: What `Explanation.listen` returned.
    """
    from spes_hf.viz import report

    return report.sound_html(sound)


def notebook_html(explanation: Explanation) -> str:
    """Return what a notebook shows: the words, the sentence map and a line of numbers, as a fragment of HTML.

    Args:
        explanation: Over tokens or words.
    """
    from spes_hf.viz import notebook

    return notebook.notebook_html(explanation)

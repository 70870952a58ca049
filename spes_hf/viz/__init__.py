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
    from spes_hf.explanation.comparison import Comparison
    from spes_hf.explanation.diagnosis import Diagnosis
    from spes_hf.explanation.listening import HeardBack, Sound

__all__ = [
    "notebook_html",
    "plot_comparison",
    "plot_overview",
    "plot_saliency",
    "plot_tokens",
    "sound_html",
    "write_comparison_html",
    "write_diagnosis_html",
    "write_html",
]


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


def plot_overview(explanation: Explanation, longest: int = 60) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of all words against time: when did the sound speak for each of them?

    The spectrogram is on top. Below, each word has a row: its evidence (`Explanation.evidence`), summed over mel bins,
    as a share of its own largest value. Orange spoke for the word, purple against it. Since each row has its own scale,
    the bits that the word got from the sound stand next to it. `spes_hf.analysis.plot_overview` draws the whole maps.

    Args:
        explanation: Over tokens or words; the rows are words, or contrasts in an explanation with a foil.
        longest: How many words to draw at most, from the first.

    Returns:
        The figure, and its two axes: the spectrogram, the words.

    Raises:
        ConfigError: If ``longest`` is not a whole number of at least 1.
    """
    from spes_hf.viz import overview

    return overview.plot_overview(explanation, longest)


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


def plot_comparison(comparison: Comparison, token: int | str | None = None) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of two explanations' maps on one scale and one grid, and its four axes.

    From top to bottom: the first map, the second, first less second, and both summed over mel bins, which is what
    `Comparison.agreement` compares. Maps are in standard deviations.

    Args:
        comparison: As `compare` returns it.
        token: Index of the pair of words, or a word that occurs in one pair; None: the whole sentence.

    Raises:
        IndexError: If the index is out of range.
        KeyError: If the word does not occur, or occurs in more than one pair.
    """
    from spes_hf.viz import comparison_figure

    return comparison_figure.plot_comparison(comparison, token)


def write_comparison_html(comparison: Comparison, path: str | Path) -> Path:
    """Write one self-contained page with both texts, and both maps of every word, and return its path.

    The page loads nothing from anywhere: maps, spectrograms and audio are inside. ``#pair=2`` at the end of its address
    opens it at ``comparison.pairs[2]``.

    Args:
        comparison: As `compare` returns it.
        path: File to write; folders on the way are made.
    """
    from spes_hf.viz import comparison_page

    return comparison_page.write_html(comparison, Path(path))


def notebook_html(explanation: Explanation, heard: HeardBack | None = None) -> str:
    """Return what a notebook shows: the words, the sentence map, a player and a line of numbers, as a fragment of HTML.

    The player has the switch of the page of `write_html`: everything, only what mattered for the sentence, or all but
    that. Where a notebook runs no scripts, as on GitHub, the rest still shows.

    The fragment is about 75 kB plus the player's share: 25 kB of script and style, the map with 4 kB a second, and the
    recording as in the page, FLAC of 16 bits with 24 kB a second of speech at 16 kHz. That is 400 kB for 11 seconds.

    Args:
        explanation: Over tokens or words.
        heard: What the model writes for parts of the sound (`spes_hf.listen_back`), to be shown with the player. The
            switch then plays these parts; without it, the top 20 % and the rest.
    """
    from spes_hf.viz import notebook

    return notebook.notebook_html(explanation, heard)

"""Pictures of an explanation: figures, an interactive page, and the view in a notebook.

Heavy modules are imported only when a picture is requested.
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
    """Return a figure of a token's map: spectrogram, saliency, and both overlaid, against seconds and Hz.

    In IPython, the figure belongs to pyplot, so it is shown. Elsewhere it is independent of pyplot; save it with
    ``figure.savefig(path)``.

    Args:
        explanation: An explanation over tokens or words.
        token: Index of the token (or word), or its text if it occurs once; None: the whole sentence.

    Returns:
        The figure, and its three axes from top to bottom.

    Raises:
        IndexError: If the index is out of range.
        KeyError: If the text does not occur, or occurs more than once.

    Examples:
        >>> figure, axes = plot_saliency(ex.words(), "picture")
        >>> len(axes), axes[0].images[0].get_array().shape == ex.features.T.shape
        (3, True)
    """
    from spes_hf.viz import figures

    return figures.plot_saliency(explanation, token)


def plot_overview(explanation: Explanation, longest: int = 60) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of all words against time: when did the sound speak for each of them?

    The spectrogram is on top. Below, each word has a row with its evidence (`Explanation.evidence`), summed over mel
    bins, as a share of its own largest value. Orange spoke for the word, purple against it. Each row has its own scale,
    so the bits that the word got from the sound are next to it. `spes_hf.analysis.plot_overview` draws the whole maps.

    Args:
        explanation: An explanation over tokens or words; rows are words, or contrasts if there is a foil.
        longest: Maximum number of words to draw, from the first.

    Returns:
        The figure, and its two axes: the spectrogram and the words.

    Raises:
        ConfigError: If ``longest`` is not a whole number of at least 1.

    Examples:
        >>> figure, (spectrogram, rows) = plot_overview(ex, longest=3)
        >>> [label.get_text() for label in rows.get_yticklabels()]
        ['Tom', 'sells', 'a']
    """
    from spes_hf.viz import overview

    return overview.plot_overview(explanation, longest)


def plot_tokens(explanation: Explanation) -> tuple[Figure, Axes]:
    """Return a figure of the token map: explained tokens in rows, decoder inputs in columns.

    Cells whose decoder input was not yet generated are hatched.

    Args:
        explanation: An explanation over tokens or words.

    Examples:
        >>> figure, axes = plot_tokens(ex.words())
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['Tom', 'sells', 'a', 'small', 'picture', '.']
    """
    from spes_hf.viz import figures

    return figures.plot_tokens(explanation)


def write_html(explanation: Explanation, path: str | Path, heard: HeardBack | None = None) -> Path:
    """Write one self-contained interactive page, and return its path.

    The page contains maps, spectrogram and audio, and loads nothing else. ``#token=5``, ``#word=3`` or ``#sentence`` at
    the end of its address opens it there.

    Args:
        explanation: An explanation over tokens or words; the page has both, and opens with the given one.
        path: File to write; missing parent folders are created.
        heard: What the model writes for parts of the sound (`spes_hf.listen_back`), to show with it.

    Examples:
        >>> page = write_html(ex, folder / "page.html")
        >>> "<title>Tom sells a small picture." in page.read_text(encoding="utf-8")
        True
    """
    from spes_hf.viz import report

    return report.write_html(explanation, Path(path), heard)


def write_diagnosis_html(diagnosis: Diagnosis, path: str | Path) -> Path:
    """Write one self-contained page with both texts and every error, and return its path.

    The page contains maps, spectrogram and audio, and loads nothing else. ``#error=2`` at the end of its address opens
    it at ``diagnosis.errors[2]``.

    Args:
        diagnosis: What went wrong; without an explanation, the page has neither maps nor sound.
        path: File to write; missing parent folders are created.

    Examples:
        >>> page = write_diagnosis_html(diagnosis_of(diagnosed), folder / "diagnosis.html")
        >>> '"pitcher"' in page.read_text(encoding="utf-8")
        True
    """
    from spes_hf.viz import diagnosis_page

    return diagnosis_page.write_html(diagnosis, Path(path))


def sound_html(sound: Sound) -> str:
    """Return a sound's view in a notebook: a player, as an HTML fragment.

    Args:
        sound: What `Explanation.listen` returned.

    Examples:
        >>> "<audio" in sound_html(ex.listen(top=0.2))
        True
    """
    from spes_hf.viz import report

    return report.sound_html(sound)


def plot_comparison(comparison: Comparison, token: int | str | None = None) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of two explanations' maps on one scale and one grid, and its four axes.

    From top to bottom: the first map, the second, first minus second, and both summed over mel bins, which is what
    `Comparison.agreement` compares. Maps are in standard deviations.

    Args:
        comparison: Result of `compare`.
        token: Index of the pair of words, or a word that occurs in one pair; None: the whole sentence.

    Raises:
        IndexError: If the index is out of range.
        KeyError: If the word does not occur, or occurs in more than one pair.

    Examples:
        >>> comparison = compare(ex, ex, names=("once", "again"))
        >>> figure, axes = plot_comparison(comparison, "picture")
        >>> len(axes), axes[0].images[0].get_array().shape == ex.features.T.shape
        (4, True)
    """
    from spes_hf.viz import comparison_figure

    return comparison_figure.plot_comparison(comparison, token)


def write_comparison_html(comparison: Comparison, path: str | Path) -> Path:
    """Write one self-contained page with both texts, and both maps of every word, and return its path.

    The page contains maps, spectrograms and audio, and loads nothing else. ``#pair=2`` at the end of its address opens
    it at ``comparison.pairs[2]``.

    Args:
        comparison: Result of `compare`.
        path: File to write; missing parent folders are created.

    Examples:
        >>> page = write_comparison_html(compare(ex, ex, names=("once", "again")), folder / "comparison.html")
        >>> "<title>Comparison: Tom sells a small picture." in page.read_text(encoding="utf-8")
        True
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
        explanation: An explanation over tokens or words.
        heard: What the model writes for parts of the sound (`spes_hf.listen_back`), to show with the player. The
            switch then plays these parts; without it, the top 20 % and the rest.

    Examples:
        >>> notebook_html(ex).count("<bdi ")  # five words and a full stop
        6
    """
    from spes_hf.viz import notebook

    return notebook.notebook_html(explanation, heard)

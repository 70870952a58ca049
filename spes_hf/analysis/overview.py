"""One utterance on one page: which sound spoke for each token (Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spes_hf.analysis import drawing
from spes_hf.checks import check_count
from spes_hf.explanation import Explanation
from spes_hf.viz import scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_overview(explanation: Explanation, longest: int = 40) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of the maps of all tokens (or words), one below the other, and its axes (Fig. 3, upper part).

    The lower part of the paper's figure is `Explanation.plot_tokens`. `Explanation.plot_overview` puts all words
    against time in one picture.

    Args:
        explanation: An explanation over tokens or words.
        longest: Maximum number of tokens to draw, from the first.

    Examples:
        >>> figure, axes = plot_overview(ex.words())
        >>> [ax.get_ylabel() for ax in axes]
        ['Tom', 'sells', 'a', 'small', 'picture', '.']
    """
    from spes_hf.viz.figures import draw_overlay

    count = min(len(explanation), check_count("longest", longest))
    start, end = scale.time_extent(explanation.times)
    figure = drawing.new_figure(min(14.0, max(6.0, 2.5 + 0.9 * (end - start))), 1.0 + 0.62 * max(count, 1))
    axes = list(figure.subplots(max(count, 1), 1, sharex=True, sharey=True, squeeze=False)[:, 0])
    tokens = explanation.tokens
    for k, ax in enumerate(axes[:count]):
        draw_overlay(ax, explanation, explanation.evidence(k))
        label = ax.set_ylabel(scale.shown(tokens[k], 16), rotation=0, ha="right", va="center", fontsize=10)
        drawing.take_literally(label)
        ticks = [(hz, at) for hz, at in scale.frequency_ticks(explanation.frequencies) if hz in (500, 4000)]
        ax.set_yticks([at for _, at in ticks], [f"{hz:g} Hz" for hz, _ in ticks], fontsize=6)
        ax.yaxis.tick_right()
        ax.tick_params(length=2)
    if not count:
        drawing.say(axes[0], "no token was explained")
    else:
        axes[-1].set_xlabel("time (s)")
    kind = "word" if explanation.over_words else "token"
    left_out = f" (the first {count} of {len(explanation)})" if count < len(explanation) else ""
    title = figure.suptitle(
        f"the sound that spoke for each {kind} of “{scale.shown(explanation.text, 70)}”{left_out}", fontsize=11
    )
    drawing.take_literally(title)
    return figure, axes

"""Which earlier tokens matter: the first, the latest, or those between? (§8.3, Fig. 11)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from spes_hf.analysis import drawing
from spes_hf.analysis.corpus import named
from spes_hf.analysis.stats import TOO_FEW, Test, independent_test, paired_test, to_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


POSITIONS = ("latest", "start", "intermediate")
"""Positions in the order that the paper found, the highest mean first."""


@dataclass(frozen=True, eq=False)
class Positional:
    """Saliency of earlier tokens by their position.

    Attributes:
        values: Position → saliencies in [0, 1]. "start": the start-of-sentence token; "latest": the token right before
            the explained one; "intermediate": tokens that the model wrote before the latest; "prompt": other tokens
            that the model was given (language, task, what was said before), if any.
        tests: Two positions, the higher mean first → two-sided Welch's t-test of their values. The paper uses
            Student's t-test, which assumes equal variances.
        paired_tests: Two positions → paired t-test over explained tokens that have all positions; intermediate tokens
            count by their mean.
        order: Positions in descending order of mean.
        n: Number of explained tokens, without the first of each utterance, which has no text before it.

    Examples:
        >>> {name: len(values) for name, values in positional(ex).values.items()}
        {'latest': 6, 'start': 6, 'intermediate': 15}
    """

    values: dict[str, np.ndarray]
    tests: dict[tuple[str, str], Test]
    paired_tests: dict[tuple[str, str], Test]
    order: tuple[str, ...]
    n: int

    @property
    def as_in_the_paper(self) -> bool:
        """Whether the means are in the order latest > start > intermediate."""
        return tuple(name for name in self.order if name in POSITIONS) == POSITIONS

    def to_dict(self) -> dict[str, Any]:
        """Return counts, means, quartiles, histograms and tests, ready for JSON."""
        edges = np.linspace(0, 1, 21)
        groups = {
            name: {
                "n": len(values),
                "mean": values.mean() if len(values) else float("nan"),
                "standard_deviation": values.std(ddof=1) if len(values) > 1 else float("nan"),
                "quartiles": np.quantile(values, (0.25, 0.5, 0.75)) if len(values) else [],
                "histogram": np.histogram(values, edges)[0],
                "note": f"{TOO_FEW}: a group of {len(values)}" if len(values) < 2 else "",
            }
            for name, values in self.values.items()
        }
        return to_json(
            {
                "positions": groups,
                "histogram_edges": edges,
                "order": self.order,
                "as_in_the_paper": self.as_in_the_paper,
                "tests": self.tests,
                "paired_tests": self.paired_tests,
                "n": self.n,
            }
        )

    def __str__(self) -> str:
        means = " > ".join(f"{name} {self.values[name].mean():.3f} ({len(self.values[name])}×)" for name in self.order)
        told = "as in the paper" if self.as_in_the_paper else "not as in the paper (latest > start > intermediate)"
        lines = [f"positional saliency, {self.n} explained tokens: {means or 'none'}; {told}"]
        lines += [f"  {a} against {b}: {test}" for (a, b), test in self.tests.items()]
        lines += [f"  {a} against {b}, within tokens: {test}" for (a, b), test in self.paired_tests.items()]
        return "\n".join(lines)

    def plot(self) -> tuple[Figure, Axes]:
        """Return a figure of the distributions, and its axes (Fig. 11)."""
        figure = drawing.new_figure(7.0, 3.6)
        ax = figure.subplots()
        edges = np.linspace(0, 1, 26)
        drawn = [name for name in (*POSITIONS, "prompt") if len(self.values.get(name, ()))]
        for index, name in enumerate(drawn):
            values, colour = self.values[name], drawing.COLOURS[index]
            share = np.histogram(values, edges)[0] / len(values) * 100
            ax.stairs(share, edges, color=colour, linestyle=drawing.DASHES[index], linewidth=1.8,
                      label=f"{name}: mean {values.mean():.2f} ({len(values)}×)")  # fmt: skip
            ax.plot(values.mean(), 0, "^", color=colour, markersize=9, markeredgecolor="black", clip_on=False, zorder=5)
        if not drawn:
            drawing.say(ax, f"{TOO_FEW}: no token has text before it")
            return figure, ax
        ax.set_xlim(0, 1)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("saliency of an earlier token")
        ax.set_ylabel("share of the tokens\nat that position (%)")
        ax.set_title("triangles: means", loc="right", fontsize=8, color="0.35")
        ax.legend(frameon=False, fontsize=9)
        drawing.tidy(ax)
        return figure, ax


def positional(explanations: Any) -> Positional:
    """Return how salient the start token, the latest token and the tokens between them are (§8.3).

    Args:
        explanations: Explanations, folders of saved ones, or rows that have one; or a folder of saved ones.

    Raises:
        ConfigError: If there are no explanations.

    Examples:
        >>> found = positional(ex)
        >>> bool(found.values["latest"].mean() > found.values["start"].mean())
        True
        >>> float(found.values["latest"][0]) == float(ex.token_saliency[1, 1])
        True
    """
    values: dict[str, list[float]] = {name: [] for name in (*POSITIONS, "prompt")}
    together: list[tuple[float, float, float]] = []
    n = 0
    for item in named(explanations):
        prefix, start = item.explanation.prefix_length, item.explanation.origin.start
        saliency = item.explanation.token_saliency.double().numpy()
        for row, before in zip(saliency, item.explanation.starts, strict=True):
            if not before:
                continue
            latest = prefix + before - 1
            n += 1
            between = row[prefix:latest]
            values["latest"].append(float(row[latest]))
            values["intermediate"] += between.tolist()
            if prefix:
                values["start"].append(float(row[start]))
                values["prompt"] += np.delete(row[:prefix], start).tolist()
            if prefix and len(between):
                together.append((float(row[latest]), float(row[start]), float(between.mean())))
    arrays = {name: np.array(found, dtype=np.float64) for name, found in values.items() if found or name != "prompt"}
    order = sorted((name for name, found in arrays.items() if len(found)), key=lambda name: -arrays[name].mean())
    columns = dict(zip(POSITIONS, np.array(together).reshape(-1, 3).T, strict=True))
    missing = [name for name in POSITIONS if name not in order]
    return Positional(
        values=arrays,
        tests={
            (a, b): independent_test(arrays[a], arrays[b], "two-sided")
            for a, b in combinations([*(name for name in order if name in POSITIONS), *missing], 2)
        },
        paired_tests={
            (a, b): paired_test(columns[a], columns[b], "two-sided")
            for a, b in combinations([*(name for name in order if name in POSITIONS), *missing], 2)
        },
        order=tuple(order),
        n=n,
    )

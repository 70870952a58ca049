"""Which tokens are explained by an earlier token that is not the latest, and by which? (§8.3, Table 10)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from spes_hf.analysis import drawing
from spes_hf.analysis.corpus import named, token_label, written_label
from spes_hf.analysis.stats import TOO_FEW, to_json
from spes_hf.checks import check_count
from spes_hf.explanation import Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_SHARE = 0.25


@dataclass(frozen=True)
class IntermediateType:
    """How often an intermediate token is the one that explains a token type most.

    Attributes:
        token: The token type.
        n: Number of occurrences.
        hits: Number of occurrences in which an intermediate token has the highest saliency of the token map.
        share: Hits over occurrences.
        by: Which intermediate tokens these are, and how often, the most frequent first.
    """

    token: str
    n: int
    hits: int
    share: float
    by: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class IntermediateTokens:
    """How often an intermediate token is the one that explains a token most, by token type.

    Attributes:
        types: Token types that occur often enough, in descending order of share.
        rare: Number of types left out because they are too rare.
        min_count: Minimum number of occurrences of a type.
        n: Number of explained tokens.
        note: "too few: …" if no type occurs often enough; otherwise empty.

    Examples:
        >>> intermediate_tokens(ex, min_count=1).of("small")
        IntermediateType(token='small', n=1, hits=1, share=1.0, by=(('Tom', 1),))
    """

    types: tuple[IntermediateType, ...]
    rare: int
    min_count: int
    n: int
    note: str = ""

    def of(self, token: str) -> IntermediateType | None:
        """Return the numbers of one token type, or None if it does not occur often enough."""
        return next((t for t in self.types if t.token == token), None)

    def table(self, min_share: float = MIN_SHARE, top: int = 2) -> list[dict[str, Any]]:
        """Return the rows of the paper's Table 10: types of at least that share, and their most frequent tokens.

        Args:
            min_share: Lowest share of the occurrences, in [0, 1].
            top: Maximum number of intermediate tokens to name.
        """
        return [
            {"token": t.token, "n": t.n, "percent": 100 * t.share, "by": [list(entry) for entry in t.by[:top]]}
            for t in self.types
            if t.share >= min_share and t.hits
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return to_json({**to_json(self), "table": self.table()})

    def __str__(self) -> str:
        lines = [f"intermediate tokens on top, {len(self.types)} token types of at least {self.min_count}"]
        for row in self.table():
            named_by = ", ".join(f"{token!r} [{count}]" for token, count in row["by"])
            lines.append(f"  {row['token']!r}: {row['percent']:.1f} % of {row['n']}, by {named_by}")
        return "\n".join(lines if len(lines) > 1 else [*lines, f"  {self.note or 'none in 25 % of its occurrences'}"])

    def plot(self, min_share: float = MIN_SHARE, longest: int = 20) -> tuple[Figure, Axes]:
        """Return a figure of the rows of the table as bars, and its axes.

        Args:
            min_share: Lowest share of the occurrences, in [0, 1].
            longest: Maximum number of rows to draw.
        """
        rows = self.table(min_share)[:longest]
        figure = drawing.new_figure(7.2, max(2.2, 1.1 + 0.32 * len(rows)))
        ax = figure.subplots()
        if not rows:
            drawing.say(
                ax, self.note or f"no token type has an intermediate token on top in {min_share:.0%} of its cases"
            )
            return figure, ax
        drawing.bars(ax, [r["token"] for r in rows], [r["percent"] for r in rows], [r["n"] for r in rows])
        for y, row in enumerate(rows):
            by = ", ".join(f"{token} [{count}]" for token, count in row["by"])
            inside = row["percent"] > 55
            text = ax.text(
                row["percent"] + (-1 if inside else 1),
                y,
                by,
                va="center",
                ha="right" if inside else "left",
                color="white" if inside else "black",
                fontsize=9,
            )
            drawing.take_literally(text)
        ax.set_xlim(0, 100)
        ax.set_xlabel("occurrences in which an intermediate token has the highest saliency (%)")
        ax.set_title("in or next to the bars: which one [how often]", loc="left", fontsize=9)
        return figure, ax


def intermediate_tokens(explanations: Any, *, min_count: int = 3) -> IntermediateTokens:
    """Return how often an intermediate token has the highest saliency of the token map, by token type (§8.3).

    An intermediate token is one that the model wrote earlier, except the latest. Ties do not count.

    Args:
        explanations: Explanations, folders of saved ones, or rows that have one; or a folder of saved ones.
        min_count: Minimum number of occurrences of a token type; 100 in the paper.

    Raises:
        ConfigError: If ``min_count`` is below 1, or there are no explanations.

    Examples:
        >>> found = intermediate_tokens([ex, ex], min_count=2)
        >>> found.n, found.of("small").by
        (14, (('Tom', 2),))
    """
    check_count("min_count", min_count)
    counts: Counter[str] = Counter()
    by: dict[str, Counter[str]] = {}
    for item in named(explanations):
        for k, j in enumerate(tops(item.explanation)):
            token = token_label(item.explanation, k)
            counts[token] += 1
            if j is not None:
                by.setdefault(token, Counter())[written_label(item.explanation, j)] += 1
    types = []
    for token, n in counts.items():
        found = by.get(token, Counter())
        if n >= min_count:
            types.append(IntermediateType(token, n, found.total(), found.total() / n, tuple(found.most_common())))
    return IntermediateTokens(
        types=tuple(sorted(types, key=lambda t: (-t.share, -t.n))),
        rare=len(counts) - len(types),
        min_count=min_count,
        n=counts.total(),
        note="" if types else f"{TOO_FEW}: no token type occurs {min_count} times; explain more, or lower min_count",
    )


def tops(explanation: Explanation) -> list[int | None]:
    """Return for every explained token the index of the intermediate token with the highest saliency, or None.

    Args:
        explanation: An explanation over tokens.
    """
    saliency, prefix = explanation.token_saliency, explanation.prefix_length
    found: list[int | None] = []
    for row, before in zip(saliency, explanation.starts, strict=True):
        row = row[: prefix + before]
        best = torch.nonzero(row == row.max()).flatten().tolist() if len(row) else []
        between = len(best) == 1 and prefix <= best[0] < prefix + before - 1
        found.append(best[0] - prefix if between else None)
    return found

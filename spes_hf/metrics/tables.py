"""Corpus scores of several methods as a table, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spes_hf.metrics.score import Score

# Scores that a table shows for a method: name of the score, heading.
COLUMNS = (
    ("deletion", "deletion, {metric}"),
    ("insertion", "insertion, {metric}"),
    ("deletion_probability_first", "probability left, first 20 % deleted"),
    ("deletion_probability", "probability, deletion"),
    ("insertion_probability", "probability, insertion"),
    ("word_deletion", "a word's probability, its first 5 % deleted"),
    ("word_specificity", "probability left to other words"),
    ("word_margin", "other words minus the word"),
    ("word_insertion", "a word's probability, insertion"),
    ("size_audio", "size, audio"),
    ("size_token", "size, tokens"),
)


def table_of(
    scores: Mapping[str, Mapping[str, Score]],
    metric: str,
    columns: Sequence[tuple[str, str]] = COLUMNS,
    further: Mapping[str, Mapping[str, str]] | None = None,
    intervals: bool = True,
) -> list[str]:
    """Return the lines of a Markdown table of scores, one row per method; the best value of every column is bold.

    Args:
        scores: Method's name → its scores, as `summarize` returns them.
        metric: Name of the quality of texts.
        columns: Scores to show, and their headings.
        further: Heading → method's name → cell, for columns after the scores.
        intervals: Whether to show the intervals, which are meaningless for a single utterance.
    """
    further = {} if further is None else further
    first = next(iter(scores.values()))
    shown = [(key, heading) for key, heading in columns if key in first]
    best = {}
    for key, _ in shown:
        values = {name: found[key].value for name, found in scores.items()}
        best[key] = (max if first[key].higher_is_better else min)(values, key=values.__getitem__)
    heads = [f"{h.format(metric=metric)} {'↑' if first[key].higher_is_better else '↓'}" for key, h in shown]
    heads += list(further)
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, found in scores.items():
        cells = []
        for key, _ in shown:
            value = f"{found[key].value:.1f}"
            cells.append(f"**{value}**" if best[key] == name else value)
            cells[-1] += f" {brief(found[key])}" if intervals else ""
        cells += [column[name] for column in further.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def brief(score: Score) -> str:
    """Return an interval for a narrow cell."""
    return f"[{score.interval.low:.1f}, {score.interval.high:.1f}]"


def score_to_json(score: Score) -> dict[str, Any]:
    """Return a score in a form that JSON can represent."""
    return {
        "value": score.value,
        "interval": [score.interval.low, score.interval.high],
        "higher_is_better": score.higher_is_better,
        "signature": score.signature,
        "curve": None if score.curve is None else {"x": score.curve.x.tolist(), "y": score.curve.y.tolist()},
    }

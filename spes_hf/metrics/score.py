"""A corpus score: value, interval, curve, and one line that says how to reproduce it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from spes_hf.errors import ConfigError
from spes_hf.metrics import bootstrap
from spes_hf.metrics.bootstrap import Comparison, Interval, ScoreFunction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BANDS = 4  # with more methods than this, intervals would hide the curves
_MARKERS = "osD^vP*X<>h"
# Alternately dark and light (after Okabe and Ito), so that neighbours differ even without colour.
_COLORS = ("#000000", "#d55e00", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#7f7f7f")


@dataclass(frozen=True, eq=False)
class Curve:
    """A score against a fraction of features, or a threshold.

    Attributes:
        x: (S,) in [0, 1].
        y: (S,) in 0–100.
        low: (S,) lower end of the interval of every point.
        high: (S,) upper end.
        x_label: Label of x.
        y_label: Label of y.

    Examples:
        >>> curve = summarize([Size()({"explanation": ex})])["size_audio"].curve
        >>> curve.x_label, float(curve.y[0]), bool((np.diff(curve.y) <= 0).all())
        ('saliency threshold', 100.0, True)
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    x_label: str
    y_label: str


@dataclass(frozen=True, eq=False)
class Score:
    """A corpus score.

    Attributes:
        name: Name of the score, such as "deletion".
        value: In 0–100.
        interval: Percentile bootstrap interval over utterances.
        higher_is_better: Whether a better explanation scores higher.
        signature: How to reproduce the number: method, masks, fill, reference, versions.
        num_utterances: Number of utterances in the score.
        curve: The curve, if the value is the area under one; else None.
        statistics: (U, S, D) additive counts of every utterance at every point.
        score_points: Computes scores, (…, S), from summed counts, (…, S, D).
        utterances: Identity of the utterances; scores on the same utterances can be compared.

    Examples:
        >>> print(summarize([Size()({"explanation": ex})])["size_audio"])
        size_audio = ... [..., ...] (lower is better) spes|masks:8+100|...|utterances:1|...
    """

    name: str
    value: float
    interval: Interval
    higher_is_better: bool
    signature: str
    num_utterances: int
    curve: Curve | None = None
    statistics: np.ndarray = field(repr=False, default_factory=lambda: np.empty(0))
    score_points: ScoreFunction = field(repr=False, default=lambda sums: sums[..., 0])
    utterances: str = field(repr=False, default="")

    def __str__(self) -> str:
        better = "higher" if self.higher_is_better else "lower"
        return f"{self.name} = {self.value:.2f} {self.interval} ({better} is better) {self.signature}"

    @property
    def points(self) -> list[float]:
        """The curve's y values, or only the value if there is no curve."""
        return [self.value] if self.curve is None else self.curve.y.tolist()

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        """Return the values, (B,), for summed counts, (B, S, D)."""
        points = self.score_points(sums)
        return points[..., 0] if self.curve is None else area(points, self.curve.x)


def area(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the area under y(x) by the trapezoidal rule, divided by the range of x: in 0–100 if y is.

    Args:
        y: (…, S).
        x: (S,) increasing.
    """
    return torch.trapezoid(torch.from_numpy(np.array(y)), torch.from_numpy(np.array(x))).numpy() / (x[-1] - x[0])


def mean_points(sums: np.ndarray) -> np.ndarray:
    """Return means over utterances, (…, S), from sums of values and of ones, (…, S, 2)."""
    return sums[..., 0] / sums[..., 1]


def with_ones(values: np.ndarray) -> np.ndarray:
    """Return statistics for `mean_points`, (U, S, 2), from the values of every utterance, (U, S)."""
    return np.stack([values, np.ones_like(values)], axis=-1)


def make_score(
    name: str,
    statistics: np.ndarray,
    score_points: ScoreFunction,
    *,
    higher_is_better: bool,
    signature: str,
    utterances: str,
    x: Sequence[float] | None = None,
    labels: tuple[str, str] = ("", ""),
    samples: int = bootstrap.SAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Score:
    """Return the score of a corpus with its bootstrap interval.

    Args:
        name: Name of the score.
        statistics: (U, S, D) counts of every utterance at every point.
        score_points: Computes scores, (…, S), from summed counts, (…, S, D).
        higher_is_better: Whether a better explanation scores higher.
        signature: How to reproduce the number.
        utterances: Identity of the utterances.
        x: (S,) positions of the points; the value is then the area under the curve. None: the value is the only point.
        labels: Labels of x and y.
        samples: Number of corpora to draw for the interval.
        confidence: Confidence of the interval.
        seed: Same seed, same interval.
    """
    points = score_points(statistics.sum(0))
    drawn = score_points(bootstrap.resample(statistics, samples, seed))
    curve = None
    value, values = points[0], drawn[:, 0]
    if x is not None:
        at = np.asarray(x, dtype=np.float64)
        low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        curve = Curve(at, points, low, high, *labels)
        value, values = area(points, at), area(drawn, at)
    return Score(
        name=name,
        value=float(value),
        interval=bootstrap.percentile_interval(values, confidence),
        higher_is_better=higher_is_better,
        signature=f"{signature}|utterances:{len(statistics)}|bs:{samples}|bs-seed:{seed}",
        num_utterances=len(statistics),
        curve=curve,
        statistics=statistics,
        score_points=score_points,
        utterances=utterances,
    )


def compare(
    first: Score, second: Score, samples: int = bootstrap.SAMPLES, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Return how the scores of two methods on the same utterances differ, from a paired bootstrap test.

    Args:
        first: Score of the first method.
        second: The same score of the second method.
        samples: Number of corpora to draw.
        confidence: Confidence of the interval of the difference.
        seed: Same seed, same result.

    Raises:
        ConfigError: If the two are not the same score of the same utterances.

    Examples:
        >>> energy = explain(model, processor, clip, config=EnergyConfig())
        >>> first, second = (summarize([Size()({"explanation": of})])["size_audio"] for of in (ex, energy))
        >>> round(compare(first, second).difference - (first.value - second.value), 6)
        0.0
    """
    if first.name != second.name:
        raise ConfigError(f"first is a {first.name} score, but second is a {second.name} score; pass two of one name")
    if first.utterances != second.utterances or first.num_utterances != second.num_utterances:
        raise ConfigError(
            f"first ({first.num_utterances} utterances) and second ({second.num_utterances}) are not scores of the "
            "same utterances in the same order; score both methods on the same rows and references"
        )
    points = [None if s.curve is None else s.curve.x.tolist() for s in (first, second)]
    if points[0] != points[1]:
        raise ConfigError(f"first has points at {points[0]}, second at {points[1]}; score both at the same fractions")
    return bootstrap.paired_bootstrap(first.statistics, second.statistics, first.of_sums, samples, confidence, seed)


def plot_curves(scores: Mapping[str, Score] | Sequence[Score]) -> tuple[Figure, Axes]:
    """Return a figure of the curves of one score for several methods (Fig. 5 and 6); for up to four, with intervals.

    Args:
        scores: Method's name → score; or scores alone.

    Raises:
        ConfigError: If there are no scores, or one has no curve.

    Examples:
        >>> score = summarize([Size()({"explanation": ex})])["size_audio"]
        >>> figure, axes = plot_curves({"SPES": score})
        >>> axes.lines[0].get_label() == f"SPES ({score.value:.1f})"
        True
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from spes_hf.viz import fonts

    named = scores if isinstance(scores, Mapping) else {s.signature.split("|")[0]: s for s in scores}
    if not named:
        raise ConfigError("scores is empty; pass a score for each method, as summarize() returns them")
    figure = Figure(figsize=(7.5, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    best_first = sorted(
        named.items(), key=lambda item: item[1].value, reverse=next(iter(named.values())).higher_is_better
    )
    for i, (label, score) in enumerate(best_first):
        curve = score.curve
        if curve is None:
            raise ConfigError(
                f"scores[{label!r}] is {score.name}, which has no curve; pass deletion, insertion or size"
            )
        # Markers and dashes distinguish the methods in greyscale too.
        (line,) = axes.plot(
            100 * curve.x,
            curve.y,
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=4,
            linestyle=("-", "--", ":")[i % 3],
            linewidth=1.2,
            color=_COLORS[i % len(_COLORS)],
            label=_wrapped(f"{label} ({score.value:.1f})"),
        )
        if len(named) <= _BANDS:
            axes.fill_between(100 * curve.x, curve.low, curve.high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_xlabel(f"{curve.x_label} (%)")
        axes.set_ylabel(curve.y_label)
    axes.set_ylim(-2, 102)
    legend = figure.legend(title="area under the curve,\nbest first", loc="outside right upper", frameon=False)
    fonts.fit(legend.get_texts())
    return figure, axes


def _wrapped(label: str, width: int = 32) -> str:
    """Return a label wrapped so that it leaves room for the curves; names of methods with many settings are long."""
    return re.sub(rf".{{1,{width}}}(?:(?<=[,: ])|$)", lambda part: part[0].strip() + "\n", label).strip()

"""Does the map of a word lie where the word is spoken? (§8.1, time dimension)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from spes_hf.analysis import drawing
from spes_hf.analysis.alignments import Alignments
from spes_hf.analysis.corpus import Aligned, Skipped
from spes_hf.analysis.matching import Spoken
from spes_hf.analysis.stats import Test, paired_test, to_json
from spes_hf.checks import check_share
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation, PatchMap
from spes_hf.masking.segments import feature_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAPS = ("saliency", "energy", "random")
TOLERANCE_S = 0.2


@dataclass(frozen=True)
class WordTime:
    """Where one word's map lies in time. The "curve" is the map's maximum over frequency, per frame.

    Attributes:
        utterance: Name of the utterance.
        index: Index of the word in ``explanation.words()``.
        word: The word.
        start: When it begins, in seconds.
        end: When it ends, in seconds.
        inside: Mean of the curve over the frames of the word.
        outside: Mean of the curve over all other frames.
        contrast: Inside minus outside, in standard deviations of the curve over all frames. It has no scale, so
            different maps can be compared.
        mass: Share of the area under the curve, above its minimum, that lies inside.
        duration_share: Share of the frames that belong to the word: the mass of an uninformative map.
        centroid: Mean time of the top 5 % of the features, in seconds.
        hit: Whether the centroid lies in the word, within the tolerance.
    """

    utterance: str
    index: int
    word: str
    start: float
    end: float
    inside: float
    outside: float
    contrast: float
    mass: float
    duration_share: float
    centroid: float
    hit: bool


@dataclass(frozen=True)
class MapInTime:
    """Where one kind of map lies in time, over all words.

    Attributes:
        words: Every word.
        inside: Mean over words of the mean inside.
        outside: Mean over words of the mean outside.
        contrast: Mean contrast over words.
        mass: Mean share of the mass inside.
        duration_share: Mean share of the frames inside.
        hits: Share of the words whose centroid lies in them, within the tolerance.
        test: Paired t-test over words: inside greater than outside (§8.1).
        utterance_test: The same over the means of utterances, since words of one utterance are not independent.
    """

    words: tuple[WordTime, ...] = field(repr=False)
    inside: float
    outside: float
    contrast: float
    mass: float
    duration_share: float
    hits: float
    test: Test
    utterance_test: Test

    def values(self, name: str) -> np.ndarray:
        """Return one number of every word, such as "contrast", as (n,)."""
        return np.array([getattr(word, name) for word in self.words], dtype=np.float64)


@dataclass(frozen=True)
class TimeLocalization:
    """Whether the maps of words lie where the words are spoken.

    Attributes:
        maps: Kind of map → where it lies in time: "saliency", and the controls "energy" (the spectrogram itself, the
            same for every word) and "random".
        against: Control → paired t-test over words: is the contrast of the first map greater than the control's?
        n: Number of words.
        utterances: Number of utterances that they come from.
        unmatched: Per utterance, words that were not found in its alignment.
        skipped: Utterances that were left out, and why.
        too_short: Number of words left out because they cover no frame, or all frames.
        tolerance_s: How far outside the word a centroid may lie, in seconds.

    Examples:
        >>> found = time_localization([ex], lambda explanation: alignment)
        >>> [word.word for word in found.maps["saliency"].words]
        ['tom', 'sells', 'a', 'small', 'picture']
        >>> found.maps["saliency"].contrast > found.maps["random"].contrast
        True
    """

    maps: dict[str, MapInTime]
    against: dict[str, Test]
    n: int
    utterances: int
    unmatched: dict[str, tuple[str, ...]]
    skipped: tuple[Skipped, ...]
    too_short: int
    tolerance_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        result = to_json(self)
        for name, found in self.maps.items():
            result["maps"][name]["words"] = to_json(found.words)
        return result

    def __str__(self) -> str:
        lines = [f"time localisation of {self.n} words in {self.utterances} utterances"]
        for name, found in self.maps.items():
            lines.append(
                f"  {name:>9}: inside {found.inside:.3f}, outside {found.outside:.3f}, contrast {found.contrast:.2f}, "
                f"mass inside {found.mass:.1%} (by duration {found.duration_share:.1%}), hits {found.hits:.0%}; "
                f"{found.test}"
            )
        lines += [f"  contrast against {name}: {test}" for name, test in self.against.items()]
        return "\n".join(lines)

    def plot(self) -> tuple[Figure, Sequence[Axes]]:
        """Return a figure, and its two axes: each map's contrast over the words, and where the centroids lie."""
        figure = drawing.new_figure(10.0, 4.2)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
        names = list(self.maps)
        values = [self.maps[name].values("contrast") for name in names]
        boxes = left.boxplot(
            [v[np.isfinite(v)] for v in values],
            widths=0.55,
            patch_artist=True,
            medianprops={"color": "black", "linewidth": 1.5},
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "0.5"},
        )
        for box, colour in zip(boxes["boxes"], drawing.COLOURS, strict=False):
            box.set(facecolor=colour, alpha=0.75)
        left.set_xticks(range(1, len(names) + 1), [f"{n}\n({self.maps[n].hits:.0%} hits)" for n in names])
        left.axhline(0, color="0.3", linewidth=0.8)
        left.set_ylabel("inside minus outside the word\n(standard deviations of the map's curve)")
        left.set_title(f"{self.n} words, {self.utterances} utterances", loc="left", fontsize=9)
        drawing.tidy(left)
        first = self.maps[names[0]]
        start, end = first.values("start"), first.values("end")
        order = np.argsort((start + end) / 2)
        right.vlines(((start + end) / 2)[order], start[order], end[order], color=drawing.LIGHT, linewidth=4,
                     label="the word's interval")  # fmt: skip
        hit = first.values("hit").astype(bool)
        middle, centroid = (start + end) / 2, first.values("centroid")
        for mask, marker, colour, label in (
            (hit, "o", drawing.DARK, f"centroid within {self.tolerance_s:g} s ({hit.mean():.0%})"),
            (~hit, "x", drawing.MIDDLE, "centroid elsewhere"),
        ):
            right.scatter(middle[mask], centroid[mask], s=16, marker=marker, color=colour, label=label, zorder=3)
        right.set_xlabel("middle of the spoken word (s)")
        right.set_ylabel(f"time centroid of its {names[0]} map (s)")
        right.legend(fontsize=8, frameon=False, loc="upper left")
        right.set_title("where each word's map lies", loc="left", fontsize=9)
        drawing.tidy(right)
        return figure, [left, right]


def time_localization(
    explanations: Any,
    alignments: Alignments,
    maps: Sequence[str] = MAPS,
    *,
    top: float = 0.05,
    tolerance_s: float = TOLERANCE_S,
    missing: Literal["raise", "skip"] = "raise",
    seed: int = 0,
) -> TimeLocalization:
    """Return whether the maps of words lie where the words are spoken (§8.1).

    A word's map is the mean over its tokens. Its maximum over frequency is a curve over time. A paired t-test over
    words compares the curve's mean inside the word's interval with its mean outside. Controls are treated the same way.

    Args:
        explanations: Explanations, folders of saved ones, or rows that have one; or a folder of saved ones.
        alignments: When each word was spoken: a folder of JSON or TextGrid files named after the utterances, a mapping
            of names to alignments, or a function that makes them (`align_explanation`).
        maps: Kinds of maps; the first is tested against the others.
        top: Share of the features that count for the centroid.
        tolerance_s: How far outside the word a centroid may lie to count as a hit, in seconds.
        missing: What to do if an utterance has no alignment: "raise" or "skip".
        seed: Seed of the random map.

    Raises:
        AlignmentError: If an alignment is missing, or no word matches.
        ConfigError: If an argument has a value that is not allowed.

    Examples:
        >>> found = time_localization([ex], {"tst-COMMON-0005": alignment}, maps=["saliency"])
        >>> found.n, f"{found.maps['saliency'].hits:.0%}"
        (5, '100%')
    """
    unknown = [name for name in maps if name not in MAPS]
    if unknown or not maps or isinstance(maps, str) or len(set(maps)) < len(maps):
        raise ConfigError(f"maps is {maps!r}; allowed: a list of one or more of {', '.join(MAPS)}, each at most once")
    check_share("top", top)
    aligned = Aligned(explanations, alignments, missing)
    found: dict[str, list[WordTime]] = {name: [] for name in maps}
    too_short, utterances = 0, 0
    for item, match in aligned:
        times = item.explanation.times.numpy()
        inside = [(times >= spoken.start) & (times < spoken.end) for spoken in match.spoken]
        usable = [i for i, frames in enumerate(inside) if frames.any() and not frames.all()]
        too_short += len(inside) - len(usable)
        utterances += bool(usable)
        for name in maps:
            words = with_map(item.explanation, name, seed).words()
            saliency, centroids = words.audio_saliency, words.time_centroids(top)
            for i in usable:
                spoken = match.spoken[i]
                curve = saliency[spoken.index].amax(1).double().numpy()
                centroid = float(centroids[spoken.index])
                found[name].append(_word_time(item.name, spoken, curve, inside[i], centroid, tolerance_s))
    results = {name: _summary(words) for name, words in found.items()}
    first = results[maps[0]].values("contrast")
    return TimeLocalization(
        maps=results,
        against={name: paired_test(first, results[name].values("contrast")) for name in maps[1:]},
        n=len(found[maps[0]]),
        utterances=utterances,
        unmatched=aligned.unmatched,
        skipped=tuple(aligned.skipped),
        too_short=too_short,
        tolerance_s=tolerance_s,
    )


def with_map(explanation: Explanation, name: str, seed: int = 0) -> Explanation:
    """Return the explanation with another map of the spectrogram instead of its own.

    Args:
        explanation: An explanation over tokens.
        name: "saliency" (its own), "energy" (the features, the same for every token) or "random" (uniform over [0, 1),
            different for every token).
        seed: Seed of the random map; utterances with different texts get different maps.
    """
    if name == "saliency":
        return explanation
    features, tokens = explanation.features, len(explanation)
    if name == "energy":
        scores = (features - features.min()).flatten().expand(tokens, -1)
    else:
        key = [seed, zlib.crc32(explanation.text.encode("utf-8", "surrogateescape")), features.numel()]
        scores = torch.from_numpy(np.random.default_rng(key).random((tokens, features.numel()), dtype=np.float32))
    audio = PatchMap(
        feature_labels(features).int(), (scores,), (torch.ones(features.numel(), dtype=torch.float32, device="cpu"),)
    )
    # Blank token maps, so that only the map of the spectrogram sets the scale.
    blank = explanation.raw_token_scores * 0
    return replace(explanation, audio_map=audio, raw_token_scores=blank, sentence_map=None)


def _word_time(
    utterance: str, spoken: Spoken, curve: np.ndarray, frames: np.ndarray, centroid: float, tolerance_s: float
) -> WordTime:
    inside, outside = float(curve[frames].mean()), float(curve[~frames].mean())
    deviation = float(curve.std())
    above = curve - curve.min()
    total = float(above.sum())
    return WordTime(
        utterance=utterance,
        index=spoken.index,
        word=spoken.text,
        start=spoken.start,
        end=spoken.end,
        inside=inside,
        outside=outside,
        contrast=(inside - outside) / deviation if deviation > 0 else 0.0,
        mass=float(above[frames].sum()) / total if total > 0 else float(frames.mean()),
        duration_share=float(frames.mean()),
        centroid=centroid,
        hit=spoken.start - tolerance_s <= centroid <= spoken.end + tolerance_s,
    )


def _summary(words: list[WordTime]) -> MapInTime:
    def values(name: str) -> np.ndarray:
        return np.array([getattr(word, name) for word in words], dtype=np.float64)

    def mean(name: str) -> float:
        return float(values(name).mean()) if words else float("nan")

    names = np.array([word.utterance for word in words])
    inside, outside = values("inside"), values("outside")
    each = [(inside[names == name].mean(), outside[names == name].mean()) for name in dict.fromkeys(names.tolist())]
    return MapInTime(
        words=tuple(words),
        inside=mean("inside"),
        outside=mean("outside"),
        contrast=mean("contrast"),
        mass=mean("mass"),
        duration_share=mean("duration_share"),
        hits=mean("hit"),
        test=paired_test(inside, outside),
        utterance_test=paired_test(np.array([i for i, _ in each]), np.array([o for _, o in each])),
    )

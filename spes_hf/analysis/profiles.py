"""At which frequencies does a word or a phone matter? (§8.1, frequency dimension, Fig. 7)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spes_hf.analysis import drawing
from spes_hf.analysis.alignments import AlignmentError, Alignments
from spes_hf.analysis.corpus import Aligned, Named, Skipped, abbreviate
from spes_hf.analysis.matching import sought_labels, stretches
from spes_hf.analysis.stats import (
    TOO_FEW,
    Permutation,
    Test,
    permutation_of_means,
    permutation_test,
    reach,
    to_json,
)
from spes_hf.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOW_HZ, HIGH_HZ = 1_000.0, 4_000.0


@dataclass(frozen=True, eq=False)
class Profile:
    """Saliency over frequency for one word, phone or set of them.

    Attributes:
        name: Name of the word, phone or set.
        group: Group of speakers; "" for all.
        frequencies: (C,) centres of the bins in Hz.
        values: (n, C) per occurrence, the maximum of the word's own map over the occurrence's frames, in [0, 1].
        where: Per occurrence, the utterance and the start time in seconds.

    Examples:
        >>> values = np.array([[1.0, 0.0], [0.5, 0.5]])  # two occurrences, two mel bins
        >>> so = Profile("so", "", np.array([500.0, 5000.0]), values, (("one", 0.2), ("two", 0.4)))
        >>> so.mean.tolist(), so.tilt.tolist()
        ([0.75, 0.25], [-1.0, 0.0])
    """

    name: str
    group: str
    frequencies: np.ndarray
    values: np.ndarray
    where: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """Name and group, as text."""
        return f"{self.name} ({self.group})" if self.group else self.name

    @property
    def n(self) -> int:
        """Number of occurrences."""
        return len(self.values)

    @property
    def mean(self) -> np.ndarray:
        """(C,) mean over occurrences; NaN if there are none."""
        return self.values.mean(0) if self.n else np.full(len(self.frequencies), np.nan)

    @property
    def standard_error(self) -> np.ndarray:
        """(C,) standard error of the mean; NaN for fewer than two occurrences."""
        if self.n < 2:
            return np.full(len(self.frequencies), np.nan)
        return self.values.std(0, ddof=1) / np.sqrt(self.n)

    def band(self, low_hz: float, high_hz: float) -> np.ndarray:
        """Return the mean of every occurrence over the bins from ``low_hz`` to before ``high_hz``, (n,).

        Raises:
            ConfigError: If the range holds no bin.
        """
        bins = (self.frequencies >= low_hz) & (self.frequencies < high_hz)
        if not bins.any():
            raise ConfigError(
                f"there is no bin from {low_hz:g} to {high_hz:g} Hz; bins reach from {self.frequencies[0]:.0f} to "
                f"{self.frequencies[-1]:.0f} Hz"
            )
        return self.values[:, bins].mean(1)

    @property
    def tilt(self) -> np.ndarray:
        """(n,) mean saliency above 4 kHz minus mean saliency below 1 kHz, for every occurrence."""
        return self.band(HIGH_HZ, np.inf) - self.band(0.0, LOW_HZ)


@dataclass(frozen=True, eq=False)
class ProfileComparison:
    """Two profiles, compared bin by bin.

    Attributes:
        first: Label of the first profile.
        second: Label of the second.
        n: Number of occurrences of the first and of the second.
        difference: (C,) mean of the first minus mean of the second.
        permutation: The test of every bin, corrected for the number of bins; None if there are too few occurrences.
        significant_hz: Ranges of bins whose corrected p-value is below 0.05, in Hz.
        tilt: Permutation test of the saliency above 4 kHz minus that below 1 kHz, with one number per occurrence.
        note: "too few: …" if no test is possible; otherwise empty.

    Examples:
        >>> found = frequency_profile([ex], lambda explanation: alignment, ["sells", "small"])
        >>> print(found.comparisons[0])
        sells against small (n = 1 + 1): too few: a test needs 2 occurrences of each; tilt differs by ...
    """

    first: str
    second: str
    n: tuple[int, int]
    difference: np.ndarray
    permutation: Permutation | None
    significant_hz: tuple[tuple[float, float], ...]
    tilt: Test
    note: str = ""

    def __str__(self) -> str:
        pair = f"{self.first} against {self.second} (n = {self.n[0]} + {self.n[1]})"
        if self.note:
            return f"{pair}: {self.note}; tilt differs by {self.tilt.difference:+.3f}"
        ranges = ", ".join(f"{low:.0f}–{high:.0f} Hz" for low, high in self.significant_hz) or "none"
        tilt = f"tilt differs by {self.tilt.difference:+.3f}, {self.tilt}"
        return f"{pair}: bins that differ after correction: {ranges}; {tilt}"


@dataclass(frozen=True)
class FrequencyProfiles:
    """Profiles, and how they compare.

    Attributes:
        unit: "word" or "phone".
        profiles: Label → profile: one for every name, and one for every name and group.
        comparisons: Comparisons of every two names, and of every two groups of one name.
        unmatched: Per utterance, words that were not found in its alignment.
        skipped: Utterances that were left out, and why.

    Examples:
        >>> found = frequency_profile([ex], lambda explanation: alignment, ["sells", "small"])
        >>> [(label, profile.n, profile.where) for label, profile in found.profiles.items()]
        [('sells', 1, (('tst-COMMON-0005', 0.289),)), ('small', 1, (('tst-COMMON-0005', 0.708),))]
    """

    unit: str
    profiles: dict[str, Profile]
    comparisons: tuple[ProfileComparison, ...]
    unmatched: dict[str, tuple[str, ...]]
    skipped: tuple[Skipped, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON; for the occurrences, only their places, mean and tilt."""
        profiles = {
            label: {
                "n": profile.n,
                "note": f"{TOO_FEW}: a single occurrence" if profile.n == 1 else "",
                "frequencies_hz": profile.frequencies,
                "mean": profile.mean,
                "standard_error": profile.standard_error,
                "occurrences": [
                    {"utterance": name, "start": start, "tilt": tilt}
                    for (name, start), tilt in zip(profile.where, profile.tilt, strict=True)
                ],
            }
            for label, profile in self.profiles.items()
        }
        return to_json(
            {
                "unit": self.unit,
                "profiles": profiles,
                "comparisons": self.comparisons,
                "unmatched": self.unmatched,
                "skipped": self.skipped,
            }
        )

    def __str__(self) -> str:
        counts = ", ".join(f"{label} {profile.n}×" for label, profile in self.profiles.items())
        return "\n".join([f"frequency profiles of {self.unit}s: {counts}", *(f"  {c}" for c in self.comparisons)])

    def plot(self, labels: Sequence[str] | None = None) -> tuple[Figure, Axes]:
        """Return a figure of profiles against Hz, with their standard errors, and its axes (Fig. 7).

        Args:
            labels: Labels of the profiles; None: those of all speakers. If two of them were compared, marks the bins
                that differ.

        Raises:
            ConfigError: If there is no such profile.
        """
        chosen = [label for label, p in self.profiles.items() if not p.group] if labels is None else list(labels)
        unknown = [label for label in chosen if label not in self.profiles]
        if unknown or not chosen:
            raise ConfigError(f"labels has {unknown}; allowed: {', '.join(self.profiles)}")
        figure = drawing.new_figure(8.0, 3.6)
        ax = figure.subplots()
        for index, label in enumerate(chosen):
            profile = self.profiles[label]
            style: dict[str, Any] = {"color": drawing.COLOURS[index % 4], "linestyle": drawing.DASHES[index % 4]}
            few = " — a single one" if profile.n == 1 else ""
            ax.plot(profile.frequencies, profile.mean, linewidth=1.8, label=f"{label} ({profile.n}×{few})", **style)
            if profile.n > 1:
                low, high = profile.mean - profile.standard_error, profile.mean + profile.standard_error
                ax.fill_between(profile.frequencies, low, high, color=style["color"], alpha=0.18, linewidth=0)
        compared = [c for c in self.comparisons if {c.first, c.second} == set(chosen)]
        for comparison in compared:
            for low, high in comparison.significant_hz:
                ax.axvspan(low, high, ymax=0.025, color="black", linewidth=0)
            marked = "black bars: bins that differ" if comparison.significant_hz else "no bin differs"
            note = comparison.note or f"{marked}, p < 0.05 after correction for their number"
            ax.set_title(note, loc="right", fontsize=8, color="0.35")
        drawing.hertz_axis(ax, self.profiles[chosen[0]].frequencies)
        ax.set_ylabel(f"saliency, maximum over\nthe {self.unit}'s frames")
        drawing.take_literally(*ax.legend(frameon=False, fontsize=9).get_texts())
        drawing.tidy(ax)
        return figure, ax


def frequency_profile(
    explanations: Any,
    alignments: Alignments,
    names: str | Sequence[str] | Mapping[str, Collection[str]],
    *,
    unit: Literal["word", "phone"] = "word",
    groups: Mapping[str, str] | str | None = None,
    missing: Literal["raise", "skip"] = "raise",
    permutations: int = 10_000,
    seed: int = 0,
) -> FrequencyProfiles:
    """Return at which frequencies words or phones matter (§8.1): "so" and "no", or "so" by men and women.

    For every occurrence, cuts the word's own map to the frames in which the word (or phone) is spoken, and takes the
    maximum over these frames in every bin. The profile is the mean over occurrences.

    Args:
        explanations: Explanations, folders of saved ones, or rows that have one; or a folder of saved ones.
        alignments: When each word was spoken, as for `time_localization`; for phones, alignments must have phones.
        names: A word (or phone), several, or named sets of several: ``{"sibilants": ("S", "Z", "SH")}``.
        unit: "word" or "phone". Stress marks of phones do not count ("OW1" is "OW").
        groups: Name of the utterance → its group, such as the speaker's gender; or the rows' column that has it.
            Utterances without a group belong to none.
        missing: What to do if an utterance has no alignment: "raise" or "skip".
        permutations: Maximum number of relabellings that a test tries.
        seed: Seed of the tests.

    Raises:
        AlignmentError: If an alignment is missing, no word matches, or a name does not occur at all.
        ConfigError: If an argument has a value that is not allowed.

    Examples:
        >>> found = frequency_profile([ex, ex], lambda explanation: alignment, {"s-": ("sells", "small")})
        >>> print(found)
        frequency profiles of words: s- 4×
    """
    sought = sought_labels(names, unit)
    values: dict[tuple[str, str], list[np.ndarray]] = {(name, ""): [] for name in sought}
    where: dict[tuple[str, str], list[tuple[str, float]]] = {key: [] for key in values}
    aligned = Aligned(explanations, alignments, missing)
    frequencies: np.ndarray | None = None
    heard: set[str] = set()
    for item, match in aligned:
        frequencies = _check_bins(frequencies, item)
        group = _group(groups, item)
        times = item.explanation.times.numpy()
        words = None
        for spoken in match.spoken:
            for label, start, end in stretches(spoken, unit):
                heard.add(label)
                hits = [name for name, members in sought.items() if label in members]
                frames = (times >= start) & (times < end)
                if not hits or not frames.any():
                    continue
                words = item.explanation.words().audio_saliency if words is None else words
                profile = words[spoken.index].numpy()[frames].max(0)
                for name in hits:
                    for key in dict.fromkeys([(name, ""), (name, group)]):
                        values.setdefault(key, []).append(profile)
                        where.setdefault(key, []).append((item.name, start))
    absent = [name for name in sought if not values[name, ""]]
    if absent or frequencies is None:
        what = f"{unit}s" if heard else f"{unit}s at all: the alignments have none"
        raise AlignmentError(
            f"{abbreviate(absent)} never occurs among the explained {what}; heard: {abbreviate(sorted(heard))}"
        )
    profiles = {}
    for name, group in sorted(values, key=lambda key: (list(sought).index(key[0]), key[1])):
        stacked = np.stack(values[name, group]).astype(np.float64)
        made = Profile(name, group, frequencies, stacked, tuple(where[name, group]))
        profiles[made.label] = made
    pairs = [(a, b) for a, b in combinations(profiles.values(), 2) if _comparable(a, b)]
    return FrequencyProfiles(
        unit=unit,
        profiles=profiles,
        comparisons=tuple(compare_profiles(a, b, permutations, seed) for a, b in pairs),
        unmatched=aligned.unmatched,
        skipped=tuple(aligned.skipped),
    )


def compare_profiles(first: Profile, second: Profile, permutations: int = 10_000, seed: int = 0) -> ProfileComparison:
    """Return where two profiles differ, by a permutation test of every bin.

    Corrects for the number of bins by the largest statistic over all bins, which keeps the probability of marking any
    bin by chance at 5 %.

    Args:
        first: A profile.
        second: Another profile with the same bins.
        permutations: Maximum number of relabellings to try.
        seed: Same seed, same result.

    Raises:
        ConfigError: If the profiles have different bins.

    Examples:
        >>> hertz, where = np.array([500.0, 5000.0]), tuple(("one", float(t)) for t in range(5))
        >>> low = Profile("no", "", hertz, np.tile([0.75, 0.25], (5, 1)) + np.eye(5, 2) / 8, where)
        >>> high = Profile("so", "", hertz, np.tile([0.25, 0.75], (5, 1)) + np.eye(5, 2) / 8, where)
        >>> found = compare_profiles(low, high)
        >>> found.difference.tolist(), found.permutation.relabellings, bool((found.permutation.corrected < 0.05).all())
        ([0.5, -0.5], 252, True)
    """
    if not np.array_equal(first.frequencies, second.frequencies):
        raise ConfigError(f"{first.label!r} and {second.label!r} have different bins; compare profiles of one model")
    n = (first.n, second.n)
    tilt = permutation_of_means(first.tilt, second.tilt, permutations, seed)
    found, note = None, f"{TOO_FEW}: a test needs 2 occurrences of each"
    if min(n) >= 2:
        found = permutation_test(first.values, second.values, permutations, seed)
        note = reach(n, found.relabellings)
    marked = np.zeros(len(first.frequencies), dtype=bool) if found is None else found.corrected < 0.05
    return ProfileComparison(
        first=first.label,
        second=second.label,
        n=n,
        difference=first.mean - second.mean,
        permutation=found,
        significant_hz=_ranges(marked, first.frequencies),
        tilt=tilt,
        note=note,
    )


def _group(groups: Mapping[str, str] | str | None, item: Named) -> str:
    if groups is None:
        return ""
    value = item.row.get(groups) if isinstance(groups, str) else groups.get(item.name)
    if isinstance(groups, str) and groups not in item.row:
        raise ConfigError(
            f"groups is {groups!r}, which row {item.name!r} does not have (it has {abbreviate(list(item.row))})"
        )
    return "" if value in (None, "") else str(value)


def _check_bins(known: np.ndarray | None, item: Named) -> np.ndarray:
    """Return the bins' frequencies, (C,) in Hz, which all explanations must share."""
    found = item.explanation.frequencies.double().numpy()
    if known is not None and not np.allclose(known, found):
        raise ConfigError(
            f"utterance {item.name!r} has different frequency bins from the previous ones; profile one model at a time"
        )
    return found if known is None else known


def _comparable(first: Profile, second: Profile) -> bool:
    """Return whether two profiles belong to two names of all speakers, or to two groups of one name."""
    if not (first.group or second.group):
        return True
    return bool(first.group and second.group) and first.name == second.name


def _ranges(marked: np.ndarray, frequencies: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Return the runs of marked bins, each from half a bin below its first centre to half a bin above its last."""
    edges = np.concatenate(
        [
            [1.5 * frequencies[0] - 0.5 * frequencies[1]],
            (frequencies[1:] + frequencies[:-1]) / 2,
            [1.5 * frequencies[-1] - 0.5 * frequencies[-2]],
        ]
    )
    padded = np.concatenate([[0], marked.astype(int), [0]])
    starts, ends = np.flatnonzero(np.diff(padded) == 1), np.flatnonzero(np.diff(padded) == -1)
    return tuple((float(max(edges[a], 0.0)), float(edges[b])) for a, b in zip(starts, ends, strict=True))

"""Frequency: planted bands are found in Hz, and only where they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from spes_hf.analysis import AlignmentError, Profile, compare_profiles, frequency_profile
from spes_hf.errors import ConfigError


@pytest.fixture(scope="module")
def spoken(spoken):
    """Only the first two words, which differ from each other in all utterances."""
    return {name: words[:2] for name, words in spoken.items()}


@pytest.fixture(scope="module")
def hissing(blank, spoken, plant):
    """Maps that are high above 5 kHz in the first half of every first word, and below 500 Hz in every second word."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, explanation in blank.items():
        hertz, times, words = explanation.frequencies, explanation.times, explanation.words()
        audio = 0.1 * torch.rand(len(explanation), *explanation.features.shape, generator=generator)
        for w, bins in ((0, hertz > 5_000), (1, hertz < 500)):
            start, end = spoken[name][w]["start"], spoken[name][w]["end"]
            if w == 0:
                end = (start + end) / 2
            frames = (times >= start) & (times < end)
            for k in words.groups[w]:
                audio[k] += (frames[:, None] & bins[None]).float()
        found[name] = plant(explanation, audio)
    return found


@pytest.fixture(scope="module")
def labels(spoken, hissing):
    return {f"word {w}": tuple({spoken[name][w]["word"] for name in hissing}) for w in (0, 1)}


@pytest.fixture(scope="module")
def found(hissing, spoken, labels):
    return frequency_profile(hissing.values(), spoken, labels)


def test_bands_are_found_in_hz(found):
    first, second = found.profiles["word 0"], found.profiles["word 1"]
    assert first.n == second.n == 6
    assert first.band(5_100, 9_000).min() > 0.8 > 0.2 > first.band(0, 4_500).max()
    assert second.band(0, 450).min() > 0.8 > 0.2 > second.band(600, 9_000).max()
    assert (first.tilt > 0.4).all() and (second.tilt < -0.2).all()


def test_comparison(found):
    (comparison,) = found.comparisons
    assert comparison.tilt.p_value == pytest.approx(2 / 924) and comparison.tilt.effect_size > 3
    assert comparison.permutation.exact and comparison.permutation.relabellings == 924
    hertz = found.profiles["word 0"].frequencies
    marked = np.zeros(len(hertz), dtype=bool)
    for low, high in comparison.significant_hz:
        marked |= (hertz > low) & (hertz < high)
    assert (
        marked[hertz > 5_100].all() and marked[hertz < 450].all() and not marked[(hertz > 600) & (hertz < 4_500)].any()
    )
    assert "5" in str(comparison) and "Hz" in str(comparison)


def test_phones_cut_the_word(hissing, spoken):
    """The first phone of the first word hisses; the second, which takes the other half, does not."""
    cut = {}
    for name, words in spoken.items():
        first, *rest = words
        middle = (first["start"] + first["end"]) / 2
        phones = [{"phone": "S", "start": first["start"], "end": middle},
                  {"phone": "OW1", "start": middle, "end": first["end"]}]  # fmt: skip
        cut[name] = [{**first, "phones": phones}, *rest]
    found = frequency_profile(hissing.values(), cut, ["S", "OW"], unit="phone")
    assert found.profiles["S"].band(5_100, 9_000).min() > 0.8
    assert found.profiles["OW"].band(5_100, 9_000).max() < 0.5
    with pytest.raises(AlignmentError, match="the alignments have none"):
        frequency_profile(hissing.values(), spoken, ["S"], unit="phone")


def test_groups(hissing, spoken, labels, found):
    names = list(hissing)
    groups = {name: "F" if i < 4 else "M" for i, name in enumerate(names[:5])}  # the last is in no group
    by_map = frequency_profile(hissing.values(), spoken, {"first": labels["word 0"]}, groups=groups)
    assert {label: p.n for label, p in by_map.profiles.items()} == {"first": 6, "first (F)": 4, "first (M)": 1}
    (comparison,) = by_map.comparisons
    assert comparison.permutation is None and comparison.note.startswith("too few") and comparison.tilt.too_few
    assert comparison.significant_hz == ()
    rows = [{"id": name, "explanation": hissing[name], "gender": groups.get(name)} for name in names]
    by_column = frequency_profile(rows, spoken, {"first": labels["word 0"]}, groups="gender")
    assert by_column.to_dict() == by_map.to_dict()
    with pytest.raises(ConfigError, match="groups is 'sex'.*'gender'"):
        frequency_profile(rows, spoken, {"first": labels["word 0"]}, groups="sex")


def test_a_single_occurrence_is_marked(hissing, spoken):
    name = next(iter(hissing))
    words = [w["word"] for w in spoken[name][:2]]
    found = frequency_profile([hissing[name]], spoken, words)
    data = found.to_dict()
    assert [p["note"] for p in data["profiles"].values()] == ["too few: a single occurrence"] * 2
    assert np.isnan(found.profiles[words[0]].standard_error).all()
    assert found.comparisons[0].tilt.too_few and data["comparisons"][0]["permutation"] is None
    assert "a single one" in found.plot()[1].get_legend().get_texts()[0].get_text()


def test_small_groups_that_cannot_differ_are_marked(found):
    first, second = found.profiles["word 0"], found.profiles["word 1"]

    def of(profile: Profile, n: int) -> Profile:
        return Profile(profile.name, "", profile.frequencies, profile.values[:n], profile.where[:n])

    comparison = compare_profiles(of(first, 3), of(second, 3))
    assert comparison.note.startswith("too few: no difference can reach") and comparison.significant_hz == ()
    assert compare_profiles(of(first, 4), of(second, 4)).note == ""


def test_no_difference_no_mark(found):
    first = found.profiles["word 0"]
    halves = [Profile("a", "", first.frequencies, first.values[i::2], first.where[i::2]) for i in (0, 1)]
    assert compare_profiles(*halves).significant_hz == ()


def test_result(found):
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["profiles"]["word 0"]["n"] == 6 and len(data["profiles"]["word 0"]["occurrences"]) == 6
    figure, ax = found.plot()
    assert "Hz" in ax.get_xlabel() and {"500", "4000"} <= {t.get_text() for t in ax.get_xticklabels()}
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["word 0 (6×)", "word 1 (6×)"]
    with pytest.raises(ConfigError, match="labels has"):
        found.plot(["word 7"])


@pytest.mark.parametrize(
    ("names", "arguments", "error", "message"),
    [
        ("xyz", {}, AlignmentError, "'xyz' never occurs among the explained words; heard: "),
        ([], {}, ConfigError, "names is"),
        (["?"], {}, ConfigError, "names is"),
        ("so", {"unit": "syllable"}, ConfigError, "unit is 'syllable'"),
    ],
)
def test_refused(hissing, spoken, names, arguments, error, message):
    with pytest.raises(error, match=message):
        frequency_profile(hissing.values(), spoken, names, **arguments)


def test_models_are_not_mixed(hissing, spoken):
    from dataclasses import replace

    (name, first), (other, second) = list(hissing.items())[:2]
    mixed = [first, replace(second, frequencies=second.frequencies * 0.5)]
    with pytest.raises(ConfigError, match="different frequency bins"):
        frequency_profile(mixed, spoken, {"first": (spoken[name][0]["word"], spoken[other][0]["word"])})


def test_a_band_without_bins(found):
    with pytest.raises(ConfigError, match="there is no bin from 9000"):
        found.profiles["word 0"].band(9_000, 10_000)

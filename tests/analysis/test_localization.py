"""Time: planted maps lie where the words are spoken, controls do not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from spes_hf.analysis import Alignment, Word, time_localization
from spes_hf.analysis.localization import with_map
from spes_hf.errors import ConfigError


@pytest.fixture(scope="module")
def found(listening, spoken):
    return time_localization(listening.values(), spoken)


def test_planted_maps_are_found(found, listening, spoken):
    saliency = found.maps["saliency"]
    misheard = sum(len(words) for words in found.unmatched.values())
    assert found.n == sum(len(spoken[name]) for name in listening) - misheard and misheard <= 1
    assert found.utterances == len(listening)
    assert saliency.hits == 1 and saliency.mass > 0.6
    assert saliency.inside > 0.9 > 0.2 > saliency.outside
    assert saliency.test.p_value < 1e-12 and saliency.test.effect_size > 5
    assert saliency.utterance_test.n == (len(listening),) and saliency.utterance_test.p_value < 1e-3


def test_controls_know_nothing(found):
    random = found.maps["random"]
    assert random.mass == pytest.approx(random.duration_share, abs=0.02)
    assert abs(random.contrast) < 0.2 and random.test.p_value > 0.01
    assert abs(found.maps["energy"].contrast) < 0.5
    for name in ("energy", "random"):
        assert found.against[name].p_value < 1e-9 and found.against[name].effect_size > 1


def test_maps_that_avoid_the_word(listening, spoken, plant):
    """The test is one-sided: a map that lies everywhere but in the word must not pass."""
    opposite = [plant(e, -e.raw_audio) for e in listening.values()]
    found = time_localization(opposite, spoken, ["saliency"]).maps["saliency"]
    assert found.contrast < -1 and found.test.p_value > 0.999 and found.test.effect_size < -5 and found.hits < 0.8


def test_by_hand(blank, plant):
    """A map that is 1 in one frame of ten inside, and one of the rest outside."""
    name, explanation = next(iter(blank.items()))
    frames, bins = explanation.features.shape
    audio = torch.zeros(len(explanation), frames, bins)
    audio[:, 12, 3] = 1.0
    audio[:, 50, 7] = 1.0
    times = explanation.times
    word = Word(explanation.words().tokens[0], float(times[10]), float(times[20]))
    found = time_localization([plant(explanation, audio)], {name: Alignment((word,))}, ["saliency"])
    (only,) = found.maps["saliency"].words
    assert only.inside == pytest.approx(0.1, abs=1e-6) and only.outside == pytest.approx(1 / (frames - 10), abs=1e-6)
    assert only.mass == pytest.approx(0.5) and only.duration_share == pytest.approx(10 / frames)
    curve = np.zeros(frames)
    curve[[12, 50]] = 1
    assert only.contrast == pytest.approx((0.1 - 1 / (frames - 10)) / curve.std(), rel=1e-5)
    assert only.centroid == pytest.approx(float(times[12] + times[50]) / 2, abs=0.02)
    assert found.maps["saliency"].test.too_few and found.maps["saliency"].utterance_test.too_few


def test_words_without_frames_are_counted(listening, spoken):
    name = next(iter(listening))
    words = [dict(w) for w in spoken[name]]
    words[0] = {**words[0], "start": 0.0301, "end": 0.0302}
    words[1] = {**words[1], "start": 0.0, "end": 999.0}
    found = time_localization([listening[name]], {name: words}, ["saliency"])
    assert found.too_short == 2 and found.n == len(words) - 2


def test_every_map_takes_the_same_way(listening, spoken):
    """The control that is the map itself scores as the map."""
    name, explanation = next(iter(listening.items()))
    energy = with_map(explanation, "energy")
    assert torch.allclose(energy.raw_audio[0], explanation.features - explanation.features.min())
    assert torch.equal(energy.raw_audio[0], energy.raw_audio[-1])
    as_control = time_localization([explanation], spoken, ["saliency", "energy"]).maps["energy"]
    as_map = time_localization([energy], spoken, ["saliency"]).maps["saliency"]
    assert as_control == as_map


def test_random_maps_are_seeded(listening, spoken):
    explanation = next(iter(listening.values()))
    first, again, other = (with_map(explanation, "random", seed).raw_audio for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1]) and 0 <= float(first.min()) and float(first.max()) < 1


def test_memory_live_saved_and_rows_agree(listening, spoken, tmp_path):
    for name, explanation in listening.items():
        explanation.save(tmp_path / name)
    live = time_localization([listening[name] for name in sorted(listening)], spoken, ["saliency"])
    assert time_localization(tmp_path, spoken, ["saliency"]).to_dict()["maps"] == live.to_dict()["maps"]
    rows = [{"id": name, "explanation": str(tmp_path / name)} for name in sorted(listening)]
    assert time_localization(rows, spoken, ["saliency"]).maps["saliency"].test == live.maps["saliency"].test


def test_result(found):
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(data["maps"]["saliency"]["words"]) == found.n
    assert data["against"]["energy"]["p_value"] < 1e-9
    assert "contrast against energy" in str(found)
    figure, axes = found.plot()
    assert len(axes) == 2 and "(s)" in axes[1].get_xlabel() and "(s)" in axes[1].get_ylabel()
    assert "saliency" in axes[0].get_xticklabels()[0].get_text()
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maps": []}, "maps is"),
        ({"maps": "saliency"}, "maps is"),
        ({"maps": ["saliency", "loudness"]}, "loudness"),
        ({"maps": ["energy", "energy"]}, "each at most once"),
        ({"top": 0}, "top is 0"),
    ],
)
def test_refused(listening, spoken, arguments, message):
    with pytest.raises(ConfigError, match=message):
        time_localization(listening.values(), spoken, **arguments)

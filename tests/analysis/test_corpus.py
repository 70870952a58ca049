"""Explanations one by one, by whatever they come in."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest

from spes_hf.analysis import AlignmentError, modality_balance, saved_explanations, time_localization
from spes_hf.analysis.corpus import Aligned, named, token_label
from spes_hf.errors import ConfigError


@pytest.fixture
def folder(blank, tmp_path):
    for name, explanation in list(blank.items())[:3]:
        explanation.save(tmp_path / "run" / name)
    return tmp_path / "run"


def test_names(blank, folder):
    name, explanation = next(iter(blank.items()))
    nameless = replace(explanation, provenance={})
    items = [
        explanation,
        explanation.words(),
        folder / name,
        str(folder / name / "explanation.json"),
        {"id": "mine", "explanation": str(folder / name)},
        {"explanation": folder / name},
        {"explanation": explanation, "other": 1},
        replace(explanation, provenance={"audio": {"source": "file some clip.flac [1 s, 2 s)"}}),
        nameless,
    ]
    found = list(named(items))
    assert [item.name for item in found] == [name, name, name, name, "mine", name, name, "some clip", "#8"]
    assert not any(item.explanation.over_words for item in found)
    assert found[4].row["id"] == "mine" and found[0].row == {}


def test_a_folder_is_its_explanations(folder, blank):
    assert (
        [item.name for item in named(folder)] == sorted(list(blank)[:3]) == [p.name for p in saved_explanations(folder)]
    )
    assert len(list(named(next(iter(blank.values()))))) == 1


def test_rows_with_errors_are_left_out(blank):
    rows = [{"id": "a", "error": "too short"}, {"id": "b", "explanation": next(iter(blank.values()))}]
    assert [item.name for item in named(rows)] == ["b"]


def test_rows_that_hold_the_whole_explanation(listening, spoken):
    """As `Explain` makes them."""
    rows = [{"id": name, **explanation.to_row()} for name, explanation in listening.items()]
    found = time_localization(rows, spoken, ["saliency"]).maps["saliency"]
    expected = time_localization(listening.values(), spoken, ["saliency"]).maps["saliency"]
    assert found.inside == pytest.approx(expected.inside, abs=1e-4) and found.hits == expected.hits


@pytest.mark.parametrize(
    ("explanations", "message"), [([], "empty"), ({"explanation": 1}, "is a dict"), (5, "is a int"), ([5], "is a int")]
)
def test_refused(explanations, message):
    with pytest.raises(ConfigError, match=message):
        list(named(explanations))


def test_an_empty_folder(tmp_path):
    with pytest.raises(ConfigError, match="holds no explanation"):
        list(named(tmp_path))


def test_dense_maps_do_not_stay(listening, spoken):
    """Neither those of live explanations, nor those of saved ones that have been gone past."""
    explanations = [replace(e) for e in listening.values()]
    time_localization(explanations, spoken)
    modality_balance(explanations)
    assert all("_normalised" not in e.__dict__ for e in explanations)
    gone = []
    for item in named(iter(explanations)):
        gone.append(weakref.ref(item.explanation.audio_saliency))
        del item
        gc.collect()
        assert sum(reference() is not None for reference in gone) <= 1


def test_missing_alignments(listening, spoken):
    names = list(listening)
    partial = {name: words for name, words in spoken.items() if name != names[1]}
    with pytest.raises(AlignmentError, match=f"'{names[1]}' has no alignment .*missing=\"skip\""):
        time_localization(listening.values(), partial)
    found = time_localization(listening.values(), partial, missing="skip")
    assert [(s.utterance, s.reason) for s in found.skipped] == [(names[1], "no alignment")]
    assert found.utterances == len(names) - 1
    with pytest.raises(ConfigError, match="missing is 'ignore'"):
        time_localization(listening.values(), spoken, missing="ignore")


def test_words_that_do_not_match(listening, spoken):
    wrong = {name: [{"word": "xyz", "start": 0, "end": 1}] for name in spoken}
    with pytest.raises(AlignmentError, match="no word of the .* utterances matches"):
        time_localization(listening.values(), wrong)
    name = next(iter(listening))
    some = {**spoken, name: [{**w, "word": "xyz"} if i == 1 else w for i, w in enumerate(spoken[name])]}
    found = time_localization(listening.values(), some)
    assert found.unmatched[name] == (spoken[name][1]["word"].lower(),)
    assert found.n == time_localization(listening.values(), spoken).n - 1
    one_wrong = time_localization(listening.values(), {**spoken, name: wrong[name]})
    assert [s.utterance for s in one_wrong.skipped] == [name]
    assert "none of the explanation's words" in one_wrong.skipped[0].reason
    assert isinstance(Aligned([], spoken).skipped, list)


def test_an_alignment_that_cannot_be_read(listening, spoken, tmp_path):
    name = next(iter(listening))
    (tmp_path / f"{name}.json").write_text("{")
    with pytest.raises(AlignmentError, match="not what its name says"):
        time_localization([listening[name]], tmp_path)
    found = time_localization(listening.values(), {**spoken, name: tmp_path / f"{name}.json"}, missing="skip")
    assert "not what its name says" in found.skipped[0].reason


def test_token_labels(blank):
    explanation = next(iter(blank.values()))
    pieces = (" I", " know", "ing", ",", " so", "5", "</s>")
    tokens = replace(explanation, pieces=pieces, special=(False,) * 6 + (True,))
    assert [token_label(tokens, k) for k in range(7)] == ["I", "know", "…ing", ",", "so", "…5", "</s>"]
    assert token_label(replace(tokens, pieces=("Tom", *pieces[1:])), 0) == "Tom"

"""The transform that diagnoses rows, and the report on a corpus of them."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from datasets import Dataset

from spes_hf import ConfigError, Diagnose, Diagnoser, Explain, ExplanationFormatError, SpesConfig, diagnosis_of
from spes_hf.analysis import error_causes
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation.diagnosis_rows import frequency_profile_of

FAST = SpesConfig(num_spectrogram_masks=4, masks_per_token=4, num_token_masks=10)


@pytest.fixture(scope="module")
def model():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def dataset():
    """Some clips: two with a wrong word in the reference, and one that cannot be read."""
    rows = []
    for i, clip in enumerate([c for c in tiny_clips() if c["kind"] == "statement"][:6]):
        said = clip["transcript"].split()
        if i < 2:
            said[-1] = "house." if said[-1] != "house." else "dog."
        rows.append({"id": clip["id"], "audio": clip["path"], "text": " ".join(said), "half": "ab"[i % 2]})
    rows.append({"id": "gone", "audio": "no/such/file.wav", "text": "a b", "half": "a"})
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def rows(model, dataset):
    return dataset.map(Diagnose(*model, FAST), load_from_cache_file=False)


def test_rows_hold_what_the_diagnoser_finds(model, dataset, rows):
    direct = Diagnoser(*model, FAST, progress=False)(
        dataset[0]["audio"], dataset[0]["text"], utterance_id=dataset[0]["id"]
    )
    found = diagnosis_of(rows[0])
    assert found.to_dict() == direct.to_dict() and str(found) == str(direct)
    assert found.explanation.contrasts == direct.explanation.contrasts
    assert rows[0]["word_errors"] == len(found.errors) >= 1
    assert sum(rows[0][v] for v in ("misheard", "guessed", "not_heard", "unsure", "not_known")) == len(found.errors)
    assert diagnosis_of(rows[0], maps=False).explanation is None
    profile = frequency_profile_of(found, 0)
    assert profile.shape == (80,) and np.isfinite(profile).all()


def test_a_row_that_fails_says_why_and_stops_nothing(rows):
    assert "AudioError" in rows[len(rows) - 1]["error"] and rows[len(rows) - 1]["word_errors"] == 0
    assert [bool(e) for e in rows["error"]] == [False] * (len(rows) - 1) + [True]
    with pytest.raises(ExplanationFormatError, match="leave out such rows"):
        diagnosis_of(rows[len(rows) - 1])
    with pytest.raises(ExplanationFormatError, match="no column 'diagnosis'"):
        diagnosis_of({"text": "x"})
    with pytest.raises(ExplanationFormatError, match="damaged"):
        diagnosis_of({"diagnosis": '{"text": 1}'})


def test_batches_give_the_same(model, dataset, rows):
    few = dataset.select(range(2))
    batched = few.map(Diagnose(*model, FAST), batched=True, batch_size=2, load_from_cache_file=False)
    assert batched["diagnosis"] == rows["diagnosis"][:2]


def test_it_goes_behind_explain_and_leaves_failed_rows(model, dataset):
    some = dataset.select([0, len(dataset) - 1])
    both = some.map(Explain(*model, FAST), load_from_cache_file=False)
    both = both.map(Diagnose(*model, FAST), load_from_cache_file=False)
    assert both[0]["word_errors"] >= 1 and both[0]["explanation"]
    assert "AudioError" in both[1]["error"] and both[1]["diagnosis"] == ""


def test_it_is_pickled_and_its_settings_tell_it_apart(model):
    one, other = Diagnose(*model, FAST), Diagnose(*model, FAST, reference_column="transcript")
    assert pickle.loads(pickle.dumps(one)).identity() == one.identity() != other.identity()


def test_missing_columns_are_refused(model, dataset):
    with pytest.raises(ConfigError, match="no column 'transcript'.*Pass reference_column="):
        Diagnose(*model, FAST, reference_column="transcript")(dataset[0])


def test_times_come_from_a_column(model):
    clip = next(c for c in tiny_clips() if c["kind"] == "statement")
    said = clip["transcript"].split()
    said[-1] = "house." if said[-1] != "house." else "dog."
    times = [[w["start"], w["end"]] for w in clip["words"]]
    row = {"id": "x", "audio": clip["path"], "text": " ".join(said), "times": times}
    found = diagnosis_of(Diagnose(*model, FAST, times_column="times")(row))
    assert found.errors[-1].stretch == tuple(times[-1])


# The report -----------------------------------------------------------------------------------------------------------


def error(said, written, verdict, evidence):
    """Return an error as it is stored, of which the verdict follows."""
    bits = {"misheard": (evidence, 2.0, -2.0), "guessed": (-3.0, -2.0, 1.0), "not heard": (0.0, 0.0, 0.0)}[verdict]
    names = ("evidence", "written_evidence", "said_evidence")
    numbers = dict.fromkeys(("log_odds", "context", "without_sound", "deviation", "reliability"), 0.0)
    return {
        "kind": "substitution",
        "written": written,
        "said": said,
        "written_words": [0],
        "said_words": [0],
        "stretch": [0.1, 0.2],
        "row": None,
        "why_not": "",
        "verdict": verdict,
        **numbers,
        **dict(zip(names, bits, strict=True)),
    }


def row(name, group, words, *errors):
    texts = {"text": "x", "reference": "y", "written": ["w"] * words, "said": ["w"] * words, "wer": 0.0}
    return {"id": name, "group": group, "error": "", "diagnosis": json.dumps({**texts, "errors": list(errors)})}


@pytest.fixture(scope="module")
def made_up():
    """Group "a" mishears, group "b" guesses; "cat" becomes "hat" three times."""
    rows = []
    for i in range(8):
        rows.append(row(f"a{i}", "a", 10, error("cat" if i < 3 else f"s{i}", "hat", "misheard", 4.0 + i)))
        rows.append(row(f"b{i}", "b", 10, *[error(f"t{i}{k}", "u", "guessed", 0.0) for k in range(3)]))
    return [*rows, {"id": "z", "group": "a", "error": "AudioError: gone", "diagnosis": ""}]


def test_shares_and_rates_by_hand(made_up):
    found = error_causes(made_up, by="group")
    assert found.skipped == 1 and found.all.utterances == 16 and found.all.errors == 8 + 24
    assert found.all.wer.value == pytest.approx(32 / 160)
    assert found.all.shares["misheard"].value == pytest.approx(0.25)
    assert found.all.shares["misheard"].low < 0.25 < found.all.shares["misheard"].high
    by_name = {group.name: group for group in found.groups}
    assert by_name["a"].shares["misheard"].value == 1 and by_name["b"].shares["guessed"].value == 1
    tests = found.tests["a", "b"]
    assert tests["wer"].difference == pytest.approx(-0.2)


def test_confusions_come_most_frequent_first(made_up):
    first = error_causes(made_up).confusions[0]
    assert (first.said, first.written, first.count) == ("cat", "hat", 3)
    assert first.evidence == pytest.approx((4 + 5 + 6) / 3) and first.verdicts["misheard"] == 3


def test_a_report_of_real_rows_is_drawn_and_written(rows, tmp_path):
    found = error_causes(rows, by="half")
    assert {g.name for g in found.groups} == {"a", "b"} and found.skipped == 1
    assert len(found.confusions[0].profile) == len(found.frequencies) == 80
    text = found.to_markdown()
    assert "permutation test" in text and found.confusions[0].name in text
    json.dumps(found.to_dict(), allow_nan=False)
    figure, axes = found.plot()
    figure.savefig(tmp_path / "causes.png")
    assert len(axes) == 1 + min(6, len(found.confusions)) and (tmp_path / "causes.png").stat().st_size > 5000


def test_bad_reports_are_refused(made_up):
    with pytest.raises(ConfigError, match="by is 'speaker'"):
        error_causes(made_up, by="speaker")
    with pytest.raises(ConfigError, match="no diagnosis"):
        error_causes(made_up[-1:])
    with pytest.raises(ConfigError, match="no diagnosis"):
        error_causes([])

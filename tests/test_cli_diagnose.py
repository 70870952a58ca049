"""``spes-hf diagnose``, run as a user runs it, with a trained model."""

from __future__ import annotations

import json

import pytest

from spes_hf import Diagnosis, Explanation, cli
from spes_hf.demo import tiny_clips


@pytest.fixture(scope="module")
def clip():
    return next(c for c in tiny_clips() if c["kind"] == "statement")


@pytest.fixture
def wrong(clip):
    said = clip["transcript"].split()
    return " ".join([*said[:-1], "house." if "house" not in said[-1] else "dog."])


def diagnose(clip, reference, *more):
    few = ["--num-masks", "4", "--num-token-masks", "4", "--preset", "fast", "--quiet", "--device", "cpu"]
    return cli.main(["diagnose", clip["path"], "--model", "speech2text-en", "--reference", reference, *few, *more])


def test_a_page_the_numbers_and_the_maps_are_written(clip, wrong, tmp_path, capsys):
    out = tmp_path / "out"
    assert diagnose(clip, wrong, "--out", str(out)) == 0
    shown = capsys.readouterr().out
    assert "said house" in shown or "said dog" in shown
    assert "bits" in shown and str(out / "diagnosis.html") in shown
    found = Diagnosis.from_dict(json.loads((out / "diagnosis.json").read_text(encoding="utf-8")))
    assert len(found.errors) >= 1 and str(found.errors[0]) in shown
    assert Explanation.load(out / "explanation").contrasts
    assert cli.main(["report", str(out / "explanation")]) == 0
    told = capsys.readouterr().out
    assert f"not house: {found.errors[-1].log_odds:+.1f} bits; the sound adds " in told and "nan" not in told
    assert (out / "diagnosis.html").stat().st_size > 20_000


def test_the_reference_may_be_a_file(clip, wrong, tmp_path, capsys):
    path = tmp_path / "said.txt"
    path.write_text(wrong.replace(" ", "\n"), encoding="utf-8")
    assert diagnose(clip, str(path), "--out", str(tmp_path / "out")) == 0
    assert "1 error (" in capsys.readouterr().out


def test_no_error_is_said_so(clip, tmp_path, capsys):
    text = clip["transcript"]
    assert diagnose(clip, text, "--text", text, "--out", str(tmp_path / "out")) == 0
    assert "no error" in capsys.readouterr().out
    assert not (tmp_path / "out" / "explanation").exists()


def test_maps_of_a_run_before_do_not_stay(clip, wrong, tmp_path):
    out = tmp_path / "out"
    assert diagnose(clip, wrong, "--out", str(out)) == 0
    assert (out / "explanation" / "explanation.json").exists()
    (out / "explanation" / "mine.txt").write_text("kept")
    assert diagnose(clip, clip["transcript"], "--text", clip["transcript"], "--out", str(out)) == 0
    assert [path.name for path in (out / "explanation").iterdir()] == ["mine.txt"]


def test_every_preset_goes(clip, wrong, tmp_path):
    assert diagnose(clip, wrong, "--preset", "paper", "--num-masks", "30", "--out", str(tmp_path / "out")) == 0


@pytest.mark.parametrize(
    ("reference", "code", "message"),
    [
        ("", cli.EXIT_USAGE, "reference is ''"),
        ("el perro pequeño duerme en el jardín", cli.EXIT_USAGE, "no word in common"),
    ],
)
def test_bad_references_end_in_2(clip, tmp_path, capsys, reference, code, message):
    assert diagnose(clip, reference, "--out", str(tmp_path / "out")) == code
    assert message in capsys.readouterr().err


def test_bad_files_end_in_their_codes(clip, wrong, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    assert diagnose(clip, str(empty), "--out", str(tmp_path / "out")) == cli.EXIT_USAGE
    assert "empty file" in capsys.readouterr().err
    bad = tmp_path / "latin.txt"
    bad.write_bytes("für".encode("latin-1"))
    assert diagnose(clip, str(bad), "--out", str(tmp_path / "out")) == cli.EXIT_USAGE
    assert "cannot be read as text" in capsys.readouterr().err
    assert diagnose({"path": "gone.wav"}, wrong, "--out", str(tmp_path / "out")) == cli.EXIT_AUDIO
    assert diagnose(clip, wrong, "--out", str(empty)) == cli.EXIT_USAGE

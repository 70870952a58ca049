"""The recipe that diagnoses a corpus: a report, a figure, pages; going on; and wrong settings."""

import json
from pathlib import Path

import pytest

from spes_hf import SpesConfig, diagnosis_of
from spes_hf.demo import tiny_clips
from spes_hf.jobs.run import load_explained

pytestmark = pytest.mark.usefixtures("tables")

RECIPE = Path(__file__).parents[2] / "recipes" / "diagnose_corpus.py"


@pytest.fixture
def manifest(tmp_path):
    """Four clips whose references end with another word than the sound."""
    path = tmp_path / "clips.jsonl"
    lines = []
    for i, clip in enumerate([c for c in tiny_clips() if c["kind"] == "statement"][:4]):
        said = [*clip["transcript"].split()[:-1], "house." if "house" not in clip["transcript"] else "dog."]
        lines.append({"id": clip["id"], "file": clip["path"], "text": " ".join(said), "half": "ab"[i % 2]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def arguments(manifest, out, *more):
    fixed = ["--model", "speech2text-en", "--audio-column", "file", "--num-masks", "4", "--preset", "fast", "--quiet"]
    return ["--dataset", str(manifest), "--out", str(out), *fixed, *more]


def test_a_corpus_is_diagnosed_and_reported(recipe, manifest, tmp_path, capsys):
    out = tmp_path / "out"
    assert recipe.main(arguments(manifest, out, "--by", "half", "--pages", "2")) == 0
    rows = load_explained(out)
    assert len(rows) == 4 and sum(bool(diagnosis_of(row).errors) for row in rows) >= 3
    report = json.loads((out / "report.json").read_text())
    assert report["all"]["utterances"] == 4 and len(report["groups"]) == 2
    text = (out / "report.md").read_text()
    assert "misheard" in text and "house" in text and "permutation test" in text
    assert (out / "causes.png").stat().st_size > 5000
    assert len(list((out / "pages").glob("*.html"))) == 2
    assert "report:" in capsys.readouterr().out


def test_it_goes_on_where_it_was(recipe, manifest, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert recipe.main(arguments(manifest, out, "--pages", "0")) == 0
    before = (out / "report.json").read_text()

    def again(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("spes_hf.corpora.diagnoses.Diagnose.of_row", again)
    assert recipe.main(arguments(manifest, out, "--pages", "0")) == 0
    assert (out / "report.json").read_text() == before


def test_rows_that_fail_end_in_1(recipe, manifest, tmp_path):
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines[:1], json.dumps({"id": "x", "file": "gone.wav", "text": "a", "half": "a"})]))
    assert recipe.main(arguments(manifest, tmp_path / "out", "--pages", "0")) == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text())["skipped"] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--by", "speaker"], "--by is 'speaker'"),
        (["--reference-column", "words"], "--reference-column is 'words'"),
    ],
)
def test_wrong_settings_end_in_2(recipe, manifest, tmp_path, capsys, more, message):
    assert recipe.main(arguments(manifest, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err


def test_explaining_a_corpus_can_diagnose_it_as_well(recipe_of, manifest, tmp_path):
    fixed = ["--model", "speech2text-en", "--audio-column", "file", "--num-masks", "4", "--preset", "fast", "--quiet"]
    command = ["--dataset", str(manifest), "--out", str(tmp_path / "out"), *fixed, "--metrics", "diagnosis,size"]
    with recipe_of("explain_dataset") as module:
        assert module.main(command) == 2  # no reference
        assert module.main([*command, "--reference-column", "text"]) == 0
    rows = load_explained(tmp_path / "out")
    assert all(diagnosis_of(row).text == row["prediction"] and row["explanation"] for row in rows)
    assert any(row["word_errors"] for row in rows)


def test_a_config_and_settings_of_speed(recipe, manifest, tmp_path, capsys):
    SpesConfig(num_spectrogram_masks=4, masks_per_token=2, num_token_masks=4).to_json(tmp_path / "few.json")
    few = ["--config", str(tmp_path / "few.json"), "--autocast", "bfloat16", "--limit", "1", "--pages", "0"]
    plain = [a for a in arguments(manifest, tmp_path / "out", *few) if a not in ("--preset", "fast")]
    assert recipe.main([*plain, "--preset", "fast"]) == 2
    assert "each sets method and settings" in capsys.readouterr().err
    assert recipe.main(plain) == 0
    found = diagnosis_of(load_explained(tmp_path / "out")[0]).explanation.provenance
    assert found["model"]["autocast"] == "bfloat16" and found["config"]["masks_per_token"] == 2

"""``spes-hf evaluate``, run as a user runs it, with a trained model."""

from __future__ import annotations

import json

import datasets
import pytest
import torch

from spes_hf import (
    Deletion,
    EnergyConfig,
    Explainer,
    Explanation,
    RandomConfig,
    Recording,
    Size,
    SpesConfig,
    cli,
    explain,
    explain_dataset,
)
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.metrics import summarize
from spes_hf.metrics.baselines import baseline_of

FEW = SpesConfig(num_spectrogram_masks=8, masks_per_token=4, num_token_masks=8)


@pytest.fixture(scope="module")
def model():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def clips():
    return sorted((c for c in tiny_clips() if c["kind"] == "statement"), key=lambda c: len(c["transcript"]))[:3]


@pytest.fixture(scope="module")
def explained(model, clips):
    return explain(*model, clips[0]["path"], config=FEW, progress=False)


@pytest.fixture
def folder(explained, tmp_path):
    explained.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(scope="module")
def job(model, clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("job") / "out"
    rows = {"id": ["a", "b", "bad"], "audio": [clips[0]["path"], clips[1]["path"], "gone.wav"]}
    rows["said"] = [clips[0]["transcript"], clips[1]["transcript"], "nothing"]
    explain_dataset(*model, datasets.Dataset.from_dict(rows), out, FEW, progress=False)
    return out


def evaluate(folder, *more):
    return cli.main(["evaluate", str(folder), "--model", "speech2text-en", "--device", "cpu", "--quiet", *more])


def written(folder) -> dict:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def test_an_explanation_next_to_the_baselines(model, clips, explained, folder, capsys):
    assert evaluate(folder, "--reference", clips[0]["transcript"]) == 0
    shown, found = capsys.readouterr().out, written(folder)
    assert list(found["scores"]) == ["spes", "random", "energy"] and found["against"] == "reference"
    rows = [Size()(Deletion(*model)({"explanation": explained}))]
    for key, score in summarize(rows, [clips[0]["transcript"]]).items():
        assert found["scores"]["spes"][key]["value"] == pytest.approx(score.value)
    spes, random = (found["scores"][name] for name in ("spes", "random"))
    assert spes["deletion_probability"]["value"] < random["deletion_probability"]["value"]
    assert "| spes |" in shown and "| energy |" in shown and "clean WER" in shown and "evaluation.json" in shown
    for key in ("deletion", "insertion", "deletion_probability", "insertion_probability", "size_audio"):
        assert (folder / f"evaluation_{key}.png").stat().st_size > 5_000
    assert Explanation.load(folder).text == explained.text  # what was there is as it was


def test_without_a_reference_the_clean_output_is_compared_with(folder):
    assert evaluate(folder, "--metrics", "deletion", "--baselines", "none") == 0
    found = written(folder)
    assert found["against"] == "prediction" and list(found["scores"]) == ["spes"]
    assert found["scores"]["spes"]["clean"]["value"] == 0


def test_size_needs_no_model(folder, capsys):
    assert cli.main(["evaluate", str(folder), "--metrics", "size", "--quiet"]) == 0
    assert "clean" not in capsys.readouterr().out and list(written(folder)["scores"]["spes"]) == [
        "size_audio",
        "size_token",
    ]


def test_words(folder, capsys):
    assert evaluate(folder, "--metrics", "word_deletion,word_insertion", "--max-words", "2") == 0
    found = written(folder)["scores"]
    assert set(found["spes"]) == {"word_deletion", "word_specificity", "word_margin", "word_insertion"}
    assert len({found[name]["word_deletion"]["value"] for name in ("spes", "random", "energy")}) == 3
    assert "a word's probability" in capsys.readouterr().out


def test_a_corpus(job, capsys):
    assert evaluate(job, "--reference-column", "said", "--metrics", "deletion,size", "--baselines", "none") == 0
    found = written(job)
    assert (found["utterances"], found["skipped"], found["failures"]) == (2, 1, [])
    assert "rows skipped because they hold an error instead of an explanation: 1" in capsys.readouterr().out
    assert evaluate(job, "--metrics", "size", "--limit", "1") == 0
    assert written(job)["utterances"] == 1


@pytest.mark.parametrize(("config", "name"), [(RandomConfig(), "random"), (EnergyConfig(), "energy")])
@pytest.mark.parametrize("words", [None, [1]])
def test_a_baseline_is_what_the_method_draws(model, clips, config, name, words):
    own, other = (
        Explainer(*model, c, seed=5, progress=False)(clips[0]["path"], utterance_id="u", words=words)
        for c in (FEW, config)
    )
    found = baseline_of(own, config, seed=5)
    assert torch.equal(found.raw_audio, other.raw_audio) and found.method == name
    assert torch.equal(found.raw_token.nan_to_num(), other.raw_token.nan_to_num())
    assert torch.equal(found.sentence_saliency, other.sentence_saliency)
    assert found.provenance["config"] == other.provenance["config"]


def test_a_recording(model, clips, tmp_path, capsys):
    found = explain(*model, clips[0]["path"], config=FEW, segment="pauses", progress=False, folder=tmp_path / "talk")
    assert isinstance(found, Recording)
    assert evaluate(tmp_path / "talk", "--metrics", "deletion,size", "--baselines", "energy") == 0
    assert list(written(tmp_path / "talk")["scores"]) == ["spes", "energy"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--metrics", "delition"], cli.EXIT_USAGE, "--metrics is 'delition'; allowed: one or more of deletion"),
        (["--metrics", ""], cli.EXIT_USAGE, "--metrics is ''"),
        (["--baselines", "loud"], cli.EXIT_USAGE, "--baselines is 'loud'"),
        (["--quality", "meteor"], cli.EXIT_USAGE, "metric is 'meteor'"),
        (["--reference-column", "said"], cli.EXIT_USAGE, "holds no corpus; pass --reference"),
        (["--limit", "0"], cli.EXIT_USAGE, "--limit is 0"),
        (["--max-words", "0", "--metrics", "word_deletion"], cli.EXIT_USAGE, "--max-words is 0; allowed: a whole"),
        (["--model", "seamless-en-de-es"], cli.EXIT_USAGE, "pass the model that was explained"),
        (["--model", "/no/such/model"], cli.EXIT_MODEL, "cannot be loaded"),
        (["--reference", " "], cli.EXIT_USAGE, "--reference is ' '"),
    ],
)
def test_bad_arguments(folder, capsys, arguments, code, message):
    assert evaluate(folder, *arguments) == code
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (folder / "evaluation.json").exists()


def test_bad_folders(model, clips, job, tmp_path, capsys):
    assert evaluate(tmp_path) == cli.EXIT_FORMAT
    assert evaluate(tmp_path / "none") == cli.EXIT_FORMAT
    assert cli.main(["evaluate", str(tmp_path)]) == cli.EXIT_USAGE and "--model is missing" in capsys.readouterr().err
    assert evaluate(job, "--reference", "a text") == cli.EXIT_USAGE
    assert evaluate(job, "--reference-column", "text") == cli.EXIT_USAGE
    assert "the corpus has row_index, id, said" in capsys.readouterr().err
    last = clips[0]["transcript"].split()[-1].strip(".").lower()
    foil = {last: "house" if last != "house" else "dog"}
    explain(*model, clips[0]["path"], config=FEW, foil=foil, progress=False).save(tmp_path / "foil")
    assert evaluate(tmp_path / "foil") == cli.EXIT_USAGE and "has a foil" in capsys.readouterr().err

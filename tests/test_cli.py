"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from spes_hf import Explanation, SpesConfig, cli
from spes_hf.demo import tiny_clips
from spes_hf.explanation.diagnosis import Diagnosis


@pytest.fixture(scope="module")
def folder(small_whisper, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, processor = small_whisper
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def clip(tone, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone, 16_000)
    return path


def explain(folder, clip, *more):
    small = ["--num-masks", "12", "--num-token-masks", "10", "--quiet", "--text", "ask not what"]
    return cli.main(["explain", str(clip), "--model", str(folder), "--device", "cpu", *small, *more])


def test_explain_writes_page_pictures_and_explanation(folder, clip, tmp_path, capsys):
    out = tmp_path / "out"
    assert explain(folder, clip, "--preset", "fast", "--out", str(out), "--seed", "7") == 0
    shown = capsys.readouterr().out
    assert "ask not what" in shown and "words that the sound had no part in (under 1 bit): " in shown
    assert "bits a token from the sound" in shown and "made up" not in shown  # the text was given
    assert str(out / "explanation.html") in shown
    for name in ("explanation.html", "sentence.png", "tokens.png"):
        assert (out / name).stat().st_size > 2_000
    loaded = Explanation.load(out)
    assert loaded.tokens[:3] == [" ask", " not", " what"]
    assert loaded.provenance["seed"] == 7
    assert loaded.provenance["config"]["estimator"] == "gradient"
    assert loaded.provenance["config"]["masks_per_token"] == 4

    (out / "explanation.html").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "explanation.html").exists()


def test_presets(folder, clip, tmp_path):
    few = {"num_spectrogram_masks": 12, "num_token_masks": 10}
    for name, expected in {"default": SpesConfig(**few), "paper": SpesConfig.paper("asr", **few)}.items():
        assert explain(folder, clip, "--preset", name, "--out", str(tmp_path / name)) == 0
        found = Explanation.load(tmp_path / name).provenance["config"]
        assert SpesConfig.from_dict(found) == expected.with_impact_for(text_given=True)
        assert found["impact"] == {"default": "log-probability", "paper": "kl"}[name]


def test_the_folder_is_named_after_the_clip(folder, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert explain(folder, clip) == 0
    assert (tmp_path / "spes_clip" / "explanation.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--num-masks", "0"], cli.EXIT_USAGE, "num_spectrogram_masks is 0"),
        (["--device", "cuda:99"], cli.EXIT_USAGE, "cuda:99"),
        (["--tgt-lang", "deu"], cli.EXIT_USAGE, "tgt_lang"),
        (["--text", " "], cli.EXIT_USAGE, "text is"),
    ],
)
def test_wrong_settings(folder, clip, tmp_path, capsys, arguments, code, words):
    assert explain(folder, clip, "--out", str(tmp_path / "out"), *arguments) == code
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_wrong_audio_model_and_folder(folder, clip, tmp_path, capsys):
    assert explain(folder, tmp_path / "no.wav") == cli.EXIT_AUDIO
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    assert explain(folder, tmp_path / "empty.wav") == cli.EXIT_AUDIO
    assert explain(tmp_path / "no-model", clip) == cli.EXIT_MODEL
    assert cli.main(["report", str(tmp_path)]) == cli.EXIT_FORMAT
    (tmp_path / "file").touch()
    assert explain(folder, clip, "--out", str(tmp_path / "file")) == cli.EXIT_USAGE
    assert "Traceback" not in capsys.readouterr().err


def test_dtype_that_does_not_exist(folder, clip):
    with pytest.raises(SystemExit) as stopped:
        explain(folder, clip, "--dtype", "float99")
    assert stopped.value.code == cli.EXIT_USAGE


@pytest.fixture(scope="module")
def tiny_clip():
    return next(row["path"] for row in tiny_clips() if row["id"] == "tst-COMMON-0105")


def diagnose(clip, reference, *more, quick=("--num-masks", "4", "--num-token-masks", "2")):
    """The model writes "At half past eleven Tom needs the beautiful house."."""
    settings = ["--model", "speech2text-en", "--device", "cpu", "--quiet", *quick]
    return cli.main(["diagnose", str(clip), "--reference", str(reference), *settings, *more])


def test_diagnose_writes_page_numbers_and_explanation(tiny_clip, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    (tmp_path / "reference.txt").write_text("\ufeffAt half past eleven Tom\r\nneeds a beautiful hat.\n", "utf-8")
    assert diagnose(tiny_clip, tmp_path / "reference.txt", "--out", str(out), "--seed", "7") == 0
    shown = capsys.readouterr().out.splitlines()
    values = json.loads((out / "diagnosis.json").read_text("utf-8"))
    explanation = Explanation.load(out / "explanation")
    found = Diagnosis.from_dict(values, explanation)
    assert values["reference"] == "At half past eleven Tom needs a beautiful hat."
    assert [(e.written, e.said) for e in found.errors] == [("the", "a"), ("house", "hat")]
    assert shown[:3] == str(found).splitlines()
    assert f"page: {out / 'diagnosis.html'}" in shown and (out / "diagnosis.html").stat().st_size > 20_000
    assert [c.name for c in explanation.contrasts] == ["the, not a", "house, not hat"]
    assert explanation.provenance["seed"] == 7
    assert explanation.provenance["config"]["num_token_masks"] == 2

    assert cli.main(["report", str(out / "explanation")]) == 0
    told = capsys.readouterr().out
    assert f"house, not hat: {found.errors[1].log_odds:+.1f} bits; the sound adds " in told and "nan" not in told


def test_diagnose_words_of_a_text_that_is_right(tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert diagnose(tiny_clip, "at half past eleven Tom needs the beautiful house") == 0
    folder = tmp_path / "diagnosis_tst-COMMON-0105"
    assert sorted(path.name for path in folder.iterdir()) == ["diagnosis.html", "diagnosis.json"]
    assert "no error" in capsys.readouterr().out


def test_diagnose_takes_a_given_text(tiny_clip, tmp_path, capsys):
    right = "At half past eleven Tom needs the beautiful hat."
    assert diagnose(tiny_clip, right, "--text", right, "--out", str(tmp_path)) == 0
    assert "beautiful hat.': no error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\r\n \n", "ref.txt', which has no text"),
        ("Caf\u00e9".encode("cp1252"), "is not UTF-8 at column 4"),
        (b"...", "which has no word"),
        (b"entirely other words are here", "no word in common"),
    ],
)
def test_diagnose_refuses_a_reference(tiny_clip, tmp_path, capsys, content, words):
    (tmp_path / "ref.txt").write_bytes(content)
    assert diagnose(tiny_clip, tmp_path / "ref.txt", "--out", str(tmp_path / "out")) == cli.EXIT_USAGE
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_diagnose_refuses_what_explain_does(tiny_clip, tmp_path, capsys):
    assert diagnose(tiny_clip, " ") == cli.EXIT_USAGE
    assert diagnose(tmp_path / "no.wav", "a word") == cli.EXIT_AUDIO
    assert diagnose(tiny_clip, "a word", "--num-masks", "0") == cli.EXIT_USAGE
    assert diagnose(tiny_clip, "a word", "--model", str(tmp_path / "no-model")) == cli.EXIT_MODEL
    assert diagnose(tiny_clip, "a" * 5000, "--out", str(tmp_path / "out")) == cli.EXIT_USAGE  # no name of a file
    (tmp_path / "file").touch()
    assert diagnose(tiny_clip, "a word", "--out", str(tmp_path / "file")) == cli.EXIT_USAGE
    assert "Traceback" not in capsys.readouterr().err


def test_a_console_of_few_letters(folder, clip, tmp_path):
    assert explain(folder, clip, "--out", str(tmp_path / "out"), "--text", "zaż") == 0
    done = subprocess.run(
        [sys.executable, "-m", "spes_hf.cli", "report", str(tmp_path / "out")],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and b"\\u017c" in done.stdout


def test_debug_shows_the_traceback(folder, tmp_path):
    with pytest.raises(cli.AudioError):
        explain(folder, tmp_path / "no.wav", "--debug")


def test_an_interrupt_is_an_exit_code(monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_demo", interrupt)
    assert cli.main(["demo"]) == cli.EXIT_INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_help_is_quick_and_complete():
    """No heavy import for a manual page."""
    code = "import sys; from spes_hf.cli import build_parser; build_parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    shown = {
        command: subprocess.run(
            [sys.executable, "-m", "spes_hf.cli", command, "--help"], check=True, capture_output=True, text=True
        ).stdout
        for command in ("explain", "diagnose")
    }
    assert "--reference" in shown["diagnose"] and "--reference" not in shown["explain"]
    for option in (
        "--model",
        "--preset",
        "--num-masks",
        "--language",
        "--task",
        "--out",
        "--seed",
        "--device",
        "--dtype",
    ):
        assert option in shown["explain"] and option in shown["diagnose"]

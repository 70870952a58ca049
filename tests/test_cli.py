"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from spes_hf import Explanation, Recording, SpesConfig, cli


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
    assert loaded.provenance["config"]["masks_per_token"] == 8

    (out / "explanation.html").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert (out / "explanation.html").exists()


def test_over_the_encoder(folder, clip, tmp_path, capsys):
    assert explain(folder, clip, "--preset", "fast", "--out", str(tmp_path / "out"), "--over", "encoder") == 0
    assert Explanation.load(tmp_path / "out").raw_encoder.shape[1] == 60
    with pytest.raises(SystemExit):
        explain(folder, clip, "--over", "decoder")
    assert "spectrogram" in capsys.readouterr().err


def test_a_recording_has_a_page_a_picture_and_its_own_words(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    settings |= {"max_length": 8, "no_repeat_ngram_size": 1}  # a random model never stops
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    sound = 0.1 * np.random.default_rng(0).standard_normal(5 * 16_000)
    soundfile.write(tmp_path / "talk.wav", sound, 16_000)
    out, few = tmp_path / "out", ["--num-masks", "4", "--num-token-masks", "4", "--device", "cpu", "--quiet"]
    command = ["explain", str(tmp_path / "talk.wav"), "--preset", "fast", "--out", str(out)]
    command[2:2] = ["--model", str(tmp_path / "model")]
    assert cli.main([*command, *few, "--end", "1.5", "--words", "0"]) == 2  # no word reads "0"
    assert "which the model did not write" in capsys.readouterr().err
    assert cli.main([*command, *few, "--end", "1.5"]) == 0
    shown = capsys.readouterr().out
    assert "1 window explained" in shown and str(out / "recording.html") in shown and "Recording.load" in shown
    recording = Recording.load(out)
    assert len(recording) == 1 and f"  0:00.0–0:01.0  {recording.heard[0].text[:5]}" in shown
    word = recording.words().tokens[0].strip()
    assert cli.main([*command, *few, "--end", "1.5", "--words", word]) == 2
    assert "holds another recording (different: words)" in capsys.readouterr().err
    (out / "recording.html").unlink()
    assert cli.main(["report", str(out)]) == 0 and (out / "recording.html").stat().st_size > 2_000
    command[-1] = str(tmp_path / "word")
    assert cli.main([*command, *few, "--end", "1.5", "--words", word]) == 0
    assert f"  {word} at 0:0" in capsys.readouterr().out


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
    shown = subprocess.run(
        [sys.executable, "-m", "spes_hf.cli", "explain", "--help"], check=True, capture_output=True, text=True
    ).stdout
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
        assert option in shown


def test_a_misspelt_model_is_told_which_was_meant(clip, capsys):
    assert cli.main(["explain", str(clip), "--model", "speech2txt-en"]) == cli.EXIT_MODEL
    first = capsys.readouterr().err.splitlines()[0]
    assert "--model 'speech2txt-en' cannot be loaded: did you mean speech2text-en? Pass the id" in first

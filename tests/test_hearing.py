"""The check without maps: what it takes, what it says, over rows and from the command line."""

import math
import re
from dataclasses import replace

import datasets
import numpy as np
import pytest
import soundfile
import torch

from spes_hf import (
    AudioError,
    ConfigError,
    Explanation,
    SoundCheck,
    SoundChecker,
    SpesConfig,
    cli,
    explain,
    sound_check,
)
from spes_hf.bits import probability_made_up
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.hearing import Hearing
from spes_hf.jobs.run import load_explained, map_rows


@pytest.fixture(scope="module")
def speech2text():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def paths():
    return [clip["path"] for clip in tiny_clips()[:3]]


def test_it_says_what_the_explanation_says_in_three_passes(speech2text, paths):
    model, processor = speech2text
    ran = []
    handle = model.get_encoder().register_forward_hook(lambda *_: ran.append("encoder"))
    found = sound_check(model, processor, paths[0])
    handle.remove()
    assert len(ran) == 2  # with the sound, which generating shares, and without
    expected = explain(model, processor, paths[0], config=SpesConfig.fast(), progress=False)
    words = expected.words()
    assert found.text == expected.text and list(found.words) == words.tokens
    assert list(found.word_bits) == pytest.approx(words.sound_bits.tolist(), abs=1e-4)
    assert found.bits_per_token == pytest.approx(expected.bits_per_token, abs=1e-4)
    assert found.verdict == expected.verdict == "not known"  # the limit was fitted on Whisper
    as_whisper = replace(found, fitted=True)
    assert as_whisper.probability_made_up == probability_made_up(found.bits_per_token) and "bits a token" in str(found)


def test_noise_is_told_from_speech(speech2text, paths):
    """A trained model writes a sentence for noise, too."""
    checker = SoundChecker(*speech2text)
    heard = [checker(path) for path in paths]
    noise = [np.random.default_rng(seed).standard_normal(24_000).astype(np.float32) / 30 for seed in range(3)]
    made_up = [checker(samples, sampling_rate=16_000) for samples in noise]
    assert all(found.words for found in made_up)
    assert max(f.bits_per_token for f in made_up) < min(f.bits_per_token for f in heard)


def test_a_given_text_that_was_not_said_has_bits_against_it(speech2text, paths):
    said = sound_check(*speech2text, paths[0]).text
    assert sound_check(*speech2text, paths[0], text=said).bits_per_token > 1
    other = sound_check(*speech2text, paths[0], text=sound_check(*speech2text, paths[1]).text)
    assert other.bits_per_token < 0 and other.verdict == "given" and "made up" not in str(other)


def test_what_is_written_without_words(speech2text):
    blank = Hearing("…", ("…",), (0.0,), 0.1)
    assert blank.verdict == "nothing written" == str(blank) and blank.not_heard == ()


def test_the_model_is_left_as_it_was(speech2text, paths):
    model, processor = speech2text
    model.train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    sound_check(model, processor, paths[0])
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    model.eval()


def test_rows(speech2text, paths, tmp_path):
    data = datasets.Dataset.from_dict({"audio": [*paths, str(tmp_path / "missing.wav")]})
    rows = data.map(SoundCheck(*speech2text))
    expected = [sound_check(*speech2text, path) for path in paths]
    assert [row["prediction"] for row in rows][:3] == [e.text for e in expected]
    assert rows[1]["word_bits"] == pytest.approx(list(expected[1].word_bits), abs=1e-5)
    assert [row["verdict"] for row in rows] == [*(e.verdict for e in expected), ""]
    assert "missing.wav" in rows[3]["error"] and rows[3]["words"] == [] and math.isnan(rows[3]["bits_per_word"])
    batched = data.map(SoundCheck(*speech2text), batched=True, batch_size=2)
    assert batched["bits_per_token"][:3] == rows["bits_per_token"][:3]
    np.testing.assert_array_equal(batched["probability_made_up"][:], rows["probability_made_up"][:])


def test_a_job(speech2text, paths, tmp_path):
    data = datasets.Dataset.from_dict({"id": ["a", "b", "c"], "audio": paths})
    summary = map_rows(data, [SoundCheck(*speech2text)], tmp_path / "out", audio_column="audio", progress=False)
    assert summary.complete and not summary.failures
    assert load_explained(tmp_path / "out")["verdict"][:] == [sound_check(*speech2text, path).verdict for path in paths]


def test_rows_of_explanations_have_bits(speech2text, paths):
    found = explain(*speech2text, paths[0], config=SpesConfig.fast(), progress=False)
    row = found.to_row()
    assert row["sound_bits"] == found.sound_bits.tolist() and row["bits_per_token"] == found.bits_per_token
    back = Explanation.from_row(row)
    assert torch.equal(back.sound_bits, found.sound_bits) and torch.equal(back.text_bits, found.text_bits)


def test_command_line(paths, tmp_path, capsys):
    noise = tmp_path / "noise.wav"
    soundfile.write(noise, np.random.default_rng(0).standard_normal(24_000) / 30, 16_000)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    code = cli.main(["check", paths[0], str(broken), str(noise), "--model", "speech2text-en"])
    out, error = capsys.readouterr()
    assert code == cli.EXIT_AUDIO and "broken.wav" in error and "1 of 3 recordings could not be checked" in error
    bits = [float(number) for number in re.findall(r": (-?[\d.]+) bits a token", out)]
    assert len(bits) == 2 and bits[0] > bits[1]


@pytest.mark.parametrize("seed", ["x", 1.5, True, None])
def test_a_seed_that_is_no_whole_number_is_refused(speech2text, seed):
    with pytest.raises(ConfigError, match="seed is .*; allowed: a whole number"):
        SoundChecker(*speech2text, seed=seed)


def test_audio_that_cannot_be_read_is_refused(speech2text):
    with pytest.raises(AudioError, match="nowhere.wav"):
        sound_check(*speech2text, "nowhere.wav")

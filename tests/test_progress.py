"""What a function hears that is passed as ``progress``, and how it ends a call."""

import itertools

import numpy as np
import pytest
import soundfile

from spes_hf import ConfigError, SpesConfig, diagnose, explain
from spes_hf.demo import load_tiny_model, tiny_clips

CONFIG = SpesConfig(num_spectrogram_masks=4, masks_per_token=2, num_token_masks=8)
SMALL = {"config": CONFIG, "batch_size": 2}


@pytest.fixture(scope="module")
def model():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def clip():
    return next(c for c in tiny_clips() if c["kind"] == "statement")


def rises(shares):
    return all(a < b for a, b in itertools.pairwise(shares))


def test_shares_rise_to_one_and_no_bar_is_shown(model, clip, capsys):
    shares = []
    found = explain(*model, clip["path"], progress=shares.append, **SMALL)
    assert len(shares) > 4 and rises(shares) and shares[-1] == 1
    assert 0 < shares[0] < 1
    assert not capsys.readouterr().err
    plain = explain(*model, clip["path"], progress=False, **SMALL)
    assert found.raw_audio.equal(plain.raw_audio)


def test_shares_of_a_recording_are_of_all_its_windows(model, clip, tmp_path):
    sound = soundfile.read(clip["path"], dtype="float32")[0]
    soundfile.write(tmp_path / "two.wav", np.concatenate([sound, np.zeros(12_800, np.float32), sound]), 16_000)
    shares = []
    found = explain(*model, tmp_path / "two.wav", segment="pauses", progress=shares.append, **SMALL)
    assert len(found) == 2
    assert rises(shares) and shares[-1] == pytest.approx(1, abs=1e-6)
    assert any(0.4 < share < 0.6 for share in shares)


def test_a_diagnosis_tells_of_its_passes(model, clip):
    shares = []
    diagnose(*model, clip["path"], clip["transcript"].replace("small", "old"), progress=shares.append, **SMALL)
    assert shares[-1] == 1 and 0 < shares[0] < 1


class StopError(Exception):
    pass


def test_an_error_of_the_function_ends_the_call(model, clip):
    calls = []

    def stop(share):
        calls.append(share)
        if len(calls) == 2:
            raise StopError

    with pytest.raises(StopError):
        explain(*model, clip["path"], progress=stop, **SMALL)
    assert len(calls) == 2
    again = explain(*model, clip["path"], progress=False, **SMALL)  # the model is as it was
    assert again.text


@pytest.mark.parametrize("value", ["yes", None, 1])
def test_other_values_are_refused(model, clip, value):
    with pytest.raises(ConfigError, match=r"progress is .*allowed: True, False, or a function"):
        explain(*model, clip["path"], progress=value, **SMALL)

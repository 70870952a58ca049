"""The sound that a map keeps: the recording without rounding, its parts that add up, and the right places."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from spes_hf import EnergyConfig, Explanation, Insertion, RandomConfig, SpesConfig, WordInsertion, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.errors import ConfigError
from spes_hf.explanation.listening import masked
from spes_hf.functional import deletion_masks

FAMILIES = {"whisper": {}, "speech2text-en": {}, "seamless-en-de-es": {"tgt_lang": "deu"}}


@pytest.fixture(scope="module", params=FAMILIES)
def explained(request):
    """Return model, processor and explanation of a real clip: log-mel of Whisper, or Kaldi's, stacked or not."""
    if request.param == "whisper":
        model, processor = request.getfixturevalue("whisper")
    else:
        model, processor = load_tiny_model(request.param)
    clip, config = tiny_clips()[0]["path"], RandomConfig() if request.param == "whisper" else SpesConfig.fast()
    found = explain(model, processor, clip, config=config, progress=False, **FAMILIES[request.param])
    return model, processor, found


@pytest.fixture(scope="module")
def explanation(explained) -> Explanation:
    return explained[2]


def test_everything_is_the_recording(explanation):
    samples, rate = explanation.listen(top=1)
    assert rate == explanation.sampling_rate and samples.dtype == np.float32
    np.testing.assert_allclose(samples, explanation.waveform.numpy(), rtol=0, atol=1e-6)


def test_nothing_is_silence(explanation):
    sound = explanation.listen(top=0)
    assert sound.samples.shape == explanation.waveform.shape and not sound.samples.any()
    np.testing.assert_allclose(explanation.listen(top=0, complement=True).samples, explanation.waveform, atol=1e-6)


@pytest.mark.parametrize("token", [None, 0, -1])
@pytest.mark.parametrize("top", [0.001, 0.2, 0.9])
def test_both_parts_add_up_to_the_recording(explanation, token, top):
    kept, rest = (explanation.listen(token, top, complement=other).samples for other in (False, True))
    assert 1e-4 < np.abs(kept).max() and 1e-4 < np.abs(rest).max()
    np.testing.assert_allclose(kept + rest, explanation.waveform.numpy(), rtol=0, atol=1e-6)


def test_keeps_what_the_metrics_keep(explained):
    model, processor, explanation = explained
    where = explanation.times, explanation.frequencies

    def sound(metric, saliency):
        keep = metric(model, processor, (0, 0.2)).keep(saliency)[1]
        return masked(explanation.waveform, explanation.sampling_rate, keep, *where)

    words = explanation.words()
    np.testing.assert_array_equal(explanation.listen().samples, sound(Insertion, explanation.sentence_saliency))
    np.testing.assert_array_equal(words.listen().samples, explanation.listen().samples)
    for k, word in enumerate(words.tokens):
        if words.tokens.count(word) == 1:
            np.testing.assert_array_equal(words.listen(word).samples, sound(WordInsertion, words.audio_saliency[k]))


def test_a_window_of_a_recording_has_its_own_sound(explanation):
    provenance = {**explanation.provenance, "window": {"start_s": 30.0}}
    window = replace(explanation, times=explanation.times.double() + 30.0, provenance=provenance)
    np.testing.assert_allclose(window.listen().samples, explanation.listen().samples, atol=1e-5)


def test_the_saved_explanation_sounds_the_same(explanation, tmp_path):
    loaded = Explanation.load(explanation.save(tmp_path / "saved"))
    np.testing.assert_array_equal(loaded.listen(0, 0.1).samples, explanation.listen(0, 0.1).samples)


def test_a_kept_place_lets_through_what_sounds_there(explanation):
    """Two tones, one after the other: of four quarters of the spectrogram, each tone is in one."""
    rate, times, hertz = explanation.sampling_rate, explanation.times, explanation.frequencies
    duration = len(explanation.waveform) / rate
    t, half = torch.arange(len(explanation.waveform)) / rate, duration / 2
    early, late = t < half - 0.05, t > half + 0.05
    low, high = torch.sin(2 * torch.pi * 440 * t), torch.sin(2 * torch.pi * 3000 * t)
    tones = torch.where(t < half, low, high)

    def through(keep):
        left = torch.from_numpy(masked(tones, rate, keep.double(), times, hertz))
        return [float(left[part].std() / tones[part].std()) for part in (early, late)]

    before, below = (times < half)[:, None], (hertz < 1500)[None]
    assert through(before & below) == pytest.approx([1, 0], abs=0.02)
    assert through(~before & ~below) == pytest.approx([0, 1], abs=0.02)
    assert through(before & ~below) == pytest.approx([0, 0], abs=0.02)
    assert through(~before & below) == pytest.approx([0, 0], abs=0.02)
    assert through(0.25 * torch.ones(len(times), len(hertz))) == pytest.approx([0.25, 0.25], abs=1e-6)


def test_a_single_frame_lies_where_the_explanation_says(explanation):
    """A click in the middle of a frame passes through the mask of this frame, and of no frame three further on."""
    frame = len(explanation.times) // 2
    click = torch.zeros_like(explanation.waveform)
    click[round(float(explanation.times[frame]) * explanation.sampling_rate)] = 1.0

    def through(kept):
        keep = torch.zeros_like(explanation.features)
        keep[kept] = 1
        left = masked(click, explanation.sampling_rate, keep, explanation.times, explanation.frequencies)
        return float(np.square(left).sum())

    heard = [through(frame + step) for step in (-3, -1, 0, 1, 3)]
    assert heard[2] == max(heard) and heard[1] == pytest.approx(heard[3], rel=1e-2)
    assert heard[0] < 1e-6 and heard[4] < 1e-6 and heard[1] < heard[2] / 2


@pytest.mark.parametrize("top", [-0.1, 1.01, float("nan"), "20 %", None, True, 20])
def test_refuses_a_share_that_is_none(explanation, top):
    with pytest.raises(ConfigError, match=r"top is .*; allowed: the share of the cells to keep, from 0 to 1"):
        explanation.listen(top=top)


def test_refuses_an_unknown_token(explanation):
    with pytest.raises(IndexError, match=f"token is 99, but {len(explanation)} are explained"):
        explanation.listen(99)
    with pytest.raises(KeyError, match="'xylophone' does not occur"):
        explanation.listen("xylophone")


def test_says_what_to_do_without_samples(explanation):
    silent = replace(explanation, waveform=explanation.waveform[:0])
    with pytest.raises(ConfigError, match=r"no samples.*explain the audio again, or .*waveform=samples"):
        silent.listen()


def test_a_notebook_gets_a_player(explanation):
    sound = explanation.listen()
    fragment = sound._repr_html_()
    assert re.fullmatch(r'<audio controls src="data:audio/flac;base64,[\w+/=]+"></audio>', fragment)
    played, rate = soundfile.read(io.BytesIO(base64.b64decode(fragment.split(",")[1].split('"')[0])), dtype="float32")
    assert rate == sound.rate
    np.testing.assert_allclose(played, sound.samples, atol=2**-15)


def test_the_loudest_cells_hold_nearly_all_of_the_sound(explained):
    model, processor, explanation = explained
    options = {"tgt_lang": "deu"} if explanation.origin.tgt_lang else {}
    loud = explain(model, processor, tiny_clips()[0]["path"], config=EnergyConfig(), progress=False, **options)
    (quiet,) = deletion_masks(-loud.sentence_saliency, [0.2])
    energy = [np.square(s).sum() for s in (loud.listen().samples, loud.waveform.numpy())]
    few = masked(loud.waveform, loud.sampling_rate, ~quiet, loud.times, loud.frequencies)
    assert energy[0] > 0.5 * energy[1] and np.square(few).sum() < 0.01 * energy[1]

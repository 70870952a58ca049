"""Two explanations of one clip side by side: of two trained models, of two methods; what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spes_hf import Comparison, Explanation, RandomConfig, SpesConfig, cli, compare, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.errors import AudioError, ConfigError
from spes_hf.explanation.comparison import rank_correlation
from spes_hf.viz import scale


@pytest.fixture(scope="module")
def clip():
    return next(c for c in tiny_clips() if c["kind"] == "statement")


@pytest.fixture(scope="module")
def recognised(clip):
    model, processor = load_tiny_model("speech2text-en")
    return explain(model, processor, clip["path"], config=SpesConfig.fast(), progress=False)


@pytest.fixture(scope="module")
def again(clip):
    """The same with other masks."""
    model, processor = load_tiny_model("speech2text-en")
    return explain(model, processor, clip["path"], config=SpesConfig.fast(), seed=1, progress=False)


@pytest.fixture(scope="module")
def control(clip):
    model, processor = load_tiny_model("speech2text-en")
    return explain(model, processor, clip["path"], config=RandomConfig(), progress=False)


@pytest.fixture(scope="module")
def translated(clip):
    model, processor = load_tiny_model("seamless-en-de-es")
    return explain(model, processor, clip["path"], config=SpesConfig.fast(), tgt_lang="deu", progress=False)


@pytest.fixture(scope="module")
def of_whisper(whisper, clip):
    return explain(*whisper, clip["path"], config=SpesConfig.fast(), progress=False)


# What it says --------------------------------------------------------------------------------------------------------


def test_an_explanation_agrees_with_itself(recognised):
    found = compare(recognised, recognised.words())
    assert isinstance(found, Comparison) and found.same_grid and found.names == ("first", "second")
    assert all(pair.equal and pair.first == pair.second for pair in found.pairs)
    assert found.agreement.tolist() == pytest.approx([1.0] * len(found))
    assert found.sentence_agreement == pytest.approx(1.0)
    assert "both wrote the same words" in str(found)


def test_other_masks_agree_and_chance_does_not(recognised, again, control):
    one, other = compare(recognised, again), compare(recognised, control)
    assert one.names == ("seed 0", "seed 1") and other.names == ("spes", "random")
    assert float(one.agreement.mean()) > 0.5 > 0.3 > float(other.agreement.abs().mean())
    assert one.sentence_agreement > 0.5 > 0.3 > abs(other.sentence_agreement)


def test_maps_are_the_evidence_in_standard_deviations(recognised, control):
    words, found = recognised.words(), compare(recognised, control)
    k = found.find("small")
    first, second = found.maps(k)
    own = words.evidence("small")
    assert torch.allclose(first, own / own.std(), atol=1e-5)
    assert float(second.std()) == pytest.approx(1.0, abs=1e-5)
    assert found.maps("small")[0].equal(first)
    assert rank_correlation(*found.profiles(k)) == pytest.approx(float(found.agreement[k]), abs=1e-6)


def test_two_models_of_other_frames_and_mel_bins_meet_on_one_grid(recognised, of_whisper):
    """Whisper errs on this voice, in another number of words: "Sales has more big chur" for "sells a small picture"."""
    found = compare(recognised, of_whisper)
    assert not found.same_grid
    assert found.names[0] == "speech2text-en" and found.names[1].startswith("whisper-tiny.en")
    assert found.pairs[0].equal and not found.pairs[1].equal
    shape = (len(found.grid.times), len(found.grid.frequencies))
    for token in (None, *range(len(found))):
        assert all(values.shape == shape for values in found.maps(token))
    assert float(found.agreement.min()) > 0.2  # both hear the words where they are
    # "Tom" is the first word: both maps have their strongest frames there.
    end = next(word["end"] for word in clip_words(recognised))
    for profile in found.profiles("Tom"):
        assert float(found.grid.times[int(profile.argmax())]) < end + 0.1


def clip_words(explanation):
    """Return the words of the clip that an explanation is of."""
    return next(c for c in tiny_clips() if c["transcript"] == explanation.text)["words"]


def test_a_translation_is_compared_with_a_transcript(recognised, translated):
    found = compare(recognised, translated)
    assert found.names == ("speech2text-en", "seamless-en-de-es")
    assert [pair.equal for pair in found.pairs][0] and not all(pair.equal for pair in found.pairs)
    assert float(found.agreement[found.find("picture")]) > 0.5 and found.find("Bild") == found.find("picture")
    turned = compare(translated, recognised)
    assert turned.agreement.tolist() == pytest.approx(found.agreement.tolist(), abs=1e-5)


def test_words_of_one_text_alone_have_one_map(recognised):
    shorter = replace(recognised, pieces=(*recognised.pieces[:3], "", *recognised.pieces[4:]))  # without "small"
    found = compare(recognised, shorter)
    k = found.find("small")
    assert found.words[k] == (" small", "") and found.maps(k)[1] is None and found.profiles(k)[1] is None
    assert found.agreement[k].isnan() and not found.agreement[:k].isnan().any()
    assert "the texts differ in 1 of 5 places" in str(found)
    _, axes = found.plot(k)
    assert [text.get_text() for text in axes[1].texts] == ["no word here"]
    assert axes[2].texts[0].get_text().startswith("no difference")


# The figure ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "small", 0])
def test_figure_shows_both_maps_on_one_scale(recognised, control, token):
    found = compare(recognised, control)
    first, second = found.maps(token)
    figure, axes = found.plot(token)
    assert len(axes) == 4 and axes[3].get_xlabel() == "time (s)"
    drawn = [ax.images[1] for ax in axes[:3]]
    for image, values in zip(drawn, (first, second, first - second), strict=True):
        np.testing.assert_array_equal(image.get_array(), values.T.numpy())
    limit = max(scale.evidence_limit(first), scale.evidence_limit(second))
    assert {image.get_clim() for image in drawn} == {(-limit, limit)}
    assert [ax.get_title(loc="left").split(":")[0] for ax in axes[:2]] == ["spes", "random"]
    for line, profile in zip(axes[3].lines, found.profiles(token), strict=False):
        np.testing.assert_array_equal(line.get_ydata(), profile.numpy())
    agreement = found.sentence_agreement if token is None else float(found.agreement[found.find(token)])
    assert f"{agreement:.2f}".replace("-", "−") in figure.get_suptitle()


# What is refused -----------------------------------------------------------------------------------------------------


def test_other_audio_is_refused(recognised, again):
    shorter = replace(again, waveform=again.waveform[:-100])
    with pytest.raises(AudioError, match=r"first has \d\.\d{3} s of audio, but second has \d\.\d{3} s"):
        compare(recognised, shorter)
    turned = replace(again, waveform=again.waveform.flip(0))
    with pytest.raises(AudioError, match="different audio of the same length"):
        compare(recognised, turned)


def test_an_explanation_without_samples_is_refused(recognised, again):
    silent = replace(again, waveform=again.waveform[:0])
    with pytest.raises(ConfigError, match=r"second has no samples.*; explain the audio again, or restore its samples"):
        compare(recognised, silent)


def test_the_same_audio_in_16_bits_or_at_another_rate_is_the_same(recognised, again):
    rounded = replace(again, waveform=(again.waveform * 2**15).round() / 2**15)
    assert len(compare(recognised, rounded))
    slower = replace(again, waveform=torch.from_numpy(half_rate(again)), sampling_rate=again.sampling_rate // 2)
    assert len(compare(recognised, slower)) == len(compare(slower, recognised))


def half_rate(explanation):
    import soxr

    return soxr.resample(explanation.waveform.numpy(), explanation.sampling_rate, explanation.sampling_rate // 2)


def test_what_is_no_explanation_is_refused(recognised, tmp_path):
    with pytest.raises(ConfigError, match="second is of type str; allowed: an Explanation"):
        compare(recognised, str(tmp_path))
    with pytest.raises(ConfigError, match="first is of type NoneType"):
        compare(None, recognised)


def test_an_explanation_without_a_map_is_refused(recognised):
    empty = replace(recognised, pieces=(), token_id_list=(), special=(), probabilities=torch.zeros(0))
    with pytest.raises(ConfigError, match="second explains no token and so has no map"):
        compare(recognised, empty)


@pytest.mark.parametrize("axis", ["times", "frequencies"])
def test_a_damaged_explanation_is_refused(recognised, axis):
    damaged = replace(recognised, **{axis: getattr(recognised, axis) * 0})
    with pytest.raises(ConfigError, match=f"second is damaged: its {axis} do not increase"):
        compare(recognised, damaged)


@pytest.mark.parametrize("names", ["ab", ("a",), ("a", "a"), ("a", " "), ("a", 3), ("a", "b", "c")])
def test_names_are_two_different_texts(recognised, again, names):
    with pytest.raises(ConfigError, match="names is .* allowed: two different texts"):
        compare(recognised, again, names)
    assert compare(recognised, again, ("old", "new")).names == ("old", "new")


def test_words_that_are_not_there_are_refused(recognised, again):
    found = compare(recognised, again)
    with pytest.raises(KeyError, match="'elephant' does not occur"):
        found.maps("elephant")
    with pytest.raises(IndexError, match="token is 99"):
        found.plot(99)
    assert found.find(-1) == len(found) - 1


# The command line ----------------------------------------------------------------------------------------------------


def test_saved_explanations_are_compared(recognised, translated, tmp_path, capsys):
    paths = [str(each.save(tmp_path / name)) for each, name in ((recognised, "one"), (translated, "other"))]
    out = tmp_path / "out"
    assert cli.main(["compare", *paths, "--out", str(out), "--names", "English", "German"]) == 0
    told = capsys.readouterr().out
    expected = compare(Explanation.load(paths[0]), Explanation.load(paths[1]), ("English", "German"))
    assert str(expected) in told and str(out / "comparison.html") in told
    assert (out / "comparison.html").stat().st_size > 50_000 and (out / "comparison.png").stat().st_size > 20_000


def test_errors_of_the_command_line_have_their_codes(recognised, of_other_clip, tmp_path, capsys):
    one = str(recognised.save(tmp_path / "one"))
    assert cli.main(["compare", one, str(tmp_path / "nothing")]) == 5
    other = str(of_other_clip.save(tmp_path / "other"))
    assert cli.main(["compare", one, other]) == 3
    assert cli.main(["compare", one, one, "--out", str(tmp_path / "out"), "--names", "a", "a"]) == 2
    assert capsys.readouterr().err.count("spes-hf: ") == 3
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def of_other_clip(clip):
    other = next(c for c in tiny_clips() if c["id"] != clip["id"])
    model, processor = load_tiny_model("speech2text-en")
    return explain(model, processor, other["path"], config=RandomConfig(), progress=False)

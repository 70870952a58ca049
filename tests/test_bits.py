"""Bits over words, as a verdict, in plain words."""

import math
from dataclasses import replace

import pytest

from spes_hf import SpesConfig, explain, sound_check
from spes_hf.bits import bits_per_word, in_words, not_heard, probability_made_up, spoken, verdict_of
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.summaries import summary, summary_of_recording
from spes_hf.viz import notebook_html
from spes_hf.viz.report import page_data


def test_punctuation_is_no_word():
    words, bits = [" Good", " morning", ",", " $5", "…"], [3.0, 5.0, 0.1, 1.0, 0.0]
    assert spoken(words, bits) == [("Good", 3.0), ("morning", 5.0), ("$5", 1.0)]
    assert not_heard([*words, " day"], [*bits, 0.9]) == [("day", 0.9)]
    assert bits_per_word(words, bits) == 3
    assert math.isnan(bits_per_word([".", "!"], [9.0, 9.0]))
    assert math.isnan(bits_per_word([], []))


def test_fewer_bits_are_likelier_made_up():
    found = [probability_made_up(bits) for bits in (-5.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0)]
    assert found[0] == found[1] > 0.9 and found[-1] < 0.1
    assert found[1:] == sorted(found[1:], reverse=True)
    assert math.isnan(probability_made_up(math.nan))


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (8.0, "8.0 bits: 256 times likelier with the sound than without"),
        (10.09, "10.1 bits: 1,090 times likelier with the sound than without"),
        (1.0, "1.0 bits: 2.0 times likelier with the sound than without"),
        (-3.0, "-3.0 bits: 8.0 times less likely with the sound than without"),
        (0.01, "0 bits: as likely without the sound"),
        (math.nan, "not known"),
    ],
)
def test_in_words(bits, said):
    assert in_words(bits) == said


def test_bits_of_odds_speak_of_odds():
    assert in_words(8.0, odds=True) == "8.0 bits: the odds are 256 times higher with the sound than without"
    assert in_words(-3.0, odds=True) == "-3.0 bits: the odds are 8.0 times lower with the sound than without"
    assert in_words(0.0, odds=True) == "0 bits: the same odds without the sound"


@pytest.mark.parametrize("bits", [21.0, 120.0, 1e9])
def test_more_than_a_million_times_is_enough(bits):
    assert in_words(bits).endswith("bits: over a million times likelier with the sound than without")


@pytest.mark.parametrize(
    ("text", "bits", "given", "verdict"),
    [
        ("you", 0.1, False, "made up"),
        (" Good.", 8.0, False, "heard"),
        (" Good.", 0.1, True, "given"),
        (" Good.", math.nan, True, "given"),
        (".", 9.0, False, "nothing written"),
        ("", math.nan, False, "nothing written"),
        ("you", math.nan, False, "not known"),
    ],
)
def test_verdicts(text, bits, given, verdict):
    assert verdict_of(text, bits, given) == verdict


def test_no_verdict_on_models_that_the_limit_was_not_fitted_on(tmp_path):
    """In an explanation, its summary, page and notebook, in a check, and in a recording with its summary and figure."""
    model, processor = load_tiny_model("speech2text-en")
    config = SpesConfig(num_spectrogram_masks=2, masks_per_token=1, num_token_masks=2)
    clip = tiny_clips()[0]["path"]
    found = explain(model, processor, clip, config=config, progress=False)
    known = replace(found, provenance={**found.provenance, "model": {**found.provenance["model"], "type": "whisper"}})
    assert (found.verdict, known.verdict) == ("not known", verdict_of(found.text, found.bits_per_token))
    label = {"heard": "heard: ", "made up": "probably made up: "}[known.verdict]
    bits = f"{found.bits_per_token:.1f} bits a token from the sound"
    assert f"\n{bits}\n" in summary(found, tmp_path) and f"\n{label}{bits}\n" in summary(known, tmp_path)
    assert page_data(found)["sentence"]["verdict"] == "not known" == found.to_row()["verdict"]
    assert "made up" not in notebook_html(found)

    checked = sound_check(model, processor, clip)
    assert checked.verdict == "not known" and math.isnan(checked.probability_made_up)
    assert str(checked) == f"{found.text.strip()!r}: {checked.bits_per_token:.1f} bits a token"

    recording = explain(
        model, processor, clip, config=config, segment="pauses", folder=tmp_path / "recording", progress=False
    )
    assert recording.verdict == "not known" and not recording.made_up
    assert [segment.verdict for segment in recording.heard] == ["not known"]
    assert "made up" not in summary_of_recording(recording, tmp_path)
    assert "1 segment; for this model, it is not known which were made up." in recording._repr_html_()
    legend = [text.get_text() for text in recording.plot()[1][0].get_legend().get_texts()]
    assert legend == ["explained"]

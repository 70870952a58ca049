import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spes_hf.viz import scale


def test_ticks_lie_where_the_mel_bins_are(explanation):
    hertz = explanation.frequencies
    for tick, position in scale.frequency_ticks(hertz):
        if hertz[0] <= tick <= hertz[-1]:
            below = int(position)
            above = min(below + 1, len(hertz) - 1)
            expected = hertz[below] + (position - below) * (hertz[above] - hertz[below])
            assert float(expected) == pytest.approx(tick, rel=1e-5)


def test_ticks_stay_within_the_spectrogram(explanation):
    bins = len(explanation.frequencies)
    ticks = scale.frequency_ticks(explanation.frequencies)
    assert [hertz for hertz, _ in ticks] == [100, 500, 1000, 2000, 4000, 8000]
    assert all(-0.5 <= position <= bins - 0.5 for _, position in ticks)
    low = scale.frequency_ticks(torch.linspace(100, 3000, 30))
    assert [hertz for hertz, _ in low] == [100, 500, 1000, 2000]


def test_time_extent_covers_every_frame():
    start, end = scale.time_extent(torch.arange(100) * 0.01)
    assert (start, end) == pytest.approx((-0.005, 0.995))
    start, end = scale.time_extent(torch.tensor([0.02]))
    assert start < 0.02 < end


def test_the_scale_ends_at_a_high_percentile_of_the_size():
    values = torch.arange(1001.0).reshape(7, 143) / 1000
    assert scale.evidence_limit(values) == scale.evidence_limit(-values) == pytest.approx(0.997)
    assert scale.evidence_limit(torch.zeros(4, 5)) > 0
    one = torch.zeros(40, 50)
    one[0, 0] = 3.0
    assert scale.evidence_limit(one) == 3  # where nearly all is 0, the largest


def test_shown_makes_blanks_visible():
    assert scale.shown(" hello") == "hello"
    assert scale.shown(" ") == "␣"
    assert scale.shown("\n") == "↵"
    assert scale.shown("x" * 50) == "x" * 23 + "…"


def luminance(hexadecimal):
    channels = [int(hexadecimal[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_survive_greyscale():
    for falling in (scale.SOUND_ON_LIGHT, scale.TEXT_ON_LIGHT, scale.GREYS_ON_LIGHT):
        lights = [luminance(c) for c in falling]
        assert lights == sorted(lights, reverse=True)
    for rising in (scale.SOUND_ON_DARK, scale.GREYS_ON_DARK):
        lights = [luminance(c) for c in rising]
        assert lights == sorted(lights)
    # What is most salient is darker (on dark: lighter) than any spectrogram.
    assert luminance(scale.SOUND_ON_LIGHT[-1]) < luminance(scale.GREYS_ON_LIGHT[-1]) / 4
    assert luminance(scale.SOUND_ON_DARK[-1]) > luminance(scale.GREYS_ON_DARK[-1]) * 3


@given(st.text(st.characters(codec=None), max_size=20))
def test_clean_text_can_be_written(text):
    scale.clean(text).encode("utf-8")


def test_parts_of_characters_read_as_bytes():
    assert scale.clean("a\udce4") == "a\\xe4"
    assert scale.clean("\ud800") == "?"

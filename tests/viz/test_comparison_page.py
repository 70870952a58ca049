"""The page of a comparison: both texts, and for each word both maps and their difference."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from spes_hf import compare
from spes_hf.viz import comparison_page, write_comparison_html

HOSTILE = " </script><script>document.title='broken'</script>"
CHOSEN = "document.body.dataset.chosen"


@pytest.fixture(scope="module")
def comparison(make):
    """Two texts that differ in words, marks, and a word too many, on grids of their own."""
    # Longer than the text: Chromium cannot seek everywhere in the last seconds of a FLAC.
    first = make(rate=8000, waveform=torch.sin(torch.arange(40_000) / 9) / 2)
    other = make(
        (" Good", " even", "ing", " my", " $5", ".", "<|endoftext|>"),
        frames=30,
        bins=16,
        seed=7,
        times=0.005 + 0.02 * torch.arange(30),
        waveform=first.waveform,
        sampling_rate=8000,
    )
    return compare(first, other, ("old", "new <b>"))


@pytest.fixture(scope="module")
def page(comparison):
    return comparison_page.page(comparison)


def data_of(page):
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(block)


def decode(shown):
    """Return a map (T, C) from the page."""
    image = Image.open(io.BytesIO(base64.b64decode(shown["map"])))
    return (np.asarray(image, dtype=np.float32)[::-1].T - 128) / 127 * shown["scale"]


def test_page_loads_nothing_from_anywhere(page):
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page and not re.search(r"<(link|iframe|object|embed|img)\b", page)


def test_words_lie_side_by_side_with_their_marks(page):
    pairs = data_of(page)["pairs"]
    assert [(*pair["words"], pair["equal"]) for pair in pairs] == [
        ("Good", "Good", True),
        ("morning,", "evening my", False),
        ("$5", "$5.", True),
        ("äh", "", False),
    ]


def test_maps_in_the_page_are_those_of_the_comparison(page, comparison):
    data = data_of(page)
    assert (data["frames"], data["bins"]) == (len(comparison.grid.times), len(comparison.grid.frequencies)) == (30, 16)
    for k, shown in enumerate([*data["pairs"], data["sentence"]]):
        token = k if k < len(comparison) else None
        assert [one is None for one in shown["maps"]] == [False, k == 3]
        for one, expected in zip(shown["maps"], comparison.maps(token), strict=True):
            if one is None:
                continue
            limit = one["scale"]
            np.testing.assert_allclose(decode(one), expected.clamp(-limit, limit).numpy(), atol=limit / 127)
    agreement = [f"{value:.2f}".replace("-", "−") for value in comparison.agreement.tolist()[:3]]
    assert [pair["agreement"] for pair in data["pairs"]] == [*agreement, "–"]
    words = comparison.first.words()
    assert data["pairs"][1]["bits"][0] == pytest.approx(float(words.sound_bits[1]), abs=1e-4)


def test_notes_say_that_maps_were_averaged(page, comparison):
    assert "averaged onto 30 frames × 16 mel bins" in data_of(page)["notes"][-1]
    same = comparison_page.page(compare(comparison.first, comparison.first))
    assert not [note for note in data_of(same)["notes"] if "averaged" in note]


# In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(driven, comparison, tmp_path):
    path = write_comparison_html(comparison, tmp_path / "folder" / "page.html")

    def open_page(place="", **how):
        driven.open(path.as_uri() + place, **how)
        driven.wait(f"!!{CHOSEN}")
        return driven

    yield open_page
    assert driven.complaints == []


def text(selector):
    return f"document.querySelector({json.dumps(selector)}).textContent"


def test_a_click_on_a_word_shows_both_maps(opened, comparison):
    browser = opened()
    assert browser.js(CHOSEN) == "sentence" and browser.js(text("#heading")) == "The whole sentence"
    blank = browser.js("document.querySelector('#picture-second').toDataURL()")
    browser.click("#aligned button:nth-of-type(2)")
    browser.wait(f"{CHOSEN} === 'pair=1'")
    assert browser.js(text("#heading")).startswith("“morning,” and “evening my”")
    assert browser.js("document.querySelector('#picture-second').toDataURL()") != blank
    assert browser.js("[...document.querySelectorAll('#plot canvas')].every((c) => !c.hidden && c.width > 300)")
    assert f"{comparison.agreement[1]:.2f}".replace("-", "−") in browser.js(text("#numbers"))
    browser.press("ArrowRight")
    browser.wait(f"{CHOSEN} === 'pair=2'")
    browser.press("Escape")
    browser.wait(f"{CHOSEN} === 'sentence'")


def test_the_place_in_the_address_is_opened_and_a_click_seeks(opened):
    browser = opened("#pair=2", height=1400)
    assert browser.js(CHOSEN) == "pair=2"
    browser.wait("document.querySelector('#audio').readyState > 2")
    browser.click("#picture-difference", x=0.5)
    browser.wait("Math.abs(document.querySelector('#audio').currentTime - 0.3) < 0.05")
    assert "difference" in browser.js(text("#readout"))


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_nothing_sticks_out_of_the_page(opened, width, dark):
    browser = opened("#pair=1", width=width, height=844, dark=dark)
    assert browser.js("document.documentElement.scrollWidth") <= width


def test_a_word_of_one_text_alone_has_one_map(driven, make, tmp_path):
    short = make((" Good", "<|endoftext|>"))
    longer = make((" Good", " day", HOSTILE, "<|endoftext|>"), waveform=short.waveform)
    path = write_comparison_html(compare(short, longer, ("a" + HOSTILE, "b")), tmp_path / "page.html")
    driven.open(path.as_uri() + "#pair=1")
    driven.wait(f"{CHOSEN} === 'pair=1'")
    hidden = driven.js("[...document.querySelectorAll('#plot canvas')].map((canvas) => canvas.hidden)")
    assert hidden == [True, False, True]
    assert "(no word)" in driven.js(text("#aligned"))
    assert driven.js("document.title").startswith("Comparison: Good") and driven.complaints == []

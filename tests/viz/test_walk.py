"""The walk through the words of a page, in time with the sound."""

import pytest
import torch

from spes_hf import SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation import PatchMap
from spes_hf.viz import write_html
from spes_hf.viz.walk import word_times

CHOSEN = "document.body.dataset.chosen"
BUTTON = "document.querySelector('#walk').textContent"
TIME = "document.querySelector('#audio').currentTime"
PAUSED = "document.querySelector('#audio').paused"


@pytest.fixture(scope="module")
def clip():
    return next(c for c in tiny_clips() if c["kind"] == "statement")


@pytest.fixture(scope="module")
def spoken(clip):
    model, processor = load_tiny_model("speech2text-en")
    return explain(model, processor, clip["path"], config=SpesConfig.fast(), progress=False)


@pytest.fixture
def page(spoken, driven, tmp_path):
    """Return the browser with the page of the clip; it has not complained at the end."""
    path = write_html(spoken.words(), tmp_path / "page.html")

    def open_page(still=False):
        driven.open(path.as_uri())
        if still:
            driven("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        driven.wait(f"{CHOSEN} === 'sentence' && document.querySelector('#audio').readyState > 2")
        return driven

    yield open_page
    assert driven.complaints == []


def test_words_come_when_they_are_spoken(spoken, clip):
    words = spoken.words()
    truth = {word["word"].strip(".,?!"): (word["start"], word["end"]) for word in clip["words"]}
    steps = word_times(spoken)
    assert steps == word_times(words)
    assert [words.tokens[k].strip() for k, *_ in steps] == [w for w in map(str.strip, words.tokens) if w in truth]
    for k, start, end in steps:
        own = truth[words.tokens[k].strip()]
        assert start < (own[0] + own[1]) / 2 < end


def test_steps_have_no_gaps(spoken):
    steps = word_times(spoken)
    assert all(
        end == pytest.approx(start, abs=2e-3) for (*_, end), (_, start, _) in zip(steps, steps[1:], strict=False)
    )


def test_words_that_moved_are_walked_in_the_order_of_the_sound(make):
    """Four words whose maps lie from back to front."""
    frames, pieces = 80, (" one", " two", " three", " four")
    scores = torch.zeros(4, frames)
    for k in range(4):
        scores[k, 60 - 20 * k : 70 - 20 * k] = 1.0
    labels = torch.arange(frames, dtype=torch.int32)[None, :, None].expand(1, frames, 20)
    moved = make(pieces, frames=frames, audio_map=PatchMap(labels, (scores,)))
    found = word_times(moved)
    assert [k for k, *_ in found] == [3, 2, 1, 0]
    assert [start for _, start, _ in found] == sorted(start for _, start, _ in found)
    for k, start, end in found:
        assert start < 0.65 - 0.2 * k < end


def test_a_damaged_explanation_has_no_walk(make):
    assert word_times(make(times=torch.zeros(60))) == []


def test_contrasts_and_marks_are_no_steps(contrasting, make):
    assert word_times(contrasting()) == []
    assert [k for k, *_ in word_times(make())] == [0, 1, 3, 4]  # without the comma


def test_the_walk_shows_each_word_while_it_sounds(page, spoken):
    steps, browser = word_times(spoken), page()
    browser.js("window.seen = []; document.addEventListener('chosen', () => seen.push([" + CHOSEN + ", " + TIME + "]))")
    assert browser.js(BUTTON).endswith("walk through the words")
    browser.click("#walk")
    browser.wait(f"{BUTTON}.endsWith('stop')")
    browser.wait(f"document.querySelector('#audio').ended && {BUTTON}.endsWith('walk through the words')")
    seen = browser.js("seen")
    order = [f"word={k}" for k, *_ in steps]
    shown = [name for name, _ in seen]
    assert len(shown) >= 2 and shown == [name for name in order if name in shown]  # a slow browser skips some
    assert shown[-1] == order[-1]
    assert all(time >= steps[order.index(name)][1] - 0.05 for name, time in seen)
    browser.click("#walk")  # and again, from the start
    browser.wait(f"{CHOSEN} === 'word={steps[0][0]}'")
    browser.click("#walk")


def test_stop_and_a_click_on_a_word_end_the_walk(page):
    browser = page()
    browser.click("#walk")
    browser.wait(f"{CHOSEN}.startsWith('word=')")
    browser.click("#walk")
    browser.wait(f"{PAUSED} && {BUTTON}.endsWith('walk through the words')")
    browser.js("document.querySelector('#audio').currentTime = 0")
    browser.click("#walk")
    browser.wait(f"!{PAUSED}")
    browser.click("#transcript button:nth-of-type(1)")
    browser.wait(f"{PAUSED} && {BUTTON}.endsWith('walk through the words')")


def test_where_less_motion_is_asked_for_each_press_plays_one_word(page, spoken):
    steps, browser = word_times(spoken), page(still=True)
    browser.wait(f"{BUTTON}.endsWith('hear the next word')")
    for word, start, end in steps[:2]:
        browser.click("#walk")
        browser.wait(f"{PAUSED} && {CHOSEN} === 'word={word}' && {BUTTON}.endsWith('next word')")
        assert start <= browser.js(TIME) <= end + 0.5


def test_pages_of_contrasts_have_no_walk(contrasting, driven, tmp_path):
    driven.open(write_html(contrasting(), tmp_path / "page.html").as_uri())
    driven.wait(f"{CHOSEN} === 'sentence'")
    assert driven.js("document.querySelector('#walk')") is None
    assert driven.complaints == []


def test_the_walk_plays_the_whole_recording(page, spoken):
    """Also after the switch has left only what mattered."""
    steps, browser = word_times(spoken), page()
    source = browser.js("document.querySelector('#audio').src")
    browser.click("[data-hear=kept]")
    browser.wait(f"document.querySelector('#audio').src !== {source!r}")
    browser.click("#walk")
    browser.wait(f"document.querySelector('#audio').ended && {CHOSEN} === 'word={steps[-1][0]}'")
    assert browser.js("document.querySelector('#audio').src") == source
    assert browser.js("document.querySelector('[data-hear=all]').getAttribute('aria-pressed')") == "true"

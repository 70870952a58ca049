"""The switch beside the recording, in a browser: it plays what `Explanation.listen` returns, and goes back.

On the page, and in a notebook, where it lies in a frame.
"""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from spes_hf import SpesConfig, explain, listen_back
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation.listening import HeardBack, listen

# The page keeps each sound that it makes.
CAUGHT = (
    "((page) => { page.made = []; const make = page.URL.createObjectURL;"
    "page.URL.createObjectURL = (blob) => { page.made.push(blob); return make(blob); }; })"
)
LATEST = (
    "(async (made) => { const bytes = new Uint8Array(await made.at(-1).arrayBuffer());"
    "return btoa(Array.from(bytes, (c) => String.fromCharCode(c)).join('')); })"
)
PLAYS_IT = "((audio) => audio.readyState > 0 && audio.src.startsWith('blob:') && !audio.error)"


@pytest.fixture(scope="module")
def explanation():
    """Return the explanation of a real clip by a trained model."""
    return explain(
        *load_tiny_model("speech2text-en"), tiny_clips()[0]["path"], config=SpesConfig.fast(), progress=False
    )


@pytest.fixture
def opened(driven, explanation, tmp_path):
    path = explanation.words().to_html(tmp_path / "page.html", HeardBack(0.2, " Tom <b> sells.", ""))
    driven.open(path.as_uri())
    driven.wait("!!document.body.dataset.chosen")
    driven.js(f"{CAUGHT}(window)")
    return driven


def sound_after(browser, action, page="window"):
    """Return the samples that the page (or a frame in it) plays after something is done, and their rate."""
    before = browser.js(f"{page}.made.length")
    action()
    browser.wait(f"{page}.made.length > {before}")
    browser.wait(f"{PLAYS_IT}({page}.audio)")
    return soundfile.read(io.BytesIO(base64.b64decode(browser.js(f"{LATEST}({page}.made)"))), dtype="float32")


def likeness(sound, expected):
    """Return the signal-to-noise ratio in dB: the page has maps of 8 bits."""
    return 10 * np.log10(np.square(expected).sum() / np.square(sound - expected).sum())


def press(browser, name, page="window"):
    return lambda: browser.js(f"{page}.document.querySelector('[data-hear={name}]').click()")


def test_plays_what_listen_returns(opened, explanation):
    kept, rate = sound_after(opened, press(opened, "kept"))
    assert rate == explanation.sampling_rate
    assert likeness(kept, explanation.listen(top=0.2).samples) > 15
    rest, _ = sound_after(opened, press(opened, "rest"))
    assert likeness(rest, explanation.listen(top=0.2, complement=True).samples) > 15
    np.testing.assert_allclose(kept + rest, explanation.waveform.numpy(), atol=1e-3)
    assert opened.js("document.getElementById('hearing').textContent") == "without the top 20 % for the whole sentence"
    assert opened.complaints == []


def test_follows_the_chosen_word_and_the_share(opened, explanation):
    words = explanation.words()
    sound_after(opened, press(opened, "kept"))
    sound, _ = sound_after(opened, lambda: opened.js("document.querySelectorAll('#transcript button')[1].click()"))
    expected = listen(words, words.evidence(1), 0.2, complement=False)
    assert likeness(sound, expected.samples) > 12
    shown = opened.js("document.getElementById('hearing').textContent")
    assert shown == f"the top 20 % for “{words.tokens[1].strip()}”"
    share = "(() => { share.value = 100; for (const n of ['input', 'change']) share.dispatchEvent(new Event(n)); })()"
    everything, _ = sound_after(opened, lambda: opened.js(share))
    np.testing.assert_allclose(everything, explanation.waveform.numpy(), atol=1e-4)


def test_goes_on_where_it_was_and_back_to_the_recording(opened):
    opened.js("window.recording = audio.src; audio.currentTime = 0.8; 0")
    sound_after(opened, press(opened, "rest"))
    opened.wait("audio.src !== recording && Math.abs(audio.currentTime - 0.8) < 0.05")
    opened.js("document.querySelector('[data-hear=all]').click()")
    opened.wait("audio.src === recording && Math.abs(audio.currentTime - 0.8) < 0.05 && !audio.error")
    assert opened.js("document.querySelector('[data-hear=all]').getAttribute('aria-pressed')") == "true"
    assert opened.js("document.getElementById('hearing').textContent") == ""


def test_texts_are_shown_for_the_sentence_alone(opened):
    shown = "[...document.querySelectorAll('#heard dt, #heard dd')].map((e) => e.textContent)"
    expected = ["with only the top 20 %, the model writes", "“Tom <b> sells.”", "with all but that", "nothing"]
    assert opened.js(shown) == expected and not opened.js("heard.hidden")
    opened.js("document.querySelector('#transcript button').click()")
    opened.wait("heard.hidden")


def test_without_texts_there_is_no_list(driven, explanation, tmp_path):
    driven.open(explanation.to_html(tmp_path / "page.html").as_uri())
    driven.wait("!!document.body.dataset.chosen")
    assert driven.js("heard.hidden") and driven.complaints == []


# In a notebook -----------------------------------------------------------------------------------------------------


def test_without_samples_the_page_shows_all_but_the_player(driven, explanation, tmp_path):
    silent = replace(explanation, waveform=explanation.waveform[:0])
    driven.open(silent.to_html(tmp_path / "page.html").as_uri())
    driven.wait("!!document.body.dataset.chosen")
    assert driven.js("transcript.querySelectorAll('button').length") == len(silent)
    assert driven.js("audio.offsetHeight + document.querySelector('.hear').offsetHeight") == 0
    assert driven.js("!document.getElementById('walk')") and driven.complaints == []


@pytest.fixture
def notebook(driven, tmp_path):
    """Return what opens a page with outputs of a notebook in a browser."""

    def show(*outputs, width=900):
        path = tmp_path / "notebook.html"
        cells = "".join(f"<div>{output._repr_html_()}</div>" for output in outputs)
        path.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{cells}', encoding="utf-8")
        driven.open(path.as_uri(), width=width)
        ready = "Array.from(frames).every((f) => f.document.body.dataset.ready)"
        driven.wait(f"frames.length === {len(outputs)} && {ready}")
        driven.js(f"Array.from(frames).forEach({CAUGHT})")
        return driven

    return show


@pytest.mark.parametrize("width", [900, 400])
def test_notebook_plays_what_listen_returns(notebook, explanation, width):
    browser = notebook(explanation, width=width)
    recording = browser.js("frames[0].audio.src")
    kept, rate = sound_after(browser, press(browser, "kept", "frames[0]"), "frames[0]")
    assert rate == explanation.sampling_rate
    assert likeness(kept, explanation.listen(top=0.2).samples) > 15
    rest, _ = sound_after(browser, press(browser, "rest", "frames[0]"), "frames[0]")
    np.testing.assert_allclose(kept + rest, explanation.waveform.numpy(), atol=1e-3)
    assert browser.js("frames[0].hearing.textContent") == "without the top 20 % for the whole sentence"
    press(browser, "all", "frames[0]")()
    browser.wait(f"frames[0].audio.src === '{recording}' && !frames[0].audio.error")
    assert browser.js("frames[0].heard.hidden") and browser.complaints == []


def test_notebook_shows_what_the_model_wrote_for_the_parts_that_it_plays(notebook, explanation):
    heard = listen_back(*load_tiny_model("speech2text-en"), explanation, top=0.4)
    browser = notebook(heard)
    shown = browser.js("[...frames[0].heard.querySelectorAll('dt, dd')].map((e) => e.textContent)")
    texts = [f"“{text.strip()}”" if text.strip() else "nothing" for text in (heard.kept, heard.rest)]
    assert shown == ["with only the top 40 %, the model writes", texts[0], "with all but that", texts[1]]
    kept, _ = sound_after(browser, press(browser, "kept", "frames[0]"), "frames[0]")
    assert likeness(kept, explanation.listen(top=0.4).samples) > 15


@pytest.mark.parametrize("width", [900, 400])
def test_frames_in_a_notebook_are_as_high_as_what_they_hold(notebook, explanation, width):
    texts = HeardBack(0.2, "some words " * 20, "<b>", explanation)
    browser = notebook(explanation, texts, width=width)
    heights = "[...document.querySelectorAll('iframe')].map((f) => f.clientHeight)"
    inside = "Array.from(frames).map((f) => Math.ceil(f.document.body.getBoundingClientRect().height))"
    browser.wait(f"String({heights}) === String({inside})")
    short, tall = browser.js(heights)
    assert 90 < short < 160 and tall > short + 40
    assert browser.js("Array.from(frames).every((f) => f.document.documentElement.scrollWidth <= f.innerWidth)")
    assert browser.js("frames[1].heard.querySelector('b')") is None


def test_outputs_in_a_notebook_keep_apart(notebook, explanation):
    browser = notebook(explanation, explanation)
    sound_after(browser, press(browser, "kept", "frames[1]"), "frames[1]")
    assert browser.js("frames[0].made.length") == 0
    pressed = "(f) => f.document.querySelector('[aria-pressed=true]').dataset.hear"
    assert browser.js(f"Array.from(frames).map({pressed})") == ["all", "kept"]


def test_notebook_speaks_of_contrasts_where_there_are_foils(notebook, contrasting):
    browser = notebook(contrasting(rate=8000))
    sound_after(browser, press(browser, "kept", "frames[0]"), "frames[0]")
    assert browser.js("frames[0].hearing.textContent") == "the top 20 % for all contrasts"

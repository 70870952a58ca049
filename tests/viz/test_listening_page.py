"""The switch beside the recording, in a browser: it plays what `Explanation.listen` returns, and goes back."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import soundfile

from spes_hf import SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation.listening import HeardBack, listen

# The page keeps each sound that it makes.
CAUGHT = (
    "window.made = []; const make = URL.createObjectURL;"
    "URL.createObjectURL = (blob) => { window.made.push(blob); return make(blob); }; 0"
)
LATEST = (
    "(async () => { const bytes = new Uint8Array(await made.at(-1).arrayBuffer());"
    "return btoa(Array.from(bytes, (c) => String.fromCharCode(c)).join('')); })()"
)
PLAYS_IT = "audio.readyState > 0 && audio.src.startsWith('blob:') && !audio.error"


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
    driven.js(CAUGHT)
    return driven


def sound_after(browser, action):
    """Return the samples that the page plays after something is done, and their rate."""
    before = browser.js("made.length")
    action()
    browser.wait(f"made.length > {before}")
    browser.wait(PLAYS_IT)
    return soundfile.read(io.BytesIO(base64.b64decode(browser.js(LATEST))), dtype="float32")


def likeness(sound, expected):
    """Return the signal-to-noise ratio in dB: the page has maps of 8 bits."""
    return 10 * np.log10(np.square(expected).sum() / np.square(sound - expected).sum())


def press(browser, name):
    return lambda: browser.js(f"document.querySelector('[data-hear={name}]').click()")


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

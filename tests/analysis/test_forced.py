"""Forced alignment with pocketsphinx."""

from __future__ import annotations

import sys

import pytest
import soundfile

from spes_hf.analysis import AlignmentError, align_explanation, align_words
from spes_hf.errors import SpesError

TEXT = "And so, my fellow Americans: ask not what your country can do for you -- ask what you can do for your country."


def test_without_pocketsphinx(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(SpesError, match=r"pip install 'pocketsphinx>=5\.0'` \(the extra 'align'\)"):
        align_words([0.0] * 16_000, "so")


@pytest.fixture(scope="module")
def aligned(jfk):
    pytest.importorskip("pocketsphinx", reason="the align extra is not installed: pip install -e '.[align]'")
    samples, rate = soundfile.read(jfk, dtype="float32")
    return samples, rate, align_words(samples, TEXT, rate)


def test_real_speech(aligned):
    words = aligned[2].words
    assert [w.text for w in words[:6]] == ["and", "so", "my", "fellow", "americans", "ask"] and len(words) == 22
    assert all(a.end <= b.start + 1e-9 for a, b in zip(words, words[1:], strict=False))
    country = [w for w in words if w.text == "country"]
    assert [country[0].start, country[0].end] == pytest.approx([5.86, 6.43], abs=0.15)
    so = words[1]
    assert [p.label for p in so.phones] == ["S", "OW"]
    assert so.phones[0].start == pytest.approx(so.start) and so.phones[-1].end == pytest.approx(so.end)


def test_any_rate(aligned):
    """Twice the rate, the same times."""
    samples, rate, expected = aligned
    found = align_words(samples.repeat(2), TEXT, 2 * rate)
    for a, b in zip(found.words, expected.words, strict=True):
        assert (a.start, a.end) == pytest.approx((b.start, b.end), abs=0.1)


def test_unknown_words(aligned):
    samples, rate, _ = aligned
    with pytest.raises(AlignmentError, match="'xyzzyq'.*pronunciations"):
        align_words(samples, TEXT + " Xyzzyq", rate)
    text = TEXT.replace("fellow", "fellohh")
    found = align_words(samples, text, rate, {"fellohh": "F EH L OW"})
    assert found.words[3].text == "fellohh" and [p.label for p in found.words[3].phones] == ["F", "EH", "L", "OW"]


@pytest.mark.parametrize("text", ["", " ?! "])
def test_no_words(aligned, text):
    with pytest.raises(AlignmentError, match="has no words to align"):
        align_words(aligned[0], text, aligned[1])


def test_text_that_is_not_there(aligned):
    """Two seconds cannot hold 22 words."""
    samples, rate, _ = aligned
    with pytest.raises(AlignmentError, match="cannot be aligned"):
        align_words(samples[:rate], TEXT, rate)


def test_of_an_explanation(aligned, blank, clips):
    """A synthetic clip: the words where synthesis put them."""
    name, explanation = next(iter(blank.items()))
    found = align_explanation(explanation)
    for word, known in zip(found.words, clips[name]["words"], strict=True):
        assert (word.start + word.end) / 2 == pytest.approx((known["start"] + known["end"]) / 2, abs=0.15)

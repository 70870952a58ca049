import json
import re
import time
from html.parser import HTMLParser

import pytest
import torch

from spes_hf.explanation.recording import HeardSegment
from spes_hf.text import clock
from spes_hf.viz import report, write_html
from spes_hf.viz.recording_page import write_recording
from spes_hf.viz.timeline import loudness, summary, word_starts

HOSTILE = " </script><script>document.title='broken'</script>"
FIRST = (
    "<|0.00|>",
    " Good",
    " morn",
    "ing",
    ",",
    " all",
    "<|0.30|>",
    "<|0.30|>",
    " one",
    " two",
    "<|0.60|>",
    "<|end|>",
)
LATER = ("<|0.00|>", " شكرا", HOSTILE, " \u202eturned", " good", "<|0.60|>", "<|end|>")


def data_of(page):
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(block)


def tags(page):
    found = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, dict(attrs)))

    Tags().feed(page)
    return found


@pytest.fixture(scope="module")
def recording(recorded, tmp_path_factory):
    """Five windows: one explained in part, silence, not explained, made up, and one with strange text."""
    part, window, whole = recorded
    windows = (
        window(0, 0.0, 0.6, ((0.0, 0.3, " Good morning, all", 0, 7), (0.3, 0.6, " one two", 7, 11))),
        window(1, 0.6, 1.2, skipped=True),
        window(2, 1.2, 1.8, ((1.2, 1.8, " Nobody asked.", 0, 4),), explained=False),
        window(3, 1.8, 2.4, ((1.8, 2.4, " one two", 7, 11),), complete=False),
        window(4, 2.4, 3.0, ((2.4, 3.0, "".join(LATER[1:5]), 0, 6),)),
    )
    explanations = {
        0: part(FIRST, (1, 2, 3, 5, 8, 9, 11), token_sound_bits=torch.tensor([9.0, 8, 8, 0.2, 12, 9, 3])),
        3: part(FIRST, (8, 9, 11), 1.8, token_sound_bits=torch.tensor([0.4, 0.6, 20])),
        4: part(LATER, (1, 2, 3, 4, 6), 2.4, token_sound_bits=torch.tensor([9.0, 9, 9, 9, 1])),
    }
    return whole(tmp_path_factory.mktemp("recording"), windows, explanations, 3.0)


@pytest.fixture(scope="module")
def path(recording, tmp_path_factory):
    return write_recording(recording, tmp_path_factory.mktemp("pages") / "new" / "my talk #1.html")


@pytest.fixture(scope="module")
def page(path):
    return path.read_text("utf-8")


def test_folder_next_to_the_page_has_the_windows_and_the_sound(path, recording):
    folder = path.parent / "my talk #1_files"
    assert sorted(p.name for p in folder.iterdir()) == ["00000.html", "00003.html", "00004.html", "audio.flac"]
    assert (folder / "audio.flac").read_bytes() == recording.audio_file.read_bytes()
    assert data_of((folder / "00003.html").read_text("utf-8"))["sound_from"] == 1.8


def test_writing_again_leaves_no_page_of_before(recording, tmp_path):
    (tmp_path / "x_files").mkdir()
    for name in ("00099.html", "mine.html"):
        (tmp_path / "x_files" / name).write_text("old")
    write_recording(recording, tmp_path / "x.html")
    names = {p.name for p in (tmp_path / "x_files").iterdir()}
    assert "00099.html" not in names and "mine.html" in names


def test_page_reaches_for_nothing_but_its_folder(page):
    assert not re.search(r"https?://|@import|url\(", page)
    assert not [a for _, a in tags(page) if {"src", "href", "srcset", "action"} & a.keys()]
    policy = next(a["content"] for tag, a in tags(page) if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "frame-src 'self' file:" in policy


def test_words_are_those_of_the_recording(page, recording):
    data, words = data_of(page), recording.words()
    assert [name.strip() for name in data["words"]["text"][:4]] == ["Good", "morning", "all", "one"]
    assert len(data["words"]["text"]) == len(words.tokens)
    assert data["words"]["bits"] == pytest.approx(words.sound_bits.tolist(), abs=0.006)
    heard = {(round(h.start_s, 2), h.verdict): h.bits_per_token for h in words.heard}
    for segment in data["segments"]:
        if segment["verdict"] != "not known":
            assert segment["bits"] == pytest.approx(heard[segment["start"], segment["verdict"]], abs=0.006)
        own = [data["words"]["from"][part] for part in segment["parts"] if isinstance(part, int)]
        assert own == sorted(own) and all(segment["start"] <= t <= segment["end"] for t in own)
    assert [w["state"] for w in data["windows"]] == ["explained", "silence", "unexplained", "explained", "explained"]
    assert [w["first"] for w in data["windows"]] == [0, 5, 5, 5, 7]


def test_text_without_explanation_stays_text(page):
    first, second, third, *_ = data_of(page)["segments"]
    assert first["parts"] == [0, 1, ",", 2] and second["parts"] == [3, 4]
    assert third["parts"] == ["Nobody asked."] and third["verdict"] == "not known" and third["bits"] is None


def test_what_a_reader_has_to_know_is_told(page, recording, recorded, tmp_path):
    data = data_of(page)
    assert data["summary"] == "1 of 4 segments probably made up, 1 s in all. 1 is not explained."
    assert data["notes"] == ["Audio: mixed down from 2 channels"]
    assert data["warnings"] == ["In 1 window, a length limit cut the text before the model had finished."]
    _, window, whole = recorded
    bare = whole(tmp_path / "r", (window(0, 0.0, 1.0, ((0.0, 1.0, " Hello", 0, 1),)),), {}, 1.0, rate=0)
    data = data_of(write_recording(bare, tmp_path / "bare.html").read_text("utf-8"))
    assert data["summary"] == "No segment is explained." and data["sound"] is None and data["loudness"] == []
    assert [w.split(":")[0] for w in data["warnings"]] == [
        "Not all requested windows are explained",
        "The recording's sound is missing",
    ]


def test_summary_of_nothing_and_of_all_heard():
    assert summary([]) == "The model wrote nothing for this recording."
    assert summary([HeardSegment(0.0, 1.0, "a", 9.0)]) == "1 segment: all heard."


def test_hostile_text_stays_text(page):
    names = [tag for tag, _ in tags(page)]
    assert names.count("script") == 2 and "<title>Good morning" in page
    assert HOSTILE.strip() in "".join(data_of(page)["words"]["text"])
    assert "\\u202eturned" in [name.strip() for name in data_of(page)["words"]["text"]]


def test_words_begin_in_order_within_their_segment():
    assert word_starts([], 0, 1) == []
    assert word_starts([1.0, 2.0, 3.0], 0.0, 4.0) == pytest.approx([0.5, 1.5, 2.5])
    mixed = word_starts([3.0, 2.0, float("nan"), -9.0, 90.0], 0.0, 4.0)
    assert mixed == sorted(mixed) and 0 <= mixed[0] and mixed[-1] <= 4


def test_clock_and_loudness(recording, tmp_path):
    assert [clock(t) for t in (0, 7.9, 754, 3723)] == ["0:00", "0:07", "12:34", "1:02:03"]
    level = loudness(recording.audio_file, 30)
    assert len(level) == 30 and level.min() > 0.9 and level.max() == 1
    assert len(loudness(tmp_path / "none.flac")) == 0


def test_unexplained_words_stand_in_the_page_of_a_window(recorded):
    part, _, _ = recorded
    level = data_of(report.page(part(FIRST, (1, 5)).words()))["levels"]["words"]
    assert level["starts"] == [0, 3] and level["names"] == [" Good", " all"]
    assert level["context"] == ["<s>", "Good", "morning", ",", "all", "one"]
    assert level["tail"] == "two"
    tokens = data_of(report.page(part(FIRST, (1, 5))))["levels"]["tokens"]
    assert tokens["starts"] == [1, 5] and tokens["tail"] == ""
    assert [j for j, mark in enumerate(tokens["marks"]) if mark] == [1, 7, 8, 11]


# In a browser --------------------------------------------------------------------------------------------------------


def framed(driven, what):
    driven.wait(f"document.body.dataset.framed === {what!r}")


@pytest.fixture
def opened(driven, path):
    driven.open(path.as_uri().replace("#", "%23"))
    driven.wait("document.body.dataset.ready === 'yes'")
    yield driven
    assert driven.complaints == []


def test_click_on_a_word_opens_its_window_there(opened):
    opened.click('[data-word="5"]')
    framed(opened, "3:0")
    assert opened.js("location.hash") == "#word=5"
    assert opened.js("document.querySelector('[data-word=\"5\"]').getAttribute('aria-pressed')") == "true"
    assert opened.js("document.getElementById('heading').textContent").startswith("“one” at 0:01, in window 4 of 5")
    assert opened.js("document.getElementById('audio').currentTime") == pytest.approx(
        opened.js("JSON.parse(document.getElementById('data').textContent).words.from[5]"), abs=0.02
    )
    opened.click('[data-word="6"]')
    framed(opened, "3:1")
    opened.click('[data-word="1"]')
    framed(opened, "0:1")


def test_keys_step_through_words_and_segments(opened):
    opened.press("ArrowRight")
    framed(opened, "0:0")
    for key, hash_ in (("ArrowRight", 1), ("ArrowDown", 3), ("ArrowDown", 5), ("ArrowUp", 3), ("ArrowLeft", 2)):
        opened.press(key)
        assert opened.js("location.hash") == f"#word={hash_}"
    opened.press(" ")
    opened.wait("!document.getElementById('audio').paused")
    opened.wait("document.querySelector('.now') && document.getElementById('audio').currentTime > 0")
    opened.press(" ")
    opened.wait("document.getElementById('audio').paused")
    opened.press("Escape")
    assert opened.js("document.getElementById('chosen').hidden") is True
    opened.js("document.querySelector('[data-word=\"7\"]').click()")
    opened.press("ArrowLeft")  # text from right to left
    assert opened.js("location.hash") == "#word=8"


def test_search_steps_through_hits_and_esc_leaves_it(opened):
    opened.press("/")
    opened("Input.insertText", text="ONE")
    current = "document.querySelector('.hit.current').dataset.word"
    assert opened.js("document.getElementById('hits').textContent") == "1 of 2" and opened.js(current) == "3"
    opened.press("Enter")
    assert opened.js("document.getElementById('hits').textContent") == "2 of 2" and opened.js(current) == "5"
    opened.press("Enter")
    opened.press("Enter", shift=True)
    assert opened.js(current) == "5"
    opened.press("Escape")
    assert opened.js("document.querySelectorAll('.hit').length") == 0
    assert opened.js("document.activeElement.dataset.word") == "5"
    opened.press("/")
    opened("Input.insertText", text="morning, all")
    assert opened.js("[...document.querySelectorAll('.hit')].map((e) => e.textContent)") == ["morning", ",", "all"]
    opened("Input.insertText", text="zzz")
    assert opened.js("document.getElementById('hits').textContent") == "no hits"


def test_what_was_made_up_is_marked_in_words_too(opened):
    rows = opened.js("[...document.querySelectorAll('.segment.doubtful')].map((e) => e.textContent)")
    assert len(rows) == 1 and "probably made up: 0.5 bits a token" in rows[0]
    legend = opened.js("document.getElementById('strip-legend').textContent")
    assert "probably made up" in legend and "no speech" in legend and "not explained" in legend
    assert "1 of 4 segments probably made up" in opened.js(
        "document.getElementById('strip').getAttribute('aria-label')"
    )
    assert opened.js("document.querySelectorAll('.unheard').length") == 3
    opened.js("document.getElementById('doubtful-after').click()")
    assert opened.js("document.getElementById('audio').currentTime") == pytest.approx(1.8)


def test_click_in_the_strip_goes_there(opened):
    opened.click("#strip", 0.5, 0.5)
    opened.wait("Math.abs(document.getElementById('audio').currentTime - 1.5) < 0.02")


def test_clicks_and_keys_in_the_frame_reach_the_page_around_it(opened):
    opened.click('[data-word="6"]')
    framed(opened, "3:1")
    time.sleep(0.2)  # for its height
    opened.js("scrollTo(0, document.body.scrollHeight)")
    opened.click("#window", 0.5, 260 / opened.js("document.getElementById('window').offsetHeight"))
    opened.wait("Math.abs(document.getElementById('audio').currentTime - 2.1) < 0.1")
    opened.press("ArrowLeft")
    framed(opened, "3:0")
    assert opened.js("location.hash") == "#word=5"
    opened.click("#window", 0.5, 260 / opened.js("document.getElementById('window').offsetHeight"))
    opened.press("/")
    opened.wait("document.activeElement.id === 'search'")


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, True)])
def test_nothing_sticks_out_of_the_page(driven, path, width, dark):
    driven.open(path.as_uri().replace("#", "%23") + "#word=8", width=width, height=844, dark=dark)
    framed(driven, "4:1")
    assert driven.js("document.documentElement.scrollWidth") <= width
    paper = driven.js("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(22, 23, 26)") is dark
    assert driven.js("document.title") != "broken" and driven.complaints == []


def test_page_of_a_window_on_its_own_has_its_own_sound(driven, recorded, tmp_path):
    part, _, _ = recorded
    window = part(FIRST, (1, 2, 3, 8, 9), 26.0, frames=600, waveform=torch.randn(48_000) / 9)
    driven.open(write_html(window, tmp_path / "window.html").as_uri() + "#word=3")
    driven.wait("document.body.dataset.chosen === 'word=3'")
    text = driven.js("[...document.querySelectorAll('#transcript .run')].map((e) => e.textContent).join(' ')")
    assert text == "Good morning, all one two"
    assert driven.js("document.querySelector('#transcript [aria-pressed=true]').textContent") == "two"
    driven.wait("document.getElementById('audio').readyState > 0")
    driven.click("#picture", 0.5, 0.5)
    driven.wait("Math.abs(document.getElementById('audio').currentTime - 2.9) < 0.3")
    driven.wait("!document.getElementById('cursor').hidden")
    middle, width = driven.js(
        "[document.getElementById('cursor').offsetLeft, document.getElementById('plot').offsetWidth]"
    )
    assert middle / width == pytest.approx(0.5, abs=0.02)
    assert driven.complaints == []


def test_sound_survives_a_seek_that_the_browser_fails_at(driven, path):
    driven.open((path.parent / "my talk #1_files" / "00003.html").as_uri())
    driven.wait("document.getElementById('audio').readyState > 0")
    driven.js("document.getElementById('audio').currentTime = 0.4")
    driven.wait("!document.getElementById('audio').seeking && !document.getElementById('audio').error")
    assert driven.js("document.getElementById('audio').play().then(() => true)")


def test_an_hour_opens_in_under_three_seconds(driven, recorded, tmp_path, monkeypatch):
    part, window, whole = recorded
    monkeypatch.setattr(report, "page", lambda explanation, embeddable: "<!DOCTYPE html><title>a window</title>")
    pieces = tuple(f" word{k}" for k in range(75))
    windows, explanations = [], {}
    one = part(pieces, range(75), frames=100, bins=4, patches=10, rate=100)
    for w in range(120):
        places = [(30.0 * w + 6 * s, 30.0 * w + 6 * s + 6, "".join(pieces[15 * s : 15 * s + 15])) for s in range(5)]
        segments = tuple((*place, 15 * s, 15 * s + 15) for s, place in enumerate(places))
        windows.append(window(w, 30.0 * w, 30.0 * w + 30, segments))
        explanations[w] = one
    path = write_recording(whole(tmp_path / "hour", windows, explanations, 3600.0, 1000), tmp_path / "hour.html")
    assert path.stat().st_size < 2_000_000
    start = time.monotonic()
    driven.open(path.as_uri())
    driven.wait("document.body.dataset.ready === 'yes'")
    assert time.monotonic() - start < 3
    assert driven.js("document.querySelectorAll('[data-word]').length") == 9000
    driven.press("/")
    driven("Input.insertText", text="word74")
    assert driven.js("document.getElementById('hits').textContent") == "1 of 120"
    assert "1:00:00" in driven.js("document.getElementById('source').textContent")
    assert driven.complaints == []

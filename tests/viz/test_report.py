import base64
import io
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from spes_hf.bits import in_words
from spes_hf.summaries import summary
from spes_hf.viz import report, write_html
from spes_hf.viz.scale import printable

HOSTILE = (
    " </script><script>document.title='broken'</script>",
    ' "><img src=x onerror="document.title=1">',
    " <!--<script>",
    " {{DATA}}{{SCRIPT}}",
    " &lt;b&gt;\u2028\x00\x1b[2J",
    " \u202eright\u2066to left\u200f🎉",
    "\ud800",
    "\udce4",
    "<|endoftext|>",
)


def data_of(page):
    blocks = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(blocks) == 1
    return json.loads(blocks[0])


def decode(png):
    """Return a map (T, C) from the page."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    assert image.mode == "L"
    return np.asarray(image, dtype=np.float32)[::-1].T / 255


class Elements(HTMLParser):
    """Every element of a page, with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(explanation):
    return report.page(explanation)


def test_page_loads_nothing_from_anywhere(page):
    assert not re.search(r"https?://", page)
    assert not re.search(r"@import|url\(", page)
    elements = Elements(page).found
    assert not [a for _, a in elements if {"src", "href", "srcset", "action"} & a.keys()]
    assert not [tag for tag, _ in elements if tag in ("link", "iframe", "object", "embed", "base", "form")]
    policy = next(a["content"] for tag, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_values_in_the_page_are_those_of_the_explanation(page, explanation):
    data = data_of(page)
    assert len(data["maps"]) == len(explanation)
    evidence = [*(explanation.evidence(k) for k in range(len(explanation))), explanation.evidence()]
    for shown, expected in zip([*data["maps"], data["sentence"]], evidence, strict=True):
        end = shown["scale"]
        values = end * (255 * decode(shown["map"]) - 128) / 127
        np.testing.assert_allclose(values, expected.clamp(-end, end), rtol=0, atol=0.53 * end / 127)
        assert (np.round(values[expected.numpy() == 0], 12) == 0).all()
    text = np.array(data["levels"]["tokens"]["text_saliency"], dtype=np.float32)
    np.testing.assert_allclose(text, explanation.token_saliency, rtol=0, atol=1e-4)
    assert data["levels"]["tokens"]["probability"] == pytest.approx(explanation.token_probabilities.tolist(), abs=1e-4)
    for name in ("sound_bits", "text_bits"):
        assert data["levels"]["tokens"][name] == pytest.approx(getattr(explanation, name).tolist(), abs=1e-4)
    bins, peaks = len(explanation.frequencies), [int(explanation.evidence(k).argmax()) for k in range(len(explanation))]
    assert data["levels"]["tokens"]["strongest"] == [list(divmod(peak, bins)) for peak in peaks]
    assert data["levels"]["tokens"]["reliability"] == pytest.approx(explanation.reliability.tokens.tolist())
    assert data["frequencies"] == pytest.approx(explanation.frequencies.tolist(), abs=0.1)


def test_words_are_there_and_their_maps_are_means(page, explanation):
    data, words = data_of(page), explanation.words()
    level = data["levels"]["words"]
    assert level["names"] == words.tokens
    assert level["context"] == [name.strip() for name in words.context_tokens]
    for w, group in enumerate(level["groups"]):
        shown = [data["maps"][k] for k in group]
        mean = np.mean([m["scale"] * (255 * decode(m["map"]) - 128) / 127 for m in shown], axis=0)
        ends = [m["scale"] for m in shown]
        expected = torch.stack([explanation.evidence(k).clamp(-e, e) for k, e in zip(group, ends, strict=True)]).mean(0)
        np.testing.assert_allclose(mean, expected, rtol=0, atol=0.53 * max(ends) / 127)
        assert np.corrcoef(mean.ravel(), words.evidence(w).flatten())[0, 1] > 0.99
    text = np.array(level["text_saliency"], dtype=np.float32)
    np.testing.assert_allclose(text, words.token_saliency, rtol=0, atol=1e-4)


def test_page_of_words_opens_with_words(page, explanation):
    assert data_of(page)["opens_with"] == "tokens"
    data = data_of(report.page(explanation.words()))
    assert data["opens_with"] == "words"
    assert data["levels"] == data_of(page)["levels"]


def test_audio_is_the_clip(page, explanation):
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data_of(page)["audio"])), dtype="float32")
    assert rate == explanation.sampling_rate
    np.testing.assert_allclose(samples, explanation.waveform.numpy(), atol=2 / 32767)


def test_notes_tell_what_a_reader_has_to_know(page, make):
    assert data_of(page)["warnings"] == ["The length limit cut the output before the model had finished."]
    assert data_of(page)["notes"] == ["Audio: mixed down from 2 channels"]
    data = data_of(report.page(make(provenance={"output": {"given": True}})))
    assert [note.split(":")[0] for note in data["notes"]] == ["The text was given, not generated"]
    assert data["warnings"] == []
    assert data_of(report.page(make(provenance={})))["notes"] == []


def test_hostile_text_stays_text(make):
    hostile = make(
        pieces=HOSTILE,
        provenance={"model": {"name": HOSTILE[0]}, "<x>": [HOSTILE[1], float("nan"), torch.float32, "\udc80"]},
    )
    page = report.page(hostile)
    page.encode("utf-8")
    data = data_of(page)
    assert data["levels"]["tokens"]["names"] == hostile.tokens
    assert data["provenance"]["<x>"] == [HOSTILE[1], None, "torch.float32", "\\x80"]
    tags = [tag for tag, _ in Elements(page).found]
    assert tags == [tag for tag, _ in Elements(report.page(make())).found]
    assert "img" not in tags


def test_unknown_reliability_and_bits_are_null(make):
    blank = make()
    nan = torch.full((len(blank),), torch.nan)
    blank = make(token_reliability=type(blank.reliability)(nan, float("nan")), token_sound_bits=nan)
    data = data_of(report.page(blank))
    assert data["sentence"]["reliability"] is None
    assert set(data["levels"]["tokens"]["sound_bits"]) == {None} and data["sentence"]["bits_per_token"] is None


def test_output_of_special_tokens_alone_has_no_words(make):
    data = data_of(report.page(make(pieces=("<|endoftext|>",))))
    assert data["levels"]["words"]["names"] == []
    assert data["levels"]["tokens"]["names"] == ["<|endoftext|>"]


def test_size_of_an_eleven_second_clip(make, tmp_path):
    noise = make(
        pieces=tuple(f" word{k}" for k in range(25)),
        frames=1100,
        bins=80,
        patches=20_000,
        rate=16_000,
        waveform=torch.randn(176_000, generator=torch.Generator().manual_seed(0)) * 0.1,
    )
    path = write_html(noise, tmp_path / "new" / "page.html")
    assert path.stat().st_size < 5_000_000


def test_contrasts_have_their_odds_and_their_title(contrasting):
    page = report.page(contrasting())
    assert "<title>country, not county; (nothing), not really</title>" in page
    data = data_of(page)
    assert data["contrasts"] == [
        {"target": "country", "foil": "county", "log_odds": 3.0, "start": 1},
        {"target": "(nothing)", "foil": "really", "log_odds": -1.0, "start": 3},
    ]
    assert data["levels"]["words"]["heard"][0] == "3.0 bits: the odds are 8.0 times higher with the sound than without"
    assert data_of(report.page(contrasting((("a", "</script>"),))))["contrasts"][0]["foil"] == "</script>"


# In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dom(explanation, browse, tmp_path_factory):
    """Return what a browser makes of the page, opened at a place in it."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    return lambda place, shown=explanation: browse(write_html(shown, path), place)


def pressed(dom):
    transcript = re.search(r'<p id="transcript".*?</p>', dom, re.DOTALL)[0]
    return re.findall(r'<button[^>]*aria-pressed="true"[^>]*>(.*?)</button>', transcript)


def weights(dom):
    transcript = re.search(r'<p id="transcript".*?</p>', dom, re.DOTALL)[0]
    return [float(w) for w in re.findall(r"--weight: ([\d.e-]+)", transcript)]


def test_browser_shows_a_token(dom, explanation):
    shown = dom("#token=2")
    assert 'data-chosen="token=2"' in shown
    assert pressed(shown) == ["ing"]
    assert f"{100 * explanation.token_probabilities[2]:.1f} %" in shown
    assert in_words(float(explanation.sound_bits[2])) in shown
    assert f"{explanation.text_bits[2]:.1f} bits" in shown
    row = explanation.token_saliency[2]
    known = row[~row.isnan()]
    expected = ((known - known.min()) / (known.max() - known.min())).tolist()
    assert weights(shown)[: len(expected)] == pytest.approx(expected, abs=2e-3)
    assert not any(weights(shown)[len(expected) :])


def test_browser_finds_the_strongest_place(dom, explanation):
    shown = dom("#token=4")
    strongest = int(explanation.evidence(4).flatten().argmax())
    frame, mel = divmod(strongest, len(explanation.frequencies))
    label = re.search(r'<canvas id="picture"[^>]*aria-label="([^"]*)"', shown)[1]
    assert f"strongest at {explanation.times[frame]:.2f} s" in label
    hertz = float(explanation.frequencies[mel])
    assert (f"{hertz:.0f} Hz" if hertz < 1000 else f"{hertz / 1000:.1f} kHz") in label


def test_browser_shows_a_word_and_the_sentence(dom, explanation):
    shown = dom("#word=1")
    assert pressed(shown) == ["morning"]
    assert 'data-chosen="word=1"' in shown
    shown = dom("", explanation.words())
    assert 'data-chosen="sentence"' in shown
    assert pressed(shown) == []
    assert "The whole sentence" in shown


def test_browser_warns_where_it_matters(dom, explanation):
    warning = "Another set of masks would have drawn a different map. Use more masks."
    assert explanation.reliability.tokens[0] < 0.5 < explanation.reliability.tokens[6]
    visible = re.compile(r'<p class="warning" id="warning">([^<]+)</p>')
    shown = dom("#token=0")
    assert visible.search(shown)[1] == warning
    assert "The length limit cut the output" in shown
    assert not visible.search(dom("#token=6"))


def test_browser_takes_hostile_text_as_text(dom, make):
    shown = dom("#token=1", make(pieces=HOSTILE))
    assert 'data-chosen="token=1"' in shown
    assert pressed(shown) == ['"&gt;&lt;img src=x onerror="document.title=1"&gt;']
    assert "<title>broken" not in shown


def test_browser_keeps_marks_of_direction_to_the_text_that_holds_them(dom, make):
    """Neither the numbers nor the sentences of the page turn round, and nothing in the page has run."""
    shown = dom("#token=5", make(pieces=HOSTILE, provenance={"model": {"name": "\u202ex" + HOSTILE[0]}}))
    assert '<h1 id="heading"><bdi class="quoted">“\\u202eright\\u2066to left\u200f🎉”</bdi>' in shown
    assert not re.search(
        "[\u202a-\u202e\u2066-\u2069]", re.sub(r"(?s)<script.*?</script>|<title>.*?</title>", "", shown)
    )
    assert "broken</title>" not in shown and "<img" not in shown
    style = (files("spes_hf.viz") / "report.css").read_text("utf-8")
    rule = re.search(r"([^{}]+){ unicode-bidi: isolate; }", style)[1]
    for selector in ("#transcript button", "#transcript .given", ".quoted", "#source", "#provenance dd", "#notes p"):
        assert selector in rule


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_hostile_text_is_drawn_and_printed_as_text(make):
    hostile = make(pieces=HOSTILE, text="".join(HOSTILE[:-1]))
    plain = printable(hostile.text)
    assert "\\x1b[2J" in plain and "\\u202e" in plain and "\\u2028" in plain and "\\x00" in plain
    assert plain.replace(" ", "").isprintable() and printable("Ein Café 🎉 日本") == "Ein Café 🎉 日本"
    assert "\x1b" not in summary(hostile, Path("x"))
    for figure, _ in (hostile.plot(), hostile.plot(5), hostile.plot_tokens()):
        figure.savefig(io.BytesIO())
    tags = [tag for tag, _ in Elements(hostile._repr_html_()).found]
    assert set(tags) == {"div", "bdi", "span", "img", "b", "br", "iframe"}
    assert tags.count("img") == 1 and tags.count("iframe") == 1


def test_browser_speaks_of_odds_where_there_are_contrasts(dom, contrasting):
    found = contrasting()
    shown = dom("#token=0", found)
    assert pressed(shown) == ["country, not county"]
    assert "contrast 0 of 2, counted from 0" in shown
    assert '3.0 bits: <bdi class="quoted">“country”</bdi> is 8.0 times likelier' in shown
    assert "the odds are 8.0 times higher" in shown
    row = found.token_saliency[0]
    known = row[~row.isnan()]
    expected = ((known - known.min()) / (known.max() - known.min())).tolist()
    assert weights(shown) == pytest.approx([*expected, 0, 0, 0], abs=2e-3)
    assert '1.0 bits: <bdi class="quoted">“really”</bdi> is 2.0 times likelier' in dom("#token=1", found)
    shown = dom("", found)
    assert "All contrasts" in shown and "probability</dt>" not in shown and "whole sentence</button>" not in shown

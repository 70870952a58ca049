import base64
import html
import json
import re
from dataclasses import replace
from importlib.resources import files

import torch

from spes_hf.bits import in_words
from spes_hf.viz import notebook_html


def framed(fragment):
    """Return the page in the frame of a fragment."""
    (page,) = re.findall(r'<iframe [^>]*srcdoc="([^"]*)"', fragment)
    return html.unescape(page)


def test_fragment_has_words_picture_and_numbers(explanation):
    fragment = notebook_html(explanation)
    assert len(fragment) < 300_000
    assert "<script" not in fragment and not re.search(r'(src|href)="(?!data:image/png;base64,)', fragment)
    assert re.findall(r'title="[^"]*">([^<]*)</bdi>', fragment) == ["Good", "morning", ",", "$5", "äh"]
    bits, probability = float(explanation.words().sound_bits[1]), explanation.words().token_probabilities[1]
    assert f'title="{in_words(bits)}; probability {probability:.1%}"' in fragment
    assert f"{explanation.bits_per_token:.1f} bits a token from the sound" in fragment
    assert "7 tokens · 0.6 s of audio · method spes · 301 forward passes · in 12 s · reliability 0.70" in fragment
    assert "The length limit cut the output." in fragment


def test_words_that_were_not_heard_stand_out(make):
    bits = make().token_sound_bits * 0
    fragment = notebook_html(make(token_sound_bits=bits))
    assert "Probably made up: 0.0 bits a token" in fragment
    assert "Probably made up" not in notebook_html(make(token_sound_bits=bits + 8))
    assert 'title="0 bits: as likely without the sound' in fragment


def test_backward_passes_are_told_where_there_were_any(make):
    both = make(provenance={"cost": {"forward_passes": 109, "backward_passes": 55, "seconds": 67.0}})
    assert "· 109 forward and 55 backward passes · in 67 s ·" in notebook_html(both)


def test_low_reliability_is_told(make):
    shaky = make(token_reliability=type(make().reliability)(make().reliability.tokens, 0.2))
    assert "Use more masks" in notebook_html(shaky)
    assert "Use more masks" not in notebook_html(make())


def test_hostile_text_is_escaped(make):
    fragment = notebook_html(make(pieces=(" <b>bold", ' "x" onload="y', " \udce4", "<|endoftext|>")))
    assert "<b>bold" not in fragment and "&lt;b&gt;bold" in fragment
    assert 'onload="y' not in fragment
    fragment.encode("utf-8")


def test_little_provenance_is_enough(make):
    assert "5 tokens" not in notebook_html(make(provenance={}))
    assert "&lt;|endoftext|&gt;" in notebook_html(make(pieces=("<|endoftext|>",)))


def test_contrasts_are_listed_with_their_odds(contrasting):
    fragment = notebook_html(contrasting())
    assert re.findall(r'title="from the sound ([^"]*)">([^<]*)</bdi>', fragment) == [
        ("3.0 bits: the odds are 8.0 times higher with the sound than without", "country, not county"),
        ("-1.0 bits: the odds are 2.0 times lower with the sound than without", "(nothing), not really"),
    ]
    assert "+3.0 bits; the sound adds +3.0" in fragment and "-1.0 bits; the sound adds -1.0" in fragment
    assert "2 contrasts" in fragment
    for wrong in ("heard", "probability", "sentence"):
        assert wrong not in re.sub(r"<iframe.*?</iframe>", "", fragment)
    assert json.loads(re.search(r'id="data">(.*?)</script>', framed(fragment))[1])["contrasts"]
    assert "<b>x" not in notebook_html(contrasting((("a", "<b>x"),)))


def test_player_is_that_of_the_page(explanation, tmp_path):
    fragment, page = notebook_html(explanation), explanation.to_html(tmp_path / "page.html").read_text("utf-8")
    for name in ("listening.html", "listening.js", "page.js"):
        shared = (files("spes_hf.viz") / name).read_text("utf-8")
        assert shared in framed(fragment) and shared in page
    inside, outside = (json.loads(re.search(r'id="data">(.*?)</script>', text)[1]) for text in (framed(fragment), page))
    assert inside["audio"] == outside["audio"] and inside["sentence"]["map"] == outside["sentence"]["map"]


def test_player_costs_little_more_than_its_sound(explanation):
    data = json.loads(re.search(r'id="data">(.*?)</script>', framed(notebook_html(explanation)))[1])
    assert base64.b64decode(data["audio"]).startswith(b"fLaC")
    without = notebook_html(replace(explanation, waveform=torch.zeros(0)))
    assert "<iframe" not in without and "0.0 s of audio" in without
    assert len(notebook_html(explanation)) - len(without) - len(data["audio"]) - len(data["sentence"]["map"]) < 30_000


def test_fragment_is_one_line_so_that_joined_lines_cut_no_script(explanation):
    assert "\n" not in notebook_html(explanation) and "\n" in framed(notebook_html(explanation))

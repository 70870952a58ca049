import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from spes_hf import SpesConfig, diagnose
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation.diagnosis import VERDICTS, Diagnosis, WordError
from spes_hf.viz import diagnosis_page, report, write_diagnosis_html
from spes_hf.viz.diagnosis_page import Column, aligned, sentence

MISHEARD = {"log_odds": 9.1, "context": 0.9, "evidence": 8.2, "without_sound": 1.5, "deviation": 0.3}
KNOWN = {"written_evidence": 5.0, "said_evidence": -3.2, "stretch": (0.1, 0.25), "reliability": 0.8}
HOSTILE = "</script><script>document.title='broken'</script>"


def error(written, said, written_words, said_words, row=None, **changes):
    found = {**MISHEARD, **KNOWN, **changes} if row is not None else {"why_not": "no such <b>token</b>.", **changes}
    return WordError("substitution", written, said, written_words, said_words, row=row, **found)


@pytest.fixture(scope="module")
def diagnosis(contrasting):
    """One error of each verdict, and a word too many, in two texts with marks."""
    errors = (
        error("a", "b", (0,), (0,), 0),
        error("c", "d", (2,), (1,), 1, evidence=-2.0, context=11.1),
        error("same", "", (5,), (), 2, evidence=0.1, written_evidence=0.1, said_evidence=0.0),
        error("", "gone", (), (4,), 3, evidence=1.2),
        error("e", "f", (9,), (6,)),
    )
    return Diagnosis(
        "A, c “fine” same old-fashioned e.",
        "b d: fine, old gone fashioned f!",
        ("A", ",", "c", "“", "fine", "same", "”", "old", "fashioned", "e", "."),
        ("b", "d", "fine", "old", "gone", "fashioned", "f"),
        errors,
        contrasting([("a", "b"), ("c", "d"), ("same", "(nothing)"), ("(nothing)", "gone")]),
    )


@pytest.fixture(scope="module")
def page(diagnosis):
    return diagnosis_page.page(diagnosis)


def data_of(page):
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(block)


def elements(page):
    found = []

    class Elements(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, dict(attrs)))

    Elements().feed(page)
    return found


def text_of(parts):
    return "".join(part if isinstance(part, str) else f"*{part['quoted']}*" for part in parts)


def test_page_loads_nothing_from_anywhere(page):
    assert not re.search(r"https?://|@import|url\(", page)
    found = elements(page)
    assert not [a for _, a in found if {"src", "href", "srcset", "action"} & a.keys()]
    policy = next(a["content"] for tag, a in found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_texts_are_aligned_with_their_marks():
    found = Diagnosis(
        "“Good-bye, (he) said … would-be friend.",
        "good-bye he says would be friend!",
        ("“", "Good-bye", ",", "(", "he", ")", "said", "…", "would-be", "friend", "."),
        ("good-bye", "he", "says", "would", "be", "friend"),
        (error("said", "says", (6,), (2,)),),
    )
    assert aligned(found) == [
        Column("“Good-bye,", "good-bye", True),
        Column("(he)", "he", True),
        Column("said …", "says", True, 0),
        Column("would-be", "would be", True),
        Column("friend.", "friend!", True),
    ]


def test_words_without_a_partner_keep_their_place(diagnosis):
    found = aligned(diagnosis)
    assert [(c.written, c.said) for c in found if c.error is not None] == [
        ("A,", "b"),
        ("c", "d:"),
        ("same", ""),
        ("", "gone"),
        ("e.", "f!"),
    ]
    assert [c.written for c in found if c.error is None] == ["“fine”", "old-", "fashioned"]
    assert [c.error for c in found] == [0, 1, None, 2, None, 3, None, 4]


def test_scripts_without_spaces_have_none():
    found = aligned(
        Diagnosis("東京へ。", "東都へ", ("東", "京", "へ", "。"), ("東", "都", "へ"), (error("京", "都", (1,), (1,)),))
    )
    assert found == [Column("東", "東", True), Column("京", "都", False, 0), Column("へ。", "へ", False)]


def test_words_that_the_text_spells_otherwise_are_shown_as_they_are():
    found = aligned(
        Diagnosis("caf\udce9 x", "café x", ("caf\\xe9", "x"), ("café", "x"), (error("caf\\xe9", "café", (0,), (0,)),))
    )
    assert found == [Column("caf\\xe9", "café", True, 0), Column("x", "x", True)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "The sound at 0.10–0.25 s, as the model hears it, speaks for *a*: misheard."),
        ({"evidence": -2.0}, "The sound at 0.10–0.25 s speaks for *b*, but the context outweighs it: guessed."),
        ({"evidence": 0.4}, "The sound at 0.10–0.25 s hardly tells *a* from *b*, and the context decides: guessed."),
        (
            {"evidence": 0.1, "written_evidence": 0.1, "said_evidence": 0.0},
            "The sound at 0.10–0.25 s says nothing about *a* or *b*, and the context decides: not heard.",
        ),
        (
            {"evidence": 1.1, "deviation": 0.2},
            "The sound at 0.10–0.25 s speaks for *a* by 1.1 ± 0.2 bits, too close to 1.25 bits to tell misheard from "
            "guessed: unsure.",
        ),
        (
            {"evidence": -1.0, "deviation": 4.0},
            "The sound at 0.10–0.25 s speaks for *a* by −1.0 ± 4.0 bits, too noisy to tell misheard from guessed: "
            "unsure.",
        ),
        (
            {"evidence": -2.0, "log_odds": -1.0},
            "The sound at 0.10–0.25 s speaks for *b*, not for what was written: guessed. On the whole, the model finds "
            "*b* likelier.",
        ),
        (
            {"written": ""},
            "The sound at 0.10–0.25 s, as the model hears it, speaks for leaving *b* out: misheard.",
        ),
        (
            {"said": "", "evidence": -2.0},
            "The sound at 0.10–0.25 s speaks for leaving *a* out, but the context outweighs it: guessed.",
        ),
        (
            {"said": "", "evidence": 0.3},
            "The sound at 0.10–0.25 s hardly says whether *a* belongs here, and the context decides: guessed.",
        ),
        (
            {"evidence": math.nan, "why_not": "no token for 'b'."},
            "Not known where this comes from: no token for 'b'.",
        ),
    ],
)
def test_sentence_says_the_verdict(changes, words):
    found = replace(error("a", "b", (0,), (0,), 0), **changes)
    assert text_of(sentence(found)) == words
    assert found.verdict in words.lower()


def test_numbers_are_those_of_the_diagnosis(page, diagnosis):
    data = data_of(page)
    assert [e["verdict"] for e in data["errors"]] == ["misheard", "guessed", "not heard", "unsure", "not known"]
    assert set(VERDICTS) == {e["verdict"] for e in data["errors"]}
    first, last = data["errors"][0], data["errors"][-1]
    for name in ("log_odds", "context", "evidence", "without_sound", "deviation", "written_evidence", "said_evidence"):
        assert first[name] == getattr(diagnosis.errors[0], name) and last[name] is None
    assert first["stretch"] == [0.1, 0.25] and last["stretch"] == [None, None]
    for found, expected in zip(data["errors"], diagnosis.errors, strict=True):
        if expected.row is None:
            assert found["map"] is None
            continue
        evidence = diagnosis.explanation.evidence(expected.row)
        assert found["map"]["map"] == report.signed_png(evidence)["map"]
        assert np.isclose(found["map"]["scale"], report.signed_png(evidence)["scale"])
    assert data["summary"] == (
        "5 errors: 1 misheard, 1 guessed, 1 not heard, 1 unsure, 1 not known. Word error rate 71\u00a0% over 7 words."
    )


def test_hostile_text_stays_text(page, diagnosis):
    hostile = replace(
        diagnosis,
        text=HOSTILE,
        errors=(error(HOSTILE, "\u202eevil\ud800", (0,), (0,)), *diagnosis.errors[1:]),
        written=(HOSTILE, *diagnosis.written[1:]),
    )
    found = diagnosis_page.page(hostile)
    found.encode("utf-8")
    assert [tag for tag, _ in elements(found)] == [tag for tag, _ in elements(page)]
    shown = data_of(found)["errors"][0]
    assert shown["written"] == HOSTILE and shown["said"].startswith("\\u202eevil")
    assert "\u202e" not in found


def test_direction_is_that_of_the_text(diagnosis):
    assert data_of(diagnosis_page.page(diagnosis))["direction"] == "ltr"
    assert data_of(diagnosis_page.page(replace(diagnosis, text="… 12 שלום c")))["direction"] == "rtl"


# In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dom(diagnosis, browse, tmp_path_factory):
    """Return what a browser makes of the page, opened at a place in it."""
    path = tmp_path_factory.mktemp("page") / "deep" / "page.html"
    return lambda place, shown=diagnosis: browse(write_diagnosis_html(shown, path), place)


def pressed(shown):
    return re.findall(r'<button type="button" aria-pressed="true"[^>]*aria-label="([^"]*)"', shown)


def inside(shown, name):
    """Return the text of an element, without its elements."""
    block = re.search(rf'<(\w+)[^>]* id="{name}"[^>]*>(.*?)</\1>', shown, re.DOTALL)[2]
    return re.sub("<[^>]*>", "", block)


def is_hidden(shown, name):
    return " hidden" in re.search(rf'<[^>]* id="{name}"[^>]*>', shown)[0]


def test_browser_opens_the_error_in_the_address(dom):
    shown = dom("#error=1")
    assert "error 2 of 5" in shown and shown.count(">1.25</span>") == 2
    assert 'data-chosen="error=1"' in shown and pressed(shown) == ["c written, d said: guessed"]
    assert inside(shown, "heading").startswith("“c” written, “d” saidguessed")
    assert inside(shown, "sentence-of").endswith("speaks for “d”, but the context outweighs it: guessed.")
    for bits in ("+1.5 bits", "+11.1 bits", "−2.0 ± 0.3 bits", "+9.1 bits"):
        assert f">{bits}</div>" in shown
    assert not is_hidden(shown, "map") and not is_hidden(shown, "sound")
    assert "for “c”" in inside(shown, "scale-high") and "for “d”" in inside(shown, "scale-low")
    assert 'data-chosen="error=0"' in dom("") and 'data-chosen="error=0"' in dom("#error=99")


def test_browser_draws_the_odds_around_their_zero(dom):
    shown = dom("#error=1")
    bars = re.findall(r'class="bar (\w+) ?(\w*)" style="left: ?([\d.]+)%; ?width: ?([\d.]+)%', shown)
    (_, _, zero, silent), (_, _, _, context), (side, level, left, evidence), (_, _, _, together) = bars
    assert side == "said" and level == ""
    width = float(context) / 11.1  # of a bit
    assert float(silent) == pytest.approx(1.5 * width, rel=1e-3)
    assert float(evidence) == pytest.approx(2.0 * width, rel=1e-3)
    assert float(together) == pytest.approx(9.1 * width, rel=1e-3)
    assert float(left) == pytest.approx(float(zero) + 9.1 * width, rel=1e-3)


def test_browser_says_why_an_error_is_not_known(dom):
    shown = dom("#error=4")
    assert "no such &lt;b&gt;token&lt;/b&gt;." in inside(shown, "sentence-of")
    assert is_hidden(shown, "map") and is_hidden(shown, "odds") and not is_hidden(shown, "sound")
    assert re.search(r'<button[^>]*id="play-stretch"[^>]*disabled', shown)


def test_browser_shows_texts_without_an_error(dom):
    right = Diagnosis("Tom sells.", "Tom sells", ("Tom", "sells", "."), ("Tom", "sells"), ())
    shown = dom("", right)
    assert "No error: the model wrote all 2 words of the reference." in inside(shown, "summary")
    assert "sells." in inside(shown, "aligned")
    assert is_hidden(shown, "chosen") and is_hidden(shown, "sound") and is_hidden(shown, "choose")


def test_browser_shows_errors_without_an_explanation(dom, diagnosis):
    shown = dom("", replace(diagnosis, errors=diagnosis.errors[4:], explanation=None))
    assert 'data-chosen="error=0"' in shown
    assert is_hidden(shown, "map") and is_hidden(shown, "sound") and not is_hidden(shown, "chosen")


def test_browser_shows_sixty_errors(dom, diagnosis):
    words = tuple(f"w{i}" for i in range(120))
    said = tuple(word if i % 2 else f"s{i}" for i, word in enumerate(words))
    errors = tuple(error(words[i], said[i], (i,), (i,), (i // 2) % 4) for i in range(0, 120, 2))
    many = replace(diagnosis, text=" ".join(words), reference=" ".join(said), written=words, said=said, errors=errors)
    shown = dom("#error=59", many)
    assert pressed(shown) == ["w118 written, s118 said: misheard"]
    assert shown.count('aria-pressed="false"') == 59


def test_browser_takes_hostile_text_as_text(dom, diagnosis):
    errors = (replace(diagnosis.errors[0], written=HOSTILE, said="<img src=x>"), *diagnosis.errors[1:])
    shown = dom("#error=0", replace(diagnosis, text=HOSTILE, errors=errors))
    assert "&lt;/script&gt;&lt;script&gt;" in inside(shown, "heading")
    assert "<img" not in shown and "<title>broken" not in shown


@pytest.fixture(scope="module")
def real():
    """What a trained model got wrong."""
    clip = next(c for c in tiny_clips() if c["id"] == "tst-COMMON-0105")
    config = SpesConfig.fast(num_token_masks=4)
    reference = "At half past eleven Tom needs a beautiful hat."
    return diagnose(*load_tiny_model("speech2text-en"), clip["path"], reference, config=config, progress=False)


def test_browser_shows_a_real_diagnosis(dom, real):
    assert [(e.written, e.said) for e in real.errors] == [("the", "a"), ("house", "hat")]
    for k, own in enumerate(real.errors):
        shown = dom(f"#error={k}", real)
        assert pressed(shown) == [f"{own.written} written, {own.said} said: {own.verdict}"]
        assert f">{own.evidence:+.1f} ± {own.deviation:.1f} bits</div>".replace("-", "−") in shown
        assert inside(shown, "scale-high").endswith(f"bits for “{own.written}”")

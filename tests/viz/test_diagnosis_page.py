"""The page of a diagnosis: what it holds, that nothing breaks out of it, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from spes_hf import Diagnosis, SpesConfig, WordError, diagnose
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.viz import diagnosis_page


@pytest.fixture(scope="module")
def found():
    """A real diagnosis with two errors."""
    clip = next(c for c in tiny_clips() if c["kind"] == "statement")
    said = clip["transcript"].split()
    reference = " ".join(["Anna" if said[0] != "Anna" else "Laura", *said[1:-1], "house."])
    config = SpesConfig.fast(num_token_masks=4)
    return diagnose(*load_tiny_model("speech2text-en"), clip["path"], reference, config=config, progress=False)


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def made_up(*errors, text="it is kind.", reference="these kine"):
    return Diagnosis(text, reference, ("it", "is", "kind", "."), ("these", "kine"), errors)


def error(evidence=3.0, **values):
    fixed = {"written": "it is kind", "said": "these kine", "written_words": (0, 1, 2), "said_words": (0, 1)}
    bits = {"log_odds": 4.0, "context": 4.0 - evidence, "evidence": evidence, "without_sound": 1.0}
    deltas = {"written_evidence": 1.0, "said_evidence": -1.0, "deviation": 0.1, "stretch": (0.1, 0.4)}
    return WordError("several words", **{**fixed, **bits, **deltas, **values})


def test_the_page_holds_texts_errors_maps_and_sound(found, tmp_path):
    path = found.to_html(tmp_path / "deep" / "page.html")
    html = path.read_text(encoding="utf-8")
    data = data_of(html)
    assert len(data["errors"]) == len(found.errors) >= 2
    for shown, own in zip(data["errors"], found.errors, strict=True):
        assert shown["verdict"] == own.verdict and shown["evidence"] == pytest.approx(own.evidence, abs=1e-3)
        assert shown["map"]["map"] and shown["map"]["unit"] == "bits"
    assert data["audio"] and data["spectrogram"]
    assert not re.search(r"(src|href)=\"?https?://", html) and "@import" not in html


def test_the_texts_lie_one_above_the_other():
    columns = diagnosis_page.aligned(
        Diagnosis(
            "Ask, not what.",
            "ask what then",
            ("Ask", ",", "not", "what", "."),
            ("ask", "what", "then"),
            (
                WordError("insertion", "not", "", (2,), ()),
                WordError("deletion", "", "then", (), (2,)),
            ),
        )
    )
    assert [(c.written, c.said, c.error) for c in columns] == [
        ("Ask,", "ask", None),
        ("not", "", 0),
        ("what.", "what", None),
        ("", "then", 1),
    ]


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (error(3.0), "speaks for"),
        (error(-3.0), "but the context outweighs it: guessed"),
        (error(0.5, written_evidence=2.0), "hardly tells"),
        (error(0.0, written_evidence=0.0, said_evidence=0.0), "says nothing about"),
        (error(1.3), "unsure"),
        (error(math := float("nan"), stretch=(math, math), why_not="no tokens for it"), "no tokens for it"),
    ],
)
def test_every_verdict_is_said_in_words(one, words):
    parts = diagnosis_page.sentence(one)
    assert words in "".join(part if isinstance(part, str) else part["quoted"] for part in parts)
    data = data_of(diagnosis_page.page(made_up(one)))
    assert data["errors"][0]["verdict"] == one.verdict


def test_no_error_and_no_map():
    html = diagnosis_page.page(Diagnosis("a b", "a b", ("a", "b"), ("a", "b"), ()))
    assert data_of(html)["summary"].startswith("No error")


def test_nothing_breaks_out():
    evil = '</script><script>alert(1)</script>"><img src=x onerror=alert(1)>'
    one = error(written=evil, said=evil, why_not=evil)
    html = diagnosis_page.page(made_up(one, text=evil, reference=evil))
    assert "<script>alert" not in html and "<img src=x" not in html
    assert data_of(html)["errors"][0]["written"].startswith("</script>")


def test_sixty_errors(found):
    words = tuple(f"w{i}" for i in range(60))
    one = replace(found.errors[0], kind="substitution", row=0)
    errors = tuple(replace(one, written=f"w{i}", said=f"v{i}", written_words=(i,), said_words=(i,)) for i in range(60))
    said = tuple(f"v{i}" for i in range(60))
    many = Diagnosis(" ".join(words), " ".join(said), words, said, errors, found.explanation)
    data = data_of(diagnosis_page.page(many))
    assert len(data["errors"]) == 60 and [c["error"] for c in data["columns"]] == [*range(60)]


@pytest.fixture(scope="module")
def dom(tmp_path_factory):
    """Return what a browser makes of a page, opened at a place in it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("chromium, to open the page with, is not installed: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")

    def open_at(shown, place=""):
        path = shown.to_html(folder / "page.html")
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
        command = [browser, *(f"--{flag}" for flag in (*flags.split(), "disable-component-update", "dump-dom"))]
        command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", f"{path.as_uri()}{place}"]
        run = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)
        if run.returncode:
            pytest.skip(f"chromium does not start here: {run.stderr[-300:]}")
        return run.stdout

    return open_at


def pressed(shown):
    return re.findall(r'<button[^>]*aria-pressed="true"[^>]*aria-label="([^"]*)"', shown)


def test_a_browser_opens_the_error_of_the_address(dom, found):
    first, second = (dom(found, place) for place in ("#error=0", "#error=1"))
    assert f"error 1 of {len(found.errors)}" in first and f"error 2 of {len(found.errors)}" in second
    for shown, own in ((first, found.errors[0]), (second, found.errors[1])):
        assert re.search(rf'aria-label="{own.written}\W* written, {own.said}\W* said: {own.verdict}"', shown)
        assert f"{own.evidence:+.1f}".replace("-", "−") in shown


def test_a_browser_shows_a_page_without_errors(dom):
    shown = dom(Diagnosis("a b", "a b", ("a", "b"), ("a", "b"), ()))
    assert "No error" in shown and pressed(shown) == []


def test_a_browser_shows_hostile_text_as_text(dom):
    shown = dom(made_up(error(written="<b>bold</b>", said="<i>said</i>"), text="<b>bold</b>", reference="<i>said</i>"))
    assert "&lt;b&gt;bold" in shown and "<b>bold</b>" not in shown.split('<script type="application/json"')[0]

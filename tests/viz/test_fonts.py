import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure

from spes_hf.viz import fonts, plot_saliency, plot_tokens

THAI, DESERET = "สวัสดี", "\U00010400\U00010401"


@pytest.fixture
def install(tmp_path):
    """Return a function that makes a font of some characters and installs it until the test ends."""
    added = []

    def make(family, characters):
        characters = dict.fromkeys(characters)
        pen = TTGlyphPen(None)
        for x, y in ((0, 0), (0, 700), (500, 700), (500, 0)):
            (pen.lineTo if (x or y) else pen.moveTo)((x, y))
        pen.closePath()
        glyph = pen.glyph()
        names = [".notdef", *(f"u{ord(c):X}" for c in characters)]
        builder = FontBuilder(1000, isTTF=True)
        builder.setupGlyphOrder(names)
        builder.setupCharacterMap({ord(c): f"u{ord(c):X}" for c in characters})
        builder.setupGlyf(dict.fromkeys(names, glyph))
        builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": family, "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        path = tmp_path / f"{family}.ttf"
        builder.save(path)
        font_manager.fontManager.addfont(path)
        added.append(str(path))

    yield make
    font_manager.fontManager.ttflist[:] = [f for f in font_manager.fontManager.ttflist if f.fname not in added]
    font_manager.fontManager._findfont_cached.cache_clear()
    fonts._family_of.cache_clear(), fonts._path.cache_clear()


@pytest.fixture
def unwarned(monkeypatch):
    monkeypatch.setattr(fonts, "_warned", set())


def strict_draw(figure):
    """Draw, with an error for a glyph that is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()


def test_what_the_font_has_needs_no_other():
    assert fonts.families_for("Grüße, мир, ελλάδα: 12 €") == ([], set())
    assert fonts.families_for("مرحبا بالعالم") == ([], set())  # DejaVu Sans, which Matplotlib brings


def test_a_shipped_font_is_found_for_what_another_lacks():
    assert fonts.families_for("مرحبا", ["STIXGeneral"]) == (["DejaVu Sans"], set())


def test_a_font_is_found_by_what_it_has(install):
    install("Spes Empty Sans", "ab")
    install("Spes Zz Deseret", DESERET)
    assert fonts.families_for(f"ab {DESERET}") == (["Spes Zz Deseret"], set())


def test_known_fonts_come_first(install):
    install("Aa Sans", THAI)
    install("Noto Sans Thai", THAI)
    assert fonts.families_for(THAI) == (["Noto Sans Thai"], set())


def test_labels_are_drawn_with_the_fonts_found(install, make):
    install("Noto Sans Thai", THAI)
    pieces = (f" {THAI}", " b", " c", "</s>")
    explanation = make(pieces=pieces, text=f"{THAI} b c", context_pieces=("<s>", "<en>", *pieces[:-1]))
    before = dict(rcParams)
    figure, axes = plot_tokens(explanation)
    label = axes.get_yticklabels()[0]
    assert label.get_text() == THAI and label.get_fontfamily()[-1] == "Noto Sans Thai"
    assert "Noto Sans Thai" not in axes.get_yticklabels()[1].get_fontfamily()
    strict_draw(figure)
    figure, _ = plot_saliency(explanation)
    strict_draw(figure)
    assert dict(rcParams) == before


def test_without_a_font_there_are_boxes_and_one_warning(unwarned, make):
    nobody, either = "\u2fe0", "\u2fe1"  # unassigned: no font has them
    pieces = (f" {nobody}a", f" {either}{nobody}", " c", "</s>")
    explanation = make(pieces=pieces, text="".join(pieces[:3]), context_pieces=("<s>", "<en>", *pieces[:-1]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure, axes = plot_tokens(explanation)
        sentence, _ = plot_saliency(explanation)
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == ["□a", "□□", "c"]
    assert "□a □□ c" in sentence.get_suptitle()
    assert len(told) == 1 and "no installed font has '\\u2fe0' (U+2FE0" in str(told[0].message)
    strict_draw(figure), strict_draw(sentence)


@pytest.mark.parametrize(
    ("character", "words"),
    [
        ("ส", "Noto Sans Thai.*fonts-noto-core"),
        ("界", "Noto Sans CJK JP.*fonts-noto-cjk"),
        ("क", "Noto Sans Devanagari"),
        ("한", "Noto Sans CJK KR"),
        ("ა", "Noto Sans Georgian"),
        ("🎉", "Symbola.*fonts-symbola"),
    ],
)
def test_the_warning_names_a_font_to_install_once(unwarned, character, words):
    with pytest.warns(UserWarning, match=f"no installed font has '{character}'.*Install '{words}"):
        fonts._warn({character})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts._warn({chr(ord(character) + 1)})


@pytest.mark.parametrize("text", [THAI, "नमस्ते", "مرحبا", "世界", "こんにちは", "안녕"])
def test_installed_fonts_draw_it(text):
    families, missing = fonts.families_for(text)
    if missing:
        pytest.skip(f"no installed font has {sorted(missing)}")
    figure = Figure()
    drawn = figure.text(0.1, 0.1, text)
    fonts.fit([drawn])
    assert drawn.get_text() == text
    strict_draw(figure)

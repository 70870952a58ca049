"""Alignments: every format that is understood, every way in which they can be wrong."""

from __future__ import annotations

import json

import pytest

from spes_hf.analysis import Alignment, AlignmentError, Phone, Word, read_alignment
from spes_hf.analysis.alignments import AlignmentFinder
from spes_hf.analysis.textgrid import Interval, read_textgrid
from spes_hf.errors import SpesError

LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.5
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.5
            text = "so"
        intervals [3]:
            xmin = 0.5
            xmax = 1.0
            text = "he said ""no"""
        intervals [4]:
            xmin = 1.0
            xmax = 1.5
            text = "<sil>"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = "sil"
        intervals [2]:
            xmin = 0.25
            xmax = 0.35
            text = "S"
        intervals [3]:
            xmin = 0.35
            xmax = 0.5
            text = "OW1"
    item [3]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.7
            mark = "click"
'''
SHORT = '''File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
3
"IntervalTier"
"words"
0
1.5
4
0
0.25
""
0.25
0.5
"so"
0.5
1.0
"he said ""no"""
1.0
1.5
"<sil>"
"IntervalTier"
"phones"
0
1.5
3
0
0.25
"sil"
0.25
0.35
"S"
0.35
0.5
"OW1"
"TextTier"
"clicks"
0
1.5
1
0.7
"click"
'''
EXPECTED = Alignment(
    (
        Word("so", 0.25, 0.5, (Phone("S", 0.25, 0.35), Phone("OW1", 0.35, 0.5))),
        Word('he said "no"', 0.5, 1.0),
    )
)


@pytest.mark.parametrize("content", [LONG, SHORT, LONG.replace("    ", "\t"), SHORT.replace("\n", "\r\n")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_textgrid(content, encoding, tmp_path):
    path = tmp_path / "u.TextGrid"
    path.write_bytes(content.encode(encoding))
    assert read_alignment(path) == EXPECTED


def test_textgrid_of_an_aligner(tmp_path):
    """Montreal Forced Aligner puts the speaker before the tier's name; a single tier needs no name at all."""
    path = tmp_path / "u.textgrid"
    path.write_text(LONG.replace('"words"', '"anna - words"').replace('"phones"', '"anna - phones"'))
    assert read_alignment(path) == EXPECTED
    one = SHORT[: SHORT.index('"IntervalTier"\n"phones"')].replace("<exists>\n3", "<exists>\n1")
    path.write_text(one.replace('"words"', '"Mary"'))
    assert [word.text for word in read_alignment(path).words] == ["so", 'he said "no"']


def test_textgrid_values():
    content = SHORT.replace("0.7\n", "! a comment with 5 numbers 1 2 3\n7e-1\n")
    assert read_textgrid(content)[0][1][1] == Interval(0.25, 0.5, "so")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ooBinaryFile", "text"),
        ('"ooTextFile" "PitchTier" 0 1', "not a TextGrid"),
        (SHORT[:180], "it ends, but a"),
        (SHORT.replace('"IntervalTier"\n"words"', '"SpectrumTier"\n"words"'), "SpectrumTier"),
        (SHORT.replace('0.25\n""', '"late"\n""'), "but a number is expected"),
    ],
)
def test_textgrid_refused(content, message, tmp_path):
    path = tmp_path / "u.TextGrid"
    path.write_text(content)
    with pytest.raises(AlignmentError, match=message):
        read_alignment(path)


def test_textgrid_without_words(tmp_path):
    path = tmp_path / "u.TextGrid"
    path.write_text(LONG.replace('"words"', '"syllables"'))
    with pytest.raises(AlignmentError, match="no tier 'words'.*'syllables', 'phones'"):
        read_alignment(path)


def test_json(tmp_path):
    words = [
        {"word": "<sil>", "start": 0.0, "end": 0.25},
        {"word": "so", "start": 0.25, "end": 0.5, "phones": [
            {"phone": "S", "start": 0.25, "end": 0.35}, {"phone": "OW1", "start": 0.35, "end": 0.5}]},
        {"word": 'he said "no"', "start": 0.5, "end": 1.0},
    ]  # fmt: skip
    path = tmp_path / "u.json"
    for content in ({"id": "u", "words": words}, words):
        path.write_text(json.dumps(content))
        assert read_alignment(path) == EXPECTED


def test_gentle(tmp_path):
    path = tmp_path / "u.json"
    content = {"transcript": "so what", "words": [
        {"word": "So", "case": "success", "start": 0.25, "end": 0.5,
         "phones": [{"phone": "s_B", "duration": 0.1}, {"phone": "ow_E", "duration": 0.15}]},
        {"word": "what", "case": "not-found-in-audio"},
    ]}  # fmt: skip
    path.write_text(json.dumps(content))
    (word,) = read_alignment(path).words
    assert (word.text, [p.label for p in word.phones]) == ("So", ["s", "ow"])
    assert [time for p in word.phones for time in (p.start, p.end)] == pytest.approx([0.25, 0.35, 0.35, 0.5])


def test_a_translation_keeps_the_order_of_its_text():
    words = [
        {"word": "Tom", "start": 0, "end": 1},
        {"word": "Hut", "start": 2, "end": 3},
        {"word": "malt", "start": 1, "end": 2},
    ]
    assert [word.text for word in Alignment.of(words).words] == ["Tom", "Hut", "malt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not what its name says"),
        ('{"text": "so"}', 'no list of "words"'),
        ('[{"start": 0, "end": 1}]', "word 0 is"),
        ('[{"word": "so", "start": 1, "end": "x"}]', "no start and end in seconds"),
        ('[{"word": "so", "start": 1.0, "end": 0.5}]', "runs from 1.0 to 0.5"),
        ('[{"word": "so", "start": -1.0, "end": 0.5}]', "runs from -1.0"),
        ('[{"word": "so", "start": NaN, "end": 0.5}]', "runs from nan"),
        ('[{"word": "so", "start": 0, "end": 1, "phones": ["S"]}]', "phone 'S'"),
    ],
)
def test_json_refused(content, message, tmp_path):
    path = tmp_path / "u.json"
    path.write_text(content)
    with pytest.raises(AlignmentError, match=message) as caught:
        read_alignment(path)
    assert str(path) in str(caught.value) and isinstance(caught.value, (SpesError, ValueError))


def test_files_refused(tmp_path):
    with pytest.raises(AlignmentError, match="ends in '.csv'"):
        read_alignment(tmp_path / "u.csv")
    with pytest.raises(AlignmentError, match="No such file"):
        read_alignment(tmp_path / "u.json")
    with pytest.raises(AlignmentError, match="is not a folder"):
        AlignmentFinder(tmp_path / "nowhere")
    with pytest.raises(AlignmentError, match="holds no .json"):
        AlignmentFinder(tmp_path)


def test_finder(tmp_path):
    nested = tmp_path / "speaker"
    nested.mkdir()
    (nested / "a.TextGrid").write_text(LONG)
    (tmp_path / "b.json").write_text('[{"word": "so", "start": 0, "end": 1}]')
    find = AlignmentFinder(tmp_path)
    assert find("a", None) == EXPECTED and find("b", None).words[0].text == "so" and find("c", None) is None
    assert "'a'" in find.describe() and "'b'" in find.describe()
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(AlignmentError, match="2 alignments"):
        AlignmentFinder(tmp_path)("a", None)
    given = AlignmentFinder(
        {"a": EXPECTED, "b": tmp_path / "b.json", "c": [{"word": "so", "start": 0, "end": 1}], "d": 5}
    )
    assert given("a", None) is EXPECTED and given("b", None) == given("c", None) and given("e", None) is None
    with pytest.raises(AlignmentError, match="is a int"):
        given("d", None)
    assert AlignmentFinder(lambda explanation: EXPECTED)("a", None) is EXPECTED

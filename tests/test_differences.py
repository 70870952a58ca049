"""Where two texts differ, on hand-made texts and on any."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spes_hf.differences import differences
from spes_hf.differences import pairs as side_by_side
from spes_hf.text import ends_word, normalise


def pairs(first, second, **kwargs):
    """Return the differences as pairs of words."""
    one, other = first.split(), second.split()
    found = differences(one, other, **kwargs)
    return [(" ".join(one[i] for i in d.first), " ".join(other[i] for i in d.second)) for d in found]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("ask not what your country can do", "ask not what your county can do", [("country", "county")]),
        ("the the cat", "the cat", [("the", "")]),
        ("the cat", "the black cat", [("", "black")]),
        ("my fellow country men", "my yellow countrymen", [("fellow country men", "yellow countrymen")]),
        ("a shop lifting thief", "a shoplifting thief", []),
        ("a would-be thief", "a would be thief", []),
        ("a b c d", "w x y z", [("a", "w"), ("b", "x"), ("c", "y"), ("d", "z")]),
        ("Ask, not.", "ask not", []),
        ("I don’t", "i don't", []),
        ("he said", "he", [("said", "")]),
        ("", "he", [("", "he")]),
    ],
)
def test_texts_differ_where_words_differ(first, second, expected):
    assert pairs(first, second) == expected


def test_case_counts_if_asked_for():
    assert pairs("the Turkey", "the turkey") == []
    assert pairs("the Turkey", "the turkey", exact=True) == [("Turkey", "turkey")]


WORDS = st.lists(st.sampled_from(["the", "cat", "Cat,", "sat", "on", "mat.", "a"]), max_size=8)


@given(WORDS, WORDS)
def test_what_is_no_difference_is_equal(first, second):
    found = differences(first, second)
    assert differences(first, first) == []
    for words, sides in ((first, [d.first for d in found]), (second, [d.second for d in found])):
        edges = [edge for side in sides for edge in (side.start, side.stop)]
        assert edges == sorted(edges) and all(0 <= edge <= len(words) for edge in edges)
    rests = [
        "".join(normalise(w) for i, w in enumerate(words) if not any(i in side for side in sides))
        for words, sides in ((first, [d.first for d in found]), (second, [d.second for d in found]))
    ]
    assert rests[0] == rests[1]
    mirrored = differences(second, first)
    assert sum(max(len(d.first), len(d.second)) for d in found) == sum(
        max(len(d.first), len(d.second)) for d in mirrored
    )


@pytest.mark.parametrize(
    ("piece", "special", "expected"),
    [
        (" county", False, True),
        ("ies", False, False),
        (".", False, True),
        (",", False, True),
        ("'s", False, False),
        ("'", False, False),
        ("-", False, False),
        ("?", False, True),
        ("", True, True),
        ("", False, False),
        ("国", False, True),
        ("\udce4\udcbd", False, True),
        ("\udce3\udc81", False, True),
        ("\udcc3", False, False),
        ("\udcbd", False, False),
    ],
)
def test_what_follows_a_word_ends_it(piece, special, expected):
    assert ends_word(piece, special) is expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Ask what your country", "ask not what your county", "Ask=ask /not what=what your=your country/county"),
        ("a would-be thief ran", "a would be thief", "a=a would-be=would,be thief=thief ran/"),
        ("my fellow country men", "my yellow countrymen", "my=my fellow,country,men/yellow,countrymen"),
        ("", "he", "/he"),
        ("", "", ""),
    ],
)
def test_texts_lie_side_by_side(first, second, expected):
    one, other = first.split(), second.split()
    found = [
        ",".join(one[i] for i in p.first) + "/="[p.equal] + ",".join(other[j] for j in p.second)
        for p in side_by_side(one, other)
    ]
    assert " ".join(found) == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from("a b c ab , .".split())), st.lists(st.sampled_from("a b c ab , .".split())))
def test_every_word_is_in_one_pair(first, second):
    found = side_by_side(first, second)
    assert [i for p in found for i in p.first] == list(range(len(first)))
    assert [j for p in found for j in p.second] == list(range(len(second)))
    assert all(p.first or p.second for p in found)

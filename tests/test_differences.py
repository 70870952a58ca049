"""Where two texts differ, on hand-made texts and on any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spes_hf.differences import differences
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

"""Which word of an explanation is which spoken word?"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spes_hf.analysis import Alignment, Phone, Word, match_words
from spes_hf.analysis.matching import normalise


def heard(*words: str) -> Alignment:
    """One word a second."""
    return Alignment(tuple(Word(w, i, i + 1, (Phone(w[0].upper(), i, i + 0.5),)) for i, w in enumerate(words)))


def found(words: list[str], alignment: Alignment) -> list[tuple[int, float, float]]:
    return [(s.index, s.start, s.end) for s in match_words(words, alignment).spoken]


def test_case_and_punctuation():
    match = match_words([" “So", ",", " What's", " next", "?”"], heard("so", "what's", "Next."))
    assert [(s.index, s.text, s.start) for s in match.spoken] == [(0, "so", 0), (2, "whats", 1), (3, "next", 2)]
    assert match.unmatched == () and match.spoken[0].phones == (Phone("S", 0, 0.5),)


def test_what_nobody_says_is_told():
    match = match_words([" he", " was", " upset", " the"], heard("he", "is", "upset"))
    assert [s.index for s in match.spoken] == [0, 2] and match.unmatched == ("was", "the")


def test_repeated_words_keep_their_places():
    assert found([" no", " no", " so", " no"], heard("no", "no", "so", "no")) == [
        (0, 0, 1), (1, 1, 2), (2, 2, 3), (3, 3, 4)]  # fmt: skip
    # "the" is left out by the model: which of the two is a matter of order, not of sameness.
    assert found([" a", " the", " c"], heard("the", "a", "b", "the", "c")) == [(0, 1, 2), (1, 3, 4), (2, 4, 5)]


def test_parts_that_were_not_said_together_are_no_word():
    assert found([" twenty-one"], heard("twenty", "one")) == [(0, 0, 2)]
    match = match_words([" twenty-one"], heard("twenty", "...", "one"))
    assert match.spoken == () and match.unmatched == (normalise("twenty-one"),)


def test_hyphens():
    assert found([" twenty-three", " cats"], heard("twenty", "three", "cats")) == [(0, 0, 2), (1, 2, 3)]
    assert match_words([" twenty-three"], heard("twenty", "three")).spoken[0].phones == (
        Phone("T", 0, 0.5), Phone("T", 1, 1.5))  # fmt: skip
    # Half a spoken word has no times of its own.
    match = match_words([" twenty", " three"], heard("twenty-three"))
    assert match.spoken == () and match.unmatched == ("twenty", "three")
    assert match_words([" twenty-two"], heard("twenty", "three")).unmatched == ("twentytwo",)


def test_translation_order():
    german = Alignment((Word("Tom", 0, 1), Word("den", 2, 3), Word("Hut", 3, 4), Word("malt", 1, 2)))
    assert found([" Tom", " den", " Hut", " malt", "."], german) == [(0, 0, 1), (1, 2, 3), (2, 3, 4), (3, 1, 2)]


@pytest.mark.parametrize("words", [[], [" ?"], [" so"]])
def test_nothing_to_match(words):
    assert match_words(words, Alignment(())).spoken == ()


@pytest.mark.parametrize(
    ("word", "plain", "kept"),
    [(" Don't!", "dont", "don't"), ("’tis", "tis", "tis"), ("STRASSE", "strasse", "strasse"), ("ﬁn", "fin", "fin"),
     (" $5.", "5", "5"), ("¿Qué", "qué", "qué"), ("—", "", ""), ("चाय", "चाय", "चाय")],
)  # fmt: skip
def test_normalise(word, plain, kept):
    assert normalise(word) == plain and normalise(word, apostrophes=True) == kept


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(["so", "no", "So,", "twenty-three", "three", "?", "can't"]), max_size=8),
    st.lists(st.sampled_from(["so", "no", "twenty", "three", "twenty-three", "cant"]), max_size=8),
)
def test_every_word_is_matched_once_unmatched_or_a_mark(written, said):
    match = match_words(written, heard(*said))
    indices = [s.index for s in match.spoken]
    assert indices == sorted(set(indices))
    assert len(indices) + len(match.unmatched) == sum(bool(normalise(w)) for w in written)
    starts = [s.start for s in match.spoken]
    assert starts == sorted(set(starts))
    for s in match.spoken:
        assert normalise("".join(said[int(s.start) : int(s.end)])) == s.text

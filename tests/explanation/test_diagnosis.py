"""What a diagnosis says, on hand-made numbers."""

from __future__ import annotations

import math

import pytest

from spes_hf import Diagnosis, WordError
from spes_hf.explanation.diagnosis import MISHEARD_BITS, NOTHING_BITS, UNSURE_BITS


def error(evidence, written=2.0, said=-2.0, deviation=0.0, **values):
    return WordError(
        "substitution",
        "country",
        "county",
        (0,),
        (0,),
        log_odds=5.0,
        context=5.0 - evidence,
        evidence=evidence,
        without_sound=1.0,
        written_evidence=written,
        said_evidence=said,
        deviation=deviation,
        stretch=(1.0, 1.5),
        row=0,
        **values,
    )


SLACK = 0.01
SMALL = NOTHING_BITS - SLACK


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (error(MISHEARD_BITS + UNSURE_BITS + SLACK), "misheard"),
        (error(MISHEARD_BITS + UNSURE_BITS - SLACK), "unsure"),
        (error(MISHEARD_BITS - UNSURE_BITS + SLACK), "unsure"),
        (error(MISHEARD_BITS - UNSURE_BITS - SLACK), "guessed"),
        (error(MISHEARD_BITS + 2.0, deviation=2.5), "unsure"),
        (error(MISHEARD_BITS + 2.0, deviation=1.5), "misheard"),
        (error(-4.0), "guessed"),
        (error(0.0, SMALL, SMALL), "not heard"),
        (error(0.0, SMALL, NOTHING_BITS + SLACK), "guessed"),
        (error(0.0, -NOTHING_BITS - SLACK, SMALL), "guessed"),
        (WordError("substitution", "a", "b", why_not="no tokens"), "not known"),
    ],
)
def test_verdicts_follow_from_the_bits(found, verdict):
    assert found.verdict == verdict


def diagnosis(*errors, said=4):
    return Diagnosis("x", "y", ("x",), tuple("abcd")[:said], errors)


def test_word_error_rate_counts_words():
    several = WordError("several words", "a b c", "d", (0, 1, 2), (0,))
    missing = WordError("deletion", "", "e f", (), (1, 2))
    assert diagnosis(several, missing).wer == pytest.approx(5 / 4)
    assert diagnosis().wer == 0


def test_words_of_an_error():
    shown = str(error(3.0))
    assert "country, said county: misheard" in shown and "+5.0 bits = +2.0 context +3.0" in shown
    assert "(nothing)" in WordError("deletion", "", "x").name
    assert "no tokens" in str(WordError("substitution", "a", "b", why_not="no tokens"))
    found = diagnosis(error(3.0), error(-4.0))
    assert "2 errors (1 misheard, 1 guessed), WER 50%" in str(found)
    assert found.verdicts["misheard"] == 1 and sum(found.verdicts.values()) == 2


def test_it_survives_json():
    found = diagnosis(error(3.0, reliability=0.4), WordError("substitution", "a", "b", why_not="no tokens"))
    values = found.to_dict()
    assert values["errors"][1]["evidence"] is None and values["errors"][0]["verdict"] == "misheard"
    again = Diagnosis.from_dict(values)
    assert again.to_dict() == values and again.errors[0] == found.errors[0]
    assert math.isnan(again.errors[1].stretch[0]) and again.errors[1].verdict == "not known"

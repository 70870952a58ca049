import json
import math
from dataclasses import replace

import pytest

from spes_hf.explanation.diagnosis import VERDICTS, Diagnosis, WordError

COUNTRY = WordError(
    "substitution",
    "country",
    "county",
    (2,),
    (1,),
    log_odds=9.1,
    context=0.9,
    evidence=8.2,
    without_sound=1.5,
    written_evidence=5.0,
    said_evidence=-3.2,
    deviation=0.3,
    stretch=(1.42, 1.9),
    reliability=0.8,
    row=0,
)
UNKNOWN = WordError("deletion", "", "Bob", (), (2,), why_not="no token for 'Bob'")
INSERTED = WordError("insertion", "uh huh", "", (3, 4), (), evidence=-2.0, deviation=0.1, log_odds=1.0, context=3.0)


def diagnosis(*errors):
    return Diagnosis(
        " Your, country uh huh",
        "your county Bob can",
        ("Your", ",", "country", "uh", "huh"),
        ("your", "county", "Bob", "can"),
        errors,
    )


@pytest.mark.parametrize(
    ("evidence", "deviation", "own", "other", "verdict"),
    [
        (1.51, 0.1, 1.0, -0.5, "misheard"),
        (1.49, 0.1, 1.0, -0.5, "unsure"),
        (0.51, 0.1, 0.0, -0.51, "unsure"),
        (0.49, 0.1, 0.0, -0.51, "guessed"),
        (0.49, 0.1, 0.49, 0.0, "not heard"),
        (0.0, 0.1, 3.0, 3.0, "guessed"),
        (-6.0, 0.1, -3.0, 3.0, "guessed"),
        (4.0, 2.9, 4.0, 0.0, "misheard"),
        (4.0, 3.1, 4.0, 0.0, "unsure"),
        (-2.0, 3.1, -2.0, 0.0, "unsure"),
        (math.nan, math.nan, math.nan, math.nan, "not known"),
    ],
)
def test_verdict(evidence, deviation, own, other, verdict):
    found = replace(COUNTRY, evidence=evidence, deviation=deviation, written_evidence=own, said_evidence=other)
    assert found.verdict == verdict


def test_error_in_words():
    assert str(COUNTRY) == (
        "country, said county: misheard; +9.1 bits = +0.9 context +8.2 from the sound at 1.42–1.90 s (without any "
        "sound +1.5)"
    )
    assert str(UNKNOWN) == "(nothing), said Bob: not known (no token for 'Bob')"
    assert INSERTED.name == "uh huh, said (nothing)"


def test_word_error_rate_counts_words():
    assert diagnosis().wer == 0
    assert diagnosis(COUNTRY).wer == 1 / 4
    assert diagnosis(COUNTRY, UNKNOWN, INSERTED).wer == 1.0  # one wrong, one missing, two additional


def test_verdicts_name_all():
    found = diagnosis(COUNTRY, UNKNOWN, INSERTED).verdicts
    assert tuple(found) == VERDICTS
    assert found == {"misheard": 1, "guessed": 1, "not heard": 0, "unsure": 0, "not known": 1}


def test_diagnosis_in_words():
    assert str(diagnosis()) == "'Your, country uh huh': no error"
    lines = str(diagnosis(COUNTRY, UNKNOWN)).splitlines()
    assert lines[0] == "'Your, country uh huh': 2 errors (1 misheard, 1 not known), WER 50%"
    assert lines[1:] == [f"  {COUNTRY}", f"  {UNKNOWN}"]


def test_json_round_trip():
    original = diagnosis(COUNTRY, UNKNOWN, INSERTED)
    text = json.dumps(original.to_dict(), allow_nan=False)
    values = json.loads(text)
    assert [entry["verdict"] for entry in values["errors"]] == ["misheard", "not known", "guessed"]
    assert values["errors"][1]["evidence"] is None and values["errors"][1]["stretch"] == [None, None]
    assert values["wer"] == 1.0
    found = Diagnosis.from_dict(values)
    for name in ("text", "reference", "written", "said"):
        assert getattr(found, name) == getattr(original, name)
    assert found.errors[0] == COUNTRY
    assert repr(found.errors) == repr(original.errors)  # NaN equals nothing, itself included
    assert math.isnan(found.errors[1].stretch[0])

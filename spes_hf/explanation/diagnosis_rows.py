"""A diagnosis as columns of a table, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from spes_hf.errors import ExplanationFormatError
from spes_hf.explanation.diagnosis import VERDICTS, Diagnosis
from spes_hf.explanation.origin import without_time
from spes_hf.explanation.packing import pack, unpack

COUNTS = {verdict: verdict.replace(" ", "_") for verdict in VERDICTS}
"""The columns that count errors, by verdict."""


def columns_of(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as the columns of a row; computing it again gives the same columns.

    Examples:
        >>> columns = columns_of(diagnosis_of(diagnosed))
        >>> columns["prediction"], columns["word_errors"], columns["misheard"]
        ('Tom sells a small picture.', 1, 1)
    """
    explanation = diagnosis.explanation
    if explanation is not None:
        explanation = replace(explanation, provenance=without_time(explanation.provenance))
    return {
        "diagnosis": json.dumps(diagnosis.to_dict(), ensure_ascii=False),
        "diagnosis_maps": b"" if explanation is None else pack(explanation),
        "prediction": diagnosis.text,
        "word_errors": len(diagnosis.errors),
        **{COUNTS[verdict]: count for verdict, count in diagnosis.verdicts.items()},
    }


def diagnosis_of(row: Mapping[str, Any], maps: bool = True) -> Diagnosis:
    """Return the diagnosis of a row that `Diagnose` made.

    Args:
        row: The row.
        maps: Whether to read the maps too.

    Raises:
        ExplanationFormatError: If the row holds an error, no diagnosis, or a damaged one.

    Examples:
        >>> transform = Diagnose(model, processor, reference_column="text")
        >>> row = transform({"audio": clip, "text": "Tom sells a small picture."})
        >>> diagnosis_of(row).errors
        ()
    """
    if row.get("error"):
        raise ExplanationFormatError(f"row has an error instead of a diagnosis: {row['error']}; leave out such rows")
    stored = row.get("diagnosis")
    if not isinstance(stored, str) or not stored:
        raise ExplanationFormatError(
            f"row has no column 'diagnosis' (it has {', '.join(map(str, row))}); pass a row that Diagnose made"
        )
    packed = row.get("diagnosis_maps") if maps else None
    try:
        return Diagnosis.from_dict(json.loads(stored), unpack(bytes(packed)) if packed else None)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExplanationFormatError(f"the row's diagnosis is damaged ({error}); run Diagnose again") from error


def frequency_profile_of(diagnosis: Diagnosis, index: int) -> np.ndarray | None:
    """Return the evidence for an error by frequency, within its own stretch, (C,) in bits; None if there is no map.

    Args:
        diagnosis: A diagnosis with its maps.
        index: Index of the error.

    Examples:
        >>> found = diagnosis_of(diagnosed)
        >>> frequency_profile_of(found, 0).shape == (len(found.explanation.frequencies),)
        True
    """
    error, explanation = diagnosis.errors[index], diagnosis.explanation
    if error.row is None or explanation is None:
        return None
    start, end = error.stretch
    within = (explanation.times >= start) & (explanation.times <= end)
    return explanation.evidence(error.row)[within].sum(0).double().numpy()

"""One self-contained page of a diagnosis: both texts, and for every error its odds, its map and its sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spes_hf.explanation.diagnosis import Diagnosis


def write_html(diagnosis: Diagnosis, path: Path) -> Path:
    """Write the page and return its path; see `spes_hf.viz.write_diagnosis_html`."""
    raise NotImplementedError

"""Is an explanation right, and is it small? Deletion, insertion, size; corpus scores with intervals (§5).

Map `Deletion`, `Insertion`, `Size` and, with a foil, `ContrastiveDeletion` over rows, then `summarize` them; `compare`
tests two methods against each other. `WordDeletion` and `WordInsertion` score the maps of single words.
"""

from __future__ import annotations

from pathlib import Path

from spes_hf.errors import ConfigError
from spes_hf.metrics.bootstrap import Comparison, Interval, bootstrap_interval, paired_bootstrap
from spes_hf.metrics.contrastive import CONTRASTIVE_FRACTIONS, ContrastiveDeletion, target_maps
from spes_hf.metrics.deletion import FINE_FRACTIONS, PAPER_FRACTIONS, Deletion, Insertion
from spes_hf.metrics.listening import listen_back
from spes_hf.metrics.quality import Bleu, CharacterErrorRate, Quality, WordErrorRate, bleu, cer, wer
from spes_hf.metrics.score import Curve, Score, compare, plot_curves
from spes_hf.metrics.size import THRESHOLDS, Size
from spes_hf.metrics.summary import summarize
from spes_hf.metrics.words import WORD_DELETION_FRACTIONS, WORD_INSERTION_FRACTIONS, WordDeletion, WordInsertion

__all__ = [
    "CONTRASTIVE_FRACTIONS",
    "FINE_FRACTIONS",
    "PAPER_FRACTIONS",
    "THRESHOLDS",
    "WORD_DELETION_FRACTIONS",
    "WORD_INSERTION_FRACTIONS",
    "Bleu",
    "CharacterErrorRate",
    "Comparison",
    "ContrastiveDeletion",
    "Curve",
    "Deletion",
    "Insertion",
    "Interval",
    "Quality",
    "Score",
    "Size",
    "WordDeletion",
    "WordErrorRate",
    "WordInsertion",
    "bleu",
    "bootstrap_interval",
    "cer",
    "compare",
    "evaluate_module",
    "listen_back",
    "paired_bootstrap",
    "plot_curves",
    "summarize",
    "target_maps",
    "wer",
]


def evaluate_module(name: str) -> str:
    """Return the path of a module for ``evaluate.load``: "deletion", "insertion" or "size"; it needs no network.

    Raises:
        ConfigError: If there is no module with this name.

    Examples:
        >>> evaluate_module("size")
        '...evaluate_modules...size'
    """
    folder = Path(__file__).parent / "evaluate_modules"
    known = sorted(path.parent.name for path in folder.glob("*/*.py") if path.stem == path.parent.name)
    if name not in known:
        raise ConfigError(f"name is {name!r}; allowed: {', '.join(known)}")
    return str(folder / name)

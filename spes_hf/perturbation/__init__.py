"""What is perturbed and how: patches, tokens, seeded masks."""

from spes_hf.perturbation.base import (
    JointPerturbation,
    Masks,
    Perturbation,
    SpectrogramPerturbation,
    TokenPerturbation,
    UnitScores,
)
from spes_hf.perturbation.segments import segment, slic_labels

__all__ = [
    "JointPerturbation",
    "Masks",
    "Perturbation",
    "SpectrogramPerturbation",
    "TokenPerturbation",
    "UnitScores",
    "segment",
    "slic_labels",
]

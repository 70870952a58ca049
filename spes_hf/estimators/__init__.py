"""What to accumulate from masks and their impacts."""

from spes_hf.estimators.gradient import GradientEstimator
from spes_hf.estimators.perturbation import PerturbationEstimator

__all__ = ["GradientEstimator", "PerturbationEstimator"]

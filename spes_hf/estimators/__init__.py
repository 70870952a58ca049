"""What to accumulate from a batch of masks."""

from spes_hf.estimators.perturbation import PerturbationEstimator

__all__ = ["PerturbationEstimator"]

"""The result, its maps, and how they are stored."""

from spes_hf.explanation.maps import PatchMap, Reliability
from spes_hf.explanation.result import Explanation

__all__ = ["Explanation", "PatchMap", "Reliability"]

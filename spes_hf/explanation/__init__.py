"""The result of an explanation, its maps, and their storage."""

from spes_hf.explanation.maps import PatchMap, Reliability
from spes_hf.explanation.result import Explanation

__all__ = ["Explanation", "PatchMap", "Reliability"]

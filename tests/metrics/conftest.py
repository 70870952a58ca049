"""A Whisper that hears one region of the spectrogram, so that the best and the worst explanation are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from planted import with_ear

from spes_hf import EnergyConfig, explain
from spes_hf.explanation import Explanation

SHORT = {"max_new_tokens": 6}


@dataclass
class Planted:
    model: Any
    processor: Any
    region: torch.Tensor  # (T, C) bool
    explanation: Explanation

    @property
    def maps(self) -> dict[str, torch.Tensor]:
        """Perfect, random and inverted maps, ties broken at random."""
        noise = torch.rand(self.region.shape, generator=torch.Generator().manual_seed(0))
        found = self.region.float() * 2 + noise
        return {"perfect": found, "random": noise, "inverted": -found}


@pytest.fixture(scope="session")
def explanation(small_whisper, tone) -> Explanation:
    """An explanation at no cost, of the small random Whisper."""
    return explain(*small_whisper, tone, config=EnergyConfig(), generate_kwargs=SHORT, progress=False)


@pytest.fixture(scope="session")
def planted(small_whisper, tone, explanation) -> Planted:
    processor = small_whisper[1]
    region = torch.zeros(120, 80, dtype=torch.bool)
    region[40:80, 20:60] = True
    model = with_ear(small_whisper[0], explanation.features, region, gain=8, seed=1)
    found = explain(model, processor, tone, config=EnergyConfig(), generate_kwargs=SHORT, progress=False)
    return Planted(model, processor, region, found)


@pytest.fixture
def changed(explanation):
    """Function that returns the explanation with other values of some fields."""
    return lambda **fields: replace(explanation, **fields)

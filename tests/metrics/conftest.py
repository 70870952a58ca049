"""A Whisper that hears one region of the spectrogram, so that the best and the worst explanation are known."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from spes_hf import EnergyConfig, explain
from spes_hf.explanation import Explanation

SHORT = {"max_new_tokens": 6}


class _Ear(nn.Conv1d):
    """A first layer that hears how far a region differs from the means of its mel bins, and nothing else."""

    region: torch.Tensor
    means: torch.Tensor
    pattern: torch.Tensor

    def forward(self, spectrogram):
        heard = ((spectrogram - self.means[:, None]).abs() * self.region).sum((1, 2)) / self.region.sum()
        return super().forward(8 * heard[:, None, None] * self.pattern)


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
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    region = torch.zeros(120, 80, dtype=torch.bool)
    region[40:80, 20:60] = True
    encoder = model.get_encoder()
    ear = _Ear(80, 32, kernel_size=3, padding=1)
    ear.load_state_dict(encoder.conv1.state_dict())
    ear.region = torch.zeros(80, 200)
    ear.region[:, :120] = region.T
    ear.means = explanation.features.mean(0)
    ear.pattern = torch.randn(80, 200, generator=torch.Generator().manual_seed(1))
    encoder.conv1 = ear
    found = explain(model.eval(), processor, tone, config=EnergyConfig(), generate_kwargs=SHORT, progress=False)
    return Planted(model, processor, region, found)


@pytest.fixture
def changed(explanation):
    """Function that returns the explanation with other values of some fields."""
    return lambda **fields: replace(explanation, **fields)

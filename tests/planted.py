"""A first layer for Whisper that hears one thing, so that the evidence is known."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ear(nn.Conv1d):
    """Hears how much a region of the spectrogram differs from the means of its mel bins, and nothing else."""

    region: torch.Tensor
    means: torch.Tensor
    pattern: torch.Tensor
    gain: float

    def forward(self, spectrogram):
        heard = ((spectrogram - self.means[:, None]).abs() * self.region).sum((1, 2)) / self.region.sum()
        return super().forward(self.gain * heard[:, None, None] * self.pattern)


def with_ear(model, features, region, gain, seed=0):
    """Return a copy of a small Whisper that hears the region, (T, C) bool, of features (T, C) alone."""
    model = copy.deepcopy(model)
    encoder = model.get_encoder()
    frames, bins = features.shape
    ear = Ear(bins, encoder.conv1.out_channels, kernel_size=3, padding=1)
    ear.load_state_dict(encoder.conv1.state_dict())
    window = 2 * model.config.max_source_positions
    ear.region = torch.zeros(bins, window)
    ear.region[:, :frames] = region.T
    ear.means = features.mean(0)
    ear.pattern = torch.randn(bins, window, generator=torch.Generator().manual_seed(seed))
    ear.gain = gain
    encoder.conv1 = ear
    return model.eval()

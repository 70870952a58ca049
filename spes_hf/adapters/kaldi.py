"""Kaldi's frames as transformers computes them: windows of 25 ms every 10 ms, mel bins from 20 Hz to half the rate."""

from __future__ import annotations

import torch
from torch import Tensor

from spes_hf.adapters.frames import mel_frequencies
from spes_hf.audio.load import Waveform

# In samples, at 16 kHz.
_WINDOW, _HOP = 400, 160


def num_frames(waveform: Waveform) -> int:
    """Return the number of windows that lie within the audio."""
    return max(0, 1 + (len(waveform.samples) - _WINDOW) // _HOP)


def axes(features: Tensor, waveform: Waveform) -> tuple[Tensor, Tensor]:
    """Return the centres of frames, (T,) in seconds, and of mel bins, (C,) in Hz, for features (T, C)."""
    samples = torch.arange(len(features), dtype=torch.float64, device="cpu") * _HOP + _WINDOW / 2
    frequencies = mel_frequencies(features.shape[1], 20.0, waveform.sampling_rate / 2, "kaldi")
    return (samples / waveform.sampling_rate).float(), frequencies

"""The samples of a waveform as a tensor to store: as small as possible without changing what the model heard."""

from __future__ import annotations

import torch
from torch import Tensor

# The form in the first version: 16 bits, 32767 for 1.0.
FIRST = "waveform"
_PCM16, _PCM24, _FLOAT = "waveform.pcm16", "waveform.pcm24", "waveform.float32"


def to_stored(samples: Tensor) -> tuple[str, Tensor]:
    """Return name and tensor of the smallest form from which `from_stored` restores every bit.

    Args:
        samples: (N,) float32 amplitudes.
    """
    samples = samples.detach().float().contiguous()
    for name, scale, bits in ((FIRST, 32767, 16), (_PCM16, 2**15, 16), (_PCM24, 2**23, 24)):
        whole = (samples.double() * scale).round()
        if bool(((whole >= -(2 ** (bits - 1))) & (whole < 2 ** (bits - 1))).all()):
            stored = _packed(whole.int()) if name == _PCM24 else whole.to(torch.int16)
            if torch.equal(_samples(name, stored).view(torch.int32), samples.view(torch.int32)):  # -0.0 is not 0.0
                return name, stored
    return _FLOAT, samples


def from_stored(tensors: dict[str, Tensor]) -> Tensor:
    """Return the (N,) float32 samples among an explanation's tensors; raises a KeyError if there are none."""
    for name in (_PCM16, _PCM24, _FLOAT):
        if name in tensors:
            return _samples(name, tensors[name])
    return _samples(FIRST, tensors[FIRST])


def _samples(name: str, stored: Tensor) -> Tensor:
    if name == FIRST:
        return stored.float() / 32767
    if name == _PCM16:
        return stored.float() / 2**15
    return _unpacked(stored).float() / 2**23 if name == _PCM24 else stored


def _packed(whole: Tensor) -> Tensor:
    """Return the three lower bytes of each (N,) int32 value, as (N, 3) uint8."""
    return torch.stack([(whole >> shift) & 255 for shift in (0, 8, 16)], dim=1).to(torch.uint8)


def _unpacked(packed: Tensor) -> Tensor:
    low, middle, high = packed.int().unbind(1)
    return low | middle << 8 | (high - 256 * (high >= 128)) << 16

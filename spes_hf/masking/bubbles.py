"""Bubble Noise: noise over the spectrogram, with a few elliptical holes (A.3.2; Trinh and Mandel, 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spes_hf.masking.draw import uniform
from spes_hf.masking.perturbations import Masks, Perturbation
from spes_hf.runtime.transfer import on_device


@dataclass(frozen=True)
class BubblePerturbation(Perturbation):
    """Noise over the spectrogram, attenuated within bubbles; every feature is a unit of its own.

    The mask of a feature is 0 outside all bubbles, 1 at the centre of one, and 1 − d² in between, where d is the
    distance from the centre as a share of the way to the edge. With n the noise, a feature x becomes n outside all
    bubbles and x + (1 − mask) · n within one.

    Attributes:
        features: (T, C) clean spectrogram, on the model's device.
        bubbles: Number of bubbles, at least 1.
        radii: Half the width of a bubble, in frames, and half its height, in mel bins.
        bubble_key: Key for the positions of the bubbles.
        noise_key: Key for the noise.
        num_masks: N^X.
    """

    features: Tensor
    bubbles: int
    radii: tuple[float, float]
    bubble_key: int
    noise_key: int
    num_masks: int

    def centres(self, rows: range) -> np.ndarray:
        """Return the centres of the bubbles of these masks, (B, bubbles, 2), in frames and mel bins."""
        numbers = uniform(self.bubble_key, rows.start, len(rows), 2 * self.bubbles)
        return numbers.reshape(len(rows), self.bubbles, 2) * np.array(self.features.shape, np.float32)

    def draw(self, level: int, rows: range) -> Masks:
        """Return the masks of these rows, (B, T·C) float32 in [0, 1]."""
        keep = np.stack([self._keep(centres) for centres in self.centres(rows)])
        return Masks(on_device(keep, self.features.device).flatten(1), level, rows)

    def noise(self, rows: range) -> Tensor:
        """Return the noise of these masks, (B, T, C), uniform between the spectrogram's minimum and maximum."""
        numbers = uniform(self.noise_key, rows.start, len(rows), self.features.numel())
        low, high = self.features.min(), self.features.max()
        return low + (high - low) * on_device(numbers, self.features.device).unflatten(1, self.features.shape)

    def apply(self, masks: Masks) -> dict[str, Tensor]:
        """Return the noisy spectrograms, (B, T, C)."""
        keep = masks.keep.unflatten(1, self.features.shape)
        speech = torch.where(keep > 0, self.features, 0.0)
        return {"features": speech + (1 - keep) * self.noise(masks.rows)}

    def _keep(self, centres: np.ndarray) -> np.ndarray:
        """Return the mask that these bubbles, (bubbles, 2), make: (T, C)."""
        keep = np.zeros(self.features.shape, np.float32)
        for centre in centres:
            # Features that the bubble can reach, and their distance from its centre along either axis.
            window, offsets = [], []
            for position, radius, length in zip(centre, self.radii, keep.shape, strict=True):
                reach = slice(max(0, int(position - radius)), min(length, int(position + radius) + 1))
                window.append(reach)
                offsets.append((np.arange(reach.start, reach.stop, dtype=np.float32) + 0.5 - position) / radius)
            inside = 1 - offsets[0][:, None] ** 2 - offsets[1] ** 2
            place = keep[tuple(window)]
            np.maximum(place, inside, out=place)
        return keep

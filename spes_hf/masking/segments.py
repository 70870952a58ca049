"""Patches of a spectrogram: SLIC superpixels at several levels, or a grid (§4.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spes_hf.functional import num_patches

# At this width of smoothing nothing of the spectrogram is left for SLIC to follow ("− clustering", §7.2).
GRID_SIGMA = 10.0


def slic_labels(features: Tensor, patches: int, sigma: float = 0.0, compactness: float = 0.1) -> Tensor:
    """Return the patch of every feature, by SLIC on the spectrogram scaled to [0, 1].

    SLIC starts from a regular grid with whole-number steps: it returns roughly, not exactly, as many patches as asked.

    Args:
        features: (T, C) spectrogram, true frames only.
        patches: k, the number of patches asked for.
        sigma: Width of the Gaussian that smooths the image first, in features.
        compactness: Weight of nearness against likeness; lower follows the spectrogram more closely.

    Returns:
        (T, C) int64 labels 0 … n − 1 without gaps.
    """
    from skimage.segmentation import slic

    image = features.detach().cpu().double().numpy()
    span = image.max() - image.min()
    image = (image - image.min()) / span if span > 0 else np.zeros_like(image)
    labels = slic(
        image,
        n_segments=min(patches, image.size),
        sigma=sigma,
        compactness=compactness,
        start_label=0,
        channel_axis=None,
    )
    _, dense = np.unique(labels, return_inverse=True)
    return torch.from_numpy(dense.reshape(image.shape).astype(np.int64))


def segment(
    features: Tensor,
    duration_s: float,
    patches_per_second: Sequence[float],
    max_duration_s: float | None,
    sigma: float,
    compactness: float,
) -> Tensor:
    """Return the label maps of all levels, k of each by Eq. 2; levels of the same k are segmented once.

    Returns:
        (L, T, C) int64.
    """
    counts = [num_patches(duration_s, phi, max_duration_s) for phi in patches_per_second]
    maps = {k: slic_labels(features, k, sigma, compactness) for k in dict.fromkeys(counts)}
    return (
        torch.stack([maps[k] for k in counts])
        if counts
        else torch.empty(0, *features.shape, dtype=torch.int64, device="cpu")
    )


def feature_labels(features: Tensor) -> Tensor:
    """Return the labels that make every feature of a spectrogram, (T, C), its own unit: (1, T, C) int64."""
    return torch.arange(features.numel(), dtype=torch.int64, device="cpu").view(1, *features.shape)

"""Patches of a spectrogram: SLIC superpixels at several levels, or a grid (§4.1.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from spes_hf.functional import num_patches
from spes_hf.runtime.ranks import ALONE, Ranks
from spes_hf.runtime.workers import own_cores

# Label maps that threads compute in advance: by the id of the features, then by k, sigma and compactness.
_ahead: dict[int, dict[tuple[int, float, float], Future[Tensor]]] = {}

# With this much smoothing, no structure of the spectrogram is left for SLIC to follow ("− clustering", §7.2).
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
    """Return the label maps of all levels, with k for each from Eq. 2.

    Returns:
        (L, T, C) int64.
    """
    counts = [num_patches(duration_s, phi, max_duration_s) for phi in patches_per_second]
    return label_maps(features, counts, sigma, compactness)


def label_maps(
    features: Tensor, counts: Sequence[int], sigma: float, compactness: float, ranks: Ranks = ALONE
) -> Tensor:
    """Return the label maps for these numbers of patches; levels with the same k are segmented once.

    Several processes divide the levels among themselves. Waits for levels that `segmented_ahead` has begun; segments
    the others now, on all of the process's own cores.

    Args:
        features: (T, C) spectrogram, true frames only, the same in all processes.
        counts: Number of patches of each level.
        sigma: As for `slic_labels`.
        compactness: As for `slic_labels`.
        ranks: The processes that ask for these label maps.

    Returns:
        (L, T, C) int64.

    Raises:
        RankError: If another process fails or is lost.
    """
    if not counts:
        return torch.empty(0, *features.shape, dtype=torch.int64, device="cpu")
    keys = [(k, sigma, compactness) for k in counts]
    own = list(dict.fromkeys(keys))[ranks.index :: ranks.count]
    ahead = _ahead.get(id(features), {})
    begun = {key: level for key, level in ahead.items() if key in keys and not level.cancel()}
    rest = [key[0] for key in own if key not in begun]
    with _segmenting(features, rest, sigma, compactness, own_cores()) as now:
        found = {key: (now | begun)[key].result() for key in own}
    maps = dict(chain.from_iterable(share.items() for share in ranks.gather("label maps", found)))
    return torch.stack([maps[key] for key in keys])


@contextmanager
def segmented_ahead(
    features: Tensor, counts: Sequence[int], sigma: float, compactness: float, threads: int
) -> Iterator[None]:
    """Segment in background threads what `label_maps` will be asked for, for this same tensor of features.

    Errors are raised in `label_maps`. No thread is left afterwards.

    Args:
        features: (T, C) spectrogram, true frames only.
        counts: Number of patches of each level.
        sigma: As for `slic_labels`.
        compactness: As for `slic_labels`.
        threads: Number of threads; 0 for none, which leaves the work to `label_maps`.
    """
    before = _ahead.get(id(features), {})
    rest = [k for k in counts if threads and (k, sigma, compactness) not in before]
    with _segmenting(features, rest, sigma, compactness, threads) as started:
        _ahead[id(features)] = before | started
        try:
            yield
        finally:
            _ahead[id(features)] = before
            if not before:
                del _ahead[id(features)]


@contextmanager
def _segmenting(
    features: Tensor, counts: Sequence[int], sigma: float, compactness: float, threads: int
) -> Iterator[dict[tuple[int, float, float], Future[Tensor]]]:
    """Yield futures of label maps, computed in threads (SLIC releases the GIL); the threads end with the context."""
    levels = list(dict.fromkeys(counts))
    if not levels:
        yield {}
        return
    import skimage.segmentation  # noqa: F401  Importing inside threads may deadlock.

    # Do everything here that torch may run in parallel: in a thread, it would not survive a fork.
    exact = features.detach().cpu().double()
    pool = ThreadPoolExecutor(min(threads, len(levels)), "slic")
    try:
        yield {(k, sigma, compactness): pool.submit(slic_labels, exact, k, sigma, compactness) for k in levels}
    finally:
        pool.shutdown(cancel_futures=True)


def feature_labels(features: Tensor) -> Tensor:
    """Return the labels that make every feature of a spectrogram, (T, C), its own unit: (1, T, C) int64."""
    return torch.arange(features.numel(), dtype=torch.int64, device="cpu").view(1, *features.shape)

"""From features to patches: means over the patches of several levels, and a map that combines the levels."""

from __future__ import annotations

import torch
from torch import Tensor

from spes_hf.functional import scaled


class Pools:
    """Patches at several levels, for computing means over them.

    Args:
        labels: (L, T, C) patch of every feature at every level.
    """

    def __init__(self, labels: Tensor):
        self.labels = labels.flatten(1)
        self.sizes = [torch.bincount(level) for level in self.labels]

    def means(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return the means over patches, (N, F) for each level, of maps by feature, (N, T·C)."""
        return tuple(
            values.new_zeros(len(values), len(sizes)).index_add_(1, labels, values) / sizes
            for labels, sizes in zip(self.labels, self.sizes, strict=True)
        )

    def spread(self, values: Tensor) -> Tensor:
        """Return a map by feature, (T·C,), with each feature replaced by the mean of its patch, per level: (L, T·C)."""
        return torch.stack(
            [mean[0, labels] for labels, mean in zip(self.labels, self.means(values[None]), strict=True)]
        )


def mean_of_levels(values: Tensor, pools: Pools) -> Tensor:
    """Return the mean over levels of a map by feature, (T·C,), after averaging over the patches of each level."""
    return pools.spread(values).mean(0)


def mean_of_scaled_levels(values: Tensor, pools: Pools) -> Tensor:
    """Return the same with every level divided by its standard deviation, since means over large patches vary less.

    Nothing is subtracted, so features without effect stay at 0.
    """
    return torch.stack([scaled(level) for level in pools.spread(values)]).mean(0)

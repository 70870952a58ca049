"""The prior of a token's map where its gradients say little: the sentence's evidence, and distance from the fill."""

from __future__ import annotations

import torch
from torch import Tensor

from spes_hf.scoring.pooling import Pools, mean_of_levels

# Values above this quantile are clipped to it.
QUANTILE = 0.8


def prior_of(sentence: Tensor, deviation: Tensor, pools: Tensor) -> Tensor:
    """Return the prior of every token's map, (T, C) float32 from 0 to 1: the mean of two clipped maps.

    Features that keep the model on track are evidence for every word of a sentence; features that do not differ from
    their fill are evidence for none. Both maps are clipped at 0 and at a quantile: a prior says which features matter,
    not how much.

    Args:
        sentence: (T, C) map of the sentence.
        deviation: (T, C) how far each feature is from its fill value.
        pools: (L, T, C) patches; features of a patch share their mean, as in the maps of tokens; levels are averaged.
    """
    both = (_limited(sentence.flatten()) + _limited(deviation.flatten())) / 2
    return mean_of_levels(both, Pools(pools.long())).view(sentence.shape)


def with_prior(values: Tensor, weight: float, prior: Tensor) -> Tensor:
    """Return the map of a token, (T, C), with the prior added, in standard deviations of the map.

    Args:
        values: (T, C) the token's own map; a map that is 0 everywhere stays 0.
        weight: Weight of the prior, in standard deviations.
        prior: (T, C) from 0 to 1.
    """
    return values + weight * values.std() * prior


def _limited(values: Tensor) -> Tensor:
    """Return values in units of a quantile, clipped to 0 … 1; all 0 if the quantile is not above 0."""
    values = values.float()
    limit = values.kthvalue(max(1, int(QUANTILE * len(values)))).values
    return (values / limit).clamp(0, 1) if limit > 0 else torch.zeros_like(values)

"""What a token's map falls back on where its gradients say little: evidence for the sentence, and what stands out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spes_hf.scoring.pooling import Pools

# Values above this quantile count alike.
QUANTILE = 0.8


def prior_of(sentence: Tensor, deviation: Tensor) -> Tensor:
    """Return the prior of every token's map, (T·C,) float32 from 0 to 1: the mean of two maps that stop growing.

    What keeps the model on track is evidence for every word of a sentence, and what does not differ from its fill can
    be evidence for none. Both are cut at 0 and at a quantile: a prior says which features matter, not how much.

    Args:
        sentence: (T·C,) map of the sentence.
        deviation: (T·C,) how far each feature is from its fill value.
    """
    return (_limited(sentence) + _limited(deviation)) / 2


def with_prior(values: Sequence[Tensor], weight: float, prior: Tensor, pools: Pools) -> tuple[Tensor, ...]:
    """Return the maps of tokens with a prior added, in means over the same patches; what is 0 in both stays 0.

    Args:
        values: (K, F) for each level of patches.
        weight: In standard deviations of each token's map over the features.
        prior: (T·C,).
        pools: The patches.
    """
    labels = [level.cpu() for level in pools.labels]

    def spread_of(k: int) -> Tensor:
        return torch.stack([v[k, level] for v, level in zip(values, labels, strict=True)]).mean(0).std()

    spread = torch.stack([spread_of(k) for k in range(len(values[0]))])
    means = pools.means(prior[None].to(pools.labels.device))
    return tuple(v + weight * spread[:, None] * m.cpu() for v, m in zip(values, means, strict=True))


def _limited(values: Tensor) -> Tensor:
    """Return values in units of a quantile, limited to 0 … 1; 0 where the quantile is not above 0."""
    values = values.float()
    limit = values.kthvalue(max(1, int(QUANTILE * len(values)))).values
    return (values / limit).clamp(0, 1) if limit > 0 else torch.zeros_like(values)

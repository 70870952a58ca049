"""Would another set of masks have drawn the same map? Split-half reliability, at no extra pass."""

from __future__ import annotations

import torch
from torch import Tensor

from spes_hf.explanation import PatchMap, Reliability


def split_half(even: PatchMap, odd: PatchMap, tokens: int = 1) -> Reliability:
    """Return the reliability of a map from the maps that two halves of the masks draw.

    Pearson's r between the half maps, stepped up to all masks by the Spearman–Brown formula 2r / (1 + r). The sentence
    map of a half is the mean of its tokens' z-scores; that of a map with one row is the row.

    Args:
        even: Map of all tokens from one half.
        odd: The same from the other half.
        tokens: K; all are NaN where a method draws no masks.
    """
    if not (even.numerators and odd.numerators):
        return Reliability(torch.full((tokens,), torch.nan, dtype=torch.float32, device="cpu"), float("nan"))
    tokens = len(even.numerators[0])
    sentence = [torch.zeros(even.labels.shape[1:], dtype=torch.float64, device="cpu") for _ in range(2)]
    each = torch.empty(tokens, dtype=torch.float32, device="cpu")
    for k in range(tokens):
        halves = [_z_score(half.dense(k).double()) for half in (even, odd)]
        each[k] = _stepped_up(*halves)
        for total, half in zip(sentence, halves, strict=True):
            total += half
    return Reliability(each, _stepped_up(*(_z_score(total) for total in sentence)))


def _z_score(values: Tensor) -> Tensor:
    centred = values - values.mean()
    return centred / centred.square().mean().sqrt().clamp_min(torch.finfo(values.dtype).tiny)


def _stepped_up(a: Tensor, b: Tensor) -> float:
    if not (a.any() and b.any()):
        return float("nan")
    r = float((a * b).mean())
    return 2 * r / (1 + r) if r > -1 else float("nan")

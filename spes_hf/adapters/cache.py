"""The decoder's cache: what its layers made of the encoder's output, shared by all masks over tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def cache_argument(forward: Callable[..., Any]) -> str:
    """Return what a model's ``forward()`` calls the cache; transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def encoder_cache(cross: Sequence[tuple[Tensor, Tensor]], batch: int) -> Any:
    """Return a decoder's cache that holds these keys and values of the encoder's output, and nothing of any token."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    cache = DynamicCache(cross)
    for layer in cache.layers:  # views: no copy for every mask
        layer.keys, layer.values = (kept.expand(batch, -1, -1, -1) for kept in (layer.keys, layer.values))
    return EncoderDecoderCache(DynamicCache(), cache)

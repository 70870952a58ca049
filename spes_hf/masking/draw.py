"""Seeded masks: mask i of utterance u depends on (seed, u, i) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import Tensor

# One step of Philox yields four 64-bit words, each of which gives two float32 numbers.
_FLOATS_PER_STEP = 8

# (key, start, count, width) → (count, width) float32 in [0, 1): some rows of a table of uniform numbers.
Uniform = Callable[[int, int, int, int], np.ndarray]


def mask_key(seed: int, utterance_id: str, stream: str) -> int:
    """Return the 128-bit key of a stream of masks.

    Args:
        seed: The user's seed.
        utterance_id: What tells this utterance from the others of a corpus.
        stream: What the masks are for ("spectrogram/0", "token", …); different streams are independent.
    """
    name = f"{seed}\x00{utterance_id}\x00{stream}".encode(errors="surrogateescape")
    digest = hashlib.blake2b(name, digest_size=16).digest()
    return int.from_bytes(digest, "little")


def uniform(key: int, start: int, count: int, width: int) -> np.ndarray:
    """Return rows ``start … start + count − 1`` of an endless table of uniform numbers.

    The generator is counter-based (Philox), so a row is computed in place: it does not depend on how many rows are
    drawn at once, nor on which were drawn before.

    Args:
        key: From `mask_key`.
        start: First row.
        count: How many rows.
        width: Numbers in a row.

    Returns:
        (count, width) float32 in [0, 1).
    """
    steps = -(-width // _FLOATS_PER_STEP)
    generator = Generator(Philox(key=key, counter=start * steps))
    return generator.random((count, steps * _FLOATS_PER_STEP), dtype=np.float32)[:, :width]


def keep_bits(key: int, start: int, count: int, units: int, mask_prob: float, numbers: Uniform = uniform) -> np.ndarray:
    """Return masks ``start … start + count − 1``: each unit is perturbed with probability ``mask_prob`` (§4.1).

    Args:
        key: From `mask_key`.
        start: First mask.
        count: How many masks.
        units: Bits of a mask.
        mask_prob: Probability that a unit is perturbed.
        numbers: The table that the masks are made of; independent numbers unless a design balances them.

    Returns:
        (count, units) bool; True = keep.
    """
    return numbers(key, start, count, units) >= mask_prob


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; a GPU fetches it by itself while the CPU goes on to draw more masks."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)

"""Seeded masks: mask i of utterance u depends on (seed, u, i) alone; designs balance them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, Philox

# One step of Philox yields four 64-bit words, each of which gives two float32 numbers.
_FLOATS_PER_STEP = 8

# (key, start, count, width) → (count, width) float32 in [0, 1): some rows of a table of uniform numbers.
Uniform = Callable[[int, int, int, int], np.ndarray]

# Number of masks in a block of the "balanced" design.
BLOCK = 8

# The step between float32 numbers that the generator yields.
_STEP = np.float32(2**-24)


def mask_key(seed: int, utterance_id: str, stream: str) -> int:
    """Return the 128-bit key of a stream of masks.

    Args:
        seed: The user's seed.
        utterance_id: Unique id of the utterance within its corpus.
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
        count: Number of rows.
        width: Numbers per row.

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
        count: Number of masks.
        units: Bits per mask.
        mask_prob: Probability that a unit is perturbed.
        numbers: Table from which the masks are made; independent numbers unless a design balances them.

    Returns:
        (count, units) bool; True = keep.
    """
    return numbers(key, start, count, units) >= mask_prob


@dataclass(frozen=True)
class Design:
    """A table of uniform numbers in [0, 1), (masks, units); a row makes a mask that keeps units with numbers ≥ p.

    Attributes:
        numbers: Returns rows of the table, as `uniform` does (the table of independent masks).
        block: Number of consecutive masks that are balanced against each other; they are not independent, so a block
            is never split between halves.
    """

    numbers: Uniform
    block: int = 1


def antithetic(key: int, start: int, count: int, width: int) -> np.ndarray:
    """Return rows in pairs u, 1 − u: at p = ½ the second mask keeps what the first perturbs.

    Each pair keeps every unit once and perturbs it once; taken alone, each mask is an ordinary random mask.
    """
    first, last = start // 2, (start + count + 1) // 2
    drawn = uniform(key, first, last - first, width)
    pairs = np.stack([drawn, 1 - _STEP - drawn], axis=1).reshape(-1, width)
    return pairs[start - 2 * first :][:count]


def balanced(key: int, start: int, count: int, width: int) -> np.ndarray:
    """Return rows of a Latin hypercube: in a block of n = `BLOCK` masks, n · p (rounded up or down) perturb each unit.

    A unit's numbers in a block are a random order of 0 … `BLOCK` − 1, each plus a uniform number, divided by `BLOCK`.
    """
    first, last = start // BLOCK, -(-(start + count) // BLOCK)
    drawn = uniform(key, 2 * BLOCK * first, 2 * BLOCK * (last - first), width).reshape(-1, 2, BLOCK, width)
    order = drawn[:, 0].argsort(axis=1, kind="stable").argsort(axis=1, kind="stable").astype(np.float32)
    rows = ((order + drawn[:, 1]) / BLOCK).reshape(-1, width)
    return np.minimum(rows[start - BLOCK * first :][:count], 1 - _STEP)  # rounding may have produced 1


DESIGNS: dict[str, Design] = {
    "independent": Design(uniform),
    "antithetic": Design(antithetic, block=2),
    "balanced": Design(balanced, block=BLOCK),
}

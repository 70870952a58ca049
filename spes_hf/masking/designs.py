"""How the masks of a run go together: each on its own, or so that they balance one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spes_hf.masking.draw import Uniform, uniform

# Masks of a block of the "balanced" design.
BLOCK = 8

# The step between float32 numbers that the generator yields.
_STEP = np.float32(2**-24)


@dataclass(frozen=True)
class Design:
    """A table of uniform numbers in [0, 1), (masks, units), whose rows make masks: a unit is kept where it is ≥ p.

    Attributes:
        numbers: Some rows of the table, as `uniform` (which is the table of independent masks).
        block: So many masks in a row balance one another; they must not be set against each other as if by chance.
    """

    numbers: Uniform
    block: int = 1


def antithetic(key: int, start: int, count: int, width: int) -> np.ndarray:
    """Return rows of pairs u, 1 − u: at p = ½ the second mask keeps what the first perturbs.

    Over a pair every unit is once kept and once perturbed, under what are by themselves two ordinary random masks.
    """
    first, last = start // 2, (start + count + 1) // 2
    drawn = uniform(key, first, last - first, width)
    pairs = np.stack([drawn, 1 - _STEP - drawn], axis=1).reshape(-1, width)
    return pairs[start - 2 * first :][:count]


def balanced(key: int, start: int, count: int, width: int) -> np.ndarray:
    """Return rows of a Latin hypercube: of the n = `BLOCK` masks of a block, n · p perturb a unit, rounded up or down.

    A unit's numbers in a block are a random order of 0 … `BLOCK` − 1, each plus a uniform number, over `BLOCK`.
    """
    first, last = start // BLOCK, -(-(start + count) // BLOCK)
    drawn = uniform(key, 2 * BLOCK * first, 2 * BLOCK * (last - first), width).reshape(-1, 2, BLOCK, width)
    order = drawn[:, 0].argsort(axis=1, kind="stable").argsort(axis=1, kind="stable").astype(np.float32)
    rows = ((order + drawn[:, 1]) / BLOCK).reshape(-1, width)
    return np.minimum(rows[start - BLOCK * first :][:count], 1 - _STEP)  # what rounding took up to 1


DESIGNS: dict[str, Design] = {
    "independent": Design(uniform),
    "antithetic": Design(antithetic, block=2),
    "balanced": Design(balanced, block=BLOCK),
}

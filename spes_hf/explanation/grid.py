"""One time-frequency grid for maps of two models, whose frames and mel bins may differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spes_hf.errors import ConfigError
from spes_hf.explanation.parts import ExplanationParts


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a grid: cells next to each other.

    Attributes:
        centres: (N,) float64, rising, in seconds or Hz.
        edges: (N + 1,) float64, halfway between centres.

    Examples:
        >>> fine, coarse = Axis.of(torch.tensor([0.5, 1.5, 2.5, 3.5])), Axis.of(torch.tensor([1.0, 3.0]))
        >>> coarse.edges.tolist()
        [0.0, 2.0, 4.0]
        >>> coarse.average(torch.tensor([1.0, 3.0, 5.0, 7.0], dtype=torch.float64), fine).tolist()
        [2.0, 6.0]
    """

    centres: Tensor
    edges: Tensor

    @classmethod
    def of(cls, centres: Tensor) -> Axis:
        """Return the axis whose cells have these centres, (N,); a single cell is 0.01 s, or 0.01 Hz, wide."""
        centres = centres.double()
        if len(centres) == 1:
            return cls(centres, torch.cat([centres - 0.005, centres + 0.005]))
        middle = (centres[1:] + centres[:-1]) / 2
        first, last = 2 * centres[:1] - middle[:1], 2 * centres[-1:] - middle[-1:]
        return cls(centres, torch.cat([first, middle, last]))

    def equals(self, other: Axis) -> bool:
        """Return whether both have the same cells, to within a thousandth of a cell."""
        if len(self.centres) != len(other.centres):
            return False
        width = float((self.edges[1:] - self.edges[:-1]).min())
        return bool(((self.centres - other.centres).abs() <= 1e-3 * width).all())

    def within(self, other: Axis) -> Axis:
        """Return the cells whose centres the other axis covers; no cells if the axes do not overlap."""
        inside = (self.centres >= other.edges[0]) & (self.centres <= other.edges[-1])
        places = inside.nonzero()[:, 0]
        if not len(places):
            return Axis(self.centres[:0], self.edges[:0])
        first, last = int(places[0]), int(places[-1])
        return Axis(self.centres[first : last + 1], self.edges[first : last + 2])

    def average(self, values: Tensor, source: Axis) -> Tensor:
        """Return the means, over the cells of this axis, of values that are constant in each cell of another axis.

        Args:
            values: (S, …) float64, one for each cell of ``source``.
            source: The axis of the values; it covers the centre of every cell of this axis.

        Returns:
            (N, …) float64.
        """
        if self.equals(source):
            return values
        widths = source.edges[1:] - source.edges[:-1]
        steps = values * widths.view(-1, *(1 for _ in values.shape[1:]))
        sums = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)])

        def up_to(places: Tensor) -> Tensor:
            cell = (torch.searchsorted(source.edges, places, right=True) - 1).clamp(0, len(widths) - 1)
            share = (places - source.edges[cell]) / widths[cell]
            return sums[cell] + share.view(-1, *(1 for _ in values.shape[1:])) * steps[cell]

        edges = self.edges.clamp(float(source.edges[0]), float(source.edges[-1]))
        between = edges[1:] - edges[:-1]
        return (up_to(edges[1:]) - up_to(edges[:-1])) / between.view(-1, *(1 for _ in values.shape[1:]))


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid of T frames and C mel bins.

    Attributes:
        time: The frames, in seconds.
        frequency: The mel bins, in Hz.

    Examples:
        >>> fine = Grid(Axis.of(torch.tensor([0.5, 1.5])), Axis.of(torch.tensor([100.0, 300.0])))
        >>> coarse = Grid(Axis.of(torch.tensor([0.5, 1.5])), Axis(torch.tensor([200.0]), torch.tensor([0.0, 400.0])))
        >>> coarse.average(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), fine).tolist()
        [[2.0], [7.0]]
    """

    time: Axis
    frequency: Axis

    @classmethod
    def of(cls, explanation: ExplanationParts) -> Grid:
        """Return the grid of an explanation's maps."""
        return cls(Axis.of(explanation.times), Axis.of(explanation.frequencies))

    @classmethod
    def shared(cls, first: Grid, second: Grid) -> Grid:
        """Return the grid to compare on: their own if it is the same, otherwise the coarser axes where both overlap.

        Raises:
            ConfigError: If the grids have no time or no frequency in common.
        """
        return cls(_shared(first.time, second.time, "s"), _shared(first.frequency, second.frequency, "Hz"))

    @property
    def times(self) -> Tensor:
        """(T,) float32 in seconds."""
        return self.time.centres.float()

    @property
    def frequencies(self) -> Tensor:
        """(C,) float32 in Hz."""
        return self.frequency.centres.float()

    def average(self, values: Tensor, source: Grid) -> Tensor:
        """Return a map on this grid: the mean over each cell, so nothing is lost or made up.

        Args:
            values: (T', C') on the source grid.
            source: The grid of the values.

        Returns:
            (T, C) float32.
        """
        over_time = self.time.average(values.double(), source.time)
        return self.frequency.average(over_time.T, source.frequency).T.float()


def _shared(first: Axis, second: Axis, unit: str) -> Axis:
    if first.equals(second):
        return first
    steps = [float(axis.edges[-1] - axis.edges[0]) / len(axis.centres) for axis in (first, second)]
    found = first.within(second) if steps[0] >= 0.999 * steps[1] else second.within(first)
    if not len(found.centres):
        reach = [f"{float(axis.edges[0]):.2f}–{float(axis.edges[-1]):.2f} {unit}" for axis in (first, second)]
        raise ConfigError(
            f"first covers {reach[0]} and second covers {reach[1]}, which do not overlap; pass explanations of the "
            "same stretch"
        )
    return found

"""Times of the positions of an encoder's output: an encoder turns every few frames into one position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Fraction of the distance between two positions: below the nearest frame's distance from a tie, above rounding errors.
_SLACK = 0.02


@dataclass(frozen=True, eq=False)
class EncoderPositions:
    """The positions of an encoder's output with sound, and the frames that they were computed from.

    Attributes:
        times: (S,) float32, the centre of the frames behind each position, in seconds; increasing.
        frame_times: (T,) float32, the centre of every true frame, in seconds.

    Examples:
        >>> frame_times = torch.tensor([0.0, 0.01, 0.02, 0.03])
        >>> positions = EncoderPositions.on_frames(frame_times, stride=2, first=0.5, length=2)
        >>> positions.nearest.tolist(), positions.pool(torch.tensor([1.0, 3.0, 5.0, 7.0])).tolist()
        ([0, 0, 1, 1], [2.0, 6.0])
    """

    times: Tensor
    frame_times: Tensor

    @classmethod
    def on_frames(cls, frame_times: Tensor, stride: int, first: float, length: int) -> EncoderPositions:
        """Return evenly spaced positions over evenly spaced frames.

        Args:
            frame_times: (T,) in seconds, T ≥ 2.
            stride: Frames from one position to the next.
            first: Centre of the first position, in frames from the first frame.
            length: S, number of positions with sound.
        """
        frames, seconds = len(frame_times), frame_times.double()
        hop = (seconds[-1] - seconds[0]) / (frames - 1)
        centres = first + stride * torch.arange(length, dtype=torch.float64, device="cpu")
        return cls((seconds[0] + hop * centres).float(), frame_times)

    def __len__(self) -> int:
        """S, the number of positions with sound."""
        return len(self.times)

    @cached_property
    def nearest(self) -> Tensor:
        """(T,) int64, the position with the centre nearest to each frame; in a tie, the earlier one."""
        times, frames = self.times.double(), self.frame_times.double()
        ties = times[:-1] + (0.5 + _SLACK) * times.diff()
        return torch.bucketize(frames, ties)

    def spread(self, values: Tensor) -> Tensor:
        """Return values of positions, (…, S or more), over frames, (…, T): each frame gets the nearest position's.

        Positions after those with sound are dropped.
        """
        return values[..., self.nearest]

    def pool(self, values: Tensor) -> Tensor:
        """Return the means, (…, S), of frame values, (…, T), over the frames nearest to each position.

        NaN for a position that is not nearest to any frame.
        """
        counts = torch.bincount(self.nearest, minlength=len(self))
        sums = values.new_zeros(*values.shape[:-1], len(self)).index_add_(-1, self.nearest, values)
        return sums / counts

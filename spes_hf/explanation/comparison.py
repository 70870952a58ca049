"""Two explanations of the same clip side by side: two models, or two methods."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from spes_hf import functional
from spes_hf.differences import Pair
from spes_hf.explanation.grid import Grid
from spes_hf.explanation.result import Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Noise of single frames, shifts by a few frames, and small values do not count.
_SMOOTHING_S, _NO_EFFECT = 0.04, 0.1


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two explanations of one clip, word by word. Made by `compare`.

    R pairs of words: `pairs` says which words of the two texts go together. Maps are compared in standard deviations,
    so that any two models or methods have the same scale, and on one grid of T frames and C mel bins.

    Attributes:
        first: An explanation over words.
        second: Another over words, of the same audio.
        names: Names of the two.
        pairs: The words of both texts, in order, as indices in ``first`` and ``second``; without punctuation marks.
        grid: The frames and mel bins that maps are compared on.

    Examples:
        >>> comparison = compare(ex, ex, names=("once", "again"))
        >>> comparison.words[1]
        (' sells', ' sells')
        >>> round(comparison.sentence_agreement, 2)
        1.0
    """

    first: Explanation
    second: Explanation
    names: tuple[str, str]
    pairs: tuple[Pair, ...]
    grid: Grid

    def __len__(self) -> int:
        """Number of pairs of words."""
        return len(self.pairs)

    @cached_property
    def words(self) -> list[tuple[str, str]]:
        """The words of each text in each pair; "" if it has none."""
        return [(_joined(self.first, pair.first), _joined(self.second, pair.second)) for pair in self.pairs]

    @property
    def same_grid(self) -> bool:
        """Whether both had the same frames and mel bins, so that no map was resampled."""
        own = [Grid.of(each) for each in (self.first, self.second)]
        return all(g.time.equals(self.grid.time) and g.frequency.equals(self.grid.frequency) for g in own)

    def maps(self, token: int | str | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Return both maps of a pair of words, (T, C) each, in standard deviations; 0 is no effect.

        A map is the evidence (`Explanation.evidence`), averaged over the cells of the `grid`, and over the words if a
        text has several. None if a text has no word.

        Args:
            token: Index of the pair, or the word if it occurs in one pair; None: the whole sentence.

        Raises:
            IndexError: If the index is out of range.
            KeyError: If the word does not occur, or occurs in more than one pair.
        """
        if token is None:
            return self._on_grid(self.first, None), self._on_grid(self.second, None)
        pair = self.pairs[self.find(token)]
        return self._on_grid(self.first, pair.first), self._on_grid(self.second, pair.second)

    def _on_grid(self, explanation: Explanation, words: Sequence[int] | None) -> Tensor | None:
        if words is None:
            evidence = explanation.evidence()
        elif words:
            evidence = torch.stack([explanation.evidence(k) for k in words]).mean(0)
        else:
            return None
        return functional.scaled(self.grid.average(evidence, Grid.of(explanation))).float()

    def profiles(self, token: int | str | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Return both maps summed over mel bins and smoothed by 40 ms, (T,) float64 each; None as for `maps`.

        Args:
            token: As for `maps`.

        Raises:
            IndexError: If the index is out of range.
            KeyError: If the word does not occur, or occurs in more than one pair.
        """
        first, second = self.maps(token)
        return self._profile(first), self._profile(second)

    def _profile(self, values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        edges = self.grid.time.edges
        frames = _SMOOTHING_S * (len(edges) - 1) / float(edges[-1] - edges[0])
        return torch.from_numpy(gaussian_filter1d(values.double().sum(1).numpy(), frames))

    @cached_property
    def agreement(self) -> Tensor:
        """(R,) how far the maps of each pair agree over time: Spearman's rank correlation of their `profiles`.

        Frames below a tenth of a profile's largest magnitude count as 0, so that noise gets no rank. At 1, the same
        frames matter, in the same order; at 0, the maps are unrelated. NaN if a text has no word, or a map no effect.
        Two sets of masks of one method do not reach 1 either, so compare with their agreement.
        """
        found = [rank_correlation(*self.profiles(k)) for k in range(len(self))]
        return torch.tensor(found, dtype=torch.float32, device="cpu")

    @cached_property
    def sentence_agreement(self) -> float:
        """The same for the maps of the whole sentence."""
        return rank_correlation(*self.profiles())

    def find(self, token: int | str) -> int:
        """Return the index of a pair given by index, or by a word of either text.

        Raises:
            IndexError: If the index is out of range.
            KeyError: If the word does not occur, or occurs in more than one pair.
        """
        if not isinstance(token, str):
            token = operator.index(token)
            if not -len(self) <= token < len(self):
                raise IndexError(
                    f"token is {token}, but there are {len(self)} pairs of words; allowed: 0 … {len(self) - 1}"
                )
            return token % len(self)
        hits = [k for k, names in enumerate(self.words) if token.strip() in (name.strip() for name in names)]
        if len(hits) != 1:
            found = f"occurs in {hits}; pass one of these" if hits else f"does not occur; allowed: {self.words}"
            raise KeyError(f"token {token!r} {found}")
        return hits[0]

    def plot(self, token: int | str | None = None) -> tuple[Figure, Sequence[Axes]]:
        """Return a figure of both maps on one scale, their difference, and both over time; and its axes.

        Args:
            token: Index of the pair, or the word if it occurs in one pair; None: the whole sentence.

        Raises:
            IndexError: If the index is out of range.
            KeyError: If the word does not occur, or occurs in more than one pair.
        """
        from spes_hf.viz import plot_comparison

        return plot_comparison(self, token)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page with both texts, and both maps of every word; return its path."""
        from spes_hf.viz import write_comparison_html

        return write_comparison_html(self, Path(path))

    def __str__(self) -> str:
        known = self.agreement[~self.agreement.isnan()]
        mean = shown(float(known.mean()) if len(known) else math.nan)
        apart = sum(not pair.equal for pair in self.pairs)
        rows = [(a.strip() or "–", b.strip() or "–") for a, b in self.words]
        wide = max((len(name) for name, _ in rows), default=0)
        other = max((len(name) for _, name in rows), default=0)
        return "\n".join(
            [
                f"{self.names[0]} | {self.names[1]}",
                "rank correlation over time: "
                f"sentence {shown(self.sentence_agreement)}, mean of {_counted(len(known))} {mean}",
                "both wrote the same words" if not apart else f"the texts differ in {apart} of {len(self)} places",
                *(
                    f"  {shown(value):>5}  {a:<{wide}}  {'' if pair.equal else b:<{other}}".rstrip()
                    for (a, b), value, pair in zip(rows, self.agreement.tolist(), self.pairs, strict=True)
                ),
            ]
        )

    def __repr__(self) -> str:
        return f"Comparison({self.names[0]!r}, {self.names[1]!r}, {len(self)} pairs of words)"


def rank_correlation(first: Tensor | None, second: Tensor | None) -> float:
    """Return Spearman's rank correlation of two profiles; NaN if one is missing or constant.

    Args:
        first: (N,), or None.
        second: (N,), or None.

    Examples:
        >>> round(rank_correlation(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 10.0, 50.0])), 2)
        1.0
        >>> rank_correlation(torch.tensor([0.0, 1.0]), None)
        nan
    """
    if first is None or second is None:
        return math.nan
    from scipy.stats import rankdata

    heard = [values.where(values.abs() >= _NO_EFFECT * values.abs().max(), 0.0) for values in (first, second)]
    ranks = [torch.from_numpy(rankdata(values.numpy())) for values in heard]
    a, b = (rank - rank.mean() for rank in ranks)
    norms = float(a.norm() * b.norm())
    return float((a * b).sum()) / norms if norms > 0 else math.nan


def shown(value: float) -> str:
    """Return an agreement as text.

    Examples:
        >>> shown(0.5), shown(-0.5), shown(float("nan"))
        ('0.50', '−0.50', '–')
    """
    return "–" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def _counted(words: int) -> str:
    return f"{words} word{'s' * (words != 1)}"


def _joined(explanation: Explanation, words: Sequence[int]) -> str:
    names = [explanation.tokens[k] for k in words]
    return (" " if explanation.contrasts else "").join(names)

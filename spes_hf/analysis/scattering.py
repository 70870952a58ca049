"""Which tokens' maps are sharp, and which are scattered? Kurtosis by token type (§8.2, Fig. 10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spes_hf.analysis import drawing
from spes_hf.analysis.corpus import named, token_label
from spes_hf.analysis.modality import top_share
from spes_hf.analysis.stats import TOO_FEW, Test, rank_correlation, to_json
from spes_hf.checks import check_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TokenKurtosis:
    """How sharp the maps of one token type are.

    Attributes:
        token: The token.
        n: Number of occurrences.
        kurtosis: Mean over occurrences of the excess kurtosis of the spectrogram's map (0 for a normal distribution).
        sound_bits: Mean over occurrences of `Explanation.sound_bits`; NaN if they are not known.
        top_share: Mean over occurrences of the share of the top saliency that the token map holds.
    """

    token: str
    n: int
    kurtosis: float
    sound_bits: float
    top_share: float


@dataclass(frozen=True)
class Scatter:
    """How sharp the spectrogram's maps are, by token type.

    Attributes:
        types: Token types that occur often enough, in descending order of kurtosis.
        rare: Number of types left out because they are too rare.
        min_count: Minimum number of occurrences of a type.
        n: Number of maps of all types.
        constant: Number of constant maps, which have no kurtosis.
        against_sound_bits: Spearman's correlation over tokens of kurtosis and `Explanation.sound_bits`; positive if
            tokens with many bits from the sound have sharp maps.
        against_top_share: The same with the share of the top saliency that the token map holds. This is weaker
            evidence: both maps share one scale, so a sharp map of the sound lowers this share by itself.
        note: "too few: …" if no type occurs often enough; otherwise empty.

    Examples:
        >>> [token.token for token in scatter(ex, min_count=1).top(2)]
        ['Tom', 'sells']
    """

    types: tuple[TokenKurtosis, ...]
    rare: int
    min_count: int
    n: int
    constant: int
    against_sound_bits: Test
    against_top_share: Test
    note: str = ""
    occurrences: tuple[tuple[str, float, float], ...] = field(default=(), repr=False)
    """Token, kurtosis and sound bits of every map."""

    def top(self, count: int = 5) -> tuple[TokenKurtosis, ...]:
        """Return the types with the sharpest maps, the sharpest first."""
        return self.types[: check_count("count", count)]

    def bottom(self, count: int = 5) -> tuple[TokenKurtosis, ...]:
        """Return the types with the most scattered maps, the most scattered last."""
        return self.types[-check_count("count", count) :]

    def to_dict(self) -> dict[str, Any]:
        """Return everything except single maps, ready for JSON."""
        return to_json(self)

    def __str__(self) -> str:
        def line(types: tuple[TokenKurtosis, ...]) -> str:
            return ", ".join(f"{t.token!r} {t.kurtosis:.2f} ({t.n}×)" for t in types)

        return (
            f"scatter of {self.n} maps, {len(self.types)} token types of at least {self.min_count}\n"
            f"  sharpest: {line(self.top())}\n  most scattered: {line(self.types[5:][-5:])}\n"
            f"  kurtosis and sound bits: {self.against_sound_bits}\n"
            f"  kurtosis and top share: {self.against_top_share}"
        )

    def plot(self, count: int = 5) -> tuple[Figure, Axes]:
        """Return a figure of the token types with the sharpest and the most scattered maps, and its axes (Fig. 10).

        Args:
            count: Number of types of either kind.
        """
        both = len(self.types) > 2 * check_count("count", count)
        shown = self.top(count) + self.bottom(count) if both else self.types
        figure = drawing.new_figure(6.4, max(2.2, 1.1 + 0.3 * len(shown)))
        ax = figure.subplots()
        if not shown:
            drawing.say(ax, self.note)
            return figure, ax
        labels, values = [t.token for t in shown], [t.kurtosis for t in shown]
        drawing.bars(ax, labels, values, [t.n for t in shown])
        if both:
            for patch in ax.patches[count:]:
                patch.set(facecolor=drawing.LIGHT)
            ax.axhline(count - 0.5, color="0.3", linewidth=0.8, linestyle=(0, (4, 3)))
            title = f"{count} sharpest (dark) and {count} most scattered (light) of {len(self.types)} token types"
        else:
            title = f"all {len(shown)} token types that occur at least {self.min_count}×"
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.set_xlabel("mean excess kurtosis of the spectrogram's map")
        ax.set_title(title, loc="left", fontsize=9)
        return figure, ax


def scatter(explanations: Any, *, min_count: int = 3) -> Scatter:
    """Return which token types' maps of the spectrogram are sharp and which are scattered, by kurtosis (§8.2).

    Args:
        explanations: Explanations, folders of saved ones, or rows that have one; or a folder of saved ones.
        min_count: Minimum number of occurrences of a token type; 100 in the paper.

    Raises:
        ConfigError: If ``min_count`` is below 1, or there are no explanations.

    Examples:
        >>> found = scatter([ex, ex], min_count=2)
        >>> found.n, len(found.types), found.types[0].n, found.types[0].kurtosis > found.types[-1].kurtosis
        (14, 7, 2, True)
    """
    check_count("min_count", min_count)
    tokens: list[str] = []
    rows: list[tuple[float, float, float]] = []
    for item in named(explanations):
        explanation = item.explanation
        bits, top = explanation.sound_bits.tolist(), top_share(explanation).tolist()
        for k in range(len(explanation)):
            tokens.append(token_label(explanation, k))
            rows.append((kurtosis(explanation.audio_map.dense(k)), bits[k], top[k]))
    names = np.array(tokens, dtype=object)
    values = np.array(rows, dtype=np.float64).reshape(-1, 3)
    known = np.isfinite(values[:, 0])
    types, rare = [], 0
    for name in dict.fromkeys(tokens):
        mine = values[known & (names == name)]
        if len(mine) < min_count:
            rare += 1
            continue
        bits = mine[np.isfinite(mine[:, 1]), 1]
        mean = float(bits.mean()) if len(bits) else float("nan")
        types.append(TokenKurtosis(name, len(mine), float(mine[:, 0].mean()), mean, float(mine[:, 2].mean())))
    return Scatter(
        types=tuple(sorted(types, key=lambda t: -t.kurtosis)),
        rare=rare,
        min_count=min_count,
        n=int(known.sum()),
        constant=int((~known).sum()),
        against_sound_bits=rank_correlation(values[:, 0], values[:, 1]),
        against_top_share=rank_correlation(values[:, 0], values[:, 2]),
        note="" if types else f"{TOO_FEW}: no token type occurs {min_count} times; explain more, or lower min_count",
        occurrences=tuple(zip(tokens, values[:, 0].tolist(), values[:, 1].tolist(), strict=True)),
    )


def kurtosis(values: Tensor) -> float:
    """Return the excess kurtosis of a map, 0 for a normal distribution; NaN if the map is constant.

    Args:
        values: Map of any shape. Shifting, scaling or normalising it does not change its kurtosis.
    """
    flat = values.double().flatten()
    centred = flat - flat.mean()
    variance = centred.square().mean()
    if variance.sqrt() <= 1e-6 * flat.abs().max():
        return float("nan")
    return float(torch.mean(centred**4) / variance**2 - 3)

"""Where a token came from: the sound, or the text before it? (§8.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from spes_hf.analysis import drawing
from spes_hf.analysis.corpus import named, token_label
from spes_hf.analysis.stats import TOO_FEW, to_json
from spes_hf.checks import check_count
from spes_hf.explanation import Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MEANS = ("sound_bits", "text_bits", "top_share")


@dataclass(frozen=True)
class TokenBalance:
    """Where one token came from.

    Attributes:
        utterance: Name of the utterance.
        index: Index of the token.
        token: The token.
        probability: Probability that the model gave it.
        sound_bits: Evidence from the sound (`Explanation.sound_bits`); NaN if it is not known.
        text_bits: Evidence from the text before it, likewise.
        top_share: Share of the top saliency that the token map holds (`top_share`).
    """

    utterance: str
    index: int
    token: str
    probability: float
    sound_bits: float
    text_bits: float
    top_share: float


@dataclass(frozen=True)
class TypeBalance:
    """Where a token type came from: means over its n occurrences."""

    token: str
    n: int
    sound_bits: float
    text_bits: float
    top_share: float


@dataclass(frozen=True)
class ModalityBalance:
    """Where tokens came from: the sound, or the text before them.

    Attributes:
        tokens: Every token, in ascending order of bits from the sound; those whose bits are not known come last.
        types: Token types that occur often enough, in the same order.
        utterances: Name of the utterance → bits a token from the sound, in ascending order. Look at the first ones if
            the model may have made something up.
        min_count: Minimum number of occurrences of a type.
        note: "too few: …" if no type occurs often enough; otherwise empty.

    Examples:
        >>> token = modality_balance(ex).tokens[-1]  # the most bits from the sound
        >>> token.token, token.sound_bits == float(ex.sound_bits[1])
        ('sells', True)
    """

    tokens: tuple[TokenBalance, ...]
    types: tuple[TypeBalance, ...]
    utterances: dict[str, float]
    min_count: int
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return to_json(self)

    def __str__(self) -> str:
        def line(types: tuple[TypeBalance, ...]) -> str:
            return ", ".join(f"{t.token!r} {t.sound_bits:.1f} ({t.n}×)" for t in types)

        return (
            f"bits from the sound, {len(self.tokens)} tokens\n"
            f"  most guessed: {line(self.types[:5])}\n  most heard: {line(self.types[5:][-5:])}"
        )

    def plot(self, count: int = 8) -> tuple[Figure, Axes]:
        """Return a figure of the token types that were most guessed and most heard, and its axes.

        Args:
            count: Number of types of either kind.
        """
        both = len(self.types) > 2 * check_count("count", count)
        shown = self.types[:count] + self.types[-count:] if both else self.types
        figure = drawing.new_figure(6.8, max(2.4, 1.4 + 0.28 * len(shown)))
        ax = figure.subplots()
        if not shown:
            drawing.say(ax, self.note)
            return figure, ax
        positions = np.arange(len(shown))
        drawing.bars(ax, [t.token for t in shown], [t.sound_bits for t in shown], [t.n for t in shown], drawing.DARK)
        ax.plot([t.text_bits for t in shown], positions, "D", color="white", markeredgecolor="black", markersize=5,
                label="bits from the text before")  # fmt: skip
        ax.axvline(0, color="0.3", linewidth=0.8)
        ax.axvline(1, color="0.5", linewidth=1, linestyle=(0, (3, 2)))
        if both:
            ax.axhline(count - 0.5, color="black", linewidth=1, linestyle=(0, (4, 3)))
        ax.set_xlabel("bits from the sound (bars; left of the dashed line: guessed)")
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False, fontsize=8)
        return figure, ax


def modality_balance(explanations: Any, *, min_count: int = 1) -> ModalityBalance:
    """Return for every token the bits from the sound, and from the text before it.

    Args:
        explanations: Explanations, folders of saved ones, or rows that have one; or a folder of saved ones.
        min_count: Minimum number of occurrences for a token type to be listed.

    Raises:
        ConfigError: If ``min_count`` is below 1, or there are no explanations.

    Examples:
        >>> print(modality_balance(ex))
        bits from the sound, 7 tokens
          most guessed: ...
          most heard: 'picture' 6... (1×), 'sells' 7... (1×)
    """
    check_count("min_count", min_count)
    tokens: list[TokenBalance] = []
    utterances: dict[str, float] = {}
    for item in named(explanations):
        explanation = item.explanation
        columns = (
            explanation.token_probabilities,
            explanation.sound_bits,
            explanation.text_bits,
            top_share(explanation),
        )
        for k, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            tokens.append(TokenBalance(item.name, k, token_label(explanation, k), *values))
        utterances[item.name] = explanation.bits_per_token
    by_type: dict[str, list[TokenBalance]] = {}
    for token in tokens:
        by_type.setdefault(token.token, []).append(token)
    types = [
        TypeBalance(name, len(found), *(_mean([getattr(t, key) for t in found]) for key in _MEANS))
        for name, found in by_type.items()
        if len(found) >= min_count
    ]
    return ModalityBalance(
        tokens=tuple(sorted(tokens, key=lambda t: _rising(t.sound_bits))),
        types=tuple(sorted(types, key=lambda t: _rising(t.sound_bits))),
        utterances=dict(sorted(utterances.items(), key=lambda entry: _rising(entry[1]))),
        min_count=min_count,
        note="" if types else f"{TOO_FEW}: no token type occurs {min_count} times; explain more, or lower min_count",
    )


def top_share(explanation: Explanation) -> Tensor:
    """Return the share of each token's top saliency that the token map holds, (K,) in [0, 1].

    The highest value of the token map, divided by the sum of that and the highest value of the spectrogram's map. Both
    maps are on one scale (§4.3). 0.5 if the two are equal; 0 for a token without text before it.

    Args:
        explanation: An explanation over tokens or words.
    """
    text = explanation.token_saliency.clone()
    text[:, : explanation.prefix_length] = 0  # start and prompt tokens do not count as text
    text = text.nan_to_num(0.0).amax(1)
    sound = explanation.audio_saliency.flatten(1).amax(1)
    return text / (text + sound).clamp_min(1e-12)


def _rising(value: float) -> tuple[bool, float]:
    return (bool(np.isnan(value)), value)


def _mean(values: list[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")

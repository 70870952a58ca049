"""Does a token rest on sound or on text? (§8.2)."""

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


@dataclass(frozen=True)
class TokenBalance:
    """What one token rests on.

    Attributes:
        utterance: Name of the utterance.
        index: Of the token.
        token: The token.
        probability: That the model gave it.
        text_share: How much the token rests on text, by impacts (`Explanation.text_share`); NaN where not known.
        top_share: Share of the top saliency that the token map holds (`top_share`).
    """

    utterance: str
    index: int
    token: str
    probability: float
    text_share: float
    top_share: float


@dataclass(frozen=True)
class TypeBalance:
    """What a token type rests on: means over its n occurrences."""

    token: str
    n: int
    text_share: float
    top_share: float


@dataclass(frozen=True)
class ModalityBalance:
    """What tokens rest on: sound, or the text before them.

    Attributes:
        tokens: Every token, the most textual first; those whose share is not known come last.
        types: Token types that occur often enough, the most textual first.
        utterances: Name of the utterance → mean text share of its tokens, the most textual first: where to look first
            if the model may have made something up.
        min_count: How often a type has to occur.
        note: "too few: …" where no type does; else empty.
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
            return ", ".join(f"{t.token!r} {t.text_share:.2f} ({t.n}×)" for t in types)

        return (
            f"modality balance of {len(self.tokens)} tokens\n"
            f"  most textual: {line(self.types[:5])}\n  most acoustic: {line(self.types[5:][-5:])}"
        )

    def plot(self, count: int = 8) -> tuple[Figure, Axes]:
        """Return a figure of the token types that rest most on text and most on sound, and its axes.

        Args:
            count: How many of each.
        """
        both = len(self.types) > 2 * check_count("count", count)
        shown = self.types[:count] + self.types[-count:] if both else self.types
        figure = drawing.new_figure(6.8, max(2.4, 1.4 + 0.28 * len(shown)))
        ax = figure.subplots()
        if not shown:
            drawing.say(ax, self.note)
            return figure, ax
        positions = np.arange(len(shown))
        drawing.bars(ax, [t.token for t in shown], [1.0] * len(shown), [t.n for t in shown], drawing.MIDDLE)
        ax.barh(positions, [t.text_share for t in shown], color=drawing.DARK, height=0.72)
        ax.set_xlim(0, 1)
        ax.axvline(0.5, color="white", linewidth=1.2, linestyle=(0, (3, 2)))
        ax.plot([t.top_share for t in shown], positions, "D", color="white", markeredgecolor="black", markersize=5,
                label="share of the top saliency that text holds")  # fmt: skip
        if both:
            ax.axhline(count - 0.5, color="black", linewidth=1, linestyle=(0, (4, 3)))
        ax.set_xlabel("how much the token rests on text (dark) and on sound (light)")
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False, fontsize=8)
        return figure, ax


def modality_balance(explanations: Any, *, min_count: int = 1) -> ModalityBalance:
    """Return for every token whether it rests on sound or on the text before it.

    Args:
        explanations: Explanations, folders of saved ones, or rows that have one; or a folder of saved ones.
        min_count: How often a token type has to occur to be listed among the types.

    Raises:
        ConfigError: If ``min_count`` is below 1, or there are no explanations.
    """
    check_count("min_count", min_count)
    tokens: list[TokenBalance] = []
    for item in named(explanations):
        explanation = item.explanation
        shares = zip(
            explanation.token_probabilities.tolist(),
            explanation.text_share.tolist(),
            top_share(explanation).tolist(),
            strict=True,
        )
        for k, values in enumerate(shares):
            tokens.append(TokenBalance(item.name, k, token_label(explanation, k), *values))
    by_type: dict[str, list[TokenBalance]] = {}
    by_utterance: dict[str, list[TokenBalance]] = {}
    for token in tokens:
        by_type.setdefault(token.token, []).append(token)
        by_utterance.setdefault(token.utterance, []).append(token)
    types = [
        TypeBalance(name, len(found), _mean([t.text_share for t in found]), _mean([t.top_share for t in found]))
        for name, found in by_type.items()
        if len(found) >= min_count
    ]
    utterances = {name: _mean([t.text_share for t in found]) for name, found in by_utterance.items()}
    return ModalityBalance(
        tokens=tuple(sorted(tokens, key=lambda t: _falling(t.text_share))),
        types=tuple(sorted(types, key=lambda t: _falling(t.text_share))),
        utterances=dict(sorted(utterances.items(), key=lambda entry: _falling(entry[1]))),
        min_count=min_count,
        note="" if types else f"{TOO_FEW}: no token type occurs {min_count} times; explain more, or lower min_count",
    )


def top_share(explanation: Explanation) -> Tensor:
    """Return the share of each token's top saliency that the token map holds, (K,) in [0, 1].

    The highest value of the token map over that plus the highest value of the map of the spectrogram: both maps are on
    one scale (§4.3). 0.5 where the two are level; 0 for a token without text before it.

    Args:
        explanation: Over tokens or words.
    """
    text = explanation.token_saliency.clone()
    text[:, : explanation.prefix_length] = 0  # start and prompt tokens are no text
    text = text.nan_to_num(0.0).amax(1)
    sound = explanation.audio_saliency.flatten(1).amax(1)
    return text / (text + sound).clamp_min(1e-12)


def _falling(value: float) -> tuple[bool, float]:
    return (bool(np.isnan(value)), -value)


def _mean(values: list[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")

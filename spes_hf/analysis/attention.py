"""Does the decoder look at what it uses? Cross-attention against saliency over time.

After Papi et al., "Cross-Attention is Half Explanation in Speech-to-Text Models" (2025, arXiv 2509.18010).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spes_hf.analysis import drawing
from spes_hf.analysis.stats import to_json
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.metrics.bootstrap import SAMPLES, bootstrap_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAPS = ("input", "encoder")
"""The maps that attention is compared with: "input" (the spectrogram's, averaged over mel bins) and "encoder"."""


@dataclass(frozen=True, eq=False)
class HeadAgreement:
    """Pearson's correlation of attention with a map over positions, averaged over the tokens of an utterance.

    Attributes:
        all: For the mean over all heads and layers.
        layers: (L,) for the mean over the heads of each layer.
        heads: (L, H) for each head.
        alignment: For the mean over the alignment heads; NaN if there are none.
    """

    all: float
    layers: np.ndarray
    heads: np.ndarray
    alignment: float = math.nan


@dataclass(frozen=True, eq=False)
class UtteranceAgreement:
    """How far attention agrees with the maps of one utterance.

    Attributes:
        utterance: Its name.
        tokens: Number of tokens compared, without special tokens.
        input: Agreement with the map of the spectrogram, averaged over mel bins and over the frames of each position.
        encoder: Agreement with the map of the encoder's output.
        between: Correlation of the two maps with each other, likewise: a reference for what attention could reach with
            both.

    Examples:
        >>> deep = explain(model, processor, clip, config=SpesConfig.fast(), over="encoder")
        >>> found = utterance_agreement(deep, deep.raw_encoder[None, None], "one")
        >>> found.utterance, found.tokens, UtteranceAgreement.from_dict(found.to_dict()).between == found.between
        ('one', 6, True)
    """

    utterance: str
    tokens: int
    input: HeadAgreement
    encoder: HeadAgreement
    between: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return to_json(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UtteranceAgreement:
        """Return what `to_dict` wrote."""

        def number(value: float | None) -> float:
            return math.nan if value is None else value

        def numbers(value: Any) -> np.ndarray:
            return np.array(value, dtype=np.float64)  # None becomes NaN

        maps = {
            name: HeadAgreement(
                number(values[name]["all"]),
                numbers(values[name]["layers"]),
                numbers(values[name]["heads"]),
                number(values[name]["alignment"]),
            )
            for name in MAPS
        }
        return cls(values["utterance"], values["tokens"], **maps, between=number(values["between"]))


@dataclass(frozen=True)
class Mean:
    """A mean over utterances, with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, eq=False)
class MapAgreement:
    """How far attention agrees with a map over a corpus.

    The best layer and head are those with the largest mean on the same utterances, so their numbers are slightly high.

    Attributes:
        all: For the mean over all heads and layers.
        layers: For each layer.
        heads: (L, H) means for each head.
        best_layer: The layer that agrees most.
        best_head: The (layer, head) that agrees most.
        of_best_head: How far the best head agrees.
        alignment: For the mean over the alignment heads; NaN if there are none.
    """

    all: Mean
    layers: tuple[Mean, ...]
    heads: np.ndarray
    best_layer: int
    best_head: tuple[int, int]
    of_best_head: Mean
    alignment: Mean

    @property
    def of_best_layer(self) -> Mean:
        """How far the best layer agrees."""
        return self.layers[self.best_layer]


@dataclass(frozen=True, eq=False)
class AttentionAgreement:
    """How far cross-attention agrees with saliency over a corpus.

    Attributes:
        utterances: Number of utterances.
        tokens: Total number of tokens.
        input: Agreement with the maps of the spectrogram over time.
        encoder: Agreement with the maps of the encoder's output.
        between: Agreement of the two kinds of maps with each other.

    Examples:
        >>> deep = explain(model, processor, clip, config=SpesConfig.fast(), over="encoder")
        >>> print(attention_agreement([utterance_agreement(deep, deep.raw_encoder[None, None])]))
        cross-attention and saliency, 1 utterances, 6 tokens (Pearson's r)
          input ...
          encoder  all heads 1.00 [1.00, 1.00], layer 0 1.00 [1.00, 1.00], head 0.0 1.00 [1.00, 1.00], ...
    """

    utterances: int
    tokens: int
    input: MapAgreement
    encoder: MapAgreement
    between: Mean

    def __str__(self) -> str:
        lines = [f"cross-attention and saliency, {self.utterances} utterances, {self.tokens} tokens (Pearson's r)"]
        for name in MAPS:
            found: MapAgreement = getattr(self, name)
            layer, head = found.best_head
            lines.append(
                f"  {name:8} all heads {found.all}, layer {found.best_layer} {found.of_best_layer}, "
                f"head {layer}.{head} {found.of_best_head}, alignment heads {found.alignment}"
            )
        return "\n".join([*lines, f"  the two maps with each other {self.between}"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return to_json(self)

    def plot(self) -> tuple[Figure, Sequence[Axes]]:
        """Return a figure of every head's agreement with either kind of map, by layer."""
        figure = drawing.new_figure(7.0, 3.0)
        axes = figure.subplots(1, len(MAPS), sharey=True)
        both = [getattr(self, name).heads for name in MAPS]
        limit = max(1e-9, float(np.nanmax(np.abs(both))))
        for ax, name, heads in zip(axes, MAPS, both, strict=True):
            image = ax.imshow(heads, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
            ax.set_title({"input": "spectrogram over time", "encoder": "encoder's output"}[name])
            ax.set_xlabel("head")
        axes[0].set_ylabel("layer")
        figure.colorbar(image, ax=list(axes), label="correlation with attention")
        return figure, list(axes)


def utterance_agreement(
    explanation: Explanation,
    attention: Tensor,
    name: str = "",
    alignment_heads: Sequence[tuple[int, int]] | None = None,
) -> UtteranceAgreement:
    """Return how far cross-attention agrees with the maps of an utterance, token by token over time.

    Leaves out special tokens, tokens for which a map or the attention is constant, and positions that are not the
    nearest one to any frame.

    Args:
        explanation: An explanation over tokens with a map of the encoder's output (``explain(…, over="encoder")``).
        attention: (layers, heads, K, S or more) for all tokens of the output, as `Adapter.attention_weights` returns
            it; positions after those that hold sound are left out.
        name: Name of the utterance.
        alignment_heads: (layer, head) of the heads that follow the speech, as `Adapter.alignment_heads`.

    Raises:
        ConfigError: If the explanation is over words or has a foil, or the attention belongs to another output.
        ValueError: If the explanation has no map of the encoder's output.

    Examples:
        >>> deep = explain(model, processor, clip, config=SpesConfig.fast(), over="encoder")
        >>> found = utterance_agreement(deep, deep.raw_encoder[None, None])  # one head that looks at what the map says
        >>> round(found.encoder.all, 6), found.input.all < 0.9
        (1.0, True)
    """
    if explanation.over_words or explanation.contrasts is not None:
        kind = "over words" if explanation.over_words else "with a foil"
        raise ConfigError(f"explanation is {kind}; pass one over tokens, since attention has a row for each token")
    positions = explanation.encoder_positions
    tokens, length = len(explanation.written_ids), len(positions)
    if attention.ndim != 4 or attention.shape[2] != tokens or attention.shape[3] < length:
        raise ConfigError(
            f"attention has shape {tuple(attention.shape)}; allowed: (layers, heads, {tokens}, {length} or more), as "
            "Adapter.attention_weights() returns for the explained output"
        )
    places = range(tokens) if explanation.part is None else explanation.part.rows
    rows = [row for row, special in enumerate(explanation.special) if not special]
    over_time = torch.zeros(len(rows), len(explanation.times), dtype=torch.float64, device="cpu")
    for i, row in enumerate(rows):
        over_time[i] = explanation.audio_map.dense(row).double().mean(1)
    sound = positions.pool(over_time)
    known = torch.bincount(positions.nearest, minlength=length) > 0
    maps = {"input": sound[:, known], "encoder": explanation.raw_encoder[rows][:, known].double()}
    weights = attention[:, :, [places[row] for row in rows], :length][..., known].double()

    def agreement(values: Tensor) -> HeadAgreement:
        chosen = [weights[layer, head] for layer, head in alignment_heads or ()]
        return HeadAgreement(
            float(_mean_correlation(weights.mean((0, 1)), values)),
            _mean_correlation(weights.mean(1), values).numpy(),
            _mean_correlation(weights, values).numpy(),
            float(_mean_correlation(torch.stack(chosen).mean(0), values)) if chosen else math.nan,
        )

    found = {kind: agreement(values) for kind, values in maps.items()}
    between = float(_mean_correlation(maps["input"], maps["encoder"]))
    return UtteranceAgreement(name, len(rows), **found, between=between)


def attention_agreement(
    utterances: Iterable[UtteranceAgreement], samples: int = SAMPLES, seed: int = 0
) -> AttentionAgreement:
    """Return how far cross-attention agrees with saliency over a corpus: means over utterances, with intervals.

    Args:
        utterances: Agreement for each utterance, all from one model.
        samples: Number of corpora that the bootstrap draws.
        seed: Same seed, same intervals.

    Raises:
        ConfigError: If there are no utterances, or they come from models with different layers or heads.

    Examples:
        >>> deep = explain(model, processor, clip, config=SpesConfig.fast(), over="encoder")
        >>> heads = torch.stack([deep.raw_encoder.flip(1), deep.raw_encoder])[None]  # only the second follows the map
        >>> attention_agreement([utterance_agreement(deep, heads)]).encoder.best_head
        (0, 1)
    """
    found = list(utterances)
    if not found:
        raise ConfigError("utterances is empty; pass what utterance_agreement() returns for each utterance")
    shapes = {each.input.heads.shape for each in found}
    if len(shapes) > 1:
        raise ConfigError(f"utterances have different (layers, heads): {sorted(shapes)}; pass those of one model")

    def mean(values: Sequence[float] | np.ndarray) -> Mean:
        return _mean(np.array(values, dtype=np.float64), samples, seed)

    def of(pick: Callable[[UtteranceAgreement], HeadAgreement]) -> MapAgreement:
        each = [pick(utterance) for utterance in found]
        layers = np.stack([agreement.layers for agreement in each])
        heads = np.stack([agreement.heads for agreement in each])
        means = np.array([[_known_mean(heads[:, i, h]) for h in range(heads.shape[2])] for i in range(heads.shape[1])])
        best = np.unravel_index(np.argmax(np.nan_to_num(means, nan=-2.0)), means.shape)
        layer_means = tuple(mean(column) for column in layers.T)
        return MapAgreement(
            all=mean([agreement.all for agreement in each]),
            layers=layer_means,
            heads=means,
            best_layer=int(np.argmax(np.nan_to_num([m.value for m in layer_means], nan=-2.0))),
            best_head=(int(best[0]), int(best[1])),
            of_best_head=mean(heads[:, best[0], best[1]]),
            alignment=mean([agreement.alignment for agreement in each]),
        )

    return AttentionAgreement(
        utterances=len(found),
        tokens=sum(each.tokens for each in found),
        input=of(lambda utterance: utterance.input),
        encoder=of(lambda utterance: utterance.encoder),
        between=mean([each.between for each in found]),
    )


def _known_mean(values: np.ndarray) -> float:
    """Return the mean of the known values; NaN if there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _mean(values: np.ndarray, samples: int, seed: int) -> Mean:
    known = values[np.isfinite(values)]
    if not len(known):
        return Mean(math.nan, math.nan, math.nan)
    ends = bootstrap_interval(
        np.stack([known, np.ones_like(known)], 1), lambda s: s[:, 0] / s[:, 1], samples, seed=seed
    )
    return Mean(float(known.mean()), ends.low, ends.high)


def _mean_correlation(values: Tensor, reference: Tensor) -> Tensor:
    """Return Pearson's correlation over positions, averaged over tokens.

    Args:
        values: (…, K, S).
        reference: (K, S).

    Returns:
        (…); NaN if no token has a correlation.
    """
    a, b = (x - x.mean(-1, keepdim=True) for x in (values, reference))
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    flat = (values.std(-1) < 1e-12) | (reference.std(-1) < 1e-12)
    return ((a * b).sum(-1) / norms).masked_fill(flat, torch.nan).nanmean(-1)

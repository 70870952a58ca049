"""Cross-attention as a map: what a decoder looks at, which is not everything that it uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from spes_hf.checks import check, is_whole
from spes_hf.errors import ConfigError
from spes_hf.explanation.maps import EncoderMap, PatchMap
from spes_hf.masking.segments import feature_labels
from spes_hf.methods.base import ExplainConfig
from spes_hf.methods.controls import PERTURBING
from spes_hf.methods.run import Maps, Problem


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(ExplainConfig):
    """Cross-attention of the clean run: why not just see where the decoder looks? One decoder pass, no masks.

    Attention says when, at the positions of the encoder's output, but nothing about frequencies. By default it is the
    mean over all heads and layers, which works for every family without any choice, times the loudness of each feature:
    in deletion, a map that is constant over frequencies would lose just because of its silent features. It covers the
    encoder's output, in which frames are already mixed, so it tells half of the story at best (Papi et al., 2025, arXiv
    2509.18010). Weights on padding, as in Whisper, are left out.

    The map over the encoder's output is the attention itself. Attention says nothing about tokens, so their map is
    constant. With a foil, a row has the attention of the model's own words there; it ignores the foil.

    Attributes:
        layers: Decoder layers to average over, −1 being the last; None for all. Only with `heads="all"`.
        heads: "all", "alignment" (the heads from which Whisper derives word times) or pairs (layer, head).
        energy: Whether to multiply the attention over time by the features minus their minimum, as in `EnergyConfig`;
            if not, the map is constant over frequencies.

    Examples:
        >>> explain(model, processor, clip, config=AttentionConfig(heads="all", energy=False)).method
        'attention'
    """

    num_spectrogram_masks: int = 0
    num_token_masks: int = 0
    layers: tuple[int, ...] | None = None
    heads: Literal["all", "alignment"] | tuple[tuple[int, int], ...] = "all"
    energy: bool = True

    method: ClassVar[str] = "attention"
    unused: ClassVar[tuple[str, ...]] = PERTURBING
    overs: ClassVar[tuple[str, ...]] = ("spectrogram", "encoder")

    def __post_init__(self) -> None:
        if isinstance(self.layers, int) and not isinstance(self.layers, bool):
            object.__setattr__(self, "layers", (self.layers,))
        elif isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        if isinstance(self.heads, (list, tuple)):
            pairs = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in self.heads)
            object.__setattr__(self, "heads", pairs)
        super().__post_init__()
        allowed = "distinct indices of decoder layers, for example (-2, -1), or None"
        check(self, "layers", self.layers is None or _are_indices(self.layers), allowed)
        named = isinstance(self.heads, str) and self.heads in ("all", "alignment")
        pairs = self.heads if isinstance(self.heads, tuple) else ()
        listed = bool(pairs) and len(set(pairs)) == len(pairs) and all(_is_pair(pair) for pair in pairs)
        check(self, "heads", named or listed, '"all", "alignment" or pairs (layer, head), for example ((3, 0), (3, 5))')
        check(self, "energy", isinstance(self.energy, bool), "True, False")

    @classmethod
    def unread(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the fields that a config with these values does not read, each with the reason."""
        found = super().unread(values)
        if values["heads"] != "all":
            found["layers"] = "heads already names the layers"
        return found

    def plan(self, problem: Problem) -> Sequence[Maps]:
        """Return the attention of every row, over time or by feature, and a constant map of tokens.

        Raises:
            ConfigError: If the model has no such layers or heads, or its alignment heads are not known.
            UnsupportedModelError: If the family's attention cannot be read.
        """
        positions, features = problem.encoder.positions, problem.utterance.features
        profile = self.profile(problem)[:, : len(positions)]
        if self.energy:
            loud = features - features.min()
            sound = (positions.spread(profile)[..., None] * loud).flatten(1)
            audio = PatchMap.of(feature_labels(features), (sound,))
        else:
            audio = PatchMap.of(positions.nearest[None, :, None].expand(1, *features.shape).contiguous(), (profile,))
        constant = torch.zeros(problem.tokens, len(problem.target.context_ids), dtype=torch.float32, device="cpu")
        found = [Maps.of_sound(audio, problem), Maps.of_tokens(constant, problem)]
        return [*found, Maps(encoder=EncoderMap(profile, positions.times))] if problem.over == "encoder" else found

    def profile(self, problem: Problem) -> Tensor:
        """Return the mean attention of the chosen heads, (K, S), over all positions of the encoder's output.

        Raises:
            ConfigError: If the model has no such layers or heads.
        """
        weights = problem.encoder.attention
        layers, heads = weights.shape[:2]
        if self.heads == "all":
            chosen = range(layers) if self.layers is None else self.layers
            self._check_within("layers", [layer for layer in chosen if not -layers <= layer < layers], layers, heads)
            return weights[list(chosen)].mean((0, 1))
        pairs = problem.encoder.alignment_heads if self.heads == "alignment" else self.heads
        if pairs is None:
            raise ConfigError(
                'AttentionConfig.heads is "alignment", but the model\'s generation config has no alignment heads (as '
                'Whisper\'s has); pass heads="all", or pairs (layer, head)'
            )
        assert not isinstance(pairs, str)
        outside = [(i, h) for i, h in pairs if not (-layers <= i < layers and -heads <= h < heads)]
        self._check_within("heads", outside, layers, heads)
        return torch.stack([weights[layer, head] for layer, head in pairs]).mean(0)

    def _check_within(self, name: str, outside: Sequence[Any], layers: int, heads: int) -> None:
        if outside:
            value = getattr(self, name)
            raise ConfigError(
                f"AttentionConfig.{name} is {value!r}, but the model has no {outside[0]!r}; allowed: layers 0 … "
                f"{layers - 1}, heads 0 … {heads - 1}, or negative indices counted from the end, −1 being the last"
            )


def _are_indices(values: Any) -> bool:
    return (
        isinstance(values, tuple)
        and bool(values)
        and len(set(values)) == len(values)
        and all(is_whole(v) for v in values)
    )


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(is_whole(v) for v in pair)

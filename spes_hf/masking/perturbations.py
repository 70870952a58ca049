"""What is switched on and off, and what that does to the input: patches, features, tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from spes_hf.masking.draw import DESIGNS, keep_bits
from spes_hf.runtime.transfer import on_device

Fill = Literal["mean", "zero", "min"] | float


@dataclass(frozen=True)
class Masks:
    """A batch of masks of one level.

    Attributes:
        keep: (B, F) 1 = keep, 0 = perturb; a fraction keeps that share of the unit.
        level: The level of patches that the units belong to.
        rows: Index of every mask within its level.
        block: Number of consecutive masks that are balanced against each other.
    """

    keep: Tensor
    level: int
    rows: range
    block: int = 1

    @property
    def blocks(self) -> Tensor:
        """Which block of its level every mask belongs to, (B,) int64."""
        return torch.arange(self.rows.start, self.rows.stop, dtype=torch.int64, device="cpu") // self.block

    @property
    def halves(self) -> Tensor:
        """Which half every mask belongs to, (B,) 0 or 1: blocks of masks take turns."""
        return self.blocks % 2


def fill_values(fill: Any, features: Tensor) -> Tensor:
    """Return the fill value of every mel bin, (C,): "mean", "zero", "min" or a number."""
    if fill == "mean":
        return features.mean(0)
    named = {"zero": 0.0, "min": float(features.min())}
    return features.new_full(features.shape[1:], named[fill] if isinstance(fill, str) else float(fill))


class Perturbation(ABC):
    """A family of masks over an utterance's units.

    Attributes:
        num_masks: N.
        levels: Number of levels; mask i belongs to level i mod ``levels``.
        block: Number of consecutive masks of a level that are balanced against each other.
    """

    num_masks: int
    levels: int = 1
    block: int = 1

    def rows(self, level: int) -> range:
        """Return the rows of a level: N masks spread evenly, the remainder over the first levels."""
        return range(len(range(level, self.num_masks, self.levels)))

    @abstractmethod
    def draw(self, level: int, rows: range) -> Masks:
        """Return the masks of these rows of a level: the same ones each time, in whatever order."""

    @abstractmethod
    def apply(self, masks: Masks) -> dict[str, Tensor]:
        """Return the input perturbed by these masks, as keyword arguments of `Adapter.logits`."""


@dataclass(frozen=True)
class SpectrogramPerturbation(Perturbation):
    """Patches of the spectrogram, at one or more levels (§4.1.1); perturbed features take the fill value.

    Attributes:
        features: (T, C) clean spectrogram, on the model's device.
        fill: (C,) fill value of every mel bin, on the model's device.
        labels: (L, T, C) patch of every feature at every level, on the model's device.
        units: Number of patches at each level.
        keys: Key of the masks at each level.
        mask_prob: p_spec.
        num_masks: N^X.
        design: How masks are balanced against each other, a name in `DESIGNS`.
    """

    features: Tensor
    fill: Tensor
    labels: Tensor
    units: tuple[int, ...]
    keys: tuple[int, ...]
    mask_prob: float
    num_masks: int
    design: str = "independent"

    @property
    def levels(self) -> int:  # type: ignore[override]
        """Number of levels L."""
        return len(self.labels)

    @property
    def block(self) -> int:  # type: ignore[override]
        """Number of consecutive masks of a level that are balanced against each other."""
        return DESIGNS[self.design].block

    def draw(self, level: int, rows: range) -> Masks:
        """Return the masks of these rows of a level, (B, F)."""
        numbers = DESIGNS[self.design].numbers
        keep = keep_bits(self.keys[level], rows.start, len(rows), self.units[level], self.mask_prob, numbers)
        return Masks(on_device(keep, self.features.device), level, rows, self.block)

    def apply(self, masks: Masks) -> dict[str, Tensor]:
        """Return the perturbed spectrograms, (B, T, C)."""
        return {"features": torch.where(self.kept(masks), self.features, self.fill)}

    def kept(self, masks: Masks) -> Tensor:
        """Return the masks by feature, (B, T, C)."""
        # Transposed, all masks of a unit are contiguous in memory and are gathered together.
        bits = masks.keep.T.contiguous().index_select(0, self.labels[masks.level].flatten())
        return bits.T.reshape(len(masks.keep), *self.features.shape)


@dataclass(frozen=True)
class SoftSpectrogramPerturbation(SpectrogramPerturbation):
    """The same masks, per feature instead of per patch, as numbers that can be differentiated."""

    def draw(self, level: int, rows: range) -> Masks:
        """Return the masks of these rows of a level, (B, T·C) in the features' dtype."""
        masks = super().draw(level, rows)
        return replace(masks, keep=self.kept(masks).flatten(1).to(self.features.dtype))

    def apply(self, masks: Masks) -> dict[str, Tensor]:
        """Return the perturbed spectrograms, (B, T, C): partly kept features lie between their value and the fill."""
        keep = masks.keep.unflatten(1, self.features.shape)
        return {"features": keep * self.features + (1 - keep) * self.fill}


@dataclass(frozen=True)
class TokenPerturbation(Perturbation):
    """Decoder inputs; the embedding of a perturbed one becomes zero, its position embedding stays (§4.1.2).

    Attributes:
        units: J.
        key: Key of the masks.
        mask_prob: p_tok.
        num_masks: N^Y.
        device: Where the masks go.
    """

    units: int
    key: int
    mask_prob: float
    num_masks: int
    device: torch.device

    def draw(self, level: int, rows: range) -> Masks:
        """Return the masks of these rows, (B, J)."""
        keep = keep_bits(self.key, rows.start, len(rows), self.units, self.mask_prob)
        return Masks(on_device(keep, self.device), level, rows)

    def apply(self, masks: Masks) -> dict[str, Tensor]:
        """Return which decoder inputs to keep, (B, J)."""
        return {"token_keep": masks.keep}


@dataclass(frozen=True)
class EncoderPerturbation(Perturbation):
    """Positions of the encoder's output; perturbed ones take the mean of all positions with sound, and padding stays.

    The fill is the mean because a decoder has never seen a state of zeros and would notice the gap.

    Attributes:
        states: (1, S, D) the encoder's output for the clean sound, on the model's device.
        units: Number of positions with sound; they come first.
        key: Key of the masks.
        mask_prob: p_spec.
        num_masks: N.
    """

    states: Tensor
    units: int
    key: int
    mask_prob: float
    num_masks: int

    def draw(self, level: int, rows: range) -> Masks:
        """Return the masks of these rows, (B, units)."""
        keep = keep_bits(self.key, rows.start, len(rows), self.units, self.mask_prob)
        return Masks(on_device(keep, self.states.device), level, rows)

    def apply(self, masks: Masks) -> dict[str, Tensor]:
        """Return the perturbed states, (B, S, D), in the dtype of the model's states."""
        sound, padding = self.states[:, : self.units], self.states[:, self.units :]
        mean = sound.to(torch.promote_types(sound.dtype, torch.float32)).mean(1, keepdim=True).to(sound.dtype)
        mixed = torch.where(masks.keep.unsqueeze(-1), sound, mean)
        return {"states": torch.cat([mixed, padding.expand(len(mixed), -1, -1)], dim=1)}


@dataclass(frozen=True)
class JointPerturbation(Perturbation):
    """Patches and tokens in the same run (A.2.2): the units of a level are its patches, then the tokens.

    Attributes:
        spectrogram: The patches.
        tokens: The tokens, with masks of their own for every level.
    """

    spectrogram: SpectrogramPerturbation
    tokens: tuple[TokenPerturbation, ...]

    @property
    def num_masks(self) -> int:  # type: ignore[override]
        """N, the number of masks of the spectrogram."""
        return self.spectrogram.num_masks

    @property
    def levels(self) -> int:  # type: ignore[override]
        """Number of levels of the spectrogram."""
        return self.spectrogram.levels

    @property
    def block(self) -> int:  # type: ignore[override]
        """Number of consecutive masks of a level that are balanced against each other, as for the spectrogram."""
        return self.spectrogram.block

    def draw(self, level: int, rows: range) -> Masks:
        """Return the masks of these rows of a level, (B, F + J)."""
        patches = self.spectrogram.draw(level, rows)
        tokens = self.tokens[level].draw(0, rows)
        return replace(patches, keep=torch.cat([patches.keep, tokens.keep], dim=1))

    def apply(self, masks: Masks) -> dict[str, Tensor]:
        """Return the perturbed spectrograms and which decoder inputs to keep."""
        patches, tokens = self.split(masks.keep, masks.level)
        return {
            **self.spectrogram.apply(replace(masks, keep=patches)),
            **self.tokens[masks.level].apply(replace(masks, keep=tokens)),
        }

    def split(self, units: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return the part of (…, F + J) that belongs to patches and the part that belongs to tokens."""
        patches = self.spectrogram.units[level]
        return units[..., :patches], units[..., patches:]

"""The encoder's output of an utterance, and how the decoder attends to it, for methods that ask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from spes_hf.adapters.base import Adapter
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.adapters.types import Target, Utterance


class EncoderOutput:
    """The encoder's output for the clean utterance; what the model must be asked for is worked out when it is read.

    Args:
        adapter: Of the model.
        utterance: What it hears.
        target: What it wrote.
        states: (1, S, D) the encoder's output, padding included.
        tokens: For every row of the explanation, the indices of the tokens of the output that it is about.
    """

    def __init__(
        self,
        adapter: Adapter,
        utterance: Utterance,
        target: Target,
        states: Tensor,
        tokens: Sequence[Sequence[int]],
    ):
        self._adapter, self._utterance, self._target, self._tokens = adapter, utterance, target, tokens
        self.states = states
        self.passes = 0
        """How many copies ran through the model for what was asked."""

    @cached_property
    def positions(self) -> EncoderPositions:
        """Where the positions lie in time that hold sound, which are the first ones.

        Raises:
            UnsupportedModelError: If the family does not say.
        """
        return self._adapter.encoder_positions(self._utterance)

    @property
    def alignment_heads(self) -> tuple[tuple[int, int], ...] | None:
        """(layer, head) of the heads that follow the speech in time; None where nobody has said."""
        return self._adapter.alignment_heads

    @cached_property
    def token_attention(self) -> Tensor:
        """(layers, heads, tokens, S) cross-attention of every token of the output, explained or not.

        float32 on the CPU, over all positions, padding included. Takes a pass of the decoder when it is first read.

        Raises:
            UnsupportedModelError: If the family's attention cannot be read.
        """
        self.passes += 1
        return self._adapter.attention_weights(self._utterance, self._target, self.states)

    @cached_property
    def attention(self) -> Tensor:
        """(layers, heads, K, S) cross-attention of every row; over the tokens of a row, the mean.

        Raises:
            UnsupportedModelError: If the family's attention cannot be read.
        """
        weights = self.token_attention
        return torch.stack([weights[:, :, list(tokens)].mean(2) for tokens in self._tokens], dim=2)

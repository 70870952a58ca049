"""The encoder's output for an utterance, and the decoder's attention to it, for methods that need them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from spes_hf.adapters.base import Adapter
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.adapters.types import Target, Utterance


class EncoderOutput:
    """The encoder's output for the clean utterance; values that need the model are computed when first read.

    Args:
        adapter: The model's adapter.
        utterance: The model's input.
        target: The model's output.
        states: (1, S, D) the encoder's output, including padding.
        tokens: For every row of the explanation, the indices of the output tokens that it is about.

    Examples:
        >>> from spes_hf.audio.load import load_audio
        >>> adapter = get_adapter(model, processor)
        >>> utterance = adapter.encode(load_audio(clip, adapter.sampling_rate))
        >>> target = adapter.encode_text(utterance, ex.text, adapter.options_of())
        >>> states = adapter.encoder_states(utterance.inputs)
        >>> output = EncoderOutput(adapter, utterance, target, states, tokens=[(0,), (1, 2)])
        >>> output.attention.shape[2], output.passes
        (2, 1)
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
        """Number of copies that have run through the model so far to compute these values."""

    @cached_property
    def positions(self) -> EncoderPositions:
        """The positions in time of the encoder states with sound, which come first.

        Raises:
            UnsupportedModelError: If the family's adapter does not define them.
        """
        return self._adapter.encoder_positions(self._utterance)

    @property
    def alignment_heads(self) -> tuple[tuple[int, int], ...] | None:
        """(layer, head) of the heads that follow the speech in time; None if they are not known."""
        return self._adapter.alignment_heads

    @cached_property
    def token_attention(self) -> Tensor:
        """(layers, heads, tokens, S) cross-attention of every output token, explained or not.

        float32 on the CPU, over all positions, including padding. Runs one decoder pass when first read.

        Raises:
            UnsupportedModelError: If the family's attention cannot be read.
        """
        self.passes += 1
        return self._adapter.attention_weights(self._utterance, self._target, self.states)

    @cached_property
    def attention(self) -> Tensor:
        """(layers, heads, K, S) cross-attention of every row: the mean over the row's tokens.

        Raises:
            UnsupportedModelError: If the family's attention cannot be read.
        """
        weights = self.token_attention
        return torch.stack([weights[:, :, list(tokens)].mean(2) for tokens in self._tokens], dim=2)

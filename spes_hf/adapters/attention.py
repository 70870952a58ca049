"""Cross-attention: how much each token attends to each encoder position, and the keys and values that masks share."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from spes_hf.adapters.hooks import forward_hook
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.adapters.types import Target, Utterance
from spes_hf.errors import UnsupportedModelError

_PROJECTIONS = ("q_proj", "k_proj")


class CrossAttention:
    """The part of `spes_hf.adapters.Adapter` that reads the decoder's attention to the encoder's output.

    Examples:
        >>> from spes_hf.audio.load import load_audio
        >>> adapter = get_adapter(model, processor)
        >>> utterance = adapter.encode(load_audio(clip, adapter.sampling_rate))
        >>> weights = adapter.attention_weights(utterance, adapter.generate(utterance, adapter.options_of()))
        >>> len(weights) == len(adapter.attention_modules), bool(((weights.sum(-1) - 1).abs() < 1e-4).all())
        (True, True)
    """

    model: Any
    _cache_name: str

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the encoder's inputs."""

    @abstractmethod
    def decoder_inputs(self, inputs: Mapping[str, Tensor], states: Tensor, batch: int) -> dict[str, Any]:
        """Return model inputs with the encoder's output, (1 or B, S, D), instead of its input."""

    @abstractmethod
    def forward(self, inputs: Mapping[str, Any]) -> Any:
        """Return the model's output for `decoder_inputs` and the decoder's own inputs."""

    @abstractmethod
    def logits(self, utterance: Utterance, target: Target, *, states: Tensor | None = None) -> Tensor:
        """Return the teacher-forced logits of all explained tokens."""

    # What a family defines -------------------------------------------------------------------------------------------

    @property
    def attention_modules(self) -> Sequence[Any]:
        """The cross-attention of every layer of the decoder, the first layer first.

        Each has projections ``q_proj`` and ``k_proj``.
        """
        return [layer.encoder_attn for layer in self.model.get_decoder().layers]

    def attention_heads(self, module: Any) -> int:
        """Return the number of query heads of such a module; groups of them may share a key head."""
        return int(module.num_heads)

    @property
    def alignment_heads(self) -> tuple[tuple[int, int], ...] | None:
        """(layer, head) of the heads that are known to follow the speech in time; None if they are not known."""
        return None

    def encoder_positions(self, utterance: Utterance) -> EncoderPositions:
        """Return the times of the positions of the encoder's output, only those with sound.

        Raises:
            UnsupportedModelError: If the adapter does not define them.
        """
        raise UnsupportedModelError(
            f"{type(self).__name__} does not define the times of the encoder's output positions; add the method "
            "encoder_positions(self, utterance)"
        )

    def attended(self, utterance: Utterance) -> int | None:
        """Return the number of encoder positions, from the first, that the decoder attends to; None: all."""
        return None

    # What all families share -----------------------------------------------------------------------------------------

    def cross_attention(
        self, utterance: Utterance, target: Target, states: Tensor
    ) -> tuple[tuple[Tensor, Tensor], ...] | None:
        """Return the keys and values of the encoder's output in every layer of the decoder, for `logits`.

        They do not depend on the decoder's tokens, so all masks over tokens share them. Families without such a cache
        return None and recompute them for every mask.

        Args:
            utterance: The utterance.
            target: The output to explain.
            states: (1, S, D) the encoder's output.

        Returns:
            (keys, values) of every layer, (1, heads, S, D / heads) each, or None.
        """
        from transformers.cache_utils import EncoderDecoderCache

        inputs = self.decoder_inputs(utterance.inputs, states, 1)
        start = target.prefix_ids[None, :1].to(self.device)
        output = self.forward({**inputs, "decoder_input_ids": start, "use_cache": True})
        cache = getattr(output, self._cache_name, None)
        if not isinstance(cache, EncoderDecoderCache):
            return None
        return tuple((layer.keys, layer.values) for layer in cache.cross_attention_cache.layers)

    def attention_weights(self, utterance: Utterance, target: Target, states: Tensor | None = None) -> Tensor:
        """Return the cross-attention of the teacher-forced clean run.

        Computed from the model's own queries and keys, so it does not depend on the attention implementation. Takes a
        decoder pass, and an encoder pass if ``states`` is None.

        Args:
            utterance: The utterance.
            target: The output.
            states: (1, S, D) the encoder's output for the clean utterance; saves an encoder pass.

        Returns:
            (layers, heads, K, S) float32 on the CPU. The weights of a token and head sum to 1 over S; positions that
            the decoder does not attend to, such as masked padding, have weight 0.

        Raises:
            UnsupportedModelError: If the decoder's attention has no projections ``q_proj`` and ``k_proj``.
        """
        try:
            modules = list(self.attention_modules)
        except AttributeError as error:
            raise UnsupportedModelError(
                f"{type(self).__name__} cannot find the decoder's cross-attention ({error}); override its "
                "attention_modules"
            ) from error
        seen: list[dict[str, Tensor]] = [{} for _ in modules]
        with torch.no_grad(), ExitStack() as hooks:
            for module, kept in zip(modules, seen, strict=True):
                for name in _PROJECTIONS:
                    hooks.enter_context(forward_hook(_projection(module, name), _Keeping(kept, name)))
            self.logits(utterance, target, states=states)
        first, attended = len(target.prefix_ids) - 1, self.attended(utterance)
        with torch.no_grad():
            layers = [
                _softmax(kept["q_proj"][0, first:], kept["k_proj"][0], self.attention_heads(module), attended)
                for module, kept in zip(modules, seen, strict=True)
            ]
        return torch.stack(layers)


def cache_argument(forward: Callable[..., Any]) -> str:
    """Return the name of the cache argument of a model's ``forward()``; transformers 5.24 renamed it.

    Examples:
        >>> cache_argument(lambda ids, cache=None: ...), cache_argument(lambda ids, past_key_values=None: ...)
        ('cache', 'past_key_values')
    """
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def encoder_cache(cross: Sequence[tuple[Tensor, Tensor]], batch: int) -> Any:
    """Return a decoder's cache with these keys and values of the encoder's output, and without tokens.

    Examples:
        >>> keys, values = torch.zeros(2, 1, 4, 10, 8)  # of one layer: 4 heads, 10 positions
        >>> cache = encoder_cache([(keys, values)], batch=3)
        >>> tuple(cache.cross_attention_cache.layers[0].keys.shape), cache.get_seq_length()
        ((3, 4, 10, 8), 0)
    """
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    cache = DynamicCache(cross)
    for layer in cache.layers:  # views, which save a copy for every mask
        layer.keys, layer.values = (kept.expand(batch, -1, -1, -1) for kept in (layer.keys, layer.values))
    return EncoderDecoderCache(DynamicCache(), cache)


class _Keeping:
    """A hook that stores an output under a name, and changes nothing."""

    def __init__(self, kept: dict[str, Tensor], name: str):
        self.kept, self.name = kept, name

    def __call__(self, output: Tensor) -> None:
        """Store the output."""
        self.kept[self.name] = output.detach()


def _projection(module: nn.Module, name: str) -> nn.Module:
    found = getattr(module, name, None)
    if not isinstance(found, nn.Module):
        raise UnsupportedModelError(
            f"{type(module).__name__}, the decoder's cross-attention, has no projection {name}; override "
            "attention_weights() in the family's adapter"
        )
    return found


def _softmax(queries: Tensor, keys: Tensor, heads: int, attended: int | None) -> Tensor:
    """Return the weights of a layer, (heads, K, S) float32 on the CPU, computed in float32 or a wider dtype.

    Args:
        queries: (K, D).
        keys: (S, D), or narrower if several heads share a key.
        heads: Number of query heads.
        attended: Number of positions that count; None: all.
    """
    exact = torch.promote_types(queries.dtype, torch.float32)
    width = queries.shape[-1] // heads
    q, k = (values.to(exact).unflatten(-1, (-1, width)).transpose(0, 1) for values in (queries, keys))
    k = k.repeat_interleave(heads // len(k), 0)
    with torch.autocast(queries.device.type, enabled=False):
        scores = (q * width**-0.5) @ k.to(q.device).transpose(1, 2)
    if attended is not None:
        scores[..., attended:] = -torch.inf
    return scores.softmax(-1).float().cpu()

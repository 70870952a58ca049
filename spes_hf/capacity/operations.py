"""How many floating-point operations a pass takes: counted while the real model runs on tensors without values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from spes_hf.adapters import Adapter, Target, Utterance, get_adapter
from spes_hf.adapters.loading import auto_class_of
from spes_hf.audio.load import Waveform
from spes_hf.capacity.passes import Passes
from spes_hf.demo import load_demo_model, load_tiny_model
from spes_hf.masking.draw import mask_key, uniform
from spes_hf.names import TINY_MODELS


@dataclass(frozen=True)
class Operations:
    """Floating-point operations per copy; a multiplication and an addition count as two.

    Attributes:
        encoder: Forward pass through the encoder.
        whole: Forward pass through encoder and decoder.
        backward: Backward pass through both, to the spectrogram, without gradients for the weights.
        decoder: Forward pass through the decoder, with cached keys and values of the encoder's output.
        heard: Forward pass through the decoder, with new keys and values from another encoder output.
        decoder_backward: Backward pass through the decoder, to the encoder's output.
    """

    encoder: int
    whole: int
    backward: int
    decoder: int
    heard: int
    decoder_backward: int

    @classmethod
    def count(cls, adapter: Adapter, utterance: Utterance, target: Target, weightless: Any = None) -> Operations:
        """Return the operations of a model.

        Args:
            adapter: The model's adapter.
            utterance: The input.
            target: The output.
            weightless: The mode in which a model without weights was created, `Weightless.mode`; None for a real model.
        """
        features = utterance.features[None].to(adapter.device)
        keep = torch.ones(1, len(target.context_ids), dtype=torch.bool, device=adapter.device)

        def of(run: Callable[[], Any]) -> int:
            with nullcontext() if weightless is None else weightless, FlopCounterMode(display=False) as counter:
                with torch.no_grad():
                    run()
            return int(counter.get_total_flops())

        def back(name: str, value: Any) -> int:
            with nullcontext() if weightless is None else weightless, torch.enable_grad():
                leaf = value.clone().requires_grad_()
                impact = adapter.logits(utterance, target, **{name: leaf}).float().log_softmax(-1).sum()
                with FlopCounterMode(display=False) as counter:
                    torch.autograd.grad(impact, leaf)
            return int(counter.get_total_flops())

        def known() -> Any:
            states = adapter.encoder_states(utterance.inputs)
            return states, adapter.cross_attention(utterance, target, states)

        with nullcontext() if weightless is None else weightless, torch.no_grad():
            states, cross = known()
        encoder = of(lambda: adapter.encoder_states(utterance.inputs))
        whole = of(lambda: adapter.logits(utterance, target, features=features))
        heard = of(lambda: adapter.logits(utterance, target, states=states))
        decoder = of(lambda: adapter.logits(utterance, target, token_keep=keep, states=states, cross=cross))
        return cls(encoder, whole, back("features", features), decoder, heard, back("states", states))

    def of(self, passes: Passes) -> int:
        """Return the operations of these passes, without generation."""
        names = ("whole", "backward", "decoder", "heard", "decoder_backward")
        return sum(getattr(self, name) * getattr(passes, name) for name in names)


@dataclass(frozen=True)
class Weightless:
    """A model at its full size with its real processor; its tensors have shapes but no values.

    Attributes:
        adapter: The model's adapter.
        mode: The mode in which it runs.
        bytes: Size of its weights at 16 bits each.
    """

    adapter: Adapter
    mode: Any
    bytes: int

    @classmethod
    def of(cls, config: Any, processor: Any) -> Weightless:
        """Return the model of a transformers configuration.

        Raises:
            UnsupportedModelError: If the family has no adapter.
        """
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        # "eager" computes attention with matrix products; torch does not count its own attention for CPUs.
        how: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
        with mode:
            model = auto_class_of(config).from_config(copy.deepcopy(config), **how).eval()  # from_config() modifies it
        return cls(get_adapter(model, processor), mode, 2 * sum(p.numel() for p in model.parameters()))

    @classmethod
    def load(cls, name: str) -> Weightless:
        """Return a model by name: from the Hub or a folder, without reading its weights, or a shipped model.

        Raises:
            OSError: If there is no such checkpoint.
        """
        from transformers import AutoConfig, AutoProcessor

        if name == "demo" or (name in TINY_MODELS and not Path(name).exists()):
            model, processor = load_demo_model() if name == "demo" else load_tiny_model(name)
            return cls.of(model.config, processor)
        return cls.of(AutoConfig.from_pretrained(name), AutoProcessor.from_pretrained(name))


def noise_of(adapter: Adapter, seconds: float) -> Waveform:
    """Return noise of this length in seconds, at the processor's rate."""
    count = round(seconds * adapter.sampling_rate)
    samples = uniform(mask_key(0, "", "noise"), 0, 1, count)[0]
    return Waveform((0.1 * (samples - 0.5)).astype(np.float32), adapter.sampling_rate, "noise")

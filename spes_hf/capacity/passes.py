"""How many copies an explanation runs through the model: its own plan, run with nothing behind it that costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spes_hf.adapters.positions import EncoderPositions
from spes_hf.adapters.types import Target, Utterance
from spes_hf.audio.load import Waveform
from spes_hf.masking.draw import mask_key, uniform
from spes_hf.methods import ExplainConfig
from spes_hf.methods.run import Problem
from spes_hf.plans import Found, run_plan
from spes_hf.runtime.batching import FoundSizes
from spes_hf.scoring.encoder import EncoderOutput
from spes_hf.scoring.evidence import Evidence
from spes_hf.scoring.objective import Objective

# Start and prompt tokens: as many as Whisper has.
PREFIX = 4

# The number of passes does not depend on how large the spectrogram is.
_FRAMES, _BINS, _FRAME_S = 24, 16, 0.01


@dataclass
class Passes:
    """How many copies run through the model for one utterance.

    Attributes:
        whole: Forwards through encoder and decoder.
        backward: Backwards through both.
        decoder: Forwards through the decoder, with the keys and values of the clean sound.
        heard: Forwards through the decoder, with another output of the encoder.
        decoder_backward: Backwards through the decoder alone.
        forward: All that the provenance counts as forward passes; `backward` is what it counts backwards.
    """

    whole: int = 0
    backward: int = 0
    decoder: int = 0
    heard: int = 0
    decoder_backward: int = 0
    forward: int = 0


def passes_of(config: ExplainConfig, tokens: int, over: str = "spectrogram", prefix: int = PREFIX) -> Passes:
    """Return the passes of an explanation of a text that was generated.

    An explanation may stop earlier, where the config asks for a reliability: all masks are counted.

    Args:
        config: Method and settings.
        tokens: K, how many tokens the model writes, the end-of-sequence token included.
        over: As for `spes_hf.explain`.
        prefix: How many start and prompt tokens come before them.
    """
    seconds = _FRAMES * _FRAME_S
    noise = uniform(mask_key(0, "", "noise"), 0, _FRAMES, _BINS)
    utterance = Utterance(
        Waveform(np.zeros(round(16_000 * seconds), dtype=np.float32), 16_000, "made up"),
        torch.from_numpy(noise).float(),
        {"input_features": torch.zeros(1, _FRAMES, _BINS, dtype=torch.float32, device="cpu")},
        torch.arange(_FRAMES, dtype=torch.float32, device="cpu") * _FRAME_S,
        torch.arange(_BINS, dtype=torch.float32, device="cpu"),
    )
    return dry_run(config, utterance, made_up_target(tokens, prefix), over)[0]


def made_up_target(tokens: int, prefix: int = PREFIX, token: int = 0) -> Target:
    """Return an output with these numbers of tokens.

    Args:
        tokens: K.
        prefix: How many start and prompt tokens come before them.
        token: Id of all of them.
    """
    ids = torch.full((prefix + tokens,), token, dtype=torch.int64, device="cpu")
    return Target(ids[:prefix], ids[prefix:], complete=True, audio_at=0)  # which only speech LLMs read


def dry_run(
    config: ExplainConfig, utterance: Utterance, target: Target, over: str = "spectrogram"
) -> tuple[Passes, Found]:
    """Return the passes of an explanation, and what is found where the model answers nothing of interest.

    Args:
        config: Method and settings.
        utterance: What is explained.
        target: Its output.
        over: As for `spes_hf.explain`.
    """
    config = config.with_impact_for(text_given=False)
    config.check_over(over)
    config = config.changed(**{name: None for name in ("target_reliability",) if getattr(config, name, None)})
    objective = _Counting(target)
    encoder = _EvenAttention(utterance, target, objective.states, objective.tokens)
    problem = Problem(utterance, target, torch.device("cpu"), 0, "", over=over, encoder_output=encoder)
    found = run_plan(config, problem, objective, None, FoundSizes(), progress=False)
    passes = objective.counted
    # The clean pass and the one without text; the one without sound. What reads the attention.
    passes.heard += 1 + encoder.passes
    passes.decoder += 1
    passes.whole += 1
    passes.forward, counted = found.passes.forward, found.passes.backward
    assert passes.backward == counted
    return passes, found


class _Counting(Objective):
    """Counts what is asked of the model, and answers with the mean of what it is given.

    Args:
        target: The output.
    """

    def __init__(self, target: Target):
        self.target, self.counted = target, Passes()
        self.states = torch.zeros(1, _FRAMES, 1, dtype=torch.float32, device="cpu")

    @property
    def valid(self) -> Tensor:
        """(K, J) bool: decoder input j comes before token k."""
        return self.target.valid

    @property
    def tokens(self) -> Sequence[Sequence[int]]:
        """Every token on its own."""
        return [(k,) for k in range(len(self.target.token_ids))]

    @property
    def logits_shape(self) -> tuple[int, int]:
        """Tokens, and a vocabulary of one."""
        return (len(self.target.token_ids), 1)

    def __call__(
        self,
        features: Tensor | None = None,
        token_keep: Tensor | None = None,
        states: Tensor | None = None,
        every: bool = False,
        encoded: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the mean of each input as the impact on every token, (B, K)."""
        given: Tensor | None
        if features is not None:
            self.counted.whole += len(features)
            given = features
            if encoded is not None:
                given = encoded(features.detach().flatten(1)[..., None])
                given.register_hook(self._count_decoder)
            elif features.requires_grad:
                features.register_hook(self._count)
        elif states is not None:
            self.counted.heard += len(states)
            given = states
        else:
            assert token_keep is not None
            self.counted.decoder += len(token_keep)
            given = token_keep
        return given.float().flatten(1).mean(1)[:, None].expand(-1, len(self.target.token_ids))

    def _count(self, gradient: Tensor) -> None:
        self.counted.backward += len(gradient)

    def _count_decoder(self, gradient: Tensor) -> None:
        self.counted.decoder_backward += len(gradient)

    def evidence(self, fill: Any) -> Evidence:
        """Return no evidence."""
        tokens = len(self.target.token_ids)
        return Evidence(*(torch.zeros(tokens, dtype=torch.float32, device="cpu") for _ in range(3)))


class _EvenAttention(EncoderOutput):
    """An encoder's output that all tokens attend to evenly; reading the attention is a pass, as it is of a model."""

    def __init__(self, utterance: Utterance, target: Target, states: Tensor, tokens: Sequence[Sequence[int]]):
        nobody: Any = None
        super().__init__(nobody, utterance, target, states, tokens)

    @property
    def positions(self) -> EncoderPositions:
        """A position for every other frame."""
        return EncoderPositions.on_frames(self._utterance.times, 2, 0.0, (len(self._utterance.times) + 1) // 2)

    @property
    def alignment_heads(self) -> tuple[tuple[int, int], ...] | None:
        """The first head."""
        return ((0, 0),)

    @property
    def token_attention(self) -> Tensor:
        """(layers, heads, tokens, S) with more layers and heads than a config names."""
        self.passes += 1
        shape = (1, 1, len(self._target.token_ids), len(self.positions))
        return torch.full(shape, 1 / shape[-1], dtype=torch.float32, device="cpu").expand(128, 128, -1, -1)

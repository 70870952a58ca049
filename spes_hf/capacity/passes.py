"""How many copies an explanation runs through the model: its real plan is run against a stand-in that only counts."""

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

# Number of start and prompt tokens, as in Whisper.
PREFIX = 4

# The number of passes does not depend on the size of the spectrogram.
_FRAMES, _BINS, _FRAME_S = 24, 16, 0.01


@dataclass
class Passes:
    """How many copies run through the model for one utterance.

    Attributes:
        whole: Forward passes through encoder and decoder.
        backward: Backward passes through both.
        decoder: Forward passes through the decoder, with the keys and values of the clean sound.
        heard: Forward passes through the decoder, with another encoder output.
        decoder_backward: Backward passes through the decoder alone.
        forward: All passes that the provenance counts as forward; it counts `backward` as backward passes.
    """

    whole: int = 0
    backward: int = 0
    decoder: int = 0
    heard: int = 0
    decoder_backward: int = 0
    forward: int = 0


def passes_of(config: ExplainConfig, tokens: int, over: str = "spectrogram", prefix: int = PREFIX) -> Passes:
    """Return the passes of an explanation of a generated text.

    If the config sets a target reliability, the explanation may stop earlier; here all masks are counted.

    Args:
        config: Method and settings.
        tokens: K, the number of tokens the model writes, including the end-of-sequence token.
        over: As for `spes_hf.explain`.
        prefix: Number of start and prompt tokens before them.
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
    """Return an output with this many tokens.

    Args:
        tokens: K.
        prefix: Number of start and prompt tokens before them.
        token: Id of all of them.
    """
    ids = torch.full((prefix + tokens,), token, dtype=torch.int64, device="cpu")
    return Target(ids[:prefix], ids[prefix:], complete=True, audio_at=0)  # only speech LLMs read audio_at


def dry_run(
    config: ExplainConfig, utterance: Utterance, target: Target, over: str = "spectrogram"
) -> tuple[Passes, Found]:
    """Return the passes of an explanation, and its result, which is meaningless but has the right shapes.

    Args:
        config: Method and settings.
        utterance: The input to explain.
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
    # heard: the clean pass and any that read the attention; decoder: the pass without text; whole: without sound.
    passes.heard += 1 + encoder.passes
    passes.decoder += 1
    passes.whole += 1
    passes.forward, counted = found.passes.forward, found.passes.backward
    assert passes.backward == counted
    return passes, found


class _Counting(Objective):
    """Counts the passes that the model would run, and returns the mean of each input.

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
        """(K, 1): the tokens, and a vocabulary of one."""
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
    """An encoder output that all tokens attend to evenly; reading the attention counts as a pass, as with a model."""

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
        """(layers, heads, tokens, S), with more layers and heads than any config names."""
        self.passes += 1
        shape = (1, 1, len(self._target.token_ids), len(self.positions))
        return torch.full(shape, 1 / shape[-1], dtype=torch.float32, device="cpu").expand(128, 128, -1, -1)

"""What is explained: every token that a model wrote, or its words compared with a foil."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from spes_hf.adapters.base import Adapter
from spes_hf.adapters.types import Target, Utterance
from spes_hf.finite import not_finite
from spes_hf.masking.perturbations import fill_values
from spes_hf.runtime.transfer import on_device
from spes_hf.scoring.contrast import Contrast, ContrastReader, Odds, check_odds
from spes_hf.scoring.evidence import Evidence, measure_evidence, without, without_text
from spes_hf.scoring.impact import Impact, make_impact


class Objective(ABC):
    """Runs the model on perturbed input and returns the impact on each of R rows of the explanation.

    Attributes:
        signed: Whether a negative impact counts against the row, so that maps need a zero.
        passes: Passes in addition to those under masks: clean, without sound, without text, and without the instruction
            if there is one.
    """

    signed: bool = False
    passes: int = 3
    states: Tensor
    """(1, S, D) the encoder's output for the clean sound."""

    @property
    @abstractmethod
    def valid(self) -> Tensor:
        """(R, J) bool: decoder input j comes before row r."""

    @property
    @abstractmethod
    def tokens(self) -> Sequence[Sequence[int]]:
        """For every row, the indices of the output tokens that it is about."""

    @property
    @abstractmethod
    def logits_shape(self) -> tuple[int, int]:
        """Shape of the logits of one copy: tokens and vocabulary size."""

    @abstractmethod
    def __call__(
        self,
        features: Tensor | None = None,
        token_keep: Tensor | None = None,
        states: Tensor | None = None,
        every: bool = False,
        encoded: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the impacts, (B, R) float32, of perturbed input.

        Args:
            features: (B, T, C) spectrograms.
            token_keep: (B, J) which decoder inputs to keep.
            states: (B, S, D) the encoder's output, instead of features.
            every: Whether to return the impacts on all output tokens, explained or not.
            encoded: Receives the encoder's output for the features, (B, S, D), without a graph, and returns the states
                that the decoder reads instead.
        """

    @abstractmethod
    def evidence(self, fill: Any) -> Evidence:
        """Return the evidence from the whole sound, and from the whole written text, for each row."""


class TokenObjective(Objective):
    """How far the distribution of every explained token moves (§4.2).

    Args:
        adapter: The model's adapter.
        utterance: The model's input.
        target: The model's output.
        impact: A name in `spes_hf.scoring.impact.IMPACTS`.
        dtype: The model's dtype, for error messages.
        rows: Indices of the tokens to explain; None: all.
        states: (1, S, D) the encoder's output if generation kept it; None: computed here.
    """

    def __init__(
        self,
        adapter: Adapter,
        utterance: Utterance,
        target: Target,
        impact: str,
        dtype: torch.dtype,
        rows: Sequence[int] | None = None,
        states: Tensor | None = None,
    ):
        self.adapter, self.utterance, self.target = adapter, utterance, target
        self.passes += bool(target.instruction)
        self.rows: slice | Tensor | None = None
        if rows is not None:  # usually contiguous: then use a view, which saves copying most logits in every pass
            first, stop = min(rows), max(rows) + 1
            whole = len(rows) == stop - first
            self.rows = slice(first, stop) if whole else torch.tensor(list(rows), dtype=torch.int64, device="cpu")
        with torch.no_grad():
            self.states = adapter.encoder_states(utterance.inputs) if states is None else states
            self.reference = adapter.logits(utterance, target, states=self.states)[0]
            self.cross = adapter.cross_attention(utterance, target, self.states)
        ids = self._chosen(target.token_ids.to(adapter.device))
        self._name, self._dtype = impact, dtype
        self.impact = make_impact(impact, self._chosen(self.reference), ids, dtype)

    def _chosen(self, values: Tensor, axis: int = 0) -> Tensor:
        """Return the values of the explained tokens, from values with one entry per token along an axis."""
        if self.rows is None:
            return values
        rows = self.rows if isinstance(self.rows, slice) else on_device(self.rows, values.device)
        return values[(slice(None),) * axis + (rows,)]

    @property
    def valid(self) -> Tensor:
        """(K, J) bool: decoder input j comes before token k."""
        return self._chosen(self.target.valid)

    @property
    def tokens(self) -> Sequence[Sequence[int]]:
        """Every explained token on its own."""
        every = torch.arange(len(self.target.token_ids), dtype=torch.int64, device="cpu")
        return [(k,) for k in self._chosen(every).tolist()]

    @property
    def logits_shape(self) -> tuple[int, int]:
        """Number of tokens that the model wrote, explained or not, and V."""
        return (self.reference.shape[0], self.reference.shape[1])

    def __call__(
        self,
        features: Tensor | None = None,
        token_keep: Tensor | None = None,
        states: Tensor | None = None,
        every: bool = False,
        encoded: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the impacts on the K tokens, (B, K)."""
        if features is not None and encoded is not None:
            with torch.no_grad():  # the decoder's input is detached from the graph anyway
                states = self.adapter.encoder_states(self.adapter.model_inputs(self.utterance, features))
            states, features = encoded(states), None
        known = (self.states, self.cross) if states is None else (states, None)
        logits = self.adapter.logits(self.utterance, self.target, features, token_keep, *known)
        return self._every(logits) if every else self.impact(self._chosen(logits, axis=1))

    @cached_property
    def _every(self) -> Impact:
        """The measure of the impacts on all output tokens."""
        if self.rows is None:
            return self.impact
        return make_impact(self._name, self.reference, self.target.token_ids.to(self.adapter.device), self._dtype)

    def evidence(self, fill: Any) -> Evidence:
        """Return the evidence from sound and text for each token."""
        found = measure_evidence(
            self.adapter, self.utterance, self.target, self.reference, fill, self.states, self.cross
        )
        if self.rows is None:
            return found
        probabilities, sound, text = map(self._chosen, (found.probabilities, found.sound_bits, found.text_bits))
        instruction = None if found.instruction_bits is None else self._chosen(found.instruction_bits)
        return Evidence(probabilities, sound, text, instruction, all_sound_bits=found.sound_bits)


class ContrastObjective(Objective):
    """How far the model moves from its own words towards a foil (Conti et al., 2025).

    Args:
        adapter: The model's adapter.
        utterance: The model's input.
        target: The model's output.
        contrasts: C contrasts.
        impact: A name in `spes_hf.scoring.contrast.CONTRASTS`.
        word_probability: A name in `spes_hf.scoring.contrast.WORD_PROBABILITIES`.
        dtype: The model's dtype, for error messages.
        states: (1, S, D) the encoder's output if generation kept it; None: computed here.

    Raises:
        NumericsError: If the model finds target or foil impossible, or its logits are NaN.
    """

    signed = True

    def __init__(
        self,
        adapter: Adapter,
        utterance: Utterance,
        target: Target,
        contrasts: Sequence[Contrast],
        impact: str = "log-odds",
        word_probability: str = "word-boundary",
        dtype: torch.dtype = torch.float32,
        states: Tensor | None = None,
    ):
        self.adapter, self.utterance, self.target = adapter, utterance, target
        self.passes += bool(target.instruction)
        self.contrasts, self.impact, self.dtype = tuple(contrasts), impact, dtype
        with torch.no_grad():
            self.states = states = adapter.encoder_states(utterance.inputs) if states is None else states
            cross = adapter.cross_attention(utterance, target, states)
            self.reader = ContrastReader(adapter, utterance, target, self.contrasts, word_probability, states, cross)
            self.odds: Odds = check_odds(self.reader.odds(), "log-probabilities of target and foil", dtype)
        self.clean = self.odds.score(impact)

    @property
    def valid(self) -> Tensor:
        """(C, J) bool: decoder input j comes before target and foil."""
        inputs = torch.arange(len(self.target.context_ids), dtype=torch.int64, device="cpu")
        starts = torch.tensor([c.start for c in self.contrasts], dtype=torch.int64, device="cpu")
        return inputs < len(self.target.prefix_ids) + starts[:, None]

    @property
    def tokens(self) -> Sequence[Sequence[int]]:
        """The target's own tokens; if it has none, the token that the model wrote in that place."""
        last = len(self.target.token_ids) - 1  # a foil may continue where a limit cut the output
        return [contrast.tokens or (min(contrast.start, last),) for contrast in self.contrasts]

    @property
    def logits_shape(self) -> tuple[int, int]:
        """Tokens of all targets and foils, and vocabulary size."""
        return self.reader.logits_shape

    def __call__(
        self,
        features: Tensor | None = None,
        token_keep: Tensor | None = None,
        states: Tensor | None = None,
        every: bool = False,
        encoded: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the drops of the score, (B, C).

        Raises:
            NumericsError: If the logits do not form a distribution.
        """
        impact = self.clean - self.reader.odds(features, token_keep, states).score(self.impact)
        if impact.device.type == "cpu" and not bool(impact.detach().isfinite().all()):
            raise not_finite("logits under masks", self.dtype)
        return impact

    @property
    def measured(self) -> tuple[Contrast, ...]:
        """The contrasts with the probabilities that the model gives target and foil."""
        target, foil = (values[0].double() / math.log(2) for values in (self.odds.target, self.odds.foil))
        measured = zip(self.contrasts, target.tolist(), foil.tolist(), strict=True)
        return tuple(replace(contrast, target_log2=t, foil_log2=f) for contrast, t, f in measured)

    def bits(self, features: Tensor | None = None, token_keep: Tensor | None = None) -> Tensor:
        """Return the log-odds of target against foil for perturbed input, (B, C) in bits."""
        with torch.no_grad():
            return self.reader.odds(features, token_keep).bits

    def evidence(self, fill: Any) -> Evidence:
        """Return the probabilities of the targets, and the bits of their log-odds that sound and text contributed."""
        features, device = self.utterance.features, self.adapter.device
        silence = fill_values(fill, features).expand_as(features)[None].to(device)
        own, instruction = self.odds.bits[0], None
        sound = own - self.bits(features=silence)[0]
        text = own - self.bits(token_keep=without_text(self.target, device))[0]
        if self.target.instruction:
            keep = without(self.target.instruction, self.target, device)
            instruction = (own - self.bits(token_keep=keep)[0]).float().cpu()
        return Evidence(self.odds.target[0].exp().float().cpu(), sound.float().cpu(), text.float().cpu(), instruction)

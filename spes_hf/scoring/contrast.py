"""Why this and not that: how much likelier a model finds its own words than an alternative in the same place.

Conti et al., "The Unheard Alternative" (BlackboxNLP 2025, arXiv 2509.26543), for any words of any model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from spes_hf.adapters.base import Adapter
from spes_hf.adapters.types import Target, Utterance
from spes_hf.finite import allowed, not_finite
from spes_hf.runtime.transfer import on_device

CONTRASTS = ("log-odds", "difference", "relative")
"""Impacts of a contrast: the drop of log2 p(target)/p(foil), of p(target) − p(foil), of p(target)/(p(target)+p(foil)).

The first is in bits; the other two are the scorers of the paper."""

WORD_PROBABILITIES = ("word-boundary", "chain", "length-normalised")
"""Probability of a word: its tokens and a word end after them; its tokens; the geometric mean of its tokens."""

NOTHING = "(nothing)"


@dataclass(frozen=True)
class Contrast:
    """What a model wrote at one place, and what it could have written there instead.

    Target and foil share the text before them. If one of the two has no words, the next word that both texts share, or
    the end, is added to both: the model wrote "the the cat" and not "the cat".

    Attributes:
        target: The words that the model wrote; "(nothing)" if it wrote none.
        foil: The words that it did not write; "(nothing)" if there are none.
        start: Index, among the explained tokens, of the first token of both.
        target_ids: Tokens of the target.
        foil_ids: Tokens of the foil.
        words_end: Whether both are words, which end after their tokens; false for single tokens and at the end of the
            output.
        tokens: Indices of the explained tokens that make up the target's own words; empty if it has none.
        question: Index of the foil that the contrast belongs to, if there are several.
        target_log2: log2 of the probability that the model gives the target; NaN if it was not measured.
        foil_log2: The same for the foil.

    Examples:
        >>> contrast = Contrast("country", "county", 0, (5,), (6,), target_log2=-1.0, foil_log2=-4.0)
        >>> contrast.name, contrast.log_odds, contrast.swapped().log_odds
        ('country, not county', 3.0, -3.0)
    """

    target: str
    foil: str
    start: int
    target_ids: tuple[int, ...]
    foil_ids: tuple[int, ...]
    words_end: bool = True
    tokens: tuple[int, ...] = ()
    question: int = 0
    target_log2: float = math.nan
    foil_log2: float = math.nan

    @property
    def log_odds(self) -> float:
        """log2 of how much likelier the model finds the target than the foil; below 0, it prefers the foil."""
        return self.target_log2 - self.foil_log2

    @property
    def name(self) -> str:
        """The contrast in words: "country, not county"."""
        return f"{self.target}, not {self.foil}"

    def swapped(self) -> Contrast:
        """Return the contrast with target and foil swapped; its text is the foil's."""
        own = tuple(range(self.start, self.start + len(self.foil_ids)))
        return Contrast(
            self.foil,
            self.target,
            self.start,
            self.foil_ids,
            self.target_ids,
            self.words_end,
            own,
            self.question,
            self.foil_log2,
            self.target_log2,
        )


@dataclass(frozen=True)
class Odds:
    """How likely a model finds target and foil of every contrast.

    Attributes:
        target: (B, C) natural logarithm of the probability of the target.
        foil: (B, C) the same for the foil.

    Examples:
        >>> odds = Odds(torch.tensor([[0.8]]).log(), torch.tensor([[0.2]]).log())
        >>> round(odds.bits.item(), 2), round(odds.score("difference").item(), 2)
        (2.0, 0.6)
    """

    target: Tensor
    foil: Tensor

    @property
    def bits(self) -> Tensor:
        """(B, C) log2 of how much likelier the target is than the foil; below 0, the foil is likelier."""
        return (self.target - self.foil) / math.log(2)

    def score(self, contrast: str) -> Tensor:
        """Return the score with a name from `CONTRASTS`, (B, C)."""
        if contrast == "log-odds":
            return self.bits
        if contrast == "difference":
            return self.target.exp() - self.foil.exp()
        return (self.target - self.foil).sigmoid()


@dataclass
class ContrastReader:
    """Measures how likely a model finds the targets and the foils of some contrasts.

    The sound is encoded once for all contrasts; each distinct pair of preceding text and tokens takes a decoder pass. A
    foil with one difference takes one pass through the encoder and two through the decoder.

    Args:
        adapter: The model's adapter.
        utterance: The model's input.
        target: The model's output.
        contrasts: C contrasts.
        word_probability: A name in `WORD_PROBABILITIES`.
        states: (1, S, D) the encoder's output for the clean sound.
        cross: Return value of `Adapter.cross_attention` for these states.

    Examples:
        >>> why = explain(model, processor, clip, config=SpesConfig.fast(), foil={"picture": "garden"})
        >>> from spes_hf.audio.load import load_audio
        >>> adapter = get_adapter(model, processor)
        >>> utterance = adapter.encode(load_audio(clip, adapter.sampling_rate))
        >>> target = adapter.encode_text(utterance, ex.text, adapter.options_of())
        >>> bits = ContrastReader(adapter, utterance, target, why.contrasts).odds().bits.item()
        >>> abs(bits - why.contrasts[0].log_odds) < 0.01
        True
    """

    adapter: Adapter
    utterance: Utterance
    target: Target
    contrasts: Sequence[Contrast]
    word_probability: str = "word-boundary"
    states: Tensor | None = None
    cross: Any = None
    _ends: Tensor | None = field(default=None, init=False, repr=False)

    def odds(
        self, features: Tensor | None = None, token_keep: Tensor | None = None, states: Tensor | None = None
    ) -> Odds:
        """Return how likely the model finds targets and foils.

        Args:
            features: (B, T, C) perturbed spectrograms on the model's device; None: the clean one.
            token_keep: (B, J) which decoder inputs to keep; None: all. Tokens of target and foil are always kept.
            states: (B, S, D) the encoder's output; None: the output for the features, or else for the clean sound.
        """
        cross = self.cross if states is None else None
        states = self.states if states is None else states
        if features is not None:
            inputs = self.adapter.model_inputs(self.utterance, features)
            states, cross = self.adapter.encoder_states(inputs), None
        found: dict[tuple[Any, ...], Tensor] = {}
        for key in self._runs():
            if key not in found:
                found[key] = self._log_probability(*key, states, cross, token_keep)
        each = [found[key] for key in self._runs()]
        return Odds(torch.stack(each[::2], dim=1), torch.stack(each[1::2], dim=1))

    @property
    def logits_shape(self) -> tuple[int, int]:
        """Shape of the logits of one copy: tokens of all targets and foils, and vocabulary size."""
        tokens = sum(start + len(ids) + 1 for start, ids, _ in set(self._runs()))
        return tokens, self.adapter.vocabulary_size

    def _runs(self) -> Iterator[tuple[int, tuple[int, ...], bool]]:
        """Yield start, tokens and whether the word's end counts, in the order target, foil, target, foil, …."""
        bounded = self.word_probability == "word-boundary"
        for contrast in self.contrasts:
            for ids in (contrast.target_ids, contrast.foil_ids):
                yield contrast.start, ids, contrast.words_end and bounded

    def _log_probability(
        self,
        start: int,
        ids: tuple[int, ...],
        word_ends: bool,
        states: Tensor | None,
        cross: Any,
        token_keep: Tensor | None,
    ) -> Tensor:
        """Return log p of these tokens after the first ``start`` explained tokens, (B,) float32."""
        own = torch.tensor(ids, dtype=torch.int64, device="cpu")
        # The last token is not a decoder input; if the word's end counts, one more position is needed.
        tail = [own, own[-1:]] if word_ends else [own]
        text = replace(self.target, token_ids=torch.cat([self.target.token_ids[:start], *tail]), complete=True)
        if token_keep is not None:
            # If a limit cut the output, its last token is not a unit, but precedes what follows it.
            before = token_keep[:, : len(self.target.prefix_ids) + start]
            rest = before.new_ones(len(before), len(text.context_ids) - before.shape[1])
            token_keep = torch.cat([before, rest], dim=1)
        logits = self.adapter.logits(self.utterance, text, token_keep=token_keep, states=states, cross=cross)[:, start:]
        log_p = allowed(logits).float().log_softmax(-1)
        own = on_device(own, log_p.device).expand(len(log_p), -1)
        chosen = log_p[:, : len(ids)].gather(-1, own[..., None]).squeeze(-1)
        total = chosen.mean(1) if self.word_probability == "length-normalised" else chosen.sum(1)
        if word_ends:
            total = total + log_p[:, len(ids)][:, self._word_ends(log_p)].logsumexp(-1)
        return total

    def _word_ends(self, logits: Tensor) -> Tensor:
        """Return the tokens that show that the word before them is complete."""
        if self._ends is None:
            ends = self.adapter.word_ends(logits.shape[-1])
            self._ends = ends.nonzero()[:, 0].to(logits.device)
        return self._ends


def check_odds(odds: Odds, what: str, dtype: torch.dtype) -> Odds:
    """Return the odds if they are finite.

    Raises:
        NumericsError: If they are not finite.

    Examples:
        >>> check_odds(Odds(torch.tensor([[-1.0]]), torch.tensor([[-2.0]])), "the odds", torch.float32).foil.tolist()
        [[-2.0]]
        >>> check_odds(Odds(torch.tensor([[torch.nan]]), torch.tensor([[-2.0]])), "the odds", torch.float32)
        Traceback (most recent call last):
            ...
        spes_hf.errors.NumericsError: ...
    """
    if not bool(odds.target.isfinite().all() and odds.foil.isfinite().all()):
        raise not_finite(what, dtype)
    return odds

"""What a method plans: runs of the model under masks, each turned into maps; or maps that need no run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from spes_hf.adapters.types import Target, Utterance
from spes_hf.errors import ConfigError, UnsupportedModelError
from spes_hf.explanation.maps import EncoderMap, PatchMap, Reliability, split_half
from spes_hf.finite import check_finite
from spes_hf.masking.draw import mask_key
from spes_hf.masking.perturbations import Masks, Perturbation
from spes_hf.runtime.batching import Batch
from spes_hf.runtime.ranks import ALONE, Ranks, SumsOf
from spes_hf.scoring.encoder import EncoderOutput
from spes_hf.scoring.eq3 import PerturbationEstimator
from spes_hf.scoring.scores import UnitScores

# Points at which a run may end if it has reached the target reliability, as shares of its masks.
STAGES = (1 / 8, 1 / 4, 1 / 2, 1)


@dataclass(frozen=True)
class Problem:
    """One utterance, its output and the seed: everything that a plan depends on apart from the config.

    Attributes:
        utterance: The utterance.
        target: The output to explain.
        device: Device of the model.
        seed: The user's seed.
        utterance_id: Unique id of the utterance within its corpus.
        differentiable: Whether gradients flow through the whole model.
        dtype: The model's dtype.
        rows: (K, J) bool: decoder input j comes before row k of the explanation; None: rows are the explained tokens.
        signed: Whether a negative impact counts against a row, so that scores need a zero.
        explained: Indices of the explained tokens in the output, if only some are explained; else None.
        over: "encoder" for a map of the encoder's output in addition to that of the "spectrogram".
        sentence: Indices of the tokens that the sentence's map covers: all except timestamps; None: all.
        encoder_output: The encoder's output and the decoder's attention to it; None if they are not available.
        ranks: The processes that share its masks.

    Examples:
        >>> from spes_hf.audio.load import load_audio
        >>> adapter = get_adapter(model, processor)
        >>> utterance = adapter.encode(load_audio(clip, 16_000))
        >>> target = adapter.encode_text(utterance, "Tom sells a small picture.", adapter.options_of())
        >>> problem = Problem(utterance, target, adapter.device, seed=0, utterance_id="one")
        >>> problem.tokens == len(target.token_ids), problem.key("token") == problem.key("patches")
        (True, False)
    """

    utterance: Utterance
    target: Target
    device: torch.device
    seed: int
    utterance_id: str
    differentiable: bool = True
    dtype: torch.dtype = torch.float32
    rows: Tensor | None = None
    signed: bool = False
    explained: Sequence[int] | None = None
    over: str = "spectrogram"
    sentence: Sequence[int] | None = None
    encoder_output: EncoderOutput | None = None
    ranks: Ranks = ALONE

    @property
    def encoder(self) -> EncoderOutput:
        """The encoder's output, its positions in time, and the decoder's attention to it.

        Raises:
            ConfigError: If the problem was created without them.
        """
        if self.encoder_output is None:
            raise ConfigError("encoder_output is None, but the method reads the encoder's output; pass it to Problem")
        return self.encoder_output

    @property
    def tokens(self) -> int:
        """K, the number of rows: explained tokens, or contrasts."""
        return len(self.valid)

    @property
    def valid(self) -> Tensor:
        """(K, J) bool: decoder input j comes before row k."""
        return self.target.valid if self.rows is None else self.rows

    @property
    def every(self) -> int:
        """Number of output tokens, explained or not; for contrasts, the number of rows."""
        return self.tokens if self.explained is None else len(self.target.token_ids)

    def key(self, stream: str) -> int:
        """Return the key of a stream of masks."""
        return mask_key(self.seed, self.utterance_id, stream)

    def eq3(self, levels: int = 1) -> PerturbationEstimator:
        """Return an estimator of Eq. 3 with this number of levels of units."""
        return PerturbationEstimator(levels, centred=self.signed)

    def require_gradients(self, what: str, remedy: str) -> None:
        """Refuse a model through which gradients do not flow.

        Args:
            what: What needs gradients, for the message.
            remedy: What to use instead, for the message.

        Raises:
            UnsupportedModelError: If gradients do not flow through the model.
        """
        if not self.differentiable:
            raise UnsupportedModelError(
                f"{what}, but no gradients flow through the model, since some weights are quantised or were created in "
                f"inference mode; {remedy}, or load the model in float32, float16 or bfloat16"
            )


@dataclass(frozen=True)
class Maps:
    """Results of a method, complete or partial; parts from several steps are merged. `REQUIRED` lists what is needed.

    Attributes:
        audio: Map of the spectrogram for every token.
        sound_impact: (K,) impact of the average mask that hides sound; NaN without such masks.
        sentence: Map of the spectrogram for the sentence, if the method measures it separately.
        reliability: Reliability of the audio map.
        token: (K, J) float32 raw scores of the decoder inputs; NaN where j is not yet generated.
        text_impact: (K,) impact of the average mask that hides a written token and no sound; NaN without such masks.
        encoder: Map of the encoder's output, if requested.

    Examples:
        >>> merged = Maps.merged([Maps(token=torch.ones(1, 2)), Maps(text_impact=torch.tensor([0.5]))])
        >>> [name for name in Maps.REQUIRED if getattr(merged, name) is None]  # what another step must add
        ['audio', 'sound_impact', 'reliability']
    """

    REQUIRED: ClassVar[tuple[str, ...]] = ("audio", "sound_impact", "reliability", "token", "text_impact")

    audio: PatchMap | None = None
    sound_impact: Tensor | None = None
    sentence: PatchMap | None = None
    reliability: Reliability | None = None
    token: Tensor | None = None
    text_impact: Tensor | None = None
    encoder: EncoderMap | None = None

    @classmethod
    def of_sound(cls, audio: PatchMap, problem: Problem) -> Maps:
        """Return a finished map of the spectrogram that was made without masks."""
        unknown = torch.full((problem.tokens,), torch.nan, dtype=torch.float32, device="cpu")
        return cls(audio=audio, sound_impact=unknown, reliability=Reliability.unknown(problem.tokens))

    @classmethod
    def of_tokens(cls, scores: Tensor, problem: Problem) -> Maps:
        """Return a finished map of the decoder inputs, (K, J), that was made without masks."""
        unknown = torch.full((len(scores),), torch.nan, dtype=torch.float32, device="cpu")
        return cls(token=scores.float().masked_fill(~problem.valid, torch.nan), text_impact=unknown)

    @staticmethod
    def merged(parts: Iterable[Maps]) -> Maps:
        """Return the merged maps of several steps."""
        found = (((f.name, getattr(part, f.name)) for f in fields(part)) for part in parts)
        return Maps(**{name: value for part in found for name, value in part if value is not None})


class ImpactOf(Protocol):
    """A function that runs the model for a step."""

    def __call__(self, masks: Any, apply: Callable[[Any], dict[str, Tensor]], **how: Any) -> Tensor:
        """Return the impacts, (B, K), under masks.

        Args:
            masks: Input of ``apply``.
            apply: Turns the masks into keyword arguments of `Adapter.logits`.
            **how: Further arguments of `spes_hf.scoring.objective.Objective`: ``every``, ``encoded``.
        """


class Step(Protocol):
    """A part of a method that runs the model, usually a `Run`."""

    @property
    def passes(self) -> int:
        """Number of planned passes, forwards and backwards."""

    @property
    def differentiates(self) -> bool:
        """Whether backward passes follow the forward passes, which must then keep their intermediate results."""

    def run(self, impact_of: ImpactOf, batch: Batch) -> Iterator[int]:
        """Run the model as often as needed; yield the number of passes done, batch by batch."""

    def maps(self, dtype: torch.dtype) -> Maps:
        """Return the resulting maps.

        Args:
            dtype: The model's dtype, for error messages.
        """


class Estimator(Protocol):
    """Observes a run and computes scores of units from its impacts."""

    differentiates: bool
    every: bool
    """Whether it needs the impacts on all output tokens, explained or not."""

    def backward_passes(self, level: int, rows: range) -> int:
        """Return the number of backward passes for these rows of a level."""

    def parts(self, level: int, rows: range) -> Sequence[range]:
        """Divide the rows of a level into parts that can run through the model together."""

    def update(self, masks: Masks, impact_of: Callable[[Masks], Tensor]) -> None:
        """Run the model under these masks and add the results."""

    def replace_sums(self, by: SumsOf) -> None:
        """Replace the sums over masks with the result of a function of them, such as the totals over processes."""

    def scores(self) -> UnitScores:
        """Return the scores from all masks."""

    def half(self, index: int) -> UnitScores:
        """Return the scores from one half of the masks, as in `Masks.halves`."""


@dataclass(frozen=True)
class Goal:
    """When a run may end early.

    Attributes:
        reliability: Reliability of the sentence's map at which the run may end.
        least_masks: Minimum number of masks before the run may end.

    Examples:
        >>> Goal(reliability=0.9)  # reached after any number of masks
        Goal(reliability=0.9, least_masks=0)
    """

    reliability: float
    least_masks: int = 0


@dataclass(frozen=True)
class Run:
    """A `Step` made of a perturbation, an estimator that observes it, and a function that reads its scores.

    Attributes:
        perturbation: Draws the masks and applies them.
        estimator: Accumulates the impacts.
        read: Turns the scores of units into maps.
        goal: When the run may end early; None: all masks are used.

    Examples:
        >>> from spes_hf.masking.perturbations import TokenPerturbation
        >>> from spes_hf.scoring.eq3 import PerturbationEstimator
        >>> masks = TokenPerturbation(units=6, key=1, mask_prob=0.4, num_masks=40, device=torch.device("cpu"))
        >>> run = Run(masks, PerturbationEstimator(levels=1), read=lambda scores: Maps(token=scores.values[0]))
        >>> run.passes, run.differentiates  # one forward pass for each mask
        (40, False)
    """

    perturbation: Perturbation
    estimator: Estimator
    read: Callable[[UnitScores], Maps]
    goal: Goal | None = None

    @property
    def passes(self) -> int:
        """Number of planned passes, forwards and backwards."""
        return sum(self._passes(level, self.perturbation.rows(level)) for level in self._levels)

    @property
    def differentiates(self) -> bool:
        """Whether backward passes follow the forward passes."""
        return self.estimator.differentiates

    def run(self, impact_of: ImpactOf, batch: Batch) -> Iterator[int]:
        """Show the estimator every mask, level by level and batch by batch; yield the number of passes done.

        Processes that work together share the masks, and sum their results after every stage.
        """
        impact_under = partial(impact_of, apply=self.perturbation.apply, every=getattr(self.estimator, "every", False))

        def show(level: int, rows: range) -> None:
            self.estimator.update(self.perturbation.draw(level, rows), impact_under)

        ranks, adds_up = batch.ranks, batch.ranks.count > 1
        for number, stage in enumerate(self._stages(ranks)):
            if adds_up and number:
                self.estimator.replace_sums(ranks.only_first)
            for level, rows in enumerate(stage):
                room = 0  # left in the batch, which may span parts
                for part in ranks.share(self.estimator.parts(level, rows), turn=level + number):
                    while part:
                        room = room or batch.size
                        some, part = part[:room], part[room:]
                        room -= len(some)
                        for done in batch.over(some, partial(show, level)):
                            yield self._passes(level, done)
            if adds_up:
                self.estimator.replace_sums(ranks.total)

    def maps(self, dtype: torch.dtype) -> Maps:
        """Return the maps from the scores of all masks, with their reliability.

        Raises:
            NumericsError: If scores are NaN or infinite.
        """
        scores = self.estimator.scores()
        # Without gradients, the impact is NaN if nothing was perturbed.
        kept = scores.values if scores.sentence is None else (*scores.values, scores.sentence, scores.mean_impact)
        check_finite(kept, "impacts, or their gradients,", dtype)
        maps = self.read(scores)
        return maps if maps.audio is None else replace(maps, reliability=self._reliability())

    def _reliability(self) -> Reliability:
        """Return the split-half reliability of the maps from the masks so far."""
        one, other = (self.read(self.estimator.half(i)) for i in (0, 1))
        if one.audio is None or other.audio is None:
            raise ConfigError(
                "read returns no map of the spectrogram, but the goal asks for its reliability; leave goal out"
            )
        found = split_half(one.audio, other.audio)
        if one.sentence is None or other.sentence is None:
            return found
        return replace(found, sentence=split_half(one.sentence, other.sentence).sentence)

    def _stages(self, ranks: Ranks) -> Iterator[list[range]]:
        """Yield the rows of each level, stage by stage, until the sentence's map has reached the target reliability.

        Stages end after whole blocks of masks, never before the minimum number of masks. Where they end depends on the
        config alone, so results do not depend on the batch size.
        """
        rows = [self.perturbation.rows(level) for level in self._levels]
        if self.goal is None:
            yield rows
            return
        block, least = self.perturbation.block, self.goal.least_masks / len(rows)
        start = [0] * len(rows)
        for share in STAGES:
            end = [min(len(r), math.ceil(max(len(r) * share, least) / block) * block) for r in rows]
            yield [r[a:b] for r, a, b in zip(rows, start, end, strict=True)]
            if share < 1:
                reached = self._reliability().sentence >= self.goal.reliability
                if ranks.decide("the goal of a run", reached):
                    return
            start = end

    @property
    def _levels(self) -> range:
        return range(self.perturbation.levels)

    def _passes(self, level: int, rows: range) -> int:
        return len(rows) + self.estimator.backward_passes(level, rows)


def optional_goal(reliability: float | None, **details: Any) -> Goal | None:
    """Return the goal of a run; None without a target reliability.

    Examples:
        >>> optional_goal(0.9, least_masks=100), optional_goal(None, least_masks=100)
        (Goal(reliability=0.9, least_masks=100), None)
    """
    return None if reliability is None else Goal(reliability, **details)

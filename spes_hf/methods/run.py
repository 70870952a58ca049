"""What a method plans: runs of the model under masks, each read as maps; or maps that need none."""

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
from spes_hf.functional import ratio
from spes_hf.masking.draw import mask_key
from spes_hf.masking.perturbations import Masks, Perturbation, TokenPerturbation
from spes_hf.runtime.batching import Batch
from spes_hf.runtime.ranks import ALONE, Ranks, SumsOf
from spes_hf.scoring.encoder import EncoderOutput
from spes_hf.scoring.eq3 import PerturbationEstimator
from spes_hf.scoring.scores import UnitScores

# Where a run may end once it is as reliable as asked for, as shares of its masks.
STAGES = (1 / 8, 1 / 4, 1 / 2, 1)


@dataclass(frozen=True)
class Problem:
    """One utterance, its output and the seed: all that a plan depends on besides the config.

    Attributes:
        utterance: The utterance.
        target: The output to explain.
        device: Where the model is.
        seed: The user's seed.
        utterance_id: What tells the utterance from the others of a corpus.
        differentiable: Whether gradients pass through all of the model.
        dtype: What the model computes in.
        rows: (K, J) bool: decoder input j comes before row k of the explanation; None: rows are the explained tokens.
        signed: Whether what lowers an impact counts against a row, so that scores need a zero.
        explained: Indices of the rows among the tokens of the output, where they are some of them; else None.
        over: "encoder" where a map of the encoder's output is asked for besides that of the "spectrogram".
        sentence: Indices of the tokens that the sentence's map is of: all but those that say when; None: all.
        encoder_output: The encoder's output and the decoder's attention to it; None where nobody can ask for them.
        ranks: The processes that plan it together.
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
            ConfigError: If the problem was made without them.
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
        """Number of tokens of the output, explained or not; of contrasts, that of the rows."""
        return self.tokens if self.explained is None else len(self.target.token_ids)

    def key(self, stream: str) -> int:
        """Return the key of a stream of masks."""
        return mask_key(self.seed, self.utterance_id, stream)

    def eq3(self, levels: int = 1) -> PerturbationEstimator:
        """Return the estimator of Eq. 3 for this number of levels of units."""
        return PerturbationEstimator(levels, centred=self.signed)

    def require_gradients(self, what: str, remedy: str) -> None:
        """Refuse a model that gradients do not pass through.

        Args:
            what: What needs gradients.
            remedy: What to use instead.

        Raises:
            UnsupportedModelError: If they do not.
        """
        if not self.differentiable:
            raise UnsupportedModelError(
                f"{what}, but weights of the model are quantised or made in inference mode, and gradients do not pass "
                f"through them; {remedy}, or load the model in float32, float16 or bfloat16"
            )


@dataclass(frozen=True)
class Maps:
    """What a method found, all or a part of it; parts of several steps are merged. `REQUIRED` says what is needed.

    Attributes:
        audio: Map of the spectrogram for every token.
        sound_impact: (K,) impact of the average mask that hides sound; NaN where no mask did.
        sentence: Map of the spectrogram for the sentence, where the method measures it on its own.
        reliability: Of the audio map.
        token: (K, J) float32 raw scores of the decoder inputs; NaN where j is not yet generated.
        text_impact: (K,) impact of the average mask that hides a token which the model wrote, and no sound; else NaN.
        encoder: Map of the encoder's output, where it is asked for.
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
        """Return a finished map of the spectrogram that no masks drew."""
        unknown = torch.full((problem.tokens,), torch.nan, dtype=torch.float32, device="cpu")
        return cls(audio=audio, sound_impact=unknown, reliability=Reliability.unknown(problem.tokens))

    @classmethod
    def of_tokens(cls, scores: Tensor, problem: Problem) -> Maps:
        """Return a finished map of the decoder inputs, (K, J), that no masks drew."""
        unknown = torch.full((len(scores),), torch.nan, dtype=torch.float32, device="cpu")
        return cls(token=scores.float().masked_fill(~problem.valid, torch.nan), text_impact=unknown)

    @staticmethod
    def merged(parts: Iterable[Maps]) -> Maps:
        """Return the maps that several steps found."""
        found = (((f.name, getattr(part, f.name)) for f in fields(part)) for part in parts)
        return Maps(**{name: value for part in found for name, value in part if value is not None})


class ImpactOf(Protocol):
    """What runs the model for a step."""

    def __call__(self, masks: Any, apply: Callable[[Any], dict[str, Tensor]], **how: Any) -> Tensor:
        """Return the impacts, (B, K), under masks.

        Args:
            masks: What ``apply`` makes keyword arguments of `Adapter.logits` of.
            apply: Does so.
            **how: Further arguments of `spes_hf.scoring.objective.Objective`: ``every``, ``encoded``.
        """


class Step(Protocol):
    """A part of a method that runs the model. `Run` is the usual one."""

    @property
    def passes(self) -> int:
        """How many passes are planned, forwards and backwards."""

    @property
    def differentiates(self) -> bool:
        """Whether backward passes follow the forward passes, which then keep all that they computed."""

    def run(self, impact_of: ImpactOf, batch: Batch) -> Iterator[int]:
        """Run the model as often as it takes; yield how many passes were done, batch by batch."""

    def maps(self, dtype: torch.dtype) -> Maps:
        """Return what was found.

        Args:
            dtype: What the model computes in, for errors.
        """


class Estimator(Protocol):
    """What watches a run, and makes scores of units from what it saw."""

    differentiates: bool
    every: bool
    """Whether it reads the impacts on all tokens of the output, explained or not."""

    def backward_passes(self, level: int, rows: range) -> int:
        """Return how many times these rows of a level run the model backwards."""

    def parts(self, level: int, rows: range) -> Sequence[range]:
        """Divide rows of a level into those that run through the model together."""

    def update(self, masks: Masks, impact_of: Callable[[Masks], Tensor]) -> None:
        """Run the model under these masks and add what they show."""

    def replace_sums(self, by: SumsOf) -> None:
        """Replace the sums over masks by what a function makes of them, such as the totals over processes."""

    def scores(self) -> UnitScores:
        """Return the scores from all masks."""

    def half(self, index: int) -> UnitScores:
        """Return the scores from one half of the masks, as `Masks.halves` has them."""


@dataclass(frozen=True)
class Goal:
    """When a run may end early.

    Attributes:
        reliability: Once the map of the sentence is so reliable.
        least_masks: Not before this number of masks.
    """

    reliability: float
    least_masks: int = 0


@dataclass(frozen=True)
class Run:
    """A perturbation, an estimator that watches it, and how to read its scores: a `Step`.

    Attributes:
        perturbation: Where masks come from and what they do.
        estimator: What is accumulated.
        read: Makes maps of the scores of units.
        goal: When the run may end early; None: all masks are drawn.
    """

    perturbation: Perturbation
    estimator: Estimator
    read: Callable[[UnitScores], Maps]
    goal: Goal | None = None

    @property
    def passes(self) -> int:
        """How many passes are planned, forwards and backwards."""
        return sum(self._passes(level, self.perturbation.rows(level)) for level in self._levels)

    @property
    def differentiates(self) -> bool:
        """Whether backward passes follow the forward passes."""
        return self.estimator.differentiates

    def run(self, impact_of: ImpactOf, batch: Batch) -> Iterator[int]:
        """Show the estimator every mask, level by level and batch by batch; yield how many passes were done.

        Processes that work together share the masks, and add up what they found after every stage.
        """
        impact_under = partial(impact_of, apply=self.perturbation.apply, every=getattr(self.estimator, "every", False))

        def show(level: int, rows: range) -> None:
            self.estimator.update(self.perturbation.draw(level, rows), impact_under)

        ranks, adds_up = batch.ranks, batch.ranks.count > 1
        for number, stage in enumerate(self._stages(ranks)):
            if adds_up and number:
                self.estimator.replace_sums(ranks.only_first)
            for level, rows in enumerate(stage):
                room = 0  # in the batch, which may span parts
                for part in ranks.share(self.estimator.parts(level, rows), turn=level):
                    while part:
                        room = room or batch.size
                        some, part = part[:room], part[room:]
                        room -= len(some)
                        for done in batch.over(some, partial(show, level)):
                            yield self._passes(level, done)
            if adds_up:
                self.estimator.replace_sums(ranks.total)

    def maps(self, dtype: torch.dtype) -> Maps:
        """Return the maps that the scores of all masks make, and their reliability.

        Raises:
            NumericsError: If scores are NaN or infinite.
        """
        scores = self.estimator.scores()
        kept = scores.values if scores.sentence is None else (*scores.values, scores.sentence)
        check_finite(kept, "impacts, or their gradients,", dtype)
        maps = self.read(scores)
        return maps if maps.audio is None else replace(maps, reliability=self._reliability())

    def _reliability(self) -> Reliability:
        """Return the split-half reliability of what the masks so far have drawn."""
        one, other = (self.read(self.estimator.half(i)) for i in (0, 1))
        if one.audio is None or other.audio is None:
            raise ConfigError(
                "read makes no map of the spectrogram, whose reliability the goal asks for; leave goal out"
            )
        found = split_half(one.audio, other.audio)
        if one.sentence is None or other.sentence is None:
            return found
        return replace(found, sentence=split_half(one.sentence, other.sentence).sentence)

    def _stages(self, ranks: Ranks) -> Iterator[list[range]]:
        """Return the rows of each level, part after part, until the map of the sentence is as reliable as asked for.

        Stages end with whole blocks of masks that balance one another, at the least number of masks or later. Where
        depends on the config alone, so results do not depend on the batch size.
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


def read_audio(labels: Tensor) -> Callable[[UnitScores], Maps]:
    """Return what reads scores of patches, (L, T, C), as the map of the spectrogram."""
    return lambda scores: Maps(
        audio=PatchMap.of(labels, scores.values, scores.weights), sound_impact=scores.mean_impact
    )


def read_encoder(problem: Problem) -> Callable[[UnitScores], Maps]:
    """Return what reads scores of positions of the encoder's output, of one level, as their map."""

    def read(scores: UnitScores) -> Maps:
        (values,) = scores.values
        found = values if scores.weights is None else ratio(values, scores.weights[0].expand_as(values))
        return Maps(encoder=EncoderMap(found.cpu().float(), problem.encoder.positions.times))

    return read


def read_tokens(problem: Problem) -> Callable[[UnitScores], Maps]:
    """Return what reads the sums of Eq. 3 over decoder inputs, of one level, as their map."""

    def read(scores: UnitScores) -> Maps:
        (values,), (weights,) = scores.values, scores.weights or ()
        counts = weights.expand_as(values)
        raw = ratio(values, counts).float().masked_fill(~problem.valid, torch.nan)
        # Text is what the model wrote itself.
        written = problem.valid.clone()
        written[:, : len(problem.target.prefix_ids)] = False
        return Maps(token=raw, text_impact=ratio((values * written).sum(1), (counts * written).sum(1)).float())

    return read


def optional_goal(reliability: float | None, **details: Any) -> Goal | None:
    """Return the goal of a run; None where no reliability is asked for."""
    return None if reliability is None else Goal(reliability, **details)


class TokenSettings(Protocol):
    """What the run over tokens reads of a config."""

    @property
    def num_token_masks(self) -> int:
        """N^Y."""

    @property
    def token_mask_prob(self) -> float:
        """p_tok."""


def token_run(settings: TokenSettings, problem: Problem) -> Run:
    """Return the run over previous tokens that methods share: the spectrogram is clean (§4.1.2)."""
    perturbation = token_perturbation(settings, problem, "token")
    return Run(perturbation, problem.eq3(), read_tokens(problem))


def token_perturbation(settings: TokenSettings, problem: Problem, stream: str) -> TokenPerturbation:
    """Return the perturbation of the previous tokens whose masks come from this stream."""
    return TokenPerturbation(
        units=len(problem.target.context_ids),
        key=problem.key(stream),
        mask_prob=settings.token_mask_prob,
        num_masks=settings.num_token_masks,
        device=problem.device,
    )

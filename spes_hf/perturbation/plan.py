"""From a config to runs: which masks to draw, what they perturb, and what becomes of the sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from spes_hf.adapters.base import Target, Utterance
from spes_hf.config import ExplainConfig, SpesConfig
from spes_hf.errors import ConfigError, UnsupportedModelError
from spes_hf.estimators import GradientEstimator, PerturbationEstimator
from spes_hf.estimators.gradient import relative
from spes_hf.estimators.pooling import Pools, mean_of_levels, mean_z_score
from spes_hf.explanation import PatchMap
from spes_hf.perturbation.base import (
    JointPerturbation,
    Masks,
    Perturbation,
    SoftSpectrogramPerturbation,
    SpectrogramPerturbation,
    TokenPerturbation,
    UnitScores,
)
from spes_hf.perturbation.masks import mask_key
from spes_hf.perturbation.segments import GRID_SIGMA, feature_labels, segment, slic_labels


@dataclass(frozen=True)
class Problem:
    """One utterance, its output and the seed: all that a plan depends on beside the config.

    Attributes:
        utterance: The utterance.
        target: The output to explain.
        device: Where the model is.
        seed: The user's seed.
        utterance_id: What tells the utterance from the others of a corpus.
        differentiable: Whether gradients pass through all of the model.
        dtype: What the model computes in.
    """

    utterance: Utterance
    target: Target
    device: torch.device
    seed: int
    utterance_id: str
    differentiable: bool = True
    dtype: torch.dtype = torch.float32

    def key(self, stream: str) -> int:
        """Return the key of a stream of masks."""
        return mask_key(self.seed, self.utterance_id, stream)


class Estimator(Protocol):
    """What watches a run, and makes scores of units from what it saw."""

    def update(self, masks: Masks, impact_of: Callable[[Masks], Tensor]) -> None:
        """Run the model under these masks and add what they show."""

    def scores(self) -> UnitScores:
        """Return the scores from all masks."""

    def half(self, index: int) -> UnitScores:
        """Return the scores from one half of the masks, as `Masks.halves` has them."""


@dataclass(frozen=True)
class Reading:
    """How the scores of a run become a map over the spectrogram.

    Attributes:
        labels: (L, T, C) patches of the map.
        scores: From the scores of all units to those of the patches.
    """

    labels: Tensor
    scores: Callable[[UnitScores], UnitScores] = lambda scores: scores

    def map(self, scores: UnitScores) -> PatchMap:
        """Return the map that these scores of units make."""
        return PatchMap.of(self.labels, self.scores(scores))


@dataclass(frozen=True)
class Run:
    """A perturbation, an estimator that watches it, and how to read the sums.

    Attributes:
        perturbation: Where masks come from and what they do.
        estimator: What is accumulated.
        audio: How to read the audio map of the tokens, if the run makes one.
        sentence: How to read that of the sentence, if the run makes one beside the tokens'.
        token_scores: How to get the tokens' scores from the units' scores, if the run makes a token map.
        backward_passes: How many times these rows of a level run the model backwards; None: not at all.
        parts: Divides rows of a level into those that run through the model together.
        target_reliability: The run may end once the map of the sentence is so reliable; None: all masks are drawn.
        least_masks: How many masks are drawn in any case.
    """

    perturbation: Perturbation
    estimator: Estimator
    audio: Reading | None = None
    sentence: Reading | None = None
    token_scores: Callable[[UnitScores], UnitScores] | None = None
    backward_passes: Callable[[int, range], int] | None = None
    parts: Callable[[int, range], Sequence[range]] = lambda level, rows: (rows,)
    target_reliability: float | None = None
    least_masks: int = 0

    def passes(self, level: int, rows: range) -> tuple[int, int]:
        """Return how many times these rows of a level run the model forwards and backwards."""
        return len(rows), 0 if self.backward_passes is None else self.backward_passes(level, rows)


Planner = Callable[[Any, Problem], list[Run]]
PlannerT = TypeVar("PlannerT", bound=Planner)

_PLANNERS: dict[type[ExplainConfig], Planner] = {}


def register_method(config_class: type[ExplainConfig]) -> Callable[[PlannerT], PlannerT]:
    """Return a decorator that makes a planner known for a class of configs."""

    def register(planner: PlannerT) -> PlannerT:
        if config_class in _PLANNERS:
            raise ValueError(f"{config_class.__name__} already has a planner")
        _PLANNERS[config_class] = planner
        return planner

    return register


def plan(config: ExplainConfig, problem: Problem) -> list[Run]:
    """Return the runs that a config asks for.

    Raises:
        ConfigError: If no method is registered for the type of the config.
    """
    import spes_hf.baselines  # planners register themselves
    import spes_hf.gradients  # noqa: F401

    if type(config) not in _PLANNERS:
        known = ", ".join(c.__name__ for c in _PLANNERS)
        raise ConfigError(f"config is a {type(config).__name__}; pass an instance of one of: {known}")
    return _PLANNERS[type(config)](config, problem)


def fill_values(fill: Any, features: Tensor) -> Tensor:
    """Return the fill value of every mel bin, (C,): "mean", "zero", "min" or a number."""
    if fill == "mean":
        return features.mean(0)
    named = {"zero": 0.0, "min": float(features.min())}
    return features.new_full(features.shape[1:], named[fill] if isinstance(fill, str) else float(fill))


def token_run(config: ExplainConfig, problem: Problem) -> Run:
    """Return the run that perturbs the previous tokens; every method shares it (§4.1.2)."""
    return Run(
        perturbation=_tokens(config, problem, "token"),
        estimator=PerturbationEstimator(levels=1),
        token_scores=lambda scores: scores,
    )


@register_method(SpesConfig)
def plan_spes(config: SpesConfig, problem: Problem) -> list[Run]:
    """Return SPES's two runs, spectrogram and tokens, or the joint one (§4.1, A.2.2).

    Raises:
        UnsupportedModelError: If the estimator needs gradients and the model has none.
    """
    if config.estimator == "gradient":
        return plan_gradient(config, problem)
    features = problem.utterance.features
    labels = _patches(config, features, problem.utterance.duration_s).to(problem.device)
    patches = SpectrogramPerturbation(**_spectrogram(config, problem, labels, "spectrogram"))
    estimator = PerturbationEstimator(levels=len(labels))
    if config.perturb == "separate":
        sound = Run(patches, estimator, audio=Reading(labels), target_reliability=config.target_reliability)
        return [sound, token_run(config, problem)]

    tokens = tuple(_tokens(config, problem, f"token/{level}") for level in range(len(labels)))
    joint = JointPerturbation(patches, tokens)

    def part(index: int, pooled: bool) -> Callable[[UnitScores], UnitScores]:
        def pick(scores: UnitScores) -> UnitScores:
            numerators = tuple(joint.split(n, level)[index] for level, n in enumerate(scores.numerators))
            denominators = tuple(joint.split(d, level)[index] for level, d in enumerate(scores.denominators))
            if pooled:  # tokens are the same units at every level
                return UnitScores((torch.stack(numerators).sum(0),), (torch.stack(denominators).sum(0),))
            return UnitScores(numerators, denominators)

        return pick

    return [
        Run(
            joint,
            estimator,
            audio=Reading(labels, part(0, False)),
            token_scores=part(1, True),
            target_reliability=config.target_reliability,
        )
    ]


def check_differentiable(problem: Problem, what: str, remedy: str) -> None:
    """Refuse a model that gradients do not pass through.

    Args:
        problem: The utterance and the model's answer to whether they do.
        what: What needs gradients.
        remedy: What to use instead.

    Raises:
        UnsupportedModelError: If the model has no gradients.
    """
    if not problem.differentiable:
        raise UnsupportedModelError(
            f"{what}, but weights of the model are quantised or made in inference mode, and gradients do not pass "
            f"through them; {remedy}, or load the model in float32, float16 or bfloat16"
        )


def plan_gradient(config: SpesConfig, problem: Problem) -> list[Run]:
    """Return the runs of the gradient estimator: sound, for every token and the sentence, and previous tokens.

    Raises:
        UnsupportedModelError: If the model has no gradients.
    """
    check_differentiable(problem, 'config.estimator is "gradient"', 'use estimator="perturbation"')
    features, tokens = problem.utterance.features, len(problem.target.token_ids)
    levels = (
        config.patches_per_second if config.patches is None else (),
        config.pool_patches_per_second or (),
        config.sentence_patches_per_second or (),
    )
    segments = _segments(config, features, problem.utterance.duration_s, sum(levels, ()))
    masked, pools, coarse = segments.split([len(level) for level in levels])
    if config.patches is not None:
        masked = _patches(config, features, problem.utterance.duration_s)
    labels = masked.to(problem.device)
    singles = feature_labels(features)
    pools = pools if len(pools) else singles
    perturbation = SoftSpectrogramPerturbation(**_spectrogram(config, problem, labels, "gradient"))
    if config.masks_per_token > perturbation.num_masks:  # the sentence's map is then drawn by as many, at no cost
        perturbation = replace(perturbation, num_masks=config.masks_per_token)
    kind = config.sentence_impact or ("relative" if config.impact == "kl" else "sum")
    estimator = GradientEstimator(
        pools.to(problem.device),
        tokens,
        config.masks_per_token,
        len(labels),
        relative if kind == "relative" else None,
        problem.dtype,
    )
    combined = mean_z_score if len(coarse) else mean_of_levels
    shown = Pools(torch.cat([singles, coarse]) if len(coarse) else pools)

    def sentence(scores: UnitScores) -> UnitScores:
        assert scores.sentence is not None
        values = combined(scores.sentence.double(), shown)[None]
        return UnitScores((values,), (values.new_ones(values.shape[1]),))

    sound = Run(
        perturbation,
        estimator,
        audio=Reading(pools),
        sentence=Reading(singles, sentence),
        backward_passes=estimator.backward_passes,
        parts=estimator.parts,
        target_reliability=config.target_reliability,
        least_masks=config.masks_per_token,
    )
    return [sound, token_run(config, problem)]


def _spectrogram(config: SpesConfig, problem: Problem, labels: Tensor, stream: str) -> dict[str, Any]:
    """Return the arguments of a `SpectrogramPerturbation` of these patches, (L, T, C)."""
    features = problem.utterance.features
    return dict(
        features=features.to(problem.device),
        fill=fill_values(config.fill, features).to(problem.device),
        labels=labels,
        units=tuple(int(level.max()) + 1 for level in labels),
        keys=tuple(problem.key(f"{stream}/{level}") for level in range(len(labels))),
        mask_prob=config.spectrogram_mask_prob,
        num_masks=config.num_spectrogram_masks,
        design=config.mask_design or "independent",
    )


def _patches(config: SpesConfig, features: Tensor, duration_s: float) -> Tensor:
    """Return the patches of all levels, (L, T, C): k by Eq. 2, or as many as the config fixes."""
    if config.patches is None:
        return _segments(config, features, duration_s, config.patches_per_second)
    return torch.stack([slic_labels(features, k, _sigma(config), config.slic_compactness) for k in config.patches])


def _segments(config: SpesConfig, features: Tensor, duration_s: float, levels: tuple[float, ...]) -> Tensor:
    """Return the patches of these levels, φ of each, (L, T, C)."""
    return segment(features, duration_s, levels, config.max_duration_s, _sigma(config), config.slic_compactness)


def _sigma(config: SpesConfig) -> float:
    return GRID_SIGMA if config.segmentation == "grid" else config.slic_sigma


def _tokens(config: ExplainConfig, problem: Problem, stream: str) -> TokenPerturbation:
    return TokenPerturbation(
        units=len(problem.target.context_ids),
        key=problem.key(stream),
        mask_prob=config.token_mask_prob,
        num_masks=config.num_token_masks,
        device=problem.device,
    )

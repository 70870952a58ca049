"""SPES: patches of the spectrogram at several levels, masked at random, and the previous tokens (§4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from spes_hf.adapters.types import Utterance
from spes_hf.checks import DerivedInt, DerivedStr, check, is_count, is_number
from spes_hf.errors import ConfigError
from spes_hf.explanation.maps import PatchMap
from spes_hf.functional import num_patches
from spes_hf.masking.perturbations import (
    EncoderPerturbation,
    JointPerturbation,
    SoftSpectrogramPerturbation,
    SpectrogramPerturbation,
    fill_values,
)
from spes_hf.masking.segments import GRID_SIGMA, feature_labels, label_maps, segmented_ahead
from spes_hf.methods.base import ExplainConfig
from spes_hf.methods.passes import sharing_of
from spes_hf.methods.reading import read_audio, read_encoder, read_tokens, token_perturbation, token_run
from spes_hf.methods.run import Maps, Problem, Run, optional_goal
from spes_hf.runtime.workers import spare_cores
from spes_hf.scoring.eq3 import weighted_mean
from spes_hf.scoring.gradient import GradientEstimator, relative
from spes_hf.scoring.pilot import MASKS, Pilot
from spes_hf.scoring.pooling import Pools, mean_of_levels, mean_of_scaled_levels
from spes_hf.scoring.scores import UnitScores


@dataclass(frozen=True, kw_only=True)
class SpesConfig(ExplainConfig):
    """SPES: patches of the spectrogram at several levels, masked at random (Fucci et al., 2024, §4).

    `SpesConfig()` is the best setting we know for its cost, and `SpesConfig.fast()` gives a first look; both use
    gradients. `SpesConfig.paper("asr")` and `SpesConfig.paper("st")` follow the paper to the letter. By default,
    `num_spectrogram_masks` is 32 with gradients and 3,000 with Eq. 3.

    For the encoder's output (``over="encoder"``), `num_token_masks` masks hide positions with probability
    `spectrogram_mask_prob`; with `perturb="joint"`, `num_spectrogram_masks` do. This always uses Eq. 3: on the shipped
    Speech2Text, 94 % of 145 maps peaked within the spoken word, but 70 % with gradients. For Whisper, use 800 masks.

    Attributes:
        patches_per_second: φ of each level (Eq. 2).
        max_duration_s: τ, in seconds: beyond it, the number of patches stops growing; None for no limit.
        segmentation: "slic" (superpixels that follow the spectrogram) or "grid" (SLIC on a heavily smoothed image, the
            paper's "− clustering" ablation).
        patches: k of each level, fixed for every length instead of derived from φ and τ (the paper's "− duration
            adaptation" ablation); None: k from Eq. 2.
        slic_sigma: Width of the Gaussian that smooths the spectrogram before SLIC, in features.
        slic_compactness: Weight of nearness against similarity in SLIC, on a spectrogram scaled to [0, 1].
        mask_design: How masks of the spectrogram are balanced: "independent" (the paper's), "antithetic" (in pairs; at
            p = ½ the second keeps what the first perturbs) or "balanced" (in every 8 masks, 8 p perturb each patch);
            None for "antithetic" with gradients and "independent" with Eq. 3. Reliability compares masks from different
            blocks, so it needs at least two pairs, or two blocks of 8.
        perturb: "separate" (spectrogram with clean tokens, then tokens with the clean spectrogram; A.2.2) or "joint".
        estimator: "perturbation" (Eq. 3: forward passes alone) or "gradient" (its linear part from backward passes,
            which needs far fewer masks; docs/gradient.md).
        masks_per_token: Number of the `num_spectrogram_masks` that are also used for the maps of the tokens; all are
            used for the sentence. If it is the larger of the two, it counts for both. "gradient" only.
        passes_per_mask: Backward passes for the tokens under each of those masks. If the output has more tokens, some
            share a pass, separated by signs and cross-attention; if signs run out, there are more passes (n antithetic
            masks have n / 2 signs if 8 divides n, else one or two). None for one pass per token, which is exact.
            Contrasts never share. "gradient" only.
        prior_weight: Weight of the prior added to a token's map in [0, 1], in standard deviations of the map. The prior
            is the evidence for the sentence and the distance from the fill. It ranks features that the token's own
            gradients do not separate; raw maps and evidence do not include it. 0 for gradients alone. "gradient" only,
            and not for contrasts.
        pool_patches_per_second: φ of the patches in which features share their mean score in the maps of tokens,
            averaged over levels; None for no pooling. "gradient" only.
        sentence_patches_per_second: φ of the patches that the sentence's map averages over, in addition to single
            features, with every level divided by its standard deviation; None to pool it like the tokens' maps.
            "gradient" only.
        sentence_impact: The impact on the sentence, which is differentiated for its map: "relative" (Σ_k log(1 +
            r_k / 0.01), so that all tokens count equally, however far they move) or "sum" (Σ_k r_k); None for
            "relative" with "kl", and "sum" with other impacts, which keep a gradient when small. "gradient" only.
        target_reliability: Stop after an eighth, a quarter or half of the `num_spectrogram_masks` if the sentence's map
            has reached this split-half reliability; None to use all of them. The `masks_per_token` always run. An early
            stop happens at a lucky moment, so its reliability is slightly too high.

    Examples:
        >>> SpesConfig.paper("asr").num_spectrogram_masks
        20000
    """

    num_spectrogram_masks: int = DerivedInt(32)
    num_token_masks: int = 200
    patches_per_second: tuple[float, ...] = (250.0,)
    max_duration_s: float | None = 7.5
    segmentation: Literal["slic", "grid"] = "slic"
    patches: tuple[int, ...] | None = None
    slic_sigma: float = 0.0
    slic_compactness: float = 0.1
    mask_design: Literal["independent", "antithetic", "balanced"] | None = None
    perturb: Literal["separate", "joint"] = "separate"
    estimator: Literal["perturbation", "gradient"] = "gradient"
    masks_per_token: int = 24
    passes_per_mask: int | None = 5
    prior_weight: float = 3.0
    pool_patches_per_second: tuple[float, ...] | None = (400.0, 1600.0)
    sentence_patches_per_second: tuple[float, ...] | None = (160.0, 800.0)
    sentence_impact: Literal["relative", "sum"] | None = None
    target_reliability: float | None = None

    method: ClassVar[str] = "spes"
    absent: ClassVar[Mapping[str, Any]] = MappingProxyType({"passes_per_mask": None, "prior_weight": 0.0})
    overs: ClassVar[tuple[str, ...]] = ("spectrogram", "encoder")

    def __post_init__(self) -> None:
        for name in ("patches_per_second", "pool_patches_per_second", "sentence_patches_per_second"):
            levels = getattr(self, name)
            if isinstance(levels, (int, float)) and not isinstance(levels, bool):
                object.__setattr__(self, name, (float(levels),))
            elif isinstance(levels, list):
                object.__setattr__(self, name, tuple(levels))
        if isinstance(self.patches, (int, list)) and not isinstance(self.patches, bool):
            counts = (self.patches,) if isinstance(self.patches, int) else tuple(self.patches)
            object.__setattr__(self, "patches", counts)
        super().__post_init__()
        for name in ("patches_per_second", "pool_patches_per_second", "sentence_patches_per_second"):
            levels = getattr(self, name)
            given = isinstance(levels, tuple) and bool(levels) and all(is_number(v) and v > 0 for v in levels)
            optional = name != "patches_per_second"
            allowed = "one or more numbers above 0, for example (400, 500, 600)" + (", or None" if optional else "")
            check(self, name, given or (optional and levels is None), allowed)
        patches = self.patches
        check(
            self,
            "patches",
            patches is None or (isinstance(patches, tuple) and bool(patches) and all(is_count(k) for k in patches)),
            "one or more whole numbers above 0, for example (2000, 2500, 3000), or None",
        )
        tau = self.max_duration_s
        check(self, "max_duration_s", tau is None or (is_number(tau) and tau > 0), "seconds above 0, or None")
        check(self, "segmentation", self.segmentation in ("slic", "grid"), "slic, grid")
        check(self, "slic_sigma", is_number(self.slic_sigma) and self.slic_sigma >= 0, "a number, at least 0")
        check(self, "slic_compactness", is_number(self.slic_compactness) and self.slic_compactness > 0, "above 0")
        designs = ("independent", "antithetic", "balanced")
        check(self, "mask_design", self.mask_design in designs, ", ".join((*designs, "None")))
        check(self, "perturb", self.perturb in ("separate", "joint"), "separate, joint")
        check(self, "estimator", self.estimator in ("perturbation", "gradient"), "perturbation, gradient")
        joint = self.estimator == "gradient" and self.perturb == "joint"
        check(
            self,
            "perturb",
            not joint,
            'separate, since gradients cover only the sound; or use estimator="perturbation"',
        )
        check(self, "sentence_impact", self.sentence_impact in ("relative", "sum", None), "relative, sum, None")
        check(self, "masks_per_token", is_count(self.masks_per_token), "a whole number, at least 1")
        passes, weight = self.passes_per_mask, self.prior_weight
        check(self, "passes_per_mask", passes is None or is_count(passes), "a whole number, at least 1, or None")
        check(self, "prior_weight", is_number(weight) and weight >= 0, "a number, at least 0")
        goal = self.target_reliability
        check(
            self, "target_reliability", goal is None or (is_number(goal) and 0 < goal < 1), "between 0 and 1, or None"
        )
        check(
            self,
            "num_spectrogram_masks",
            self.num_spectrogram_masks >= self.num_levels,
            f"at least one mask for each of the {self.num_levels} levels",
        )

    @classmethod
    def derived(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of masks and their design, which follow from the estimator."""
        gradient = values["estimator"] == "gradient"
        return {
            "num_spectrogram_masks": DerivedInt(32 if gradient else 3_000),
            "mask_design": DerivedStr("antithetic" if gradient else "independent"),
        }

    @classmethod
    def unread(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the fields that a config with these values does not read, each with the reason."""
        found = super().unread(values)
        gradient = values["estimator"] != "perturbation"
        pools = ("pool_patches_per_second", "sentence_patches_per_second")
        if not gradient:
            names = ("masks_per_token", "passes_per_mask", "prior_weight", *pools, "sentence_impact")
            found |= dict.fromkeys(names, 'estimator="perturbation" does not read it')
        if values["segmentation"] == "grid":
            found["slic_sigma"] = 'segmentation="grid" sets its own width'
        if values["perturb"] == "joint":
            found["num_token_masks"] = 'perturb="joint" hides tokens together with the spectrogram'
        if values["patches"] is not None:
            found["patches_per_second"] = "patches sets the number of patches"
            if not gradient or all(values[name] is None for name in pools):
                found["max_duration_s"] = "patches sets the number of patches"
        return found

    @property
    def num_levels(self) -> int:
        """Number of levels of patches."""
        return len(self.patches_per_second if self.patches is None else self.patches)

    @classmethod
    def paper(cls, task: Literal["asr", "st"], **overrides: Any) -> SpesConfig:
        """Return the paper's own settings (§6 and A.2): 20,000 + 2,000 masks, φ = 400, 500, 600.

        Args:
            task: "asr" (τ = 7.5 s) or "st" (τ = 5 s).
            **overrides: Fields to change.

        Raises:
            ConfigError: If the task is not "asr" or "st".
        """
        if task not in ("asr", "st"):
            raise ConfigError(f'task is {task!r}; allowed: "asr" (speech recognition) or "st" (speech translation)')
        values: dict[str, Any] = dict(
            num_spectrogram_masks=20_000,
            num_token_masks=2_000,
            spectrogram_mask_prob=0.5,
            token_mask_prob=0.4,
            patches_per_second=(400.0, 500.0, 600.0),
            mask_design="independent",
            estimator="perturbation",
            impact="kl",
            max_duration_s=7.5 if task == "asr" else 5.0,
        )
        return cls.reading(values, **overrides)

    @classmethod
    def fast(cls, **overrides: Any) -> SpesConfig:
        """Return settings for a first look: a quarter of the masks, a third per token; with Eq. 3, all masks."""
        masks = {"num_spectrogram_masks": 8} if overrides.get("estimator", "gradient") == "gradient" else {}
        return cls.reading({**masks, "masks_per_token": 8, "passes_per_mask": 4, "num_token_masks": 100}, **overrides)

    def prepare(self, utterance: Utterance, device: torch.device) -> AbstractContextManager[None]:
        """Return a context in which threads segment the spectrogram at all levels that `plan` will need."""
        levels = [*(self.patches or ()), *_counts(self, utterance, sum(_levels(self), ()))]
        threads = spare_cores(device)
        return segmented_ahead(utterance.features, levels, _sigma(self), self.slic_compactness, threads)

    def plan(self, problem: Problem) -> Sequence[Run]:
        """Return the runs over spectrogram and tokens, or the joint run (§4.1, A.2.2), and over the encoder's output.

        Raises:
            UnsupportedModelError: If the estimator needs gradients and the model does not support them.
        """
        runs = self._plan(problem)
        return [*runs, _encoder_run(self, problem)] if problem.over == "encoder" else runs

    def _plan(self, problem: Problem) -> Sequence[Run]:
        """Return the runs over spectrogram and tokens, or the joint run."""
        if self.estimator == "gradient":
            return [*_gradient_runs(self, problem), token_run(self, problem)]
        labels = _patches(self, problem).to(problem.device)
        patches = SpectrogramPerturbation(**_spectrogram(self, problem, labels, "spectrogram"))
        estimator = problem.eq3(len(labels))
        goal = optional_goal(self.target_reliability)
        if self.perturb == "separate":
            return [Run(patches, estimator, read_audio(labels), goal), token_run(self, problem)]
        tokens = tuple(token_perturbation(self, problem, f"token/{level}") for level in range(len(labels)))
        joint = JointPerturbation(patches, tokens)
        return [Run(joint, estimator, _read_joint(joint, labels, problem), goal)]


def _read_joint(joint: JointPerturbation, labels: Tensor, problem: Problem) -> Callable[[UnitScores], Maps]:
    """Return a function that turns scores of patches and tokens, from the same masks, into the maps of both."""

    def part(index: int, sums: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(joint.split(units, level)[index] for level, units in enumerate(sums))

    def read(scores: UnitScores) -> Maps:
        values, weights = (part(0, sums) for sums in (scores.values, scores.weights or ()))
        # Tokens are the same units at every level.
        of_tokens = [(torch.stack(part(1, sums)).sum(0),) for sums in (scores.values, scores.weights or ())]
        text = read_tokens(problem)(UnitScores(of_tokens[0], of_tokens[1], scores.mean_impact))
        # Masks that also hide sound say nothing about text alone.
        assert text.text_impact is not None
        unknown = torch.full_like(text.text_impact, torch.nan)
        audio = PatchMap.of(labels, values, weights)
        return replace(text, audio=audio, sound_impact=weighted_mean(values, weights), text_impact=unknown)

    return read


def _gradient_runs(config: SpesConfig, problem: Problem) -> list[Run]:
    """Return the runs of the gradient estimator: a pilot if tokens share passes, then the maps of tokens and sentence.

    Raises:
        UnsupportedModelError: If no gradients flow through the model.
    """
    problem.require_gradients('config.estimator is "gradient"', 'use estimator="perturbation"')
    features = problem.utterance.features
    levels = _levels(config)
    segments = _segments(config, problem, sum(levels, ()))
    masked, pools, coarse = segments.split([len(level) for level in levels])
    if config.patches is not None:
        masked = _patches(config, problem)
    labels = masked.to(problem.device)
    singles = feature_labels(features)
    pools = pools if len(pools) else singles
    perturbation = SoftSpectrogramPerturbation(**_spectrogram(config, problem, labels, "gradient"))
    if config.masks_per_token > perturbation.num_masks:  # the sentence's map then uses the extra masks at no cost
        perturbation = replace(perturbation, num_masks=config.masks_per_token)
    kind = config.sentence_impact or ("relative" if config.impact == "kl" else "sum")
    sharing = sharing_of(config, problem, perturbation)
    pilot = Pilot(problem.every, quadratic=config.impact == "kl", device=problem.device)
    estimator = GradientEstimator(
        pools.to(problem.device),
        problem.every,
        config.masks_per_token,
        len(labels),
        relative if kind == "relative" else None,
        problem.dtype,
        problem.explained,
        sharing,
        pilot.sizes,
        problem.sentence,
    )
    combined = mean_of_scaled_levels if len(coarse) else mean_of_levels
    shown = Pools(torch.cat([singles, coarse]) if len(coarse) else pools)

    def read(scores: UnitScores) -> Maps:
        assert scores.sentence is not None
        sentence = combined(scores.sentence.double(), shown)
        return replace(read_audio(pools)(scores), sentence=PatchMap.of(singles, (sentence[None],)))

    goal = optional_goal(config.target_reliability, least_masks=config.masks_per_token)
    run = Run(perturbation, estimator, read, goal)
    if not sharing.is_shared:
        return [run]
    return [Run(replace(perturbation, num_masks=min(MASKS, config.masks_per_token)), pilot, lambda _: Maps()), run]


def _encoder_run(config: SpesConfig, problem: Problem) -> Run:
    """Return the run over the encoder's output: Eq. 3, as for tokens, with decoder passes alone."""
    perturbation = EncoderPerturbation(
        states=problem.encoder.states,
        units=len(problem.encoder.positions),
        key=problem.key("encoder"),
        mask_prob=config.spectrogram_mask_prob,
        num_masks=config.num_token_masks if config.perturb == "separate" else config.num_spectrogram_masks,
    )
    return Run(perturbation, problem.eq3(), read_encoder(problem))


def _spectrogram(config: SpesConfig, problem: Problem, labels: Tensor, stream: str) -> dict[str, Any]:
    """Return the arguments of a `SpectrogramPerturbation` with these patches, (L, T, C)."""
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


def _patches(config: SpesConfig, problem: Problem) -> Tensor:
    """Return the patches of all levels, (L, T, C): with k from Eq. 2, or as fixed in the config."""
    if config.patches is None:
        return _segments(config, problem, config.patches_per_second)
    features = problem.utterance.features
    return label_maps(features, config.patches, _sigma(config), config.slic_compactness, problem.ranks)


def _levels(config: SpesConfig) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Return φ of the levels of masks, of tokens' maps, and of the sentence's map, if Eq. 2 determines their k."""
    masks = config.patches_per_second if config.patches is None else ()
    if config.estimator == "perturbation":
        return masks, (), ()
    return masks, config.pool_patches_per_second or (), config.sentence_patches_per_second or ()


def _segments(config: SpesConfig, problem: Problem, levels: tuple[float, ...]) -> Tensor:
    """Return the patches of levels with these φ, (L, T, C)."""
    counts = _counts(config, problem.utterance, levels)
    return label_maps(problem.utterance.features, counts, _sigma(config), config.slic_compactness, problem.ranks)


def _counts(config: SpesConfig, utterance: Utterance, levels: tuple[float, ...]) -> list[int]:
    """Return k of levels with these φ, by Eq. 2."""
    return [num_patches(utterance.duration_s, phi, config.max_duration_s) for phi in levels]


def _sigma(config: SpesConfig) -> float:
    return GRID_SIGMA if config.segmentation == "grid" else config.slic_sigma

"""How to explain: one config class per method, as in PEFT; the type of the config chooses the method."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from spes_hf import __version__
from spes_hf.errors import ConfigError
from spes_hf.textfile import TextFileError, read_json

Fill = Literal["mean", "zero", "min"] | float
ConfigT = TypeVar("ConfigT", bound="ExplainConfig")

_METHODS: dict[str, type[ExplainConfig]] = {}


def _check(config: ExplainConfig, name: str, ok: bool, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{type(config).__name__}.{name} is {getattr(config, name)!r}; allowed: {allowed}")


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and bool(abs(value) <= sys.float_info.max)


def _is_count(value: Any) -> bool:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and value >= 1


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """What every method shares. Use one of its subclasses.

    Attributes:
        num_spectrogram_masks: N^X, how many times the spectrogram is perturbed.
        num_token_masks: N^Y, how many times the previous tokens are perturbed on their own.
        spectrogram_mask_prob: p_spec, the probability that a unit of the spectrogram is perturbed.
        token_mask_prob: p_tok, the probability that a previous token is perturbed.
        impact: "kl" (§4.2), "probability" (fall of the token's probability) or "contrastive" (fall of the token's
            log-odds against the runner-up of the clean run).
        fill: What perturbed features become: "mean" (of each mel bin over the utterance), "zero", "min" (of the
            spectrogram) or a number.
    """

    num_spectrogram_masks: int = 2_000
    num_token_masks: int = 500
    spectrogram_mask_prob: float = 0.5
    token_mask_prob: float = 0.4
    impact: Literal["kl", "probability", "contrastive"] = "kl"
    fill: Fill = "mean"

    method: ClassVar[str]
    unused: ClassVar[tuple[str, ...]] = ()
    """Which numbers of masks have no part in the method, and stay 0."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _METHODS[cls.method] = cls

    def __post_init__(self) -> None:
        if type(self) is ExplainConfig:
            raise ConfigError("ExplainConfig names no method; use one of its subclasses, such as SpesConfig")
        for entry in fields(self):  # NumPy's numbers become Python's, which JSON can hold
            value = getattr(self, entry.name)
            if isinstance(value, Real) and not isinstance(value, (bool, int, float)):
                object.__setattr__(self, entry.name, int(value) if isinstance(value, Integral) else float(value))
        for name in ("num_spectrogram_masks", "num_token_masks"):
            value = getattr(self, name)
            if name in self.unused:
                _check(self, name, value == 0, "0, since this method has no use for such masks; leave it out")
            else:
                _check(self, name, _is_count(value), "a whole number, at least 1")
        for name in ("spectrogram_mask_prob", "token_mask_prob"):
            value = getattr(self, name)
            _check(self, name, _is_number(value) and 0 < value < 1, "a probability above 0 and below 1")
        _check(self, "impact", self.impact in ("kl", "probability", "contrastive"), "kl, probability, contrastive")
        named = isinstance(self.fill, str) and self.fill in ("mean", "zero", "min")
        _check(self, "fill", named or _is_number(self.fill), '"mean", "zero", "min" or a finite number')

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, the method and the version of the library, ready for JSON."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {"method": self.method, "spes_hf_version": __version__, **values}

    @classmethod
    def from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
        """Return the config that `to_dict` wrote; called on `ExplainConfig` it finds the class by the method.

        Raises:
            ConfigError: If the method or a field is unknown, or a value out of range.
        """
        import spes_hf.methods  # noqa: F401, the rest of the methods

        values = dict(values)
        method = values.pop("method", getattr(cls, "method", None))
        version = values.pop("spes_hf_version", __version__)
        if not isinstance(method, str) or method not in _METHODS:
            raise ConfigError(f"method is {method!r}; known methods: {', '.join(sorted(_METHODS))}")
        config_class = _METHODS[method]
        if not issubclass(config_class, cls):
            raise ConfigError(f"method is {method!r}, which is a {config_class.__name__}, not a {cls.__name__}")
        unknown = sorted(values.keys() - {f.name for f in fields(config_class)})
        if unknown:
            raise ConfigError(
                f"{config_class.__name__} has no field {', '.join(unknown)} (written by spes_hf {version}, this is "
                f"{__version__}); its fields: {', '.join(f.name for f in fields(config_class))}"
            )
        return config_class(**values)

    def to_json(self, path: str | Path) -> None:
        """Write the config to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls: type[ConfigT], path: str | Path) -> ConfigT:
        """Return the config in a JSON file.

        Raises:
            ConfigError: If the file is no JSON object, or holds no valid config.
        """
        try:
            values = read_json(path)
        except (OSError, TextFileError) as error:
            raise ConfigError(f"path {str(path)!r} cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"path {str(path)!r} holds a {type(values).__name__}; expected a JSON object")
        return cls.from_dict(values)


@dataclass(frozen=True, kw_only=True)
class SpesConfig(ExplainConfig):
    """SPES: patches of the spectrogram at several levels, masked at random (Fucci et al., 2024, §4).

    `SpesConfig()` is the best we know for its cost, `SpesConfig.fast()` a first look, both by gradients;
    `SpesConfig.paper("asr")` and `SpesConfig.paper("st")` are the paper to the letter.

    Attributes:
        patches_per_second: φ of each level (Eq. 2).
        max_duration_s: τ, in seconds: the number of patches stops growing there; None for no limit.
        segmentation: "slic" (superpixels that follow the spectrogram) or "grid" (SLIC on a heavily smoothed image, the
            paper's "− clustering" ablation).
        patches: k of each level, whatever the length, in the place of φ and τ (the paper's "− duration adaptation"
            ablation); None: k by Eq. 2.
        slic_sigma: Width of the Gaussian that smooths the spectrogram before SLIC, in features.
        slic_compactness: Weight of nearness against likeness in SLIC, on a spectrogram scaled to [0, 1].
        mask_design: How the masks of the spectrogram balance one another: "independent" (the paper's), "antithetic" (in
            pairs; at p = ½ the second keeps what the first perturbs) or "balanced" (of every 8 masks, 8 p perturb a
            patch); None for "antithetic" with gradients and "independent" with Eq. 3, which gains nothing from the
            others. Reliability needs masks that do not balance one another: two pairs, or twice 8.
        perturb: "separate" (spectrogram with clean tokens, then tokens with the clean spectrogram; A.2.2) or "joint".
        estimator: "perturbation" (Eq. 3: forward passes alone) or "gradient" (its linear part by backward passes, which
            need far fewer masks; docs/gradient.md).
        masks_per_token: How many of the `num_spectrogram_masks` draw the maps of the tokens too, at a backward pass for
            each token and mask; all draw that of the sentence. If it is the larger number it counts for both.
            "gradient" only.
        pool_patches_per_second: φ of the patches that share the mean of their features' scores in the maps of tokens,
            averaged over levels; None for no pooling; "gradient" only.
        sentence_patches_per_second: φ of the patches whose means the map of the sentence is made of, beside the
            features themselves, every level as z-scores; None to pool it as the tokens' maps; "gradient" only.
        sentence_impact: What adds up to the impact on the sentence, whose gradient its map is: "relative" (Σ_k log(1 +
            r_k / 0.01), so that tokens count alike however far they move) or "sum" (Σ_k r_k); None for "relative" with
            the impact "kl" and "sum" with the others, whose gradient does not vanish where they are small. "gradient"
            only.
        target_reliability: Stop after an eighth, a quarter or half of the `num_spectrogram_masks` if the sentence's map
            has this split-half reliability by then; None to draw all of them. The `masks_per_token` are drawn in any
            case. A run that stops early did so at a lucky moment, so its reliability is a little too high.
    """

    num_spectrogram_masks: int = 32
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
    masks_per_token: int = 12
    pool_patches_per_second: tuple[float, ...] | None = (400.0, 1600.0)
    sentence_patches_per_second: tuple[float, ...] | None = (160.0, 800.0)
    sentence_impact: Literal["relative", "sum"] | None = None
    target_reliability: float | None = None

    method: ClassVar[str] = "spes"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patches_per_second", "pool_patches_per_second", "sentence_patches_per_second"):
            levels = getattr(self, name)
            if isinstance(levels, (int, float)) and not isinstance(levels, bool):
                object.__setattr__(self, name, (float(levels),))
            elif isinstance(levels, list):
                object.__setattr__(self, name, tuple(levels))
            levels = getattr(self, name)
            given = isinstance(levels, tuple) and bool(levels) and all(_is_number(v) and v > 0 for v in levels)
            optional = name != "patches_per_second"
            allowed = "one or more numbers above 0, for example (400, 500, 600)" + (", or None" if optional else "")
            _check(self, name, given or (optional and levels is None), allowed)
        if isinstance(self.patches, (int, list)) and not isinstance(self.patches, bool):
            counts = (self.patches,) if isinstance(self.patches, int) else tuple(self.patches)
            object.__setattr__(self, "patches", counts)
        patches = self.patches
        _check(
            self,
            "patches",
            patches is None or (isinstance(patches, tuple) and bool(patches) and all(_is_count(k) for k in patches)),
            "one or more whole numbers above 0, for example (2000, 2500, 3000), or None",
        )
        tau = self.max_duration_s
        _check(self, "max_duration_s", tau is None or (_is_number(tau) and tau > 0), "seconds above 0, or None")
        _check(self, "segmentation", self.segmentation in ("slic", "grid"), "slic, grid")
        _check(self, "slic_sigma", _is_number(self.slic_sigma) and self.slic_sigma >= 0, "a number, at least 0")
        _check(self, "slic_compactness", _is_number(self.slic_compactness) and self.slic_compactness > 0, "above 0")
        if self.mask_design is None:
            own = "antithetic" if self.estimator == "gradient" else "independent"
            object.__setattr__(self, "mask_design", own)
        designs = ("independent", "antithetic", "balanced")
        _check(self, "mask_design", self.mask_design in designs, ", ".join((*designs, "None")))
        _check(self, "perturb", self.perturb in ("separate", "joint"), "separate, joint")
        _check(self, "estimator", self.estimator in ("perturbation", "gradient"), "perturbation, gradient")
        joint = self.estimator == "gradient" and self.perturb == "joint"
        _check(
            self,
            "perturb",
            not joint,
            'separate, since gradients are taken of the sound alone; or estimator="perturbation"',
        )
        _check(self, "sentence_impact", self.sentence_impact in ("relative", "sum", None), "relative, sum, None")
        _check(self, "masks_per_token", _is_count(self.masks_per_token), "a whole number, at least 1")
        goal = self.target_reliability
        _check(
            self, "target_reliability", goal is None or (_is_number(goal) and 0 < goal < 1), "between 0 and 1, or None"
        )
        _check(
            self,
            "num_spectrogram_masks",
            self.num_spectrogram_masks >= self.num_levels,
            f"at least one mask for each of the {self.num_levels} levels",
        )

    @property
    def num_levels(self) -> int:
        """Number of levels of patches."""
        return len(self.patches_per_second if self.patches is None else self.patches)

    @classmethod
    def paper(cls, task: Literal["asr", "st"], **overrides: Any) -> SpesConfig:
        """Return the paper's own setting (§6 and A.2): 20,000 + 2,000 masks, φ = 400, 500, 600.

        Args:
            task: "asr" (τ = 7.5 s) or "st" (τ = 5 s).
            **overrides: Fields to set differently.

        Raises:
            ConfigError: If the task is neither.
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
            max_duration_s=7.5 if task == "asr" else 5.0,
        )
        return cls(**{**values, **overrides})

    @classmethod
    def fast(cls, **overrides: Any) -> SpesConfig:
        """Return a setting for a first look: a quarter of the masks, a third for single tokens."""
        values: dict[str, Any] = dict(num_spectrogram_masks=8, masks_per_token=4, num_token_masks=100)
        return cls(**{**values, **overrides})


@dataclass(frozen=True, kw_only=True)
class FeatureWiseConfig(ExplainConfig):
    """Feature-wise perturbation, a baseline of the paper: every feature of the spectrogram is its own unit (A.3.1)."""

    num_spectrogram_masks: int = 20_000
    num_token_masks: int = 2_000
    spectrogram_mask_prob: float = 0.7
    token_mask_prob: float = 0.1

    method: ClassVar[str] = "feature-wise"


@dataclass(frozen=True, kw_only=True)
class BubbleNoiseConfig(ExplainConfig):
    """Bubble Noise, a baseline of the paper: noise everywhere but in a few ellipses (A.3.2; Trinh and Mandel, 2020).

    The noise is uniform over the utterance's range of intensities. Outside the bubbles it replaces the spectrogram; in
    a bubble it is attenuated, to nothing in the centre and with the square of the distance from there, and added to the
    spectrogram. Tokens are perturbed as in SPES. `spectrogram_mask_prob` and `fill` have no part in it.

    Attributes:
        bubbles_per_second: How many bubbles there are in a second of audio.
        bubble_width_s: Width of a bubble, from edge to edge, in seconds.
        bubble_height_bins: Height of a bubble, from edge to edge, in mel bins.
    """

    num_spectrogram_masks: int = 1_000
    num_token_masks: int = 2_000
    bubbles_per_second: float = 10.0
    bubble_width_s: float = 0.43
    bubble_height_bins: float = 31.0

    method: ClassVar[str] = "bubble-noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bubbles_per_second", "bubble_width_s", "bubble_height_bins"):
            value = getattr(self, name)
            _check(self, name, _is_number(value) and 0 < value < float("inf"), "a number above 0")


PRESETS = ("fast", "default", "paper")


def preset(name: str, task: Literal["asr", "st"] = "asr", **overrides: Any) -> SpesConfig:
    """Return the `SpesConfig` preset of that name: "fast", "default" or "paper".

    Raises:
        ConfigError: If there is no preset of that name.
    """
    if name == "fast":
        return SpesConfig.fast(**overrides)
    if name == "default":
        return SpesConfig(**overrides)
    if name == "paper":
        return SpesConfig.paper(task, **overrides)
    raise ConfigError(f"preset is {name!r}; allowed: {', '.join(PRESETS)}")

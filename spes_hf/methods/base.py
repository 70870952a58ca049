"""What the configs of all methods share: fields, checks, JSON, a plan, and refusing settings without effect."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch

from spes_hf import __version__
from spes_hf.adapters.types import Utterance
from spes_hf.checks import DerivedInt, DerivedStr, check, is_count, is_number, to_json_value
from spes_hf.errors import ConfigError
from spes_hf.files import TextFileError, read_json
from spes_hf.masking.perturbations import Fill
from spes_hf.methods.run import Maps, Problem, Step
from spes_hf.scoring.contrast import CONTRASTS, WORD_PROBABILITIES
from spes_hf.scoring.impact import IMPACTS

ConfigT = TypeVar("ConfigT", bound="ExplainConfig")

OVERS = ("spectrogram", "encoder")
"""What maps cover: the spectrogram alone, or the encoder's output too."""

_METHODS: dict[str, type[ExplainConfig]] = {}


def register_method(config_class: type[ConfigT], *former_names: str) -> type[ConfigT]:
    """Register a method under its config's ``method`` name, and return the config class.

    `ExplainConfig.from_dict` and `list_methods` then know it. Configs of unregistered classes can still be passed to
    `explain`.

    Args:
        config_class: A subclass of `ExplainConfig`.
        *former_names: Former names, which stored configs may still use.

    Raises:
        ConfigError: If the class is not a config, has no plan or no name, or a name is taken.

    Examples:
        >>> from dataclasses import dataclass
        >>> from typing import ClassVar
        >>> @register_method
        ... @dataclass(frozen=True)
        ... class Louder(EnergyConfig):
        ...     method: ClassVar[str] = "louder"
        >>> explain(model, processor, clip, config=Louder()).method
        'louder'
    """
    if not (isinstance(config_class, type) and issubclass(config_class, ExplainConfig)):
        raise ConfigError(f"config_class is {config_class!r}; pass a subclass of ExplainConfig")
    if config_class.plan is ExplainConfig.plan:
        raise ConfigError(f"{config_class.__name__} has no plan; define its method plan(self, problem)")
    name = getattr(config_class, "method", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{config_class.__name__}.method is {name!r}; allowed: a name such as 'my-method'")
    for each in (name, *former_names):
        known = _METHODS.get(each)
        if known not in (None, config_class):
            raise ConfigError(f"method {each!r} is taken by {known.__name__ if known else known}; choose another name")
        _METHODS[each] = config_class
    return config_class


def list_methods() -> list[str]:
    """Return the names of the registered methods.

    Examples:
        >>> list_methods()
        ['attention', 'bubble-noise', 'captum', 'energy', 'feature-wise', 'random', 'spes']
    """
    return sorted({config_class.method for config_class in _METHODS.values()})


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Settings that every method shares. Use one of the subclasses. Settings without effect raise an error.

    Attributes:
        num_spectrogram_masks: N^X, number of masks of the spectrogram.
        num_token_masks: N^Y, number of masks of the previous tokens alone.
        spectrogram_mask_prob: p_spec, the probability that a unit of the spectrogram is perturbed.
        token_mask_prob: p_tok, the probability that a previous token is perturbed.
        impact: "kl" (§4.2), "log-probability" (drop of the token's log-probability, in nats), "probability" (drop of
            the token's probability) or "contrastive" (drop of the token's log-odds against the runner-up in the clean
            run). "auto", the default, is "kl" for the model's own output and "log-probability" for a given text, since
            KL measures how the whole distribution moves, whichever token is explained. With a foil: "log-odds" (the
            default: drop of log2 p(target)/p(foil), in bits), "difference" (drop of the difference of the two
            probabilities) or "relative" (drop of the target's share of their sum).
        word_probability: With a foil, the probability of a word: "word-boundary" (of its tokens and then the end of the
            word), "chain" (of its tokens) or "length-normalised" (geometric mean over its tokens).
        fill: Value of perturbed features: "mean" (of each mel bin over the utterance), "zero", "min" (of the
            spectrogram) or a number.

    Examples:
        >>> ExplainConfig.from_dict({"method": "energy"})
        EnergyConfig(...)
        >>> SpesConfig(fill="zero").to_dict()["fill"]
        'zero'
    """

    num_spectrogram_masks: int = 2_000
    num_token_masks: int = 500
    spectrogram_mask_prob: float = 0.5
    token_mask_prob: float = 0.4
    impact: str = DerivedStr("kl")
    word_probability: str = "word-boundary"
    fill: Fill = "mean"

    method: ClassVar[str]
    unused: ClassVar[tuple[str, ...]] = ()
    """Fields that the method does not use; they must keep their defaults."""
    absent: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Values of fields for configs that were stored before those fields existed."""
    overs: ClassVar[tuple[str, ...]] = ("spectrogram",)
    """What the method's maps can cover, from `OVERS`."""

    def __post_init__(self) -> None:
        if type(self) is ExplainConfig:
            raise ConfigError("ExplainConfig names no method; use one of its subclasses, such as SpesConfig")
        for entry in fields(self):  # convert NumPy numbers to Python numbers, which JSON supports
            value = getattr(self, entry.name)
            if isinstance(value, Real) and not isinstance(value, (bool, int, float)):
                object.__setattr__(self, entry.name, int(value) if isinstance(value, Integral) else float(value))
        if self.impact == "auto":
            object.__setattr__(self, "impact", self._defaults()["impact"])
        self._resolve()
        for name in ("num_spectrogram_masks", "num_token_masks"):
            if name not in self.unused:
                check(self, name, is_count(getattr(self, name)), "a whole number, at least 1")
        for name in ("spectrogram_mask_prob", "token_mask_prob"):
            value = getattr(self, name)
            check(self, name, is_number(value) and 0 < value < 1, "a probability above 0 and below 1")
        impacts = (*IMPACTS, *CONTRASTS)
        check(self, "impact", self.impact in impacts, ", ".join((*impacts, "auto")))
        check(self, "word_probability", self.word_probability in WORD_PROBABILITIES, ", ".join(WORD_PROBABILITIES))
        named = isinstance(self.fill, str) and self.fill in ("mean", "zero", "min")
        check(self, "fill", named or is_number(self.fill), '"mean", "zero", "min" or a finite number')

        self._refuse_unread()

    def with_impact_for(self: ConfigT, text_given: bool, foil: bool = False) -> ConfigT:
        """Return the config with the right impact for the model's own output, for a given text, or for a foil.

        Raises:
            ConfigError: If the user set an impact that needs a foil but there is none, or one that excludes a foil.
        """
        if not foil and self.word_probability != "word-boundary":
            raise ConfigError(
                f"config.word_probability is {self.word_probability!r}, which has an effect only with a foil; pass "
                "foil=… too, or leave it out"
            )
        if isinstance(self.impact, DerivedStr):
            own = "log-probability" if text_given else str(self.impact)
            return self.changed(**self.read({"impact": "log-odds" if foil else own}))
        default = self._defaults()["impact"]
        if foil and self.impact == default and not isinstance(default, DerivedStr):  # the user did not set it
            return self.changed(**self.read({"impact": "log-odds"}))
        if foil and self.impact not in CONTRASTS and self.read({"impact": self.impact}):
            raise ConfigError(f"config.impact is {self.impact!r}; allowed with foil: {', '.join(CONTRASTS)}, auto")
        if not foil and self.impact in CONTRASTS:
            raise ConfigError(
                f"config.impact is {self.impact!r}, which needs a foil; pass the other text as foil=…, or use one of "
                f"{', '.join(IMPACTS)}, auto"
            )
        return self

    def check_over(self, over: Any) -> str:
        """Return ``over`` if it is a name in `OVERS` that the method supports.

        Raises:
            ConfigError: If the name is unknown, or the method cannot draw such a map.
        """
        if over not in OVERS:
            raise ConfigError(f"over is {over!r}; allowed: {', '.join(map(repr, OVERS))}")
        if over not in self.overs:
            able = ", ".join(sorted(c.__name__ for c in set(_METHODS.values()) if over in c.overs))
            raise ConfigError(
                f"over is {over!r}, but config is a {type(self).__name__}, which cannot draw such a map; pass one of "
                f"{able} as config, or leave over out"
            )
        return str(over)

    def prepare(self, utterance: Utterance, device: torch.device) -> AbstractContextManager[None]:
        """Return a context in which threads compute in advance what `plan` needs from the utterance; empty by default.

        It is entered as soon as the utterance is known, before the model generates, and left when the explanation is
        finished. `plan` also works without it.

        Args:
            utterance: The utterance.
            device: Device of the model.
        """
        return nullcontext()

    def plan(self, problem: Problem) -> Sequence[Step | Maps]:
        """Return what the method does for an utterance: runs of the model, or maps that need no run.

        Raises:
            UnsupportedModelError: If the model does not support what the method needs.
        """
        raise ConfigError(f"{type(self).__name__} has no plan; define its method plan(self, problem)")

    @classmethod
    def derived(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that follow from these values if the user does not set them."""
        return {}

    def _resolve(self) -> None:
        for name, value in self.derived(self._values()).items():
            now = getattr(self, name)
            if isinstance(now, (DerivedInt, DerivedStr)) or (now is None and self._defaults()[name] is None):
                object.__setattr__(self, name, value)

    def _refuse_unread(self) -> None:
        """Refuse settings that would have no effect."""
        for name, why in self.unread(self._values()).items():
            default = self._defaults()[name]
            check(self, name, getattr(self, name) == default, f"{default!r}, since {why}; leave it out")

    @classmethod
    def unread(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the fields that a config with these values does not read, each with the reason."""
        return dict.fromkeys(cls.unused, "this method does not read it")

    def _values(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {f.name: f.default for f in fields(cls)}

    def read(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that the config would read."""
        void = self.unread({**self._values(), **settings})
        return {name: value for name, value in settings.items() if name not in void}

    @classmethod
    def reading(cls: type[ConfigT], presets: Mapping[str, Any], **settings: Any) -> ConfigT:
        """Return a config with these settings, plus the presets that still have an effect.

        Args:
            presets: Fields that are dropped if a setting makes them ineffective.
            **settings: Fields that raise an error if they have no effect.
        """
        void = cls.unread({**cls._defaults(), **presets, **settings})
        return cls(**{**{name: value for name, value in presets.items() if name not in void}, **settings})

    def changed(self: ConfigT, **settings: Any) -> ConfigT:
        """Return a changed copy, as `dataclasses.replace` does; fields that lose their effect get their defaults."""
        return type(self).reading(self._values(), **settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, the method and the version of the library, ready for JSON."""
        values = {name: to_json_value(value) for name, value in asdict(self).items()}
        if isinstance(self.impact, DerivedStr):
            values["impact"] = "auto"  # differs from a config with an explicit impact
        return {"method": self.method, "spes_hf_version": __version__, **values}

    @classmethod
    def from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
        """Return the config that `to_dict` wrote; on `ExplainConfig`, the method selects the class.

        Older versions allowed settings without effect; in a stored config they are ignored with a warning.

        Raises:
            ConfigError: If the method or a field is unknown, or a value is not allowed.
        """
        values = {name: value for name, value in values.items() if (name, value) != ("impact", "auto")}
        method = values.pop("method", getattr(cls, "method", None))
        stored, version = "spes_hf_version" in values, values.pop("spes_hf_version", __version__)
        if not isinstance(method, str) or method not in _METHODS:
            raise ConfigError(f"method is {method!r}; known methods: {', '.join(list_methods())}")
        config_class = _METHODS[method]
        if not issubclass(config_class, cls):
            raise ConfigError(f"method is {method!r}, which is a {config_class.__name__}, not a {cls.__name__}")
        unknown = sorted(values.keys() - {f.name for f in fields(config_class)})
        if unknown:
            raise ConfigError(
                f"{config_class.__name__} has no field {', '.join(unknown)} (written by spes_hf {version}; this is "
                f"{__version__}); allowed: {', '.join(f.name for f in fields(config_class))}"
            )
        defaults = config_class._defaults()
        if stored:
            void = config_class.unread({**defaults, **values})
            older = {name: value for name, value in config_class.absent.items() if name not in {*values, *void}}
            values = {**older, **values}
        own = config_class.derived({**defaults, **values})
        values = {name: value for name, value in values.items() if name not in own or value != own[name]}
        if stored:
            for name in config_class.unread({**defaults, **values}):
                if to_json_value(values.pop(name, defaults[name])) != to_json_value(defaults[name]):
                    warnings.warn(f"stored {config_class.__name__}.{name} has no effect and is ignored", stacklevel=2)
        return config_class(**values)

    def to_json(self, path: str | Path) -> None:
        """Write the config to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls: type[ConfigT], path: str | Path) -> ConfigT:
        """Return the config in a JSON file.

        Raises:
            ConfigError: If the file does not contain a JSON object with a valid config.
        """
        try:
            values = read_json(path)
        except (OSError, TextFileError) as error:
            raise ConfigError(f"path {str(path)!r} cannot be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"path {str(path)!r} contains a {type(values).__name__}; expected a JSON object")
        return cls.from_dict(values)

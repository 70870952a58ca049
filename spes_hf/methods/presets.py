"""`SpesConfig`'s presets by name, for command lines."""

from __future__ import annotations

from typing import Any, Literal

from spes_hf.errors import ConfigError
from spes_hf.methods.spes import SpesConfig
from spes_hf.names import PRESETS


def preset(name: str, task: Literal["asr", "st"] = "asr", **overrides: Any) -> SpesConfig:
    """Return the `SpesConfig` preset with this name: "fast", "default" or "paper".

    Raises:
        ConfigError: If there is no preset with this name.
    """
    if name == "fast":
        return SpesConfig.fast(**overrides)
    if name == "default":
        return SpesConfig(**overrides)
    if name == "paper":
        return SpesConfig.paper(task, **overrides)
    raise ConfigError(f"preset is {name!r}; allowed: {', '.join(PRESETS)}")

"""Checks of arguments and of a config's fields, and field values that follow from other fields."""

from __future__ import annotations

import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, TypeAlias

from spes_hf.errors import ConfigError

# Whether to show a progress bar, or what to call with the share that is done.
Progress: TypeAlias = bool | Callable[[float], object]


class DerivedInt(int):
    """A whole number that follows from other fields: `dataclasses.replace` works it out anew."""


class DerivedStr(str):
    """A name that follows from other fields, likewise."""


def to_json_value(value: Any) -> Any:
    """Return a value as JSON holds it."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, DerivedInt):
        return int(value)
    return str(value) if isinstance(value, DerivedStr) else value


def check(config: Any, name: str, ok: bool, allowed: str) -> None:
    """Refuse a field's value unless it is as it should be.

    Raises:
        ConfigError: Naming the field, its value and what is allowed.
    """
    if not ok:
        raise ConfigError(f"{type(config).__name__}.{name} is {getattr(config, name)!r}; allowed: {allowed}")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and bool(abs(value) <= sys.float_info.max)


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number, at least 1."""
    return is_whole(value) and value >= 1


def check_whole(name: str, value: Any) -> int:
    """Return a whole number.

    Raises:
        ConfigError: If it is none.
    """
    if not is_whole(value):
        raise ConfigError(f"{name} is {value!r}; allowed: a whole number")
    return int(value)


def check_count(name: str, value: Any) -> int:
    """Return a whole number from 1 up.

    Raises:
        ConfigError: If it is none.
    """
    if not is_count(value):
        raise ConfigError(f"{name} is {value!r}; allowed: a whole number, at least 1")
    return int(value)


def check_share(name: str, value: Any) -> float:
    """Return a share above 0 and at most 1.

    Raises:
        ConfigError: If it is none.
    """
    if not (is_number(value) and 0 < value <= 1):
        raise ConfigError(f"{name} is {value!r}; allowed: a share above 0 and at most 1")
    return float(value)


def check_progress(value: Any) -> Callable[[float], object] | None:
    """Return what is to be called with the share that is done; None: nothing is.

    Raises:
        ConfigError: If it is neither that nor whether to show a bar.
    """
    if isinstance(value, bool):
        return None
    if not callable(value):
        raise ConfigError(f"progress is {value!r}; allowed: True, False, or a function of the share that is done")
    return value


def summed_up(watcher: Callable[[float], object]) -> Callable[[float], None]:
    """Return what takes the share that each part does, and tells a watcher what is done so far."""
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        done = min(1.0, round(done + share, 9))
        watcher(done)

    return advance

"""Checks for arguments and config fields, and types for field values derived from other fields."""

from __future__ import annotations

import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, TypeAlias

from spes_hf.errors import ConfigError

# Whether to show a progress bar, or a function to call with the share that is done.
Progress: TypeAlias = bool | Callable[[float], object]


class DerivedInt(int):
    """A whole number derived from other fields: `dataclasses.replace` computes it again."""


class DerivedStr(str):
    """A name derived from other fields, likewise."""


def to_json_value(value: Any) -> Any:
    """Return a value in the form that JSON can store."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, DerivedInt):
        return int(value)
    return str(value) if isinstance(value, DerivedStr) else value


def check(config: Any, name: str, ok: bool, allowed: str) -> None:
    """Raise an error if a field's value is not allowed.

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
    """Return the value if it is a whole number.

    Raises:
        ConfigError: If it is not.
    """
    if not is_whole(value):
        raise ConfigError(f"{name} is {value!r}; allowed: a whole number")
    return int(value)


def check_count(name: str, value: Any) -> int:
    """Return the value if it is a whole number of at least 1.

    Raises:
        ConfigError: If it is not.
    """
    if not is_count(value):
        raise ConfigError(f"{name} is {value!r}; allowed: a whole number, at least 1")
    return int(value)


def check_share(name: str, value: Any) -> float:
    """Return the value if it is a share above 0 and at most 1.

    Raises:
        ConfigError: If it is not.
    """
    if not (is_number(value) and 0 < value <= 1):
        raise ConfigError(f"{name} is {value!r}; allowed: a share above 0 and at most 1")
    return float(value)


def check_progress(value: Any) -> Callable[[float], object] | None:
    """Return the function to call with the share that is done, or None if ``progress`` is a bool.

    Raises:
        ConfigError: If the value is neither a bool nor a function.
    """
    if isinstance(value, bool):
        return None
    if not callable(value):
        raise ConfigError(f"progress is {value!r}; allowed: True, False, or a function that takes the share done")
    return value


def summed_up(watcher: Callable[[float], object]) -> Callable[[float], None]:
    """Return a function that adds up the shares of the parts and passes the total so far to a watcher."""
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        done = min(1.0, round(done + share, 9))
        watcher(done)

    return advance

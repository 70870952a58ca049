"""Hooks on the user's model that concern nobody but the thread that set them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def forward_hook(module: torch.nn.Module, hook: Callable[[Any], Any]) -> Iterator[None]:
    """Call a hook with the output of every pass through a module until the context ends; what it returns replaces it.

    Passes in other threads stay as they are. So do those of a copy of the module that was made meanwhile, which keeps
    the hook: by `copy.deepcopy`, by pickling, by a fork.

    Args:
        module: Part of the model.
        hook: Gets the output; returns another one, or None to leave it.
    """
    own = _OfThisThread(hook)
    handle = module.register_forward_hook(own)
    try:
        yield
    finally:
        own.live = False
        handle.remove()


class _OfThisThread:
    """A hook for the thread that makes it, until it is not ``live`` any more; a copy of it does nothing."""

    def __init__(self, hook: Callable[[Any], Any]):
        self.hook = hook
        self.process, self.thread, self.live = os.getpid(), threading.get_ident(), True

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        """Return what the hook makes of the output; None to leave it."""
        mine = self.thread == threading.get_ident() and self.process == os.getpid()
        return self.hook(output) if self.live and mine else None

    def __reduce__(self) -> Any:
        """Return what copies are made of: a module-level function, which every pickler knows by its name."""
        return _copy_of_a_hook, ()


def _copy_of_a_hook() -> Callable[..., None]:
    return _nothing


def _nothing(*arguments: Any) -> None:
    return None

"""Hooks on the user's model that affect only the thread that set them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def forward_hook(module: torch.nn.Module, hook: Callable[[Any], Any]) -> Iterator[None]:
    """While the context lasts, call a hook with the output of every pass through a module; its result replaces it.

    Passes in other threads are not affected. Neither are copies of the module that are made meanwhile (with
    `copy.deepcopy`, pickling or a fork), although they keep the hook.

    Args:
        module: Part of the model.
        hook: Receives the output; returns a replacement, or None to keep the output.
    """
    own = _OfThisThread(hook)
    handle = module.register_forward_hook(own)
    try:
        yield
    finally:
        own.live = False
        handle.remove()


class _OfThisThread:
    """A hook for the thread that creates it, as long as it is ``live``; copies of it do nothing."""

    def __init__(self, hook: Callable[[Any], Any]):
        self.hook = hook
        self.process, self.thread, self.live = os.getpid(), threading.get_ident(), True

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        """Return the hook's replacement for the output; None to keep the output."""
        mine = self.thread == threading.get_ident() and self.process == os.getpid()
        return self.hook(output) if self.live and mine else None

    def __reduce__(self) -> Any:
        """Return how to build copies: from a module-level function, which every pickler finds by name."""
        return _copy_of_a_hook, ()


def _copy_of_a_hook() -> Callable[..., None]:
    return _nothing


def _nothing(*arguments: Any) -> None:
    return None

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
    process, thread, live = os.getpid(), threading.get_ident(), True

    def own(module: torch.nn.Module, args: Any, output: Any) -> Any:
        mine = thread == threading.get_ident() and process == os.getpid()
        return hook(output) if live and mine else None

    handle = module.register_forward_hook(own)
    try:
        yield
    finally:
        live = False
        handle.remove()

"""Errors of single rows: how they are recorded, and which of them end a job."""

from __future__ import annotations

import torch

from spes_hf.errors import RankError


def describe_error(error: Exception) -> str:
    """Return an error on one line, its kind first."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def is_fatal(error: Exception) -> bool:
    """Return whether all later utterances would fail in the same way: the accelerator or another process is lost."""
    if isinstance(error, RankError):
        return error.lost
    kind = getattr(torch, "AcceleratorError", None)
    return kind is not None and isinstance(error, kind) and not isinstance(error, torch.OutOfMemoryError)

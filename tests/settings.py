"""Settings that many tests share."""

from __future__ import annotations

from typing import Any

from spes_hf import SpesConfig


def pyramid(**overrides: Any) -> SpesConfig:
    """Return Eq. 3 on a pyramid of three levels that differ, with few masks."""
    values: dict[str, Any] = dict(
        estimator="perturbation",
        num_spectrogram_masks=300,
        num_token_masks=200,
        patches_per_second=(20.0, 80.0, 400.0),
    )
    return SpesConfig(**{**values, **overrides})

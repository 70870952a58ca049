"""Everything needed to make an explanation again."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from spes_hf import __version__
from spes_hf.adapters import Adapter, GenerationOptions, Target, Utterance
from spes_hf.adapters.types import OPTIONS
from spes_hf.methods import ExplainConfig
from spes_hf.methods.run import Maps
from spes_hf.plain import to_plain
from spes_hf.runtime.identity import describe_model


def describe(
    adapter: Adapter,
    config: ExplainConfig,
    utterance: Utterance,
    target: Target,
    options: GenerationOptions,
    maps: Maps,
    *,
    seed: int,
    utterance_id: str,
    text_given: bool,
    foil: Any,
    autocast: str | None,
    compiled: bool,
    forward_passes: int,
    backward_passes: int,
    seconds: float,
    window: Mapping[str, Any] | None = None,
    over: str = "spectrogram",
    processes: int = 1,
) -> dict[str, Any]:
    """Return the provenance of an explanation as values for JSON; `Origin` reads it."""
    model = adapter.model
    return {
        "config": config.to_dict(),
        "seed": seed,
        "utterance_id": utterance_id,
        "model": {
            **describe_model(model),
            "dtype": str(adapter.dtype).removeprefix("torch."),
            "device": str(adapter.device),
            **({} if autocast is None else {"autocast": autocast}),
            **({"compiled": True} if compiled else {}),
        },
        "processor": type(adapter.processor).__name__,
        "audio": {
            "source": utterance.waveform.source,
            "notes": list(utterance.waveform.notes),
            "duration_s": utterance.duration_s,
            "frames": len(utterance.times),
        },
        "output": {
            "given": text_given,
            **({} if foil is None else {"foil": to_plain(foil)}),
            "prefix": adapter.pieces(target.prefix_ids),
            "prefix_ids": target.prefix_ids.tolist(),
            "start": adapter.start_index(target.prefix_ids),
            "reached_length_limit": not target.complete,
            **({} if target.audio_at is None else {"audio_at": target.audio_at}),
            **options.given(*OPTIONS),
            "generate_kwargs": {str(k): to_plain(v) for k, v in options.generate_kwargs.items()},
        },
        **({} if over == "spectrogram" else {"over": over}),
        **({} if window is None else {"window": dict(window)}),
        "patches": [] if maps.audio is None else [scores.shape[1] for scores in maps.audio.values],
        "cost": {
            "forward_passes": forward_passes,
            "backward_passes": backward_passes,
            "seconds": round(seconds, 3),
            **({} if processes == 1 else {"processes": processes}),
        },
        "versions": dict(_versions()),
    }


@cache
def _versions() -> Mapping[str, str]:
    """Return the versions of the libraries that make an explanation; reading them opens files."""
    names = ("torch", "transformers", "numpy", "scikit-image")
    own = {"spes_hf": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in names}

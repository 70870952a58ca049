"""The folder of a recording that is being explained: its sound, and the settings of the call."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from spes_hf.adapters import Adapter, GenerationOptions
from spes_hf.audio.load import Waveform
from spes_hf.errors import ConfigError, ExplanationFormatError
from spes_hf.explanation.recording_plan import AUDIO, DESCRIPTION, RecordingPlan, read_plan
from spes_hf.methods import ExplainConfig
from spes_hf.plain import is_lost, to_plain
from spes_hf.runtime.identity import model_identity, processor_identity

_BLOCK = 1 << 20


def store_audio(waveform: Waveform, place: Path) -> None:
    """Write a recording next to its windows as 16-bit FLAC, for listening."""
    with soundfile.SoundFile(place / AUDIO, "w", waveform.sampling_rate, 1, "PCM_16", format="FLAC") as file:
        for start in range(0, len(waveform.samples), _BLOCK):
            file.write(np.clip(waveform.samples[start : start + _BLOCK], -1, 1))


@dataclass(frozen=True)
class Asked:
    """What a user asks for a recording.

    Attributes:
        waveform: The recording.
        options: How the model generates.
        config: Method and settings.
        utterance_id: Gives every utterance of a corpus its own masks.
        named: Words, tokens and timestamps, as for `spes_hf.explain`.
        part: Start, end and segment, likewise.
        over: Likewise.
    """

    waveform: Waveform
    options: GenerationOptions
    config: ExplainConfig
    utterance_id: str
    named: Mapping[str, Any]
    part: Mapping[str, Any]
    over: str = "spectrogram"

    @property
    def settings(self) -> dict[str, Any]:
        """All but the sound, as values for JSON."""
        options = self.options
        return {
            "config": self.config.to_dict(),
            **({} if self.over == "spectrogram" else {"over": self.over}),
            **{name: to_plain(value) for name, value in {**self.part, **self.named}.items()},
            **{name: getattr(options, name) for name in ("language", "task", "tgt_lang")},
            **options.given("prompt"),
            "generate_kwargs": {str(k): to_plain(v) for k, v in options.generate_kwargs.items()},
        }


def identity_of(adapter: Adapter, seed: int, autocast: str | None, asked: Asked) -> dict[str, Any]:
    """Return what identifies a recording and a call, so that only the same call can continue its folder."""
    samples = asked.waveform.samples
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(samples), _BLOCK):
        digest.update(np.ascontiguousarray(samples[start : start + _BLOCK], dtype=np.float32).tobytes())
    return {
        "audio": digest.hexdigest(),
        "model": model_identity(adapter.model),
        "processor": processor_identity(adapter.processor),
        "seed": seed,
        "autocast": autocast,
        "utterance_id": asked.utterance_id,
        **asked.settings,
    }


def known_plan(place: Path, identity: Mapping[str, Any]) -> RecordingPlan | None:
    """Return the plan that an interrupted call left in a folder; None if there is none.

    Raises:
        ConfigError: If the folder holds something else, or another recording.
    """
    if not (place / DESCRIPTION).is_file():
        if any(path.name[:1] != "." and path.name != AUDIO for path in place.iterdir()):
            raise ConfigError(f"folder is {str(place)!r}, which holds other files; pass a new folder")
        return None
    try:
        plan = read_plan(place)
    except ExplanationFormatError as error:
        raise ConfigError(f"folder is {str(place)!r}, which cannot be continued: {error}") from error
    lost = [name for name, value in identity["generate_kwargs"].items() if is_lost(value)]
    if lost:
        raise ConfigError(
            f"folder is {str(place)!r}, which holds a recording, but {', '.join(lost)} in generate_kwargs cannot be "
            "compared with the value used for it; pass a new folder"
        )
    names = dict.fromkeys([*plan.identity, *identity])
    differing = [name for name in names if plan.identity.get(name) != identity.get(name)]
    if differing:
        raise ConfigError(
            f"folder is {str(place)!r}, which holds another recording (different: {', '.join(differing)}); pass the "
            "same audio, model and settings to continue, or another folder"
        )
    return plan

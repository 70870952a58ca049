"""Baselines for every score: an explanation with the maps of a method that needs no model, instead of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, overload

import torch

from spes_hf.adapters.types import Target, Utterance
from spes_hf.audio.load import Waveform
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.explanation.recording import Recording
from spes_hf.methods import EnergyConfig, ExplainConfig, RandomConfig
from spes_hf.methods.run import Maps, Problem

BASELINES: dict[str, ExplainConfig] = {"random": RandomConfig(), "energy": EnergyConfig()}
"""Methods that do not run the model, by name."""


@overload
def baseline_of(found: Explanation, config: ExplainConfig, seed: int = 0) -> Explanation: ...
@overload
def baseline_of(found: Recording, config: ExplainConfig, seed: int = 0) -> Recording: ...
def baseline_of(found: Explanation | Recording, config: ExplainConfig, seed: int = 0) -> Explanation | Recording:
    """Return an explanation, or a recording, with the maps of another method that runs no model.

    Args:
        found: The explanation or recording.
        config: Config of the other method, one of `BASELINES`.
        seed: Seed for random maps.

    Raises:
        ConfigError: If the rows are contrasts, or the method runs the model.
    """
    if isinstance(found, Recording):
        return _OtherMaps(found, config, seed)
    if found.contrasts is not None:
        raise ConfigError(
            f"explanation of {found.text!r} has a foil, but baselines are for tokens; explain it without foil"
        )
    plan = config.plan(_problem(found, seed))
    steps = [part for part in plan if isinstance(part, Maps)]
    if len(steps) < len(plan):
        raise ConfigError(f"config is {config!r}, which runs the model; allowed: {', '.join(BASELINES)}")
    maps: Any = Maps.merged(steps)  # a method that runs no model returns all parts
    return replace(
        found,
        audio_map=maps.audio,
        raw_token_scores=maps.token,
        sound_impact=maps.sound_impact,
        text_impact=maps.text_impact,
        token_reliability=maps.reliability,
        sentence_map=None,
        encoder_map=None,
        groups=None,
        context_groups=None,
        provenance={**found.provenance, "config": config.to_dict(), "seed": seed},
    )


def _problem(explanation: Explanation, seed: int) -> Problem:
    """Return the problem of an explanation, as far as the explanation records it, without the model."""
    waveform = Waveform(explanation.waveform.numpy(), explanation.sampling_rate, explanation.origin.source)
    utterance = Utterance(waveform, explanation.features, {}, explanation.times, explanation.frequencies)
    prefix = torch.zeros(explanation.prefix_length, dtype=torch.int64, device="cpu")  # only its length matters
    tokens = torch.tensor(explanation.written_ids, dtype=torch.int64, device="cpu")
    target = Target(prefix, tokens, complete=not explanation.origin.reached_length_limit)
    rows = None if explanation.part is None else list(explanation.part.rows)
    valid = target.valid if rows is None else target.valid[rows]
    name = explanation.origin.utterance_id
    return Problem(utterance, target, torch.device("cpu"), seed, name, rows=valid, explained=rows)


class _OtherMaps(Recording):
    """A recording with the maps of another method in its windows."""

    def __init__(self, recording: Recording, config: ExplainConfig, seed: int):
        super().__init__(recording.folder)
        self._recording = recording  # keeps its temporary folder alive
        self._config, self._seed = config, seed

    def __getitem__(self, index: Any) -> Any:
        """Return the explanation of a window, or a list of them."""
        found = super().__getitem__(index)
        return found if isinstance(index, slice) else baseline_of(found, self._config, self._seed)

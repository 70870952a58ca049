"""What methods share: functions that turn scores into maps, and the run over tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from spes_hf.explanation.maps import EncoderMap, PatchMap
from spes_hf.functional import ratio
from spes_hf.masking.perturbations import TokenPerturbation
from spes_hf.methods.run import Maps, Problem, Run
from spes_hf.scoring.scores import UnitScores


def read_audio(labels: Tensor) -> Callable[[UnitScores], Maps]:
    """Return a function that turns scores of patches, (L, T, C), into the map of the spectrogram."""
    return lambda scores: Maps(
        audio=PatchMap.of(labels, scores.values, scores.weights), sound_impact=scores.mean_impact
    )


def read_encoder(problem: Problem) -> Callable[[UnitScores], Maps]:
    """Return a function that turns scores of positions of the encoder's output, of one level, into their map."""

    def read(scores: UnitScores) -> Maps:
        (values,) = scores.values
        found = values if scores.weights is None else ratio(values, scores.weights[0].expand_as(values))
        return Maps(encoder=EncoderMap(found.cpu().float(), problem.encoder.positions.times))

    return read


def read_tokens(problem: Problem) -> Callable[[UnitScores], Maps]:
    """Return a function that turns the sums of Eq. 3 over decoder inputs, of one level, into their map."""

    def read(scores: UnitScores) -> Maps:
        (values,), (weights,) = scores.values, scores.weights or ()
        counts = weights.expand_as(values)
        raw = ratio(values, counts).float().masked_fill(~problem.valid, torch.nan)
        # Text means the tokens that the model itself wrote.
        written = problem.valid.clone()
        written[:, : len(problem.target.prefix_ids)] = False
        return Maps(token=raw, text_impact=ratio((values * written).sum(1), (counts * written).sum(1)).float())

    return read


class TokenSettings(Protocol):
    """The settings that the run over tokens reads from a config."""

    @property
    def num_token_masks(self) -> int:
        """N^Y."""

    @property
    def token_mask_prob(self) -> float:
        """p_tok."""


def token_run(settings: TokenSettings, problem: Problem) -> Run:
    """Return the run over previous tokens that all methods share, with a clean spectrogram (§4.1.2)."""
    perturbation = token_perturbation(settings, problem, "token")
    return Run(perturbation, problem.eq3(), read_tokens(problem))


def token_perturbation(settings: TokenSettings, problem: Problem, stream: str) -> TokenPerturbation:
    """Return the perturbation of the previous tokens, with masks from this stream."""
    return TokenPerturbation(
        units=len(problem.target.context_ids),
        key=problem.key(stream),
        mask_prob=settings.token_mask_prob,
        num_masks=settings.num_token_masks,
        device=problem.device,
    )

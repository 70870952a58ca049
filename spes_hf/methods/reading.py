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
    """Return a function that turns scores of patches, (L, T, C), into the map of the spectrogram.

    Examples:
        >>> from spes_hf.scoring.scores import UnitScores
        >>> labels = torch.tensor([[[0, 0], [1, 1]]])  # two frames, each a patch
        >>> scores = UnitScores((torch.tensor([[2.0, 4.0]]),), None, mean_impact=torch.tensor([3.0]))
        >>> read_audio(labels)(scores).audio.dense(0).tolist()
        [[2.0, 2.0], [4.0, 4.0]]
    """
    return lambda scores: Maps(
        audio=PatchMap.of(labels, scores.values, scores.weights), sound_impact=scores.mean_impact
    )


def read_encoder(problem: Problem) -> Callable[[UnitScores], Maps]:
    """Return a function that turns scores of positions of the encoder's output, of one level, into their map.

    Examples:
        >>> from spes_hf.audio.load import load_audio
        >>> from spes_hf.methods.run import Problem
        >>> from spes_hf.scoring.encoder import EncoderOutput
        >>> from spes_hf.scoring.scores import UnitScores
        >>> adapter = get_adapter(model, processor)
        >>> utterance = adapter.encode(load_audio(clip, 16_000))
        >>> target, states = adapter.generate_with_states(utterance, adapter.options_of())
        >>> output = EncoderOutput(adapter, utterance, target, states, tokens=[[0]])
        >>> problem = Problem(utterance, target, adapter.device, seed=0, utterance_id="one", encoder_output=output)
        >>> sums, counts = torch.full((1, len(output.positions)), 6.0), torch.full((len(output.positions),), 3.0)
        >>> found = read_encoder(problem)(UnitScores((sums,), (counts,), mean_impact=torch.tensor([2.0]))).encoder
        >>> found.scores.unique().tolist(), torch.equal(found.times, output.positions.times)
        ([2.0], True)
    """

    def read(scores: UnitScores) -> Maps:
        (values,) = scores.values
        found = values if scores.weights is None else ratio(values, scores.weights[0].expand_as(values))
        return Maps(encoder=EncoderMap(found.cpu().float(), problem.encoder.positions.times))

    return read


def read_tokens(problem: Problem) -> Callable[[UnitScores], Maps]:
    """Return a function that turns the sums of Eq. 3 over decoder inputs, of one level, into their map.

    Examples:
        >>> from spes_hf.adapters import Target
        >>> from spes_hf.audio.load import load_audio
        >>> from spes_hf.methods.run import Problem
        >>> from spes_hf.scoring.scores import UnitScores
        >>> utterance = get_adapter(model, processor).encode(load_audio(clip, 16_000))
        >>> target = Target(prefix_ids=torch.tensor([2]), token_ids=torch.tensor([7, 2]), complete=True)
        >>> problem = Problem(utterance, target, torch.device("cpu"), seed=0, utterance_id="one")
        >>> sums, counts = torch.tensor([[1.0, 4.0], [2.0, 6.0]]), torch.tensor([2.0, 2.0])
        >>> read_tokens(problem)(UnitScores((sums,), (counts,), mean_impact=torch.zeros(2))).token.tolist()
        [[0.5, nan], [1.0, 3.0]]
    """

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
    """Return the run over previous tokens that all methods share, with a clean spectrogram (§4.1.2).

    Examples:
        >>> from spes_hf.adapters import Target
        >>> from spes_hf.audio.load import load_audio
        >>> from spes_hf.methods.run import Problem
        >>> utterance = get_adapter(model, processor).encode(load_audio(clip, 16_000))
        >>> target = Target(prefix_ids=torch.tensor([2]), token_ids=torch.tensor([7, 8, 2]), complete=True)
        >>> problem = Problem(utterance, target, torch.device("cpu"), seed=0, utterance_id="one")
        >>> token_run(SpesConfig(num_token_masks=40), problem).passes  # one for each mask
        40
    """
    perturbation = token_perturbation(settings, problem, "token")
    return Run(perturbation, problem.eq3(), read_tokens(problem))


def token_perturbation(settings: TokenSettings, problem: Problem, stream: str) -> TokenPerturbation:
    """Return the perturbation of the previous tokens, with masks from this stream.

    Examples:
        >>> from spes_hf.adapters import Target
        >>> from spes_hf.audio.load import load_audio
        >>> from spes_hf.methods.run import Problem
        >>> utterance = get_adapter(model, processor).encode(load_audio(clip, 16_000))
        >>> target = Target(prefix_ids=torch.tensor([2]), token_ids=torch.tensor([7, 8, 2]), complete=True)
        >>> problem = Problem(utterance, target, torch.device("cpu"), seed=0, utterance_id="one")
        >>> masks = token_perturbation(SpesConfig(), problem, "token").draw(level=0, rows=range(4))
        >>> tuple(masks.keep.shape)  # 4 masks over the start token, 7 and 8
        (4, 3)
    """
    return TokenPerturbation(
        units=len(problem.target.context_ids),
        key=problem.key(stream),
        mask_prob=settings.token_mask_prob,
        num_masks=settings.num_token_masks,
        device=problem.device,
    )

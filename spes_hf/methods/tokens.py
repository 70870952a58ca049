"""The run over previous tokens, which every method that perturbs them shares (§4.1.2)."""

from __future__ import annotations

from spes_hf.masking.perturbations import TokenPerturbation
from spes_hf.methods.base import ExplainConfig
from spes_hf.methods.run import Problem, Run, read_tokens
from spes_hf.scoring.eq3 import PerturbationEstimator


def token_run(config: ExplainConfig, problem: Problem) -> Run:
    """Return the run that perturbs the previous tokens, the spectrogram being clean."""
    perturbation = token_perturbation(config, problem, "token")
    return Run(perturbation, PerturbationEstimator(levels=1), read_tokens(problem.target))


def token_perturbation(config: ExplainConfig, problem: Problem, stream: str) -> TokenPerturbation:
    """Return the perturbation of the previous tokens whose masks come from this stream."""
    return TokenPerturbation(
        units=len(problem.target.context_ids),
        key=problem.key(stream),
        mask_prob=config.token_mask_prob,
        num_masks=config.num_token_masks,
        device=problem.device,
    )

"""How much likelier the sound, and the written text, made each token: two passes in addition to the clean one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spes_hf.adapters.base import Adapter
from spes_hf.adapters.types import Target, Utterance
from spes_hf.finite import check_logits
from spes_hf.functional import evidence_bits, token_probabilities
from spes_hf.masking.perturbations import fill_values

# Number of passes of `measure_evidence`.
PASSES = 2


@dataclass(frozen=True)
class Evidence:
    """Evidence from sound and text for each token.

    Attributes:
        probabilities: (K,) float32, probabilities of the tokens in the clean run.
        sound_bits: (K,) float32, log2 of how much likelier the sound made the token, given the text before it.
        text_bits: (K,) float32, the same for the text that the model wrote before it, given the sound.
        instruction_bits: (K,) float32, the same for the instruction, given sound and text; None without an instruction.
        all_sound_bits: Sound bits of all output tokens, if only some are explained.
    """

    probabilities: Tensor
    sound_bits: Tensor
    text_bits: Tensor
    instruction_bits: Tensor | None = None
    all_sound_bits: Tensor | None = None


def measure_evidence(
    adapter: Adapter,
    utterance: Utterance,
    target: Target,
    reference: Tensor | None = None,
    fill: Any = "mean",
    states: Tensor | None = None,
    cross: Sequence[tuple[Tensor, Tensor]] | None = None,
    of_text: bool = True,
) -> Evidence:
    """Return the evidence for each token of an output.

    To remove the sound, every true frame of the spectrogram is set to its fill value; padding stays. To remove the
    text, the embeddings of the tokens that the model wrote are set to zero; start and prompt tokens stay. To remove the
    instruction, only the embeddings of its own text are set to zero (`Target.instruction`).

    Args:
        adapter: The model's adapter.
        utterance: The utterance.
        target: The output.
        reference: (K, V) logits of the clean run; None: computed here.
        fill: "mean" (of each mel bin over the utterance), "zero", "min" or a number.
        states: (1, S, D) the encoder's output for the clean sound; saves a pass.
        cross: Return value of `Adapter.cross_attention` for these states.
        of_text: Whether to measure the evidence of text and instruction too; if not, the text bits are NaN, which saves
            passes.

    Raises:
        NumericsError: If logits are NaN or infinite.
    """
    features, ids = utterance.features, target.token_ids.to(adapter.device)
    silence = fill_values(fill, features).expand_as(features)[None].to(adapter.device)

    def logits_of(what: str, **inputs: Any) -> Tensor:
        logits = adapter.logits(utterance, target, **inputs)[0]
        check_logits(logits, f"logits {what}", adapter.dtype)
        return logits

    with torch.no_grad():
        clean = logits_of("of the clean run", states=states) if reference is None else reference
        sound_bits = evidence_bits(clean, logits_of("without sound", features=silence), ids)
        text_bits, instruction_bits = torch.full_like(sound_bits, torch.nan), None
        if of_text:
            inputs: dict[str, Any] = {"states": states, "cross": cross}
            no_text = logits_of("without text", token_keep=without_text(target, adapter.device), **inputs)
            text_bits = evidence_bits(clean, no_text, ids)
            if target.instruction:
                keep = without(target.instruction, target, adapter.device)
                uninstructed = logits_of("without instruction", token_keep=keep, **inputs)
                instruction_bits = evidence_bits(clean, uninstructed, ids).cpu()
        return Evidence(token_probabilities(clean, ids).cpu(), sound_bits.cpu(), text_bits.cpu(), instruction_bits)


def without_text(target: Target, device: torch.device) -> Tensor:
    """Return the mask that hides the tokens that the model wrote, (1, J) bool."""
    return without(range(len(target.prefix_ids), len(target.context_ids)), target, device)


def without(hidden: Sequence[int], target: Target, device: torch.device) -> Tensor:
    """Return the mask that hides these decoder inputs, (1, J) bool."""
    keep = torch.ones(1, len(target.context_ids), dtype=torch.bool, device=device)
    keep[:, list(hidden)] = False
    return keep

"""How much likelier the sound, and the written text, made each token: two passes more than the clean one."""

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

# Passes that `measure_evidence` takes.
PASSES = 2


@dataclass(frozen=True)
class Evidence:
    """What sound and text said of each token.

    Attributes:
        probabilities: (K,) float32 of the tokens in the clean run.
        sound_bits: (K,) float32, log2 of how much likelier the sound made the token, the text before it given.
        text_bits: (K,) float32, the same for the text that the model wrote before it, the sound given.
        instruction_bits: (K,) float32, the same for the instruction, sound and text given; None where there is none.
        all_sound_bits: The sound bits of all tokens of the output, where only some are explained.
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

    Without the sound, every true frame of the spectrogram is at its fill value; padding stays. Without the text, the
    embeddings of the tokens that the model wrote are zero; those of start and prompt tokens stay. Without the
    instruction, those of its own text are zero (`Target.instruction`), and nothing else.

    Args:
        adapter: Of the model.
        utterance: The utterance.
        target: The output.
        reference: (K, V) logits of the clean run; None: they are worked out.
        fill: "mean" (of each mel bin over the utterance), "zero", "min" or a number.
        states: (1, S, D) the encoder's output for the clean sound, which spares a pass.
        cross: What `Adapter.cross_attention` returned for them.
        of_text: Whether to measure the part of text and instruction as well; else the text's bits are NaN, and passes
            are spared.

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
    """Return the mask that hides what the model wrote, (1, J) bool."""
    return without(range(len(target.prefix_ids), len(target.context_ids)), target, device)


def without(hidden: Sequence[int], target: Target, device: torch.device) -> Tensor:
    """Return the mask that hides these decoder inputs, (1, J) bool."""
    keep = torch.ones(1, len(target.context_ids), dtype=torch.bool, device=device)
    keep[:, list(hidden)] = False
    return keep

"""Runs what a method plans, and puts the results together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spes_hf.adapters import Adapter
from spes_hf.adapters.output import Output
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.explanation.parts import Part
from spes_hf.methods import ExplainConfig
from spes_hf.methods.run import Maps, Problem
from spes_hf.runtime.batching import Batch, FoundSizes, starting_batch_size
from spes_hf.runtime.ranks import Ranks
from spes_hf.scoring.contrast import Contrast
from spes_hf.scoring.evidence import Evidence
from spes_hf.scoring.objective import Objective


@dataclass
class Passes:
    """Number of copies run through the model, forwards and backwards, including those of batches that failed later."""

    forward: int = 0
    backward: int = 0

    def count(self, inputs: Tensor) -> None:
        """Count a batch that ran forwards with these inputs, (B, …), and later each of its backward passes."""
        self.forward += len(inputs)
        if inputs.requires_grad:
            inputs.register_hook(self._count_backward)

    def add_up(self, before: Passes, ranks: Ranks) -> None:
        """Add the passes of the other processes, except those in ``before``, which every process ran by itself."""
        own = (self.forward - before.forward, self.backward - before.backward)
        forward, backward = map(sum, zip(*ranks.gather("passes", own), strict=True))
        self.forward, self.backward = before.forward + forward, before.backward + backward

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


@dataclass(frozen=True)
class Found:
    """The results for one output.

    Attributes:
        maps: All maps.
        evidence: Bits from sound and text for each row.
        passes: The passes it took.
        contrasts: The rows, if they are contrasts.
        rows: Indices of the explained tokens; None: all.
        over: What the maps are over, as for `spes_hf.explain`.
    """

    maps: Maps
    evidence: Evidence
    passes: Passes
    contrasts: tuple[Contrast, ...] | None = None
    rows: Sequence[int] | None = None
    over: str = "spectrogram"

    def explanation(self, adapter: Adapter, output: Output, provenance: dict[str, Any]) -> Explanation:
        """Return the results as an explanation.

        Args:
            adapter: The model's adapter.
            output: What is explained.
            provenance: The explanation's provenance.

        Raises:
            ConfigError: If the method found no map of the spectrogram or none of the tokens.
        """
        utterance, target, maps = output.utterance, output.target, self.maps
        audio, token, reliability = maps.audio, maps.token, maps.reliability
        sound_impact, text_impact = maps.sound_impact, maps.text_impact
        if audio is None or token is None or reliability is None or sound_impact is None or text_impact is None:
            missing = [name for name in Maps.REQUIRED if getattr(maps, name) is None]
            raise ConfigError(
                f"plan() of the method {provenance['config']['method']!r} returned no {', '.join(missing)}; see Maps"
            )
        if self.over == "encoder" and maps.encoder is None:
            raise ConfigError(
                f"plan() of the method {provenance['config']['method']!r} returned no map of the encoder's output, "
                'although its overs promise one; return Maps(encoder=…) if problem.over is "encoder"'
            )
        contrasts, part = self.contrasts, None
        if contrasts is None:
            pieces, ids = tuple(adapter.pieces(target.token_ids)), tuple(target.token_ids.tolist())
            special = tuple(adapter.is_special(target.token_ids))
            when, every = tuple(adapter.is_timestamp(target.token_ids)), self.evidence.all_sound_bits
            if self.rows is not None or any(when):
                rows = tuple(range(len(ids))) if self.rows is None else tuple(self.rows)
                bits = self.evidence.sound_bits if every is None else every
                part = Part(rows, ids, pieces, special, tuple(bits.tolist()), when)
                pieces, ids = tuple(pieces[k] for k in rows), tuple(ids[k] for k in rows)
                special = tuple(special[k] for k in rows)
        else:
            pieces, ids = tuple(c.name for c in contrasts), tuple(c.target_ids[0] for c in contrasts)
            special = (False,) * len(contrasts)
        return Explanation(
            text=adapter.text(target.token_ids),
            pieces=pieces,
            token_id_list=ids,
            context_pieces=tuple(adapter.pieces(target.context_ids)),
            special=special,
            prefix_length=len(target.prefix_ids),
            probabilities=self.evidence.probabilities,
            token_sound_bits=self.evidence.sound_bits,
            token_text_bits=self.evidence.text_bits,
            features=utterance.features,
            times=utterance.times,
            frequencies=utterance.frequencies,
            audio_map=audio,
            raw_token_scores=token,
            sound_impact=sound_impact,
            text_impact=text_impact,
            token_reliability=reliability,
            waveform=torch.from_numpy(utterance.waveform.samples),
            sampling_rate=utterance.waveform.sampling_rate,
            provenance=provenance,
            sentence_map=maps.sentence,
            contrasts=contrasts,
            part=part,
            encoder_map=maps.encoder,
            token_instruction_bits=self.evidence.instruction_bits,
        )


def run_plan(
    config: ExplainConfig,
    problem: Problem,
    objective: Objective,
    batch_size: int | None,
    found_sizes: FoundSizes,
    progress: bool,
    advance: Callable[[float], None] | None = None,
) -> Found:
    """Return the results of a method: plan, run, collect.

    Args:
        config: Method and settings.
        problem: What to explain.
        objective: Runs the model.
        batch_size: Perturbed copies in one forward pass; None: found automatically.
        found_sizes: Remembers sizes that fitted.
        progress: Whether to show a progress bar.
        advance: Called after every batch with its share of the passes.
    """
    device, utterance, ranks = problem.device, problem.utterance, problem.ranks
    evidence = objective.evidence(config.fill)
    passes = Passes(forward=objective.passes)

    def impact_of(masks: Any, apply: Callable[[Any], dict[str, Tensor]], **how: Any) -> Tensor:
        inputs: dict[str, Any] = apply(masks)
        impact = objective(**inputs, **how)
        passes.count(next(iter(inputs.values())))
        return impact

    plan = config.plan(problem)
    steps = [part for part in plan if not isinstance(part, Maps)]
    finished = [part for part in plan if isinstance(part, Maps)]
    total = sum(step.passes for step in steps)
    alone, left = replace(passes), total
    with tqdm(total=total, desc="explaining", unit="pass", disable=not (progress and ranks.is_first), delay=1) as bar:
        for number, step in enumerate(steps):
            logits = objective.logits_shape
            size = starting_batch_size(math.prod(logits), device, utterance.inputs, backward=step.differentiates)
            shape = (*utterance.features.shape, *logits)
            # Other configs may run different steps with the same model.
            how = ", gradients" if step.differentiates else ""
            kind = f"{config.method} over {problem.over}{how}, run {number - len(steps)}"
            for own in step.run(impact_of, Batch(batch_size or size, kind, shape, found_sizes, ranks)):
                done = min(own * ranks.count, left)  # the other processes have come about as far
                left -= done
                bar.update(done)
                if advance is not None:
                    advance(done / total)
    passes.add_up(alone, ranks)
    maps = Maps.merged([*finished, *(step.maps(problem.dtype) for step in steps)])
    if problem.encoder_output is not None:
        passes.forward += problem.encoder_output.passes
    return Found(maps, evidence, passes)

"""How many seconds an explanation takes on this machine: runs a part of every step and extrapolates the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spes_hf.adapters.output import Output
from spes_hf.capacity.operations import noise_of
from spes_hf.engine import Explainer
from spes_hf.methods import ExplainConfig
from spes_hf.methods.run import Maps, Problem, Step
from spes_hf.runtime.batching import Batch, starting_batch_size
from spes_hf.scoring.encoder import EncoderOutput
from spes_hf.scoring.objective import TokenObjective

# How long to run each step, after its first batch, which warms up.
SECONDS = 4.0


@dataclass(frozen=True)
class Measured:
    """Measured seconds of one explanation.

    Attributes:
        device: Device and dtype of the measurement.
        writing: Seconds to compute the features and generate the text.
        around: Seconds for everything except the passes under masks: patches, the clean passes, maps.
        steps: For every step of the method, its number of passes and the seconds that all of them take.
        whole: Seconds for one copy to pass forward through encoder and decoder, in a batch.
        heard: Seconds for one copy to pass forward through the decoder.
        tokens: Number of tokens the model wrote, including the end-of-sequence token.
    """

    device: str
    writing: float
    around: float
    steps: tuple[tuple[int, float], ...]
    whole: float
    heard: float
    tokens: int

    @property
    def explaining(self) -> float:
        """Seconds for one explanation, writing included."""
        return self.writing + self.around + sum(seconds for _, seconds in self.steps)


def measure(
    model: Any,
    processor: Any,
    config: ExplainConfig,
    seconds: float,
    tokens: int,
    *,
    over: str = "spectrogram",
    options: Mapping[str, Any] | None = None,
    running: Mapping[str, Any] | None = None,
    limit: float = SECONDS,
) -> Measured:
    """Return how long the explanation of an utterance takes on this machine.

    Args:
        model: A speech-to-text model of a known family.
        processor: Its processor.
        config: Method and settings.
        seconds: Length of the utterance in seconds; it is noise.
        tokens: Number of tokens that the model is made to write.
        over: As for `spes_hf.explain`.
        options: ``language``, ``task``, ``tgt_lang`` and ``generate_kwargs``, as for `spes_hf.explain`.
        running: ``batch_size``, ``autocast`` and ``compile``, as for `spes_hf.explain`.
        limit: How long to run each step, in seconds.

    Raises:
        AudioError: If the utterance is too short or too long for the model.
        ConfigError: If an argument has a value that is not allowed.
        UnsupportedModelError: If the family has no adapter.
    """
    explainer = Explainer(model, processor, config, progress=False, **(running or {}))
    adapter, asked = explainer.adapter, dict(options or {})
    length = {"min_new_tokens": tokens - 1, "max_new_tokens": tokens}
    asked["generate_kwargs"] = {**(asked.get("generate_kwargs") or {}), **length}
    waveform, written = noise_of(adapter, seconds), adapter.options_of(**asked)
    with explainer.output(waveform, written, None, ""):  # the first passes of a process take longer
        pass
    started = _now(adapter.device)
    with explainer.output(waveform, written, None, "") as output:
        writing = _now(adapter.device) - started
        around, steps, whole, heard = _explaining(explainer, output, over, limit)
        count = len(output.target.token_ids)
    dtype = str(adapter.dtype).removeprefix("torch.") if explainer.autocast is None else explainer.autocast
    return Measured(f"{_name(adapter.device)}, {dtype}", writing, around, tuple(steps), whole, heard, count)


def _explaining(
    explainer: Explainer, output: Output, over: str, limit: float
) -> tuple[float, list[tuple[int, float]], float, float]:
    """Return the seconds around the passes; the passes of each step and their seconds; the seconds of single passes."""
    adapter, utterance, target = explainer.adapter, output.utterance, output.target
    config = explainer.config.with_impact_for(text_given=False)
    config.check_over(over)
    dtype = adapter.dtype if explainer.autocast is None else getattr(torch, explainer.autocast)
    started = _now(adapter.device)
    states = None if explainer.compile else output.states
    objective = TokenObjective(adapter, utterance, target, config.impact, dtype, None, states)
    objective.evidence(config.fill)
    encoder = EncoderOutput(adapter, utterance, target, objective.states, objective.tokens)
    problem = Problem(
        utterance,
        target,
        adapter.device,
        explainer.seed,
        "",
        adapter.differentiable,
        dtype,
        objective.valid,
        over=over,
        encoder_output=encoder,
    )
    plan = config.plan(problem)
    around, steps = _now(adapter.device) - started, []
    shape = (*utterance.features.shape, *objective.logits_shape)
    for number, step in enumerate(part for part in plan if not isinstance(part, Maps)):
        logits = math.prod(objective.logits_shape)
        size = starting_batch_size(logits, adapter.device, utterance.inputs, backward=step.differentiates)
        batch = Batch(explainer.batch_size or size, f"measured {number}", shape, explainer.sizes)
        steps.append((step.passes, _seconds_of(step, objective, batch, adapter.device, limit)))
        started = _now(adapter.device)
        step.maps(dtype)
        around += _now(adapter.device) - started
    logits = math.prod(objective.logits_shape)
    size = explainer.batch_size or starting_batch_size(logits, adapter.device, utterance.inputs)
    batch = Batch(size, "measured copies", shape, explainer.sizes)
    features = utterance.features.to(adapter.device)

    def look(rows: range) -> None:
        objective(features=features.expand(len(rows), -1, -1))

    with torch.no_grad():
        for _ in batch.over(range(size), look):  # to find out how many fit
            pass
        whole = _seconds_each(lambda: look(range(batch.size)), adapter.device) / batch.size
        heard = _seconds_each(lambda: adapter.logits(utterance, target, states=objective.states), adapter.device)
    return around, steps, whole, heard


def _seconds_of(step: Step, objective: TokenObjective, batch: Batch, device: torch.device, limit: float) -> float:
    """Return how long a step takes, extrapolated from a part of it."""

    def impact_of(masks: Any, apply: Any, **how: Any) -> Any:
        return objective(**apply(masks), **how)

    started = _now(device)
    first = warm = 0.0
    done = 0
    for passes in step.run(impact_of, batch):
        now = _now(device)
        done += passes
        if not warm:
            first, warm = float(passes), now
        elif now - warm > limit:
            break
    now = _now(device)
    if done == first:  # a single batch
        return (now - started) * step.passes / max(done, 1)
    return (now - warm) * step.passes / (done - first)


def _seconds_each(run: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of the second of two runs."""
    run()
    started = _now(device)
    run()
    return _now(device) - started


def _now(device: torch.device) -> float:
    """Return the time after the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _name(device: torch.device) -> str:
    """Return the name of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

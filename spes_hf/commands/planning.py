"""``spes-hf plan``: passes, GPU-hours and bytes of a corpus, and the command that starts the job."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from typing import TYPE_CHECKING, Any

from spes_hf.commands.options import (
    METRICS,
    add_method,
    add_model,
    add_running,
    cannot_load,
    config_of,
    generate_kwargs_of,
    is_translation,
    listed,
    model_of,
    running_of,
    writing_of,
)
from spes_hf.commands.placing import device_map_of
from spes_hf.errors import ConfigError

if TYPE_CHECKING:
    from spes_hf.capacity.plan import Plan

UTILISATION, TOKEN_MS = 0.4, 25.0


def add_plan(command: argparse.ArgumentParser) -> None:
    """Add the options of ``plan``."""
    command.add_argument("--hours", type=float, required=True, metavar="H", help="hours of speech in the corpus")
    command.add_argument("--gpus", type=int, default=1, metavar="N", help="number of GPUs (default: 1)")
    command.add_argument(
        "--utterance-seconds", type=float, default=5.6, metavar="S", help="mean length (default: %(default)s, MuST-C's)"
    )
    command.add_argument(
        "--tokens-per-second", type=float, default=4.5, metavar="R", help="tokens a second (default: %(default)s)"
    )
    command.add_argument("--over", choices=("spectrogram", "encoder"), default="spectrogram", help="what to map")
    command.add_argument("--metrics", default="", metavar="LIST", help=f"one or more of {','.join(METRICS)}")
    command.add_argument("--fractions", choices=("paper", "fine"), default="paper", help="step size of the curves")
    command.add_argument("--max-words", type=int, metavar="N", help="word metrics: at most N words of an utterance")
    command.add_argument("--gpu", default="H100", metavar="NAME", help="GPU whose 16-bit peak counts (default: H100)")
    command.add_argument(
        "--utilisation",
        type=float,
        default=UTILISATION,
        metavar="U",
        help="share of the GPU's peak that the passes reach (default: %(default)s)",
    )
    command.add_argument("--tflops", type=float, metavar="T", help="speed reached; overrides --gpu and --utilisation")
    command.add_argument(
        "--token-ms",
        type=float,
        default=TOKEN_MS,
        metavar="MS",
        help="milliseconds to generate one token, limited by latency (default: %(default)s)",
    )
    command.add_argument(
        "--measure", action="store_true", help="load the model and time part of an explanation on this machine"
    )
    add_model(command)
    add_method(command)
    add_running(command)


def run_plan(options: argparse.Namespace) -> None:
    """Print the plan."""
    metrics = _check(options)
    config = config_of(options, translation=is_translation(options))
    from spes_hf.capacity.measured import measure
    from spes_hf.capacity.operations import Operations, Weightless, noise_of
    from spes_hf.capacity.passes import made_up_target
    from spes_hf.capacity.plan import PEAKS, Plan, Work

    if options.gpu not in PEAKS:
        raise ConfigError(f"--gpu is {options.gpu!r}; known: {', '.join(PEAKS)}. For any other, pass --tflops")
    seconds, most = options.utterance_seconds, generate_kwargs_of(options).get("max_new_tokens", math.inf)
    tokens = max(2, min(most, round(seconds * options.tokens_per_second)))
    asked: dict[str, Any] = {
        "metrics": metrics,
        "fractions": options.fractions,
        "max_words": options.max_words,
        "over": options.over,
    }
    if options.measure:
        from spes_hf.adapters import get_adapter

        model, processor = model_of(options)
        work = Work.of(get_adapter(model, processor), config, seconds, tokens, **asked)
        how = {"over": options.over, "options": writing_of(options), "running": running_of(options)}
        plan = Plan(
            work, options.hours, options.gpus, measured=measure(model, processor, config, seconds, tokens, **how)
        )
    else:
        print("counting the operations of a pass; this takes up to a minute for the largest models", file=sys.stderr)
        try:
            loaded = Weightless.load(options.model)
        except (ImportError, KeyError, OSError, ValueError) as error:
            raise cannot_load(options.model, error) from error
        work = Work.of(loaded.adapter, config, seconds, tokens, **asked)
        utterance = loaded.adapter.encode(noise_of(loaded.adapter, seconds))
        each = Operations.count(loaded.adapter, utterance, made_up_target(tokens), loaded.mode)
        reached = options.tflops or PEAKS[options.gpu] * options.utilisation
        plan = Plan(work, options.hours, options.gpus, each, reached, options.token_ms)
    print("\n".join([*_lines(plan, options), "", "assumptions:", *_assumptions(plan, options), "", "launch:"]))
    print(f"  {_launch(options)}")


def _check(options: argparse.Namespace) -> list[str]:
    """Return the metrics, after checking the numbers and the device map.

    Raises:
        ConfigError: If a number, a metric or a device map is not allowed.
    """
    for name in ("hours", "utterance_seconds", "tokens_per_second", "token_ms", "tflops", "utilisation", "gpus"):
        value = getattr(options, name)
        allowed = "a share above 0, at most 1" if name == "utilisation" else "a number above 0"
        wrong = value is not None and not (math.isfinite(value) and value > 0)
        if wrong or (name == "utilisation" and value > 1):
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; allowed: {allowed}")
    if options.device_map is not None and options.gpus > 1:
        raise ConfigError(
            f"--device-map is {options.device_map!r} and --gpus is {options.gpus}, but a plan for several GPUs has a "
            "whole model on each; plan for --gpus 1, and divide the time by the number of groups of GPUs that hold "
            "the model"
        )
    device_map_of(options.device_map, options.device)
    return listed("--metrics", options.metrics, METRICS) if options.metrics.strip() else []


def _lines(plan: Plan, options: argparse.Namespace) -> list[str]:
    """Return the plan as the lines of a table."""
    work, count = plan.work, plan.utterances
    passes = work.passes
    decoder = passes.decoder + passes.heard
    on_cpu = plan.measured is not None and plan.measured.device.startswith("cpu")
    device = "machine" if on_cpu else "GPU"
    rows = [
        ("utterances", "1", f"{count:,}"),
        ("forward passes", f"{passes.forward:,}", f"{count * passes.forward:,}"),
        ("  of them through the encoder", f"{passes.whole:,}", f"{count * passes.whole:,}"),
        ("  of them through the decoder alone", f"{decoder:,}", f"{count * decoder:,}"),
        ("backward passes", f"{passes.backward:,}", f"{count * passes.backward:,}"),
        ("texts written", f"{work.generations:,}", f"{count * work.generations:,}"),
    ]
    judged = work.metrics.whole + work.metrics.heard
    if judged:
        rows.append(("passes of the metrics", f"{judged:,}", f"{count * judged:,}"))
    if plan.each is not None:
        operations = work.operations(plan.each)
        rows.append(("operations", _scaled(operations, "FLOP"), _scaled(operations * count, "FLOP")))
    rows += [
        (f"{device} time", _duration(plan.seconds / 3600), _duration(plan.device_hours)),
        (f"wall time on {options.gpus} {device}{'s' * (options.gpus > 1)}", "", _duration(plan.wall_hours)),
        ("rows on disk", _scaled(work.row_bytes, "B"), _scaled(plan.bytes, "B")),
    ]
    first, second, third = (max(len(row[i]) for row in rows) for i in range(3))
    head = f"{'':{first}}  {'one':>{max(second, 3)}}  {'all':>{max(third, 3)}}"
    return [head, *(f"{a:{first}}  {b:>{max(second, 3)}}  {c:>{max(third, 3)}}".rstrip() for a, b, c in rows)]


def _assumptions(plan: Plan, options: argparse.Namespace) -> list[str]:
    """Return the assumptions behind the numbers."""
    work, each = plan.work, plan.each
    found = [f"{options.hours:,g} h of speech in utterances of {work.seconds:g} s and {work.tokens} tokens"]
    if each is not None:
        reached = f"{plan.teraflops:,.0f} TFLOP/s"
        if options.tflops is None:
            reached += f" ({options.utilisation:.0%} of the 16-bit peak of a GPU, {options.gpu})"
        found += [
            f"a pass: encoder {_scaled(each.encoder, 'FLOP')}, with the decoder {_scaled(each.whole, 'FLOP')}, "
            f"backwards {_scaled(each.backward, 'FLOP')}, the decoder alone {_scaled(each.decoder, 'FLOP')}; counted "
            "by running the model's own code without weights",
            f"passes reach {reached}; run --measure on such a GPU for the real speed",
            f"generation takes {plan.token_ms:g} ms a token, one utterance at a time"
            + ", however many beams there are" * (options.num_beams is not None),
        ]
    else:
        assert plan.measured is not None
        found += [
            f"measured here ({plan.measured.device}): {plan.measured.explaining:.3g} s an explanation, including "
            f"{plan.measured.writing:.3g} s of generation; all others take as long",
        ]
    return [
        *(f"  - {line}" for line in found),
        "  - the size of rows may differ by a tenth for real speech; reading audio and loading models take no time",
        "  - every GPU has many utterances, so that none waits for another",
    ]


def _launch(options: argparse.Namespace) -> str:
    """Return the command that starts the job."""
    start = "python recipes/explain_dataset.py"
    if options.gpus > 1:
        start = f"accelerate launch --multi_gpu --num_processes {options.gpus} recipes/explain_dataset.py"
    line = ["--model", options.model, "--dataset", "DATASET", "--out", "OUT"]
    if options.dtype != "auto" or not options.measure:
        line += ["--dtype", "bfloat16" if options.dtype == "auto" else options.dtype]
    names = ("language", "task", "tgt_lang", "prompt", "num_beams", "max_new_tokens", "preset", "config")
    for name in (
        *names,
        "num_masks",
        "num_token_masks",
        "device_map",
        "batch_size",
        "autocast",
        "metrics",
        "max_words",
    ):
        value = getattr(options, name)
        if value not in (None, ""):
            line += [f"--{name.replace('_', '-')}", str(value)]
    line += ["--compile"] * options.compile
    line += ["--over", options.over] * (options.over != "spectrogram")
    line += ["--fractions", options.fractions] * (options.fractions != "paper")
    return f"{start} {shlex.join(line)}"


def _scaled(value: float, unit: str) -> str:
    """Return a number with a suitable SI prefix."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if value < 999.5 or prefix == "E":
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}"


def _duration(hours: float) -> str:
    """Return a duration in a suitable unit."""
    if hours < 1 / 60:
        return f"{hours * 3600:.2g} s"
    return f"{hours * 60:.2g} min" if hours < 1 else f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"

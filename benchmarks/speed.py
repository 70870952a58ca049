"""What the engine costs besides the model: time against bare calls, against the obvious way, memory, and how both grow.

    python benchmarks/speed.py engine     `explain` against as many bare calls of the model, at 5, 15 and 30 s
    python benchmarks/speed.py variants   `explain` as it is, with a compiled encoder, and in bfloat16
    python benchmarks/speed.py literal    the same result by full-resolution masks and a (batch, K, T, C) sum
    python benchmarks/speed.py memory     peak memory against N, K and T, every number from a process of its own
    python benchmarks/speed.py linear     seconds against N and against duration, as a table and a picture
    python benchmarks/speed.py profile    where the seconds of one explanation go

Each prints a table and writes it to benchmarks/results/speed_<name>.json. All take --device cuda. What is compared runs
in turn within one process, so that a busy machine slows both; times are medians.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from speed_case import ARGUMENTS, SEAMLESS, SPEECH2TEXT, WHISPER, WHISPER_BASE, Case, in_turn, ratio_of, timed, wait

from spes_hf.adapters import GenerationOptions
from spes_hf.errors import AudioError
from spes_hf.masking.perturbations import SpectrogramPerturbation, TokenPerturbation
from spes_hf.scoring.eq3 import PerturbationEstimator
from spes_hf.scoring.impact import KLImpact

RESULTS = Path(__file__).parent / "results"
LONG = 60  # tokens of a long output
PAPERS_MASKS = (20_000, 2_000)
# Masks of the spectrogram in one timed explanation of 5 s, with a tenth as many of the tokens, as in the paper.
MASKS = {WHISPER: 100, SPEECH2TEXT: 1000, SEAMLESS: 400}


def cases(options: argparse.Namespace) -> Iterator[tuple[Case, dict[str, Any], tuple[int, int]]]:
    """Return every model at every length that it reads, the start of its row, and its numbers of masks."""
    for name in options.models:
        for seconds in options.seconds:
            case = Case(name, seconds, options.device)
            try:
                case.explain(3, 3)
            except AudioError as error:
                print(f"{name}, {seconds:.0f} s: {error}", file=sys.stderr)
                continue
            # Whisper's window is as long whatever the audio.
            masks = options.masks or round(MASKS[name] * (1 if name == WHISPER else 5 / seconds))
            work = (masks, max(1, masks // 10))
            row = {"model": name, "seconds": seconds, "tokens": len(case.target.token_ids), "masks": list(work)}
            yield case, row, work


# The benchmarks -------------------------------------------------------------------------------------------------------


def engine(options: argparse.Namespace) -> dict[str, Any]:
    """Time `explain`, all of it, against as many bare calls."""
    rows: list[dict[str, Any]] = []
    for case, row, work in cases(options):
        case.bare(case.batch_size, case.batch_size)
        ours, theirs, start = in_turn(
            options.repeats, partial(case.explain, *work), partial(case.bare, *work), partial(case.explain, 3, 1)
        )
        rows.append(
            {
                **row,
                "batch": case.batch_size,
                "explain_s": statistics.median(ours),
                "bare_s": statistics.median(theirs),
                "with_3_masks_s": statistics.median(start),
                "ratio": ratio_of(ours, theirs),
                "ratios": [a / b for a, b in zip(ours, theirs, strict=True)],
            }
        )
        show(rows[-1:], header=len(rows) == 1)
    return {"rows": rows}


def variants(options: argparse.Namespace) -> dict[str, Any]:
    """Time `explain` as it is, with its encoder compiled, and in half precision, and say how far the maps differ."""
    ways: dict[str, dict[str, Any]] = {"plain": {}, "compiled": {"compile": True}, "bfloat16": {"autocast": "bfloat16"}}
    rows: list[dict[str, Any]] = []
    for case, row, work in cases(options):
        maps = {way: case.explain(*work, **how).raw_audio for way, how in ways.items()}  # compiles, too
        times = in_turn(options.repeats, *[partial(case.explain, *work, **how) for how in ways.values()])
        plain = maps["plain"].flatten()
        for way, seconds in zip(ways, times, strict=True):
            rows.append(
                {
                    **row,
                    "batch": case.batch_size,
                    "way": way,
                    "explain_s": statistics.median(seconds),
                    "faster": ratio_of(times[0], seconds),
                    "largest_difference": float((maps[way].flatten() - plain).abs().max()),
                    "correlation": float(torch.corrcoef(torch.stack([maps[way].flatten(), plain]).double())[0, 1]),
                }
            )
        show(rows[-len(ways) :], header=len(rows) == len(ways))
    return {"rows": rows}


def literal(options: argparse.Namespace) -> dict[str, Any]:
    """Time `explain` against the obvious way, check that both give the same, and compare their peak memory."""
    rows: list[dict[str, Any]] = []
    options.models = [name for name in options.models if name != WHISPER]
    for short, row, work in cases(options):
        for case in (short, short.with_tokens(LONG)):
            found, (audio, text) = case.explain(*work), case.literal(*work)
            apart = (found.raw_audio - audio.cpu()).abs().max(), (found.raw_token - text.cpu()).nan_to_num().abs().max()
            ours, theirs = in_turn(options.repeats, partial(case.explain, *work), partial(case.literal, *work))
            beyond = {what: peak_mb(what, case, *work)["beyond"] for what in ("bare", "explain", "literal")}
            beyond["literal_as_in_paper"] = peak_mb("literal_start", case, *PAPERS_MASKS)["beyond"]
            rows.append(
                {
                    **row,
                    "tokens": len(case.target.token_ids),
                    "batch": case.batch_size,
                    "explain_s": statistics.median(ours),
                    "literal_s": statistics.median(theirs),
                    "slower": ratio_of(theirs, ours),
                    **{f"{what}_mb": value for what, value in beyond.items()},
                    "largest_difference": float(max(apart)),
                }
            )
            show(rows[-1:], header=len(rows) == 1)
    note = (
        "MB: peak of a process beyond what it holds once the model is loaded and was called; literal_as_in_paper: with "
        "20,000 + 2,000 masks, of which it holds a level or two at full resolution"
    )
    return {"note": note, "rows": rows}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the peak of whole explanations, each in a process of its own, against N, T and K."""
    few = options.masks or 1_000
    jobs: list[tuple[str, Case, int, int]] = []
    if SPEECH2TEXT in options.models:
        case = Case(SPEECH2TEXT, None, options.device)
        jobs += [("explain", case, masks, masks // 10) for masks in (few, 20 * few)]
    if WHISPER in options.models:
        cases_of_whisper = [Case(WHISPER, seconds, options.device) for seconds in options.seconds]
        longest = cases_of_whisper[-1]
        cases_of_whisper += [longest.with_tokens(count) for count in (LONG // 2, LONG)]
        jobs += [("explain", case, 12, 8) for case in cases_of_whisper]
        base = Case(WHISPER_BASE, 30.0, options.device, longest.with_tokens(LONG).text)
        jobs += [("gradient", case, 2, 8) for case in (longest.with_tokens(LONG), base)]
    rows: list[dict[str, Any]] = []
    for what, case, masks, token_masks in jobs:
        found = peak_mb(what, case, masks, token_masks)
        bare = peak_mb("bare", case, min(masks, 200), min(token_masks, 200))
        shape = {name: found[name] for name in ("K", "T", "C")}
        megabytes = {"peak_mb": found["peak"], "beyond_model_mb": found["beyond"], "bare_calls_mb": bare["beyond"]}
        rows.append({"model": case.name, "by": what, "N": masks, **shape, **megabytes})
        show(rows[-1:], header=len(rows) == 1)
    return {"rows": rows}


def peak_mb(what: str, case: Case, masks: int, token_masks: int) -> dict[str, Any]:
    """Return the peak memory of a fresh process that does one thing, and how far it is beyond the model, in MB."""
    job = json.dumps([what, case.name, case.seconds, case.device, case.text, masks, token_masks])
    command = [sys.executable, __file__, "measure", "--job", job]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure(options: argparse.Namespace) -> None:
    """Do one thing in this process and print its peak memory: that of the GPU if there is one, else of the process."""
    what, name, seconds, device, text, masks, token_masks = json.loads(options.job)
    case = Case(name, seconds, device, text)
    # Imports, threads and kernels are there before.
    case.explain(3, 1)
    case.bare(1, 1)
    before = start_of_peak(device)
    getattr(case, what)(masks, token_masks)
    shape = {"K": len(case.target.token_ids), "T": len(case.utterance.times), "C": len(case.utterance.frequencies)}
    print(json.dumps({**shape, "peak": peak(device), "beyond": peak(device) - before}))


def start_of_peak(device: str) -> float:
    """Forget earlier peaks and return the memory that is in use, in MB."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak(device: str) -> float:
    """Return the most memory that was in use since, in MB."""
    return torch.cuda.max_memory_allocated() / 1e6 if device.startswith("cuda") else resident("VmHWM")


def resident(entry: str) -> float:
    """Return an entry of Linux's account of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(entry))


def linear(options: argparse.Namespace) -> dict[str, Any]:
    """Time explanations of growing N, and of growing audio next to the encoder alone."""
    by_masks, by_seconds = [], []
    for name in options.models:
        unit = (options.masks or MASKS[name]) // 8
        case = Case(name, None, options.device)
        case.explain(3, 3)
        counts = [unit, 2 * unit, 4 * unit, 8 * unit]
        took = in_turn(options.repeats, *[partial(case.explain, count, 1) for count in counts])
        for count, seconds in zip(counts, took, strict=True):
            by_masks.append({"model": name, "masks": count, "explain_s": statistics.median(seconds)})
    show(by_masks)
    for case, row, (masks, _) in cases(options):
        batch = case.batch_size
        inputs = {k: v.expand(batch, *v.shape[1:]).contiguous() for k, v in case.utterance.inputs.items()}
        actions = [partial(case.explain, count, 1) for count in (3, masks)]
        short, long, alone = in_turn(options.repeats, *actions, partial(encode, case, inputs))
        by_seconds.append(
            {
                "model": case.name,
                "seconds": row["seconds"],
                "ms_per_mask": 1e3 * statistics.median(b - a for a, b in zip(short, long, strict=True)) / (masks - 3),
                "encoder_ms_per_mask": 1e3 * statistics.median(alone) / batch,
            }
        )
    show(by_seconds)
    draw(by_masks, by_seconds, options.out.with_name("cost_linear.png"))
    return {"by_masks": by_masks, "by_seconds": by_seconds}


@torch.inference_mode()
def encode(case: Case, inputs: dict[str, torch.Tensor]) -> None:
    """Run the encoder alone."""
    case.adapter.encoder_states(inputs)
    wait(case.device)


def draw(by_masks: list[dict[str, Any]], by_seconds: list[dict[str, Any]], path: Path) -> None:
    """Draw cost against N, and cost of a mask against duration."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(row["model"] for row in by_masks):
        of_model = [row for row in by_masks if row["model"] == name]
        last = of_model[-1]
        shares = [row["masks"] / last["masks"] for row in of_model]
        label = f"{name}, up to N = {last['masks']}: {last['explain_s']:.1f} s"
        left.plot(shares, [row["explain_s"] / last["explain_s"] for row in of_model], "o-", label=label)
    left.plot([0, 1], [0, 1], ":", color="grey", label="proportional")
    left.set(xlabel="masks, share of the largest N", ylabel="time, share of the longest", title="Cost against N")
    for name in dict.fromkeys(row["model"] for row in by_seconds):
        of_model = [row for row in by_seconds if row["model"] == name]
        (line,) = right.plot(*zip(*((r["seconds"], r["ms_per_mask"]) for r in of_model), strict=True), "o-", label=name)
        alone = zip(*((r["seconds"], r["encoder_ms_per_mask"]) for r in of_model), strict=True)
        right.plot(*alone, "s--", color=line.get_color(), alpha=0.6, label="its encoder alone")
    right.set(xlabel="audio in seconds", ylabel="ms per mask", title="Cost of a mask against duration", yscale="log")
    for axes in (left, right):
        axes.legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """Time the parts of explanations; what is left is audio, segmentation and the making of maps."""
    rows: list[dict[str, Any]] = []
    for case, row, work in cases(options):
        with stopwatches(case) as spent:
            total = timed(partial(case.explain, *work))
        language = GenerationOptions(**ARGUMENTS[case.name])
        spent["generate"] = timed(partial(case.adapter.generate, case.utterance, language))
        spent["the rest"] = total - sum(spent.values())
        rows.append({**row, "total_s": total, **{part: f"{s / total:.1%}" for part, s in spent.items()}})
        show(rows[-1:], header=len(rows) == 1)
    return {"rows": rows}


@contextmanager
def stopwatches(case: Case) -> Iterator[dict[str, float]]:
    """Yield the seconds that every part takes meanwhile."""
    spent: dict[str, float] = defaultdict(float)
    parts: list[tuple[type, str, str]] = [
        (type(case.adapter), "encoder_states", "encoder"),
        (type(case.adapter), "forward", "decoder"),
        (SpectrogramPerturbation, "draw", "draw"),
        (TokenPerturbation, "draw", "draw"),
        (SpectrogramPerturbation, "apply", "fill"),
        (type(case.adapter), "model_inputs", "inputs"),
        (KLImpact, "__call__", "KL"),
        (PerturbationEstimator, "add", "accumulate"),
    ]

    def watched(action: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return action(*args, **kwargs)
            finally:
                wait(case.device)
                spent[part] += time.perf_counter() - start

        return run

    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in parts]
    for owner, name, part in parts:
        spent[part] += 0.0
        setattr(owner, name, watched(getattr(owner, name), part))
    try:
        yield spent
    finally:
        for owner, name, action in before:
            delattr(owner, name) if action is None else setattr(owner, name, action)


# The command ----------------------------------------------------------------------------------------------------------


def show(rows: Sequence[dict[str, Any]], header: bool = True) -> None:
    """Print rows as a table in Markdown."""
    columns = [name for name in rows[0] if name != "ratios"] if rows else []
    if header:
        print("| " + " | ".join(columns) + " |")
        print("|" + "---|" * len(columns))
    for row in rows:
        values = [row[name] for name in columns]
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values) + " |", flush=True)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {command.__name__: command for command in (engine, variants, literal, memory, linear, profile, measure)}
    parser.add_argument("benchmark", choices=commands)
    parser.add_argument("--device", default="cpu", help="where the models run (default: cpu)")
    parser.add_argument("--models", nargs="+", choices=list(ARGUMENTS), default=list(ARGUMENTS), metavar="MODEL")
    parser.add_argument("--seconds", nargs="+", type=float, default=[5.0, 15.0, 30.0], help="(default: 5 15 30)")
    parser.add_argument("--masks", type=int, help="masks of the spectrogram (default: by model)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds to take the median of (default: 5)")
    parser.add_argument("--out", type=Path, help="JSON file (default: benchmarks/results/speed_<benchmark>.json)")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out is None:
        options.out = RESULTS / f"speed_{options.benchmark}.json"
    transformers.logging.set_verbosity_error()
    found = commands[options.benchmark](options)
    if found is None:
        return
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine()
    machine = {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "repeats": options.repeats, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""One batched backward pass for all groups of tokens, against one after the other: seconds of both, and their ratio.

    python benchmarks/batched_backward.py
    python benchmarks/batched_backward.py --device cuda --out benchmarks/results/batched_backward_cuda.json

Under every mask the default runs five groups of tokens and the sentence backwards through the same graph, in a loop.
`torch.autograd.grad(…, is_grads_batched=True)` takes all six at once. Both are timed in turn on one graph, at batch
size 1 and at the default batch size; medians. The gradients are compared: the largest difference, relative to the
largest gradient. Prints a table and writes it to benchmarks/results/batched_backward.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tried_clips import Clip

from spes_hf import SpesConfig
from spes_hf.adapters import GenerationOptions, get_adapter
from spes_hf.demo import demo_audio, load_demo_model, load_tiny_model, tiny_clips
from spes_hf.runtime.batching import starting_batch_size
from spes_hf.scoring.gradient import relative

CASES: tuple[tuple[str, Callable[[], Any], Callable[[], str], str | None], ...] = (
    ("Whisper tiny.en", load_demo_model, lambda: str(demo_audio()), None),
    ("Speech2Text (shipped)", lambda: load_tiny_model("speech2text-en"), lambda: str(tiny_clips()[0]["path"]), None),
    (
        "SeamlessM4T v2 (shipped)",
        lambda: load_tiny_model("seamless-en-de-es"),
        lambda: str(tiny_clips()[0]["path"]),
        "deu",
    ),
)


def vectors_of(impact: Tensor, passes: int) -> Tensor:
    """Return what each backward pass starts from, (G, B, K): groups of tokens as by default, and the sentence."""
    groups = torch.zeros(passes, *impact.shape, dtype=impact.dtype, device=impact.device)
    for k in range(impact.shape[1]):
        groups[k % passes, :, k] = 1
    at = impact.detach().requires_grad_()
    (slope,) = torch.autograd.grad(relative(at).sum(), at)
    return torch.cat([groups, slope[None]])


def looped(impact: Tensor, keep: Tensor, vectors: Tensor) -> Tensor:
    """Return the gradients, (G, B, T, C), one pass after the other."""
    return torch.stack([torch.autograd.grad(impact, keep, v, retain_graph=True)[0] for v in vectors])


def batched(impact: Tensor, keep: Tensor, vectors: Tensor) -> Tensor:
    """Return the same from one call."""
    return torch.autograd.grad(impact, keep, vectors, retain_graph=True, is_grads_batched=True)[0]


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return how long something takes, the device waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(clip: Clip, batch: int, repeats: int) -> dict[str, Any]:
    """Return the costs and the difference at a batch size."""
    labels, device = clip.level(250.0), clip.features.device
    bits = clip.bits(labels, batch, "antithetic", 0.5)
    keep = clip.spread(bits, labels).to(clip.features).requires_grad_()
    forward = statistics.median(seconds(lambda: clip.impact_under(keep), device) for _ in range(repeats))
    impact = clip.impact_under(keep)
    vectors = vectors_of(impact, SpesConfig().passes_per_mask or impact.shape[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one, other = looped(impact, keep, vectors), batched(impact, keep, vectors)  # both warm from here on
    times = [
        [seconds(lambda way=way: way(impact, keep, vectors), device) for way in (looped, batched)]
        for _ in range(repeats)
    ]
    loop, batch_s = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "batch": batch,
        "tokens": impact.shape[1],
        "backward": len(vectors),
        "forward_s": forward,
        "loop_s": loop,
        "batched_s": batch_s,
        "ratio": loop / batch_s,
        "difference": float((one - other).abs().max() / one.abs().max()),
        "warnings": sorted({str(w.message).split("\n")[0] for w in caught}),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where the models run (default: cpu)")
    parser.add_argument("--repeats", type=int, default=5, help="runs to take the median of (default: 5)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "batched_backward.json")
    options = parser.parse_args()
    device, rows = torch.device(options.device), []
    print("| model | batch | backward passes | s, loop | s, batched | ratio | difference |\n" + "|---" * 7 + "|")
    for name, load, audio, tgt_lang in CASES:
        model, processor = load()
        model.to(device)
        for weight in model.parameters():
            weight.requires_grad_(False)
        clip = Clip(get_adapter(model, processor), audio(), GenerationOptions(tgt_lang=tgt_lang))
        logits = math.prod(clip.logits(clip.features[None]).shape)
        default = starting_batch_size(logits, device, clip.utterance.inputs, backward=True)
        for batch in sorted({1, default}):
            row = {"model": name, **measure(clip, batch, options.repeats)}
            rows.append(row)
            shown = f"{row['loop_s']:.3f} | {row['batched_s']:.3f} | {row['ratio']:.2f} | {row['difference']:.0e}"
            print(f"| {name} | {batch} | {row['backward']} | {shown} |", flush=True)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    machine = {"device": where, "threads": torch.get_num_threads(), "torch": torch.__version__}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""How far half precision moves the maps of single tokens, on real Whisper tiny.en (the extra "demo").

    python benchmarks/half_precision.py

Every token's raw map of the sound by gradients, under the same masks, against that of float32 weights: Pearson's r.
Once as the package computes it, with q − p in float32, and once as it would be if autograd added q and −p in the type
of the logits. Prints a table, writes results/half_precision.json, which also holds what a pass through the encoder
costs on this CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from spes_hf import Explainer, Explanation, SpesConfig
from spes_hf.demo import demo_audio, load_demo_model, tiny_clips
from spes_hf.scoring.impact import KLImpact

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = 0.05  # nats: impacts below are listed on their own


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=4, help="masks for every token")
    parser.add_argument("--clips", type=int, default=0, help="further short clips, besides the one of 11 s")
    parser.add_argument("--repeats", type=int, default=5, help="passes through the encoder that are timed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "half_precision.json")
    options = parser.parse_args()
    model, processor = load_demo_model()
    counts = {"num_spectrogram_masks": options.masks, "masks_per_token": options.masks, "num_token_masks": 1}
    config = SpesConfig(passes_per_mask=None, prior_weight=0.0, **counts)
    audio = [demo_audio(), *(clip["path"] for clip in tiny_clips()[: options.clips])]
    halves = {name: copy.deepcopy(model).to(dtype) for name, dtype in TYPES.items()}
    seconds = {"float32": encoder_seconds(model, options.repeats)}
    seconds |= {name: encoder_seconds(half, options.repeats) for name, half in halves.items()}
    rows = []
    for path in map(str, audio):
        exact = Explainer(model, processor, config, progress=False)(path)
        for rounded in (False, True):
            cases = {name: (half, None) for name, half in halves.items()} | {"autocast bfloat16": (model, "bfloat16")}
            for name, (half, autocast) in cases.items():
                with as_rounded(rounded):
                    explainer = Explainer(half, processor, config, progress=False, autocast=autocast)
                    found = explainer(path, text=exact.text)
                rows += compared(exact, found, Path(path).stem, name, rounded)
                print(f"{Path(path).stem}, {name}, q - p in {'half' if rounded else 'float32'}: done", flush=True)
    report(rows)
    print("encoder, seconds a pass:", seconds)
    content = {
        "masks": options.masks,
        "device": {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "isa": torch.backends.cpu.get_cpu_capability(),
        "encoder_seconds": seconds,
        "tokens": rows,
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def as_rounded(rounded: bool) -> Any:
    """Return a context in which q and −p meet in the type of the logits, or one without effect."""

    def divergence(self: KLImpact, logits: Tensor, tokens: slice) -> Tensor:
        moved = ((self.reference_logits[tokens] - logits) * self.p[tokens]).sum(-1)
        top = logits.detach().amax(-1, keepdim=True).float()
        return moved + (logits - top).exp().sum(-1).log() + (top - self.normaliser[tokens]).squeeze(-1)

    return patch.object(KLImpact, "_divergence", divergence) if rounded else nullcontext()


def compared(exact: Explanation, found: Explanation, clip: str, name: str, rounded: bool) -> list[dict[str, Any]]:
    """Return for every token how far its map is from the exact one."""
    impacts = exact.sound_impact
    assert impacts is not None and exact.token_ids == found.token_ids
    rows = []
    for k, token in enumerate(exact.tokens):
        pair = torch.stack([exact.audio_map.dense(k).flatten(), found.audio_map.dense(k).flatten()])
        rows.append(
            {
                "clip": clip,
                "token": token,
                "type": name,
                "q_minus_p": "half" if rounded else "float32",
                "impact": round(float(impacts[k]), 6),
                "r": round(float(torch.corrcoef(pair)[0, 1]), 4),
            }
        )
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    """Print the median and the lowest correlation, of all tokens and of those of small impact."""
    print(f"| type | q − p in | tokens | median r | lowest r | impact < {SMALL}: tokens | median r |")
    print("|---|---|---|---|---|---|---|")
    for name, kind in dict.fromkeys((row["type"], row["q_minus_p"]) for row in rows):
        some = [row for row in rows if (row["type"], row["q_minus_p"]) == (name, kind)]
        all_r = [row["r"] for row in some]
        small = [row["r"] for row in some if row["impact"] < SMALL]
        cells = [len(some), f"{statistics.median(all_r):.3f}", f"{min(all_r):.3f}"]
        cells += [len(small), f"{statistics.median(small):.3f}" if small else ""]
        print(f"| {name} | {kind} | " + " | ".join(map(str, cells)) + " |")


def encoder_seconds(model: Any, repeats: int) -> float:
    """Return the median time of a pass of 30 s through the encoder."""
    features = torch.zeros(1, model.config.num_mel_bins, 3_000, dtype=model.dtype)
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            model.get_encoder()(features)
            times.append(time.perf_counter() - start)
    return round(statistics.median(times[1:]), 4)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # that float16 is slow here is what is measured
    main()

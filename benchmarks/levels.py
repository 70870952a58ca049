"""How many patches does SLIC make of those that it is asked for, and do the levels differ?

    python benchmarks/levels.py

On the shipped clips (Speech2Text's features) and on the clip of the demo (Whisper's). Prints a table and writes
benchmarks/results/levels.json. "Shared" is the share of the features whose patch is the very same at both levels.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from spes_hf.adapters import get_adapter
from spes_hf.audio.load import load_audio
from spes_hf.demo import demo_audio, load_demo_model, load_tiny_model, tiny_clips
from spes_hf.functional import num_patches
from spes_hf.masking.segments import slic_labels

LEVELS = (20, 80, 400, 500, 600)
COMPACTNESS = (0.1, 1.0, 10.0)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "levels.json")
    options = parser.parse_args()
    shipped = get_adapter(*load_tiny_model("speech2text-en"))
    whisper = get_adapter(*load_demo_model())
    sources = [(shipped, str(clip["path"]), str(clip["id"])) for clip in tiny_clips()]
    sources.append((whisper, str(demo_audio()), "jfk"))
    rows = []
    for adapter, path, name in sources:
        utterance = adapter.encode(load_audio(path, adapter.sampling_rate))
        rows += [measured(utterance.features, utterance.duration_s, c) | {"clip": name} for c in COMPACTNESS]
    pairs = [f"{a}, {b}" for a, b in itertools.pairwise(LEVELS)]
    heads = [f"φ = {phi}: got / asked" for phi in LEVELS] + [f"{pair}: shared" for pair in pairs]
    print(f"| compactness | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
    for compactness in COMPACTNESS:
        chosen = [row for row in rows if row["compactness"] == compactness]
        got = [spread([row["got"][str(phi)] / row["asked"][str(phi)] for row in chosen]) for phi in LEVELS]
        same = [f"{mean(row['shared'][pair] for row in chosen):.0%}" for pair in pairs]
        print(f"| {compactness:g} | {' | '.join([*got, *same])} |")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measured(features: Tensor, duration_s: float, compactness: float) -> dict[str, Any]:
    """Return how many patches were asked for and made at every level, and which levels are the same."""
    maps, asked = {}, {}
    for phi in LEVELS:
        asked[phi] = num_patches(duration_s, phi, 7.5)
        maps[phi] = slic_labels(features, asked[phi], compactness=compactness)
    return {
        "compactness": compactness,
        "duration_s": duration_s,
        "asked": {str(phi): k for phi, k in asked.items()},
        "got": {str(phi): int(labels.max()) + 1 for phi, labels in maps.items()},
        "shared": {f"{a}, {b}": shared(maps[a], maps[b]) for a, b in itertools.pairwise(LEVELS)},
    }


def shared(first: Tensor, second: Tensor) -> float:
    """Return the share of the features whose patch, as a set of features, is the same in both maps."""
    together = first * (int(second.max()) + 1) + second
    overlap, sizes, others = (torch.bincount(labels.flatten()) for labels in (together, first, second))
    return float(((overlap[together] == sizes[first]) & (overlap[together] == others[second])).float().mean())


def spread(values: Sequence[float]) -> str:
    """Return the smallest and the largest value."""
    return f"{min(values):.2f}–{max(values):.2f}"


if __name__ == "__main__":
    main()

"""Which map of the sentence is better: the one that the default measures, or the mean of the tokens' maps?

    python benchmarks/two_maps.py [--clips 24] [--out FILE]

Both come from the same explanation, so they cost the same run. For every clip that the package ships and both shipped
models, the clean output's probability is measured while each map's features are deleted (the first fifth) and brought
back; intervals of the difference are bootstrapped over clips. Also: how the two maps correlate. Writes
results/two_maps.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from spes_hf import Deletion, Explainer, Insertion
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.functional import area_under_curve
from spes_hf.metrics import paired_bootstrap

MODELS: dict[str, dict[str, str]] = {"speech2text-en": {}, "seamless-en-de-es": {"tgt_lang": "deu"}}
FIRST = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2)
WHOLE = tuple(step / 20 for step in range(21))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "two_maps.json")
    options = parser.parse_args()
    clips = list(tiny_clips())[: options.clips]
    found = {name: summary([measure(name, clip["path"]) for clip in tqdm(clips, desc=name)]) for name in MODELS}
    options.out.write_text(json.dumps({"clips": len(clips), "models": found}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def measure(name: str, path: str) -> dict[str, Any]:
    """Return what both maps of a clip score."""
    model, processor = load_tiny_model(name)
    explanation = Explainer(model, processor, progress=False)(path, **MODELS[name])
    maps = {"measured": explanation.measured_sentence_saliency, "mean": explanation.mean_token_saliency}
    curves = {"deletion": (Deletion, FIRST), "insertion": (Insertion, WHOLE)}
    scores: dict[str, Any] = {"correlation": float(np.corrcoef(*(m.flatten().numpy() for m in maps.values()))[0, 1])}
    for kind, (metric, fractions) in curves.items():
        curve = metric(model, processor, fractions, against="prediction")
        for which, saliency in maps.items():
            heights = curve(explanation, saliency)[kind]["token_probability"]
            scores[f"{kind}, {which}"] = 100 * area_under_curve(heights, fractions) / fractions[-1]
    return scores


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over clips, and intervals of the differences."""
    found: dict[str, Any] = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}
    for kind in ("deletion", "insertion"):
        one, other = (with_ones([row[f"{kind}, {which}"] for row in rows]) for which in ("measured", "mean"))
        difference = paired_bootstrap(one, other, lambda sums: sums[..., 0] / sums[..., 1])
        low, high = difference.interval.low, difference.interval.high
        found[f"{kind}, measured less mean"] = [round(v, 2) for v in (difference.difference, low, high)]
    return found


def with_ones(values: list[float]) -> np.ndarray:
    """Return (U, 2) statistics, whose sums make a mean."""
    return np.stack([values, np.ones(len(values))], axis=1)


if __name__ == "__main__":
    main()

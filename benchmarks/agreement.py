"""How well does the gradient estimator agree with Eq. 3 under very many masks, and from how few masks on?

    python benchmarks/agreement.py

On shipped clips with the shipped Speech2Text, one level of patches (φ = 400), raw maps of every token, patch by patch.
Prints a table and writes benchmarks/results/agreement.json. r is Pearson's correlation over patches, averaged over the
tokens of all clips; "corrected" is r / √reliability of Eq. 3's map, the correlation with Eq. 3 of endlessly many masks.
"Sum" adds the gradients of a patch's features up, as the derivation in docs/gradient.md says; "mean" is their mean,
which the maps show.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from spes_hf import Explanation, SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips

KINDS = ("statement", "number", "question")
LEVEL: dict[str, Any] = {"patches_per_second": (400.0,), "mask_design": "independent", "num_token_masks": 1}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=20_000, help="masks of the Eq. 3 that all is measured against")
    parser.add_argument("--fewer", type=int, nargs="*", default=[500, 2_000, 8_000], help="masks of other Eq. 3 maps")
    parser.add_argument("--gradient", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "agreement.json")
    options = parser.parse_args()
    model, processor = load_tiny_model("speech2text-en")
    rows: list[dict[str, Any]] = []
    for clip in [next(c for c in tiny_clips() if c["kind"] == kind) for kind in KINDS]:

        def run(path: str = str(clip["path"]), seed: int = 0, **settings: Any) -> Explanation:
            config = SpesConfig(**LEVEL, **settings)
            return explain(model, processor, path, config=config, seed=seed, progress=False)

        reference = run(estimator="perturbation", num_spectrogram_masks=options.masks)
        for masks in options.fewer:
            other = run(seed=1, estimator="perturbation", num_spectrogram_masks=masks)
            rows += compared(reference, other, f"Eq. 3, {masks:,} masks", forward=masks, backward=0)
        for masks in options.gradient:
            exact: dict[str, Any] = {"passes_per_mask": None, "prior_weight": 0.0}
            settings: dict[str, Any] = {"masks_per_token": masks, "pool_patches_per_second": (400.0,), **exact}
            other = run(seed=1, estimator="gradient", num_spectrogram_masks=masks, **settings)
            rows += compared(reference, other, f"gradient, {masks} masks", forward=masks, backward=masks * len(other))
    print("| | forward + backward passes of a clip | r, sum (corrected) | r, mean (corrected) |\n|---|---|---|---|")
    for name in dict.fromkeys(row["method"] for row in rows):
        chosen = [row for row in rows if row["method"] == name]
        passes = f"{chosen[0]['forward_passes']:,} + {mean(row['backward_passes'] for row in chosen):,.0f}"
        cells = [
            f"{average(chosen, kind):.3f} ({average(chosen, kind + '_corrected'):.3f})" for kind in ("sum", "mean")
        ]
        print(f"| {name} | {passes} | {' | '.join(cells)} |")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def compared(
    reference: Explanation, other: Explanation, method: str, forward: int, backward: int
) -> list[dict[str, Any]]:
    """Return a row for every token: how its scores of patches correlate with those of the reference."""
    sizes = torch.bincount(reference.audio_map.labels.flatten())
    expected, found = scores(reference), scores(other)
    extensive = found if other.provenance["config"]["estimator"] == "perturbation" else found * sizes
    rows = []
    for k, token in enumerate(reference.tokens):
        reliability = float(reference.reliability.tokens[k])
        row = {"method": method, "token": token, "reliability": reliability}
        for name, values in (("sum", extensive), ("mean", found)):
            row[name] = float(torch.corrcoef(torch.stack([expected[k], values[k]]))[0, 1])
            row[f"{name}_corrected"] = row[name] / reliability**0.5 if reliability > 0 else float("nan")
        rows.append(row | {"forward_passes": forward, "backward_passes": backward})
    return rows


def scores(explanation: Explanation) -> Tensor:
    """Return the scores of the patches of every token, (K, F)."""
    (values,), weights = explanation.audio_map.values, explanation.audio_map.weights
    return (values if weights is None else values / weights[0]).double()


def average(rows: list[dict[str, Any]], name: str) -> float:
    """Return the mean of an entry over rows."""
    return mean(row[name] for row in rows)


if __name__ == "__main__":
    main()

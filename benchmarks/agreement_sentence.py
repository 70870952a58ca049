"""How well do sentence maps of the gradient estimator agree with those of Eq. 3, and Eq. 3 with itself?

    python benchmarks/agreement_sentence.py

One shipped clip, the shipped Speech2Text, one level of patches (φ = 400), raw maps patch by patch; agreement.py does
the same for tokens, on more clips. The first rows say how well Eq. 3 agrees with itself under other masks. Prints a
table and writes benchmarks/results/agreement_sentence.json. All numbers are Pearson's correlation over patches:

- "token, sum" is that of each token's map, averaged over tokens; the gradients of a patch's features are added up, as
  the derivation in docs/gradient.md says. In brackets it is divided by √reliability of the reference, which estimates
  the correlation with Eq. 3 of endlessly many masks.
- "token, mean" likewise, with the mean over a patch, which the maps show, instead of the sum.
- "sentence, normalised" is that of the paper's sentence map, the sum of the tokens' z-scores (sums over patches).
- "sentence, Σ r" is that of the map of Σ_k r_k, the tokens' impacts added up before anything is normalised: for the
  gradient `sentence_map`, for Eq. 3 the sum of the tokens' raw maps.
- "sentence, across" is that between the two: the reference's normalised, and the map of Σ_k r_k.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spes_hf import Explanation, SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation import PatchMap
from spes_hf.scoring.evidence import PASSES

KIND = "question"
LEVEL: dict[str, Any] = {"patches_per_second": (400.0,), "mask_design": "independent", "num_token_masks": 1}
COLUMNS = ("token, sum", "token, mean", "sentence, normalised", "sentence, Σ r", "sentence, across")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=20_000, help="masks of the Eq. 3 that all is measured against")
    parser.add_argument("--eq3", type=int, nargs="*", default=[1_000, 4_000, 20_000], help="masks of other Eq. 3 maps")
    parser.add_argument("--gradient", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 128, 512])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "agreement_sentence.json")
    options = parser.parse_args()
    model, processor = load_tiny_model("speech2text-en")
    rows: list[dict[str, Any]] = []
    clip = next(clip for clip in tiny_clips() if clip["kind"] == KIND)

    def run(seed: int = 1, **settings: Any) -> Explanation:
        config = SpesConfig(**LEVEL, **settings)
        return explain(model, processor, clip["path"], config=config, seed=seed, progress=False)

    reference = run(seed=0, estimator="perturbation", num_spectrogram_masks=options.masks)
    for masks in options.eq3:
        other = run(estimator="perturbation", num_spectrogram_masks=masks)
        rows.append({"method": f"Eq. 3, {masks:,} masks", "clip": clip["id"], **compared(reference, other)})
    for masks in options.gradient:
        settings: dict[str, Any] = {
            "masks_per_token": masks,
            "passes_per_mask": None,
            "prior_weight": 0.0,
            "pool_patches_per_second": (400.0,),
            "sentence_patches_per_second": None,
            "sentence_impact": "sum",
        }
        other = run(estimator="gradient", num_spectrogram_masks=masks, **settings)
        name = f"gradient, {masks} mask" + "s" * (masks > 1)
        rows.append({"method": name, "clip": clip["id"], **compared(reference, other)})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(rows))


def compared(reference: Explanation, other: Explanation) -> dict[str, Any]:
    """Return how the maps of patches correlate with those of the reference, and what they cost."""
    sizes = torch.bincount(reference.audio_map.labels.flatten())
    gradient = other.sentence_map is not None
    expected, means = scores(reference.audio_map), scores(other.audio_map)
    found = means * sizes if gradient else means
    own = found.sum(0)
    if other.sentence_map is not None:
        own = torch.bincount(reference.audio_map.labels.flatten(), other.sentence_map.dense(0).flatten().double())
    reliability = reference.reliability.tokens.double().sqrt()
    by_token = {"token, sum": correlations(expected, found), "token, mean": correlations(expected, means)}
    cost = other.provenance["cost"]
    return {
        "tokens": len(reference),
        # Without the clean one, those of the bits, and that of the token mask.
        "forward_passes": cost["forward_passes"] - 2 - PASSES,
        "backward_passes": cost["backward_passes"],
        "reliability_of_reference": float(reference.reliability.tokens.mean()),
        **{name: float(values.mean()) for name, values in by_token.items()},
        **{f"{name}, corrected": float((values / reliability).mean()) for name, values in by_token.items()},
        "sentence, normalised": float(correlations(z_scores(expected).sum(0)[None], z_scores(found).sum(0)[None])),
        "sentence, Σ r": float(correlations(expected.sum(0)[None], own[None])),
        "sentence, across": float(correlations(z_scores(expected).sum(0)[None], own[None])),
    }


def scores(patches: PatchMap) -> Tensor:
    """Return the scores of the patches of every token, (K, F)."""
    (values,), weights = patches.values, patches.weights
    return (values if weights is None else values / weights[0].clamp_min(1)).double()


def z_scores(values: Tensor) -> Tensor:
    """Return (K, F) values, each row with a mean of 0 and a standard deviation of 1."""
    return (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True)


def correlations(one: Tensor, other: Tensor) -> Tensor:
    """Return Pearson's correlation of the rows of two tensors, (K, F) each, (K,)."""
    return (z_scores(one) * z_scores(other)).sum(1) / (one.shape[1] - 1)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [f"| | forward + backward passes | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for row in rows:
        cells = [f"{row['forward_passes']:,} + {row['backward_passes']:,}"]
        for column in COLUMNS:
            corrected = row.get(f"{column}, corrected")
            cells.append(f"{row[column]:.3f}" + ("" if corrected is None else f" ({corrected:.3f})"))
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

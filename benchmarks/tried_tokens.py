"""What was tried for the maps of single tokens, on clips that no other result is about.

    python benchmarks/tried_tokens.py --model speech2text-en
    python benchmarks/tried_tokens.py --model seamless-en-de-es --tgt-lang deu

The clips are those of tried_clips.py (espeak-ng: apt-get install espeak-ng). Every line is another map for each token,
judged by the probability of *that* token, the tokens before it given: what is left over the first fifth of deletion
(lower is better), and what there is at insertion (higher is better), in percent; means over tokens, differences from
the default with their standard errors over clips. All but Eq. 3 is averaged over two seeds: at insertion a few tokens
stand or fall with the masks that happened to be drawn. Prints a table and writes
benchmarks/results/tried/<model>_tokens.json after every clip.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from faithfulness_tokens import token_scores
from torch import Tensor
from tried import eq3, table
from tried_clips import Clip, arguments, load_clips, output

from spes_hf import SpesConfig
from spes_hf.functional import z_score
from spes_hf.scoring.pooling import Pools, mean_of_levels, mean_of_scaled_levels

TODAY = SpesConfig()
POOLS = TODAY.pool_patches_per_second or ()
DEFAULT, MORE, MOST = 12, 16, 64  # masks, with a pass for every token
SEEDS = 2
# Pairs of masks of which the second keeps what the first perturbs: the probability that the first perturbs a patch.
UNEVEN = {
    "pairs of 0.3 and 0.7": (0.3,),
    "pairs of 0.1 and 0.9": (0.1,),
    "pairs of all probabilities": tuple(np.linspace(0.05, 0.45, 8)),
}


def gradients(clip: Clip, keeps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return −∂r_k / ∂m of every token under masks of patches, (N, K, T·C), and the impacts, (N, K)."""
    found, impacts = [], []
    for some in keeps.split(max(1, clip.batch // 4)):
        keep = clip.spread(some, labels).to(clip.features).requires_grad_()
        impact = clip.impact_under(keep)
        rows = [torch.autograd.grad(impact[:, k].sum(), keep, retain_graph=True)[0] for k in range(impact.shape[1])]
        found.append(-torch.stack(rows, 1).flatten(2).cpu())
        impacts.append(impact.detach().cpu())
    return torch.cat(found).double(), torch.cat(impacts).double()


def uneven(clip: Clip, labels: Tensor, probabilities: tuple[float, ...], masks: int, seed: int) -> Tensor:
    """Return pairs of masks, (N, F) bool, whose first perturbs a patch with these probabilities in turn."""
    numbers = np.random.default_rng(seed).random((masks // 2, int(labels.max()) + 1))
    first = numbers >= np.resize(probabilities, masks // 2)[:, None]
    return torch.from_numpy(np.stack([first, ~first], 1).reshape(masks, -1))


def pooled(maps: Tensor, pools: Pools, levels_as_z_scores: bool = False) -> Tensor:
    """Return the maps of all tokens, (K, T·C), in means over patches."""
    combined = mean_of_scaled_levels if levels_as_z_scores else mean_of_levels
    return torch.stack([combined(values, pools) for values in maps])


def maps_of(clip: Clip) -> Iterator[tuple[str, Tensor]]:
    """Yield a name and the maps of all tokens, (K, T·C); some names come twice, for two seeds."""

    def levels(*phis: float) -> Pools:
        return Pools(torch.stack([clip.level(phi) for phi in phis]))

    def drawn(masks: int, seed: int, phi: float = 250.0, design: str = "antithetic", p: float = 0.5) -> Tensor:
        labels = clip.level(phi)
        return gradients(clip, clip.bits(labels, masks, design, p, f"tokens/{seed}"), labels)[0].mean(0)

    usual, labels = levels(*POOLS), clip.level(250.0)
    for seed in range(SEEDS):
        bits = clip.bits(labels, MOST, "antithetic", 0.5, f"tokens/{seed}")
        found, impacts = gradients(clip, bits, labels)
        for masks in (4, 8, DEFAULT, MORE, 32, MOST):
            yield f"{masks} masks", pooled(found[:masks].mean(0), usual)
        few, size = found[:DEFAULT], found[:DEFAULT].abs().sum(-1, keepdim=True)
        mean = few.mean(0)
        yield "Σ log(1 + r)", pooled((few / (1 + impacts[:DEFAULT, :, None])).mean(0), usual)
        limited = few * (2 * size.median(0).values / size).clamp_max(1)
        yield "gradients of a mask limited to twice their median", pooled(limited.mean(0), usual)
        for phis in ((400.0,), (1600.0,), (160.0, 800.0), (160.0, 400.0, 1600.0)):
            yield f"means over φ = {', '.join(f'{phi:.0f}' for phi in phis)}", pooled(mean, levels(*phis))
        yield "levels as z-scores", pooled(mean, usual, True)
        yield "features, φ = 160, 800 as z-scores", pooled(mean, clip.pools(160.0, 800.0), True)
        scores = torch.stack([z_score(values) for values in pooled(mean, usual)])
        yield "drawn to the mean of all tokens", scores + 0.5 * scores.mean(0)
        for design in ("independent", "balanced"):
            yield f"{MORE} {design} masks", pooled(drawn(MORE, seed, design=design), usual)
        for phi in (160.0, 400.0):
            yield f"masks of φ = {phi:.0f}", pooled(drawn(DEFAULT, seed, phi=phi), usual)
        for p in (0.4, 0.6):
            yield f"mask probability {p}", pooled(drawn(DEFAULT, seed, p=p), usual)
        for name, probabilities in UNEVEN.items():
            masks = uneven(clip, labels, probabilities, MORE, seed)
            yield f"{MORE} masks, {name}", pooled(gradients(clip, masks, labels)[0].mean(0), usual)


@torch.no_grad()
def score(clip: Clip, maps: Tensor) -> list[float]:
    """Return the means over tokens: probability left over the first fifth deleted, probability at insertion."""

    def heard(k: int, keeps: Tensor) -> list[float]:
        keeps = keeps.to(clip.features.device)
        logits = clip.logits(torch.where(keeps, clip.features, clip.fill))[:, k].float()
        return (100 * logits.softmax(-1)[:, clip.ids[k]]).tolist()

    maps = maps.unflatten(1, clip.features.shape)
    return np.mean([token_scores(values, partial(heard, k)) for k, values in enumerate(maps)], 0).tolist()


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__, clips=16).parse_args()
    out, clips = output(options, "_tokens"), []
    scores: dict[str, list[list[float]]] = {}  # by clip
    with tempfile.TemporaryDirectory() as folder:
        for clip_id, clip in load_clips(options, folder):
            clips.append(clip_id)
            of_clip: dict[str, list[list[float]]] = {}  # by seed
            for name, maps in maps_of(clip):
                of_clip.setdefault(name, []).append(score(clip, maps))
            for passes in options.passes:
                of_clip[f"Eq. 3, {passes:,} masks"] = [score(clip, eq3(clip.papers(passes, stream="tokens/level")))]
            for name, seeds in of_clip.items():
                scores.setdefault(name, []).append(np.mean(seeds, 0).tolist())
            result = {"model": options.model, "clips": clips, "scores": scores}
            out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(table(scores, f"{DEFAULT} masks")))


if __name__ == "__main__":
    main()

"""What was tried to get more out of each pass, on clips that no other result is about.

    python benchmarks/tried.py --model speech2text-en
    python benchmarks/tried.py --model seamless-en-de-es --tgt-lang deu
    python benchmarks/tried.py --model demo --data FOLDER --ids ID …    (real speech: manifest.jsonl and recordings)

Settings were chosen by these numbers; docs/findings.md reports others, of other clips, voices and speakers (see
tried_clips.py). Every line is another map of the sentence, judged by the probability of the tokens of the clean
output: what is left over the first fifth of deletion (lower is better), and what there is at insertion (higher is
better), in percent. Prints a table and writes benchmarks/results/tried/<model>.json after every clip.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.optimize import nnls
from torch import Tensor
from tried_clips import TABLES, Clip, Run, arguments, load_clips, output, relative

from spes_hf.functional import saliency, z_score
from spes_hf.scoring.pooling import Pools, mean_of_scaled_levels

SHOWN = (160.0, 800.0)  # levels of the sentence's map next to the features


# Maps of the sentence ---------------------------------------------------------------------------------------------


def by_gradient(clip: Clip) -> Iterator[tuple[str, Tensor]]:
    """Yield the maps of gradients under 32 masks, 96 forward equivalents: the default, and one thing changed."""
    pools = clip.pools(*SHOWN)
    default = clip.of_design("antithetic")
    yield "default", mean_of_scaled_levels(default.mean(0), pools)
    for design in ("independent", "balanced", "sobol"):
        yield f"{design} masks", mean_of_scaled_levels(clip.of_design(design).mean(0), pools)
    for phi in (160.0, 400.0, 800.0):
        yield f"masks of φ = {phi:.0f}", mean_of_scaled_levels(clip.gradients(phi=phi).mean(0), pools)
    for probability in (0.4, 0.6):
        changed = clip.gradients(probability=probability)
        yield f"mask probability {probability}", mean_of_scaled_levels(changed.mean(0), pools)
    for inwards in (0.1, 0.2):
        yield (
            f"mask values {inwards}, {1 - inwards}",
            mean_of_scaled_levels(clip.gradients(inwards=inwards).mean(0), pools),
        )
    for epsilon in (0.001, 0.1):
        yield f"ε = {epsilon}", mean_of_scaled_levels(clip.gradients(relation=relative(epsilon)).mean(0), pools)
    yield "Σ r", mean_of_scaled_levels(clip.gradients(relation=lambda impact: impact).mean(0), pools)
    mean = default.mean(0)
    for phis in ((80.0, 400.0), (400.0, 1600.0), (160.0,), ()):
        shown = ", ".join(["features", *(f"φ = {phi:.0f}" for phi in phis)])
        yield f"map of {shown}", mean_of_scaled_levels(mean, clip.pools(*phis))
    spread = pools.spread(mean)
    yield "map of φ = 160, 800", mean_of_scaled_levels(mean, Pools(pools.labels[1:, None]))
    yield "levels weighted by reliability", weighted(default, pools)
    yield "features smoothed along edges", z_score(torch.from_numpy(guided(clip, spread[0])).flatten())
    yield "128 masks", mean_of_scaled_levels(clip.gradients(masks=128).mean(0), pools)


def agreement(clip: Clip) -> Iterator[tuple[str, float]]:
    """Yield how well the maps of two seeds agree (Pearson's r), for every design and number of masks."""
    pools = clip.pools(*SHOWN)
    for design in TABLES:
        both = [clip.of_design(design, seed) for seed in (0, 1)]
        for masks in (8, 16, 32):
            maps = torch.stack([mean_of_scaled_levels(gradients[:masks].mean(0), pools) for gradients in both])
            yield f"{design}, {masks} masks", float(torch.corrcoef(maps)[0, 1])


def weighted(gradients: Tensor, pools: Pools) -> Tensor:
    """Return levels as z-scores, with those weights ≥ 0 that let one half of the pairs foretell the other best."""
    pair = torch.arange(len(gradients)) // 2 % 2
    halves = [torch.stack([z_score(v) for v in pools.spread(gradients[pair == i].mean(0))]) for i in (0, 1)]
    weights = sum(nnls(halves[i].T.numpy(), halves[1 - i][0].numpy())[0] for i in (0, 1))
    levels = torch.stack([z_score(v) for v in pools.spread(gradients.mean(0))])
    return torch.from_numpy(np.asarray(weights)) @ levels


def guided(clip: Clip, values: Tensor, radius: int = 3, blur: float = 0.1) -> np.ndarray:
    """Return a map smoothed along the edges of the spectrogram, by the guided filter (He et al., 2010)."""
    guide, size = clip.picture, 2 * radius + 1
    values = z_score(values).view(guide.shape).numpy()
    means = {name: uniform_filter(v, size) for name, v in {"g": guide, "v": values}.items()}
    slope = (uniform_filter(guide * values, size) - means["g"] * means["v"]) / (
        uniform_filter(guide * guide, size) - means["g"] ** 2 + blur
    )
    offset = means["v"] - slope * means["g"]
    return uniform_filter(slope, size) * guide + uniform_filter(offset, size)


def by_perturbation(clip: Clip, masks: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the maps of a number of forward passes: Eq. 3 with the paper's levels, and what else they make."""
    for design in ("independent", "antithetic", "balanced", "sobol"):
        runs = clip.papers(masks, design)
        yield f"Eq. 3, {design} masks", sentence(eq3(runs))
        if design == "independent":
            yield "ridge regression, λ = 1", sentence(sum(ridge(x, r)[:, at] for x, r, at in runs))
            logs = [(x, relative(0.01)(r), at) for x, r, at in runs]
            yield "Eq. 3 of log(1 + r / 0.01)", sentence(eq3(logs))
            yield "ridge regression of log(1 + r / 0.01)", sentence(sum(ridge(x, r)[:, at] for x, r, at in logs))
            smooth = guided(clip, sentence(eq3(runs)))
            yield "Eq. 3, smoothed along edges", torch.from_numpy(smooth).flatten()
    yield "coarse to fine: φ = 80, then φ = 400 in the better half", coarse_to_fine(clip, masks)


def eq3(runs: list[Run]) -> Tensor:
    """Return Eq. 3 pooled over levels, (K, T·C), of perturbed bits (N, F), impacts (N, K) and patches (T·C,)."""
    numerator = sum((impact.T @ perturbed)[:, at] for perturbed, impact, at in runs)
    denominator = sum(perturbed.sum(0)[at] for perturbed, _, at in runs)
    return numerator / denominator.clamp_min(1)


def ridge(perturbed: Tensor, impact: Tensor, strength: float = 1.0) -> Tensor:
    """Return the coefficients, (K, F), of a linear model of the impact; λ in units of N · p · (1 − p)."""
    x, y = perturbed - perturbed.mean(0), impact - impact.mean(0)
    penalty = strength * len(x) / 4
    if len(x) < x.shape[1]:
        return (x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(len(x)).double(), y)).T
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]).double(), x.T @ y).T


def sentence(maps: Tensor) -> Tensor:
    """Return the mean of the tokens' maps, (K, T·C), as z-scores."""
    return torch.stack([z_score(values) for values in maps]).mean(0)


def coarse_to_fine(clip: Clip, masks: int) -> Tensor:
    """Return a map by a third of the masks at φ = 80, and by the rest with finer patches where those found most."""
    coarse, fine = clip.level(80.0).flatten(), clip.level(400.0).flatten()
    maps: list[Tensor] = []
    for labels, count in ((coarse, masks // 3), (None, masks - masks // 3)):
        if labels is None:
            better = maps[0] >= maps[0].median()
            joined = torch.where(better, fine, coarse + int(fine.max()) + 1)
            labels = joined.unique(return_inverse=True)[1]
        patches = labels.view(clip.features.shape)
        bits = clip.bits(patches, count, "independent", 0.5, f"stage {len(maps)}")
        maps.append(sentence(saliency(bits, clip.impacts(bits, patches))[:, labels]))
    return z_score(maps[0]) + z_score(maps[1])


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__, clips=12).parse_args()
    out, clips = output(options), []
    scores: dict[str, list[list[float]]] = {}
    agreements: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for clip_id, clip in load_clips(options, folder):
            clips.append(clip_id)
            maps = [("energy", 0, clip.features.cpu().double().flatten())]
            maps += [(name, 96, values) for name, values in by_gradient(clip)]
            for passes in options.passes:
                maps += [(name, passes, values) for name, values in by_perturbation(clip, passes)]
            for name, passes, values in maps:
                label = f"{name} ({384 if name == '128 masks' else passes})"
                scores.setdefault(label, []).append(clip.score(values))
            for label, value in agreement(clip):
                agreements.setdefault(label, []).append(value)
            result = {"model": options.model, "clips": clips, "scores": scores}
            text = json.dumps({**result, "agreement of two seeds": agreements}, indent=1, ensure_ascii=False)
            out.write_text(text + "\n", encoding="utf-8")
    print("\n".join(table(scores, "default (96)")))
    for label, values in agreements.items():
        print(f"two seeds agree, {label}: median r = {np.median(values):.2f}")


def table(scores: dict[str, list[list[float]]], default: str) -> list[str]:
    """Return the means, and how much better than the default each is, with its standard error, as Markdown."""
    reference = np.array(scores[default])
    lines = ["| map | probability left, first 20 % ↓ | insertion ↑ | differences |", "|---" * 4 + "|"]
    for name, values in scores.items():
        mean, apart = np.mean(values, 0), np.array(values) - reference
        error = apart.std(0, ddof=1) / len(apart) ** 0.5 if len(apart) > 1 else np.zeros(2)
        differences = ", ".join(f"{a:+.1f} ± {e:.1f}" for a, e in zip(apart.mean(0), error, strict=True))
        lines.append(f"| {name} | {mean[0]:.1f} | {mean[1]:.1f} | {differences} |")
    return lines


if __name__ == "__main__":
    main()

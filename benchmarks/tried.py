"""What was tried to get more out of each pass, on clips that no other result is about.

    python benchmarks/tried.py --model speech2text-en
    python benchmarks/tried.py --model seamless-en-de-es --tgt-lang deu
    python benchmarks/tried.py --model demo --data FOLDER --ids ID …    (real speech: manifest.jsonl and recordings)

Settings were chosen by these numbers; docs/findings.md reports others, of other clips, voices and speakers. Without
--data the clips are synthesised (espeak-ng: apt-get install espeak-ng), in the two voices that neither training nor
shipped clips have. Every line is another map of the sentence, judged by the probability of the tokens of the clean
output: what is left over the first fifth of deletion (lower is better), and what there is at insertion (higher is
better), in percent. Prints a table and writes benchmarks/results/tried/<model>.json after every clip.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.ndimage import uniform_filter
from scipy.optimize import nnls
from torch import Tensor
from tqdm.auto import tqdm

from spes_hf.adapters import Adapter, GenerationOptions, get_adapter
from spes_hf.audio.load import load_audio
from spes_hf.cli import load_model
from spes_hf.files import read_json_lines
from spes_hf.functional import area_under_curve, deletion_masks, saliency, z_score
from spes_hf.masking.draw import DESIGNS, keep_bits, mask_key
from spes_hf.masking.perturbations import fill_values
from spes_hf.masking.segments import feature_labels, segment
from spes_hf.scoring.impact import make_impact
from spes_hf.scoring.pooling import Pools, mean_of_scaled_levels

FRACTIONS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FIRST = 0.2
SHOWN = (160.0, 800.0)  # levels of the sentence's map next to the features
PAPERS = (400.0, 500.0, 600.0)
Relation = Callable[[Tensor], Tensor]
Run = tuple[Tensor, Tensor, Tensor]


def sobol(key: int, start: int, count: int, width: int) -> np.ndarray:
    """Return rows of a scrambled Sobol sequence, a quasi-random one."""
    engine = torch.quasirandom.SobolEngine(width, scramble=True, seed=key % 2**63)
    return engine.fast_forward(start).draw(count, dtype=torch.float32).numpy()


TABLES = {**{name: design.numbers for name, design in DESIGNS.items()}, "sobol": sobol}


def relative(epsilon: float) -> Relation:
    """Return log(1 + r / ε)."""
    return lambda impact: torch.log1p(impact / epsilon)


class Clip:
    """An utterance, its output, and what the model does under masks of its spectrogram.

    Args:
        adapter: Of the model.
        path: Recording.
        options: Language settings.
    """

    def __init__(self, adapter: Adapter, path: str, options: GenerationOptions):
        self.adapter = adapter
        self.utterance = adapter.encode(load_audio(path, adapter.sampling_rate))
        self.target = adapter.generate(self.utterance, options)
        self.features = self.utterance.features.to(adapter.device)
        self.fill = fill_values("mean", self.utterance.features).to(adapter.device)
        self.ids = self.target.token_ids.to(adapter.device)
        with torch.no_grad():
            clean = adapter.logits(self.utterance, self.target)[0]
        self.impact = make_impact("kl", clean, self.ids)
        self.batch = 4 if self.features.numel() > 50_000 else 16
        self._levels: dict[float, Tensor] = {}
        self._of_designs: dict[tuple[str, int], Tensor] = {}

    def level(self, phi: float) -> Tensor:
        """Return the patches of a level, (T, C)."""
        if phi not in self._levels:
            shape = (self.utterance.features, self.utterance.duration_s, (phi,), 7.5, 0.0, 0.1)
            self._levels[phi] = segment(*shape)[0]
        return self._levels[phi]

    def pools(self, *phis: float) -> Pools:
        """Return the features and these levels."""
        return Pools(torch.cat([feature_labels(self.utterance.features), *(self.level(phi)[None] for phi in phis)]))

    def bits(self, labels: Tensor, masks: int, design: str, probability: float, stream: str = "tried") -> Tensor:
        """Return masks of patches, (N, F) bool."""
        units = int(labels.max()) + 1
        key = mask_key(0, "", f"{stream}/{units}")
        return torch.from_numpy(keep_bits(key, 0, masks, units, probability, TABLES[design]))

    def spread(self, bits: Tensor, labels: Tensor) -> Tensor:
        """Return masks by feature, (N, T, C)."""
        return bits[:, labels.flatten()].unflatten(1, labels.shape)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits of all tokens under these spectrograms."""
        return self.adapter.logits(self.utterance, self.target, features=features)

    def impact_under(self, keep: Tensor) -> Tensor:
        """Return the impacts, (B, K), of masks by feature, (B, T, C), of numbers from 0 to 1."""
        return self.impact(self.logits(keep * self.features + (1 - keep) * self.fill))

    def gradients(
        self,
        phi: float = 250.0,
        design: str = "antithetic",
        probability: float = 0.5,
        masks: int = 32,
        relation: Relation | None = None,
        inwards: float = 0.0,
        seed: int = 0,
    ) -> Tensor:
        """Return −∂ Σ_k f(r_k) / ∂m under every mask, (N, T·C).

        Args:
            phi: Level of the masks.
            design: How masks balance one another.
            probability: That a patch is perturbed.
            masks: N.
            relation: f; None for log(1 + r / 0.01), the default's.
            inwards: How far from 0 and 1 the mask values lie.
            seed: Of the masks.
        """
        labels, found, relation = self.level(phi), [], relation or relative(0.01)
        for some in self.bits(labels, masks, design, probability, f"tried/{seed}").split(self.batch):
            keep = self.spread(some, labels).to(self.features)
            keep = (inwards + (1 - 2 * inwards) * keep).requires_grad_()
            impact = self.impact_under(keep)
            (gradient,) = torch.autograd.grad(relation(impact).sum(), keep)
            found.append(-gradient.flatten(1).cpu())
        return torch.cat(found).double()

    def of_design(self, design: str, seed: int = 0) -> Tensor:
        """Return the gradients that masks of a design have, all else as in the default; kept for the next time."""
        if (design, seed) not in self._of_designs:
            self._of_designs[design, seed] = self.gradients(design=design, seed=seed)
        return self._of_designs[design, seed]

    @torch.no_grad()
    def impacts(self, bits: Tensor, labels: Tensor) -> Tensor:
        """Return the impacts of masks of patches, (N, K) float64."""
        found = []
        for some in bits.split(2 * self.batch):
            keep = self.spread(some, labels).to(self.features.device)
            found.append(self.impact(self.logits(torch.where(keep, self.features, self.fill))).cpu())
        return torch.cat(found).double()

    def papers(self, masks: int, design: str = "independent", stream: str = "level") -> list[Run]:
        """Return perturbed bits (N, F), impacts (N, K) and patches (T·C,) of each of the paper's levels."""
        found = []
        for index, labels in enumerate(self.level(phi) for phi in PAPERS):
            bits = self.bits(labels, masks // len(PAPERS), design, 0.5, f"{stream} {index}")
            found.append((1.0 - bits.double(), self.impacts(bits, labels), labels.flatten()))
        return found

    @torch.no_grad()
    def score(self, values: Tensor) -> list[float]:
        """Return what a map, (T·C,), is worth: probability left at deletion, probability at insertion."""
        deleted = deletion_masks(values.view(self.features.shape), FRACTIONS)
        first = sum(fraction <= FIRST for fraction in FRACTIONS)
        curves = []
        for keeps in (deleted[:first], ~deleted):
            heard = []
            for keep in keeps.to(self.features.device).split(2 * self.batch):
                logits = self.logits(torch.where(keep, self.features, self.fill)).float()
                picked = logits.softmax(-1).gather(-1, self.ids.expand(len(keep), -1)[..., None])
                heard += picked.squeeze(-1).mean(1).tolist()
            curves.append(heard)
        deletion = area_under_curve(curves[0], FRACTIONS[:first]) / FIRST
        return [100 * float(deletion), 100 * float(area_under_curve(curves[1], FRACTIONS))]

    @cached_property
    def picture(self) -> np.ndarray:
        """The spectrogram as z-scores, (T, C), for what follows its edges."""
        return z_score(self.utterance.features.double()).numpy()


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


# The command ------------------------------------------------------------------------------------------------------


def recordings(options: argparse.Namespace, folder: str) -> list[tuple[str, str]]:
    """Return id and path of the clips: those of --data, or synthesised ones."""
    if options.data is not None:
        rows = read_json_lines(options.data / "manifest.jsonl")
        wanted = [row for row in rows if not options.ids or row["id"] in options.ids]
        return [(row["id"], str(options.data / row["file"])) for row in wanted][: options.clips]
    sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes"))  # speech is made by the training recipe
    from tiny_speech.sentences import generate_sentences
    from tiny_speech.synthesis import DEV_VOICES, SAMPLING_RATE, Voice, synthesize

    shipped = {sentence.text for sentence in generate_sentences(400, 1, exclude=set())}
    found = []
    voices = itertools.cycle(DEV_VOICES)
    for i, said in enumerate(generate_sentences(options.clips, 977, exclude=shipped)):
        samples, _ = synthesize(said.text, Voice(next(voices)))
        path = str(Path(folder) / f"{i}.wav")
        soundfile.write(path, samples, SAMPLING_RATE)
        found.append((said.text, path))
    return found


def arguments(description: str | None, clips: int) -> argparse.ArgumentParser:
    """Return the parser of the arguments that this script and its like take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="speech2text-en", help="default: %(default)s")
    parser.add_argument("--tgt-lang", help="of the text (SeamlessM4T)")
    parser.add_argument("--device", default="cpu", help="where the model runs (default: cpu)")
    parser.add_argument("--data", type=Path, help="folder with manifest.jsonl and recordings, instead of clips")
    parser.add_argument("--ids", nargs="*", help="only these recordings")
    parser.add_argument("--clips", type=int, default=clips, help="how many (default: %(default)s)")
    parser.add_argument("--passes", type=int, nargs="*", default=[999], help="forward passes of Eq. 3 (default: 999)")
    parser.add_argument("--out", type=Path, help="JSON file (default: in benchmarks/results/tried, by model)")
    return parser


def output(options: argparse.Namespace, suffix: str = "") -> Path:
    """Return the file to write, its folder made."""
    out: Path = options.out or Path(__file__).parent / "results" / "tried" / f"{options.model}{suffix}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def load_clips(options: argparse.Namespace, folder: str) -> Iterator[tuple[str, Clip]]:
    """Load the model, then yield id and clip, with a progress bar; synthesised clips go into the folder."""
    model, processor = load_model(options.model, options.device, "auto")
    for weight in model.parameters():
        weight.requires_grad_(False)
    adapter, language = get_adapter(model, processor), GenerationOptions(tgt_lang=options.tgt_lang)
    for name, path in tqdm(recordings(options, folder), unit="clip"):
        yield name, Clip(adapter, path, language)


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

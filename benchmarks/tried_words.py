"""What was tried for the maps of words, on clips that no other result is about.

    python benchmarks/tried_words.py --model speech2text-en
    python benchmarks/tried_words.py --model seamless-en-de-es --tgt-lang deu --clips 9
    python benchmarks/tried_words.py --model demo --words 2 --data FOLDER --ids ID …     (real speech, a manifest.jsonl)

The clips are those of tried_clips.py (espeak-ng: apt-get install espeak-ng). Every line is another map for each word,
made of the same gradients under 24 masks: the mean of its tokens' z-scores. It is judged by the probability of *that*
word, the tokens before it given: what is left when 0.25 to 5 % of the features go (lower is better), what there is at
insertion (higher is better), and what is left to the other words at 5 % (higher is more specific), in percent. Means
over words, then over clips; differences from a pass for each token under 12 masks, with their standard errors over
clips. The judge of Whisper runs in bfloat16. Prints a table and writes benchmarks/results/tried/<model>_words.json
after every clip.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from tried_clips import Clip, arguments, load_clips, output
from tried_patches import cut, spectral_boundaries, stretches, word_boundaries

from spes_hf.functional import area_under_curve, deletion_masks, z_score
from spes_hf.metrics import WORD_DELETION_FRACTIONS, WORD_INSERTION_FRACTIONS
from spes_hf.scoring.foils import Words
from spes_hf.scoring.gradient import relative
from spes_hf.scoring.pilot import LEAST, MASKS
from spes_hf.scoring.pooling import Pools, mean_of_scaled_levels
from spes_hf.scoring.prior import prior_of
from spes_hf.scoring.sharing import Sharing

COUNT, PASSES = 24, 5  # masks, and backward passes under each where tokens share them
FINER = ((800.0,), (3200.0,), (800.0, 3200.0))  # levels of patches, per second
BEFORE = "12 masks, a pass for each token"
INSERTION = tuple(sorted({0.0, *WORD_INSERTION_FRACTIONS}))
DELETION = tuple(fraction for fraction in WORD_DELETION_FRACTIONS if fraction)


class Gradients:
    """What a model tells of a clip under masks: gradients, impacts, attention.

    Args:
        clip: The clip.
        words: At most this number of its words is judged.
    """

    def __init__(self, clip: Clip, words: int):
        self.clip, adapter = clip, clip.adapter
        labels = clip.level(250.0)
        found, impacts, encoded = [], [], []
        for some in clip.bits(labels, COUNT, "antithetic", 0.5, "words/0").split(1):
            keep = clip.spread(some, labels).to(clip.features).requires_grad_()
            states = adapter.encoder_states(
                adapter.model_inputs(clip.utterance, keep * clip.features + (1 - keep) * clip.fill)
            )
            leaf = states.detach().requires_grad_()
            impact = clip.impact(adapter.logits(clip.utterance, clip.target, states=leaf))
            of_states = [
                torch.autograd.grad(impact[:, k].sum(), leaf, retain_graph=True)[0] for k in range(impact.shape[1])
            ]
            rows = [torch.autograd.grad(states, keep, grad_outputs=g, retain_graph=True)[0] for g in of_states]
            found.append(-torch.cat(rows).flatten(1).float().cpu())
            impacts.append(impact.detach()[0].float().cpu())
            encoded.append(torch.stack([(-g * (leaf.detach() - leaf.detach().mean(1)))[0].sum(-1) for g in of_states]))
            self.norms = [*getattr(self, "norms", []), torch.stack([g.norm() for g in of_states]).cpu()]
        self.of_tokens, self.impacts = torch.stack(found), torch.stack(impacts)  # (N, K, T·C), (N, K)
        self.tokens = self.impacts.shape[1]
        self.usual = Pools(torch.stack([clip.level(phi) for phi in (400.0, 1600.0)]))
        positions = adapter.encoder_positions(clip.utterance)
        weights = adapter.attention_weights(clip.utterance, clip.target)
        self.attention = positions.spread(weights.mean((0, 1)))
        heads = adapter.alignment_heads
        self.alignment = (
            None if heads is None else positions.spread(torch.stack([weights[i, h] for i, h in heads]).mean(0))
        )
        self.over_encoder = positions.spread(torch.stack(encoded).mean(0).clamp_min(0).cpu())
        groups = Words.of(adapter, clip.target.token_ids)
        self.groups = [list(group) for group in groups.groups]
        self.spoken = [i for i, text in enumerate(groups.texts) if any(c.isalnum() for c in text)]
        count = min(words, len(self.spoken))
        self.judged = [self.spoken[int((i + 0.5) * len(self.spoken) / count)] for i in range(count)]

    @cached_property
    def sentence(self) -> Tensor:
        """(T·C,) map of the sentence, Σ_k log(1 + r_k / 0.01), as by default."""
        at = self.impacts.clone().requires_grad_()
        (slope,) = torch.autograd.grad(relative(at).sum(), at)
        mean = torch.einsum("nk,nkf->f", slope, self.of_tokens) / COUNT
        return mean_of_scaled_levels(mean.double(), self.clip.pools(160.0, 800.0)).float()

    @cached_property
    def energy(self) -> Tensor:
        """(T·C,) loudness."""
        features = self.clip.utterance.features
        return (features - features.min()).flatten()

    @cached_property
    def deviation(self) -> Tensor:
        """(T·C,) distance from the fill."""
        return (self.clip.features - self.clip.fill).abs().flatten().cpu()

    def pooled(self, maps: Tensor, pools: Pools | None = None) -> Tensor:
        """Return maps in means over patches, the mean of all levels; None: the usual ones."""
        pools = pools or self.usual
        means = zip(pools.means(maps), pools.labels, strict=True)
        return torch.stack([mean[:, labels] for mean, labels in means]).mean(0)

    def own(self, masks: int) -> Tensor:
        """Return the maps that the first masks draw, a pass for each token."""
        return self.pooled(self.of_tokens[:masks].mean(0))

    def prior(self, pools: Pools) -> Tensor:
        """Return what the maps fall back on, (T·C,), in means over these patches."""
        shape = self.clip.features.shape
        labels = pools.labels.unflatten(1, shape)
        return prior_of(self.sentence.view(shape), self.deviation.view(shape), labels).flatten()

    def over_time(self, profiles: Tensor, values: Tensor) -> Tensor:
        """Return profiles over time, (K, T), times a map, (T·C,), from its minimum up."""
        by_frame = (values - values.min()).view(self.clip.utterance.features.shape)
        return (profiles[..., None] * by_frame).flatten(1)

    def under(self, labels: Tensor, masks: int) -> Tensor:
        """Return maps by feature, (K, T·C), that masks of these patches draw, a pass for each token of judged words."""
        found = torch.zeros_like(self.of_tokens[0])
        for some in self.clip.bits(labels, masks, "antithetic", 0.5, "words/0").split(1):
            keep = self.clip.spread(some, labels).to(self.clip.features).requires_grad_()
            impact = self.clip.impact_under(keep)
            for k in (k for word in self.judged for k in self.groups[word]):
                (gradient,) = torch.autograd.grad(impact[0, k], keep, retain_graph=True)
                found[k] -= gradient.flatten().float().cpu()
        return found / masks

    def shared(
        self,
        sizes: Tensor,
        profile: Tensor | None = None,
        signs: bool = True,
        passes: int = PASSES,
        pools: Pools | None = None,
    ) -> Tensor:
        """Return the maps where tokens share passes.

        Args:
            sizes: (N, K) about how large the gradients are.
            profile: (K, T) what shares out a pass over time; None: nothing does.
            signs: Whether tokens of a group have signs.
            passes: Under each mask.
            pools: Patches of the maps; None: the usual ones.
        """
        frames = len(self.clip.utterance.features)
        weights = torch.ones(self.tokens, frames) if profile is None else profile
        sharing = Sharing.of(self.tokens, passes, COUNT // 2, lambda: weights, 0.01)
        if not sharing.is_shared:
            return self.own(COUNT)
        blocks, maps = torch.arange(COUNT) // 2, torch.empty(self.of_tokens.shape[1:])
        for group in map(list, sharing.groups):
            sign = sharing.signs(blocks, len(group)) if signs else torch.ones(COUNT, len(group))
            total = torch.einsum("nk,nkf->nf", sign / sizes[:, group], self.of_tokens[:, group])
            for place, k in enumerate(group):
                mean = torch.einsum("n,nf->f", sign[:, place] * sizes[:, k], total) / COUNT
                share = 1.0 if profile is None or sharing.shares is None else sharing.shares[k][:, None]
                maps[k] = (mean.view(frames, -1) * share).flatten()
        return self.pooled(maps, pools)

    @cached_property
    def sizes(self) -> Tensor:
        """(N, K) as the package works them out: √r, scaled by the decoder's own gradients under four masks."""
        root = (self.impacts.abs() + LEAST).sqrt()
        ratio = (torch.stack(self.norms)[:MASKS] / root[:MASKS]).clamp_min(LEAST).log().mean(0).exp()
        return ratio * root

    def shrunk(self, masks: int, towards: Tensor | None) -> Tensor:
        """Return means over patches, drawn to 0 or to a map by their standard errors over pairs of masks."""
        pairs = self.of_tokens[:masks].unflatten(0, (-1, 2)).mean(1)
        found = []
        for level, (labels, sizes) in enumerate(zip(self.usual.labels, self.usual.sizes, strict=True)):
            values = torch.stack([self.usual.means(pair)[level] for pair in pairs])
            share = sizes / sizes.sum()
            mean, error = values.mean(0), values.var(0) / len(values)
            error = (error + error.mean(1, keepdim=True)) / 2
            offset = (mean * share).sum(1, keepdim=True)
            target = torch.zeros_like(mean)
            if towards is not None:
                coarse = self.usual.means(towards[None])[level]
                coarse = coarse - (coarse * share).sum()
                slope = ((mean - offset) * coarse * share).sum(1) / (coarse.square() * share).sum()
                target = slope.clamp_min(0)[:, None] * coarse
            rest = mean - offset - target
            signal = ((rest.square() - error) * share).sum(1, keepdim=True).clamp_min(0)
            found.append((offset + target + rest * signal / (signal + error).clamp_min(1e-30))[:, labels])
        return torch.stack(found).mean(0)

    def until_reliable(self, target: float) -> tuple[Tensor, float]:
        """Return maps of as many masks as each token needs for a split-half reliability, and their mean number."""
        maps, masks = self.own(COUNT), torch.full((self.tokens,), float(COUNT))
        for k in range(self.tokens):
            for count in (4, 8, 12, 16, 20):
                halves = [self.pooled(self.of_tokens[i:count, k].unflatten(0, (-1, 1))[::4].mean(0)) for i in (0, 2)]
                r = float(torch.corrcoef(torch.cat(halves))[0, 1])
                if 2 * r / (1 + r) >= target:
                    maps[k], masks[k] = self.pooled(self.of_tokens[:count, k].mean(0)[None])[0], count
                    break
        return maps, float(masks.mean())

    @torch.no_grad()
    def score(self, maps: Tensor) -> list[float]:
        """Return the means over words: what is left at each fraction, at insertion, and to other words at 5 %."""
        scores = torch.stack([z_score(values.double()) for values in maps])
        rows = []
        for word in self.judged:
            of_word = scores[self.groups[word]].mean(0).float().view(self.clip.features.shape)
            keeps = torch.cat([deletion_masks(of_word, DELETION), ~deletion_masks(of_word, INSERTION)])
            found = self.probabilities(keeps)
            others = [i for i in self.spoken if i != word]
            left = float(found[len(DELETION) - 1, others].mean()) if others else math.nan
            inserted = area_under_curve(found[len(DELETION) :, word].tolist(), INSERTION)
            rows.append([*found[: len(DELETION), word].tolist(), float(inserted), left])
        return [float(value) for value in np.nanmean(rows, 0)]

    def probabilities(self, keeps: Tensor) -> Tensor:
        """Return the probability of every word, in percent, where these features are kept, (N, W)."""
        ids, found = self.clip.ids, []
        whisper = self.clip.adapter.window_s is not None
        for some in keeps.to(self.clip.features.device).split(self.clip.batch):
            with torch.autocast(self.clip.features.device.type, torch.bfloat16, enabled=whisper):
                logits = self.clip.logits(torch.where(some, self.clip.features, self.clip.fill))
            log_p = logits.float().log_softmax(-1)
            found.append(log_p.gather(-1, ids.expand(len(some), -1)[..., None]).squeeze(-1).cpu())
        return 100 * torch.stack([torch.cat(found)[:, group].sum(1).exp() for group in self.groups], 1)


def maps_of(seen: Gradients) -> Iterator[tuple[str, float, Tensor]]:
    """Yield a name, backward passes through the whole model for the tokens, and the maps of all tokens."""
    tokens, few = seen.tokens, seen.own(12)
    each, all_shared = float(12 * tokens), float(COUNT * min(PASSES, tokens))
    scaled = torch.stack([z_score(values.double()).float() for values in few])
    sentence = z_score(seen.sentence.double()).float()
    prior = seen.prior(seen.usual)
    yield BEFORE, each, few
    for masks in (4, 6, COUNT):
        yield f"{masks} masks, a pass for each token", masks * tokens, seen.own(masks)
    yield "energy", 0, seen.energy.expand(tokens, -1)
    yield "distance from the fill", 0, seen.deviation.expand(tokens, -1)
    yield "mean attention × energy", 0, seen.over_time(seen.attention, seen.energy)
    yield "mean attention × sentence", 0, seen.over_time(seen.attention, seen.sentence)
    if seen.alignment is not None:
        yield "alignment heads × energy", 0, seen.over_time(seen.alignment, seen.energy)
        yield "alignment heads × sentence", 0, seen.over_time(seen.alignment, seen.sentence)
    top = seen.attention / seen.attention.amax(1, keepdim=True)
    yield (
        "12 masks × (0.1 + attention)",
        each,
        few * (0.1 + top)[..., None].expand(-1, -1, few.shape[1] // top.shape[1]).flatten(1),
    )
    for weight in (0.25, 0.5, 1.0):
        yield f"12 masks + {weight} sentence, z-scores", each, scaled + weight * sentence
    for weight in (1.0, 3.0):
        yield f"12 masks + {weight:.0f} prior", each, scaled + weight * prior
    yield "12 masks, shrunk to 0 by standard errors", each, seen.shrunk(12, None)
    yield "12 masks, shrunk to the sentence by standard errors", each, seen.shrunk(12, seen.sentence)
    maps, masks = seen.until_reliable(0.6)
    yield "masks until the reliability is 0.6", masks * tokens, maps
    one = torch.ones_like(seen.sizes)
    yield "shared: signs alone", all_shared, seen.shared(seen.sizes)
    yield "shared: attention alone", all_shared, seen.shared(seen.sizes, seen.attention, signs=False)
    yield (
        "shared: signs and gradients over the encoder's output",
        all_shared,
        seen.shared(seen.sizes, seen.over_encoder),
    )
    yield "shared: signs and attention, sizes ignored", all_shared, seen.shared(one, seen.attention)
    both = seen.shared(seen.sizes, seen.attention)
    yield "shared: signs and attention", all_shared, both
    yield "shared, 3 passes", COUNT * 3, seen.shared(seen.sizes, seen.attention, passes=3)
    scaled = torch.stack([z_score(values.double()).float() for values in both])
    for weight in (1.0, 3.0, 5.0):
        name = "default: shared + 3 prior" if weight == 3 else f"shared + {weight:.0f} prior"
        yield name, all_shared, scaled + weight * prior


def maps_of_patches(seen: Gradients) -> Iterator[tuple[str, float, Tensor]]:
    """Yield the same of maps whose patches are finer, or cut at the boundaries of words or of spectral changes."""
    clip, each = seen.clip, float(12 * seen.tokens)
    words, phones = word_boundaries(clip), spectral_boundaries(clip)
    whole = stretches(clip, words)
    usual = [clip.level(phi) for phi in (400.0, 1600.0)]
    finer = {phis: Pools(torch.stack([clip.level(phi) for phi in phis])) for phis in FINER}
    # Cut patches are finer as well as aligned: at mirrored boundaries they are as fine, and not aligned.
    mirrored = (len(whole) - phones).flip(0)
    at_words, at_changes, elsewhere = (
        Pools(torch.stack([cut(level, at) for level in usual])) for at in (words, phones, mirrored)
    )
    kinds = {f"φ = {', '.join(f'{phi:.0f}' for phi in phis)}": pools for phis, pools in finer.items()}
    kinds |= {"patches cut at words": at_words, "patches cut at spectral changes": at_changes}
    kinds |= {"patches cut at spectral changes mirrored in time": elsewhere}
    few = seen.of_tokens[:12].mean(0)
    for name, pools in kinds.items():
        yield f"12 masks, {name}", each, seen.pooled(few, pools)
    yield "12 masks, whole words", each, seen.pooled(few, Pools(whole[None]))
    aligned = seen.under(cut(clip.level(250.0), words), 12)
    yield "12 masks cut at words", each, seen.pooled(aligned)
    yield "12 masks cut at words, patches too", each, seen.pooled(aligned, at_words)
    of_words = seen.under(whole, 12)
    yield "12 masks of whole words", each, seen.pooled(of_words)
    yield "12 masks of whole words, whole words", each, seen.pooled(of_words, Pools(whole[None]))
    for name, pools in kinds.items():
        both = seen.shared(seen.sizes, seen.attention, pools=pools)
        scaled = torch.stack([z_score(values.double()).float() for values in both])
        yield f"default, {name}", float(COUNT * min(PASSES, seen.tokens)), scaled + 3 * seen.prior(pools)


def table(scores: dict[str, list[list[float]]], passes: dict[str, list[float]]) -> list[str]:
    """Return means, and differences from a pass for each token with standard errors, as Markdown."""
    percents = ", ".join(f"{100 * fraction:g}" for fraction in DELETION)
    heads = f"| map | passes | left at {percents} % ↓ | insertion ↑ | others at 5 % ↑ | deletion, insertion, others |"
    lines = [heads, "|---" * 6 + "|"]

    def summary(rows: Sequence[Sequence[float]]) -> np.ndarray:
        values = np.array(rows)
        return np.stack([values[:, : len(DELETION)].mean(1), values[:, -2], values[:, -1]], 1)

    reference = summary(scores[BEFORE])
    for name, rows in scores.items():
        mean, apart = np.nanmean(rows, 0), summary(rows) - reference
        error = np.nanstd(apart, 0, ddof=1) / len(apart) ** 0.5 if len(apart) > 1 else np.zeros(3)
        by = ", ".join(f"{a:+.1f} ± {e:.1f}" for a, e in zip(np.nanmean(apart, 0), error, strict=True))
        left = ", ".join(f"{value:.0f}" for value in mean[: len(DELETION)])
        cost = f"{np.mean(passes[name]):.0f}"
        lines.append(f"| {name} | {cost} | {left} | {mean[-2]:.1f} | {mean[-1]:.1f} | {by} |")
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, clips=16)
    parser.add_argument("--words", type=int, default=4, help="words of a clip that are judged (default: 4)")
    options = parser.parse_args()
    out, clips = output(options, "_words"), []
    scores: dict[str, list[list[float]]] = {}
    passes: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for clip_id, clip in load_clips(options, folder):
            clips.append(clip_id)
            seen = Gradients(clip, options.words)
            for name, cost, maps in itertools.chain(maps_of(seen), maps_of_patches(seen)):
                scores.setdefault(name, []).append(seen.score(maps))
                passes.setdefault(name, []).append(cost)
            result = {"model": options.model, "clips": clips, "passes": passes, "scores": scores}
            out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(table(scores, passes)))


if __name__ == "__main__":
    main()

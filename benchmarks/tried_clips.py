"""Clips that no reported result is about, and what a model does under masks of them: for the scripts tried*.py.

Without --data the clips are synthesised (espeak-ng: apt-get install espeak-ng), in the two voices that neither training
nor shipped clips have.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm.auto import tqdm

from spes_hf.adapters import Adapter, GenerationOptions, get_adapter
from spes_hf.analysis import Alignment, read_alignment
from spes_hf.audio.load import load_audio
from spes_hf.cli import load_model
from spes_hf.files import read_json_lines
from spes_hf.functional import area_under_curve, deletion_masks, z_score
from spes_hf.masking.draw import DESIGNS, keep_bits, mask_key
from spes_hf.masking.perturbations import fill_values
from spes_hf.masking.segments import feature_labels, segment
from spes_hf.scoring.impact import make_impact
from spes_hf.scoring.pooling import Pools

FRACTIONS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FIRST = 0.2
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
        alignment: When its words were spoken, if that is known.
    """

    def __init__(self, adapter: Adapter, path: str, options: GenerationOptions, alignment: Alignment | None = None):
        self.adapter, self.alignment = adapter, alignment
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


# The command ------------------------------------------------------------------------------------------------------


def recordings(options: argparse.Namespace, folder: str) -> list[tuple[str, str, Alignment | None]]:
    """Return id, path and times of the words of the clips: those of --data, or synthesised ones."""
    if options.data is not None:
        rows = read_json_lines(options.data / "manifest.jsonl")
        wanted = [row for row in rows if not options.ids or row["id"] in options.ids][: options.clips]
        aligned = [read_alignment(options.data / row["alignment"]) if "alignment" in row else None for row in wanted]
        return [(row["id"], str(options.data / row["file"]), of) for row, of in zip(wanted, aligned, strict=True)]
    sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes"))  # speech is made by the training recipe
    from tiny_speech.sentences import generate_sentences
    from tiny_speech.synthesis import DEV_VOICES, SAMPLING_RATE, Voice, synthesize

    shipped = {sentence.text for sentence in generate_sentences(400, 1, exclude=set())}
    found = []
    voices = itertools.cycle(DEV_VOICES)
    for i, said in enumerate(generate_sentences(options.clips, 977, exclude=shipped)):
        samples, times = synthesize(said.text, Voice(next(voices)))
        path = str(Path(folder) / f"{i}.wav")
        soundfile.write(path, samples, SAMPLING_RATE)
        spoken = zip(said.text.split(), times, strict=True)
        words = [{"word": word, "start": start, "end": end} for word, (start, end) in spoken]
        found.append((said.text, path, Alignment.of(words)))
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
    for name, path, alignment in tqdm(recordings(options, folder), unit="clip"):
        yield name, Clip(adapter, path, language, alignment)

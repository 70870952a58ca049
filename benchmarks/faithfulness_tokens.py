"""Are the maps of single tokens faithful? Each token's own deletion and insertion, gradients against Eq. 3.

    python benchmarks/faithfulness_tokens.py --model speech2text-en
    python benchmarks/faithfulness_tokens.py --model seamless-en-de-es --tgt-lang deu --every 3

For every token of the shipped clips the most salient features of *its* map go (or are all that is left), and the
probability that the model gives to *that* token is read, the tokens before it given. Deletion is the area over the
first fifth of the features, insertion that over all, both in percent; means over tokens, with bootstrap intervals over
utterances, and paired ones against Eq. 3 under 20,000 masks, whose forward passes all tokens share. What a token costs
by gradients is its share of the forward passes and its own backward passes, each of which counts 2. Writes
benchmarks/results/faithfulness_tokens/<model>.json; clips that are in there already, under the same settings, are not
measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from spes_hf import Explainer, Explanation, SpesConfig
from spes_hf.adapters import Adapter, get_adapter
from spes_hf.audio.load import Waveform
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.functional import area_under_curve, deletion_masks
from spes_hf.masking.perturbations import fill_values
from spes_hf.metrics import Score, compare
from spes_hf.metrics.deletion import clean_target, generation_options
from spes_hf.metrics.score import make_score, mean_points

FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
FIRST = 0.2
REFERENCE = "Eq. 3, 20,000 masks"
EQ3: dict[str, Any] = {
    "estimator": "perturbation",
    "mask_design": "independent",
    "patches_per_second": (400.0, 500.0, 600.0),
}
METHODS: dict[str, SpesConfig] = {
    REFERENCE: SpesConfig(num_spectrogram_masks=20_000, num_token_masks=1, **EQ3),
    "Eq. 3, 1,000 masks": SpesConfig(num_spectrogram_masks=1_000, num_token_masks=1, **EQ3),
    **{
        f"gradient, {masks} masks": SpesConfig(
            num_spectrogram_masks=masks,
            masks_per_token=masks,
            passes_per_mask=None,
            prior_weight=0.0,
            num_token_masks=1,
        )
        for masks in (4, 8, 12, 16)
    },
}
SCORES = ("probability left, first 20 % deleted", "probability, insertion")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("speech2text-en", "seamless-en-de-es"), default="speech2text-en")
    parser.add_argument("--tgt-lang", help="of the text (SeamlessM4T)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th clip (default: 1)")
    parser.add_argument("--device", default="cpu", help="where the model runs (default: cpu)")
    parser.add_argument("--out", type=Path, help="(default: benchmarks/results/faithfulness_tokens/<model>.json)")
    options = parser.parse_args()
    out = options.out or Path(__file__).parent / "results" / "faithfulness_tokens" / f"{options.model}.json"
    configs = {name: config.to_dict() for name, config in METHODS.items()}
    settings: dict[str, Any] = {"tgt_lang": options.tgt_lang, "fractions": list(FRACTIONS), "configs": configs}
    before: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    rows: list[dict[str, Any]] = before["rows"] if before.get("settings") == settings else []
    model, processor = load_tiny_model(options.model)
    model.to(options.device)
    clips = tiny_clips()[:: options.every]
    out.parent.mkdir(parents=True, exist_ok=True)
    adapter = get_adapter(model, processor)
    explainers = {name: Explainer(model, processor, c, seed=1, progress=False) for name, c in METHODS.items()}
    for clip in tqdm([c for c in clips if c["id"] not in {row["id"] for row in rows}], unit="clip"):
        row: dict[str, Any] = {"id": clip["id"], "scores": {}}
        for name, explainer in explainers.items():
            found = explainer(clip["path"], tgt_lang=options.tgt_lang)
            row["tokens"] = len(found)
            row["scores"][name] = measured(adapter, found)
        rows.append(row)
        out.write_text(json.dumps({"settings": settings, "rows": rows}, ensure_ascii=False) + "\n", encoding="utf-8")
    methods = summary(rows)
    result = {"model": options.model, "methods": methods, "settings": settings, "rows": rows}
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(methods, len(rows)))


@torch.inference_mode()
def measured(adapter: Adapter, found: Explanation) -> list[list[float]]:
    """Return for every token: probability left over the first fifth deleted, probability while inserted; in percent."""
    utterance = adapter.encode(Waveform(found.waveform.numpy(), found.sampling_rate, "explanation"))
    target = clean_target(found, adapter, utterance, generation_options(found, adapter))
    fill = fill_values("mean", found.features)

    def heard(k: int, keep: Tensor) -> list[float]:
        perturbed = torch.where(keep, found.features, fill).to(adapter.device)
        logits = adapter.logits(utterance, target, features=perturbed)[:, k].float()
        return (100 * logits.softmax(-1)[:, found.token_id_list[k]]).tolist()

    return [token_scores(saliency, partial(heard, k)) for k, saliency in enumerate(found.raw_audio)]


def token_scores(saliency: Tensor, heard: Callable[[Tensor], list[float]]) -> list[float]:
    """Return what is left over the first fifth deleted, and what there is while inserted.

    Args:
        saliency: (T, C) of a token.
        heard: Returns the probability of the token, in percent, for features that are kept, (N, T, C).
    """
    first = [f for f in FRACTIONS if f <= FIRST]
    deleted = deletion_masks(saliency, FRACTIONS)
    left = area_under_curve(heard(deleted[: len(first)]), first) / FIRST
    return [left, area_under_curve(heard(~deleted), FRACTIONS)]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return every method's cost for a token and scores: mean over tokens, interval, difference from Eq. 3."""

    def scored(name: str, index: int) -> Score:
        sums = np.array([[[sum(token[index] for token in row["scores"][name]), row["tokens"]]] for row in rows])
        identity = ",".join(row["id"] for row in rows)
        return make_score(
            SCORES[index], sums, mean_points, higher_is_better=index == 1, signature=name, utterances=identity
        )

    tokens = sum(row["tokens"] for row in rows) / len(rows)
    found: dict[str, Any] = {}
    for name, config in METHODS.items():
        masks = config.num_spectrogram_masks
        backward = 2 * masks if config.estimator == "gradient" else 0
        found[name] = {"forward_equivalents_per_token": masks / tokens + backward}
        for index, label in enumerate(SCORES):
            own = scored(name, index)
            against = compare(own, scored(REFERENCE, index))
            found[name][label] = {
                "value": own.value,
                "interval": [own.interval.low, own.interval.high],
                "minus reference": [against.difference, against.interval.low, against.interval.high],
            }
    return found


def table(methods: dict[str, Any], utterances: int) -> str:
    """Return the scores as Markdown."""
    heads = " | ".join(f"{label} {arrow} | minus Eq. 3" for label, arrow in zip(SCORES, "↓↑", strict=True))
    lines = [f"{utterances} utterances", "", f"| | forward equivalents a token | {heads} |", "|---" * 6 + "|"]
    for name, found in methods.items():
        cells = [f"{found['forward_equivalents_per_token']:,.0f}"]
        for label in SCORES:
            value, (low, high), (by, least, most) = found[label].values()
            cells += [f"{value:.1f} [{low:.1f}, {high:.1f}]", f"{by:+.1f} [{least:+.1f}, {most:+.1f}]"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

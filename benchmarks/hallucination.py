"""Do the numbers of an explanation tell made-up words from heard ones? Real Whisper tiny.en, made to hallucinate.

    python benchmarks/hallucination.py --data FOLDER --work CACHE

FOLDER holds a ``manifest.jsonl`` with id, file, text, language, duration_s, speaker, gender and alignment (path of a
JSON alignment) of every recording. What the model wrote and the explanations are kept in CACHE: a run that was stopped
goes on, and one that is done writes its results again. Prints a table and writes
benchmarks/results/hallucination.json and .png.

Candidates: silence, noises, hum, tones and clicks; clips reversed, drowned in noise, or cut down to a fraction of a
second; undisturbed clips, and short phrases out of longer ones. An output is *hallucinated* if it holds a word although
nothing was said, or if its word error rate against what was said is 80 % or more; it is *sound* if nothing was done to
the clip but cutting it between words, and the word error rate is 20 % or less. What lies between is left out. Of what
is cut to a fraction of a second, only phrases without any of its words count as hallucinated: half a word may well be
heard as another one. At most three outputs have the same wording.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hallucination_sounds import NONSPEECH, RATE, UNDISTURBED, Candidate, nonspeech, speech

from spes_hf import Explainer, Explanation, SpesConfig, get_adapter
from spes_hf.adapters import Adapter, GenerationOptions
from spes_hf.analysis.modality import top_share
from spes_hf.analysis.scattering import kurtosis
from spes_hf.analysis.stats import to_json
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_demo_model
from spes_hf.files import read_json_lines
from spes_hf.functional import area_under_curve, size_curve
from spes_hf.metrics.bootstrap import percentile_interval
from spes_hf.metrics.quality import wer
from spes_hf.metrics.size import THRESHOLDS

SAME_TEXT = 3  # how many outputs of one wording are used; most noises make the model write "you"
MAX_TOKENS = {"max_new_tokens": 40}  # some hallucinations never end
HALLUCINATED_WER, SOUND_WER = 80.0, 20.0
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
SAMPLES = 2_000
SORTS = ("no_speech", "drowned_or_cut", "reversed")
LEGEND = {
    "no_speech": "hallucinated: no speech",
    "drowned_or_cut": "hallucinated: drowned or cut speech",
    "reversed": "hallucinated: reversed speech",
    "sound": "sound",
}

# ------------------------------------------------------------------------------------------------- what the model does


def normalise(text: str) -> str:
    """Return a text in lower case, without punctuation."""
    return " ".join(re.sub(r"[^\w' ]", " ", text.lower().replace("’", "'")).split())


def error_rate(written: str, said: str) -> float:
    """Return the word error rate of normalised texts, in %, at most 100; where nothing was said, 100 for any word."""
    written, said = normalise(written), re.sub(r"\(\d+\)", "", said)
    said = normalise(said)
    return wer([written], [said]) if said else 100.0 * bool(written)


def label(kind: str, written: str, said: str) -> str | None:
    """Return "hallucinated", "sound" or None."""
    rate, words = error_rate(written, said), normalise(written).split()
    if kind == "cut" and (len(words) < 2 or set(words) & set(normalise(said).split())):
        return None  # a word, or a part of one, may have been heard rightly
    if kind in UNDISTURBED:
        return "sound" if rate <= SOUND_WER else None
    return "hallucinated" if words and rate >= HALLUCINATED_WER else None


def no_speech_probability(adapter: Adapter, inputs: dict[str, torch.Tensor]) -> float:
    """Return the probability of Whisper's token for "no speech" right after the start token."""
    vocabulary = adapter.tokenizer.get_vocab()
    token = next(vocabulary[name] for name in NO_SPEECH if name in vocabulary)
    start = torch.tensor([[adapter.model.generation_config.decoder_start_token_id]])
    with torch.no_grad():
        logits = adapter.model(**inputs, decoder_input_ids=start).logits[0, -1]
    return float(logits.float().softmax(-1)[token])


def listen(candidates: Iterable[Candidate], adapter: Adapter, file: Path) -> dict[str, dict[str, Any]]:
    """Return what the model writes for every candidate; kept in a file, one line each."""
    heard = {}
    if file.is_file():
        heard = {row["id"]: row for row in read_json_lines(file)}
    for candidate in candidates:
        if candidate.id in heard:
            continue
        utterance = adapter.encode(load_audio(candidate.samples, RATE, RATE))
        target = adapter.generate(utterance, GenerationOptions(generate_kwargs=MAX_TOKENS))
        row = {
            "id": candidate.id,
            "written": adapter.text(target.token_ids),
            "tokens": len(target.token_ids),
            "no_speech": no_speech_probability(adapter, utterance.inputs),
        }
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
        heard[candidate.id] = row
        print(f"heard {candidate.id}: {row['written']!r} ({candidate.said})", flush=True)
    return heard


def choose(candidates: list[Candidate], heard: dict[str, dict[str, Any]], count: int) -> list[tuple[str, Candidate]]:
    """Return at most ``count`` candidates of either label, kinds and genders in turn, few of one wording."""
    chosen: dict[str, list[tuple[str, Candidate]]] = {}
    for name in ("hallucinated", "sound"):
        piles: dict[Any, list[Candidate]] = {}
        wordings: dict[str, int] = {}
        for c in sorted(candidates, key=lambda c: hashlib.sha256(c.id.encode()).digest()):
            if label(c.kind, heard[c.id]["written"], c.said) == name:
                wording = normalise(heard[c.id]["written"])
                wordings[wording] = wordings.get(wording, 0) + 1
                if wordings[wording] > SAME_TEXT:
                    continue
                piles.setdefault((c.kind, c.gender), []).append(c)
        turns = [c for turn in zip_longest(*(piles[key] for key in sorted(piles))) for c in turn if c]
        chosen[name] = [(name, c) for c in turns[:count]]
    return [pair for turn in zip_longest(*chosen.values()) for pair in turn if pair]


# ------------------------------------------------------------------------------------------------------------ numbers


@dataclass(frozen=True)
class Number:
    """A number that may tell hallucinated outputs from sound ones.

    Attributes:
        title: What it is, for people.
        group: "explanation", "model" (what Whisper says of itself) or "control" (what ought to tell nothing).
        higher: Whether hallucinated outputs were expected to have the higher values.
    """

    title: str
    group: str
    higher: bool


NUMBERS = {
    "text_share": Number("text share, mean over tokens", "explanation", True),
    "text_share_median": Number("text share, median over tokens", "explanation", True),
    "text_share_later": Number("text share, without the first token", "explanation", True),
    "top_share": Number("share of top saliency in text", "explanation", True),
    "sound_impact": Number("impact of hiding sound (nats)", "explanation", False),
    "kurtosis_tokens": Number("kurtosis, mean of token maps", "explanation", False),
    "kurtosis_sentence": Number("kurtosis of the sentence map", "explanation", False),
    "reliability": Number("reliability of the sentence map", "explanation", False),
    "size_audio": Number("size of the audio maps", "explanation", True),
    "probability": Number("mean token probability", "model", False),
    "log_probability": Number("mean log-probability", "model", False),
    "no_speech": Number("no-speech probability", "model", True),
    "compression": Number("compression ratio of the text", "model", True),
    "tokens": Number("number of tokens", "control", False),
    "seconds": Number("duration (s)", "control", False),
}


def numbers(explanation: Explanation, heard: dict[str, Any]) -> dict[str, float]:
    """Return all numbers of one output."""
    share, probabilities = explanation.text_share, explanation.probabilities.double()
    sound = explanation.sound_impact
    sentence = explanation.sentence_saliency
    text = explanation.text.strip().encode()
    size = area_under_curve(size_curve(explanation.audio_saliency, THRESHOLDS), torch.tensor(THRESHOLDS))
    sharpness = [kurtosis(explanation.audio_map.dense(k)) for k in range(len(explanation))]
    return {
        "text_share": float(share.mean()),
        "text_share_median": float(share.median()),
        "text_share_later": float(share[1:].mean()),
        "top_share": float(top_share(explanation).mean()),
        "sound_impact": float(sound.mean()),
        "kurtosis_tokens": float(np.nanmean(sharpness)),
        "kurtosis_sentence": kurtosis(sentence),
        "reliability": explanation.reliability.sentence,
        "size_audio": float(size),
        "probability": float(probabilities.mean()),
        "log_probability": float(probabilities.clamp_min(1e-12).log().mean()),
        "no_speech": heard["no_speech"],
        "compression": len(text) / max(1, len(zlib.compress(text))),
        "tokens": float(len(explanation)),
        "seconds": len(explanation.waveform) / explanation.sampling_rate,
    }


def explain_chosen(
    chosen: list[tuple[str, Candidate]],
    heard: dict[str, dict[str, Any]],
    model: tuple[Any, Any],
    config: SpesConfig,
    folder: Path,
) -> list[dict[str, Any]]:
    """Return a row for each chosen candidate; explanations are kept in a folder."""
    explainer = Explainer(*model, config, progress=False)
    rows = []
    for index, (name, candidate) in enumerate(chosen, 1):
        path = folder / candidate.id
        if (path / "explanation.json").is_file():
            explanation = Explanation.load(path)
        else:
            print(f"explaining {index} of {len(chosen)}: {candidate.id}", flush=True)
            explanation = explainer(
                candidate.samples, sampling_rate=RATE, generate_kwargs=MAX_TOKENS, utterance_id=candidate.id
            )
            explanation.save(path)
        rows.append(
            {
                "id": candidate.id,
                "label": name,
                "kind": candidate.kind,
                "speaker": candidate.speaker,
                "gender": candidate.gender,
                "said": candidate.said,
                "written": explanation.text,
                "word_error_rate": error_rate(explanation.text, candidate.said),
                **numbers(explanation, heard[candidate.id]),
            }
        )
    return rows


# --------------------------------------------------------------------------------------------------------- statistics


def auc(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how often a value of the first group is above one of the second, ties half: (…,) for (…, n) and (…, m)."""
    difference = first[..., :, None] - second[..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean((-2, -1))


def resampled_auc(first: np.ndarray, second: np.ndarray, samples: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
    """Return the AUC and its 95 % interval, by drawing outputs of either group with replacement."""
    first, second = first[np.isfinite(first)], second[np.isfinite(second)]
    generator = np.random.default_rng(seed)
    drawn = auc(
        first[generator.integers(0, len(first), (samples, len(first)))],
        second[generator.integers(0, len(second), (samples, len(second)))],
    )
    interval = percentile_interval(drawn)
    n = [len(first), len(second)]
    return {"auc": float(auc(first, second)), "low": interval.low, "high": interval.high, "n": n}


def matched_auc(
    rows: list[dict[str, Any]], name: str, sign: int, by: str = "tokens", within: float = 2
) -> dict[str, Any]:
    """Return the AUC over those pairs of a hallucinated and a sound output that are about equally long.

    Args:
        rows: Of both labels.
        name: The number.
        sign: -1 where hallucinated outputs were expected to have lower values.
        by: What length is.
        within: How far the lengths of a pair may differ.
    """
    groups = [[r for r in rows if r["label"] == g and np.isfinite(r[name])] for g in ("hallucinated", "sound")]
    pairs = [sign * (h[name] - s[name]) for h in groups[0] for s in groups[1] if abs(h[by] - s[by]) <= within]
    difference = np.array(pairs)
    share = float(((difference > 0) + 0.5 * (difference == 0)).mean()) if pairs else float("nan")
    return {"auc": share, "pairs": len(pairs)}


def analyse(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for every number how well it tells the labels apart: of all, by sort of hallucination, at equal length."""
    sound = [r for r in rows if r["label"] == "sound"]
    hallucinated = [r for r in rows if r["label"] == "hallucinated"]
    sorts = {"all": hallucinated, **{name: [r for r in hallucinated if sort_of(r) == name] for name in SORTS}}
    found: dict[str, Any] = {}
    for name, number in NUMBERS.items():
        sign = 1 if number.higher else -1

        def values(group: list[dict[str, Any]], name: str = name, sign: int = sign) -> np.ndarray:
            return sign * np.array([r[name] for r in group], dtype=np.float64)

        found[name] = {
            "title": number.title,
            "group": number.group,
            "expected": "higher" if number.higher else "lower",
            "median": {
                "hallucinated": float(np.nanmedian(sign * values(hallucinated))),
                "sound": float(np.nanmedian(sign * values(sound))),
            },
            **{sort: resampled_auc(values(group), values(sound)) for sort, group in sorts.items() if group},
            "equally_long": matched_auc(rows, name, sign),
        }
    return found


def print_table(found: dict[str, Any]) -> None:
    """Print medians and AUCs."""
    columns = (*SORTS, "equally_long")
    heads = "".join(f"{name.replace('_', ' '):>15}" for name in columns)
    print(f"{'':36}{'expected':>9}{'halluc.':>9}{'sound':>9}   {'AUC':18}{heads}")
    for entry in found.values():
        medians = "".join(f"{entry['median'][g]:9.3f}" for g in ("hallucinated", "sound"))
        whole = f"{entry['all']['auc']:.2f} [{entry['all']['low']:.2f}, {entry['all']['high']:.2f}]"
        parts = "".join(f"{entry[name]['auc'] if name in entry else np.nan:>15.2f}" for name in columns)
        print(f"{entry['title']:36}{entry['expected']:>9}{medians}   {whole:18}{parts}")


def draw(rows: list[dict[str, Any]], found: dict[str, Any], file: Path) -> None:
    """Draw every number of every output, hallucinated beside sound."""
    from spes_hf.viz.figures import bare_figure

    columns = 5
    lines = -(-len(NUMBERS) // columns)
    figure = bare_figure(2.5 * columns, 2.5 * lines)
    axes = figure.subplots(lines, columns).ravel()
    jitter = np.random.default_rng(0)
    styles = {
        "no_speech": dict(marker="s", color="#f16913", s=16),
        "drowned_or_cut": dict(marker="^", color="#08306b", s=18),
        "reversed": dict(marker="x", color="black", s=18, linewidth=1.1),
        "sound": dict(marker="o", facecolor="white", edgecolor="#555555", s=17, linewidth=0.9),
    }
    for ax, (name, number) in zip(axes, NUMBERS.items(), strict=False):
        for sort, style in styles.items():
            values = [r[name] for r in rows if sort_of(r) == sort]
            place = (1.0 if sort == "sound" else 0.0) + jitter.uniform(-0.22, 0.22, len(values))
            ax.scatter(place, values, label=LEGEND[sort], **style)
        for x, group in enumerate(("hallucinated", "sound")):
            ax.hlines(np.nanmedian([r[name] for r in rows if r["label"] == group]), x - 0.32, x + 0.32, color="black")
        result = found[name]["all"]
        ax.set_title(f"{number.title}\nAUC {result['auc']:.2f} [{result['low']:.2f}, {result['high']:.2f}]", fontsize=8)
        ax.set_xticks([0, 1], ["hallucinated", "sound"], fontsize=8)
        ax.set_xlim(-0.5, 1.5)
        ax.tick_params(axis="y", labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
        if number.group != "explanation":
            ax.set_facecolor("0.95")
    for ax in axes[len(NUMBERS) :]:
        ax.set_visible(False)
    handles, titles = axes[0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90)


def sort_of(row: dict[str, Any]) -> str:
    """Return "sound", or what made the model hallucinate: one of SORTS."""
    if row["label"] == "sound":
        return "sound"
    if row["kind"] in NONSPEECH:
        return "no_speech"
    return "reversed" if row["kind"] == "reversed" else "drowned_or_cut"


def main(arguments: list[str] | None = None) -> None:
    """Listen, choose, explain, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.jsonl and recordings")
    parser.add_argument("--work", type=Path, required=True, help="folder in which texts and explanations are kept")
    parser.add_argument("--count", type=int, default=40, help="outputs of either label, at most (default: 40)")
    parser.add_argument("--listen", action="store_true", help="only write down what the model hears")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "hallucination.json")
    options = parser.parse_args(arguments)
    config = SpesConfig.fast(masks_per_token=1)
    model = load_demo_model()
    options.work.mkdir(parents=True, exist_ok=True)
    candidates = [*nonspeech(), *speech(options.data)]
    heard = listen(candidates, get_adapter(*model), options.work / "heard.jsonl")
    labels = {c.id: label(c.kind, heard[c.id]["written"], c.said) for c in candidates}
    counts: dict[str, dict[str, int]] = {}
    for c in candidates:
        tally = counts.setdefault(c.kind, {"candidates": 0, "hallucinated": 0, "sound": 0, "left out": 0})
        tally["candidates"] += 1
        tally[labels[c.id] or "left out"] += 1
    for kind, tally in counts.items():
        print(kind, tally)
    if options.listen:
        return
    rows = explain_chosen(choose(candidates, heard, options.count), heard, model, config, options.work / "explanations")
    found = analyse(rows)
    print_table(found)
    result = {
        "model": "Whisper tiny.en",
        "config": config.to_dict(),
        "generate_kwargs": MAX_TOKENS,
        "thresholds": {"hallucinated_wer_at_least": HALLUCINATED_WER, "sound_wer_at_most": SOUND_WER},
        "candidates": counts,
        "outputs": {g: sum(r["label"] == g for r in rows) for g in ("hallucinated", "sound")},
        "numbers": found,
        "rows": [{k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(to_json(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(rows, found, options.out.with_suffix(".png"))
    print(f"wrote {options.out} and {options.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()

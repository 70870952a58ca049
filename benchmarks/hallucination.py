"""Did it hear that, or make it up? Bits from the sound, and what people use, on outputs of real Whisper models.

    python benchmarks/hallucination.py --data FOLDER --work CACHE [--model FOLDER --language de]
    python benchmarks/hallucination.py --work CACHE --report

FOLDER holds a ``manifest.jsonl`` with id, file, text, language, duration_s, speaker, gender and, for English, alignment
of every recording. The first form lets a model (Whisper tiny.en, or a checkpoint's folder: benchmarks/whisper_base.py)
listen to silence, noises, hum, tones, clicks, and to recordings as they are, reversed, drowned in noise, or cut to a
fraction of a second, and keeps what it wrote, with all numbers, in CACHE; a run that was stopped continues. The second
form counts, prints, and writes results/hallucination.json and .png.

An output is *made up* if it holds a word although nothing was said, or if its word error rate against what was said is
80 % or more; it is *heard* if nothing was done to the recording but cutting it between words, and that rate is 20 % or
less. What lies between is left out. Of what is cut to a fraction of a second, only phrases without any of its
words count as made up. At most three outputs of a model have the same wording.

Numbers and settings were chosen, and the probability fitted, on one half of the speakers and sounds; the other half is
reported.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hallucination_sounds import NONSPEECH, RATE, UNDISTURBED, Candidate, nonspeech, speech
from torch import Tensor

from spes_hf import get_adapter
from spes_hf.adapters import Adapter, GenerationOptions, Target, Utterance
from spes_hf.audio.load import load_audio
from spes_hf.bits import bits_per_word, spoken
from spes_hf.demo import demo_audio, load_demo_model
from spes_hf.files import read_json_lines
from spes_hf.functional import evidence_bits, token_probabilities
from spes_hf.metrics.bootstrap import percentile_interval
from spes_hf.metrics.quality import wer
from spes_hf.text import join_pieces, word_groups

SAME_TEXT = 3  # how many outputs of one wording are used; most noises make the model write "you"
MAX_NEW_TOKENS = 100  # some made-up texts never end
MADE_UP_WER, HEARD_WER = 80.0, 20.0
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
SAMPLES = 2_000
PRIOR = 0.1  # how many outputs of a corpus are made up
# What stands for "no sound".
EMPTY = ("mean", "min", "silence", "floor")
# Whisper's own thresholds.
LOG_PROBABILITY, NO_SPEECH_PROBABILITY, COMPRESSION = -1.0, 0.6, 2.4
# Name → title, and whether made-up outputs have the higher values.
NUMBERS: dict[str, tuple[str, bool]] = {
    **{f"word_{empty}": (f"bits a word, no sound = {empty}", False) for empty in EMPTY},
    "token_mean": ("bits a token", False),
    "least_mean": ("lowest bits of any word", False),
    "median_mean": ("bits, median of words", False),
    "letter_mean": ("bits a letter", False),
    "log_probability": ("average log-probability", False),
    "no_speech": ("no-speech probability", True),
    "compression": ("compression ratio", True),
    "rule": ("Whisper's rule of all three", True),
}
SORTS = ("no speech", "drowned or cut", "reversed", "repetition")

# ------------------------------------------------------------------------------------------------- what the model does


def normalise(text: str) -> str:
    """Return a text in lower case, without punctuation."""
    return " ".join(re.sub(r"[^\w' ]", " ", text.lower().replace("’", "'")).split())


def label(kind: str, written: str, said: str) -> str | None:
    """Return "made up", "heard" or None."""
    written, said = normalise(written), normalise(re.sub(r"\(\d+\)", "", said))
    rate = wer([written], [said]) if said else 100.0 * bool(written)
    words = written.split()
    if kind == "cut" and (len(words) < 2 or set(words) & set(said.split())):
        return None  # a word, or a part of one, may have been heard rightly
    if kind in UNDISTURBED:
        return "heard" if rate <= HEARD_WER else None
    return "made up" if words and rate >= MADE_UP_WER else None


def no_speech_probability(adapter: Adapter, states: Tensor, prefix: Tensor) -> float:
    """Return the probability of Whisper's token for "no speech" right after the start token."""
    vocabulary = adapter.tokenizer.get_vocab()
    token = next(vocabulary[name] for name in NO_SPEECH if name in vocabulary)
    with torch.no_grad():
        output = adapter.forward({**adapter.decoder_inputs({}, states, 1), "decoder_input_ids": prefix[None, :1]})
    return float(output.logits[0, -1].float().softmax(-1)[token])


def without_sound(empty: str, utterance: Utterance, adapter: Adapter, floor: Tensor) -> Tensor:
    """Return the features, (T, C), that stand for no sound."""
    features = utterance.features
    if empty == "mean":
        return features.mean(0).expand_as(features)
    if empty == "min":
        return features.min().expand_as(features)
    if empty == "floor":
        return floor.expand_as(features)
    samples = np.zeros(len(utterance.waveform.samples), np.float32)
    return adapter.encode(load_audio(samples, RATE, RATE)).features


def noise_floor(adapter: Adapter) -> Tensor:
    """Return the mean spectrum, (C,), of the quietest tenth of another recording."""
    features = adapter.encode(load_audio(demo_audio(), RATE)).features
    quiet = features.mean(1).argsort()[: len(features) // 10]
    return features[quiet].mean(0)


def numbers(adapter: Adapter, utterance: Utterance, target: Target, states: Tensor, floor: Tensor) -> dict[str, float]:
    """Return all numbers of one output."""
    ids = target.token_ids
    pieces, special = adapter.pieces(ids), adapter.is_special(ids)
    groups = word_groups(pieces, special)
    words = [join_pieces([pieces[k] for k in group]) for group in groups]
    written = ~torch.tensor(special)
    with torch.no_grad():
        clean = adapter.logits(utterance, target, states=states)[0]
        log_p = token_probabilities(clean, ids).double().clamp_min(1e-30).log()
        bits = {}
        for empty in EMPTY:
            features = without_sound(empty, utterance, adapter, floor)
            bits[empty] = evidence_bits(clean, adapter.logits(utterance, target, features=features[None])[0], ids)
    of_words = {name: [float(b[list(g)].sum()) for g in groups] for name, b in bits.items()}
    told = [b for _, b in spoken(words, of_words["mean"])] or [math.nan]
    text = adapter.text(ids).strip()
    compression = len(text.encode()) / max(1, len(zlib.compress(text.encode())))
    silent = no_speech_probability(adapter, states, target.prefix_ids)
    average = float(log_p.mean())
    rule = compression > COMPRESSION or average < LOG_PROBABILITY or silent > NO_SPEECH_PROBABILITY
    return {
        **{f"word_{name}": bits_per_word(words, values) for name, values in of_words.items()},
        "token_mean": float(bits["mean"][written].mean()) if written.any() else math.nan,
        "least_mean": min(told),
        "median_mean": float(np.median(told)),
        "letter_mean": sum(told) / max(1, sum(c.isalnum() for c in text)),
        "log_probability": average,
        "no_speech": silent,
        "compression": compression,
        "rule": float(rule),
        "words": float(len(told)),
    }


def listen(options: argparse.Namespace) -> None:
    """Let the model listen to every candidate, and keep what it wrote, one line each."""
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    if options.model is None:
        model, processor = load_demo_model()
    else:
        model = AutoModelForSpeechSeq2Seq.from_pretrained(options.model)
        processor = AutoProcessor.from_pretrained(options.model)
    adapter = get_adapter(model, processor)
    language = options.language if options.model else None
    name = "tiny.en" if options.model is None else f"{Path(options.model).name}, {options.language}"
    file = options.work / f"{name.replace(', ', '-')}.jsonl"
    done = {row["id"] for row in read_json_lines(file)} if file.is_file() else set()
    floor = noise_floor(adapter)
    settings = GenerationOptions(language=language, generate_kwargs={"max_new_tokens": MAX_NEW_TOKENS})
    candidates = [*nonspeech(), *speech(options.data, options.language, options.longest)]
    for index, candidate in enumerate(candidates, 1):
        if candidate.id in done:
            continue
        utterance = adapter.encode(load_audio(candidate.samples, RATE, RATE))
        target, states = adapter.generate_with_states(utterance, settings)
        text = adapter.text(target.token_ids)
        row = {"model": name, **about(candidate), "written": text, "label": label(candidate.kind, text, candidate.said)}
        if row["label"] is not None:
            row |= numbers(adapter, utterance, target, states, floor)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{index} of {len(candidates)}: {candidate.id} {row['label']}: {text!r}", flush=True)


def about(candidate: Candidate) -> dict[str, str]:
    """Return what is known of a candidate."""
    return {name: getattr(candidate, name) for name in ("id", "kind", "said", "speaker", "gender")}


# --------------------------------------------------------------------------------------------------------- statistics


def half(row: dict[str, Any]) -> str:
    """Return "choice" or "report": a speaker, or a sound that is no speech, is in one of them, for all models."""
    key = row["speaker"] or re.sub(r"^(cut|clip|phrase|reversed|drowned-?\d*dB)-", "", row["id"])
    return ("choice", "report")[hashlib.sha256(key.encode()).digest()[0] % 2]


def sort_of(row: dict[str, Any]) -> str:
    """Return "heard", or what made the model make something up."""
    if row["label"] == "heard":
        return "heard"
    if row["compression"] > COMPRESSION:
        return "repetition"
    if row["kind"] in NONSPEECH:
        return "no speech"
    return "reversed" if row["kind"] == "reversed" else "drowned or cut"


def few_of_a_wording(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that have a label, at most so many of each model's wordings, in an order that nothing decides."""
    kept, counts = [], {}
    for row in sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).digest()):
        key = (row["model"], normalise(row["written"]))
        counts[key] = counts.get(key, 0) + 1
        if row["label"] is not None and counts[key] <= SAME_TEXT and math.isfinite(row["word_mean"]):
            kept.append(row)
    return kept


def auc(made_up: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Return how often a value of the first group is above one of the second, ties half: (…,) for (…, n), (…, m)."""
    difference = made_up[..., :, None] - heard[..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean((-2, -1))


def judged(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return a number's AUC with its 95 % interval over outputs, its AUC by sort, and its medians."""
    sign = 1 if NUMBERS[name][1] else -1
    groups = {g: np.array([r[name] for r in rows if r["label"] == g]) for g in ("made up", "heard")}
    made_up, heard = (sign * values for values in groups.values())
    generator = np.random.default_rng(0)
    drawn = auc(
        made_up[generator.integers(0, len(made_up), (SAMPLES, len(made_up)))],
        heard[generator.integers(0, len(heard), (SAMPLES, len(heard)))],
    )
    interval = percentile_interval(drawn)
    sorts = {sort: sign * np.array([r[name] for r in rows if sort_of(r) == sort]) for sort in SORTS}
    return {
        "auc": float(auc(made_up, heard)),
        "interval": [interval.low, interval.high],
        "medians": {group: float(np.median(values)) for group, values in groups.items()},
        **{sort: float(auc(values, heard)) for sort, values in sorts.items() if len(values)},
    }


def fit(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Return intercept and slope of the log-odds of "made up" by log2(1 + bits a token), at the prior."""
    from scipy.optimize import minimize

    x = np.log2(1 + np.maximum(0, [r["token_mean"] for r in rows]))
    y = np.array([r["label"] == "made up" for r in rows])
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())

    def loss(at: np.ndarray) -> float:
        odds = at[0] + at[1] * x
        return float((weight * np.logaddexp(0, np.where(y, -odds, odds))).sum())

    found = minimize(loss, np.zeros(2)).x
    return float(found[0]) + math.log(PRIOR / (1 - PRIOR)), float(found[1])


def verdicts(rows: list[dict[str, Any]], intercept: float, slope: float) -> dict[str, Any]:
    """Return how often the verdict is right, and how far the probabilities are from what happened."""
    p = np.array([1 / (1 + math.exp(-(intercept + slope * math.log2(1 + max(0, r["token_mean"]))))) for r in rows])
    y = np.array([r["label"] == "made up" for r in rows])
    return {
        "made up, said so": float((p[y] > 0.5).mean()),
        "heard, said so": float((p[~y] <= 0.5).mean()),
        "threshold_bits": 2 ** (-intercept / slope) - 1,
        "brier": float(((p - y) ** 2).mean()),
    }


def report(options: argparse.Namespace) -> None:
    """Count, print, write, draw."""
    found_rows = (row for file in sorted(options.work.glob("*.jsonl")) for row in read_json_lines(file))
    rows = list({(row["model"], row["id"]): row for row in found_rows}.values())
    kept = few_of_a_wording(rows)
    english = [r for r in kept if r["model"] == "tiny.en"]
    chosen, shown = ([r for r in english if half(r) == which] for which in ("choice", "report"))
    others = [r for r in kept if r["model"] != "tiny.en"]
    intercept, slope = fit(chosen)
    groups = {"choice": chosen, "report": shown, "all of tiny.en": english, "other languages": others}
    found: dict[str, Any] = {"fit": {"intercept": intercept, "slope": slope}}
    for title, group in groups.items():
        if not group:
            continue
        counts = {name: sum(r["label"] == name for r in group) for name in ("made up", "heard")}
        found[title] = {
            "outputs": counts,
            "numbers": {name: judged(group, name) for name in NUMBERS},
            "verdict": verdicts(group, intercept, slope),
        }
        print(f"\n{title}: {counts}, {found[title]['verdict']}")
        for name, (label_, _) in NUMBERS.items():
            entry = found[title]["numbers"][name]
            sorts = "".join(f"{entry.get(sort, math.nan):8.2f}" for sort in SORTS)
            medians = "".join(f"{v:9.2f}" for v in entry["medians"].values())
            low, high = entry["interval"]
            print(f"{label_:34}{medians}   {entry['auc']:.3f} [{low:.2f}, {high:.2f}]{sorts}")
    found["rows"] = [{k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in kept]
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(shown, found["report"], options.out.with_suffix(".png"))


def draw(rows: list[dict[str, Any]], found: dict[str, Any], file: Path) -> None:
    """Draw bits a token and what people use, made-up outputs next to heard ones; and the threshold of the verdict."""
    from spes_hf.viz.figures import bare_figure

    names = ("token_mean", "log_probability", "no_speech", "compression")
    figure = bare_figure(11, 3.6)
    axes = figure.subplots(1, len(names))
    jitter = np.random.default_rng(0)
    styles = dict(zip((*SORTS, "heard"), ("s", "^", "x", "D", "o"), strict=True))
    for ax, name in zip(axes, names, strict=True):
        for sort, marker in styles.items():
            values = [r[name] for r in rows if sort_of(r) == sort]
            x = (sort == "heard") + jitter.uniform(-0.25, 0.25, len(values))
            colour = "#2b6cb0" if sort == "heard" else "#c05621"
            ax.scatter(x, values, s=18, marker=marker, alpha=0.75, color=colour, label=sort)
        number = found["numbers"][name]
        low, high = number["interval"]
        ax.set_title(f"{NUMBERS[name][0]}\nAUC {number['auc']:.2f} [{low:.2f}, {high:.2f}]", fontsize=9)
        ax.set_xticks([0, 1], ["made up", "heard"], fontsize=9)
        ax.set_xlim(-0.5, 1.5)
        ax.tick_params(axis="y", labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yscale("symlog", linthresh=1)
    threshold = found["verdict"]["threshold_bits"]
    axes[0].axhline(threshold, color="0.6", linewidth=0.8)
    axes[0].text(1.48, threshold, f"threshold {threshold:.1f}", fontsize=7, color="0.4", ha="right", va="top")
    handles, titles = axes[0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Listen, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with manifest.jsonl and recordings")
    parser.add_argument("--work", type=Path, required=True, help="folder in which texts and numbers are kept")
    parser.add_argument("--model", help="a checkpoint's folder (default: Whisper tiny.en, which needs no hub)")
    parser.add_argument("--language", default="en")
    parser.add_argument("--longest", type=float, default=8.0, help="longest recording used whole, in seconds")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "hallucination.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    report(options) if options.report else listen(options)


if __name__ == "__main__":
    main()

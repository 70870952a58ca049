"""Does a contrastive map say what decides between two words? Contrastive deletion (Conti et al., arXiv 2509.26543).

    python benchmarks/contrastive_deletion.py --work CACHE [--data FOLDER] [--only tiny|whisper] [--choose]

What speaks most for the target is deleted first, and the model writes again: target, foil or something else. The maps
compared are the contrastive one, the plain one of the same word (its tokens' mean, without a foil), energy and random;
and the contrastive one of the word's other foil, which shows whether a map is about its own foil.

- The shipped models hear new sentences, of the test split that they were not trained on, in the voices of that split.
  Foils are another word of the same class in the grammar, and the model's runner-up for the word. ``--choose`` measures
  on other sentences and the development split's voices instead: there the number of masks was chosen.
- Whisper tiny.en hears LibriSpeech and VCTK, ``--data FOLDER`` with a ``manifest.jsonl`` (id, file, text, set, speaker,
  duration_s), the shortest first, no speaker twice while there are others: the first ten are of LibriSpeech. Foils are
  the runner-up, and the nearest other word of all transcripts by edit distance. Nothing was chosen on them.

Rows are kept in CACHE and used again. Writes benchmarks/results/contrastive_deletion.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contrastive_foils import classes, distance, runner_up

from spes_hf import ContrastiveDeletion, Explainer, Explanation, SpesConfig
from spes_hf.adapters import Target
from spes_hf.analysis.stats import to_json
from spes_hf.audio.load import Waveform
from spes_hf.demo import load_demo_model, load_tiny_model
from spes_hf.files import read_json_lines
from spes_hf.metrics import bootstrap_interval, compare, paired_bootstrap, summarize, target_maps
from spes_hf.metrics.score import area
from spes_hf.scoring.foils import Words
from spes_hf.text import normalise

KEY = ContrastiveDeletion.key
TINY = {
    "speech2text-en": ("speech2text-en", {}, "en"),
    "seamless-en-de-es, German": ("seamless-en-de-es", {"tgt_lang": "deu"}, "de"),
    "seamless-en-de-es, Spanish": ("seamless-en-de-es", {"tgt_lang": "spa"}, "es"),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "contrastive": {},
    "difference": {"impact": "difference"},
    "relative": {"impact": "relative"},
    "chain": {"word_probability": "chain"},
}
SMALL = {"num_token_masks": 4}


@dataclass(frozen=True)
class Case:
    """What is heard.

    Attributes:
        name: Its name.
        audio: Samples at 16 kHz, or the path of a file.
        speaker: Who speaks.
    """

    name: str
    audio: Any
    speaker: str


# ------------------------------------------------------------------------------------------------------------ measure


@dataclass
class Bench:
    """One model, and how its maps are compared.

    Attributes:
        model: Model and processor.
        arguments: For the explainer, such as ``tgt_lang``.
        words: Words that can stand for each other; empty: the nearest of `vocabulary`.
        vocabulary: Words that can be foils.
        masks: Masks of every map.
        per_utterance: How many words of an utterance.
        variants: Which of `VARIANTS`.
        log_probability: Whether the plain map is also made of the word's log-probability.
    """

    model: tuple[Any, Any]
    arguments: dict[str, str]
    words: list[list[str]]
    vocabulary: list[str]
    masks: int
    per_utterance: int
    variants: tuple[str, ...]
    log_probability: bool

    def __post_init__(self) -> None:
        self.explainers = {name: self._explainer(**VARIANTS[name]) for name in self.variants}
        self.plain = self._explainer()
        self.metric = ContrastiveDeletion(*self.model)

    def _explainer(self, **settings: Any) -> Explainer:
        config = SpesConfig(num_spectrogram_masks=self.masks, masks_per_token=self.masks, **SMALL, **settings)
        return Explainer(*self.model, config, progress=False)

    def measure(self, case: Case) -> dict[str, Any] | None:
        """Return what the model writes under every map; None where no word has a foil."""
        random.seed(case.name)
        plain = self.plain(case.audio, utterance_id=case.name, **self.arguments)
        foils, kinds = self.foils(plain)
        if not foils:
            return None
        explained = {
            name: explainer(case.audio, utterance_id=case.name, foil=foils, **self.arguments)
            for name, explainer in self.explainers.items()
        }
        written = {name: self.metric(found)[KEY] for name, found in explained.items()}
        own = explained["contrastive"]
        contrasts = own.contrasts
        maps = {"plain": target_maps(plain, contrasts), "energy": plain.features}
        # Two foils of a word follow each other.
        maps["of the other foil"] = torch.stack([own.evidence(k ^ 1) for k in range(len(contrasts))])
        if self.log_probability:
            signed = self._explainer(impact="log-probability")(case.audio, utterance_id=case.name, **self.arguments)
            maps["plain, log-probability"] = torch.stack(
                [torch.stack([signed.evidence(k) for k in c.tokens]).mean(0) for c in contrasts]
            )
        generator = torch.Generator().manual_seed(random.randrange(2**31))
        maps["random"] = torch.rand(len(contrasts), *plain.features.shape, generator=generator)
        written |= {name: self.metric(own, saliency)[KEY] for name, saliency in maps.items()}
        kinds_of = [kinds[(c.start, c.foil)] for c in contrasts]
        clean = [c.log_odds for c in contrasts]
        return {"id": case.name, "speaker": case.speaker, "kinds": kinds_of, "log_odds": clean, "written": written}

    def foils(self, plain: Explanation) -> tuple[dict[int, list[str]], dict[tuple[int, str], str]]:
        """Return foils by index of the word, and which kind of foil each is, by first token and foil."""
        adapter = self.metric.adapter
        utterance = adapter.encode(Waveform(plain.waveform.numpy(), plain.sampling_rate, "explanation"))
        ids = torch.tensor(plain.token_id_list)
        target = Target(torch.tensor(plain.origin.prefix_ids), ids, complete=True)
        words = Words.of(adapter, ids)
        places = [at for at in words.spoken if self.class_of(words.texts[at])]
        random.shuffle(places)
        foils: dict[int, list[str]] = {}
        kinds: dict[tuple[int, str], str] = {}
        for at in places:
            word = words.texts[at]
            with torch.no_grad():
                second = runner_up(adapter, utterance, target, words.groups[at])
            if second is None:
                continue
            chosen = {self.other(word): "same class" if self.words else "near"} | {second: "runner-up"}
            if len({normalise(foil) for foil in chosen}) < 2:
                continue
            foils[at] = list(chosen)
            kinds |= {(words.groups[at][0], foil): kind for foil, kind in chosen.items()}
            if len(foils) == self.per_utterance:
                break
        return foils, kinds

    def class_of(self, word: str) -> list[str]:
        """Return the words that could stand for a word; empty where there are none."""
        if self.words:
            return next((words for words in self.words if word in words), [])
        return self.vocabulary if len(normalise(word)) >= 4 else []

    def other(self, word: str) -> str:
        """Return the foil that the grammar, or the spelling, offers."""
        own = normalise(word)
        others = [w for w in self.class_of(word) if normalise(w) != own]
        if self.words:
            return random.choice(others)
        near = min(others, key=lambda w: (distance(w, own), w))
        return near.capitalize() if word[0].isupper() else near


def measured(bench: Bench, cases: Iterable[Case], path: Path, wanted: int) -> list[dict[str, Any]]:
    """Return rows until there are as many contrasts as wanted, those of before from a file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_json_lines(path) if path.is_file() else []
    known = {row["id"] for row in rows}
    for case in cases:
        if sum(len(row["kinds"]) for row in rows) >= wanted:
            break
        if case.name in known:
            continue
        row = bench.measure(case)
        if row is not None:
            rows.append(row)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(path.stem, len(rows), case.name, sum(len(r["kinds"]) for r in rows), flush=True)
    return rows


# ---------------------------------------------------------------------------------------------------------- summarize


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return rates by map, comparisons with the contrastive one, and the same for every kind of foil."""
    result = {"all": _summary(rows, None)}
    return result | {kind: _summary(rows, kind) for kind in sorted({k for row in rows for k in row["kinds"]})}


def _summary(rows: list[dict[str, Any]], kind: str | None) -> dict[str, Any]:
    maps = list(rows[0]["written"])
    scores = {}
    for name in maps:
        entries = [_of_kind(row["written"][name], row["kinds"], kind) for row in rows]
        scores[name] = summarize([{KEY: {**entry, "method": name}} for entry in entries if entry["clean"]])
    first = scores["contrastive"]["flip_to_foil"]
    result: dict[str, Any] = {
        "contrasts": int(first.statistics[:, 0, 1].sum()),
        "utterances": first.num_utterances,
        "fractions": first.curve.x.tolist(),
        "maps": {},
        "contrastive less": {},
    }
    for name, found in scores.items():
        result["maps"][name] = {
            rate: {
                "mean": round(score.value, 2),
                "interval": [round(v, 2) for v in (score.interval.low, score.interval.high)],
                "curve": [round(v, 1) for v in score.points],
            }
            for rate, score in found.items()
        } | {"ever_foil": _ever(rows, name, kind)}
        if name != "contrastive":
            result["contrastive less"][name] = {
                rate: _difference(scores["contrastive"][rate], found[rate]) for rate in ("flip_to_foil", "coverage")
            }
    return result


def _of_kind(entry: dict[str, Any], kinds: list[str], kind: str | None) -> dict[str, Any]:
    """Return an entry with the contrasts of one kind of foil alone."""
    at = [k for k, each in enumerate(kinds) if kind in (None, each)]
    return {**entry, **{key: [entry[key][k] for k in at] for key in ("contrasts", "written", "clean", "log_odds")}}


def _ever(rows: list[dict[str, Any]], name: str, kind: str | None) -> float:
    """Return in how many of the contrasts the model writes the foil at any fraction, in %."""
    entries = [_of_kind(row["written"][name], row["kinds"], kind) for row in rows]
    pairs = [pair for e in entries for pair in zip(e["written"], e["clean"], strict=True)]
    return round(100 * float(np.mean(["foil" in written for written, clean in pairs if clean == "target"])), 2)


def _difference(first: Any, second: Any, flips: int = 20_000) -> dict[str, Any]:
    """Return the difference of two scores: bootstrap over utterances, and a one-sided test by swaps of utterances."""
    found = compare(first, second)
    counts = first.statistics[..., 0] - second.statistics[..., 0]  # (U, S), 100 times contrasts
    weights = torch.trapezoid(torch.eye(len(first.curve.x), dtype=torch.float64), torch.tensor(first.curve.x)).numpy()
    each = counts @ weights
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(flips, len(each)))
    as_far = (signs @ each >= each.sum() - 1e-9).sum()
    return {
        "difference": round(found.difference, 2),
        "interval": [round(v, 2) for v in (found.interval.low, found.interval.high)],
        "p_two_sided_bootstrap": round(found.p_value, 4),
        "p_one_sided_permutation": round((1 + int(as_far)) / (1 + flips), 5),
        "utterances_better_worse": [int((each > 1e-9).sum()), int((each < -1e-9).sum())],
    }


def falls(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many bits of the log-odds every map's deletion takes, mean over the fractions, for rates near 0."""
    fractions = np.array(rows[0]["written"]["contrastive"]["fractions"])

    def statistics(name: str) -> np.ndarray:
        found = []
        for row in rows:
            lost = np.array(row["log_odds"])[:, None] - np.array(row["written"][name]["log_odds"])
            heights = area(lost, fractions)
            found.append([heights.sum(), len(heights)])
        return np.array(found)

    def mean(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    own, result = statistics("contrastive"), {}
    for name in rows[0]["written"]:
        other = statistics(name)
        interval = bootstrap_interval(other, mean)
        result[name] = {
            "bits": round(float(mean(other.sum(0))), 2),
            "interval": [round(v, 2) for v in (interval.low, interval.high)],
        }
        if name != "contrastive":
            found = paired_bootstrap(own, other, mean)
            result[name]["contrastive less this"] = {
                "difference": round(found.difference, 2),
                "interval": [round(v, 2) for v in (found.interval.low, found.interval.high)],
                "p_two_sided_bootstrap": round(found.p_value, 4),
            }
    return result


# --------------------------------------------------------------------------------------------------------------- main


@functools.cache
def tiny_cases(split: str, count: int) -> tuple[Case, ...]:
    """Return sentences of a split that the shipped models were not trained on, in voices that they were not.

    espeak-ng's sound depends a little on what it said before, so all are spoken once, in one order.
    """
    from tiny_speech.sentences import generate_sentences
    from tiny_speech.synthesis import DEV_VOICES, TEST_VOICES, Voice, synthesize

    test = generate_sentences(400, 1)
    dev = generate_sentences(160, 2, exclude={sentence.text for sentence in test})
    sentences, voices = (test, TEST_VOICES) if split == "test" else (dev, DEV_VOICES)
    cases = []
    for i, sentence in enumerate(sentences[:count]):
        rng = random.Random(i)
        voice = Voice(voices[i % len(voices)], rng.randint(150, 190), rng.randint(35, 65))
        cases.append(Case(f"{split}-{i:04d}", synthesize(sentence.text, voice)[0], voice.name))
    return tuple(cases)


def whisper_cases(data: Path) -> Iterator[Case]:
    """Yield English recordings, the shortest first, one of a speaker before the second of any."""
    rows = [r for r in read_json_lines(data / "manifest.jsonl") if r["set"].startswith(("librispeech", "vctk"))]
    turn: dict[str, int] = {}
    ordered = []
    for row in sorted(rows, key=lambda r: r["duration_s"]):
        turn[row["speaker"]] = turn.get(row["speaker"], 0) + 1
        ordered.append((turn[row["speaker"]], row["duration_s"], row))
    for _, _, row in sorted(ordered, key=lambda item: item[:2]):
        yield Case(row["id"], data / row["file"], row["speaker"])


def main() -> None:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder in which rows are kept")
    parser.add_argument("--data", type=Path, help="folder with manifest.jsonl and recordings")
    parser.add_argument("--only", choices=("tiny", "whisper"), help="one of the two parts; the other's results stay")
    parser.add_argument("--choose", action="store_true", help="the shipped models with 4 to 48 masks, on other voices")
    parser.add_argument("--masks", type=int, default=12, help="masks of every map (default: 12)")
    parser.add_argument("--whisper-masks", type=int, default=8, help="the same for Whisper (default: 8)")
    parser.add_argument("--contrasts", type=int, default=80, help="of each shipped model and language (default: 80)")
    parser.add_argument("--whisper-contrasts", type=int, default=40, help="of Whisper (default: 40)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "contrastive_deletion.json")
    options = parser.parse_args()
    if options.only != "tiny" and options.data is None:
        parser.error("recordings need --data FOLDER; or pass --only tiny")
    result = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}

    def part(name: str, bench: Bench, cases: Iterable[Case], wanted: int) -> None:
        path = options.work / ("dev" if options.choose else "test") / f"{name.replace(', ', '-')}-{bench.masks}.jsonl"
        rows = measured(bench, cases, path, wanted)
        result[name if not options.choose else f"{name}, chosen on, {bench.masks} masks"] = {
            "masks": bench.masks,
            "speakers": len({row["speaker"] for row in rows}),
            **summary(rows),
            **({} if bench.words else {"bits_lost": falls(rows)}),
        }
        show(name, summary(rows)["all"])
        options.out.write_text(as_text(to_json(result)), encoding="utf-8")

    if options.only != "whisper":
        for name, (model, arguments, language) in TINY.items():
            for masks in (4, 12, 48) if options.choose else (options.masks,):
                variants = ("contrastive",) if options.choose else tuple(VARIANTS)
                loaded = load_tiny_model(model)
                bench = Bench(loaded, arguments, classes(language), [], masks, 1, variants, not options.choose)
                split = "dev" if options.choose else "test"
                part(name, bench, tiny_cases(split, 100), options.contrasts)
    if options.only != "tiny":
        texts = [row["text"] for row in read_json_lines(options.data / "manifest.jsonl") if row["language"] == "en"]
        vocabulary = sorted({word for text in texts for word in text.lower().split() if word.isalpha()})
        bench = Bench(load_demo_model(), {}, [], vocabulary, options.whisper_masks, 2, ("contrastive",), False)
        part("whisper-tiny.en", bench, whisper_cases(options.data), options.whisper_contrasts)


def as_text(result: dict[str, Any]) -> str:
    """Return JSON with every list of numbers on one line."""
    text = json.dumps(result, indent=1, allow_nan=False)
    return re.sub(r"\[[^][{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def show(name: str, found: dict[str, Any]) -> None:
    """Print the rates of one model."""
    print(f"{name}: {found['contrasts']} contrasts, {found['utterances']} utterances; at {found['fractions']}")
    for each, rates in found["maps"].items():
        foil, cover = rates["flip_to_foil"], rates["coverage"]
        print(f"  {each:>22}: foil {foil['mean']:.1f} {foil['interval']} {foil['curve']}, ever {rates['ever_foil']}; "
              f"coverage {cover['mean']:.1f} {cover['interval']}")  # fmt: skip
    for each, difference in found["contrastive less"].items():
        print(f"  contrastive less {each}: {difference}")


if __name__ == "__main__":
    main()

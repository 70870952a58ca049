"""Do the maps say where the shipped models listened? Order, reordering and punctuation on the 24 shipped clips.

    python benchmarks/tiny_models.py

Word times are known from synthesis. Prints three tables and writes benchmarks/results/tiny_models.json:

- speech recognition: Spearman's correlation between word order and the time centroid of each word's map (top 5 %);
- translation: whether the map of a word that moved lies nearer to its source word than to the place where a
  word-by-word translation would have it (German verbs at the end of the clause, the parts of two-digit numbers);
- punctuation: how much of a token's top saliency lies in the token map, "?" and ")" against content words.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from scipy.stats import spearmanr

from spes_hf import Explanation, SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips

UNITS = ("ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
TENS = ("zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig")
ENGLISH_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def is_word(text: str) -> bool:
    """Return whether a word of an explanation is more than a punctuation mark."""
    return any(character.isalnum() for character in text)


def order_correlation(explanation: Explanation) -> float:
    """Return Spearman's correlation between word order and the time centroids of the words' maps."""
    words = explanation.words()
    order = [w for w, word in enumerate(words.tokens) if is_word(word)]
    return float(spearmanr(order, words.time_centroids(top=0.05)[order]).statistic)


def middle(word: dict[str, Any]) -> float:
    """Return the middle of a spoken word, in seconds."""
    return (word["start"] + word["end"]) / 2


def moved_cases(explanation: Explanation, clip: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each word that moved where its map lies, where its source is, and where a monotonic one would be.

    German verbs that stand at the end of the clause, and the two parts of a two-digit number, where the model wrote
    them as the reference does.
    """
    spoken = clip["words"]
    if clip["kind"] == "verb-final":
        # The moved word that came from farthest away is the verb.
        moved = max(clip["moved"]["de"], key=lambda m: abs(m["source_index"] - m["monotonic_index"]))
        words = explanation.words()
        hits = [w for w, word in enumerate(words.tokens) if word.strip() == moved["target"].strip(".?,")]
        if len(hits) != 1:
            return []
        return [
            {
                "clip": clip["id"],
                "word": moved["target"],
                "map": float(words.time_centroids(top=0.05)[hits[0]]),
                "source": middle(spoken[moved["source_index"]]),
                "monotonic": middle(spoken[moved["monotonic_index"]]),
            }
        ]
    if clip["kind"] == "number":
        tens = next(i for i, word in enumerate(spoken) if word["word"].strip(".?,").lower() in ENGLISH_TENS)
        centroids = explanation.time_centroids(top=0.05)
        cases = []
        for parts, source, monotonic in ((UNITS, tens + 1, tens), (TENS, tens, tens + 1)):
            hits = [k for k, token in enumerate(explanation.tokens) if token.strip() in parts]
            if len(hits) == 1:
                cases.append(
                    {
                        "clip": clip["id"],
                        "word": explanation.tokens[hits[0]].strip(),
                        "map": float(centroids[hits[0]]),
                        "source": middle(spoken[source]),
                        "monotonic": middle(spoken[monotonic]),
                    }
                )
        return cases
    return []


def nearer_to_source(case: dict[str, Any]) -> bool:
    """Return whether the map lies nearer to the source word than to the monotonic position."""
    return abs(case["map"] - case["source"]) < abs(case["map"] - case["monotonic"])


def top_share_in_text(explanation: Explanation) -> torch.Tensor:
    """Return the share of each token's top saliency that the token map holds, (K,) in [0, 1].

    The highest value of the token map over that plus the highest value of the audio map; both maps are on one scale.
    """
    text = explanation.token_saliency.nan_to_num(0.0).amax(1)
    sound = explanation.audio_saliency.flatten(1).amax(1)
    return text / (text + sound)


def punctuation_and_words(explanations: Iterable[Explanation]) -> dict[str, list[float]]:
    """Return the shares of text of "?" and ")", and of content words (four letters and more)."""
    found: dict[str, list[float]] = {"?": [], ")": [], "content": []}
    for explanation in explanations:
        for token, share in zip(explanation.tokens, top_share_in_text(explanation).tolist(), strict=True):
            text = token.strip()
            if text in ("?", ")"):
                found[text].append(share)
            elif text.isalpha() and len(text) >= 4:
                found["content"].append(share)
    return found


def explain_clips(name: str, config: SpesConfig, clips: list[dict[str, Any]], **arguments: Any) -> list[Explanation]:
    """Return the explanations of clips by a shipped model."""
    model, processor = load_tiny_model(name)
    return [explain(model, processor, clip["path"], config=config, progress=False, **arguments) for clip in clips]


def main() -> None:
    """Explain the clips, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-masks", type=int, default=2000, help="masks of the spectrogram (default: 2000)")
    parser.add_argument("--num-token-masks", type=int, default=500, help="masks of the tokens (default: 500)")
    parser.add_argument("--paper-clips", type=int, default=1, help="clips to time at the paper's setting (default: 1)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tiny_models.json")
    options = parser.parse_args()
    counts = {"num_spectrogram_masks": options.num_masks, "num_token_masks": options.num_token_masks}
    config = SpesConfig.paper("asr", **counts)
    clips = tiny_clips()
    result: dict[str, Any] = {"config": config.to_dict()}

    recognised = explain_clips("speech2text-en", config, clips)
    correlations = [order_correlation(explanation) for explanation in recognised]
    result["order"] = {c["id"]: r for c, r in zip(clips, correlations, strict=True)}
    print(f"speech recognition, {len(clips)} clips: Spearman of word order and map, mean {mean(correlations):.3f}")

    moving = [clip for clip in clips if clip["kind"] in ("verb-final", "number")]
    translated = explain_clips("seamless-en-de-es", SpesConfig.paper("st", **counts), moving, tgt_lang="deu")
    cases = [case for e, clip in zip(translated, moving, strict=True) for case in moved_cases(e, clip)]
    hits = sum(map(nearer_to_source, cases))
    result["moved"] = [{**case, "nearer_to_source": nearer_to_source(case)} for case in cases]
    print(f"translation, German: {hits} of {len(cases)} moved words nearer to their source than to the monotonic place")
    for case in cases:
        print(f"  {case['word']:>12}: map {case['map']:.2f} s, source {case['source']:.2f} s, "
              f"monotonic {case['monotonic']:.2f} s")  # fmt: skip

    shares = punctuation_and_words(recognised)
    result["top_share_of_text"] = {kind: mean(values) if values else None for kind, values in shares.items()}
    print("share of the top saliency that lies in text: " + ", ".join(
        f"{kind} {mean(values):.2f} ({len(values)})" for kind, values in shares.items() if values))  # fmt: skip

    result["paper_seconds"] = {}
    for name, task, arguments in (("speech2text-en", "asr", {}), ("seamless-en-de-es", "st", {"tgt_lang": "deu"})):
        model, processor = load_tiny_model(name)
        for clip in clips[: options.paper_clips]:
            start = time.perf_counter()
            explain(model, processor, clip["path"], config=SpesConfig.paper(task), progress=False, **arguments)
            seconds = time.perf_counter() - start
            result["paper_seconds"][f"{name} {clip['id']}"] = seconds
            print(f"the paper's setting (20,000 + 2,000 masks), {name}, {clip['id']}: {seconds:.0f} s")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

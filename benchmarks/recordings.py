"""Recordings of any length: is each window explained as generate() read it, and what does it take?

    python benchmarks/recordings.py --data FOLDER --work CACHE     # an hour on one core
    python benchmarks/recordings.py --data FOLDER --work CACHE --only memory

FOLDER holds a ``manifest.jsonl`` with id, file, set, text, speaker and alignment (forced) of every recording. Parts:

speech   Three minutes of clean read speech, explained with `SpesConfig.fast()`: the text and the logits against those
         of an independent ``generate()``, word order and times of the maps against a forced alignment.
noise    Speech, 22 s of a sound that is no speech, speech: bits of every segment, and which are called made up.
long noise   The same with 50 s, so that whole windows hold no speech.
memory   Half an hour of noise in a file against a minute of it, with a tiny random model: peak memory.
part     Passes and seconds of the whole recording, of one segment, of one word; whether maps are equal bit for bit.
killed   Killed at five random moments and started again: whether everything is equal to a run without interruption.
odd      Silence, files that break off, ways to generate, folders that cannot be used: as generate() writes, or refused.

Recordings are kept in CACHE and used again. Writes benchmarks/results/recordings.json, part by part.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recordings_audio import RATE, clips, joined, sounds, speech
from recordings_child import CHEAP
from recordings_odd import measure_odd
from recordings_processes import measure_killed, measure_memory
from scipy.stats import spearmanr

from spes_hf import SpesConfig, explain
from spes_hf.adapters import get_adapter
from spes_hf.analysis import Alignment, Word
from spes_hf.analysis.matching import match_words
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_demo_model
from spes_hf.explanation.recording import Recording

LONG_S = 180.0
NEAR_S = 0.3
# Shorter than a window, at three levels; and a window that holds nothing else.
SOUND_S, LEVELS_DB, LONG_SOUND_S = 22.0, (-20, 0, 10), 50.0
PICTURED, PICTURE = ("one voice backwards", LONG_SOUND_S), Path(__file__).parents[1] / "docs/images/recording.png"


def cost(recording: Recording) -> dict[str, float]:
    """Return the passes and seconds of all windows together."""
    costs = [explanation.origin.cost for explanation in recording]
    sums = {name: sum(each[name] for each in costs) for name in ("forward_passes", "backward_passes", "seconds")}
    return {"windows": len(costs), "tokens": len(recording.tokens), **sums, "seconds": round(sums["seconds"], 1)}


def full_run(data: Path, work: Path) -> tuple[np.ndarray, Recording, float]:
    """Return three minutes of speech, their explanation, from the cache if it is there, and the seconds it took."""
    samples, _, _ = speech(data, LONG_S)
    model, processor = load_demo_model()
    started = time.perf_counter()
    recording = explain(model, processor, samples, RATE, SpesConfig.fast(), progress=False, folder=work / "speech")
    seconds, kept = time.perf_counter() - started, work / "speech-seconds.json"
    if not kept.exists():
        kept.write_text(json.dumps(round(seconds, 1)), encoding="utf-8")
    return samples, recording, json.loads(kept.read_text(encoding="utf-8"))


# Speech ---------------------------------------------------------------------------------------------------------------


def measure_speech(data: Path, work: Path) -> dict[str, Any]:
    """Compare three minutes of speech with generate() and with the forced alignment."""
    samples, recording, seconds = full_run(data, work)
    _, alignment, rows = speech(data, LONG_S)
    text, logits = reference(samples)
    return {
        "seconds of audio": round(len(samples) / RATE, 1),
        "clips": len(rows),
        "speakers": len({row["speaker"] for row in rows}),
        "windows": len(recording.windows),
        "segments": len(recording.segments),
        "seconds": seconds,
        "cost": cost(recording),
        "text equals generate()": recording.text == text,
        "logits": compare_logits(samples, recording, logits),
        "words": word_times(recording, alignment),
    }


def reference(samples: np.ndarray) -> tuple[str, list[tuple[list[int], torch.Tensor]]]:
    """Return what generate() writes on its own, and tokens and raw logits, (K, V), of each of its windows."""
    model, processor = load_demo_model()
    inputs = processor(samples, sampling_rate=RATE, truncation=False, padding="longest", return_tensors="pt")
    with torch.no_grad():
        plain = model.generate(**inputs, return_timestamps=True)
        seen = model.generate(
            **inputs, return_timestamps=True, return_dict_in_generate=True, output_logits=True, return_segments=True
        )
    results = {id(segment["result"]): segment["result"] for segment in seen["segments"][0]}
    windows = []
    for result in results.values():
        logits = torch.stack(list(result["logits"]))
        windows.append((result["sequences"][-len(logits) :].tolist(), logits))
    return processor.batch_decode(plain, skip_special_tokens=True)[0].strip(), windows


def compare_logits(
    samples: np.ndarray, recording: Recording, expected: list[tuple[list[int], torch.Tensor]]
) -> dict[str, Any]:
    """Compare the logits that were explained with those of generate(), window by window."""
    adapter = get_adapter(*load_demo_model())
    long = adapter.long_form(load_audio(samples, RATE, RATE))
    written = [window for window in recording.windows if window.segments]
    largest, scale, same_tokens, same_best, tokens = 0.0, 0.0, len(written) == len(expected), 0, 0
    for each, (ids, logits) in zip(written, expected, strict=True):
        window = each.written
        with torch.no_grad():
            found = adapter.logits(long.utterance(window), window.target)[0]
        kept = len(window.token_ids)
        same_tokens &= list(window.token_ids) == ids[:kept]
        largest = max(largest, float((found - logits[:kept]).abs().max()))
        scale = max(scale, float(logits[:kept].abs().max()))
        same_best += int((found.argmax(-1) == logits[:kept].argmax(-1)).sum())
        tokens += kept
    return {
        "tokens": tokens,
        "same tokens": same_tokens,
        "largest difference": largest,
        "largest logit": round(scale, 2),
        "same likeliest token": same_best,
    }


def word_times(recording: Recording, alignment: Any) -> dict[str, Any]:
    """Compare the centroids of words with the order of the words, and with when they were said."""
    words = recording.words()
    centroids, texts = words.time_centroids(), words.tokens
    spoken = [k for k, text in enumerate(texts) if any(c.isalnum() for c in text)]
    found = match_words(texts, alignment)
    middles = [abs(float(centroids[w.index]) - (w.start + w.end) / 2) for w in found.spoken]
    outside = [max(w.start - float(centroids[w.index]), float(centroids[w.index]) - w.end, 0.0) for w in found.spoken]
    within, at = [], 0
    for each in words:
        own = [k for k in spoken if at <= k < at + len(each.tokens)]
        within.append(float(spearmanr(own, centroids[own].numpy()).statistic))
        at += len(each.tokens)
    return {
        "words": len(spoken),
        "words matched with the alignment": len(found.spoken),
        "spearman of order and centroid": round(float(spearmanr(spoken, centroids[spoken].numpy()).statistic), 4),
        "spearman within windows": [round(rho, 3) for rho in within],
        f"share within {NEAR_S} s of the word": round(float(np.mean(np.array(outside) <= NEAR_S)), 3),
        f"share within {NEAR_S} s of its middle": round(float(np.mean(np.array(middles) <= NEAR_S)), 3),
        "median distance to its middle": round(float(np.median(middles)), 3),
    }


# Noise ----------------------------------------------------------------------------------------------------------------


def measure_noise(
    data: Path, work: Path, seconds: float = SOUND_S, levels: tuple[int, ...] = LEVELS_DB
) -> dict[str, Any]:
    """Put sounds between two stretches of speech, at these levels, and see what the bits say of what is written."""
    (before, said), (after, said_after) = (joined(data, clips(data)[first : first + 3]) for first in (0, 3))
    model, processor = load_demo_model()
    start, end = len(before) / RATE, len(before) / RATE + seconds
    words = [*said.words, *(Word(w.text, w.start + end, w.end + end) for w in said_after.words)]
    table: dict[str, Any] = {}
    for name, sound in sounds(data, seconds):
        for level_db in (0,) if name == "silence" else levels:
            samples = np.concatenate([before, sound * 10 ** (level_db / 20), after]).astype(np.float32)
            recording = explain(model, processor, samples, RATE, CHEAP, progress=False)
            if (name, seconds) == PICTURED:
                recording.plot()[0].savefig(PICTURE, dpi=110, bbox_inches="tight")
            segments = [
                {
                    "start": round(each.start_s, 2),
                    "end": round(each.end_s, 2),
                    "bits": None if np.isnan(each.bits_per_token) else round(each.bits_per_token, 2),
                    "made up": each in recording.made_up,
                    "text": each.text,
                }
                for each in recording.heard
            ]
            table[f"{name}, {level_db:+d} dB"] = judged(segments, Alignment(tuple(words)), start, end)
            print(name, level_db, json.dumps(table[f"{name}, {level_db:+d} dB"]), flush=True)
    return {"sound": [round(start, 2), round(end, 2)], "summary": summary(table), "table": table}


def judged(segments: list[dict[str, Any]], alignment: Alignment, start: float, end: float) -> list[dict[str, Any]]:
    """Return segments with what they are: said by somebody, misheard, or written for a sound from start to end.

    Timestamps do not tell: a segment of the first words after a sound often starts in the middle of the sound. Said is
    what has at least half of its words in the transcript, at that place in the order of words and within a second.
    """
    texts = [segment["text"].split() for segment in segments]
    matched = match_words([text for own in texts for text in own], alignment).spoken
    spoken = {word.index: (word.start, word.end) for word in matched}
    at, result = 0, []
    for segment, own in zip(segments, texts, strict=True):
        places = [at + k for k, text in enumerate(own) if any(c.isalnum() for c in text)]
        at += len(own)
        near = [spoken[k] for k in places if k in spoken]
        near = [(a, b) for a, b in near if b > segment["start"] - 1 and a < segment["end"] + 1]
        inside = min(segment["end"], end) - max(segment["start"], start)
        if not places:
            kind = "no word"
        elif len(near) >= len(places) / 2:
            kind = "said"
        else:
            kind = "for the sound" if inside > 0.5 * (segment["end"] - segment["start"]) else "misheard"
        result.append({**segment, "is": kind})
    return result


def summary(table: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return for segments of a kind how many are called made up, and the least, median and most bits."""
    found = {}
    for kind in ("said", "misheard", "for the sound", "no word"):
        own = [segment for segments in table.values() for segment in segments if segment["is"] == kind]
        bits = [segment["bits"] for segment in own if segment["bits"] is not None]
        found[kind] = {
            "segments": len(own),
            "called made up": sum(segment["made up"] for segment in own),
            "bits": [round(float(q), 2) for q in np.quantile(bits, (0, 0.5, 1))] if bits else [],
        }
    return found


# Part -----------------------------------------------------------------------------------------------------------------


def measure_part(data: Path, work: Path) -> dict[str, Any]:
    """Explain one segment, and one word, of the three minutes, and compare with the whole."""
    samples, full, seconds = full_run(data, work)
    model, processor = load_demo_model()
    segment = full.segments[len(full.segments) // 2]
    words = full.words().tokens
    word = max((w.strip() for w in words if words.count(w) == 1), key=len)
    result = {"whole": {**cost(full), "seconds with writing": seconds}}
    for name, asked in {
        "one segment": {"start": segment.start_s, "end": segment.end_s},
        "one word": {"words": word},
    }.items():
        started = time.perf_counter()
        some = explain(model, processor, samples, RATE, SpesConfig.fast(), progress=False, **asked)
        taken = round(time.perf_counter() - started, 1)
        result[name] = {**cost(some), "seconds with writing": taken, "asked": asked, "text": "".join(some.tokens)}
        result[name]["equal bit for bit"] = all(equal_rows(each, full) for each in some)
        result[name]["text is of the whole"] = some.text in full.text
    return result


def equal_rows(some: Any, full: Recording) -> bool:
    """Return whether each token that is explained has the map that it has in the whole."""
    window = some.provenance["window"]["start_s"]
    other = next(each for each in full if each.provenance["window"]["start_s"] == window)
    places = list(range(len(other.pieces))) if other.part is None else list(other.part.rows)
    rows = list(range(len(some.pieces))) if some.part is None else list(some.part.rows)
    return all(
        torch.equal(some.audio_map.dense(k), other.audio_map.dense(places.index(row)))
        and torch.equal(some.raw_token_scores[k].nan_to_num(), other.raw_token_scores[places.index(row)].nan_to_num())
        and some.pieces[k] == other.pieces[places.index(row)]
        for k, row in enumerate(rows)
    )


PARTS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "speech": measure_speech,
    "noise": measure_noise,
    "long noise": lambda data, work: measure_noise(data, work, LONG_SOUND_S, (0,)),
    "memory": measure_memory,
    "part": measure_part,
    "killed": measure_killed,
    "odd": measure_odd,
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "recordings.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.only or PARTS:
        result = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        result[name] = PARTS[name](options.data, options.work)
        print(name, json.dumps(result[name], indent=1), flush=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

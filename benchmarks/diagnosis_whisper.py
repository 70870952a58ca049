"""Which errors of real Whisper were misheard, which guessed? Verdicts on real speech, accented and noisy.

    python benchmarks/diagnosis_whisper.py --data FOLDER --work CACHE     # about 20 minutes on one core

FOLDER holds a ``manifest.jsonl`` with id, file, set, text, language and alignment (forced, of the text) of every
recording. English clips, by set, short ones first, and ten clips of clean read speech once more in pink noise at 5 dB
("noisy"). Only utterances with an error count. Diagnoses are kept in CACHE and used again. Writes
benchmarks/results/diagnosis_whisper.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from diagnosis import interval

from spes_hf import Diagnoser, Diagnosis, SpesConfig
from spes_hf.analysis import read_alignment
from spes_hf.demo import load_demo_model
from spes_hf.errors import SpesError
from spes_hf.explanation.diagnosis import VERDICTS
from spes_hf.files import read_json_lines
from spes_hf.scoring.foils import words_of_text

SETS = ("librispeech-other", "vctk", "fleurs-en", "librispeech-clean")
NOISY, SNR_DB = 10, 5.0


def clips(data: Path) -> Iterator[tuple[dict[str, Any], np.ndarray, int]]:
    """Yield rows of the manifest with their samples and rate, sets in turn; noisy copies are a set of their own."""
    rows = [row for row in read_json_lines(data / "manifest.jsonl") if row["set"] in SETS and row["language"] == "en"]
    rows.sort(key=lambda row: len(row["text"]))  # a pass backwards for every token: short ones first
    by_set = {name: [row for row in rows if row["set"] == name] for name in SETS}
    noisy = [{**row, "id": f"{row['id']}-noisy", "set": "noisy"} for row in by_set["librispeech-clean"][:NOISY]]
    queues = [*by_set.values(), noisy]
    for place in range(max(map(len, queues))):
        for queue in queues:
            if place < len(queue):
                samples, rate = soundfile.read(data / queue[place]["file"], dtype="float32")
                yield queue[place], with_noise(samples, place) if queue is noisy else samples, rate


def with_noise(samples: np.ndarray, seed: int) -> np.ndarray:
    """Return samples in pink noise at 5 dB."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), n=len(samples))
    level = samples.std() / noise.std() * 10 ** (-SNR_DB / 20)
    return (samples + level * noise).astype(np.float32)


def word_times(data: Path, row: dict[str, Any]) -> list[tuple[float, float]] | None:
    """Return when each word of the transcript was spoken; None where the alignment has other words."""
    words = read_alignment(data / row["alignment"]).words
    said = words_of_text(None, row["text"])  # an adapter is asked for scripts without spaces alone
    return [(word.start, word.end) for word in words] if len(words) == len(said) else None


def diagnoses(data: Path, work: Path, utterances: int) -> list[tuple[dict[str, Any], Diagnosis]]:
    """Return so many utterances with an error, diagnosed or from the cache."""
    model, processor = load_demo_model()
    diagnoser = Diagnoser(model, processor, SpesConfig.fast(num_token_masks=20), progress=False)
    work.mkdir(parents=True, exist_ok=True)
    found: list[tuple[dict[str, Any], Diagnosis]] = []
    for row, samples, rate in clips(data):
        path = work / f"{row['id']}.json"
        if not path.exists():
            try:
                settings = {"sampling_rate": rate, "utterance_id": row["id"], "times": word_times(data, row)}
                diagnosis = diagnoser(samples, row["text"], **settings)
                values = diagnosis.to_dict()
            except SpesError as error:
                values = {"failed": str(error)}
            path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("errors"):
            found.append((row, Diagnosis.from_dict(values)))
            print(len(found), row["set"], found[-1][1], flush=True)
        if len(found) >= utterances:
            break
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--utterances", type=int, default=42)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "diagnosis_whisper.json")
    options = parser.parse_args()
    found = diagnoses(options.data, options.work, options.utterances)
    groups: dict[str, list[Diagnosis]] = defaultdict(list)
    for row, diagnosis in found:
        groups[row["set"]].append(diagnosis)
        groups["all"].append(diagnosis)
    table = {}
    for name, some in groups.items():
        errors = [error for diagnosis in some for error in diagnosis.errors]
        counted = Counter(error.verdict for error in errors)
        table[name] = {"utterances": len(some), "errors": len(errors), **{v: counted[v] for v in VERDICTS}}
        table[name]["share misheard"] = interval([float(error.verdict == "misheard") for error in errors])
    listed = [
        {"id": row["id"], "set": row["set"], "error": error.name, "verdict": error.verdict}
        | {name: round(getattr(error, name), 2) for name in ("log_odds", "context", "evidence", "without_sound")}
        | {"stretch": [round(t, 2) for t in error.stretch], "kind": error.kind}
        for row, diagnosis in found
        for error in diagnosis.errors
    ]
    result = {"table": table, "errors": listed}
    options.out.write_text(json.dumps(result, indent=1).replace("NaN", "null") + "\n", encoding="utf-8")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()

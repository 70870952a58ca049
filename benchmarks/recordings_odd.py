"""Odd recordings and options for `recordings.py`: each is explained as generate() writes it, or refused in words."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from recordings_audio import RATE, speech
from recordings_child import CHEAP

from spes_hf import explain
from spes_hf.adapters import get_adapter
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_demo_model
from spes_hf.errors import SpesError
from spes_hf.explanation.recording import Recording

FALLBACK = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}
STRICT = {**FALLBACK, "logprob_threshold": -0.2, "compression_ratio_threshold": 0.9}


def measure_odd(data: Path, work: Path) -> dict[str, Any]:
    """Explain what is odd, and return what came of it, case by case."""
    table = {}
    for name, audio, options in cases(data, work):
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                table[name] = came_out(audio, options)
            except SpesError as error:
                table[name] = {
                    "refused": f"{type(error).__name__}: {error}".replace(str(work), "WORK").replace(
                        str(data), "FOLDER"
                    )
                }
            except Exception as error:  # what must not happen is written down as well
                table[name] = {
                    "crashed": f"{type(error).__name__}: {error}".replace(str(work), "WORK").replace(
                        str(data), "FOLDER"
                    )
                }
        warned = sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)})
        table[name] |= {"warnings": warned} if warned else {}
        table[name]["seconds"] = round(time.perf_counter() - started, 1)
        print(name, json.dumps(table[name]), flush=True)
    return table


def cases(data: Path, work: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield the name of a case, its audio and the arguments of `explain`."""
    _, processor = load_demo_model()
    samples, alignment, _ = speech(data, 40.0)
    word = next(w for w in alignment.words if w.start > 35.0 and w.end - w.start > 0.3)
    middle = round((word.start + word.end) / 2 * RATE)
    prompt = processor.get_prompt_ids("A letter from Memphis.", return_tensors="pt")

    yield "three minutes of silence", np.zeros(180 * RATE, np.float32), {}
    yield "silence, thresholds", np.zeros(65 * RATE, np.float32), {"generate_kwargs": FALLBACK}
    yield "ends within a word", samples[:middle], {}
    wav, flac = work / "whole.wav", work / "whole.flac"
    for path in (wav, flac):
        soundfile.write(path, speech(data, 75.0)[0], RATE)
        broken = path.with_stem("broken")
        broken.write_bytes(path.read_bytes()[: int(0.9 * path.stat().st_size)])
        yield f"{path.suffix[1:].upper()} that breaks off", broken, {}
    yield "temperature fallback", samples, {"generate_kwargs": FALLBACK}
    yield "temperature fallback, hardly ever content", samples, {"generate_kwargs": STRICT}
    yield "temperature, one above 0", samples, {"generate_kwargs": {"temperature": 0.7, "do_sample": True}}
    yield "condition_on_prev_tokens", samples, {"generate_kwargs": {"condition_on_prev_tokens": True}}
    yield "prompt_ids", samples, {"generate_kwargs": {"prompt_ids": prompt}}
    both = {"prompt_ids": prompt, "condition_on_prev_tokens": True, "prompt_condition_type": "all-segments"}
    yield "prompt_ids for all segments", samples, {"generate_kwargs": both}
    yield "num_beams", samples, {"generate_kwargs": {"num_beams": 2}}
    yield "num_beams and fallback", samples, {"generate_kwargs": {"num_beams": 2, **STRICT}}
    yield "max_new_tokens", samples, {"generate_kwargs": {"max_new_tokens": 20}}
    yield "return_timestamps=False", samples, {"generate_kwargs": {"return_timestamps": False}}
    yield "just over a window", samples[: 30 * RATE + 1], {}
    yield "a frame over a window", samples[: 30 * RATE + 200], {}
    yield "timestamps", samples, {"timestamps": True}
    yield "folder of another recording", samples[: 35 * RATE], {"folder": filled(samples, work / "other")}
    yield "folder of other things", samples, {"folder": data}
    yield "folder is a file", samples, {"folder": wav}
    yield "folder that cannot be made", samples, {"folder": wav / "inside"}


def filled(samples: np.ndarray, folder: Path) -> Path:
    """Return a folder that holds a recording."""
    explain(*load_demo_model(), samples, RATE, CHEAP, progress=False, folder=folder)
    return folder


def came_out(audio: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Explain, and compare with what generate() writes on its own from the same random numbers."""
    model, processor = load_demo_model()
    torch.manual_seed(3)
    recording = explain(
        model, processor, audio, None if isinstance(audio, Path) else RATE, CHEAP, progress=False, **options
    )
    untouched = torch.equal(torch.rand(3), _next_random())
    found: dict[str, Any] = {"text": recording.text[:120], "random state left": untouched}
    if not isinstance(recording, Recording):
        return found
    waveform = load_audio(audio, RATE, None if isinstance(audio, Path) else RATE)
    kwargs = dict(options.get("generate_kwargs") or {})
    if not kwargs.get("do_sample") and not any(window.written.temperature for window in recording.windows):
        inputs = processor(
            waveform.samples, sampling_rate=RATE, truncation=False, padding="longest", return_tensors="pt"
        )
        with torch.no_grad():
            long = (
                {"return_timestamps": True} if inputs.input_features.shape[2] > 3000 else {}
            )  # needed, and given, there
            ids = model.generate(**inputs, **{**long, **kwargs})
        text = processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
        found["text equals generate()"] = recording.text == text
        if recording.text != text:
            found["generate() wrote"] = text[:400]
            found["text"] = recording.text[:400]
    return found | {
        "windows": len(recording.windows),
        "explained": len(recording),
        "complete": recording.complete,
        "temperatures": [window.written.temperature for window in recording.windows],
        "attempts": [window.written.attempts for window in recording.windows],
        "skipped": [window.skipped for window in recording.windows],
        "reached length limit": [window.reached_length_limit for window in recording.windows],
        "prefix lengths": [len(window.written.prefix_ids) for window in recording.windows],
        "made up": [segment.text for segment in recording.made_up],
        "probabilities": agreement(waveform, recording),
    }


def _next_random() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.rand(3)


def agreement(waveform: Any, recording: Recording) -> float:
    """Return the largest difference between a token's probability in the maps' run and teacher-forced anew."""
    adapter = get_adapter(*load_demo_model())
    long, largest = adapter.long_form(waveform), 0.0
    windows = {window.start_s: window for window in recording.windows}
    for explanation in recording:
        window = windows[explanation.provenance["window"]["start_s"]].written
        with torch.no_grad():
            logits = adapter.logits(long.utterance(window), window.target)[0].float()
        rows = range(len(explanation.pieces)) if explanation.part is None else explanation.part.rows
        chosen = logits.softmax(-1)[list(rows), window.target.token_ids[list(rows)]]
        largest = max(largest, float((chosen - torch.as_tensor(explanation.probabilities)).abs().max()))
    return largest

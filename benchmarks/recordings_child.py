"""What `recordings.py` runs in processes of their own: to be killed, or to have their memory measured."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import soundfile
import torch

from spes_hf import SpesConfig, explain
from spes_hf.demo import load_demo_model

CHEAP = SpesConfig(estimator="perturbation", num_spectrogram_masks=8, num_token_masks=4)


def tiny_whisper() -> tuple[Any, Any]:
    """Return a random Whisper with a window of 2 s that writes a few tokens and timestamps for each."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "adapters"))
    import tiny

    with tempfile.TemporaryDirectory() as folder:
        model, processor = tiny.whisper(80, False)(Path(folder))
    start = processor.tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    config = model.generation_config
    config.suppress_tokens = [*range(start, config.no_timestamps_token_id + 1)]
    config.max_initial_timestamp_index, config.max_length = 50, None
    return model, processor


def memory(audio: str) -> None:
    """Explain a file with a tiny model, and print how much memory that took at most, in megabytes."""
    model, processor = tiny_whisper()
    config = SpesConfig(estimator="perturbation", num_spectrogram_masks=2, num_token_masks=4)
    before = peak_mb()
    recording = explain(model, processor, audio, config=config, generate_kwargs={"max_new_tokens": 8}, progress=False)
    found = {"before_mb": before, "after_mb": peak_mb(), "windows": len(recording.windows)}
    found["tokens"] = len(recording.words().time_centroids())  # and go through all of them once
    print(json.dumps({**found, "read_again_mb": peak_mb()}))


def peak_mb() -> float:
    """Return the most memory that this process had at once, in megabytes (KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e6 / 1024), 1)


def run(audio: str, folder: str) -> None:
    """Explain a file with Whisper tiny.en into a folder."""
    samples, rate = soundfile.read(audio, dtype="float32")
    explain(*load_demo_model(), samples, rate, CHEAP, progress=False, folder=folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"memory": memory, "run": run}[sys.argv[1]](*sys.argv[2:])

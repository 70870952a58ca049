"""Parts of `recordings.py` that run in processes of their own: peak memory, and what is left when one is killed."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from recordings_audio import RATE, speech

from spes_hf.explanation.recording import Recording

KILLS = 5


def measure_memory(data: Path, work: Path) -> dict[str, Any]:
    """Explain a minute and half an hour of noise, each in a process of its own, and compare their peaks."""
    found = {}
    for minutes in (1, 30):
        path, rng = work / f"noise-{minutes}.wav", np.random.default_rng(0)
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for _ in range(minutes * 6):
                file.write(0.1 * rng.standard_normal(10 * RATE))
        started = time.perf_counter()
        found[f"{minutes} min"] = json.loads(child("memory", path).stdout.splitlines()[-1])
        found[f"{minutes} min"]["seconds"] = round(time.perf_counter() - started, 1)
        path.unlink()
    more = found["30 min"]["after_mb"] - found["1 min"]["after_mb"]
    return {**found, "more for 30 min, MB": round(more, 1)}


def child(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run a part of recordings_child.py in a process of its own."""
    finished = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return finished


def command(*arguments: Any) -> list[str]:
    """Return the command that runs a part of recordings_child.py."""
    return [sys.executable, str(Path(__file__).with_name("recordings_child.py")), *map(str, arguments)]


def measure_killed(data: Path, work: Path) -> dict[str, Any]:
    """Kill a run at random moments, start it again, and compare with one that nobody killed."""
    samples, _, _ = speech(data, 90.0)
    audio, whole = work / "killed.wav", work / "undisturbed"
    soundfile.write(audio, samples, RATE)
    shutil.rmtree(whole, ignore_errors=True)
    started = time.perf_counter()
    child("run", audio, whole)
    length, expected, moments = time.perf_counter() - started, Recording.load(whole), []
    for moment in range(KILLS):
        folder = work / f"killed-{moment}"
        shutil.rmtree(folder, ignore_errors=True)
        after = random.Random(moment).uniform(0.2, 1.0) * length
        with subprocess.Popen(command("run", audio, folder), stderr=subprocess.DEVNULL) as process:
            time.sleep(after)
            process.kill()
        left = sorted(path.name for path in (folder / "windows").glob("*")) if (folder / "windows").is_dir() else []
        planned = (folder / "recording.json").is_file()
        started = time.perf_counter()
        child("run", audio, folder)
        moments.append(
            {
                "killed after, s": round(after, 1),
                "plan on disk": planned,
                "windows on disk": len([name for name in left if name.isdigit()]),
                "half written": [name for name in left if not name.isdigit()],
                "started again, s": round(time.perf_counter() - started, 1),
                **compared(Recording.load(folder), expected),
            }
        )
        print(moments[-1], flush=True)
    return {"undisturbed, s": round(length, 1), "windows": len(expected.windows), "moments": moments}


def compared(found: Recording, expected: Recording) -> dict[str, Any]:
    """Return whether two recordings are equal, and files that do not belong there."""
    maps = all(
        torch.equal(a.audio_map.dense(k), b.audio_map.dense(k))
        for a, b in zip(found, expected, strict=True)
        for k in range(len(b.pieces))
    )
    tokens = all(
        torch.equal(a.raw_token_scores.nan_to_num(), b.raw_token_scores.nan_to_num())
        for a, b in zip(found, expected, strict=True)
    )
    names = [{str(p.relative_to(each.folder)) for p in each.folder.rglob("*")} for each in (found, expected)]
    return {
        "complete": found.complete,
        "text equal": found.text == expected.text,
        "windows equal": found.windows == expected.windows,
        "maps equal": maps,
        "token maps equal": tokens,
        "litter": sorted(names[0] - names[1]),
    }

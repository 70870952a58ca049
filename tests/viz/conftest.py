import math
import subprocess
from dataclasses import replace

import driven_browser
import pytest
import soundfile
import torch

from spes_hf.adapters.windows import Window
from spes_hf.explanation import Explanation, PatchMap, Reliability
from spes_hf.explanation.parts import Part
from spes_hf.explanation.recording import Recording
from spes_hf.explanation.recording_plan import AUDIO, RecordedWindow, RecordingPlan, RecordingSegment
from spes_hf.scoring.contrast import Contrast

NO_BROWSER = "chromium, to open the page with, is not installed: apt-get install chromium"


def make_explanation(
    pieces=(" Good", " morn", "ing", ",", " $5", " äh", "<|endoftext|>"),
    prefix=("<|startoftranscript|>", "<|notimestamps|>"),
    frames=60,
    bins=20,
    patches=40,
    rate=1000,
    seed=0,
    **changes,
):
    """Return an explanation made by hand: smooth in nothing, right in every shape."""
    generator = torch.Generator().manual_seed(seed)
    k, j = len(pieces), len(prefix) + len(pieces) - 1
    token = torch.rand(k, j, generator=generator)
    token[torch.arange(j)[None] >= len(prefix) + torch.arange(k)[:, None]] = torch.nan
    counts = torch.randint(1, 9, (patches,), generator=generator).float()
    hertz = 700 * (torch.exp(torch.linspace(0, math.log1p(8000 / 700), bins + 2)) - 1)
    fields = {
        "text": "".join(p for p in pieces if not p.startswith("<|")),
        "pieces": tuple(pieces),
        "token_id_list": tuple(range(k)),
        "context_pieces": (*prefix, *pieces[:-1]),
        "special": tuple(p.startswith("<|") for p in pieces),
        "prefix_length": len(prefix),
        "probabilities": torch.linspace(0.3, 0.99, k),
        "features": torch.randn(frames, bins, generator=generator),
        "times": torch.arange(frames) * 0.01,
        "frequencies": hertz[1:-1],
        "audio_map": PatchMap(
            torch.randint(patches, (2, frames, bins), generator=generator, dtype=torch.int32),
            tuple(torch.rand(k, patches, generator=generator) for _ in range(2)),
            (counts, counts.clone()),
        ),
        "raw_token_scores": token,
        "text_impact": torch.rand(k, generator=generator),
        "token_sound_bits": 10 * torch.rand(k, generator=generator) - 1,
        "token_text_bits": 10 * torch.rand(k, generator=generator) - 1,
        "sound_impact": torch.rand(k, generator=generator),
        "token_reliability": Reliability(torch.linspace(0.2, 0.9, k), 0.7),
        "waveform": torch.sin(torch.arange(frames * rate // 100) / 9) / 2,
        "sampling_rate": rate,
        "provenance": {
            "config": {"method": "spes", "seed_note": "<b>"},
            "seed": 3,
            "model": {"name": "openai/whisper-tiny", "revision": None},
            "audio": {"notes": ["mixed down from 2 channels"]},
            "output": {"reached_length_limit": True, "given": False},
            "cost": {"forward_passes": 301, "seconds": 12.25},
        },
    } | changes
    return Explanation(**fields)


def make_contrasts(pairs=(("country", "county"), ("(nothing)", "really")), prefix=("<s>",), **changes):
    """Return an explanation with foils: a row for each pair, each two words further on in a text of its own."""
    context = (*prefix, *(f" word{k}" for k in range(2 * len(pairs))))
    contrasts = tuple(
        Contrast(target, foil, 2 * k + 1, (k,), (k + 90,), target_log2=3.0 - 4 * k, foil_log2=0.0)
        for k, (target, foil) in enumerate(pairs)
    )
    text = torch.rand(len(pairs), len(context), generator=torch.Generator().manual_seed(1))
    for row, contrast in zip(text, contrasts, strict=True):
        row[len(prefix) + contrast.start :] = torch.nan
    fields = {
        "text": "a text",
        "contrasts": contrasts,
        "context_pieces": context,
        "raw_token_scores": text,
        "token_sound_bits": torch.linspace(3.0, -1.0, len(pairs)),
    }
    return make_explanation(tuple(c.name for c in contrasts), prefix, **(fields | changes))


def bits_of(rows, count, changes):
    """Return bits for all tokens of a text: those of the explained ones, and 8 for the others."""
    bits = [8.0] * count
    for row, value in zip(rows, changes.get("token_sound_bits", torch.full((len(rows),), 8.0)).tolist(), strict=True):
        bits[row] = value
    return tuple(bits)


def make_part(pieces, rows, start_s=0.0, frames=60, prefix=("<s>",), rate=8000, **changes):
    """Return the explanation of some tokens of a text, in a window that starts at a time of a recording."""
    special = tuple(piece.startswith("<|") for piece in pieces)
    explained = tuple(pieces[k] for k in rows)
    context = (*prefix, *pieces[:-1])
    scores = torch.rand(len(rows), len(context), generator=torch.Generator().manual_seed(2))
    for row, k in zip(scores, rows, strict=True):
        row[len(prefix) + k :] = torch.nan
    bits = bits_of(rows, len(pieces), changes)
    fields = {
        "text": "".join(p for p, s in zip(pieces, special, strict=True) if not s),
        "part": Part(tuple(rows), tuple(range(len(pieces))), tuple(pieces), special, bits, special),
        "token_id_list": tuple(rows),
        "special": tuple(special[k] for k in rows),
        "context_pieces": context,
        "raw_token_scores": scores,
        "times": start_s + torch.arange(frames) * 0.01,
        "provenance": {"window": {"start_s": start_s}, "model": {"name": "some/model"}, "config": {"method": "spes"}},
    }
    return make_explanation(explained, prefix, frames, rate=rate, **(fields | changes))


def make_window(index, start_s, until_s, segments=(), explained=True, skipped=False, **changes):
    """Return a window of a recording; segments are (start, end, text, first, stop)."""
    text = "".join(segment[2] for segment in segments)
    rows = None if explained and not skipped else ()
    spoken = tuple(RecordingSegment(start, end, first, stop, said) for start, end, said, first, stop in segments)
    written = Window(round(100 * start_s), 1, round(100 * until_s), skipped=skipped, **changes)
    return RecordedWindow(index, start_s, until_s, until_s, text, spoken, rows, written)


def make_recording(folder, windows, explanations, duration_s, rate=8000):
    """Return a recording made by hand, in a folder; explanations by the index of their window."""
    text = "".join(window.text for window in windows)
    audio = {"source": "file talk.wav", "notes": ["mixed down from 2 channels"]}
    for index, explanation in explanations.items():
        own = {"token_ids": explanation.written_ids, "prefix_ids": explanation.origin.prefix_ids or ()}
        windows = [replace(w, written=replace(w.written, **own)) if w.index == index else w for w in windows]
        explanation.save(windows[index].folder(folder))
    RecordingPlan(text, duration_s, 0.01, tuple(windows), provenance={"audio": audio}).write(folder)
    if rate:  # longer than the text: Chromium cannot seek everywhere in the last seconds of a FLAC
        soundfile.write(folder / AUDIO, torch.sin(torch.arange(int(rate * (duration_s + 4))) / 9).numpy() / 2, rate)
    return Recording(folder)


@pytest.fixture(scope="session")
def recorded():
    """Return the makers of explained parts, of windows, and of recordings."""
    return make_part, make_window, make_recording


@pytest.fixture(scope="session")
def contrasting():
    """Return the maker of explanations with foils."""
    return make_contrasts


@pytest.fixture(scope="session")
def explanation():
    return make_explanation()


@pytest.fixture(scope="session")
def make():
    """Return the maker of explanations."""
    return make_explanation


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    """Return what opens a page at a place in it: its elements, once its script has run without a complaint."""
    browser = driven_browser.find()
    if browser is None:
        pytest.skip(NO_BROWSER)
    profile = tmp_path_factory.mktemp("browser") / "profile"

    def open_at(path, place):
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
        command = [browser, *(f"--{flag}" for flag in (*flags.split(), "disable-component-update", "dump-dom"))]
        command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
        command.append(f"{path.as_uri()}{place}")
        run = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)
        if run.returncode:
            pytest.skip(f"chromium does not start here: {run.stderr[-300:]}")
        assert "CONSOLE" not in run.stderr, run.stderr
        return run.stdout

    return open_at


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """Return a browser to press keys and to click in."""
    if driven_browser.find() is None:
        pytest.skip(NO_BROWSER)
    try:
        browser = driven_browser.Browser(tmp_path_factory.mktemp("driven"))
    except (OSError, TimeoutError) as error:
        pytest.skip(f"chromium does not start here: {error}")
    yield browser
    browser.close()

import math

import pytest
import torch

from spes_hf.explanation import Explanation, PatchMap, Reliability
from spes_hf.scoring.contrast import Contrast


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
            (counts, counts),
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

"""A tiny model of every family, made once, and a clip with an odd number of frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretended_devices import pretended_devices
from tiny import FAMILIES as KNOWN
from tiny import VARIED, Case
from tiny_fast_conformers import FAST_CONFORMERS
from tiny_llm import LLMS

from spes_hf.adapters import GenerationOptions, get_adapter
from spes_hf.audio.load import load_audio

FAMILIES = {**KNOWN, **FAST_CONFORMERS}


@pytest.fixture(scope="session")
def clip() -> np.ndarray:
    """11,400 samples of a sweep with noise at 16 kHz: 69 Kaldi frames."""
    t = np.arange(11_400) / 16_000
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.4 * np.sin(2 * np.pi * (300 + 900 * t) * t) + 0.05 * noise).astype(np.float32)


@pytest.fixture(scope="session")
def cases(tmp_path_factory, clip):
    """Function that returns the case of a family, the same one every time; skips where its processor needs more."""
    made: dict[tuple[str, torch.dtype], Case] = {}

    def case_of(name: str, dtype: torch.dtype = torch.float32) -> Case:
        if (name, dtype) not in made:
            family = {**FAMILIES, **LLMS}[name]
            for package in family.needs:
                pytest.importorskip(package)
            if dtype is torch.float32:
                model, processor = family.build(tmp_path_factory.mktemp(name))
            else:
                model, processor = case_of(name).copy()
                model.to(dtype)
            adapter = get_adapter(model, processor)
            utterance = adapter.encode(load_audio(clip, adapter.sampling_rate, 16_000))
            options = GenerationOptions(**family.options, generate_kwargs=VARIED)
            target = adapter.generate(utterance, options)
            made[name, dtype] = Case(family, model, processor, adapter, clip, utterance, options, target)
        return made[name, dtype]

    return case_of


@pytest.fixture(params=list(FAMILIES))
def case(request, cases) -> Case:
    """Each family in turn."""
    return cases(request.param)


@pytest.fixture(params=list(FAMILIES))
def exact(request, cases) -> Case:
    """Each family in turn in float64, where equal means equal to 1e-9."""
    return cases(request.param, torch.float64)


@pytest.fixture(params=list(FAST_CONFORMERS))
def fast(request, cases) -> Case:
    """Each family with a FastConformer in turn."""
    return cases(request.param)


@pytest.fixture(params=list(LLMS))
def llm(request, cases) -> Case:
    """Each speech LLM in turn."""
    return cases(request.param)


@pytest.fixture(params=list(LLMS))
def exact_llm(request, cases) -> Case:
    """Each speech LLM in turn in float64, where equal means equal to 1e-9."""
    return cases(request.param, torch.float64)


@pytest.fixture
def two(monkeypatch):
    """Names of two pretended devices."""
    # Their parameters are of a class of their own, which looks like quantised weights.
    monkeypatch.setattr("spes_hf.adapters.base.passes_gradients", lambda *arguments: True)
    with pretended_devices():
        yield "pretended:0", "pretended:1"

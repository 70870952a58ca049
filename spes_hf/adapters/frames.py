"""Checks of spectrograms for adapters: frequencies of mel bins, matching bins, and a minimum number of frames."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spes_hf.audio.load import Waveform
from spes_hf.errors import AudioError, UnsupportedModelError


def mel_frequencies(bins: int, low_hz: float, high_hz: float, mel_scale: str) -> Tensor:
    """Return the centre of every mel bin, (C,) float32 in Hz.

    Examples:
        >>> mel_frequencies(3, low_hz=0.0, high_hz=8_000.0, mel_scale="htk").round().tolist()  # in Hz
        [614.0, 1768.0, 3934.0]
    """
    from transformers.audio_utils import hertz_to_mel, mel_to_hertz

    low, high = hertz_to_mel(low_hz, mel_scale=mel_scale), hertz_to_mel(high_hz, mel_scale=mel_scale)
    centres = mel_to_hertz(np.linspace(low, high, bins + 2)[1:-1], mel_scale=mel_scale)
    return torch.from_numpy(np.asarray(centres, dtype=np.float32))


def check_bins(made: int, read: int) -> None:
    """Refuse a processor that makes another number of mel bins than the model reads.

    Raises:
        UnsupportedModelError: If the numbers differ; the message gives both.

    Examples:
        >>> check_bins(made=80, read=128)
        Traceback (most recent call last):
            ...
        spes_hf.errors.UnsupportedModelError: processor makes 80 mel bins, but the model reads 128; ...
    """
    if made != read:
        raise UnsupportedModelError(
            f"processor makes {made} mel bins, but the model reads {read}; load the processor of the same checkpoint"
        )


def check_length(frames: int, waveform: Waveform, least: int = 2) -> None:
    """Refuse audio with fewer frames than the model needs, two by default.

    Raises:
        AudioError: If it is too short; the message gives its length.

    Examples:
        >>> from spes_hf.audio.load import Waveform
        >>> check_length(1, Waveform(np.zeros(200, np.float32), 16_000, "a click"))
        Traceback (most recent call last):
            ...
        spes_hf.errors.AudioError: audio is 12.5 ms long, fewer than two frames of the spectrogram; ...
    """
    if frames < least:
        milliseconds = 1000 * len(waveform.samples) / waveform.sampling_rate
        raise AudioError(
            f"audio is {milliseconds:.1f} ms long, fewer than {'two' if least == 2 else least} frames of the "
            "spectrogram; pass at least 0.1 s. "
            "If it should be longer, check sampling_rate",
            silent=True,
        )

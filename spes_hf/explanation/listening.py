"""The sound behind a map: the recording reduced to its salient time-frequency cells, and the rest of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from spes_hf.checks import is_number
from spes_hf.errors import ConfigError
from spes_hf.functional import deletion_masks

if TYPE_CHECKING:
    from spes_hf.explanation.parts import ExplanationParts

# Windows of 25 ms every 10 ms, as in the spectrograms of most families.
_WINDOW_S, _HOP_S = 0.025, 0.01


class Sound(NamedTuple):
    """A sound: what `Explanation.listen` returns. A notebook shows a player.

    Attributes:
        samples: (S,) float32 amplitudes.
        rate: Samples per second.

    Examples:
        >>> sound = ex.listen(top=0.2)
        >>> sound.rate, len(sound.samples) == len(ex.waveform)
        (16000, True)
    """

    samples: np.ndarray
    rate: int

    def _repr_html_(self) -> str:
        from spes_hf.viz import sound_html

        return sound_html(self)


@dataclass(frozen=True)
class HeardBack:
    """What the model writes for the salient part of a recording, and for the rest of it. A notebook plays both.

    Attributes:
        top: Share of the cells that the salient part keeps.
        kept: The text for the salient part alone; the other cells have the mean of their mel bin.
        rest: The text for the rest alone, likewise.
        explanation: The `Explanation` of the recording; None where it is not known.

    Examples:
        >>> heard = listen_back(model, processor, ex, top=1.0)
        >>> heard.top, heard.kept  # all of the sound
        (1.0, 'Tom sells a small picture.')
    """

    top: float
    kept: str
    rest: str
    explanation: Any = field(default=None, repr=False, compare=False)  # its type would import itself in a circle

    def _repr_html_(self) -> str | None:
        if self.explanation is None:
            return None
        from spes_hf.viz import notebook_html

        return notebook_html(self.explanation, self)


def check_top(top: float) -> float:
    """Return the value if it is a share from 0 to 1.

    Raises:
        ConfigError: If it is not.

    Examples:
        >>> check_top(0.2)
        0.2
        >>> check_top(20)
        Traceback (most recent call last):
            ...
        spes_hf.errors.ConfigError: top is 20; allowed: the share of the cells to keep, from 0 to 1 (20 % is 0.2)
    """
    if not (is_number(top) and 0 <= top <= 1):
        raise ConfigError(f"top is {top!r}; allowed: the share of the cells to keep, from 0 to 1 (20 % is 0.2)")
    return float(top)


def listen(explanation: ExplanationParts, saliency: Tensor, top: float, complement: bool) -> Sound:
    """Return what is left of an explanation's recording; see `Explanation.listen`.

    Args:
        explanation: An explanation over tokens or words.
        saliency: (T, C) map to rank the cells by.
        top: Share of the cells to keep.
        complement: Whether to return the rest instead.

    Raises:
        ConfigError: If ``top`` is not a number in [0, 1], or the explanation has no samples.

    Examples:
        >>> parts = [listen(ex, ex.evidence(), 0.2, complement).samples for complement in (False, True)]
        >>> bool(np.allclose(sum(parts), ex.waveform, atol=1e-4))
        True
    """
    (rest,) = deletion_masks(saliency, [check_top(top)])
    if not len(explanation.waveform):
        raise ConfigError(
            "explanation has no samples, so there is nothing to listen to; explain the audio again, or restore its "
            "samples with dataclasses.replace(explanation, waveform=samples)"
        )
    rate, times = explanation.sampling_rate, explanation.times.double() - explanation.sound_start_s
    keep = rest if complement else ~rest
    return Sound(masked(explanation.waveform, rate, keep, times, explanation.frequencies), rate)


def masked(samples: Tensor, rate: int, keep: Tensor, times: Tensor, frequencies: Tensor) -> np.ndarray:
    """Return what is left of a sound under a mask over frames and mel bins; phases stay.

    The mask is interpolated linearly between the centres of frames and mel bins, and multiplied with the short-time
    Fourier transform (Hann window). So each kept cell lets through the triangle of its mel bin, neighbours join without
    a gap, and a mask of ones changes nothing. Beyond the outermost centres, their values continue. The result is linear
    in the mask: the results for a mask and its complement add up to the sound.

    Args:
        samples: (S,) amplitudes.
        rate: Samples per second.
        keep: (T, C) in [0, 1]; 1 = keep.
        times: (T,) centres of the frames, in seconds from the first sample; T ≥ 2.
        frequencies: (C,) centres of the mel bins, in Hz; C ≥ 2.

    Returns:
        (S,) float32 amplitudes.

    Examples:
        >>> times, frequencies = torch.tensor([0.025, 0.075]), torch.tensor([100.0, 4000.0])
        >>> keep = torch.tensor([[1.0, 1.0], [0.0, 0.0]])  # the first of two frames
        >>> abs(masked(torch.ones(1600), 16_000, keep, times, frequencies))[[0, -1]].round(2).tolist()
        [1.0, 0.0]
    """
    window, hop = round(_WINDOW_S * rate), round(_HOP_S * rate)
    size = 1 << (window - 1).bit_length()
    # Pad with silence in front, so that the transform's frames have the same centres as the spectrogram's.
    before = round(-float(times[0]) * rate) % hop
    padded = pad(samples.double(), (before, hop))
    hann = torch.hann_window(window, dtype=torch.float64, device="cpu")
    spectrum = torch.stft(padded, size, hop, window, hann, pad_mode="constant", return_complex=True)
    bins, frames = (torch.arange(n, dtype=torch.float64, device="cpu") for n in spectrum.shape)
    over_time = _interpolated(keep.double(), times.double(), (frames * hop - before) / rate)
    gain = _interpolated(over_time.T, frequencies.double(), bins * (rate / size))
    sound = torch.istft(spectrum * gain, size, hop, window, hann, length=len(padded))
    return sound[before : before + len(samples)].float().numpy()


def _interpolated(values: Tensor, centres: Tensor, places: Tensor) -> Tensor:
    """Return (P, …) values at places, interpolated linearly between centres; beyond them, the outermost value.

    Args:
        values: (N, …), one for each centre.
        centres: (N,) increasing.
        places: (P,).
    """
    right = torch.searchsorted(centres, places).clamp(1, len(centres) - 1)
    step = (places - centres[right - 1]) / (centres[right] - centres[right - 1])
    return torch.lerp(values[right - 1], values[right], step.clamp(0, 1)[:, None])

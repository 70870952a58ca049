"""Whisper's long form: records what ``generate()`` does with a recording, window by window."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from spes_hf.adapters.types import GenerationOptions, Utterance
from spes_hf.adapters.windows import LongForm, Progress, Segment, Window, unseen
from spes_hf.audio.load import Waveform
from spes_hf.errors import ConfigError, UnsupportedModelError
from spes_hf.runtime.locks import alone
from spes_hf.runtime.preserve import quiet_thread

# Number of frames computed at once, and frames of context on both sides, since windows of the Fourier transform
# overlap.
_CHUNK, _MARGIN = 6000, 4
# The log-mel scale is clipped 8 powers of ten below its highest value, and divided by 4.
_FLOOR = 2.0
_NEEDED = ("segment_input", "decoder_input_ids", "seek", "temperatures", "generation_config", "kwargs")


class WhisperLongForm(LongForm):
    """A recording as Whisper's ``generate()`` processes it.

    Args:
        adapter: The model's `WhisperAdapter`.
        waveform: The recording.
    """

    native = True

    def __init__(self, adapter: Any, waveform: Waveform):
        extractor = adapter.processor.feature_extractor
        self.adapter, self.waveform = adapter, waveform
        self.hop = int(extractor.hop_length)
        self.frame_s = self.hop / extractor.sampling_rate
        self._folder = tempfile.TemporaryDirectory(prefix="spes_hf-")
        self.features = log_mel(extractor, waveform.samples, Path(self._folder.name, "features"))
        self.frames = self.features.shape[1]

    def write(
        self, options: GenerationOptions, until_s: float | None = None, progress: Progress = unseen
    ) -> list[Window]:
        """Generate the output, and return the windows that the model processed.

        Raises:
            ConfigError: If ``generate()`` refuses the options.
            UnsupportedModelError: If the windows cannot be observed in the installed transformers.
        """
        adapter = self.adapter
        _check_fallback(adapter, options)
        end, size = self.frames, adapter.window_frames
        if until_s is not None:  # windows that start before it read the same frames as in the whole recording
            end = min(end, max(round(until_s / self.frame_s), 1) + size)
        features = torch.from_numpy(self.features)[None, :, :end].to(adapter.device, adapter.dtype)
        given: dict[str, Any] = {}
        if end > size and "return_timestamps" not in options.generate_kwargs:
            given["return_timestamps"] = True  # without timestamps, generate() refuses audio longer than a window
        if "monitor_progress" in inspect.signature(adapter.model.generate).parameters:
            given["monitor_progress"] = lambda done: progress(float(done[0, 0]) * self.frame_s)
        with _recorded(adapter.model, features) as seen, quiet_thread():
            output = adapter.call_generate({"input_features": features}, options, **given)
        segments = output["segments"][0] if isinstance(output, dict) and "segments" in output else None
        kept = 0 if segments is None else sum(len(segment["tokens"]) for segment in segments)
        starts = [each.start for each in seen[1:]] + [end]
        windows = [self._window(each, until, segments) for each, until in zip(seen, starts, strict=True)]
        if segments is not None and kept != sum(
            segment.stop - segment.first for w in windows for segment in w.segments
        ):
            raise _unknown("which tokens of the windows it kept")
        return windows

    def _window(self, seen: _Seen, until: int, segments: list[dict[str, Any]] | None) -> Window:
        """Return a window with the tokens that were kept."""
        tokens, ended = seen.tokens, seen.ended
        own = [] if segments is None else [segment for segment in segments if segment["result"] is seen.result]
        kept, found = 0, []
        for segment in own:
            first, kept = kept, kept + len(segment["tokens"])
            if tokens[first:kept] != segment["tokens"].tolist():
                raise _unknown("which tokens a segment contains")
            found.append(Segment(float(segment["start"]), float(segment["end"]), first, kept))
        if segments is None:  # no timestamps: everything was kept
            kept = len(tokens)
        whole = kept == len(tokens) and not seen.skipped
        return Window(
            start=seen.start,
            frames=seen.frames,
            until=until,
            prefix_ids=tuple(seen.prefix),
            token_ids=tuple([*tokens[:kept], *seen.end] if whole else tokens[:kept]),
            complete=ended or not whole,
            discarded=len(tokens) - kept,
            segments=tuple(found),
            temperature=seen.temperature,
            attempts=seen.attempts,
            skipped=seen.skipped,
        )

    def utterance(self, window: Window) -> Utterance:
        """Return a window as the model read it, with times relative to the recording."""
        first, stop = window.start, window.start + window.frames
        features = torch.from_numpy(np.ascontiguousarray(self.features[:, first:stop].T))
        samples = np.asarray(self.waveform.samples[first * self.hop : stop * self.hop], dtype=np.float32)
        waveform = Waveform(samples, self.waveform.sampling_rate, self.waveform.source, self.waveform.notes)
        return self.adapter.window_utterance(waveform, features, first * self.frame_s)


@dataclass(frozen=True)
class _Seen:
    """What one window of ``generate()`` read and wrote.

    Attributes:
        start: Index of its first frame.
        frames: Number of frames that it read.
        prefix: Decoder inputs before the first token that the model chose.
        tokens: Tokens that it wrote, without the end-of-sequence token.
        end: The end-of-sequence token, if the model wrote one; else empty.
        skipped: Whether it was classified as silence.
        temperature: Sampling temperature.
        attempts: Number of temperatures tried.
        result: The object to which ``generate()`` refers in the segments of this window.
    """

    start: int
    frames: int
    prefix: list[int]
    tokens: list[int]
    end: list[int]
    skipped: bool
    temperature: float
    attempts: int
    result: Any

    @property
    def ended(self) -> bool:
        """Whether the model ended the output itself."""
        return bool(self.end)


@contextmanager
def _recorded(model: Any, features: Tensor) -> Iterator[list[_Seen]]:
    """Yield a list that collects every window that ``generate()`` processes meanwhile.

    ``generate()`` calls ``generate_with_fallback()`` for each window, with its features and start tokens. The features
    are compared with those of the recording, so that windows are never confused.

    Args:
        model: The model.
        features: (1, C, T) features of the recording, as ``generate()`` gets them.

    Raises:
        UnsupportedModelError: If there is no such method, or its arguments or results are different.
    """
    original = getattr(model, "generate_with_fallback", None)
    if original is None:
        raise _unknown("its windows: the method generate_with_fallback is missing")
    signature, seen = inspect.signature(original), list[_Seen]()
    missing = [name for name in _NEEDED if name not in signature.parameters]
    if missing:
        raise _unknown(f"its windows: generate_with_fallback takes no {', '.join(missing)}")

    def record(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        read, prefix, start = given["segment_input"], given["decoder_input_ids"], int(given["seek"][0])
        frames = min(features.shape[2] - start, read.shape[2])
        expected = pad(features[:, :, start : start + frames], (0, read.shape[2] - frames))
        if prefix.shape[0] != 1 or not torch.equal(expected, read):
            raise _unknown("which part of the recording a window reads")
        mask = given["kwargs"].get("decoder_attention_mask")
        if mask is not None and not bool(mask.all()):
            raise _unknown("the output of a window with a padded prefix (leave cache_implementation out)")
        with alone():  # it may sample
            found = original(*args, **kwargs)
        tokens, results, skipped, *_ = found
        config = given["generation_config"]
        written = results[0]["sequences"][prefix.shape[1] :].tolist() if isinstance(results[0], dict) else None
        own = tokens[0].tolist()
        if written is None or written[: len(own)] != own:
            raise _unknown("what a window wrote")
        ends = config.eos_token_id
        ends = ends if isinstance(ends, (list, tuple)) else [ends]
        after = [token for token in written[len(own) : len(own) + 1] if token in ends]
        results[0].pop("scores", None)  # vocabulary-sized for every token, and otherwise kept to the end
        temperature = float(config.temperature) if config.do_sample else 0.0
        tried = [0.0 if t is None else float(t) for t in given["temperatures"]]
        attempts = tried.index(temperature) + 1 if temperature in tried else len(tried)
        seen.append(
            _Seen(start, frames, prefix[0].tolist(), own, after, bool(skipped[0]), temperature, attempts, results[0])
        )
        return found

    before = vars(model).get("generate_with_fallback")
    model.generate_with_fallback = record
    try:
        yield seen
    finally:
        if before is None:
            del model.generate_with_fallback
        else:
            model.generate_with_fallback = before


def _check_fallback(adapter: Any, options: GenerationOptions) -> None:
    """Refuse thresholds with which ``generate()`` would fail: thresholds on log-probabilities need a temperature.

    Raises:
        ConfigError: If the temperature, or the threshold that another one needs, is missing.
    """
    given, config = options.generate_kwargs, adapter.model.generation_config
    logprob, no_speech = (
        given.get(name, getattr(config, name, None)) for name in ("logprob_threshold", "no_speech_threshold")
    )
    if (logprob is not None or no_speech is not None) and given.get("temperature") is None:
        raise ConfigError(
            f"logprob_threshold is {logprob!r} and no_speech_threshold is {no_speech!r}, which need a temperature, but "
            "generate_kwargs has none; pass temperature=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0)"
        )
    if no_speech is not None and logprob is None:
        raise ConfigError(
            f"no_speech_threshold is {no_speech!r}, which needs a logprob_threshold, but there is none; pass "
            "logprob_threshold=-1.0"
        )


def _unknown(what: str) -> UnsupportedModelError:
    from transformers import __version__

    return UnsupportedModelError(
        f"generate() of transformers {__version__} does not reveal {what}; explain recordings with transformers 5.0 to "
        '5.24, or pass segment="pauses"'
    )


def log_mel(extractor: Any, samples: Any, path: Path) -> np.ndarray:
    """Return the features of a recording, (C, T) float32, in a file: at most a minute of it is in memory at once.

    The extractor computes them chunk by chunk, with the neighbouring samples that the Fourier transform needs. Then
    values far below the maximum of the whole recording are raised to the floor that it sets. Up to rounding, the result
    equals one call of the extractor.

    Args:
        extractor: Whisper's feature extractor.
        samples: (N,) the recording; slices of it are read.
        path: File to write.
    """
    hop, bins = int(extractor.hop_length), int(extractor.feature_size)
    frames = len(samples) // hop
    found = np.memmap(path, dtype=np.float32, mode="w+", shape=(bins, frames))
    size = frames if getattr(extractor, "do_normalize", False) else _CHUNK  # normalising needs all samples at once
    highest = -np.inf
    edges = [*range(0, max(frames - _MARGIN, 1), max(size, 1)), frames]
    for first, stop in zip(edges, edges[1:], strict=False):
        before = min(first, _MARGIN)
        end = len(samples) if stop == frames else (stop + _MARGIN) * hop
        chunk = np.asarray(samples[(first - before) * hop : end], dtype=np.float32)
        made = extractor(
            chunk, sampling_rate=extractor.sampling_rate, padding="longest", truncation=False, return_tensors="np"
        ).input_features[0]
        found[:, first:stop] = made[:, before : before + stop - first]
        highest = max(highest, float(found[:, first:stop].max()))
    for first, stop in zip(edges, edges[1:], strict=False):
        np.maximum(found[:, first:stop], np.float32(highest - _FLOOR), out=found[:, first:stop])
    return found

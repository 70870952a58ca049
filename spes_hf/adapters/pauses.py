"""Recordings cut into independent utterances: where speech pauses, or where a family's processor cuts them."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from spes_hf.adapters.base import Adapter
from spes_hf.adapters.types import GenerationOptions, Utterance
from spes_hf.adapters.windows import LongForm, Progress, Segment, Window, unseen
from spes_hf.audio.load import Waveform
from spes_hf.audio.pauses import cut_at_pauses
from spes_hf.errors import AudioError
from spes_hf.runtime.locks import alone

# If the model has no limit of its own.
LONGEST_S = 30.0


class StretchLongForm(LongForm):
    """A recording cut into independent stretches. Its frames are samples.

    Args:
        adapter: The model's adapter.
        waveform: The recording.
    """

    def __init__(self, adapter: Adapter, waveform: Waveform):
        self.adapter, self.waveform = adapter, waveform
        self.frame_s = 1 / waveform.sampling_rate
        self.frames = len(waveform.samples)

    @abstractmethod
    def stretches(self) -> list[tuple[int, int]]:
        """Return where utterances start and end, in samples."""

    def write(
        self, options: GenerationOptions, until_s: float | None = None, progress: Progress = unseen
    ) -> list[Window]:
        """Generate the output of every utterance."""
        stretches = self.stretches()
        windows = []
        nexts = [*(start for start, _ in stretches[1:]), self.frames]
        for (start, stop), until in zip(stretches, nexts, strict=True):
            if until_s is not None and start * self.frame_s >= until_s:
                break
            progress(start * self.frame_s)
            try:
                with alone():
                    utterance = self._encoded(start, stop)
            except AudioError as error:
                if not error.silent:
                    raise
                windows.append(Window(start, stop - start, until, skipped=True))
                continue
            target = self.adapter.generate(utterance, options)
            tokens = tuple(target.token_ids.tolist())
            whole = Segment(start * self.frame_s, stop * self.frame_s, 0, len(tokens))
            windows.append(
                Window(
                    start=start,
                    frames=stop - start,
                    until=until,
                    prefix_ids=tuple(target.prefix_ids.tolist()),
                    token_ids=tokens,
                    complete=target.complete,
                    audio_at=target.audio_at,
                    instruction=target.instruction,
                    segments=(whole,),
                )
            )
        return windows

    def utterance(self, window: Window) -> Utterance:
        """Return an utterance as the model reads it, with times relative to the recording."""
        return self._encoded(window.start, window.start + window.frames)

    def _encoded(self, start: int, stop: int) -> Utterance:
        samples = np.asarray(self.waveform.samples[start:stop], dtype=np.float32)
        part = Waveform(samples, self.waveform.sampling_rate, self.waveform.source, self.waveform.notes)
        return self.adapter.encode(part).moved(start * self.frame_s)


class PauseLongForm(StretchLongForm):
    """A recording cut where speech pauses, for models without a long form."""

    native = False

    def stretches(self) -> list[tuple[int, int]]:
        """Return where utterances start and end, in samples; pauses between them are left out."""
        longest_s = self.adapter.longest_s or LONGEST_S
        return cut_at_pauses(self.waveform.samples, self.waveform.sampling_rate, longest_s)

"""Shared code of metrics that fill some features and run the model on the rest."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from spes_hf.adapters import Utterance, get_adapter
from spes_hf.audio.load import Waveform
from spes_hf.checks import is_number
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.masking.perturbations import Fill
from spes_hf.metrics.rows import ExplanationMetric
from spes_hf.runtime.batching import BatchSize, FoundSizes, check_batch_size, enough_memory, found_sizes_of
from spes_hf.runtime.locks import alone
from spes_hf.runtime.precision import check_autocast, precision_of
from spes_hf.runtime.preserve import leave_unchanged


class PerturbingMetric(ExplanationMetric, ABC):
    """A transform that fills some features and runs the model on the rest.

    Args:
        model: The model that was explained; left exactly as it was.
        processor: Its processor.
        fill: Value of deleted features: "mean" (of each mel bin over the utterance), "zero", "min" or a number.
        batch_size: Perturbed copies at once; "auto" or None: found automatically, and remembered.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If an argument has a value that is not allowed.
    """

    def __init__(self, model: Any, processor: Any, fill: Fill, batch_size: BatchSize):
        self.adapter = get_adapter(model, processor)
        self.fill = fill.item() if isinstance(fill, np.generic) else fill
        self.batch_size = check_batch_size(batch_size)
        self.found_sizes: FoundSizes = FoundSizes()
        if not is_number(fill) and fill not in ("mean", "zero", "min"):
            raise ConfigError(f'fill is {fill!r}; allowed: "mean", "zero", "min" or a finite number')

    @property
    def running_model(self) -> Any:
        """The model that is run."""
        return self.adapter.model

    @property
    def sizes(self) -> FoundSizes:
        """The batch sizes found to fit: shared by all calls of the model, or the metric's own if a size is given."""
        return self.found_sizes if self.batch_size else found_sizes_of(self.adapter, self.adapter.dtype)

    @contextmanager
    def running(self, explanation: Explanation) -> Iterator[None]:
        """Run the model in the precision of the explanation, including autocast, and leave it as it was.

        Args:
            explanation: Explanation of the model's output.

        Raises:
            ConfigError: If the explanation names an unknown dtype for autocast.
            OutOfMemoryError: If not even one copy fits.
        """
        what = f"model with audio of {len(explanation.waveform) / explanation.sampling_rate:.1f} s"
        autocast = check_autocast(explanation.origin.model.get("autocast"))
        device = self.adapter.device
        with (
            leave_unchanged(self.adapter.model, device=device),
            enough_memory(what),
            precision_of(autocast, device.type),
        ):
            yield

    def utterance_of(self, explanation: Explanation) -> Utterance:
        """Return the model's input in the clean run.

        Raises:
            ConfigError: If the processor now makes features of another shape from the sound.
        """
        waveform = Waveform(explanation.waveform.numpy(), explanation.sampling_rate, "explanation")
        with alone(), torch.autocast("cpu", enabled=False):
            return self.adapter.utterance_again(waveform, explanation.features, explanation.origin.in_recording)

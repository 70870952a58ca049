"""What the metrics share that fill features and run the model on what is left."""

from __future__ import annotations

from abc import ABC
from typing import Any

import numpy as np

from spes_hf.adapters import Utterance, get_adapter
from spes_hf.audio.load import Waveform
from spes_hf.checks import is_number
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.masking.perturbations import Fill
from spes_hf.metrics.rows import ExplanationMetric
from spes_hf.runtime.batching import FoundSizes, check_batch_size
from spes_hf.runtime.locks import alone


class PerturbingMetric(ExplanationMetric, ABC):
    """A transform that fills features and runs the model on what is left.

    Args:
        model: The model that was explained; left exactly as it was.
        processor: Its processor.
        fill: What deleted features become: "mean" (of each mel bin over the utterance), "zero", "min" or a number.
        batch_size: Perturbed copies at once; None: found automatically.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If an argument has a value outside what is allowed.
    """

    def __init__(self, model: Any, processor: Any, fill: Fill, batch_size: int | None):
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

    def utterance_of(self, explanation: Explanation) -> Utterance:
        """Return what the model heard in the clean run.

        Raises:
            ConfigError: If the processor makes features of another shape of the sound.
        """
        waveform = Waveform(explanation.waveform.numpy(), explanation.sampling_rate, "explanation")
        with alone():
            return self.adapter.utterance_again(waveform, explanation.features, explanation.origin.in_recording)

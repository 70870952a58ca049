"""What the metrics share that perturb the sound and let the model write again."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

from spes_hf.adapters import GenerationOptions
from spes_hf.masking.perturbations import Fill
from spes_hf.metrics.perturbing import PerturbingMetric


class RewritingMetric(PerturbingMetric, ABC):
    """A transform that fills features and lets the model write again.

    Args:
        model: The model that was explained; left exactly as it was.
        processor: Its processor.
        fill: What deleted features become: "mean" (of each mel bin over the utterance), "zero", "min" or a number.
        generate_kwargs: Arguments of ``model.generate()``; None for those of the explanation.
        batch_size: Perturbed copies at once; None: found automatically.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If an argument has a value outside what is allowed.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        fill: Fill,
        generate_kwargs: Mapping[str, Any] | None,
        batch_size: int | None,
    ):
        super().__init__(model, processor, fill, batch_size)
        self.generate_kwargs = None
        if generate_kwargs is not None:
            self.generate_kwargs = dict(GenerationOptions(generate_kwargs=generate_kwargs).generate_kwargs)

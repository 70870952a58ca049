"""Shared code of metrics that perturb the sound and let the model write again."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any

from spes_hf.adapters import GenerationOptions, Utterance
from spes_hf.masking.perturbations import Fill
from spes_hf.metrics.perturbing import PerturbingMetric
from spes_hf.runtime.batching import Batch, BatchSize, starting_batch_size


class RewritingMetric(PerturbingMetric, ABC):
    """A transform that fills features and lets the model write again.

    Args:
        model: The model that was explained; left exactly as it was.
        processor: Its processor.
        fill: Value of deleted features: "mean" (of each mel bin over the utterance), "zero", "min" or a number.
        generate_kwargs: Arguments of ``model.generate()``; None for those of the explanation.
        batch_size: Maximum number of perturbed copies at once; "auto" or None: found automatically, and remembered.
            Beam search keeps ``num_beams`` of each. If outputs of a batch could influence each other, as in sampling,
            copies run one at a time.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If an argument has a value that is not allowed.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        fill: Fill,
        generate_kwargs: Mapping[str, Any] | None,
        batch_size: BatchSize,
    ):
        super().__init__(model, processor, fill, batch_size)
        self.generate_kwargs = None
        if generate_kwargs is not None:
            self.generate_kwargs = dict(GenerationOptions(generate_kwargs=generate_kwargs).generate_kwargs)

    def batch_of_copies(
        self, utterance: Utterance, logits: tuple[int, int], options: GenerationOptions | None
    ) -> Batch:
        """Return the batch size for perturbed copies of an utterance.

        Args:
            utterance: The model's input.
            logits: (K, V), the shape of the logits of a copy: tokens, vocabulary.
            options: Generation settings; None if nothing is generated.
        """
        adapter = self.adapter
        beams = 1 if options is None else adapter.num_beams(options)
        found = starting_batch_size(logits[0] * logits[1], adapter.device, utterance.inputs) // beams
        size = max(1, found) if self.batch_size is None else self.batch_size
        if options is not None and not adapter.generates_in_batches(options):
            size = 1  # so that nothing is sampled twice after memory runs out
        return Batch(size, self.key, (*utterance.features.shape, *logits, beams), self.sizes)

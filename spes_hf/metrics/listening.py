"""Listening back: what the model writes for the salient part of a recording alone, and for the rest."""

from __future__ import annotations

from typing import Any

import torch

from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.explanation.listening import HeardBack, check_top
from spes_hf.functional import deletion_masks
from spes_hf.masking.perturbations import fill_values
from spes_hf.metrics.deletion import Insertion, generation_options
from spes_hf.metrics.rows import check_map, check_model


def listen_back(model: Any, processor: Any, explanation: Explanation, top: float = 0.2) -> HeardBack:
    """Return the model's texts for the sound that `Explanation.listen` keeps for the sentence, and for the rest.

    Hidden features take the mean of their mel bin, as in `Insertion` and `Deletion`, so the texts equal theirs at this
    share. Where you hear silence, the model hears this mean: complete silence is far from its training data, and would
    change what it writes.

    Costs two calls of ``generate()``, with the settings of the explanation.

    Args:
        model: The model that was explained; left exactly as it was.
        processor: Its processor.
        explanation: Explanation over tokens or words.
        top: Share of the cells to keep, as for `Explanation.listen`.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If ``top`` is not a number in [0, 1], or the explanation has a foil or is of another model.

    Examples:
        >>> listen_back(model, processor, ex, top=1.0).kept  # all of the sound
        'Tom sells a small picture.'
    """
    top = check_top(top)
    metric = Insertion(model, processor)
    adapter = metric.adapter
    if explanation.contrasts is not None:
        raise ConfigError(
            f"explanation of {explanation.text!r} has a foil, so its maps show contrasts, not the text; explain it "
            "without foil"
        )
    check_model(adapter.model, explanation)
    options = generation_options(explanation, adapter)
    adapter.check_options(options)
    (rest,) = deletion_masks(check_map(explanation.sentence_saliency, explanation, "sentence_saliency"), [top])
    features = explanation.features
    fill = fill_values(metric.fill, features)
    with metric.running(explanation):
        utterance = metric.utterance_of(explanation)
        targets = [adapter.generate(utterance, options, torch.where(keep, features, fill)) for keep in (~rest, rest)]
    kept, others = (adapter.text(target.token_ids) for target in targets)
    return HeardBack(top, kept, others, explanation)

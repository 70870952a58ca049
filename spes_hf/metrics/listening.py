"""The model listens back: what it writes for the salient part of a recording alone, and for the rest."""

from __future__ import annotations

from typing import Any

import torch

from spes_hf.adapters import get_adapter
from spes_hf.audio.load import Waveform
from spes_hf.explanation import Explanation
from spes_hf.explanation.listening import HeardBack, Sound, check_top
from spes_hf.metrics.deletion import generation_options
from spes_hf.metrics.rows import check_model
from spes_hf.runtime.locks import alone
from spes_hf.runtime.precision import check_autocast, precision_of
from spes_hf.runtime.preserve import leave_unchanged


def listen_back(model: Any, processor: Any, explanation: Explanation, top: float = 0.2) -> HeardBack:
    """Return what the model writes for what `Explanation.listen` keeps for the sentence, and for the rest.

    Costs two calls of ``generate()``, with the settings of the explanation. The model hears the sound that you hear,
    from which its processor makes new features: what is hidden is silent. `Insertion` and `Deletion` hide the same
    cells at the mean instead, in many steps; use them to compare methods.

    Args:
        model: The model that was explained; left exactly as it was.
        processor: Its processor.
        explanation: Over tokens or words.
        top: Share of the cells to keep, as for `Explanation.listen`.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        AudioError: If the family cannot read a part, such as one of silence.
        ConfigError: If ``top`` is no number in [0, 1], or the explanation is of another model or has no samples.

    Examples:
        >>> heard = listen_back(model, processor, explanation)  # doctest: +SKIP
        >>> explanation.to_html("page.html", heard)  # doctest: +SKIP
    """
    top = check_top(top)
    adapter = get_adapter(model, processor)
    check_model(adapter.model, explanation)
    options = generation_options(explanation, adapter)
    adapter.check_options(options)
    autocast = check_autocast(explanation.origin.model.get("autocast"))

    def written(sound: Sound) -> str:
        with alone(), torch.autocast("cpu", enabled=False):
            utterance = adapter.encode(Waveform(sound.samples, sound.rate, "explanation"))
        return adapter.text(adapter.generate(utterance, options).token_ids)

    with leave_unchanged(adapter.model, device=adapter.device), precision_of(autocast, adapter.device.type):
        kept, rest = (written(explanation.listen(top=top, complement=other)) for other in (False, True))
    return HeardBack(top, kept, rest)

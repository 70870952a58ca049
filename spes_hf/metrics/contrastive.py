"""Contrastive deletion: does the model write the foil when the target's evidence is gone? (Conti et al., 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from spes_hf.adapters import GenerationOptions, Target, Utterance
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.functional import deletion_masks
from spes_hf.masking.perturbations import Fill, fill_values
from spes_hf.metrics.deletion import generation_options
from spes_hf.metrics.rewriting import RewritingMetric
from spes_hf.metrics.rows import (
    Row,
    check_map,
    check_maps,
    check_model,
    method_signature,
)
from spes_hf.metrics.written import Continuation, Written, text_of, written_in
from spes_hf.runtime.batching import BatchSize
from spes_hf.scoring.contrast import Contrast, ContrastReader
from spes_hf.scoring.foils import Words

CONTRASTIVE_FRACTIONS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2)


class ContrastiveDeletion(RewritingMetric):
    """Deletes the strongest evidence for the target first, at "contrastive_deletion" (Conti et al., 2509.26543, §5).

    For every contrast and fraction s, the first ⌊T·C·s⌋ features of the contrast's signed map (`Explanation.evidence`)
    take the fill value, and the model writes again at that place: the target, the foil, or something else. A good
    contrastive map makes it write the foil. `spes_hf.metrics.summarize` turns the rows into corpus rates.

    Args:
        model: The model that was explained; left exactly as it was.
        processor: Its processor.
        fractions: Shares of the features, increasing, in [0, 1].
        fill: Value of deleted features: "mean" (of each mel bin over the utterance), "zero", "min" or a number.
        by: How to find out what the model writes. "continuation": its most probable continuation of the clean text
            before the contrast, up to the end of the word, so that only the place in question can change. "generation":
            the whole output, generated again with the clean run's settings and aligned with the clean output by words;
            costs a whole output for every fraction, and effects of earlier changes count as "other".
        generate_kwargs: Arguments of ``model.generate()`` for "generation"; None for those of the explanation.
        batch_size: Maximum number of perturbed copies at once; "auto" or None: found automatically, and remembered.
            Beam search keeps ``num_beams`` of each. If outputs of a batch could influence each other, as in sampling,
            copies run one at a time.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If an argument has a value that is not allowed.

    Examples:
        >>> foiled = explain(model, processor, clip, foil={"small": "big"}, config=SpesConfig.fast())
        >>> row = ContrastiveDeletion(model, processor)({"explanation": foiled})
        >>> row["contrastive_deletion"]["written"][0][0]  # nothing is deleted yet
        'target'
    """

    key: ClassVar[str] = "contrastive_deletion"

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        fractions: Sequence[float] = CONTRASTIVE_FRACTIONS,
        *,
        fill: Fill = "mean",
        by: Literal["continuation", "generation"] = "continuation",
        generate_kwargs: Mapping[str, Any] | None = None,
        batch_size: BatchSize = None,
    ):
        super().__init__(model, processor, fill, generate_kwargs, batch_size)
        self.fractions = check_shares(fractions)
        self.by = by
        if by not in ("continuation", "generation"):
            raise ConfigError(f'by is {by!r}; allowed: "continuation", "generation"')
        if by == "continuation" and generate_kwargs is not None:
            raise ConfigError(
                f'generate_kwargs is {generate_kwargs!r}, which has no effect with by="continuation"; leave it out'
            )

    def columns(self) -> dict[str, Any]:
        """Return the columns that the transform adds, as `datasets` feature types."""
        from datasets import List, Value

        number, text = Value("float64"), Value("string")
        entry = {
            "fractions": List(number),
            "contrasts": List(text),
            "written": List(List(text)),
            "clean": List(text),
            "log_odds": List(List(number)),
            **dict.fromkeys(("prediction", "by", "fill", "method"), text),
        }
        return {self.key: entry}

    def __call__(self, row: Row | Explanation, saliency: Any = None) -> dict[str, Any]:
        """Return the row with what the model writes for every contrast at every fraction.

        The entry has "fractions" (S); for the K contrasts, "contrasts" (their names), "written" (K, S) and "clean" (K),
        each "target", "foil" or "other", and "log_odds" (K, S), in bits, of target against foil.

        Args:
            row: An explanation with contrasts, or a row with one, or with the folder of one, at "explanation". A row
                with an "error" gets None.
            saliency: Maps to rank the features by, (K, T, C), or one for all contrasts, (T, C); None: the contrasts'
                own maps. A whole number is the rank of a worker, which ``Dataset.map(…, with_rank=True)`` passes here.

        Raises:
            ConfigError: If the explanation is missing, has no contrasts or is of another model, or maps do not fit it.
        """
        return self.entry_of_row(row, saliency)

    def of_explanation(self, explanation: Explanation, saliency: Any) -> dict[str, Any]:
        """Return the entry of an explanation over tokens."""
        contrasts = contrasts_in(explanation)
        check_model(self.adapter.model, explanation)
        check_map(explanation.features, explanation, "features")
        if saliency is None:
            maps = [check_map(explanation.evidence(k), explanation, "evidence") for k in range(len(contrasts))]
            method = method_signature(explanation)
        else:
            maps, method = check_maps(saliency, explanation, len(contrasts), "contrasts"), "custom"
        with self.running(explanation):
            scene = self._scene(explanation)
            found = [self._measure(scene, contrast, each) for contrast, each in zip(contrasts, maps, strict=True)]
        return {
            "fractions": list(self.fractions),
            "contrasts": [contrast.name for contrast in contrasts],
            "written": [written[1:] for written, _ in found],
            "clean": [written[0] for written, _ in found],
            "log_odds": [odds[1:] for _, odds in found],
            "prediction": explanation.text,
            "by": self.by,
            "fill": str(self.fill),
            "method": method,
        }

    def _scene(self, explanation: Explanation) -> _Scene:
        """Return what all contrasts of an explanation share."""
        adapter = self.adapter
        utterance = self.utterance_of(explanation)
        text = text_of(explanation, adapter)
        probability = str(explanation.origin.config.get("word_probability", "word-boundary"))
        scene = _Scene(utterance, text, ContrastReader(adapter, utterance, text, (), probability))
        if self.by == "generation":
            scene.options = generation_options(explanation, adapter, self.generate_kwargs)
            adapter.check_options(scene.options)
        return scene

    def _measure(self, scene: _Scene, contrast: Contrast, saliency: Tensor) -> tuple[list[Written], list[float]]:
        """Return what the model writes for clean features and at every fraction, and the log-odds in bits."""
        adapter, clean = self.adapter, scene.utterance.features
        # Clean features come first, to find contrasts with a target that the model does not write to begin with.
        masks = deletion_masks(saliency, (0.0, *self.fractions))
        fill = fill_values(self.fill, clean)
        scene.reader.contrasts = (contrast,)
        written: list[Written] = []
        odds: list[float] = []

        def measure(rows: range) -> None:
            features = torch.where(masks[rows.start : rows.stop], clean, fill)
            if scene.options is None:
                with torch.no_grad():
                    states = adapter.encoder_states(adapter.model_inputs(scene.utterance, features.to(adapter.device)))
                new = Continuation(adapter, scene.utterance, scene.text).written(contrast, states)
            else:
                outputs, states = adapter.generate_each(scene.utterance, scene.options, features)
                new = [self._at_target(scene, contrast, output) for output in outputs]
            scene.reader.states = states
            with torch.no_grad():
                bits = scene.reader.odds().bits[:, 0].tolist()
            odds.extend(bits)
            written.extend(new)

        batch = self.batch_of_copies(scene.utterance, scene.reader.logits_shape, scene.options)
        for _ in batch.over(range(len(masks)), measure):
            pass
        return written, odds

    def _at_target(self, scene: _Scene, contrast: Contrast, new: Target) -> Written:
        """Return what a whole new output has at the place of the target."""
        before = Words.of(self.adapter, scene.text.token_ids)
        return written_in(before, Words.of(self.adapter, new.token_ids), contrast)


@dataclass
class _Scene:
    """What all contrasts of an explanation share.

    Attributes:
        utterance: The model's input.
        text: The model's output.
        reader: Measures the log-odds of a contrast.
        options: Generation settings; None to continue the text instead.
    """

    utterance: Utterance
    text: Target
    reader: ContrastReader
    options: GenerationOptions | None = None


def contrasts_in(explanation: Explanation) -> tuple[Contrast, ...]:
    """Return the contrasts of an explanation.

    Raises:
        ConfigError: If it has none.
    """
    if not explanation.contrasts:
        raise ConfigError(
            f"explanation of {explanation.text!r} has no contrasts; pass a foil to explain(), such as "
            'foil={"country": "county"}'
        )
    return explanation.contrasts


def target_maps(plain: Explanation, contrasts: Sequence[Contrast]) -> Tensor:
    """Return the maps of the targets' own words in an explanation without a foil, (C, T, C'), for comparison.

    A map is the mean over the tokens of the target, after both normalisations, as in `Explanation.words`.

    Args:
        plain: Explanation of the same output without a foil.
        contrasts: Contrasts of the explanation with a foil; their order is kept.

    Raises:
        ConfigError: If the explanation has a foil itself, or is of another output.

    Examples:
        >>> why = explain(model, processor, clip, config=SpesConfig.fast(), foil={"picture": "garden"})
        >>> maps = target_maps(ex, why.contrasts)
        >>> bool((maps[0] == ex.words().audio_saliency[4]).all())  # of "picture"
        True
    """
    if plain.contrasts is not None:
        raise ConfigError("plain has contrasts; pass an explanation of the same output without foil")
    found = []
    for contrast in contrasts:
        at = contrast.tokens or tuple(range(contrast.start, contrast.start + len(contrast.target_ids)))
        ids = [plain.token_id_list[k] for k in at if k < len(plain.token_id_list)]
        if not ids or not set(ids) <= set(contrast.target_ids):
            raise ConfigError(
                f"plain explains {plain.text!r}, which has no {contrast.target!r} at token {at[0]}; pass an "
                "explanation of the same output"
            )
        over_tokens = replace(plain, groups=None, context_groups=None) if plain.over_words else plain
        found.append(over_tokens.audio_saliency[list(at)].mean(0))
    return torch.stack(found)


def check_shares(fractions: Any) -> tuple[float, ...]:
    """Return the fractions as a tuple.

    Raises:
        ConfigError: If they are not increasing numbers in [0, 1].
    """
    try:
        values = () if isinstance(fractions, str) else tuple(float(s) for s in fractions)
    except (TypeError, ValueError):
        values = ()
    increasing = all(a < b for a, b in zip(values, values[1:], strict=False))
    if not values or not increasing or not all(0 <= s <= 1 for s in values):
        raise ConfigError(
            f"fractions is {fractions!r}; allowed: one or more increasing numbers in [0, 1] (5 % is 0.05)"
        )
    return values

"""Deletion and insertion: what the model writes as the most salient features are deleted, or put back (§5)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from spes_hf.adapters import Adapter, GenerationOptions, Target, Utterance
from spes_hf.adapters.types import OPTIONS
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.explanation.recording import Recording
from spes_hf.finite import check_logits
from spes_hf.functional import deletion_masks
from spes_hf.masking.perturbations import Fill, fill_values
from spes_hf.metrics.rewriting import RewritingMetric
from spes_hf.metrics.rows import (
    Row,
    check_map,
    check_model,
    method_signature,
)
from spes_hf.plain import from_plain, is_lost
from spes_hf.runtime.batching import BatchSize

PAPER_FRACTIONS = tuple(step / 20 for step in range(21))
FINE_FRACTIONS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, *PAPER_FRACTIONS[2:])


class _Curve(RewritingMetric):
    """Perturbs a growing share of the features and lets the model write again.

    The class is a map-style transform: an instance takes a row, returns it with one more entry, and is picklable.
    `spes_hf.metrics.summarize` turns the rows into corpus scores.
    """

    key: ClassVar[str]

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        fractions: Literal["paper", "fine"] | Sequence[float] = "paper",
        *,
        fill: Fill = "mean",
        against: Literal["reference", "prediction"] = "reference",
        generate_kwargs: Mapping[str, Any] | None = None,
        batch_size: BatchSize = None,
    ):
        super().__init__(model, processor, fill, generate_kwargs, batch_size)
        self.fractions = check_fractions(fractions)
        self.against = against
        if against not in ("reference", "prediction"):
            raise ConfigError(f'against is {against!r}; allowed: "reference", "prediction"')

    def columns(self) -> dict[str, Any]:
        """Return the columns that the transform adds, as `datasets` feature types."""
        from datasets import List, Value

        numbers, text = List(Value("float64")), Value("string")
        entry = {"fractions": numbers, "texts": List(text), "token_probability": numbers}
        return {self.key: {**entry, **dict.fromkeys(("prediction", "against", "fill", "method"), text)}}

    @abstractmethod
    def keep(self, saliency: Tensor) -> Tensor:
        """Return the masks of all fractions, (S, T, C) bool, for a map (T, C); True = keep."""

    def __call__(self, row: Row | Explanation | Recording, saliency: Any = None) -> dict[str, Any]:
        """Return the row with what the model writes at every fraction, under the name of the metric.

        For a recording, the texts of its windows are joined at every fraction, and the probability is the mean over all
        of its tokens.

        In addition to the texts there is a cheap curve, "token_probability": the mean probability of the tokens of the
        clean output, teacher-forced, at every fraction.

        Args:
            row: An explanation or a recording, or a row with one, or with the folder of one, at "explanation". A row
                with an "error" gets None.
            saliency: (T, C) map to rank the features by; None: the sentence map of the explanation. A whole number is
                the rank of a worker, which ``Dataset.map(…, with_rank=True)`` passes here.

        Raises:
            ConfigError: If the explanation is missing, has a foil or is of another model, or the map does not fit it.
        """
        return self.entry_of_row(row, saliency)

    def of_explanation(self, explanation: Explanation, saliency: Any) -> dict[str, Any]:
        """Return the entry of an explanation over tokens."""
        if explanation.contrasts is not None:
            raise ConfigError(
                f"explanation of {explanation.text!r} has a foil, so its maps show contrasts, not the text; use "
                "ContrastiveDeletion, or explain it without foil"
            )
        check_model(self.adapter.model, explanation)
        check_map(explanation.features, explanation, "features")
        if saliency is None:
            ranking = check_map(explanation.sentence_saliency, explanation, "sentence_saliency")
            method = f"{method_signature(explanation)}|map:{explanation.sentence_kind}"
        else:
            ranking, method = check_map(saliency, explanation, "saliency"), "custom"
        options = generation_options(explanation, self.adapter, self.generate_kwargs)
        self.adapter.check_options(options)
        with self.running(explanation):
            found = self._measure(explanation, options, self.keep(ranking))
        return {
            "fractions": list(self.fractions),
            **found,
            "against": self.against,
            "fill": str(self.fill),
            "method": method,
        }

    def of_recording(self, recording: Recording, saliency: Any) -> dict[str, Any] | None:
        """Return the entry of a recording, from the entries of its windows; None if the model wrote nothing.

        Raises:
            ConfigError: If a map is given.
        """
        if saliency is not None:
            raise ConfigError(
                "saliency is not allowed with a recording, since its windows have their own maps; leave it out"
            )
        found = [(self(explanation)[self.key], len(explanation.written_ids)) for explanation in recording]
        if not found:
            return None
        entries, counts = [entry for entry, _ in found], [count for _, count in found]
        steps = range(len(self.fractions))
        means = [sum(e["token_probability"][s] * n for e, n in found) / sum(counts) for s in steps]
        return {
            **entries[0],
            "texts": [" ".join(e["texts"][s].strip() for e in entries).strip() for s in steps],
            "token_probability": means,
            "prediction": " ".join(e["prediction"].strip() for e in entries).strip(),
        }

    def _measure(self, explanation: Explanation, options: GenerationOptions, keep: Tensor) -> dict[str, Any]:
        """Return texts and probabilities under these masks, (S, T, C), and the text of the clean run."""
        adapter = self.adapter
        utterance = self.utterance_of(explanation)
        target = clean_target(explanation, adapter, utterance, options)
        clean, fill = explanation.features, fill_values(self.fill, explanation.features)

        # In a window of a recording, the model writes more than is explained: the next window covers the rest.
        other = explanation.text_given or self.generate_kwargs is not None or explanation.origin.in_recording
        prediction = explanation.text
        if other:
            prediction = adapter.text(adapter.generate(utterance, options, clean).token_ids)

        # With fewer features than steps, some steps change nothing.
        moved = [i == 0 or not torch.equal(mask, keep[i - 1]) for i, mask in enumerate(keep)]
        new = torch.tensor(moved, dtype=torch.bool, device="cpu")
        fresh = keep[new]
        texts: list[str] = []
        means: list[float] = []

        def measure(rows: range) -> None:
            features = torch.where(fresh[rows.start : rows.stop], clean, fill)
            written, states = adapter.generate_each(utterance, options, features)
            means.extend(self._probabilities(utterance, target, states))
            texts.extend(adapter.text(each.token_ids) for each in written)

        batch = self.batch_of_copies(utterance, (len(target.token_ids), adapter.vocabulary_size), options)
        for _ in batch.over(range(len(fresh)), measure):
            pass
        steps = (new.cumsum(0) - 1).tolist()
        return {
            "texts": [texts[step] for step in steps],
            "token_probability": [means[step] for step in steps],
            "prediction": prediction,
        }

    def _probabilities(self, utterance: Utterance, target: Target, heard: Tensor) -> list[float]:
        """Return the mean probability of the explained tokens for every encoder output, (B, frames, D)."""
        ids = target.token_ids.to(self.adapter.device)
        with torch.no_grad():
            logits = self.adapter.logits(utterance, target, states=heard).float()
        check_logits(logits, "logits for a share of the features", self.adapter.dtype)
        probabilities = logits.log_softmax(-1).gather(-1, ids.expand(len(heard), -1).unsqueeze(-1)).exp()
        return probabilities.squeeze(-1).mean(1).tolist()


class Deletion(_Curve):
    """Deletes the most salient features first, at "deletion" (§5).

    For every fraction s, the first ⌊T·C·s⌋ features of the sentence map take the fill value, and the model generates
    again with the settings and the language of the clean run. With a good explanation, the text goes wrong early.

    Args:
        model: The model that was explained; left exactly as it was.
        processor: Its processor.
        fractions: "paper" (0, 5, …, 100 %), "fine" (also 1, 2, 3 and 7.5 %, where most of the change is) or shares of
            the features, increasing, in [0, 1].
        fill: Value of deleted features: "mean" (of each mel bin over the utterance), "zero", "min" or a number.
        against: What `summarize` compares the texts with: the dataset's "reference", or the model's own clean
            "prediction".
        generate_kwargs: Arguments of ``model.generate()``; None for those of the explanation.
        batch_size: Maximum number of perturbed copies at once; "auto" or None: found automatically, and remembered.
            Beam search keeps ``num_beams`` of each. If outputs of a batch could influence each other, as in sampling,
            copies run one at a time.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If an argument has a value that is not allowed.

    Examples:
        >>> row = Deletion(model, processor)({"explanation": ex})
        >>> row["deletion"]["texts"][0]  # nothing is deleted yet
        'Tom sells a small picture.'
    """

    key: ClassVar[str] = "deletion"

    def keep(self, saliency: Tensor) -> Tensor:
        """Return the masks of all fractions, (S, T, C) bool, for a map (T, C); True = keep."""
        return deletion_masks(saliency, self.fractions)


class Insertion(_Curve):
    """Puts the most salient features back first, into a spectrogram of only fill values, at "insertion".

    The mirror image of `Deletion`: for every fraction s, only the first ⌊T·C·s⌋ features of the sentence map are there.
    With a good explanation, the text becomes right early. Takes the arguments of `Deletion`.

    Examples:
        >>> row = Insertion(model, processor)({"explanation": ex})
        >>> row["insertion"]["texts"][-1]  # everything is back
        'Tom sells a small picture.'
    """

    key: ClassVar[str] = "insertion"

    def keep(self, saliency: Tensor) -> Tensor:
        """Return the masks of all fractions, (S, T, C) bool, for a map (T, C); True = keep."""
        return ~deletion_masks(saliency, self.fractions)


def check_fractions(fractions: str | Sequence[float]) -> tuple[float, ...]:
    """Return the fractions with this name, or the given ones as a tuple.

    Raises:
        ConfigError: If the name is unknown, or they are not at least two increasing numbers in [0, 1].
    """
    named = {"paper": PAPER_FRACTIONS, "fine": FINE_FRACTIONS}
    if isinstance(fractions, str) and fractions in named:
        return named[fractions]
    try:
        values = () if isinstance(fractions, str) else tuple(float(s) for s in fractions)
    except (TypeError, ValueError):
        values = ()
    increasing = all(a < b for a, b in zip(values, values[1:], strict=False))
    if len(values) < 2 or not increasing or not all(0 <= s <= 1 for s in values):
        raise ConfigError(
            f'fractions is {fractions!r}; allowed: "paper", "fine", or at least two increasing numbers in [0, 1] '
            "(5 % is 0.05)"
        )
    return values


def generation_options(
    explanation: Explanation, adapter: Adapter, generate_kwargs: Mapping[str, Any] | None = None
) -> GenerationOptions:
    """Return the generation settings of the clean run, with the same start of the output.

    Args:
        explanation: Explanation of the clean run.
        adapter: The model's adapter.
        generate_kwargs: Arguments to use instead of the clean run's.

    Raises:
        ConfigError: If the clean run had arguments that the explanation could not store.
    """
    origin = explanation.origin
    if generate_kwargs is None:
        kept = origin.generate_kwargs
        lost = [name for name, value in kept.items() if is_lost(value, in_words=origin.prefix_ids is None)]
        if lost:
            others = {name: from_plain(value) for name, value in kept.items() if name not in lost}
            wanted = ", ".join([f"{name!r}: …" for name in lost] + [f"{k!r}: {v!r}" for k, v in others.items()])
            raise ConfigError(
                f"the clean run had generate_kwargs that the explanation could not store: {', '.join(lost)}; pass them "
                f"again: generate_kwargs={{{wanted}}}"
            )
        generate_kwargs = from_plain(kept)
    named = {name: getattr(origin, name) for name in OPTIONS}
    options = GenerationOptions(**named, generate_kwargs=dict(generate_kwargs))
    if origin.in_recording:
        return replace(options, prefix=origin.prefix_ids)
    prefix = origin.prefix_ids or adapter.tokenizer.convert_tokens_to_ids(list(origin.prefix))
    return adapter.as_before(options, [token for token in prefix if token is not None], origin.audio_at)


def clean_target(
    explanation: Explanation, adapter: Adapter, utterance: Utterance, options: GenerationOptions
) -> Target:
    """Return the explained output in the form that the adapter needs.

    Raises:
        ConfigError: If the model now starts its output differently.
    """
    origin = explanation.origin
    known = options.prefix if origin.audio_at is None else origin.prefix_ids
    if known is not None:
        prefix = torch.tensor(known, dtype=torch.int64, device="cpu")
    else:
        prefix = adapter.prefix_ids(utterance, options).cpu()
    pieces, then = tuple(adapter.pieces(prefix)), explanation.context_pieces[: explanation.prefix_length]
    if pieces != then:
        raise ConfigError(
            f"model starts its output with {' '.join(pieces)}, but the explained output starts with {' '.join(then)}; "
            "pass the model that was explained, with its own generation config"
        )
    tokens = torch.tensor(explanation.written_ids, dtype=torch.int64, device="cpu")
    complete = int(tokens[-1]) in adapter.eos_token_ids
    return Target(prefix, tokens, complete, audio_at=origin.audio_at)

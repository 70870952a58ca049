"""Is the map of a single word right? Probabilities of it and of other words as its evidence is deleted or put back.

A map of the whole sentence can win deletion by pointing at whatever is loud. The map of a word cannot: deleting what it
points at must lower the probability of *this* word and leave the other words alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spes_hf.adapters import Adapter, GenerationOptions, Target, Utterance
from spes_hf.checks import is_count
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.explanation.recording import Recording
from spes_hf.finite import check_logits
from spes_hf.functional import deletion_masks
from spes_hf.masking.perturbations import Fill, fill_values
from spes_hf.metrics.contrastive import check_shares
from spes_hf.metrics.deletion import clean_target, generation_options
from spes_hf.metrics.perturbing import PerturbingMetric
from spes_hf.metrics.rows import (
    Row,
    check_map,
    check_maps,
    check_model,
    explanation_of,
    method_signature,
)
from spes_hf.metrics.spoken import SpokenWord, groups_of, spoken_words, spread
from spes_hf.runtime.batching import Batch, BatchSize, starting_batch_size

WORD_DELETION_FRACTIONS = (0.0025, 0.005, 0.01, 0.02, 0.05)
WORD_INSERTION_FRACTIONS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)

# Keys of an entry with one value per word.
_OF_WORDS = ("words", "indices", "clean", "probabilities", "others")


class _WordCurve(PerturbingMetric):
    """Perturbs a growing share of what is salient for a word, and measures the probabilities of all words.

    The class is a map-style transform: an instance takes a row, returns it with one more entry, and is picklable.
    `spes_hf.metrics.summarize` turns the rows into corpus scores.
    """

    key: ClassVar[str]

    def __init__(
        self,
        model: Any,
        processor: Any,
        fractions: Sequence[float],
        max_words: int | None,
        fill: Fill,
        batch_size: BatchSize,
    ):
        super().__init__(model, processor, fill, batch_size)
        self.fractions = self.checked(fractions)
        if max_words is not None and not is_count(max_words):
            raise ConfigError(f"max_words is {max_words!r}; allowed: a whole number, at least 1, or None for all words")
        self.max_words = None if max_words is None else int(max_words)

    @abstractmethod
    def checked(self, fractions: Sequence[float]) -> tuple[float, ...]:
        """Return the fractions at which probabilities are measured.

        Raises:
            ConfigError: If they are not increasing numbers in [0, 1], or too few for an area.
        """

    @abstractmethod
    def keep(self, saliency: Tensor) -> Tensor:
        """Return the masks of all fractions, (S, T, C) bool, for a map (T, C); True = keep."""

    def columns(self) -> dict[str, Any]:
        """Return the columns that the transform adds, as `datasets` feature types."""
        from datasets import List, Value

        number, whole, text = Value("float64"), Value("int64"), Value("string")
        entry = {
            "fractions": List(number),
            "words": List(text),
            "indices": List(whole),
            "clean": List(number),
            "probabilities": List(List(number)),
            "others": List(List(number)),
            "max_words": whole,
            **dict.fromkeys(("prediction", "fill", "method"), text),
        }
        return {self.key: entry}

    def __call__(self, row: Row | Explanation | Recording, saliency: Any = None) -> dict[str, Any]:
        """Return the row with the probabilities of W words at S fractions, under the name of the metric.

        The entry has "fractions" (S); for the words, "words" (their texts), "indices" (W, among all words of the
        output, as in ``explain(words=…)``), "clean" (W, the probability for clean features), "probabilities" (W, S) and
        "others" (W, S, the mean probability of all other words of the output at the same fraction; empty for a word
        that is alone). Probabilities are products over a word's tokens, in [0, 1], given the clean text before it.

        For a recording, the words of all explained windows are listed one after the other, with "indices" running on.
        Other words are those of the same window, and ``max_words`` applies to every window.

        Args:
            row: An explanation (over tokens or words, of a whole output or a part) or a recording, or a row with one,
                or with the folder of one, at "explanation". A row with an "error" gets None.
            saliency: Maps to rank the features by: (K, T, C), one for each of the K words of ``explanation.words()``,
                or one for all of them, (T, C); None: their `Explanation.audio_saliency`. A whole number is the rank of
                a worker, which ``Dataset.map(…, with_rank=True)`` passes here.

        Raises:
            ConfigError: If the explanation is missing, has a foil or is of another model, or a map does not fit it.
        """
        return self.entry_of_row(row, saliency)

    def of_explanation(self, explanation: Explanation, saliency: Any) -> dict[str, Any]:
        """Return the entry of an explanation over tokens."""
        if explanation.contrasts is not None:
            raise ConfigError(
                f"explanation of {explanation.text!r} has a foil, so its rows are contrasts, not words; use "
                "ContrastiveDeletion, or explain it without foil"
            )
        check_model(self.adapter.model, explanation)
        check_map(explanation.features, explanation, "features")
        words, every = spoken_words(explanation), explanation.words()
        judged = spread([w for w, word in enumerate(words) if word.row is not None], self.max_words)
        if saliency is None:
            maps = {w: check_map(every.audio_saliency[words[w].row], explanation, "audio_saliency") for w in judged}
            method = f"{method_signature(explanation, of_part=False)}|map:word"
        else:
            given = check_maps(saliency, explanation, len(every), "words")
            maps, method = {w: given[row] for w in judged if (row := words[w].row) is not None}, "custom"
        entry: dict[str, Any] = {
            "fractions": list(self.fractions),
            **{name: [] for name in _OF_WORDS},
            "max_words": self.max_words,
            "prediction": explanation.text,
            "fill": str(self.fill),
            "method": method,
        }
        if judged:
            with self.running(explanation):
                entry |= self._measure(explanation, words, maps)
        return entry

    def of_recording(self, recording: Recording, saliency: Any) -> dict[str, Any] | None:
        """Return the entry of a recording, from the entries of its windows; None if the model wrote nothing.

        Raises:
            ConfigError: If a map is given.
        """
        if saliency is not None:
            raise ConfigError(
                "saliency is not allowed with a recording, since its windows have their own maps; leave it out"
            )
        entries, before = [], 0
        for each in recording:
            explanation = explanation_of(each)
            entry = self.of_explanation(explanation, None)
            entries.append({**entry, "indices": [before + index for index in entry["indices"]]})
            before += len(groups_of(explanation))
        if not entries:
            return None
        joined = " ".join(entry["prediction"].strip() for entry in entries).strip()
        lists = {name: [value for entry in entries for value in entry[name]] for name in _OF_WORDS}
        return {**entries[0], **lists, "prediction": joined}

    def _measure(
        self, explanation: Explanation, words: Sequence[SpokenWord], maps: dict[int, Tensor]
    ) -> dict[str, list[Any]]:
        """Return the entry's values for each word with a map.

        Args:
            explanation: Explanation of the output.
            words: All spoken words of the output.
            maps: Index among these words → map, (T, C).
        """
        # Words share passes with equal masks: clean features, only fill values, or one map for all words.
        passes: dict[bytes, int] = {_packed(torch.ones_like(explanation.features, dtype=torch.bool)): 0}
        steps = {
            w: [passes.setdefault(_packed(mask), len(passes)) for mask in self.keep(saliency)]
            for w, saliency in maps.items()
        }
        utterance = self.utterance_of(explanation)
        target = target_of(explanation, self.adapter, utterance)
        found = self._probabilities(utterance, target, words, list(passes))
        others = (found.sum(1, keepdim=True) - found) / max(1, len(words) - 1)
        alone = len(words) < 2
        return {
            "words": [words[w].text for w in maps],
            "indices": [words[w].index for w in maps],
            "clean": [float(found[0, w]) for w in maps],
            "probabilities": [found[steps[w], w].tolist() for w in maps],
            "others": [[] if alone else others[steps[w], w].tolist() for w in maps],
        }

    def _probabilities(
        self, utterance: Utterance, target: Target, words: Sequence[SpokenWord], masks: Sequence[bytes]
    ) -> Tensor:
        """Return the probability of every word under every mask, (N, words) float64."""
        adapter, clean = self.adapter, utterance.features
        fill = fill_values(self.fill, clean)
        ids = target.token_ids.to(adapter.device)
        found: list[Tensor] = []

        def measure(rows: range) -> None:
            keep = torch.stack([_unpacked(mask, clean.shape) for mask in masks[rows.start : rows.stop]])
            features = torch.where(keep, clean, fill).to(adapter.device)
            with torch.no_grad():
                logits = adapter.logits(utterance, target, features=features).float()
            check_logits(logits, "logits for a share of the features", adapter.dtype)
            log_p = logits.log_softmax(-1).gather(-1, ids.expand(len(rows), -1).unsqueeze(-1)).squeeze(-1)
            log_p = log_p.cpu().double()
            found.append(torch.stack([log_p[:, list(word.tokens)].sum(1).exp() for word in words], dim=1))

        vocabulary = adapter.vocabulary_size
        size = self.batch_size or starting_batch_size(len(ids) * vocabulary, adapter.device, utterance.inputs)
        batch = Batch(size, "words", (*clean.shape, len(ids), vocabulary), self.sizes)
        for _ in batch.over(range(len(masks)), measure):
            pass
        return torch.cat(found)


class WordDeletion(_WordCurve):
    """Deletes what is most salient for a word, at "word_deletion": is its map right, and specific to this word?

    For every explained word and fraction s, the first ⌊T·C·s⌋ features of *its* map (`Explanation.audio_saliency` over
    words) take the fill value, and the model's probability of *that* word is measured, given the clean text before it.
    With a good map, it drops early. The same pass measures the probability of every other word: a map that shows this
    word, and not just whatever is loud, leaves them alone. Fraction 0, the clean run, is always included.

    Words are those of `Explanation.words` with a letter or digit: a punctuation mark is not heard in the same way, so
    it is neither scored nor counted among the others. If only some tokens of a word are explained, the whole word is
    scored.

    Costs words × fractions passes through encoder and decoder, in batches, and one for the clean features. Nothing is
    generated.

    Args:
        model: The model that was explained; left exactly as it was.
        processor: Its processor.
        fractions: Shares of the features, increasing, in [0, 1].
        max_words: Maximum number of words per utterance, evenly spread over it; None: all explained words.
        fill: Value of deleted features: "mean" (of each mel bin over the utterance), "zero", "min" or a number.
        batch_size: Perturbed copies per pass; "auto" or None: found automatically.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If an argument has a value that is not allowed.

    Examples:
        >>> row = WordDeletion(model, processor, max_words=3)({"explanation": ex})
        >>> row["word_deletion"]["words"]
        ['Tom', 'a', 'picture']
        >>> before, *_, after = row["word_deletion"]["probabilities"][0]
        >>> before > 0.9 > 0.1 > after
        True
    """

    key: ClassVar[str] = "word_deletion"

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        fractions: Sequence[float] = WORD_DELETION_FRACTIONS,
        max_words: int | None = None,
        *,
        fill: Fill = "mean",
        batch_size: BatchSize = None,
    ):
        super().__init__(model, processor, fractions, max_words, fill, batch_size)

    def checked(self, fractions: Sequence[float]) -> tuple[float, ...]:
        """Return the fractions, with 0 first.

        Raises:
            ConfigError: If they are not increasing numbers in [0, 1] with at least one above 0.
        """
        above = [s for s in check_shares(fractions) if s > 0]
        if not above:
            raise ConfigError(
                f"fractions is {fractions!r}, which deletes nothing; pass at least one above 0 (5 % is 0.05)"
            )
        return (0.0, *above)

    def keep(self, saliency: Tensor) -> Tensor:
        """Return the masks of all fractions, (S, T, C) bool, for a map (T, C); True = keep."""
        return deletion_masks(saliency, self.fractions)


class WordInsertion(_WordCurve):
    """Puts what is most salient for a word back first, into only fill values, at "word_insertion".

    The mirror image of `WordDeletion`: for every fraction s, only the first ⌊T·C·s⌋ features of the word's map are
    there. With a good map, the word becomes probable early. Takes the arguments of `WordDeletion` and costs the same;
    words share the passes with no features and with all features.

    Examples:
        >>> row = WordInsertion(model, processor, max_words=3)({"explanation": ex})
        >>> row["word_insertion"]["words"]
        ['Tom', 'a', 'picture']
    """

    key: ClassVar[str] = "word_insertion"

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        fractions: Sequence[float] = WORD_INSERTION_FRACTIONS,
        max_words: int | None = None,
        *,
        fill: Fill = "mean",
        batch_size: BatchSize = None,
    ):
        super().__init__(model, processor, fractions, max_words, fill, batch_size)

    def checked(self, fractions: Sequence[float]) -> tuple[float, ...]:
        """Return the fractions.

        Raises:
            ConfigError: If they are not at least two increasing numbers in [0, 1].
        """
        found = check_shares(fractions)
        if len(found) < 2:
            raise ConfigError(
                f"fractions is {fractions!r}; allowed: at least two, since the score is the area under the curve"
            )
        return found

    def keep(self, saliency: Tensor) -> Tensor:
        """Return the masks of all fractions, (S, T, C) bool, for a map (T, C); True = keep."""
        return ~deletion_masks(saliency, self.fractions)


def target_of(explanation: Explanation, adapter: Adapter, utterance: Utterance) -> Target:
    """Return the explained output with its start tokens at that time.

    Nothing is generated, so arguments of ``generate()`` that the explanation could not store do not matter, except in
    explanations of older versions, which did not store the ids of the start.

    Raises:
        ConfigError: If the start of the output is not known, or is different now.
    """
    prefix = explanation.origin.prefix_ids
    options = generation_options(explanation, adapter) if prefix is None else GenerationOptions(prefix=prefix)
    return clean_target(explanation, adapter, utterance, options)


def _packed(mask: Tensor) -> bytes:
    """Return a mask packed to one bit per feature; equal masks give equal bytes."""
    return np.packbits(mask.numpy()).tobytes()


def _unpacked(mask: bytes, shape: torch.Size) -> Tensor:
    """Return the mask, (T, C) bool."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=shape.numel())
    return torch.from_numpy(bits.astype(bool)).view(shape)

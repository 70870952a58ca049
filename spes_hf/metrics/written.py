"""What a model writes at the place of a contrast: the target, the foil, or something else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from spes_hf.adapters import Adapter, Target, Utterance
from spes_hf.differences import differences
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.finite import allowed, check_logits
from spes_hf.scoring.contrast import NOTHING, Contrast
from spes_hf.scoring.foils import Words
from spes_hf.text import ends_word, normalise

Written = Literal["target", "foil", "other"]


# A word may be written with other tokens than those of the tokenizer, or after a punctuation mark.
_SPARE_TOKENS = 2


@dataclass(frozen=True)
class Continuation:
    """Continues the text before a contrast greedily, until it is clear whether it is the target or the foil.

    Args:
        adapter: The model's adapter.
        utterance: The model's input.
        text: The model's output; the tokens before a contrast are kept.
    """

    adapter: Adapter
    utterance: Utterance
    text: Target

    def written(self, contrast: Contrast, states: Tensor) -> list[Written]:
        """Return what the most probable continuation writes for every encoder output, (B, S, D).

        Case and punctuation are ignored unless target and foil differ only in these. A word counts only if the model
        also ends it: "countywide" does not contain the word "county".

        Args:
            contrast: Target and foil.
            states: (B, S, D) the encoder's outputs.

        Raises:
            NumericsError: If the logits are NaN.
        """
        judge = _Judge(self.adapter, contrast)
        found: dict[int, Written] = {}
        runs: dict[tuple[int, ...], list[int]] = {(): list(range(len(states)))}
        while runs:  # rows with the same continuation share a decoder pass
            longer: dict[tuple[int, ...], list[int]] = defaultdict(list)
            for ids, rows in runs.items():
                for row, token in zip(rows, self._next(contrast.start, ids, states[rows]), strict=True):
                    more = (*ids, token)
                    verdict = judge(more)
                    if verdict is None:
                        longer[more].append(row)
                    else:
                        found[row] = verdict
            runs = longer
        return [found[row] for row in range(len(states))]

    def _next(self, start: int, ids: tuple[int, ...], states: Tensor) -> list[int]:
        """Return the most probable token after the first ``start`` tokens and these, for every encoder output."""
        behind = torch.tensor([*ids, 0], dtype=torch.int64, device="cpu")  # the last token is not a decoder input
        text = replace(self.text, token_ids=torch.cat([self.text.token_ids[:start], behind]), complete=True)
        with torch.no_grad():
            logits = self.adapter.logits(self.utterance, text, states=states)[:, -1].float()
        check_logits(logits, "logits for a share of the features", self.adapter.dtype)
        logits = allowed(logits)
        logits[:, self._never(first=start + len(ids) == 0, vocabulary=logits.shape[-1])] = -torch.inf
        return logits.argmax(-1).tolist()

    def _never(self, first: bool, vocabulary: int) -> list[int]:
        """Return the tokens that ``generate()`` never writes, or never writes first."""
        config = self.adapter.model.generation_config
        names = ("suppress_tokens", "begin_suppress_tokens") if first else ("suppress_tokens",)
        named = [i for name in names for i in getattr(config, name, None) or () if 0 <= i < vocabulary]
        return [*named, *range(min(vocabulary, len(self.adapter.tokenizer)), vocabulary)]


class _Judge:
    """Decides whether the tokens of a continuation are the target, the foil, or neither, as soon as that is certain."""

    def __init__(self, adapter: Adapter, contrast: Contrast):
        self.adapter = adapter
        self.ids: dict[Written, tuple[int, ...]] = {"target": contrast.target_ids, "foil": contrast.foil_ids}
        self.longest = max(map(len, self.ids.values())) + 1 + _SPARE_TOKENS
        self.words_end = contrast.words_end
        self.exact = False
        texts = {name: self._read(ids) for name, ids in self.ids.items()}
        self.exact = texts["target"] == texts["foil"]
        self.texts = {name: self._read(ids) for name, ids in self.ids.items()}

    def __call__(self, ids: tuple[int, ...]) -> Written | None:
        """Return what the tokens write; None if that is not clear yet."""
        if not self.words_end:  # single tokens, or everything up to the end of the sequence
            match = [name for name, own in self.ids.items() if own == ids]
            still = any(own[: len(ids)] == ids and own != ids for own in self.ids.values())
            return match[0] if match else None if still else "other"
        pieces, special = self._pieces(ids)
        ended = [m for m in range(1, len(ids)) if ends_word(pieces[m], special[m])]
        texts = [self._read(ids[:m]) for m in ended]
        match = [name for text in texts for name, own in self.texts.items() if own == text]
        still = any(own.startswith(self._read(ids)) for name, own in self.texts.items() if name not in match)
        if still and not special[-1] and len(ids) < self.longest:
            return None
        return match[-1] if match else "other"

    def _pieces(self, ids: Sequence[int]) -> tuple[list[str], list[bool]]:
        tensor = torch.tensor(ids, dtype=torch.int64, device="cpu")
        return self.adapter.pieces(tensor), self.adapter.is_special(tensor)

    def _read(self, ids: Sequence[int]) -> str:
        """Return the words of these tokens in a normal form for comparison, with the space before them."""
        pieces, special = self._pieces(ids)
        raw = "".join(piece for piece, no_text in zip(pieces, special, strict=True) if not no_text)
        # Leave out the bytes of a character that is not complete yet.
        text = raw.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="ignore")
        if self.exact:
            return text
        head = text[: next((i for i, c in enumerate(text) if c.isalnum()), len(text))]
        return (" " if any(c.isspace() for c in head) else "") + normalise(text)


def written_in(clean: Words, other: Words, contrast: Contrast) -> Written:
    """Return what another whole output has where the clean output has the target, from a word alignment.

    Args:
        clean: Words of the clean output.
        other: Words of the other output.
        contrast: Target and foil.
    """
    first, second = ([words.texts[i] for i in words.spoken] for words in (clean, other))
    own = [i for i, at in enumerate(clean.spoken) if set(clean.groups[at]) & set(contrast.tokens)]
    before = sum(clean.groups[at][0] < contrast.start for at in clean.spoken)
    place = range(own[0], own[-1] + 1) if own else range(before, before)
    spans = [(d, d.first.start, d.first.stop) for d in differences(first, second)]
    if own:
        touched = [d for d, start, stop in spans if start < place.stop and place.start < stop]
    else:
        touched = [d for d, start, stop in spans if start <= before <= stop]
    if not touched:
        return "target"
    there = [normalise(word) for d in touched for word in second[d.second.start : d.second.stop]]
    names: dict[Written, str] = {"target": contrast.target, "foil": contrast.foil}
    has = [name for name, text in names.items() if text != NOTHING and _within(_split(text), there)]
    if has:
        return max(has, key=lambda name: len(names[name]))
    return "foil" if contrast.foil == NOTHING and not there else "other"


def _split(text: str) -> list[str]:
    return [word for word in map(normalise, text.split()) if word]


def _within(some: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether these words occur among the others as one contiguous run."""
    return any(list(words[i : i + len(some)]) == list(some) for i in range(len(words) - len(some) + 1))


def text_of(explanation: Explanation, adapter: Adapter) -> Target:
    """Return the prefix and tokens of the explained output, as far as they can precede a contrast.

    An explanation with a foil stores the pieces of the output but not their ids, so ids are looked up in the
    vocabulary.

    Args:
        explanation: Explanation of the output.
        adapter: The model's adapter.

    Raises:
        ConfigError: If the model does not have a token.
    """
    size = adapter.vocabulary_size
    ids = torch.arange(min(size, len(adapter.tokenizer)), dtype=torch.int64, device="cpu")
    known: dict[str, int] = {}
    for number, piece in enumerate(adapter.pieces(ids)):
        known.setdefault(piece, number)
    # If two tokens have the same piece, prefer the one that the tokenizer uses.
    likely = [*(explanation.origin.prefix_ids or ()), *adapter.text_ids(explanation.text or " ")]
    usual = torch.tensor(likely, dtype=torch.int64, device="cpu")
    known |= dict(zip(adapter.pieces(usual), likely, strict=True))
    missing = [piece for piece in explanation.context_pieces if piece not in known]
    if missing:
        raise ConfigError(
            f"processor has no token {missing[0]!r}, but the explanation has; pass the processor of the explanation"
        )
    found = torch.tensor([known[piece] for piece in explanation.context_pieces], dtype=torch.int64, device="cpu")
    prefix, tokens = found[: explanation.prefix_length], found[explanation.prefix_length :]
    return Target(prefix, tokens, complete=True, audio_at=explanation.origin.audio_at)

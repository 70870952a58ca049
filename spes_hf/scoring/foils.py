"""Turns the text that a user expected into contrasts with the text that the model wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from spes_hf.adapters.base import Adapter
from spes_hf.adapters.types import Target
from spes_hf.checks import is_whole
from spes_hf.differences import Difference, differences
from spes_hf.errors import ConfigError
from spes_hf.scoring.contrast import NOTHING, Contrast
from spes_hf.text import join_pieces, normalise, spaceless_script, word_groups

Foil = str | Mapping[Any, Any] | Sequence[Any]
"""What a model did not write: a text, replacements, or a list of them."""

_HELP = 'pass a whole text, replacements such as {"country": "county"}, or a list of them'


@dataclass(frozen=True)
class Words:
    """The words of an output.

    Attributes:
        pieces: Text of every explained token.
        groups: The tokens of every word; punctuation marks count as words.
        texts: Text of every word.
        spoken: Indices of the words with a letter or digit.
    """

    pieces: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    spoken: tuple[int, ...]

    @classmethod
    def of(cls, adapter: Adapter, ids: torch.Tensor) -> Words:
        """Return the words of these tokens."""
        pieces, special = adapter.pieces(ids), adapter.is_special(ids)
        groups = word_groups(pieces, special)
        texts = tuple(join_pieces([pieces[k] for k in group]).strip() for group in groups)
        return cls(tuple(pieces), tuple(groups), texts, tuple(i for i, text in enumerate(texts) if normalise(text)))

    def opening(self, place: int) -> int:
        """Return the token that opens a spoken word: its first token, or that of marks such as quotes before it."""
        token = self.of_range([place])[0]
        words = {k for i in self.spoken for k in self.groups[i]}
        while token and token - 1 not in words and not self.pieces[token][:1].isspace():
            token -= 1
        return token

    def of_range(self, some: Iterable[int]) -> tuple[int, ...]:
        """Return the tokens of these spoken words, and of the marks between them."""
        words = [self.spoken[i] for i in some]
        return tuple(range(self.groups[words[0]][0], self.groups[words[-1]][-1] + 1)) if words else ()


def contrasts_of(adapter: Adapter, target: Target, foil: Any) -> tuple[Contrast, ...]:
    """Return the contrasts between an output and the user's foil, in the order of the text.

    Args:
        adapter: The model's adapter.
        target: The model's output.
        foil: A whole alternative text; replacements, from a word (or its index among the words) to words, or from a
            token (or its index) to the id of a token; or a list of such foils, which share the masks.

    Raises:
        ConfigError: If the foil is none of these, equals the output, has tokens that the model cannot write, or has
            nothing in common with the output.
    """
    foils = foil if isinstance(foil, (list, tuple)) else [foil]
    if not foils:
        raise ConfigError(f"foil is {foil!r}, which is empty; {_HELP}")
    words = Words.of(adapter, target.token_ids)
    if not words.spoken:
        raise ConfigError(f"foil is {foil!r}, but the model wrote no word to compare it with; leave foil out")
    found: list[Contrast] = []
    for question, each in enumerate(foils):
        if isinstance(each, str):
            parts = differing(adapter, words, each, "foil")
            new = [contrast_at(adapter, target, words, *part, "foil") for part in parts]
        elif isinstance(each, Mapping):
            new = _of_replacements(adapter, target, words, each)
        else:
            raise ConfigError(f"foil is {each!r}, a {type(each).__name__}; {_HELP}")
        found += [replace(contrast, question=question) for contrast in new]
    return tuple(sorted(found, key=lambda contrast: contrast.start))


def differing(adapter: Adapter, words: Words, text: str, argument: str) -> list[tuple[Difference, tuple[str, ...]]]:
    """Return where an output and a whole text differ, and the words of the text there.

    Equal words stay as the model wrote them, so case and punctuation count only if a foil differs in nothing else. A
    text without capitals, or all in capitals, takes the case of the words that it replaces.

    Args:
        adapter: The model's adapter.
        words: The words of the output.
        text: The other text.
        argument: Name of the argument in error messages: "foil" or "reference".

    Raises:
        ConfigError: If the text is empty or shares no word with the output, or a foil equals it.
    """
    if not isinstance(text, str) or not any(normalise(word) for word in text.split()):
        raise ConfigError(f"{argument} is {text!r}, which contains no words; pass the words of the other text")
    own, others = [words.texts[i] for i in words.spoken], words_of_text(adapter, text)
    found, written = differences(own, others), " ".join(own)
    if not found and argument == "foil":
        found = differences(own, others, exact=True)
        if not found:
            raise ConfigError(
                f"foil {text!r} equals the output {written!r}; pass a text that differs in at least one word"
            )
    if sum(len(d.first) for d in found) == len(own) and max(len(own), len(others)) > 3:
        raise ConfigError(
            f"{argument} {text!r} has no word in common with the output {written!r}; pass a version of the same "
            "sentence, in the language of the output"
        )
    others = _in_case_of(own, others)
    return [(d, tuple(others[i] for i in d.second)) for d in found]


def _of_replacements(adapter: Adapter, target: Target, words: Words, given: Mapping[Any, Any]) -> list[Contrast]:
    found: list[Contrast] = []
    for key, value in given.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if is_whole(each) and each >= 0:
                found.append(_of_token(adapter, target, words, key, int(each)))
                continue
            if not isinstance(each, str):
                raise ConfigError(
                    f"foil replaces {key!r} with {each!r}, a {type(each).__name__}; allowed: words, or a token id"
                )
            at = _find(key, words.texts, "word", words.spoken)
            if at not in words.spoken:
                raise ConfigError(
                    f"foil replaces {key!r}, which is not a word; to replace a punctuation mark, pass a token id"
                )
            place = words.spoken.index(at)
            if each.strip() == words.texts[at]:
                raise ConfigError(f"foil replaces {key!r} with itself; pass another word")
            others = each.split()
            here = Difference(range(place, place + 1), range(len(others)))
            found.append(contrast_at(adapter, target, words, here, others, "foil"))
    if not found:
        raise ConfigError(f"foil is {dict(given)!r}, which replaces nothing; {_HELP}")
    return found


def _of_token(adapter: Adapter, target: Target, words: Words, key: Any, other: int) -> Contrast:
    """Return the contrast of a single token with another one."""
    k = _find(key, [piece.strip() for piece in words.pieces], "token", range(len(words.pieces)))
    own = int(target.token_ids[k])
    vocabulary = adapter.vocabulary_size
    if other >= vocabulary:
        raise ConfigError(
            f"foil replaces token {key!r} with id {other}, but the model has {vocabulary} tokens; pass a smaller id"
        )
    if other == own:
        raise ConfigError(f"foil replaces token {key!r} with id {other}, its own id; pass another id")
    (piece,) = adapter.pieces(torch.tensor([other], dtype=torch.int64, device="cpu"))
    shown, foil = (join_pieces([text]).strip() or repr(text) for text in (words.pieces[k], piece))
    return Contrast(shown, foil, k, (own,), (other,), words_end=False, tokens=(k,))


def _find(key: Any, names: Sequence[str], kind: str, allowed: Sequence[int]) -> int:
    """Return the index of a word or token given by index or text."""
    if isinstance(key, str):
        hits = [i for i in allowed if names[i] == key.strip()]
        if kind == "word" and not hits:
            hits = [i for i in allowed if normalise(names[i]) == normalise(key)]
        if len(hits) == 1:
            return hits[0]
        shown = [names[i] for i in allowed]
        why = f"occurs at {hits}; pass one of these indices" if hits else f"does not occur; the output has {shown}"
        raise ConfigError(f"foil replaces the {kind} {key!r}, which {why}")
    if not (is_whole(key) and 0 <= key < len(names)):
        raise ConfigError(
            f"foil replaces the {kind} {key!r}; allowed: its text, or an index from 0 to {len(names) - 1}"
        )
    return int(key)


def contrast_at(
    adapter: Adapter, target: Target, words: Words, here: Difference, others: Sequence[str], argument: str
) -> Contrast:
    """Return the contrast for one difference between the spoken words of an output and other words.

    Args:
        adapter: The model's adapter.
        target: The model's output.
        words: The words of the output.
        here: Where the difference is.
        others: The words of the other text there.
        argument: Name of the other text's argument in error messages.

    Raises:
        ConfigError: If the model cannot write these words, or has no place for them.
    """
    ids, own = target.token_ids.tolist(), words.of_range(here.first)
    foil = ("" if spaceless_script(others) else " ").join(others)
    at = own[0] if own else words.opening(min(here.first.stop, len(words.spoken) - 1))
    other_ids = _ids(adapter, foil, words.pieces[at][:1].isspace(), argument)
    shown = join_pieces([words.pieces[k] for k in own]).strip() or NOTHING
    if own and other_ids:
        contrast = Contrast(shown, foil, own[0], tuple(ids[k] for k in own), other_ids, tokens=own)
    else:
        contrast = _with_next_word(adapter, ids, words, here, own, other_ids, argument)
        contrast = replace(contrast, target=shown, foil=foil or NOTHING, tokens=own)
    limit = adapter.max_target_positions
    needed = len(target.prefix_ids) + contrast.start + len(contrast.foil_ids)
    if limit is not None and needed > limit:
        raise ConfigError(
            f"{argument} has {len(contrast.foil_ids)} tokens for {foil!r}, which makes the text longer than the "
            f"model's limit of {limit} tokens; ask about fewer words at once"
        )
    if contrast.target_ids == contrast.foil_ids:
        raise ConfigError(
            f"{argument} has {foil!r} where the output has {shown!r}, and both have the same tokens; pass another word"
        )
    return contrast


def _with_next_word(
    adapter: Adapter,
    ids: list[int],
    words: Words,
    here: Difference,
    own: tuple[int, ...],
    other: tuple[int, ...],
    argument: str,
) -> Contrast:
    """Return the contrast if one side has no word: the next word of both texts, or the end, is added to both.

    Marks between the words stay with the model's own words. If words are left out, the next one takes their place, with
    the same spacing before it; added words come before the marks that open the next word.
    """
    following = words.of_range([here.first.stop]) if here.first.stop < len(words.spoken) else ()
    if following and own:
        start, end = own[0], following[-1] + 1
        rest = tuple(ids[following[0] : end])
        spaced, text = words.pieces[start][:1].isspace(), words.texts[words.spoken[here.first.stop]]
        if spaced != words.pieces[following[0]][:1].isspace() and not spaceless_script([text]):
            rest = _ids(adapter, text, spaced, argument)
        return Contrast("", "", start, tuple(ids[start:end]), rest)
    if following:
        start = words.opening(here.first.stop)
        rest = tuple(ids[start : following[-1] + 1])
        return Contrast("", "", start, rest, (*other, *rest))
    # At the end: everything that follows, including the end of the sequence.
    behind = words.of_range([len(words.spoken) - 1])[-1] + 1
    start = own[0] if own else behind
    rest = tuple(ids[behind:]) or (adapter.eos_token_id,)
    return Contrast("", "", start, (*ids[start:behind], *rest), (*other, *rest), words_end=False)


def _ids(adapter: Adapter, text: str, spaced: bool, argument: str) -> tuple[int, ...]:
    """Return the tokens of words within a text, with or without a space before them."""
    if not text:
        return ()
    ids = adapter.text_ids(text) if spaced else adapter.inner_ids(text)
    special = adapter.is_special(torch.tensor(ids, dtype=torch.int64, device="cpu"))
    vocabulary = adapter.vocabulary_size
    wrong = [i for i, no_text in zip(ids, special, strict=True) if no_text or i >= vocabulary]
    if wrong or not ids:
        names = adapter.tokenizer.convert_ids_to_tokens(wrong)
        raise ConfigError(
            f"{argument} has {text!r}, with tokens that the model cannot write: {names or 'none at all'}; use the "
            "spelling and script of the model's own output"
        )
    return tuple(ids)


def words_of_text(adapter: Adapter, text: str) -> list[str]:
    """Return the words of a text that have a letter or digit, split in the same way as an output."""
    if spaceless_script([text]):  # every token is a word
        pieces = adapter.pieces(torch.tensor(adapter.text_ids(text), dtype=torch.int64, device="cpu"))
    else:
        pieces = [part for word in text.split() for part in (f" {word[0]}", *word[1:])]
    groups = word_groups(pieces, [False] * len(pieces))
    texts = [join_pieces([pieces[k] for k in group]).strip() for group in groups]
    return [word for word in texts if normalise(word)]


def _in_case_of(own: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return words in the case of the output if their own case, or that of the output, is uniform."""
    written, given = "".join(own), "".join(others)
    if written == written.lower():
        return [word.lower() for word in others]
    if written == written.upper():
        return [word.upper() for word in others]
    if given not in (given.lower(), given.upper()):
        return list(others)
    lowered = [word.lower() for word in others]
    places: dict[int, str] = {}
    for difference in differences(own, others):
        pairs = zip(difference.second, difference.first, strict=False)
        places |= {j: own[i] for j, i in pairs}
    return [word[:1].upper() + word[1:] if places.get(i, "")[:1].isupper() else word for i, word in enumerate(lowered)]

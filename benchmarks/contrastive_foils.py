"""Words that a model might have written instead: of the same class, near in spelling, or its own second choice."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spes_hf.adapters import Adapter, Target
from spes_hf.text import ends_word, join_pieces, normalise

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))


def classes(language: str) -> list[list[str]]:
    """Return words that can stand for each other in the grammar of the tiny corpus, by language."""
    from tiny_speech import lexicon as lex

    column = {"en": 0, "de": 1, "es": 2}[language]
    found: list[list[str]] = []
    if language == "en":
        found += [[noun[i] for noun in lex.NOUNS] for i in (0, 1)]
        found += [[word[0] for word in lex.ADJECTIVES], lex.ONES_EN[2:], lex.TENS_EN]
    else:
        gender, forms = {"de": (2, (3, 4)), "es": (5, (6, 7))}[language]
        for kind in {noun[gender] for noun in lex.NOUNS}:
            found += [[noun[i] for noun in lex.NOUNS if noun[gender] == kind] for i in forms]
    found += [[verb[3 * column + i] for verb in lex.VERBS] for i in range(3)]
    found += [[day[column] for day in lex.DAYS], [name for name, _ in lex.NAMES]]
    found += [[word[column] for word in words] for words in lex.KIN.values()]
    return found


def runner_up(adapter: Adapter, utterance: Any, target: Target, group: Sequence[int]) -> str | None:
    """Return the word that the model finds likeliest at a place after the one that it wrote; None if there is none.

    The second-best first token is continued greedily up to the word's end.

    Args:
        adapter: Of the model.
        utterance: What it hears.
        target: What it wrote.
        group: The tokens of the word.
    """
    states = adapter.encoder_states(utterance.inputs)
    own = join_pieces([adapter.pieces(target.token_ids[list(group)])[0]])

    def logits(ids: list[int]) -> torch.Tensor:
        behind = torch.tensor([*ids, 0])
        text = Target(target.prefix_ids, torch.cat([target.token_ids[: group[0]], behind]), complete=True)
        return adapter.logits(utterance, text, states=states)[0, -1]

    def piece(token: int) -> str:
        return adapter.pieces(torch.tensor([token]))[0]

    written = normalise(adapter.text(target.token_ids[list(group)]))
    for first in logits([]).topk(8).indices[1:].tolist():
        if adapter.is_special(torch.tensor([first]))[0] or piece(first)[:1].isspace() != own[:1].isspace():
            continue
        ids = [first]
        while len(ids) < 8:
            following = int(logits(ids).argmax())
            if ends_word(piece(following), adapter.is_special(torch.tensor([following]))[0]):
                break
            ids.append(following)
        word = adapter.text(torch.tensor(ids)).strip()
        if normalise(word) and " " not in word and normalise(word) != written:
            return word
    return None


def distance(first: str, second: str) -> int:
    """Return the number of letters to change, leave out or put in between two words."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]

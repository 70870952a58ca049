"""What an adapter knows of its tokenizer: from text to tokens and back, words that users added among them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from spes_hf.text import byte_level_piece, ends_word, sentencepiece_piece


class Vocabulary:
    """The part of `spes_hf.adapters.Adapter` that turns tokens into text and text into tokens.

    A vocabulary may hold words that a user added (``tokenizer.add_tokens``). Their text is what was added: it is no
    byte-level and no SentencePiece token, whatever characters it has. Tokens added as special ones are special.
    """

    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of a text the way the model writes them, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def output_ids(self, text: str) -> list[int]:
        """Return the tokens of a whole output, without special tokens: where no family says otherwise, of any text."""
        return self.text_ids(text)

    def inner_ids(self, text: str) -> list[int]:
        """Return the tokens of words that no space precedes, without special tokens."""
        ids = self.text_ids(text)
        alone = ids and self.pieces(torch.tensor(ids[:1], dtype=torch.int64, device="cpu")) == [" "]
        return ids[1:] if alone else ids

    def added_words(self) -> dict[int, str]:
        """Return the tokens that were added to the vocabulary and are not special, with their text."""
        special = set(self.tokenizer.all_special_ids)
        added = self.tokenizer.added_tokens_decoder.items()
        return {i: token.content for i, token in added if not token.special and i not in special}

    def piece(self, token: str) -> str:
        """Return the text of a token of the model's own vocabulary, as `spes_hf.text` wants it."""
        return sentencepiece_piece(token)

    def added_piece(self, word: str) -> str:
        """Return the text of a word that was added to the vocabulary."""
        return word.replace("▁", " ")

    def pieces(self, ids: Tensor) -> list[str]:
        """Return the text of every token, with the space that starts a word, as `spes_hf.text` wants it."""
        added, numbers = self.added_words(), ids.tolist()
        tokens = self.tokenizer.convert_ids_to_tokens(numbers)
        return [
            self.added_piece(added[i]) if i in added else self.piece(token)
            for i, token in zip(numbers, tokens, strict=True)
        ]

    def word_ends(self, vocabulary: int) -> Tensor:
        """Return for every token whether it shows that the word in front of it is complete, (V,) bool.

        Args:
            vocabulary: V, of the model; what the tokenizer does not know shows nothing.
        """
        ids = torch.arange(min(vocabulary, len(self.tokenizer)), dtype=torch.int64, device="cpu")
        found = torch.zeros(vocabulary, dtype=torch.bool, device="cpu")
        ends = [
            ends_word(piece, special) for piece, special in zip(self.pieces(ids), self.is_special(ids), strict=True)
        ]
        found[: len(ids)] = torch.tensor(ends, dtype=torch.bool, device="cpu")
        return found

    def text(self, ids: Tensor) -> str:
        """Return the text of the tokens, special tokens left out."""
        if not self.added_words().keys() & set(ids.tolist()):
            return self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        # Tokenizers read the letters of added words as bytes, or lose the space in front of them.
        kept = zip(self.pieces(ids), self.is_special(ids), strict=True)
        raw = "".join(piece for piece, special in kept if not special).encode("utf-8", errors="surrogateescape")
        return raw.decode("utf-8", errors="replace").strip()

    def is_timestamp(self, ids: Tensor) -> list[bool]:
        """Return for every token whether it says when, not what; no family but Whisper has such."""
        return [False] * len(ids)

    def special_ids(self) -> set[int]:
        """Return the tokens that are no text (start, end, language, task)."""
        return set(self.tokenizer.all_special_ids)

    def is_special(self, ids: Tensor) -> list[bool]:
        """Return for every token whether it is a special one."""
        special = self.special_ids()
        return [i in special for i in ids.tolist()]


class ByteLevelVocabulary(Vocabulary):
    """A vocabulary of byte-level tokens, of which those that start a word hold the space before it."""

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of words that a space precedes."""
        return super().text_ids(" " + text.strip())

    def inner_ids(self, text: str) -> list[int]:
        """Return the tokens of words that no space precedes."""
        return super().text_ids(text.strip())

    def piece(self, token: str) -> str:
        """Return the text of a token of the model's own vocabulary."""
        return byte_level_piece(token)

    def added_piece(self, word: str) -> str:
        """Return the text of a word that was added to the vocabulary."""
        return word.replace("Ġ", " ")


def apart(text: str, words: dict[int, str]) -> list[str]:
    """Return the parts of a text: those at odd places are words of a vocabulary, those at even places are not."""
    if not words:
        return [text]
    longest_first = sorted(words.values(), key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, longest_first))})", text)

"""What an adapter knows about its tokenizer: from text to tokens and back, including words that users added."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from spes_hf.text import byte_level_piece, ends_word, sentencepiece_piece


class Vocabulary:
    """The part of `spes_hf.adapters.Adapter` that turns tokens into text and text into tokens.

    A vocabulary may contain words that a user added (``tokenizer.add_tokens``). Their text is the added string itself,
    not a byte-level or SentencePiece token, whatever characters it has. Tokens added as special tokens are special.
    """

    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of a text as the model would write them, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def output_ids(self, text: str) -> list[int]:
        """Return the tokens of a whole output, without special tokens; in most families, as for any text."""
        return self.text_ids(text)

    def inner_ids(self, text: str) -> list[int]:
        """Return the tokens of words without a space before them, without special tokens."""
        ids = self.text_ids(text)
        alone = ids and self.pieces(torch.tensor(ids[:1], dtype=torch.int64, device="cpu")) == [" "]
        return ids[1:] if alone else ids

    def added_words(self) -> dict[int, str]:
        """Return the tokens that were added to the vocabulary and are not special, with their text."""
        special = set(self.tokenizer.all_special_ids)
        added = self.tokenizer.added_tokens_decoder.items()
        return {i: token.content for i, token in added if not token.special and i not in special}

    def piece(self, token: str) -> str:
        """Return the text of a token of the model's own vocabulary, in the form of `spes_hf.text`."""
        return sentencepiece_piece(token)

    def added_piece(self, word: str) -> str:
        """Return the text of a word that was added to the vocabulary."""
        return word.replace("▁", " ")

    def pieces(self, ids: Tensor) -> list[str]:
        """Return the text of every token, with the space that starts a word, in the form of `spes_hf.text`."""
        added, numbers = self.added_words(), ids.tolist()
        tokens = self.tokenizer.convert_ids_to_tokens(numbers)
        return [
            self.added_piece(added[i]) if i in added else self.piece(token)
            for i, token in zip(numbers, tokens, strict=True)
        ]

    def word_ends(self, vocabulary: int) -> Tensor:
        """Return for every token whether it shows that the word before it is complete, (V,) bool.

        Args:
            vocabulary: V, the size of the model's vocabulary; False for tokens that the tokenizer does not know.
        """
        ids = torch.arange(min(vocabulary, len(self.tokenizer)), dtype=torch.int64, device="cpu")
        found = torch.zeros(vocabulary, dtype=torch.bool, device="cpu")
        ends = [
            ends_word(piece, special) for piece, special in zip(self.pieces(ids), self.is_special(ids), strict=True)
        ]
        found[: len(ids)] = torch.tensor(ends, dtype=torch.bool, device="cpu")
        return found

    def text(self, ids: Tensor) -> str:
        """Return the text of the tokens, without special tokens."""
        if not self.added_words().keys() & set(ids.tolist()):
            return self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        # Tokenizers decode the letters of added words as bytes, or lose the space before them.
        kept = zip(self.pieces(ids), self.is_special(ids), strict=True)
        raw = "".join(piece for piece, special in kept if not special).encode("utf-8", errors="surrogateescape")
        return raw.decode("utf-8", errors="replace").strip()

    def is_timestamp(self, ids: Tensor) -> list[bool]:
        """Return for every token whether it is a timestamp; only Whisper has such tokens."""
        return [False] * len(ids)

    def special_ids(self) -> set[int]:
        """Return the tokens that are not text (start, end, language, task)."""
        return set(self.tokenizer.all_special_ids)

    def is_special(self, ids: Tensor) -> list[bool]:
        """Return for every token whether it is special."""
        special = self.special_ids()
        return [i in special for i in ids.tolist()]


class ByteLevelVocabulary(Vocabulary):
    """A vocabulary of byte-level tokens; tokens that start a word include the space before it."""

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of words with a space before them."""
        return super().text_ids(" " + text.strip())

    def inner_ids(self, text: str) -> list[int]:
        """Return the tokens of words without a space before them."""
        return super().text_ids(text.strip())

    def piece(self, token: str) -> str:
        """Return the text of a token of the model's own vocabulary."""
        return byte_level_piece(token)

    def added_piece(self, word: str) -> str:
        """Return the text of a word that was added to the vocabulary."""
        return word.replace("Ġ", " ")


def apart(text: str, words: dict[int, str]) -> list[str]:
    """Split a text: parts at odd indices are words of a vocabulary, parts at even indices are not."""
    if not words:
        return [text]
    longest_first = sorted(words.values(), key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, longest_first))})", text)

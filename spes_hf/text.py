"""From tokens to words.

A token of a byte-level vocabulary can be part of a character. Its text then holds the bytes as lone surrogates
(Python's "surrogateescape"), so joining the parts restores the character.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

# Scripts that are written without spaces: every token is a word.
_SPACELESS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER", "BOPOMOFO")

# The same scripts with names for messages, and further scripts whose tokens are seldom words.
_UNSPACED = dict.fromkeys(("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO"), "Chinese or Japanese") | {
    "THAI": "Thai",
    "LAO": "Lao",
    "KHMER": "Khmer",
    "MYANMAR": "Burmese",
    "TIBETAN": "Tibetan",
    "JAVANESE": "Javanese",
    "BALINESE": "Balinese",
}

# Marks that join what is on both sides: "don't", "twenty-three", "3.5".
_BINDING = frozenset("'’-.,:/@&")


_APOSTROPHES = "'’ʼ`´"

# Marks that a word may continue after: "don't", "twenty-three". Others end it, whatever follows.
_JOINING = frozenset("'’-/@&")


# First bytes of kana and Han characters in UTF-8, as lone surrogates.
_KANA_OR_HAN = ("\udce3", "\udce9")


# Byte-level BPE writes bytes that are printable in Latin-1 as themselves, the others as U+0100, U+0101, …
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(b): b for b in _PRINTABLE} | {
    chr(0x100 + i): b for i, b in enumerate(b for b in range(0x100) if b not in _PRINTABLE)
}


def byte_level_piece(token: str) -> str:
    """Return the text of a token of a byte-level vocabulary (Whisper, GPT-2); others stay as they are."""
    if any(c not in _BYTE_OF for c in token):
        return token
    return bytes(_BYTE_OF[c] for c in token).decode("utf-8", errors="surrogateescape")


def sentencepiece_piece(token: str) -> str:
    """Return the text of a token of a SentencePiece vocabulary, where "▁" is a space and "<0xE4>" a byte."""
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
    if byte:
        return bytes([int(byte[1], 16)]).decode("utf-8", errors="surrogateescape")
    return token.replace("▁", " ")


def join_pieces(pieces: Sequence[str]) -> str:
    r"""Return the text of a run of tokens; bytes that do not form a character are shown as "\xe4"."""
    text = "".join(pieces)
    try:
        raw = text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:  # surrogates that do not stand for bytes
        raw = text.encode("utf-8", errors="replace")
    return raw.decode("utf-8", errors="backslashreplace")


def word_groups(pieces: Sequence[str], special: Sequence[bool]) -> list[tuple[int, ...]]:
    """Return which tokens make up each word.

    A word begins at a space. Punctuation marks at its edges are words of their own; marks within it ("don't",
    "twenty-three", "3.5") are not. In scripts without spaces, every token is a word. Tokens that hold part of a
    character stay with the rest of it. Special tokens belong to no word.

    Args:
        pieces: Text of every token, with the space that starts a word.
        special: Whether each token is a special one.
    """
    groups: list[list[int]] = []
    open_group = False
    for k, piece in enumerate(pieces):
        if special[k] or not piece:
            open_group = open_group and not special[k]
            continue
        following = next((p for p, s in zip(pieces[k + 1 :], special[k + 1 :], strict=True) if p and not s), " ")
        if not (open_group and _continues(join_pieces([pieces[j] for j in groups[-1]]), piece, following)):
            groups.append([])
        groups[-1].append(k)
        open_group = True
    return [tuple(group) for group in groups if any(pieces[k].strip() for k in group)]


def _continues(word: str, piece: str, following: str) -> bool:
    """Return whether a piece belongs to the word before it."""
    first = piece[0]
    if "\udc80" <= first <= "\udcbf":  # the rest of a character
        return True
    if first.isspace() or word[-1].isspace():
        return not word.strip()  # a token that is nothing but a space belongs to the word it introduces
    if _is_spaceless(word[-1]) or _is_spaceless(first):
        return False
    if _is_mark(piece):
        letter = following[0].isalnum() or "\udc80" <= following[0] <= "\udcff"
        return piece in _BINDING and word[-1].isalnum() and letter
    if _is_mark(word[-1]):
        return word[-1] in _BINDING and word[-2:-1].isalnum()
    return True


def _is_mark(text: str) -> bool:
    return all(unicodedata.category(c)[0] in "PS" for c in text)


def _is_spaceless(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_SPACELESS)


def spaceless_script(texts: Iterable[str]) -> str | None:
    """Return the script, written without spaces between words, that at least a fifth of the letters belong to, if any.

    Korean has spaces. "Chinese or Japanese" means Han characters and kana.
    """
    letters, counts = 0, Counter[str]()
    for character, count in Counter("".join(texts)).items():
        if unicodedata.category(character) in ("Lo", "Lm", "Ll", "Lu", "Lt"):
            letters += count
            name = unicodedata.name(character, "").removeprefix("HALFWIDTH ")
            script = next((s for start, s in _UNSPACED.items() if name.startswith(start)), None)
            counts.update({script: count} if script else {})
    return counts.most_common(1)[0][0] if 5 * counts.total() >= max(letters, 1) else None


def ends_word(piece: str, special: bool = False) -> bool:
    """Return whether a token that follows a word shows that the word is complete.

    True for a space, a punctuation mark that does not join words, a special token, and any token of a script without
    spaces.

    Args:
        piece: Text of the token, with the space that starts a word.
        special: Whether the token is a special one, such as end of sequence.
    """
    if special or not piece:
        return special
    first = piece[0]
    if first.isspace() or _is_spaceless(first) or _KANA_OR_HAN[0] <= first <= _KANA_OR_HAN[1]:
        return True
    return _is_mark(piece) and first not in _JOINING


def clock(seconds: float, tenths: bool = False) -> str:
    """Return a time in a recording: "0:07", "12:34", "1:02:03"; with tenths of a second "0:07.4".

    Args:
        seconds: At least 0.
        tenths: Whether to round to tenths. Otherwise seconds are rounded down, as on a clock.
    """
    count = round(10 * seconds) if tenths else 10 * math.floor(seconds)
    whole = count // 10
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    after = f".{count % 10}" if tenths else ""
    return f"{hours}:{minutes:02}:{rest:02}{after}" if hours else f"{minutes}:{rest:02}{after}"


def normalise(word: str, apostrophes: bool = False) -> str:
    """Return a word in lower case, without punctuation and symbols; "" for a punctuation mark.

    Args:
        word: Any word.
        apostrophes: Whether to keep apostrophes within a word ("don't"), as pronouncing dictionaries do.
    """
    word = unicodedata.normalize("NFKC", word).casefold()
    for mark in _APOSTROPHES:
        word = word.replace(mark, "'")
    kept = "".join(c for c in word if unicodedata.category(c)[0] in "LMN" or (apostrophes and c == "'"))
    return kept.strip("'")

"""Fonts for scripts that Matplotlib's own font lacks: finds installed fonts that have the characters of a text."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache

from matplotlib import font_manager, get_cachedir, rcParams
from matplotlib.text import Text

# By the first word of a character's Unicode name: fonts to try first, and the Debian package of the first one.
_CJK = (("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "WenQuanYi Zen Hei", "Hiragino Sans",
         "PingFang SC", "Yu Gothic", "Microsoft YaHei"), "fonts-noto-cjk")  # fmt: skip
_KOREAN = (("Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans KR", "NanumGothic", "Apple SD Gothic Neo",
            "Malgun Gothic"), "fonts-noto-cjk")  # fmt: skip
_KNOWN: dict[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO", "FULLWIDTH", "HALFWIDTH"), _CJK),
    "KATAKANA-HIRAGANA": _CJK,
    "HANGUL": _KOREAN,
    "ARABIC": (("Noto Sans Arabic", "Noto Naskh Arabic", "Geeza Pro", "Segoe UI"), "fonts-noto-core"),
    "DEVANAGARI": (("Noto Sans Devanagari", "Kohinoor Devanagari", "Nirmala UI"), "fonts-noto-core"),
    "THAI": (("Noto Sans Thai", "Noto Sans Thai Looped", "Thonburi", "Leelawadee UI"), "fonts-noto-core"),
    # Emoji and other signs that belong to no script.
    "SYMBOL": (("Symbola", "Noto Sans Symbols2", "Segoe UI Symbol", "Apple Symbols"), "fonts-symbola"),
}
# Fonts with placeholder glyphs for every character, and fonts that Matplotlib cannot draw.
_USELESS = ("last resort", "lastresort", "adobe blank", "emoji")
BOX = "□"

_warned: set[str] = set()


def fit(texts: Iterable[Text]) -> None:
    """Set fonts for texts whose current fonts lack some of their characters.

    Characters that no installed font has are drawn as boxes, with one warning for each font to install. Does not touch
    Matplotlib's global settings.
    """
    for text in texts:
        content = text.get_text()
        if content.isascii():
            continue
        families, missing = families_for(content, text.get_fontfamily())
        if families:
            text.set_fontfamily([*text.get_fontfamily(), *families])
        if missing:
            text.set_text(_boxed(content, missing))


def drawable(text: str) -> str:
    """Return a text with a box for each character that no installed font has; for tick labels, which get recreated."""
    missing = set() if text.isascii() else families_for(text)[1]
    return _boxed(text, missing) if missing else text


def families_for(text: str, base: Iterable[str] | None = None) -> tuple[list[str], set[str]]:
    """Return installed families for the characters that the base families lack, and the characters that no family has.

    Args:
        text: The text to draw.
        base: Families to try first; None: Matplotlib's setting.
    """
    families: list[str] = []
    missing: set[str] = set()
    base = [*(rcParams["font.family"] if base is None else base)]
    for character in dict.fromkeys(text):
        if character.isascii() or any(_has(family, character) for family in (*base, *families)):
            continue
        family = _family_of(character, len(font_manager.fontManager.ttflist))
        if family is None:
            missing.add(character)
        else:
            families.append(family)
    return families, missing


@lru_cache(maxsize=4096)
def _family_of(character: str, installed: int) -> str | None:
    """Return a family that has a character; ``installed`` invalidates the cache when fonts were added."""
    return next((family for family in _candidates(character) if _has(family, character)), None)


def _candidates(character: str) -> Iterator[str]:
    """Yield installed families in the order to try them: those known for the script, plain ones, all others."""
    fonts = font_manager.fontManager.ttflist
    names = {font.name for font in fonts if font.style == "normal" and font.weight in (400, "normal", "regular")}
    script = _script(character)
    first = [*_KNOWN.get(script, ((), ""))[0], f"Noto Sans {script.title()}", "DejaVu Sans", "Noto Sans"]
    yield from (name for name in first if name in names)
    others = (name for name in names if name not in first and not any(word in name.lower() for word in _USELESS))
    yield from sorted(others, key=lambda name: ("Sans" not in name, len(name), name))


def _has(family: str, character: str) -> bool:
    """Return whether the font that Matplotlib uses for a family has a character."""
    path = _path(family, len(font_manager.fontManager.ttflist))
    if path is None:
        return False
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):
        return False
    return bool(font.scalable and font.get_char_index(ord(character)))


@lru_cache(maxsize=1024)
def _path(family: str, installed: int) -> str | None:
    try:
        return font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=False)
    except ValueError:
        return None


def _script(character: str) -> str:
    if unicodedata.category(character) in ("So", "Sk"):
        return "SYMBOL"
    return unicodedata.name(character, "UNKNOWN").split()[0]


def _boxed(text: str, missing: set[str]) -> str:
    _warn(missing)
    return text.translate({ord(c): "" if _is_invisible(c) else BOX for c in missing})


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf") or unicodedata.name(character, "").startswith("VARIATION")


def _warn(missing: Iterable[str]) -> None:
    """Warn about characters that no installed font has, once for each font to install."""
    for character in sorted(missing):
        script = _script(character)
        fonts, package = _KNOWN.get(
            script, ((f"Noto Sans {script.title()}".removesuffix(" Unknown"),), "fonts-noto-core")
        )
        if _is_invisible(character) or fonts[0] in _warned:
            continue
        _warned.add(fonts[0])
        warnings.warn(
            f"no installed font has {character!r} (U+{ord(character):04X}, {script.title()}): figures show {BOX} "
            f"instead. Install {fonts[0]!r} ({package} in Debian and Ubuntu, or https://fonts.google.com/noto), "
            f"then delete {get_cachedir()!r}, where Matplotlib caches its list of fonts, and restart Python",
            UserWarning,
            stacklevel=4,
        )

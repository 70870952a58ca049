"""Which tokens of an output are explained: all except timestamps, or those that the user names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from spes_hf.adapters.base import Adapter
from spes_hf.adapters.types import Target
from spes_hf.checks import is_whole
from spes_hf.errors import ConfigError
from spes_hf.scoring.foils import Words
from spes_hf.text import normalise

Chosen = str | int | Sequence[str | int]
"""Words or tokens, given by text or by index."""


def rows_of(
    adapter: Adapter,
    targets: Sequence[Target],
    words: Sequence[str | int] | None = None,
    tokens: Sequence[str | int] | None = None,
    timestamps: bool = False,
    among: Sequence[Iterable[int] | None] | None = None,
) -> list[tuple[int, ...] | None]:
    """Return for every output the indices of the tokens to explain, in order; None if that is all of them.

    Args:
        adapter: The model's adapter.
        targets: The outputs: one, or those of the windows of a recording.
        words: Words to explain: by text (every occurrence), or by index among the words of all outputs. None: all.
        tokens: Tokens to explain, given in the same way.
        timestamps: Whether to explain timestamp tokens too.
        among: For every output, the indices of the tokens that may be explained; None: all.

    Raises:
        ConfigError: If an index is out of range, or a text does not occur in the output.
    """
    counts = [len(target.token_ids) for target in targets]
    limits = [None] * len(targets) if among is None else among
    allowed = [set(range(n)) if some is None else set(some) for n, some in zip(counts, limits, strict=True)]
    when = [{k for k, is_one in enumerate(adapter.is_timestamp(t.token_ids)) if is_one} for t in targets]
    if words is not None or tokens is not None:
        named = _named(adapter, targets, words, tokens)
        wanted = [chosen | (own if timestamps else set()) for chosen, own in zip(named, when, strict=True)]
        allowed = [some & chosen for some, chosen in zip(allowed, wanted, strict=True)]
    elif not timestamps:
        allowed = [some - own for some, own in zip(allowed, when, strict=True)]
    return [None if len(some) == n else tuple(sorted(some)) for some, n in zip(allowed, counts, strict=True)]


def _named(
    adapter: Adapter,
    targets: Sequence[Target],
    words: Sequence[str | int] | None,
    tokens: Sequence[str | int] | None,
) -> list[set[int]]:
    """Return for every output the tokens that the user names."""
    found = [Words.of(adapter, target.token_ids) for target in targets]
    chosen: list[set[int]] = [set() for _ in targets]
    for output, i in _places(words, [each.texts for each in found], "words", normalised=True):
        chosen[output].update(found[output].groups[i])
    for output, k in _places(tokens, [each.pieces for each in found], "tokens"):
        chosen[output].add(k)
    return chosen


def _places(
    names: Sequence[str | int] | None, texts: Sequence[Sequence[str]], what: str, normalised: bool = False
) -> list[tuple[int, int]]:
    """Return the output and the index of every named item."""
    starts = [0, *accumulate(map(len, texts))]
    every = [(output, i) for output, own in enumerate(texts) for i in range(len(own))]
    found: list[tuple[int, int]] = []
    for name in names or ():
        if isinstance(name, int):
            if not every:
                raise ConfigError(f"{what} contains {name}, but the model wrote none; leave the argument out")
            if not -starts[-1] <= name < starts[-1]:
                raise ConfigError(f"{what} contains {name}, but there are only {starts[-1]}: 0 … {starts[-1] - 1}")
            found.append(every[name])
            continue
        hits = [(output, i) for output, i in every if _alike(name, texts[output][i], normalised)]
        if not hits:
            written = " ".join(text.strip() for own in texts for text in own)
            shown = written if len(written) <= 200 else written[:199] + "…"
            raise ConfigError(f"{what} contains {name!r}, which the model did not write; it wrote {shown!r}")
        found += hits
    return found


def listed(names: Any) -> list[str | int] | None:
    """Return the words or tokens that the user names, as a list of texts and indices; None for None.

    Raises:
        ConfigError: If the argument is not a text, an index or several of them.
    """
    if names is None:
        return None
    if isinstance(names, (bytes, bytearray, bool)) or not (isinstance(names, Iterable) or is_whole(names)):
        raise ConfigError(f"words or tokens is {names!r}; allowed: a text, an index, or a list of them")
    found = [names] if isinstance(names, str) or is_whole(names) else list(names)
    wrong = [name for name in found if not (isinstance(name, str) or is_whole(name))]
    if wrong:
        raise ConfigError(f"words or tokens contains {wrong[0]!r}; allowed: texts and indices")
    if not found:
        raise ConfigError(f"words or tokens is {names!r}, which is empty; leave it out to explain all")
    return [name if isinstance(name, str) else int(name) for name in found]


def _alike(name: str, text: str, normalised: bool) -> bool:
    if name.strip() == text.strip():
        return True
    return normalised and bool(normalise(name)) and normalise(name) == normalise(text)

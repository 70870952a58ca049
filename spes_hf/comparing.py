"""Two explanations of the same clip: `compare`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import soxr
import torch
from torch import Tensor

from spes_hf.differences import Pair, pairs
from spes_hf.errors import AudioError, ConfigError
from spes_hf.explanation import Explanation
from spes_hf.explanation.comparison import Comparison
from spes_hf.explanation.grid import Grid
from spes_hf.explanation.origin import Origin
from spes_hf.explanation.recording import Recording
from spes_hf.text import normalise

# Clips that differ by less than this share of their energy are the same: one may have been stored in 16 bits, or heard
# at another sampling rate.
_SAME_SHARE = 0.01

# Waveforms may differ in length by this, if their sampling rates differ.
_ROUNDING_S = 0.002


def compare(first: Explanation, second: Explanation, names: Sequence[str] | None = None) -> Comparison:
    """Return two explanations of the same clip side by side: of two models, or by two methods.

    The texts are aligned word by word, as for the word error rate, without case and punctuation. Where they have
    different numbers of words, neighbouring words make one pair. Maps are on one grid: the explanations' own if both
    have the same frames and mel bins, otherwise the coarser of the two axes, over whose cells the finer map is
    averaged.

    Args:
        first: An explanation over tokens or words.
        second: Another of the same audio.
        names: Names for the two; None: model, method or whatever else distinguishes them.

    Returns:
        A `Comparison`: print it, `plot` a word, or write the page with `to_html`.

    Raises:
        AudioError: If the two explain different audio.
        ConfigError: If one is not an explanation, has no maps or samples, is damaged, or has a foil and the other has
            none; if ``names`` are not two different texts.

    Examples:
        >>> loudness = explain(model, processor, clip, config=EnergyConfig())
        >>> comparison = compare(ex, loudness)
        >>> comparison.names, len(comparison.agreement)
        (('spes', 'energy'), 5)
    """
    for name, given in (("first", first), ("second", second)):
        _check_explanation(name, given)
    if (first.contrasts is None) != (second.contrasts is None):
        with_foil = "first" if first.contrasts is not None else "second"
        raise ConfigError(f"{with_foil} has a foil and the other has none; pass two with a foil, or two without")
    _check_same_audio(first, second)
    one, other = first.words(), second.words()
    return Comparison(
        one,
        other,
        _names(first.origin, second.origin) if names is None else _check_names(names),
        tuple(_pairs(one.tokens, other.tokens)),
        Grid.shared(Grid.of(one), Grid.of(other)),
    )


def _check_explanation(name: str, given: Any) -> None:
    if isinstance(given, Recording):
        raise ConfigError(f"{name} is a Recording; pass the explanation of one of its windows, such as recording[0]")
    if not isinstance(given, Explanation):
        raise ConfigError(
            f"{name} is of type {type(given).__name__}; allowed: an Explanation, as explain() returns it. "
            "Explanation.load(path) reads a saved one"
        )
    if not len(given.pieces):
        raise ConfigError(f"{name} explains no token and so has no map; pass an explanation of at least one token")
    if not len(given.waveform):
        raise ConfigError(
            f"{name} has no samples, so its audio cannot be compared; explain the audio again, or restore its samples "
            "with dataclasses.replace(explanation, waveform=samples)"
        )
    for axis in ("times", "frequencies"):
        if not bool((getattr(given, axis).diff() > 0).all()):
            raise ConfigError(f"{name} is damaged: its {axis} do not increase; explain the clip again")


def _check_same_audio(first: Explanation, second: Explanation) -> None:
    """Refuse explanations of different audio.

    Raises:
        AudioError: If it differs; the message says how.
    """
    remedy = "pass two explanations of one clip"
    seconds = [len(each.waveform) / each.sampling_rate for each in (first, second)]
    same_rate = first.sampling_rate == second.sampling_rate
    if abs(seconds[0] - seconds[1]) > (0.0 if same_rate else _ROUNDING_S):
        raise AudioError(f"first has {seconds[0]:.3f} s of audio, but second has {seconds[1]:.3f} s; {remedy}")
    rate = min(first.sampling_rate, second.sampling_rate)
    one, other = (_at_rate(each, rate) for each in (first, second))
    length = min(len(one), len(other))
    apart = float((one[:length] - other[:length]).square().sum())
    if apart > _SAME_SHARE * max(float(one.square().sum()), float(other.square().sum())):
        raise AudioError(f"first and second have different audio of the same length ({seconds[0]:.3f} s); {remedy}")


def _at_rate(explanation: Explanation, rate: int) -> Tensor:
    if explanation.sampling_rate == rate:
        return explanation.waveform.double()
    return torch.from_numpy(soxr.resample(explanation.waveform.numpy(), explanation.sampling_rate, rate)).double()


def _check_names(names: Sequence[str]) -> tuple[str, str]:
    given = [] if isinstance(names, str) else list(names)
    if len(given) != 2 or not all(isinstance(name, str) and name.strip() for name in given) or given[0] == given[1]:
        raise ConfigError(f'names is {names!r}; allowed: two different texts, such as ("tiny", "base")')
    return given[0], given[1]


def _pairs(first: Sequence[str], second: Sequence[str]) -> list[Pair]:
    """Return the pairs of words, without punctuation marks, as indices among all words."""
    spoken = [[i for i, word in enumerate(words) if normalise(word)] for words in (first, second)]
    texts = [[words[i] for i in places] for words, places in zip((first, second), spoken, strict=True)]
    return [
        Pair(tuple(spoken[0][i] for i in pair.first), tuple(spoken[1][i] for i in pair.second), pair.equal)
        for pair in pairs(*texts)
    ]


def _names(first: Origin, second: Origin) -> tuple[str, str]:
    """Return what distinguishes the two: models and methods, else the first setting that differs."""
    parts = [(_model(origin), origin.method) for origin in (first, second)]
    apart = [(one, other) for one, other in zip(*parts, strict=True) if one != other]
    for name in ("tgt_lang", "language", "task", "seed"):
        one, other = getattr(first, name), getattr(second, name)
        if not apart and one != other:
            apart.append((f"{name} {one}", f"{name} {other}"))
    if not apart and first.text_given != second.text_given:
        apart.append(("given text", "generated text") if first.text_given else ("generated text", "given text"))
    apart = apart or [("first", "second")]
    return " · ".join(one for one, _ in apart), " · ".join(other for _, other in apart)


def _model(origin: Origin) -> str:
    """Return the last part of a model's name or path, or its class."""
    name = str(origin.model.get("name") or "").rstrip("\\/")
    return re.split(r"[\\/]", name)[-1] or str(origin.model.get("class") or "model")

"""Checks that the parts of a stored explanation fit together, so that any explanation that loads can be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from spes_hf.explanation.maps import PatchMap
    from spes_hf.explanation.result import Explanation

_MAX_RATE_HZ = 655_350  # the highest of FLAC, which pages play
_LARGE = 1e30  # smaller values can be added and divided in float32 without overflow
_SECTIONS = ("config", "model", "audio", "output", "cost", "versions", "window")


def check_sound(explanation: Explanation) -> Explanation:
    """Return the explanation if all of its parts fit together.

    Raises:
        ValueError: If they do not; the message names the part.
    """
    e = explanation
    tokens, context = len(e.pieces), len(e.context_pieces)
    _check(isinstance(e.text, str), "text is not a string")
    for name, kind, length in (
        ("pieces", str, max(tokens, 1)),
        ("token_id_list", int, tokens),
        ("context_pieces", str, context),
        ("special", bool, tokens),
    ):
        values = getattr(e, name)
        fits = isinstance(values, tuple) and len(values) == length and all(type(v) is kind for v in values)
        _check(fits, f"{name} is not {length} values of type {kind.__name__}")
    _check(all(-(2**63) <= i < 2**63 for i in e.token_id_list), "token_id_list has values that are not ids")
    _check(_is_count(e.prefix_length), "prefix_length is not a number of tokens")
    if e.part is not None:
        _check(e.contrasts is None, "part and contrasts exclude each other")
        _check_part(e)
        _check(context == e.prefix_length + len(e.part.token_ids) - 1, "prefix_length does not fit")
    elif e.contrasts is None:
        _check(context == e.prefix_length + tokens - 1, "prefix_length does not fit")
    else:
        _check_contrasts(e.contrasts, tokens, context - e.prefix_length)
    _check(_is_count(e.sampling_rate) and 0 < e.sampling_rate <= _MAX_RATE_HZ, "sampling_rate is not a rate in Hz")
    _check((e.groups is None) == (e.context_groups is None), "only one of groups and context_groups is there")
    _check(e.groups is None or _are_groups(e.groups, tokens), "groups are not groups of the tokens")
    _check(e.context_groups is None or _are_groups(e.context_groups, context), "context_groups are not groups")

    _check(e.features.ndim == 2 and e.features.numel() > 0, f"features have shape {tuple(e.features.shape)}")
    frames, bins = e.features.shape
    shapes = {
        "features": (e.features, (frames, bins)),
        "times": (e.times, (frames,)),
        "frequencies": (e.frequencies, (bins,)),
        "probabilities": (e.probabilities, (tokens,)),
        "raw_token_scores": (e.raw_token_scores, (tokens, context)),
        "token_sound_bits": (e.token_sound_bits, (tokens,)),
        "token_text_bits": (e.token_text_bits, (tokens,)),
        "text_impact": (e.text_impact, (tokens,)),
        "sound_impact": (e.sound_impact, (tokens,)),
        "reliability": (e.token_reliability.tokens, (tokens,)),
        "waveform": (e.waveform, (e.waveform.numel() or 1,)),
    }
    for name, (tensor, shape) in shapes.items():
        _check_floats(name, tensor, shape)
    for name in ("features", "times", "frequencies", "waveform"):
        _check(bool(shapes[name][0].isfinite().all()), f"{name} has values that are not finite")
    if e.token_instruction_bits is not None:
        _check_floats("token_instruction_bits", e.token_instruction_bits, (tokens,))
    _check_map("audio_map", e.audio_map, tokens, (frames, bins))
    if e.sentence_map is not None:
        _check_map("sentence_map", e.sentence_map, 1, (frames, bins))
    if e.encoder_map is not None:
        scores, centres = e.encoder_map.scores, e.encoder_map.times
        _check_floats("encoder_map.times", centres, (centres.numel() or 1,))
        _check_floats("encoder_map.scores", scores, (tokens, len(centres)))
        finite = bool((scores.abs() <= _LARGE).all() and centres.isfinite().all())
        _check(finite, "encoder_map has values that are not finite, or too large")
    _check_provenance(e.provenance)
    return explanation


def _check_part(e: Explanation) -> None:
    """Raise an error if the part's rows are not those of the explanation."""
    part = e.part
    assert part is not None
    written = len(part.token_ids)
    for name, kind in (
        ("token_ids", int),
        ("pieces", str),
        ("special", bool),
        ("timestamps", bool),
        ("sound_bits", float),
    ):
        values = getattr(part, name)
        fits = isinstance(values, tuple) and len(values) == written and all(type(v) is kind for v in values)
        _check(fits, f"part.{name} is not {written} values of type {kind.__name__}")
    _check(all(map(math.isfinite, part.sound_bits)), "part.sound_bits has values that are not finite")
    _check(all(0 <= i < 2**63 for i in part.token_ids), "part.token_ids has values that are not ids")
    rows = part.rows
    within = isinstance(rows, tuple) and all(type(k) is int and 0 <= k < written for k in rows)
    _check(within and list(rows) == sorted(set(rows)), "part.rows are not places in the text")
    own = [tuple(values[k] for k in rows) for values in (part.token_ids, part.pieces, part.special)]
    _check(own == [e.token_id_list, e.pieces, e.special], "part.rows are not those of the explanation")


def _check_contrasts(contrasts: Any, rows: int, written: int) -> None:
    """Raise an error if contrasts are malformed, or do not fit the rows and the written tokens before the last."""
    _check(len(contrasts) == rows, "contrasts do not match the rows one to one")
    for c in contrasts:
        _check(isinstance(c.target, str) and isinstance(c.foil, str), "contrasts have texts that are not strings")
        _check(_is_count(c.start) and c.start <= written + 1, "contrasts start outside the text")
        for ids in (c.target_ids, c.foil_ids):
            _check(isinstance(ids, tuple) and bool(ids) and all(map(_is_count, ids)), "contrasts have no tokens")
        within = isinstance(c.tokens, tuple) and all(_is_count(k) and k <= written for k in c.tokens)
        _check(within, "contrasts have tokens outside the text")
        odds = (c.target_log2, c.foil_log2)
        _check(all(isinstance(v, float) and math.isfinite(v) for v in odds), "contrasts have no log-odds")
        _check(isinstance(c.words_end, bool) and _is_count(c.question), "contrasts are damaged")


def check_scores(name: str, scores: Tensor) -> Tensor:
    """Return the (K, F) scores of a level if they have that shape.

    Raises:
        ValueError: If they do not.
    """
    _check(scores.ndim == 2 and scores.numel() > 0, f"{name} has shape {tuple(scores.shape)}, not tokens × patches")
    return scores


def no_constant(name: str) -> float:
    """Raise an error for NaN and infinity, which JSON does not have; a ``parse_constant`` for `json.loads`.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is not JSON")


def _check_map(name: str, patches: PatchMap, rows: int, shape: tuple[int, int]) -> None:
    labels, levels = patches.labels, len(patches.values)
    fits = labels.dtype == torch.int32 and labels.ndim == 3 and labels.shape[1:] == shape and 0 < levels <= len(labels)
    _check(fits, f"labels of {name} have shape {tuple(labels.shape)}, but there are {levels} levels of scores")
    for level, scores in enumerate(patches.values):
        units = scores.shape[-1]
        _check_floats(f"{name}, level {level}", scores, (rows, units))
        within = 0 <= int(labels[level].min()) and int(labels[level].max()) < units
        _check(within, f"labels of {name}, level {level}, lie outside its {units} patches")
    limit = _LARGE
    if patches.weights is not None:
        for level, (scores, weights) in enumerate(zip(patches.values, patches.weights, strict=True)):
            _check_floats(f"{name}, level {level}, counts", weights, (scores.shape[-1],))
        counts = torch.cat(patches.weights).double()
        _check(bool(((counts >= 0) & (counts <= _LARGE)).all()), f"counts of {name} are not sums of masks")
        # Levels are pooled, so the smallest count may divide the largest score.
        limit = _LARGE * min(1.0, float(counts[counts > 0].min())) if counts.any() else _LARGE
    sums = torch.cat(patches.values, dim=1).double()
    _check(bool((sums.abs() <= limit).all()), f"scores of {name} are not finite, or too large for its counts")


def _check_provenance(provenance: Any) -> None:
    _check(isinstance(provenance, dict), "provenance is not a mapping")
    for name in _SECTIONS:
        _check(isinstance(provenance.get(name, {}), Mapping), f"provenance.{name} is not a mapping")
    cost, notes = provenance.get("cost", {}), provenance.get("audio", {}).get("notes", [])
    _check(all(type(v) in (int, float) for v in cost.values()), "provenance.cost has values that are not numbers")
    _check(isinstance(notes, (list, tuple)) and all(isinstance(n, str) for n in notes), "provenance.audio.notes")
    kwargs = provenance.get("output", {}).get("generate_kwargs", {})
    _check(isinstance(kwargs, Mapping), "provenance.output.generate_kwargs is not a mapping")


def _check_floats(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    fits = tensor.dtype in (torch.float32, torch.float64) and tensor.shape == shape
    _check(fits, f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; floats of shape {shape} are expected")


def _are_groups(groups: Any, count: int) -> bool:
    """Return whether these are tuples of indices below ``count``, none of them empty."""
    return isinstance(groups, tuple) and all(
        isinstance(group, tuple) and group and all(type(i) is int and 0 <= i < count for i in group) for group in groups
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _check(fits: bool, otherwise: str) -> None:
    if not fits:
        raise ValueError(otherwise)

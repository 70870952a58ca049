"""Explanations on disk: a folder with safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from spes_hf.errors import ExplanationFormatError
from spes_hf.explanation import Explanation, PatchMap, Reliability, waveforms
from spes_hf.explanation.maps import EncoderMap
from spes_hf.explanation.origin import without_time
from spes_hf.explanation.parts import Part
from spes_hf.explanation.soundness import check_scores, check_sound, no_constant
from spes_hf.files import whole_file
from spes_hf.masking.segments import feature_labels
from spes_hf.scoring.contrast import Contrast
from spes_hf.scoring.eq3 import weighted_mean

FORMAT = "spes_hf.explanation"
# 2 if the waveform needs more than the 16 bits of version 1; 3 with a foil; 4 if only part of the output is explained.
FORMAT_VERSIONS = (1, 2, 3, 4)
DESCRIPTION = "explanation.json"

# Errors that parts raise when they do not fit together.
DAMAGE = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)

# Field → name in the file.
_TENSOR_FIELDS = {
    **{name: name for name in ("probabilities", "features", "times", "frequencies", "raw_token_scores")},
    "text_impact": "token_mean_impact",
    "sound_impact": "audio_mean_impact",
}
# Fields that explanations by earlier versions lack; they become NaN.
_BITS = ("token_sound_bits", "token_text_bits")
_INSTRUCTION = "token_instruction_bits"
# Fields of the map of the encoder's output, if there is one; versions without such maps ignore them.
_ENCODER = ("encoder.scores", "encoder.times")
_TUPLE_FIELDS = ("pieces", "token_id_list", "context_pieces", "special", "groups", "context_groups")
_PLAIN_FIELDS = ("text", "prefix_length", "sampling_rate", "provenance")


def save_explanation(explanation: Explanation, folder: Path) -> Path:
    """Write an explanation to a folder, which is created if it does not exist.

    Writes the tensors first, under a name made from their checksum. Then the description, which names them, replaces
    an older one in one step. Then older tensors are deleted. An interrupted save leaves the older explanation intact.

    Raises:
        ExplanationFormatError: If ``folder`` is a file.
    """
    if folder.is_file():
        raise ExplanationFormatError(f"path {str(folder)!r} is a file; pass a folder to write the explanation to")
    values, parts = to_parts(explanation)
    tensors = save_tensors(parts)
    checksum = hashlib.sha256(tensors).hexdigest()
    description = {
        "format": FORMAT,
        "format_version": version_of(values, parts),
        "tensors": f"explanation-{checksum[:12]}.safetensors",
        "tensors_sha256": checksum,
        **values,
    }
    description["sha256"] = _checksum(description)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        (description["tensors"], tensors),
        (DESCRIPTION, _written(description)),
    ):
        with whole_file(folder / name) as file:
            file.write(content)
    for path in folder.glob("explanation-*.safetensors"):
        if path.name != description["tensors"]:
            path.unlink(missing_ok=True)
    return folder


def load_explanation(folder: Path) -> Explanation:
    """Return the explanation in a folder, given its path or that of a file in it.

    Raises:
        ExplanationFormatError: If there is none, it is damaged, or something else wrote it.
    """
    folder = folder.parent if folder.suffix in (".json", ".safetensors") and not folder.is_dir() else folder
    description, raw = _read(folder)
    try:
        return _explanation(description, load_tensors(raw))
    except DAMAGE as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return the description, without its checksum, and the tensors of an explanation saved to a folder.

    Raises:
        ExplanationFormatError: If there is none, it is damaged, or something else wrote it.
    """
    if not (folder / DESCRIPTION).is_file():
        raise ExplanationFormatError(
            f"path {str(folder)!r} holds no {DESCRIPTION}; pass a folder that Explanation.save() wrote"
        )
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes(), parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"{DESCRIPTION} is not JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ExplanationFormatError(
            f"path {str(folder)!r} was not written by Explanation.save(): its {DESCRIPTION} is not a {FORMAT}"
        )
    if description.get("format_version") not in FORMAT_VERSIONS:
        raise ExplanationFormatError(
            f"path {str(folder)!r} has format version {description.get('format_version')!r}; this version of spes_hf "
            f"reads {FORMAT_VERSIONS[0]} to {FORMAT_VERSIONS[-1]}: install the version that wrote it, or explain again"
        )
    if description.pop("sha256", None) != _checksum(description):
        raise _damaged(folder, f"{DESCRIPTION} was changed after it was written")
    name = description.get("tensors")
    # A name that leads to another folder, or to a device, was not written by us.
    if not isinstance(name, str) or not re.fullmatch(r"explanation-[0-9a-f]+\.safetensors", name):
        raise _damaged(folder, f"{DESCRIPTION} names {name!r} as the file of its tensors")
    if (folder / name).exists() and not (folder / name).is_file():
        raise _damaged(folder, f"{name} is not a file")
    try:
        raw = (folder / name).read_bytes()
    except OSError as error:
        raise _damaged(folder, f"{name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(raw).hexdigest() != description.get("tensors_sha256"):
        raise _damaged(folder, f"{name} was changed after it was written")
    return description, raw


def timeless(folder: Path) -> dict[str, bytes]:
    """Return the files of a saved explanation by name, without the time it took, so that they are always the same.

    Raises:
        ExplanationFormatError: If there is none, or it is damaged.
    """
    description, tensors = _read(folder)
    description["provenance"] = without_time(description["provenance"])
    description["sha256"] = _checksum(description)
    return {DESCRIPTION: _written(description), description["tensors"]: tensors}


def _written(description: dict[str, Any]) -> bytes:
    return json.dumps(description, indent=1, allow_nan=False).encode("ascii")


def to_parts(explanation: Explanation) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the parts of an explanation: values for JSON, and tensors."""
    sentence = explanation.token_reliability.sentence
    plain = {name: getattr(explanation, name) for name in (*_PLAIN_FIELDS, *_TUPLE_FIELDS)}
    if explanation.contrasts is not None:
        plain["contrasts"] = [asdict(contrast) for contrast in explanation.contrasts]
    if explanation.part is not None:
        plain["part"] = asdict(explanation.part)
    return {"reliability_of_sentence": None if math.isnan(sentence) else sentence, **plain}, _tensors(explanation)


def version_of(values: dict[str, Any], tensors: dict[str, Tensor]) -> int:
    """Return the version of the format that these parts need."""
    if "part" in values:
        return 4
    if "contrasts" in values:
        return 3
    return 1 if waveforms.FIRST in tensors else 2


def from_parts(values: dict[str, Any], tensors: dict[str, Tensor]) -> Explanation:
    """Return the explanation that `to_parts` took apart; a missing part raises a KeyError."""
    return _explanation(values, tensors)


def _checksum(description: dict[str, Any]) -> str:
    """Return the checksum of a description, independent of how JSON formats it."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode("ascii")).hexdigest()


def _tensors(explanation: Explanation) -> dict[str, Tensor]:
    tensors = {stored: getattr(explanation, name) for name, stored in _TENSOR_FIELDS.items()}
    if torch.allclose(explanation.sound_impact, _impact_of(explanation.audio_map), rtol=0, atol=0, equal_nan=True):
        del tensors["audio_mean_impact"]  # it can be computed again
    tensors |= {name: bits for name in _BITS if not (bits := getattr(explanation, name)).isnan().all()}
    if explanation.token_instruction_bits is not None:
        tensors[_INSTRUCTION] = explanation.token_instruction_bits
    tensors["reliability"] = explanation.token_reliability.tokens
    if (encoder := explanation.encoder_map) is not None:
        tensors |= dict(zip(_ENCODER, (encoder.scores, encoder.times), strict=True))
    name, stored = waveforms.to_stored(explanation.waveform)
    tensors[name] = stored
    for name, patches in (("audio", explanation.audio_map), ("sentence", explanation.sentence_map)):
        if patches is None:
            continue
        if name == "audio" or not torch.equal(patches.labels, explanation.audio_map.labels):
            # Without labels, every feature is its own unit.
            own = torch.equal(patches.labels, feature_labels(explanation.features).int())
            tensors[f"{name}.labels"] = patches.labels[:0] if own else patches.labels
        tensors |= {f"{name}.numerator.{level}": values for level, values in enumerate(patches.values)}
        tensors |= {f"{name}.denominator.{level}": weights for level, weights in enumerate(patches.weights or ())}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _explanation(description: dict[str, Any], tensors: dict[str, Tensor]) -> Explanation:
    values: dict[str, Any] = {name: description[name] for name in _PLAIN_FIELDS}
    values |= {name: _tuples(description[name]) for name in _TUPLE_FIELDS}
    contrasts = description.get("contrasts")
    values["contrasts"] = None if contrasts is None else tuple(_contrast(entries) for entries in contrasts)
    part = description.get("part")
    values["part"] = None if part is None else Part(**{name: _tuples(value) for name, value in part.items()})
    values["audio_map"] = _patch_map("audio", tensors)
    values["sentence_map"] = _patch_map("sentence", tensors) if "sentence.numerator.0" in tensors else None
    values["encoder_map"] = EncoderMap(*(tensors[name] for name in _ENCODER)) if _ENCODER[0] in tensors else None
    if "audio_mean_impact" not in tensors:
        tensors = {**tensors, "audio_mean_impact": _impact_of(values["audio_map"])}
    values |= {name: tensors[stored] for name, stored in _TENSOR_FIELDS.items()}
    unknown = torch.full(values["probabilities"].shape, torch.nan, dtype=torch.float32, device="cpu")
    values |= {name: tensors.get(name, unknown) for name in _BITS} | {_INSTRUCTION: tensors.get(_INSTRUCTION)}
    sentence = description["reliability_of_sentence"]
    values["token_reliability"] = Reliability(tensors["reliability"], math.nan if sentence is None else float(sentence))
    values["waveform"] = waveforms.from_stored(tensors)
    if values.keys() != {f.name for f in fields(Explanation)}:
        raise KeyError(f"fields {sorted(values)}")
    return check_sound(Explanation(**values))


def _patch_map(name: str, tensors: dict[str, Tensor]) -> PatchMap:
    levels = range(sum(key.startswith(f"{name}.numerator.") for key in tensors))
    labels = tensors.get(f"{name}.labels", tensors["audio.labels"])
    keys = [f"{name}.numerator.{level}" for level in levels]
    scores = tuple(check_scores(key, tensors[key]) for key in keys)
    weights = None
    if any(f"{name}.denominator.{level}" in tensors for level in levels):  # not stored if 1 throughout
        counts = zip(levels, scores, strict=True)
        weights = tuple(tensors.get(f"{name}.denominator.{level}", s.new_ones(s.shape[1])) for level, s in counts)
    return PatchMap(labels if len(labels) else feature_labels(tensors["features"]).int(), scores, weights)


def _impact_of(audio: PatchMap) -> Tensor:
    """Return the impact of the average mask, (K,), from the sums of a map; NaN if it has none."""
    if audio.weights is None:
        return torch.full((len(audio.values[0]),), torch.nan, dtype=torch.float32, device="cpu")
    return weighted_mean(audio.values, audio.weights)


def _contrast(entries: dict[str, Any]) -> Contrast:
    return Contrast(**{name: _tuples(value) for name, value in entries.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _damaged(folder: Path, why: str) -> ExplanationFormatError:
    return ExplanationFormatError(f"path {str(folder)!r} is damaged ({why}); explain again, or restore the folder")

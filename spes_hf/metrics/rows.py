"""Rows of a corpus: finds their explanation, and checks which model and method it came from."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.explanation.packing import unpack
from spes_hf.explanation.recording import Recording
from spes_hf.explanation.recording_plan import DESCRIPTION
from spes_hf.explanation.recording_rows import is_packed
from spes_hf.explanation.recording_rows import unpack as unpack_recording
from spes_hf.rows import RowTransform, is_batch, is_lazy
from spes_hf.runtime.identity import is_all_here, names_of, weights_digest

Row = Mapping[str, Any]


def failed(row: Row | Explanation | Recording) -> bool:
    """Return whether a row has an error instead of an explanation."""
    return isinstance(row, Mapping) and bool(row.get("error"))


def explanation_of(row: Row | Explanation | Recording) -> Explanation:
    """Return the explanation, over tokens, of a row.

    "explanation" may be an `Explanation`, the path of a saved one, or the bytes that `Explain` made.

    Raises:
        ConfigError: If the row has no explanation.
        ExplanationFormatError: If the path or the bytes do not contain an explanation.
    """
    found: Any = row
    if isinstance(row, Mapping):
        if row.get("explanation") in (None, b""):
            raise ConfigError(
                f"row has no 'explanation' (it has {', '.join(map(str, row)) or 'nothing'}); explain it first, and "
                "store the Explanation, or the folder of a saved one, in that column"
            )
        found = row["explanation"]
    if isinstance(found, (str, PathLike)):
        found = Explanation.load(Path(found))
    if isinstance(found, Recording) or is_packed(found):
        raise ConfigError("explanation is a recording of several windows; pass them one by one: for ex in recording")
    if isinstance(found, (bytes, bytearray, memoryview)):
        found = unpack(bytes(found))
    if not isinstance(found, Explanation):
        raise ConfigError(f"explanation is a {type(found).__name__}; pass an Explanation or the folder of a saved one")
    return replace(found, groups=None, context_groups=None) if found.over_words else found


def recording_of(row: Row | Explanation | Recording) -> Recording | None:
    """Return the recording of a row; None if it has none.

    "explanation" may be a `Recording`, the path of a saved one, or the bytes that `Explain` made.
    """
    found: Any = row.get("explanation") if isinstance(row, Mapping) else row
    if isinstance(found, (str, PathLike)) and (Path(found) / DESCRIPTION).is_file():
        found = Recording.load(Path(found))
    if is_packed(found):
        found = unpack_recording(bytes(found))
    return found if isinstance(found, Recording) else None


def as_dict(row: Row | Explanation | Recording) -> dict[str, Any]:
    """Return the row as a new dictionary; an explanation alone becomes a row of its own.

    If ``Dataset.map`` merges the row into the result itself, the dictionary is empty: reading a column would decode it.
    """
    if is_lazy(row):
        return {}
    return dict(row) if isinstance(row, Mapping) else {"explanation": row}


class ExplanationMetric(RowTransform):
    """A transform that adds an entry under its key, computed from a row's explanation or recording."""

    def entry_of_row(self, row: Row | Explanation | Recording, saliency: Any = None) -> dict[str, Any]:
        """Return the row, or a batch of rows, with the entry; a row with an error gets None.

        Args:
            row: An explanation or a recording, or a row with one, or with the folder of one, at "explanation".
            saliency: Maps to rank the features by. A whole number is the rank of a worker, which
                ``Dataset.map(…, with_rank=True)`` passes here.

        Raises:
            ConfigError: If there is no explanation, or it cannot be measured.
        """
        if isinstance(saliency, int):
            self.take_place(saliency)
            saliency = None
        if is_batch(row, "explanation"):
            return self.of_batch(row)
        if failed(row):
            return {**as_dict(row), self.key: None}
        recording = recording_of(row)
        if recording is not None:
            return {**as_dict(row), self.key: self.of_recording(recording, saliency)}
        return {**as_dict(row), self.key: self.of_explanation(explanation_of(row), saliency)}

    @abstractmethod
    def of_explanation(self, explanation: Explanation, saliency: Any) -> dict[str, Any]:
        """Return the entry of an explanation over tokens."""

    def of_recording(self, recording: Recording, saliency: Any) -> dict[str, Any] | None:
        """Return the entry of a recording; None if it has no windows."""
        raise ConfigError("explanation is a recording of several windows; pass them one by one: for ex in recording")


def check_map(saliency: Any, explanation: Explanation, name: str) -> Tensor:
    """Return a map over the spectrogram, (T, C) on the CPU.

    Raises:
        ConfigError: If its shape is not that of the features, or it contains NaN or infinity.
    """
    if not isinstance(saliency, Tensor):
        saliency = torch.from_numpy(np.array(saliency, dtype=getattr(saliency, "dtype", np.float32)))
    saliency = saliency.detach().cpu()
    if saliency.shape != explanation.features.shape:
        raise ConfigError(
            f"{name} has shape {tuple(saliency.shape)}, but the features have {tuple(explanation.features.shape)}; "
            "pass one value per frame and mel bin, (frames, mel bins)"
        )
    if not saliency.isfinite().all():
        bad = int((~saliency.isfinite()).sum())
        raise ConfigError(f"{name} contains {bad} values that are NaN or infinite; explain again")
    return saliency


def check_maps(saliency: Any, explanation: Explanation, count: int, what: str) -> list[Tensor]:
    """Return ``count`` maps, (T, C) each, from maps (count, T, C) or from a single map (T, C) for all.

    Args:
        saliency: The maps.
        explanation: Explanation with the spectrogram that they cover.
        count: Required number of maps.
        what: What the maps are for, for messages: "contrasts", "words".

    Raises:
        ConfigError: If there are more or fewer maps, or one does not fit.
    """
    if not isinstance(saliency, (Tensor, np.ndarray)):
        saliency = torch.stack([torch.as_tensor(each, dtype=torch.float32, device="cpu") for each in saliency])
    if saliency.ndim != 3:
        return [check_map(saliency, explanation, "saliency")] * count
    if len(saliency) != count:
        raise ConfigError(f"saliency has {len(saliency)} maps, but there are {count} {what}; pass one for each")
    return [check_map(each, explanation, "saliency") for each in saliency]


def check_model(model: Any, explanation: Explanation) -> None:
    """Refuse an explanation of another model.

    Compares the digests of the weights, wherever the model was loaded from. If there are none to compare (an
    explanation by an older version, another precision, weights on disk), compares class, number of parameters and the
    last part of the name; so a local folder counts as the same checkpoint elsewhere.

    Raises:
        ConfigError: If the models differ; the message names both.
    """
    known = explanation.origin.model
    if not known:
        return
    dtype, here = str(model.dtype).removeprefix("torch."), names_of(model)
    if known.get("weights") and known.get("dtype") == dtype and is_all_here(model):
        if weights_digest(model) == known["weights"]:
            return
        raise ConfigError(
            f"model is a {here['class']} {here['name']!r}, but its weights differ from those of the {known['class']} "
            f"{known['name']!r} that was explained; pass the model that was explained, with its old weights"
        )
    names = [str(m["name"]).rstrip("/").rsplit("/", 1)[-1] for m in (known, here)]
    same = all(known[key] == here[key] for key in ("class", "parameters"))
    if not same or (all(names) and names[0] != names[1]):
        named = [f"a {m['class']} {m['name']!r} with {m['parameters']:,} parameters" for m in (here, known)]
        raise ConfigError(
            f"model is {named[0]}, but the explanation is of {named[1]}; pass the model that was explained"
        )


def method_signature(explanation: Explanation, of_part: bool = True) -> str:
    """Return the method, its masks, a digest of all its settings, and the seed, on one line.

    Args:
        explanation: Explanation by the method.
        of_part: Whether to include the share of explained tokens; the map of a word does not depend on it.
    """
    origin = explanation.origin
    config = {**origin.config, "method": origin.method}
    settings = {k: v for k, v in config.items() if k != "spes_hf_version"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    masks = f"{config.get('num_spectrogram_masks', '?')}+{config.get('num_token_masks', '?')}"
    seed = "?" if origin.seed is None else origin.seed
    part = explanation.part
    left_out = (
        [] if part is None or not of_part else [k for k, s in enumerate(part.special) if not s and k not in part.rows]
    )
    some = f"|tokens:{len(explanation.pieces)} of {len(explanation.written_ids)}" if left_out else ""
    return f"{origin.method}|masks:{masks}|config:{digest}|seed:{seed}{some}"

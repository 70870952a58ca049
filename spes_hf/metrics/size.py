"""Size: how much of the input an explanation points at (§5)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.explanation.recording import Recording
from spes_hf.functional import size_curve
from spes_hf.metrics.rows import ExplanationMetric, Row, explanation_of, method_signature

THRESHOLDS = tuple(step / 20 for step in range(21))


class Size(ExplanationMetric):
    """Adds the share of its maps at or above every threshold to a row, under "size".

    Per utterance, over all its tokens together: the percentage of values ≥ t, for t = 0, 0.05, …, 1, of the normalised
    maps, separately for the spectrogram and for earlier tokens. `summarize` turns the rows into corpus scores.

    Examples:
        >>> row = Size()({"explanation": ex})
        >>> row["size"]["thresholds"][0], row["size"]["audio"][0]  # all of a map is at least 0
        (0.0, 100.0)
    """

    key: ClassVar[str] = "size"

    def columns(self) -> dict[str, Any]:
        """Return the columns that the transform adds, as `datasets` feature types."""
        from datasets import List, Value

        numbers, text = List(Value("float64")), Value("string")
        entry = {"thresholds": numbers, "audio": numbers, "token": numbers, "prediction": text, "method": text}
        return {self.key: entry}

    def __call__(self, row: Row | Explanation | Recording, rank: int | None = None) -> dict[str, Any]:
        """Return the row with its sizes; a row with an error gets None.

        Args:
            row: An explanation, or a row with an explanation, or with the folder of one, at "explanation".
            rank: Rank of a worker, passed by ``Dataset.map(…, with_rank=True)``; it has no effect.

        Raises:
            ConfigError: If the row has no explanation, or its maps contain NaN.
        """
        return self.entry_of_row(row)

    def of_explanation(self, explanation: Explanation, saliency: Any) -> dict[str, Any]:
        """Return the entry of an explanation over tokens."""
        audio, token = explanation.audio_saliency, explanation.token_saliency
        shape = (len(explanation), *explanation.features.shape)
        if audio.shape != shape:
            raise ConfigError(f"audio_saliency has shape {tuple(audio.shape)}, but the features require {shape}")
        position = explanation.prefix_length + torch.tensor(explanation.starts, dtype=torch.int64, device="cpu")
        later = torch.arange(token.shape[1], dtype=torch.int64, device="cpu") >= position[:, None]
        if audio.isnan().any() or token[~later].isnan().any():
            raise ConfigError("explanation has maps that contain NaN; explain again")
        return {
            "thresholds": list(THRESHOLDS),
            "audio": size_curve(audio, THRESHOLDS).tolist(),
            "token": size_curve(token, THRESHOLDS).tolist(),
            "prediction": explanation.text,
            "method": method_signature(explanation),
        }

    def of_recording(self, recording: Recording, saliency: Any) -> dict[str, Any] | None:
        """Return the sizes over all values of all windows of a recording; None if it has no windows."""
        entries, audio, token = [], [], []
        for each in recording:
            explanation = explanation_of(each)
            entries.append(self(explanation)[self.key])
            audio.append(explanation.audio_saliency.numel())
            token.append(int((~explanation.token_saliency.isnan()).sum()))
        if not entries:
            return None

        def mean(name: str, counts: list[int]) -> list[float]:
            curves = [entry[name] for entry in entries]
            return [float(np.average(values, weights=counts)) for values in zip(*curves, strict=True)]

        joined = " ".join(entry["prediction"].strip() for entry in entries).strip()
        return {**entries[0], "audio": mean("audio", audio), "token": mean("token", token), "prediction": joined}

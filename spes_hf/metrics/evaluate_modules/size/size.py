"""The size score of SPES, as a module for `evaluate`: a thin wrapper around `spes_hf.metrics`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from spes_hf.functional import size_curve
from spes_hf.metrics.score import area
from spes_hf.metrics.size import THRESHOLDS

_CITATION = """@misc{fucci2024spes,
  title = {SPES: Spectrogram Perturbation for Explainable Speech-to-Text Generation},
  author = {Fucci, Dennis and Gaido, Marco and Savoldi, Beatrice and Negri, Matteo and Cettolo, Mauro and Bentivogli,
            Luisa},
  year = {2024},
}"""


class Size(evaluate.Metric):
    """Area under the curve of the percentage of saliency values at or above a threshold; lower is more compact."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=_CITATION,
            inputs_description="predictions: the normalised saliency values of all tokens, one flat list per utterance",
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32"))}),
        )

    def _compute(self, predictions: list[list[float]]) -> dict[str, Any]:
        """Return the area and the curve, in 0–100."""
        curves = [size_curve(torch.from_numpy(np.array(maps, np.float32)), THRESHOLDS) for maps in predictions]
        curve = torch.stack(curves).mean(0).numpy()
        return {"size": float(area(curve, np.array(THRESHOLDS))), "curve": curve.tolist()}

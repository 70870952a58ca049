"""The insertion score of SPES, as a module for `evaluate`: a thin wrapper around `spes_hf.metrics`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from spes_hf.metrics.summary import score_texts

_CITATION = """@misc{fucci2024spes,
  title = {SPES: Spectrogram Perturbation for Explainable Speech-to-Text Generation},
  author = {Fucci, Dennis and Gaido, Marco and Savoldi, Beatrice and Negri, Matteo and Cettolo, Mauro and Bentivogli,
            Luisa},
  year = {2024},
}"""


class Insertion(evaluate.Metric):
    """Area under the curve of a text metric while the most salient features are put back."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=_CITATION,
            inputs_description="predictions: texts per utterance, one for each fraction; references: a text each",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Value("string"),
                }
            ),
        )

    def _compute(
        self,
        predictions: list[list[str]],
        references: list[str],
        fractions: str | Sequence[float] = "paper",
        metric: str = "wer",
    ) -> dict[str, Any]:
        """Return the area and the curve, in 0–100."""
        score = score_texts("insertion", predictions, references, fractions, metric=metric)
        return {"insertion": score.value, "curve": score.points, "signature": score.signature}

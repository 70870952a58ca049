"""How good saved explanations are: deletion, insertion, size and words, next to baselines that cost nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from spes_hf.errors import ConfigError, SpesError
from spes_hf.explanation import Explanation
from spes_hf.explanation.recording import Recording
from spes_hf.files import whole_file
from spes_hf.jobs.job import MANIFEST
from spes_hf.jobs.run import load_explained
from spes_hf.metrics import Score, plot_curves, summarize
from spes_hf.metrics.baselines import BASELINES, baseline_of
from spes_hf.metrics.rows import ExplanationMetric, check_model, explanation_of, recording_of
from spes_hf.metrics.tables import score_to_json, table_of
from spes_hf.summaries import load_saved

# Scores whose curve is drawn.
CURVES = ("deletion", "insertion", "deletion_probability", "insertion_probability", "size_audio")


@dataclass(frozen=True)
class Saved:
    """Explanations saved in a folder.

    Attributes:
        folder: The folder.
        rows: One row each, with "id" and "explanation" (as it is, or packed); for a corpus job, its table.
        corpus: Whether a corpus job made them.
    """

    folder: Path
    rows: Sequence[Mapping[str, Any]]
    corpus: bool

    @classmethod
    def load(cls, path: str | Path, limit: int | None = None) -> Saved:
        """Return the explanations in a folder: of one clip, of a recording, or of a corpus job.

        Args:
            path: The folder.
            limit: Load only this number of explanations, from the first; None: all.

        Raises:
            ConfigError: If the folder of a corpus job holds no rows.
            ExplanationFormatError: If the folder holds no explanation.
        """
        path = Path(path)
        if (path / MANIFEST).is_file():
            rows = load_explained(path)
            return cls(path, rows if limit is None else rows.select(range(min(limit, len(rows)))), True)
        found = load_saved(path)
        return cls(path if path.is_dir() else path.parent, [{"id": path.name, "explanation": found}], False)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(getattr(self.rows, "column_names", None) or self.rows[0])

    @property
    def translations(self) -> bool:
        """Whether the texts are translations, according to the first explanation."""
        for row in self.rows:
            if not row.get("error"):
                found = _explanation_of(row)
                origin = (found[0] if isinstance(found, Recording) else found).origin
                return origin.task == "translate" or origin.tgt_lang is not None
        return False


@dataclass(frozen=True)
class Evaluation:
    """Scores of explanations and of baselines on the same utterances.

    Attributes:
        scores: Method → its scores, as `summarize` returns them; the explanations' own method first.
        metric: How texts were compared.
        against: What texts were compared with: "reference" or "prediction" (the model's own clean output).
        utterances: Number of utterances measured.
        skipped: Number of rows that hold an error instead of an explanation.
        failures: Id and error of each utterance that could not be measured.
        generate_kwargs: Arguments of ``generate()`` of the metrics that replaced those of the explanations, if any.
    """

    scores: dict[str, dict[str, Score]]
    metric: str
    against: str
    utterances: int
    skipped: int
    failures: tuple[tuple[str, str], ...]
    generate_kwargs: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        first = next(iter(self.scores.values()))
        name, _, tokenizer = self.metric.partition(":")
        metric = name.upper() + f" ({tokenizer})" * bool(tokenizer)
        texts = {"reference": "the reference", "prediction": "the model's own clean output"}[self.against]
        lines = ["Areas under curves, in 0–100."]
        if "clean" in first:
            lines[0] += f" Texts against {texts}; clean {metric}: {first['clean'].value:.1f}."
        count = "1 utterance" if self.utterances == 1 else f"{self.utterances} utterances, 95 % intervals"
        lines[0] += f" {count}."
        return "\n".join([*lines, "", *table_of(self.scores, metric, intervals=self.utterances > 1)])

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation ready for JSON."""
        scores = {name: {key: score_to_json(s) for key, s in found.items()} for name, found in self.scores.items()}
        return {
            "metric": self.metric,
            "against": self.against,
            "utterances": self.utterances,
            "skipped": self.skipped,
            "failures": [{"id": name, "error": error} for name, error in self.failures],
            "scores": scores,
            **({"generate_kwargs": dict(self.generate_kwargs)} if self.generate_kwargs else {}),
        }

    def write(self, folder: Path) -> list[Path]:
        """Write evaluation.json and a picture of every curve to a folder, and return their paths."""
        paths = [folder / "evaluation.json"]
        with whole_file(paths[0]) as file:
            file.write((json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())
        for key in CURVES:
            if all(key in found for found in self.scores.values()):
                paths.append(folder / f"evaluation_{key}.png")
                plot_curves({name: found[key] for name, found in self.scores.items()})[0].savefig(paths[-1], dpi=130)
        return paths


def evaluate(
    saved: Saved,
    metrics: Sequence[ExplanationMetric],
    model: Any,
    references: str | Sequence[str] | None = None,
    *,
    baselines: Sequence[str] = tuple(BASELINES),
    metric: str = "wer",
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Return the scores of saved explanations, next to those of baselines on the same utterances.

    Args:
        saved: The explanations.
        metrics: What to measure.
        model: The model that was explained; it is checked before anything is measured. None if no metric runs a model.
        references: What the model should have written: a text for each row, or the name of a column; None: compare with
            the model's own clean output.
        baselines: Names in `BASELINES`.
        metric: How to compare texts: "wer", "cer", "bleu", "bleu:zh" and the like.
        seed: Seed of the random baseline.
        progress: Whether to show a progress bar.

    Raises:
        ConfigError: If there is nothing to evaluate, or another model made the explanations.
    """
    against: Literal["reference", "prediction"] = "prediction" if references is None else "reference"
    rows: Any = saved.rows  # for a corpus, rows[name] is a column, and the other columns are not read
    texts = list(rows[references]) if isinstance(references, str) else references
    measured: dict[str, list[dict[str, Any]]] = {}
    kept: list[str] | None = None if texts is None else []
    skipped, failures, own = 0, [], ""
    bar = tqdm(total=len(saved.rows) * (1 + len(baselines)), desc="evaluating", unit="map", disable=not progress)
    with bar:
        for index, row in enumerate(saved.rows):
            name = str(row.get("id", index))
            if row.get("error"):
                skipped += 1
                bar.update(1 + len(baselines))
                continue
            try:
                found = _explanation_of(row)
                first = found[0] if isinstance(found, Recording) else found
                if model is not None and not own:
                    check_model(model, first)
                own = own or first.method
                entries = dict(_measured(found, metrics, baselines, seed, own, bar))
            except SpesError as error:
                if not saved.corpus or (isinstance(error, ConfigError) and not own):
                    raise
                failures.append((name, str(error)))
                continue
            for method, entry in entries.items():
                measured.setdefault(method, []).append({"id": name, **entry})
            if kept is not None and texts is not None:
                kept.append(texts[index])
    if not measured:
        raise ConfigError(
            f"{str(saved.folder)!r} holds nothing to evaluate: {skipped} rows hold an error instead of an explanation"
            + "".join(f"; {name}: {error}" for name, error in failures[:1])
        )
    scores = {method: summarize(rows, kept, metric=metric, against=against) for method, rows in measured.items()}
    replaced = next((given for each in metrics if (given := getattr(each, "generate_kwargs", None))), None)
    return Evaluation(scores, metric, against, len(measured[own]), skipped, tuple(failures), replaced)


def _explanation_of(row: Mapping[str, Any]) -> Explanation | Recording:
    """Return the explanation, or the recording, of a row."""
    found = recording_of(row)
    if found is None:
        return explanation_of(row)
    if not len(found):
        raise ConfigError("the recording has no explained window, because the model wrote nothing for it")
    return found


def _measured(
    found: Explanation | Recording,
    metrics: Sequence[ExplanationMetric],
    baselines: Sequence[str],
    seed: int,
    own: str,
    bar: tqdm[Any],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each method and the scores of its maps."""
    for name in (own, *(b for b in baselines if b != own)):
        judged = found if name == own else baseline_of(found, BASELINES[name], seed)
        row: dict[str, Any] = {"explanation": judged}
        for measure in metrics:
            row = measure(row)
        bar.update()
        yield name, {measure.key: row[measure.key] for measure in metrics}

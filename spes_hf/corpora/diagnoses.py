"""The map-style transform that diagnoses the errors of every row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from spes_hf.adapters import Adapter
from spes_hf.audio.load import Waveform
from spes_hf.corpora.audio_transform import AudioTransform
from spes_hf.diagnosing import Diagnoser
from spes_hf.errors import ConfigError
from spes_hf.explanation.diagnosis_rows import COUNTS, columns_of
from spes_hf.methods import SpesConfig
from spes_hf.metrics.rows import as_dict
from spes_hf.runtime.batching import BatchSize


class Diagnose(AudioTransform):
    """Diagnoses every error in the model's output for the audio of a row, compared with the row's reference.

    Adds these columns: "diagnosis" (texts and errors as JSON) and "diagnosis_maps" (their maps as bytes), which
    `diagnosis_of` reads; for inspection, "prediction", "word_errors" and the number of errors per verdict: "misheard",
    "guessed", "not_heard", "unsure", "not_known"; and "error". Skips rows on which an earlier transform failed. See
    `spes_hf.diagnose`; takes the arguments of `Explain`.

    Args:
        model: A speech-to-text model of a known family.
        processor: Its processor.
        config: Method and settings of the maps; None for `SpesConfig()`.
        reference_column: The column with the text that was said.
        times_column: The column with the start and end of every word of the reference, in seconds; None: they are
            found automatically.
        audio_column: The column with the audio.
        id_column: The column with the id of the utterance; may be missing.
        text_column: The column with a text to diagnose instead of the model's own output; None: none.
        sampling_rate: Rate in Hz of bare samples that are not at the processor's rate.
        language: Language of the speech.
        task: "transcribe" or "translate".
        tgt_lang: Language of the text.
        generate_kwargs: Further arguments of ``model.generate()``.
        batch_size: Perturbed copies per forward pass; "auto" or None: found automatically, and remembered.
        seed: Same seed, same masks.
        autocast: As for `spes_hf.explain`.
        compile: As for `spes_hf.explain`.
        prompt: Instruction for speech LLMs, as for `spes_hf.explain`.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If an argument has a value that is not allowed.

    Examples:
        >>> transform = Diagnose(model, processor, reference_column="text")
        >>> row = transform({"audio": clip, "text": "Tom sells a small pitcher."})
        >>> print(diagnosis_of(row))
        'Tom sells a small picture.': 1 error (1 misheard), WER 20%
          picture, said pitcher: misheard; ...
    """

    key: ClassVar[str] = "diagnosis"

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        config: SpesConfig | None = None,
        *,
        reference_column: str = "text",
        times_column: str | None = None,
        audio_column: str = "audio",
        id_column: str = "id",
        text_column: str | None = None,
        sampling_rate: int | None = None,
        language: str | None = None,
        task: str | None = None,
        tgt_lang: str | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        batch_size: BatchSize = None,
        seed: int = 0,
        autocast: str | None = None,
        compile: bool = False,
        prompt: str | None = None,
    ):
        running: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast, "compile": compile}
        self.diagnoser = Diagnoser(model, processor, config, seed=seed, progress=False, **running)
        self.reference_column = reference_column
        self.times_column = times_column
        super().__init__(
            audio_column=audio_column,
            id_column=id_column,
            text_column=text_column,
            sampling_rate=sampling_rate,
            language=language,
            task=task,
            tgt_lang=tgt_lang,
            prompt=prompt,
            generate_kwargs=generate_kwargs,
        )

    @property
    def adapter(self) -> Adapter:
        """The adapter of the model."""
        return self.diagnoser.adapter

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        own = (self.reference_column, self.times_column)
        return (*super().needs, *(name for name in own if name is not None))

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that the transform reads."""
        return (*super().reads, "error")

    def columns(self) -> dict[str, Any]:
        """Return the columns that the transform adds, as `datasets` feature types."""
        from datasets import Value

        return {
            "diagnosis": Value("string"),
            "diagnosis_maps": Value("large_binary"),
            "prediction": Value("string"),
            "word_errors": Value("int64"),
            **{name: Value("int64") for name in COUNTS.values()},
            "error": Value("string"),
        }

    def __call__(self, row: Mapping[str, Any], rank: int | None = None) -> dict[str, Any]:
        """Return the row, or the batch of rows, with the columns that this transform adds."""
        failed = row.get("error")
        if isinstance(failed, str) and failed:
            return {**as_dict(row), **{k: v for k, v in self.empty().items() if k not in row}}
        return super().__call__(row, rank)

    def of_row(self, row: Mapping[str, Any], waveform: Waveform, text: str | None, utterance_id: str) -> dict[str, Any]:
        """Return the columns of one row."""
        times = None if self.times_column is None else [(float(a), float(b)) for a, b in row[self.times_column]]
        settings = {"generate_kwargs": self.generate_kwargs, **self.options}
        reference = row[self.reference_column]
        found = self.diagnoser(waveform, reference, text=text, times=times, utterance_id=utterance_id, **settings)
        return columns_of(found)

    def of_audio(self, waveform: Waveform, text: str | None, utterance_id: str) -> dict[str, Any]:
        """Refuse audio without a reference.

        Raises:
            ConfigError: Always: see `of_row`.
        """
        raise ConfigError(
            f"audio alone cannot be diagnosed: reference_column {self.reference_column!r} is missing; pass a whole row"
        )

    def empty(self) -> dict[str, Any]:
        """Return the columns of an utterance that could not be diagnosed."""
        counts = dict.fromkeys(("word_errors", *COUNTS.values()), 0)
        return {"diagnosis": "", "diagnosis_maps": b"", "prediction": "", **counts}

"""What the transforms of audio share: where it is, how the model generates, and rows that fail."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from spes_hf.adapters import Adapter
from spes_hf.audio.load import Waveform, load_audio
from spes_hf.audio.stored import is_column
from spes_hf.corpora.failures import describe_error, is_fatal
from spes_hf.errors import ConfigError
from spes_hf.metrics.rows import as_dict
from spes_hf.rows import RowTransform, is_lazy, is_lazy_batch, raw


class _Heard(dict[str, Any]):
    """A row with its audio already read by the transform that will process it."""

    def __init__(self, row: Mapping[str, Any], waveform: Waveform):
        super().__init__(row)
        self.waveform = waveform


class AudioTransform(RowTransform):
    """What `Explain` and `SoundCheck` share: where the audio is, how the model generates, and rows that fail."""

    def __init__(
        self,
        *,
        audio_column: str,
        id_column: str,
        text_column: str | None,
        sampling_rate: int | None,
        generate_kwargs: Mapping[str, Any] | None,
        **options: str | None,
    ):
        self.audio_column = audio_column
        self.id_column = id_column
        self.text_column = text_column
        self.sampling_rate = sampling_rate
        self.options: dict[str, Any] = {k: v for k, v in options.items() if k != "prompt" or v is not None}
        self.generate_kwargs = {} if generate_kwargs is None else dict(generate_kwargs)
        # Check once here, rather than fail in every row.
        self.adapter.options_of(**self.options, generate_kwargs=self.generate_kwargs)

    @property
    @abstractmethod
    def adapter(self) -> Adapter:
        """The adapter of the model."""

    def of_row(self, row: Mapping[str, Any], waveform: Waveform, text: str | None, utterance_id: str) -> dict[str, Any]:
        """Return the columns of one row, without "error"."""
        return self.of_audio(waveform, text, utterance_id)

    @abstractmethod
    def of_audio(self, waveform: Waveform, text: str | None, utterance_id: str) -> dict[str, Any]:
        """Return the columns of one utterance, without "error"."""

    @abstractmethod
    def empty(self) -> dict[str, Any]:
        """Return the columns of an utterance that failed: empty values of the right types."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        return tuple(name for name in (self.audio_column, self.text_column) if name is not None)

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that the transform reads."""
        return (*self.needs, self.id_column)

    @property
    def running_model(self) -> Any:
        """The model that runs."""
        return self.adapter.model

    def __call__(self, row: Mapping[str, Any], rank: int | None = None) -> dict[str, Any]:
        """Return the row, or the batch of rows, with the columns that this transform adds.

        Args:
            row: A row that has the columns that this transform reads.
            rank: Rank of a worker, passed by ``Dataset.map(…, with_rank=True)``; the model moves to that accelerator.

        Raises:
            ConfigError: If a column is missing.
        """
        self.take_place(rank)
        for name in self.needs:
            if name not in row:
                own = next(a for a, value in vars(self).items() if a.endswith("_column") and value == name)
                has = ", ".join(map(str, row))
                raise ConfigError(f"row has no column {name!r}; it has {has}. Pass {own}=… with the column's name")
        batch = is_lazy_batch(row) if is_lazy(row) else is_column(row[self.audio_column], row)
        if batch:
            return self.of_batch(row)
        try:
            with self.together():
                waveform = self.waveform_of(row)
                text = None if self.text_column is None else row[self.text_column] or ""
                found = self.of_row(row, waveform, text, self._id_of(row, waveform))
        except Exception as error:
            if is_fatal(error):
                raise
            return {**as_dict(row), **self.empty(), "error": describe_error(error)}
        return {**as_dict(row), **found, "error": ""}

    def together(self) -> AbstractContextManager[Any]:
        """Return the context in which a row is processed: empty, unless processes share the row."""
        return nullcontext()

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with its audio read; unchanged if reading fails, so that the later call raises the error."""
        try:
            return _Heard(row, self.waveform_of(row))
        except Exception:
            return row

    def waveform_of(self, row: Mapping[str, Any]) -> Waveform:
        """Return the audio of a row.

        Raises:
            AudioError: If the audio cannot be read, or is too short.
        """
        if isinstance(row, _Heard):
            return row.waveform
        return load_audio(raw(row, self.audio_column), self.adapter.sampling_rate, self.sampling_rate)

    def _id_of(self, row: Mapping[str, Any], waveform: Waveform) -> str:
        known = row.get(self.id_column)
        if known is not None:
            return str(known)
        return hashlib.blake2b(waveform.samples.tobytes(), digest_size=8).hexdigest()

"""Map-style transforms: plain callables for ``Dataset.map``, from audio to explanations to metrics.

    load_mustc(root, "en-de", "tst-COMMON").map(Explain(model, processor)).map(Deletion(model, processor)).map(Size())

`summarize` turns the rows into corpus scores, and `Explanation.from_row` restores the whole explanation of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from spes_hf.adapters import Adapter
from spes_hf.audio.load import Waveform
from spes_hf.corpora.audio_transform import AudioTransform
from spes_hf.engine import Explainer
from spes_hf.explanation import Explanation
from spes_hf.explanation.origin import without_time
from spes_hf.explanation.recording import Recording
from spes_hf.hearing import SoundChecker
from spes_hf.methods import ExplainConfig
from spes_hf.metrics.contrastive import ContrastiveDeletion
from spes_hf.metrics.deletion import Deletion, Insertion
from spes_hf.metrics.size import Size
from spes_hf.metrics.words import WordDeletion, WordInsertion
from spes_hf.recordings import goes_in_windows
from spes_hf.rows import RowTransform
from spes_hf.runtime.batching import BatchSize
from spes_hf.runtime.ranks import Ranks

__all__ = [
    "ContrastiveDeletion",
    "Deletion",
    "Explain",
    "Insertion",
    "RowTransform",
    "Size",
    "SoundCheck",
    "WordDeletion",
    "WordInsertion",
]

# Columns with one number per token.
_NUMBERS = ("token_probabilities", "sound_bits", "text_bits")


class Explain(AudioTransform):
    """Explains the audio of a row, and adds the explanation to the row.

    Adds these columns: "explanation", the whole explanation as bytes (`Explanation.from_row` reads it); for inspection,
    "prediction", "tokens", "token_probabilities", "sound_bits" and "text_bits" (per token), "bits_per_token",
    "verdict" ("heard", "made up", "nothing written"; "given" if you passed the text), "reliability" (of the sentence
    map; NaN if there is none) and "reached_length_limit"; and "error". If an utterance cannot be explained, "error"
    gives the reason, the other columns are empty, and the job continues. On success, "error" is empty.

    Mask i of an utterance depends only on the seed, the utterance's id and i. Without an id, a digest of the audio is
    used.

    Args:
        model: A speech-to-text model of a known family.
        processor: Its processor.
        config: Method and settings; None for `SpesConfig()`.
        audio_column: The column with the audio: anything that `explain` takes. An `Audio` feature's sampling_rate,
            num_channels and stream_index are honoured; a stream with ``decode=False`` does not pass them on.
        id_column: The column with the id of the utterance; "id" may be missing.
        text_column: The column with a text to explain instead of the model's own output; None: none.
        sampling_rate: Rate in Hz of bare samples that are not at the processor's rate.
        language: Language of the speech, for families whose ``generate()`` takes it.
        task: "transcribe" or "translate", likewise.
        tgt_lang: Language of the text, likewise.
        generate_kwargs: Further arguments of ``model.generate()``.
        batch_size: Perturbed copies per forward pass; "auto" or None: found automatically, and remembered.
        seed: Same seed, same masks.
        segment: "pauses" to cut all audio where speech pauses; None: audio longer than the model's window is handled
            the model's own way. Such a row has a `Recording` at "explanation", and its verdict covers the whole
            recording.
        over: "encoder" to compute saliency over the encoder's output too, as for `explain`.
        autocast: As for `explain`.
        compile: As for `explain`.
        prompt: Instruction for speech LLMs, as for `explain`.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If an argument has a value that is not allowed.

    Examples:
        >>> rows = dataset.map(Explain(model, processor, SpesConfig.fast()))
        >>> Explanation.from_row(rows[0]).text
        'Tom sells a small picture.'
    """

    key: ClassVar[str] = "explanation"
    immaterial: ClassVar[tuple[str, ...]] = (*AudioTransform.immaterial, "recordings")

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        config: ExplainConfig | None = None,
        *,
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
        segment: str | None = None,
        over: str = "spectrogram",
        autocast: str | None = None,
        compile: bool = False,
        prompt: str | None = None,
    ):
        self.segment = segment
        self.over = None if over == "spectrogram" else over  # so that existing jobs can be resumed
        self.recordings: Path | None = None  # where a job keeps the windows of unfinished recordings
        running: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast, "compile": compile}
        self.explainer = Explainer(model, processor, config, seed=seed, progress=False, **running)
        self.explainer.config.check_over(over)  # check once here, rather than fail in every row
        super().__init__(
            prompt=prompt,
            audio_column=audio_column,
            id_column=id_column,
            text_column=text_column,
            sampling_rate=sampling_rate,
            language=language,
            task=task,
            tgt_lang=tgt_lang,
            generate_kwargs=generate_kwargs,
        )

    @property
    def adapter(self) -> Adapter:
        """The adapter of the model that is explained."""
        return self.explainer.adapter

    def columns(self) -> dict[str, Any]:
        """Return the columns that the transform adds, as `datasets` feature types."""
        from datasets import List, Value

        numbers = List(Value("float64"))
        return {
            # Offsets of 64 bits: a few hundred long utterances pass 2 GiB.
            "explanation": Value("large_binary"),
            "prediction": Value("string"),
            "tokens": List(Value("string")),
            **dict.fromkeys(_NUMBERS, numbers),
            "bits_per_token": Value("float64"),
            "verdict": Value("string"),
            "reliability": Value("float64"),
            "reached_length_limit": Value("bool"),
            "error": Value("string"),
        }

    @contextmanager
    def shared_by(self, ranks: Ranks) -> Iterator[None]:
        """Explain rows together with other processes, which must get the same rows."""
        before, self.explainer.ranks = self.explainer.ranks, ranks
        try:
            yield
        finally:
            self.explainer.ranks = before

    def together(self) -> AbstractContextManager[Any]:
        """Return the context in which processes explain a row together."""
        return self.explainer.ranks.together()

    def of_audio(self, waveform: Waveform, text: str | None, utterance_id: str) -> dict[str, Any]:
        """Return the columns of one utterance, or of one recording."""
        explanation = self._explained(waveform, text, utterance_id)
        # A row must not depend on when, or by which process, it is computed.
        if isinstance(explanation, Explanation):
            explanation = replace(explanation, provenance=without_time(explanation.provenance))
        found = explanation.to_row()
        # Arrays keep their type where they are empty; lists would leave it open.
        found["tokens"] = np.array(found["tokens"], dtype=str)
        return found | {name: np.array(found[name], dtype=np.float64) for name in _NUMBERS}

    def explain(self, row: Mapping[str, Any]) -> Explanation | Recording:
        """Return the explanation, or the recording, of a row.

        Raises:
            AudioError: If the audio cannot be read, or is too short or too long.
            ConfigError: If the text cannot be explained.
        """
        waveform = self.waveform_of(row)
        text = None if self.text_column is None else row[self.text_column] or ""
        return self._explained(waveform, text, self._id_of(row, waveform))

    def _explained(self, waveform: Waveform, text: str | None, utterance_id: str) -> Explanation | Recording:
        settings: dict[str, Any] = {"generate_kwargs": self.generate_kwargs, **self.options, "segment": self.segment}
        settings["over"] = self.over or "spectrogram"
        if self.recordings is not None and goes_in_windows(self.adapter, waveform.duration_s, self.segment):
            digest = hashlib.blake2b(utterance_id.encode(), digest_size=8)
            digest.update(np.ascontiguousarray(waveform.samples[:]).tobytes())  # ids may occur twice
            settings["folder"] = self.recordings / digest.hexdigest()
        return self.explainer(waveform, text=text, utterance_id=utterance_id, **settings)

    def empty(self) -> dict[str, Any]:
        """Return the columns of an utterance that could not be explained: empty, not None, which would have no type."""
        return {
            "explanation": b"",
            "prediction": "",
            "tokens": np.array([], dtype=str),
            **{name: np.array([], dtype=np.float64) for name in _NUMBERS},
            "bits_per_token": float("nan"),
            "verdict": "",
            "reliability": float("nan"),
            "reached_length_limit": False,
        }


class SoundCheck(AudioTransform):
    """Checks whether the model heard or made up what it writes for the audio of a row: three passes, no map.

    Adds these columns: "prediction", "words", "word_bits" (per word, from the sound), "bits_per_word",
    "bits_per_token", "probability_made_up", "verdict" (as in `Explain`), "reached_length_limit" and "error". Takes the
    arguments of `Explain` except config, batch_size, compile, segment and over; see `spes_hf.sound_check`.

    Examples:
        >>> rows = dataset.map(SoundCheck(model, processor))
        >>> rows["prediction"][0], rows["words"][0][1], rows["word_bits"][0][1] > 5
        ('Tom sells a small picture.', ' sells', True)
        >>> of_text = SoundCheck(model, processor, text_column="text")
        >>> row = of_text({"audio": clip, "text": "Tom sells a small garden."})
        >>> row["verdict"], [str(word) for word, bits in zip(row["words"], row["word_bits"]) if bits < 1]
        ('given', [' garden', '.'])
    """

    key: ClassVar[str] = "verdict"

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        audio_column: str = "audio",
        id_column: str = "id",
        text_column: str | None = None,
        sampling_rate: int | None = None,
        language: str | None = None,
        task: str | None = None,
        tgt_lang: str | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        seed: int = 0,
        autocast: str | None = None,
        prompt: str | None = None,
    ):
        self.checker = SoundChecker(model, processor, seed=seed, autocast=autocast)
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
        """The adapter of the model that is checked."""
        return self.checker.adapter

    def columns(self) -> dict[str, Any]:
        """Return the columns that the transform adds, as `datasets` feature types."""
        from datasets import List, Value

        return {
            "prediction": Value("string"),
            "words": List(Value("string")),
            "word_bits": List(Value("float64")),
            "bits_per_word": Value("float64"),
            "bits_per_token": Value("float64"),
            "probability_made_up": Value("float64"),
            "verdict": Value("string"),
            "reached_length_limit": Value("bool"),
            "error": Value("string"),
        }

    def of_audio(self, waveform: Waveform, text: str | None, utterance_id: str) -> dict[str, Any]:
        """Return the columns of one utterance."""
        settings = {"generate_kwargs": self.generate_kwargs, **self.options}
        found = self.checker(waveform, text=text, utterance_id=utterance_id, **settings)
        return {
            "prediction": found.text,
            "words": np.array(found.words, dtype=str),
            "word_bits": np.array(found.word_bits, dtype=np.float64),
            "bits_per_word": found.bits_per_word,
            "bits_per_token": found.bits_per_token,
            "probability_made_up": found.probability_made_up,
            "verdict": found.verdict,
            "reached_length_limit": found.reached_length_limit,
        }

    def empty(self) -> dict[str, Any]:
        """Return the columns of an utterance that could not be checked."""
        return {
            "prediction": "",
            "words": np.array([], dtype=str),
            "word_bits": np.array([], dtype=np.float64),
            "bits_per_word": float("nan"),
            "bits_per_token": float("nan"),
            "probability_made_up": float("nan"),
            "verdict": "",
            "reached_length_limit": False,
        }

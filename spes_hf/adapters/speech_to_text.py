"""Speech2Text: English ASR, bilingual translation, and multilingual translation with a forced language token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spes_hf.adapters import kaldi
from spes_hf.adapters.base import Adapter, GenerationOptions, Target, Utterance
from spes_hf.adapters.frames import check_bins, check_length
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.adapters.vocabulary import apart
from spes_hf.audio.load import Waveform
from spes_hf.errors import AudioError, ConfigError

# Hop of Kaldi's features.
FRAME_S = 0.01


class Speech2TextAdapter(Adapter):
    """Speech2Text reads Kaldi log-mel features of the whole utterance, mean-variance normalised per mel bin.

    A multilingual checkpoint has one token per language, ``<lang:de>``, with which ``generate()`` is forced to start
    (``forced_bos_token_id``). Here, ``tgt_lang="de"`` selects it, and it belongs to the prefix.
    """

    processor_classes: ClassVar[tuple[str, ...]] = ("Speech2TextProcessor",)
    model_classes: ClassVar[tuple[str, ...]] = ("Speech2TextForConditionalGeneration",)
    options: ClassVar[tuple[str, ...]] = ("tgt_lang",)
    row_settings: ClassVar[tuple[str, ...] | None] = ()

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        config = self.model.config
        check_bins(processor.feature_extractor.num_mel_bins, config.input_feat_per_channel * config.input_channels)

    @property
    def languages(self) -> dict[str, int]:
        """Token of every language of a multilingual checkpoint; empty for other checkpoints."""
        return dict(getattr(self.tokenizer, "lang_code_to_id", None) or {})

    @property
    def longest_s(self) -> float:
        """Seconds of audio that the model has positions for."""
        return float(self.model.config.max_source_positions) * FRAME_S

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse a language that the checkpoint does not have, or a missing one if it has several.

        Raises:
            ConfigError: In that case; the message lists the allowed languages.
        """
        super().check_options(options)
        known = ", ".join(sorted(self.languages))
        language, forced = options.tgt_lang, options.generate_kwargs.get("forced_bos_token_id")
        if language is not None and not known:
            raise ConfigError(
                f"tgt_lang is {language!r}, but this checkpoint writes only one language; leave tgt_lang out"
            )
        if language is not None and forced is not None:
            raise ConfigError(
                f"tgt_lang is {language!r} and generate_kwargs contains forced_bos_token_id; leave one of the two out"
            )
        if language is not None and language not in self.languages:
            raise ConfigError(f"tgt_lang is {language!r}, which this checkpoint does not write; allowed: {known}")
        if known and self._forced_token_id(options) is None:
            raise ConfigError(f"tgt_lang is missing, but this checkpoint writes several languages; allowed: {known}")

    def encode(self, waveform: Waveform) -> Utterance:
        """Return the normalised features of the utterance; all frames are true.

        Raises:
            AudioError: If the audio has fewer than two frames, too many frames, or a mel bin that never changes.
        """
        extractor = self.processor.feature_extractor
        check_length(kaldi.num_frames(waveform), waveform)
        with np.errstate(divide="ignore", invalid="ignore"):
            batch = extractor(
                waveform.samples,
                sampling_rate=waveform.sampling_rate,
                padding=True,
                return_tensors="pt",
                return_attention_mask=True,
            )
        features = batch.input_features[0, : int(batch.attention_mask.sum())]
        limit = self.model.config.max_source_positions
        if len(features) > limit:
            raise AudioError(
                f"audio has {len(features)} frames of 10 ms, but the model reads at most {limit}; pass "
                'segment="pauses" to explain(), which cuts it where speech pauses'
            )
        constant = int((~features.isfinite()).any(0).sum())
        if constant:
            raise AudioError(
                f"audio has {constant} of {features.shape[1]} mel bins that never change, as in digital silence; "
                "Speech2Text divides by their standard deviation, 0, which gives NaN. Pass audio with sound, or add "
                "faint noise",
                silent=True,
            )
        times, frequencies = kaldi.axes(features, waveform)
        return Utterance(
            waveform=waveform,
            features=features,
            inputs={
                "input_features": batch.input_features.to(self.device, self.dtype),
                "attention_mask": batch.attention_mask.to(self.device),
            },
            times=times,
            frequencies=frequencies,
        )

    def encoder_positions(self, utterance: Utterance) -> EncoderPositions:
        """Return the times of the positions: every convolution halves the frames, and is symmetric in time."""
        stride = 2 ** int(self.model.config.num_conv_layers)
        return EncoderPositions.on_frames(utterance.times, stride, 0.0, (len(utterance.times) - 1) // stride + 1)

    def model_inputs(self, utterance: Utterance, features: Tensor) -> dict[str, Tensor]:
        """Return the features, (B, T, C), and their mask, which keeps all of them."""
        mask = utterance.inputs["attention_mask"].expand(len(features), -1)
        return {"input_features": features.to(self.dtype), "attention_mask": mask}

    def generate_rows(
        self, utterance: Utterance, inputs: Mapping[str, Tensor], options: GenerationOptions
    ) -> list[Target]:
        """Return what one call of ``generate()`` writes: start token, forced language token, then the model's own."""
        forced = {} if options.tgt_lang is None else {"forced_bos_token_id": self._forced_token_id(options)}
        with self.refusals(options):
            output = self.model.generate(**inputs, **forced, **self.generation_settings(options))
        start_length = len(self.prefix_ids(utterance, options))
        return [self.split_output(sequence, start_length) for sequence in output.sequences]

    def prefix_ids(self, utterance: Utterance, options: GenerationOptions) -> Tensor:
        """Return the start token and, if there is one, the forced language token."""
        forced = self._forced_token_id(options)
        return torch.tensor(
            [self.start_token_id(options), *([] if forced is None else [forced])], dtype=torch.int64, device="cpu"
        )

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of a text, lowercased if the tokenizer has only one case; added words keep their case."""
        if not (getattr(self.tokenizer, "do_lower_case", False) or getattr(self.tokenizer, "do_upper_case", False)):
            return super().text_ids(text)
        parts = apart(text, self.added_words())
        return super().text_ids("".join(part if i % 2 else part.lower() for i, part in enumerate(parts)))

    def text(self, ids: Tensor) -> str:
        """Return the text of the tokens, without special tokens, in the case that the tokenizer writes."""
        text = super().text(ids)
        return text.upper() if getattr(self.tokenizer, "do_upper_case", False) else text

    def added_piece(self, word: str) -> str:
        """Return the text of an added word, with the space before it, which the tokenizer drops."""
        return " " + super().added_piece(word).strip()

    def _forced_token_id(self, options: GenerationOptions) -> int | None:
        """Return the token with which ``generate()`` is forced to start, if any."""
        if options.tgt_lang is not None:
            return self.languages[options.tgt_lang]
        forced = options.generate_kwargs.get("forced_bos_token_id")
        return self.model.generation_config.forced_bos_token_id if forced is None else forced

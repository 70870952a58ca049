"""Whisper: every checkpoint, English-only and multilingual, 80 and 128 mel bins, transcribe and translate."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from spes_hf.adapters.base import Adapter, GenerationOptions, Target, Utterance
from spes_hf.adapters.frames import check_bins, check_length, mel_frequencies
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.adapters.vocabulary import ByteLevelVocabulary
from spes_hf.adapters.whisper_long import WhisperLongForm
from spes_hf.adapters.windows import LongForm
from spes_hf.audio.load import Waveform
from spes_hf.errors import AudioError, ConfigError

_TIMESTAMP = re.compile(r"<\|\d+\.\d+\|>")

# Lengths, and arguments that act only on tokens after the prefix.
_NO_PART_IN_PREFIX = {
    "assistant_model",
    "logits_processor",
    "max_length",
    "min_length",
    "min_new_tokens",
    "prefix_allowed_tokens_fn",
    "stopping_criteria",
    "streamer",
}


class WhisperAdapter(ByteLevelVocabulary, Adapter):
    """Whisper reads a window of 30 s: shorter audio is padded, and the model sees the padding too.

    Features are (mel, time) and log10-scaled as (x + 4) / 4, not normalised per mel bin. Only true frames are
    segmented and perturbed; the padding stays as the processor made it.
    """

    processor_classes: ClassVar[tuple[str, ...]] = ("WhisperProcessor",)
    model_classes: ClassVar[tuple[str, ...]] = ("WhisperForConditionalGeneration",)
    options: ClassVar[tuple[str, ...]] = ("language", "task")
    prefix_settings: ClassVar[tuple[str, ...]] = ("forced_decoder_ids",)
    row_settings: ClassVar[tuple[str, ...] | None] = (
        "alignment_heads",
        "forced_decoder_ids",
        "is_multilingual",
        "lang_to_id",
        "language",
        "max_initial_timestamp_index",
        "no_timestamps_token_id",
        "prev_sot_token_id",
        "prompt_ids",
        "return_timestamps",
        "task",
        "task_to_id",
    )
    """Without the thresholds of the fallback and temperatures, which lead to sampling."""

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        check_bins(processor.feature_extractor.feature_size, self.model.config.num_mel_bins)

    @property
    def window_frames(self) -> int:
        """Frames of the window, 3000 in every released checkpoint."""
        return int(self.model.config.max_source_positions) * self._stride

    @property
    def _stride(self) -> int:
        """Frames from one position of the encoder's output to the next, 2 in every released checkpoint."""
        encoder = self.model.get_encoder()
        return int(encoder.conv1.stride[0] * encoder.conv2.stride[0])

    @property
    def window_s(self) -> float:
        """Length of the window in seconds, 30 in every released checkpoint."""
        extractor = self.processor.feature_extractor
        return self.window_frames * extractor.hop_length / extractor.sampling_rate

    def encode(self, waveform: Waveform) -> Utterance:
        """Return the log-mel features of the true frames, and the padded 30 s window as the model's input.

        Raises:
            AudioError: If the audio is shorter than two frames or longer than the window.
        """
        extractor = self.processor.feature_extractor
        frames = len(waveform.samples) // extractor.hop_length
        check_length(frames, waveform)
        if len(waveform.samples) > self.window_frames * extractor.hop_length:
            length_s = len(waveform.samples) / waveform.sampling_rate
            raise AudioError(
                f"audio is {length_s:.1f} s long, but Whisper reads windows of {self.window_s:.0f} s; use explain(), "
                "which takes any length and returns a Recording of windows. If the audio should be shorter, check "
                "sampling_rate"
            )
        batch = extractor(
            waveform.samples,
            sampling_rate=waveform.sampling_rate,
            max_length=self.window_frames * extractor.hop_length,
            return_tensors="pt",
            return_attention_mask=True,
        )
        frames = int(batch.attention_mask.sum())
        window = batch.input_features
        seconds_per_frame = extractor.hop_length / extractor.sampling_rate
        return Utterance(
            waveform=waveform,
            features=window[0, :, :frames].T.contiguous(),
            inputs={"input_features": window.to(self.device, self.dtype)},
            times=torch.arange(frames, dtype=torch.float32, device="cpu") * seconds_per_frame,
            frequencies=mel_frequencies(window.shape[1], 0.0, 8000.0, "slaney"),
        )

    def encoder_positions(self, utterance: Utterance) -> EncoderPositions:
        """Return the times of the positions centred on a true frame; the decoder attends to padding too.

        The convolutions are symmetric in time, so position s is centred on frame 2 s.
        """
        length = (len(utterance.times) - 1) // self._stride + 1
        return EncoderPositions.on_frames(utterance.times, self._stride, 0.0, length)

    @property
    def alignment_heads(self) -> tuple[tuple[int, int], ...] | None:
        """(layer, head) of the heads that give Whisper its word times, from the generation config."""
        heads = getattr(self.model.generation_config, "alignment_heads", None)
        return tuple((int(layer), int(head)) for layer, head in heads) if heads else None

    def model_inputs(self, utterance: Utterance, features: Tensor) -> dict[str, Tensor]:
        """Return the 30 s windows, (B, C, 3000): these features, then the clean padding."""
        window = utterance.inputs["input_features"].repeat(len(features), 1, 1)
        window[:, :, : features.shape[1]] = features.transpose(1, 2)
        return {"input_features": window}

    def generate_rows(
        self, utterance: Utterance, inputs: Mapping[str, Tensor], options: GenerationOptions
    ) -> list[Target]:
        """Return prefixes and tokens of a single forced call of ``generate()``, which keeps both."""
        length = _PrefixLength()
        given: dict[str, Any] = {"force_unique_generate_call": True}
        if options.prefix is not None:  # a window of a recording, with its original start
            start = torch.tensor([options.prefix], dtype=torch.long, device=self.device)
            start = start.expand(len(inputs["input_features"]), -1)
            without = getattr(self.model.generation_config, "no_timestamps_token_id", None) in options.prefix
            given |= {"decoder_input_ids": start, "return_timestamps": not without}
        output = self.call_generate(inputs, options, [length], **given)
        start_length = output.sequences.shape[1] if length.found is None else length.found
        return [self.split_output(sequence, start_length) for sequence in output.sequences]

    def call_generate(
        self, inputs: Mapping[str, Tensor], options: GenerationOptions, processors: Sequence[Any] = (), **given: Any
    ) -> Any:
        """Return what ``model.generate()`` returns for these options.

        Args:
            inputs: Inputs of the encoder.
            options: Language, task and generation settings.
            processors: Logits processors after the user's own.
            **given: Arguments that override those of the options.

        Raises:
            ConfigError: If ``generate()`` refuses the options.
        """
        settings, config = self.generation_settings(options), self.generation_config()
        if settings.get("prompt_ids") is not None:  # the tokenizer returns NumPy arrays
            settings["prompt_ids"] = torch.as_tensor(settings["prompt_ids"], dtype=torch.long, device=self.device)
        if "forced_decoder_ids" in settings:  # generate() reads them only from the config
            forced = settings.pop("forced_decoder_ids")
            config.forced_decoder_ids = None if forced is None else [list(pair) for pair in forced]
        if (
            getattr(config, "logprob_threshold", None) is not None
        ):  # as an argument, it also enables the scores that it needs
            settings.setdefault("logprob_threshold", config.logprob_threshold)
        settings["logits_processor"] = [*(settings.get("logits_processor") or ()), *processors]
        with self.refusals(options, *self.options), _as_it_was(settings.get("assistant_model")):
            return self.model.generate(
                **inputs, **{"generation_config": config, **options.given(*self.options), **settings, **given}
            )

    def long_form(self, waveform: Waveform) -> LongForm:
        """Return the recording as ``generate()`` processes it, window after window by its timestamps."""
        return WhisperLongForm(self, waveform)

    def utterance_again(self, waveform: Waveform, features: Tensor, in_recording: bool = False) -> Utterance:
        """Return an utterance as it was explained; windows of a recording are padded with zeros, not with silence."""
        if not in_recording:
            return super().utterance_again(waveform, features, in_recording)
        return self.window_utterance(waveform, features, 0.0)

    def window_utterance(self, waveform: Waveform, features: Tensor, start_s: float) -> Utterance:
        """Return a window of a recording as ``generate()`` passes it to the encoder.

        Args:
            waveform: The sound of the window.
            features: (T, C) frames of the window, at most `window_frames`.
            start_s: Where it starts in the recording, in seconds.
        """
        extractor = self.processor.feature_extractor
        window = torch.zeros(1, features.shape[1], self.window_frames, dtype=torch.float32, device="cpu")
        window[0, :, : len(features)] = features.T
        steps = torch.arange(len(features), dtype=torch.float64, device="cpu")
        return Utterance(
            waveform=waveform,
            features=features,
            inputs={"input_features": window.to(self.device, self.dtype)},
            times=(start_s + steps * (extractor.hop_length / extractor.sampling_rate)).float(),
            frequencies=mel_frequencies(window.shape[1], 0.0, 8000.0, "slaney"),
        )

    def prefix_ids(self, utterance: Utterance, options: GenerationOptions) -> Tensor:
        """Return the prefix of ``generate()``; as there, an unset language is detected from the clean audio."""
        kept = {name: value for name, value in options.generate_kwargs.items() if name not in _NO_PART_IN_PREFIX}
        only_prefix = replace(options, generate_kwargs={**kept, "max_new_tokens": 1, "num_beams": 1})
        return self.generate(utterance, only_prefix).prefix_ids

    def encode_text(self, utterance: Utterance, text: str, options: GenerationOptions) -> Target:
        """Return the target for a text that the user wants explained; it has no timestamps.

        Raises:
            ConfigError: If the text is empty or has tokens that the model cannot write, or if timestamps are enabled.
        """
        timestamps, where = options.generate_kwargs.get("return_timestamps"), "generate_kwargs"
        if timestamps is None:
            timestamps, where = getattr(self.model.generation_config, "return_timestamps", None), "generation_config"
        if timestamps:
            raise ConfigError(
                f"text is given, but return_timestamps is {timestamps!r} in {where}; a text has no timestamps: pass "
                'generate_kwargs={"return_timestamps": False}'
            )
        return super().encode_text(utterance, text, options)

    def start_index(self, prefix: Tensor) -> int:
        """Return the index of the start token in the prefix, (P,); after a prompt, it is not the first token."""
        tokens = self.tokenizer.convert_ids_to_tokens(prefix.tolist())
        return tokens.index("<|startoftranscript|>") if "<|startoftranscript|>" in tokens else 0

    def as_before(
        self, options: GenerationOptions, prefix_ids: Sequence[int], audio_at: int | None = None
    ) -> GenerationOptions:
        """Return the options with the language that an earlier run detected.

        A language that is passed comes with a task token, but a detected one may not; in that case, tokens are forced.
        """
        config = self.model.generation_config
        languages, tasks = (getattr(config, name, None) or {} for name in ("lang_to_id", "task_to_id"))
        behind_start = [*prefix_ids][self.start_index(torch.tensor(prefix_ids, dtype=torch.int64, device="cpu")) + 1 :]
        language = next((name for name, token in languages.items() if token in behind_start), None)
        task = next((name for name, token in tasks.items() if token in behind_start), None)
        if language is None or options.language is not None:
            return options
        if task is not None:
            return replace(options, language=language, task=task)
        forced = [[position, token] for position, token in enumerate(behind_start, 1)]
        return replace(options, generate_kwargs={**options.generate_kwargs, "forced_decoder_ids": forced})

    @contextmanager
    def perturbed_tokens(self, ids: Tensor, keep: Tensor | None) -> Iterator[dict[str, Tensor]]:
        """Yield masked embeddings; this is safe for Whisper, since its positions do not depend on them."""
        if keep is None:
            yield {"decoder_input_ids": ids}
        else:
            embeddings = self.token_embedding(ids)
            yield {"decoder_inputs_embeds": embeddings * keep.unsqueeze(-1).to(embeddings)}

    def added_words(self) -> dict[int, str]:
        """Return the words that were added to the vocabulary, without Whisper's own timestamps and tasks."""
        last = getattr(self.model.generation_config, "no_timestamps_token_id", None) or self.eos_token_id
        added = super().added_words()
        return {i: word for i, word in added.items() if i > last and not _TIMESTAMP.fullmatch(word)}

    def is_timestamp(self, ids: Tensor) -> list[bool]:
        """Return for every token whether it is a timestamp."""
        first, words = getattr(self.model.generation_config, "no_timestamps_token_id", None), self.added_words()
        return [first is not None and i > first and i not in words for i in ids.tolist()]

    def is_special(self, ids: Tensor) -> list[bool]:
        """Return for every token whether it is not text: end, start, language, task, timestamps; these come last."""
        words, end = self.added_words(), self.eos_token_id
        return [i >= end and i not in words for i in ids.tolist()]


class _PrefixLength:
    """A logits processor that changes nothing, and records how many tokens ``generate()`` starts from."""

    found: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores unchanged."""
        length = input_ids.shape[-1]
        self.found = length if self.found is None else min(self.found, length)
        return scores


@contextmanager
def _as_it_was(assistant: Any) -> Iterator[None]:
    """Restore an assistant model's generation config afterwards, since ``generate()`` modifies it."""
    config = None if assistant is None else assistant.generation_config
    if config is not None:
        assistant.generation_config = copy.deepcopy(config)
    try:
        yield
    finally:
        if config is not None:
            assistant.generation_config = config

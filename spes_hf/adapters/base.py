"""What the engine needs from a model family: features in a common layout, tokens, and teacher-forced logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from spes_hf.adapters.attention import CrossAttention, cache_argument, encoder_cache
from spes_hf.adapters.generation import Generation
from spes_hf.adapters.given import check_family
from spes_hf.adapters.hooks import forward_hook
from spes_hf.adapters.probe import passes_gradients
from spes_hf.adapters.types import GenerationOptions, Target, Utterance
from spes_hf.adapters.vocabulary import Vocabulary
from spes_hf.adapters.windows import LongForm
from spes_hf.audio.load import Waveform
from spes_hf.errors import AudioError, ConfigError
from spes_hf.runtime.offload import execution_device
from spes_hf.runtime.preserve import silence_transformers
from spes_hf.runtime.transfer import on_device
from spes_hf.runtime.wrapping import unwrap


class Adapter(Generation, Vocabulary, CrossAttention, ABC):
    """A model family behind one interface. Subclass it, register it by ``config.model_type``, run the contract suite.

    Every array that crosses the interface is (time, mel) with true frames only. Adapters never change the model:
    temporary changes (evaluation mode, hooks) are made by context managers that always undo them.

    Args:
        model: A speech-to-text model of the family.
        processor: Its processor.

    Examples:
        >>> from spes_hf.audio.load import load_audio
        >>> adapter = get_adapter(model, processor)
        >>> utterance = adapter.encode(load_audio(clip, adapter.sampling_rate))
        >>> target = adapter.generate(utterance, adapter.options_of())
        >>> adapter.text(target.token_ids), adapter.logits(utterance, target).shape[1] == len(target.token_ids)
        ('Tom sells a small picture.', True)
    """

    processor_classes: ClassVar[tuple[str, ...]] = ()
    model_classes: ClassVar[tuple[str, ...]] = ()
    """Classes of the family that turn speech into text (subclasses count too); empty: any class with the model type."""

    since_transformers: ClassVar[str] = ""
    """First version of transformers that has the family; empty: all versions that spes_hf supports."""

    settings: Mapping[str, Any] = MappingProxyType({})
    """Default generation settings, which come from a pipeline."""

    def __init__(self, model: Any, processor: Any):
        model = unwrap(model)
        self.model = model
        self.processor = processor
        self._compiled: Callable[..., Any] | None = None
        self._cache_name = cache_argument(type(model).forward)
        check_family(model, processor, self.model_classes, self.processor_classes)

    @property
    def window_s(self) -> float | None:
        """Fixed number of seconds that the encoder reads, whatever the audio's length; None: the audio's own length."""
        return None

    @property
    def undivided_s(self) -> float | None:
        """Seconds of audio up to which the family itself does not cut into windows; None: it never cuts."""
        return self.window_s

    @property
    def longest_s(self) -> float | None:
        """Maximum number of seconds of audio that the model reads at once; None: no known limit."""
        return self.window_s

    # What a family defines -------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, waveform: Waveform) -> Utterance:
        """Return the utterance as the model sees it.

        Raises:
            AudioError: If the audio is too short or too long for the model.
        """

    @abstractmethod
    def model_inputs(self, utterance: Utterance, features: Tensor) -> dict[str, Tensor]:
        """Return the model's encoder inputs, a batch of B, with these features instead of the true frames.

        Args:
            utterance: Source of the rest (padding, masks).
            features: (B, T, C) on the model's device.
        """

    @abstractmethod
    def generate_rows(
        self, utterance: Utterance, inputs: Mapping[str, Tensor], options: GenerationOptions
    ) -> list[Target]:
        """Return what one call of ``generate()`` writes for every row of these encoder inputs.

        Each result has its prefix and its end-of-sequence token. Families without `row_settings` get one row.
        """

    @abstractmethod
    def prefix_ids(self, utterance: Utterance, options: GenerationOptions) -> Tensor:
        """Return the (P,) start and prompt tokens for these options."""

    # What all families share -----------------------------------------------------------------------------------------

    @property
    def sampling_rate(self) -> int:
        """Samples per second that the model expects."""
        return int(self.processor.feature_extractor.sampling_rate)

    @property
    def device(self) -> torch.device:
        """Device of the encoder's inputs, and of everything computed from the model's output."""
        return execution_device(self.encoder) or torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's weights."""
        return self.model.dtype

    @property
    def differentiable(self) -> bool:
        """Whether gradients flow through the whole model; quantised layers are tested once each."""
        return passes_gradients(self.model, self.dtype)

    def options_of(
        self,
        language: str | None = None,
        task: str | None = None,
        tgt_lang: str | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        text_given: bool = False,
        prompt: str | None = None,
    ) -> GenerationOptions:
        """Return the generation options: the user's, completed from the model's settings.

        Raises:
            ConfigError: If the family does not accept them.
        """
        given = {} if generate_kwargs is None else generate_kwargs
        asked = GenerationOptions(language, task, tgt_lang, given, prompt=prompt)
        options = asked.with_defaults(self.settings, text_given=text_given)
        self.check_options(options)
        return options

    def generate(self, utterance: Utterance, options: GenerationOptions, features: Tensor | None = None) -> Target:
        """Return what the model generates from the utterance, or from other features instead.

        Args:
            utterance: The utterance.
            options: Language, task and generation settings.
            features: (T, C) to generate from instead of the clean ones.
        """
        return self.generate_with_states(utterance, options, features)[0]

    def long_form(self, waveform: Waveform) -> LongForm:
        """Return how the family itself processes a recording that is longer than it reads at once.

        Raises:
            AudioError: If the family has no long form.
        """
        raise AudioError(
            f"audio is {waveform.duration_s:.1f} s long, but {type(self.model).__name__} does not support long "
            'recordings by itself; pass segment="pauses" to cut the audio where speech pauses'
        )

    def utterance_again(self, waveform: Waveform, features: Tensor, in_recording: bool = False) -> Utterance:
        """Return an utterance as it was explained.

        Args:
            waveform: The sound.
            features: (T, C) features at that time.
            in_recording: Whether it was a window that the family itself cut from a recording.

        Raises:
            ConfigError: If the processor now makes features of another shape from this sound.
        """
        utterance = self.encode(waveform)
        if utterance.features.shape != features.shape:
            raise ConfigError(
                f"processor makes features of shape {tuple(utterance.features.shape)} from the audio, but the "
                f"explanation has {tuple(features.shape)}; pass the processor that was used for the explanation"
            )
        return replace(utterance, features=features)

    def generate_with_states(
        self, utterance: Utterance, options: GenerationOptions, features: Tensor | None = None
    ) -> tuple[Target, Tensor]:
        """Return what the model generates, as `generate` does, with the encoder's output, (1, S, D), at no extra pass.

        Args:
            utterance: The utterance.
            options: Language, task and generation settings.
            features: (T, C) to generate from instead of the clean ones.
        """
        clean = utterance.features if features is None else features
        (target,), states = self.generate_each(utterance, options, clean[None])
        return target, states

    def generate_each(
        self, utterance: Utterance, options: GenerationOptions, features: Tensor
    ) -> tuple[list[Target], Tensor]:
        """Return what the model generates from each of several spectrograms, and the encoder's outputs, (B, S, D).

        Uses one batch if the family and the options allow it (`generates_in_batches`), else one call per spectrogram.

        Args:
            utterance: The utterance.
            options: Language, task and generation settings.
            features: (B, T, C) to generate from.
        """
        self.check_options(options)
        at_once = len(features) if self.generates_in_batches(options) else 1
        targets: list[Target] = []
        states: list[Tensor] = []
        for rows in features.split(at_once):
            inputs = self.model_inputs(utterance, rows.to(self.device))
            # Not in inference mode: a model may keep tensors for later, which could then not be used in training.
            with torch.no_grad(), silence_transformers():
                with self._recorded_states(utterance, len(rows)) as recorded:
                    targets += self.generate_rows(utterance, inputs, options)
                whole = recorded and len(recorded[-1]) == len(rows)
                states.append(recorded[-1] if whole else self.encoder_states(inputs))
        return targets, torch.cat(states)

    def encode_text(self, utterance: Utterance, text: str, options: GenerationOptions) -> Target:
        """Return the target for a text that the user wants explained.

        Raises:
            ConfigError: If the text is empty, too long, or has tokens that the model cannot write.
        """
        self.check_options(options)
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"text is {text!r}; pass a non-empty text, or leave it out to explain the model's output")
        ids = self.output_ids(text)
        vocabulary = self.vocabulary_size
        special = self.is_special(torch.tensor(ids, dtype=torch.int64, device="cpu"))
        wrong = [i for i, no_text in zip(ids, special, strict=True) if i >= vocabulary or no_text]
        if wrong or not ids:
            names = self.tokenizer.convert_ids_to_tokens(wrong)
            raise ConfigError(
                f"text {text!r} has tokens that the model cannot write: {names or 'none at all'}; its vocabulary has "
                f"{vocabulary} tokens. Use the spelling and script of the model's own output"
            )
        prefix = self.prefix_ids(utterance, options)
        limit = self.max_target_positions
        if limit is not None and len(prefix) + len(ids) > limit:
            raise ConfigError(
                f"text has {len(ids)} tokens, but the model writes at most {limit - len(prefix)}; explain it in parts, "
                "each with its part of the audio"
            )
        return Target(
            prefix.cpu(), torch.tensor([*ids, self.eos_token_id], dtype=torch.int64, device="cpu"), complete=True
        )

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that the model chooses from."""
        return int(self.model.config.get_text_config(decoder=True).vocab_size)

    @property
    def max_target_positions(self) -> int | None:
        """Maximum number of decoder inputs; None if the model's configuration does not say."""
        config = self.model.config.get_text_config(decoder=True)
        limit = getattr(config, "max_target_positions", None) or getattr(config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def encoder(self) -> torch.nn.Module:
        """The module that reads the spectrogram."""
        return self.model.get_encoder()

    def encoder_states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the encoder's output, (B, S, D)."""
        encode = self.encoder if self._compiled is None else self._compiled
        return encode(**inputs).last_hidden_state

    def compile(self) -> None:
        """Run the encoder with `torch.compile` from now on; the model itself stays unchanged.

        Only the encoder: it is most of the cost, and the decoder is perturbed with hooks, which compiled code ignores.
        """
        if self._compiled is None:
            encoder = self.encoder
            # Compile a function, since torch would modify a module that is compiled itself.
            self._compiled = torch.compile(lambda **inputs: encoder(**inputs), dynamic=False)

    @contextmanager
    def _recorded_states(self, utterance: Utterance, rows: int) -> Iterator[list[Tensor]]:
        """Yield a list that collects the output of every pass through the encoder meanwhile, (B, S, D).

        Args:
            utterance: The utterance.
            rows: B, the number of spectrograms that ``generate()`` gets.
        """
        recorded: list[Tensor] = []
        with forward_hook(self.encoder, lambda output: recorded.append(output[0])):
            yield recorded

    def logits(
        self,
        utterance: Utterance,
        target: Target,
        features: Tensor | None = None,
        token_keep: Tensor | None = None,
        states: Tensor | None = None,
        cross: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Return the teacher-forced logits of all explained tokens.

        Args:
            utterance: The utterance.
            target: The output to explain.
            features: (B, T, C) perturbed spectrograms on the model's device; None: the clean one.
            token_keep: (B, J) which decoder inputs to keep; None: all.
            states: (1 or B, S, D) the encoder's output, which saves an encoder pass; None: for the clean spectrogram.
            cross: Return value of `cross_attention` for states of one utterance, which saves most of the decoder's
                work; None: recomputed. Ignored with features.

        Returns:
            (B, K, V) in the model's dtype.
        """
        if features is not None:
            states, cross = self.encoder_states(self.model_inputs(utterance, features)), None
        elif states is None:
            states = self.encoder_states(utterance.inputs)
        batch = len(states) if token_keep is None else len(token_keep)
        inputs = self.decoder_inputs(utterance.inputs, states, batch)
        if cross is not None:
            inputs |= {self._cache_name: encoder_cache(cross, batch), "use_cache": True}
        ids = on_device(target.context_ids, self.device).expand(batch, -1)
        with self.perturbed_tokens(ids, token_keep) as decoder_inputs:
            output = self.forward({**inputs, **decoder_inputs})
        return output.logits[:, len(target.prefix_ids) - 1 :].to(self.device)

    def forward(self, inputs: Mapping[str, Any]) -> Any:
        """Return the model's output, with ``.logits`` (B, J, V), for `decoder_inputs` and the decoder's own inputs.

        The encoder has already run, in `encoder_states`.
        """
        return self.model(**{"use_cache": False, **inputs})

    def decoder_inputs(self, inputs: Mapping[str, Tensor], states: Tensor, batch: int) -> dict[str, Any]:
        """Return model inputs with the encoder's output, (1 or B, S, D), instead of its input."""
        from transformers.modeling_outputs import BaseModelOutput

        rest = {k: v.expand(batch, *v.shape[1:]) for k, v in inputs.items() if k != "input_features"}
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=states.expand(batch, -1, -1)), **rest}

    @contextmanager
    def perturbed_tokens(self, ids: Tensor, keep: Tensor | None) -> Iterator[dict[str, Tensor]]:
        """Yield the decoder's inputs while the embeddings of perturbed tokens are set to zero.

        A forward hook zeroes the output of the decoder's ``embed_tokens``. Positions and tied weights stay, and this
        also works for families that derive positions from the given embeddings. The hook is removed afterwards.
        """
        if keep is None:
            yield {"decoder_input_ids": ids}
            return
        with forward_hook(self.token_embedding, lambda output: output * keep.unsqueeze(-1).to(output)):
            yield {"decoder_input_ids": ids}

    @property
    def token_embedding(self) -> torch.nn.Module:
        """The decoder's token embedding."""
        return self.model.get_decoder().embed_tokens

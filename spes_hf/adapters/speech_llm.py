"""Speech LLMs: a decoder-only language model reads instruction, audio and output as one sequence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby
from typing import Any, ClassVar

import torch
from jinja2 import TemplateError
from torch import Tensor

from spes_hf.adapters.base import Adapter, GenerationOptions, Target, Utterance
from spes_hf.adapters.hooks import forward_hook
from spes_hf.adapters.vocabulary import ByteLevelVocabulary
from spes_hf.errors import ConfigError, UnsupportedModelError
from spes_hf.runtime.transfer import on_device


class SpeechLLMAdapter(ByteLevelVocabulary, Adapter):
    """A family with a language model that reads audio embeddings in place of the placeholders in its prompt.

    Encoder and projector turn the spectrogram into the audio embeddings, (B, S, D), which count as the encoder's output
    here. A `Target` has the prompt without placeholders and says where the audio belongs in it. The context of a token
    thus has three parts: the instruction (its prefix: system and user text, tokens that mark turns); the audio, which
    is not a decoder input, so masks over tokens do not affect it; and the text that the model itself wrote.

    The sequence is built from embeddings of text and audio. The language model derives positions from the length alone,
    so a text token keeps its place when its embedding is zero.

    Examples:
        >>> from spes_hf.adapters.voxtral import VoxtralAdapter
        >>> issubclass(VoxtralAdapter, SpeechLLMAdapter), VoxtralAdapter.options
        (True, ('language', 'prompt'))
    """

    options: ClassVar[tuple[str, ...]] = ("prompt",)

    since_transformers: ClassVar[str] = "5.10"
    """The first version with the model structure that the adapter expects: language model and encoder in one module."""

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        self._prompts: dict[tuple[str | None, ...], list[int]] = {}
        if not hasattr(getattr(self.model, "model", None), "language_model"):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has an unsupported structure in transformers {version('transformers')}; "
                f"install {self.since_transformers} or newer"
            )

    # What a family defines -------------------------------------------------------------------------------------------

    @abstractmethod
    def prompt_ids(self, options: GenerationOptions) -> list[int]:
        """Return the tokens that the output starts from, with one placeholder for the whole audio.

        Args:
            options: Content of the prompt: prompt, language and task, and nothing else. None selects the family's own
                choice; "" leaves the item out.
        """

    @abstractmethod
    def audio_length(self, utterance: Utterance) -> int:
        """Return S, the number of placeholders that the processor makes for the audio."""

    @abstractmethod
    def embed_audio(self, **inputs: Tensor) -> Tensor:
        """Return the audio embeddings, (B, S, D), for the result of `model_inputs`."""

    @property
    def audio_token(self) -> str:
        """The placeholder for audio."""
        return str(self.processor.audio_token)

    @property
    def audio_token_id(self) -> int:
        """The id of the placeholder for audio."""
        return int(self.model.config.audio_token_id)

    def generation_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the arguments of ``generate()`` from the result of `model_inputs`."""
        return dict(inputs)

    def last_logits(self, embeddings: Tensor, count: int) -> Tensor:
        """Return the logits of the last positions of a sequence of embeddings, (B, count, V).

        Args:
            embeddings: (B, L, D).
            count: Number of positions.
        """
        return self.model(inputs_embeds=embeddings, logits_to_keep=count, use_cache=False).logits

    # What all speech LLMs share --------------------------------------------------------------------------------------

    @property
    def core(self) -> Any:
        """The model without its head: audio encoder, projector and language model."""
        return self.model.model

    @property
    def encoder(self) -> Any:
        """The module that reads the spectrogram."""
        return self.core.audio_tower

    @property
    def projector(self) -> torch.nn.Module:
        """The module that outputs the audio embeddings."""
        return self.core.multi_modal_projector

    @property
    def token_embedding(self) -> torch.nn.Module:
        """The language model's token embedding."""
        return self.model.get_input_embeddings()

    @property
    def eos_token_id(self) -> int:
        """The token that ends an output; if there are several, the one that ends a turn."""
        own = self.tokenizer.eos_token_id
        return own if own in self.eos_token_ids else self.eos_token_ids[0]

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse an empty instruction, one with the placeholder, and options that the processor refuses.

        Raises:
            ConfigError: In that case; the message says what is allowed.
        """
        super().check_options(options)
        prompt = options.prompt
        if prompt is not None and (not isinstance(prompt, str) or not prompt.strip()):
            raise ConfigError(f"prompt is {prompt!r}; pass a non-empty instruction, or leave prompt out")
        if prompt is not None and self.audio_token in prompt:
            raise ConfigError(
                f"prompt contains {self.audio_token}, the audio placeholder, which spes_hf adds itself; leave it out"
            )
        error = self._refusal(options) if options.prefix is None else None
        if error is None:
            return
        for name, value in options.given(*self.options).items():
            without: dict[str, Any] = {name: None}
            if self._refusal(replace(options, **without)) is None:
                raise ConfigError(f"{name} is {value!r}, which the processor refuses: {error}") from error
        raise ConfigError(
            f"{type(self.processor).__name__} cannot make a prompt: {error}; load the processor of the checkpoint"
        ) from error

    def _prompt(self, options: GenerationOptions) -> list[int]:
        """Return `prompt_ids`, made once for each chat template and each set of options."""
        templates = (str(getattr(one, "chat_template", None)) for one in (self.processor, self.tokenizer))
        said = (options.prompt, options.language, options.task, *templates)
        if said not in self._prompts:
            self._prompts[said] = self.prompt_ids(options)
        return self._prompts[said]

    def _refusal(self, options: GenerationOptions) -> Exception | None:
        """Return the processor's error for a prompt; None if it makes one."""
        try:
            self._prompt(options)
        except (TypeError, ValueError, TemplateError) as error:
            return error
        return None

    def start(self, options: GenerationOptions) -> Target:
        """Return the start of an output, as a target without tokens.

        Args:
            options: Content of the prompt. If ``prefix`` is set, it is the whole prompt of an earlier run, with a
                placeholder; its instruction tokens are then not known, since the template may have changed.

        Raises:
            ConfigError: If the prompt has no place for the audio, or several.
        """
        ids = self._prompt(options) if options.prefix is None else [*options.prefix]
        if ids.count(self.audio_token_id) != 1:
            raise ConfigError(
                f"the chat template of {type(self.processor).__name__} makes a prompt with "
                f"{ids.count(self.audio_token_id)} places for the audio, {self.audio_token}; it must have one. Load "
                "the processor of the checkpoint"
            )
        at = ids.index(self.audio_token_id)
        prefix = torch.tensor([*ids[:at], *ids[at + 1 :]], dtype=torch.int64, device="cpu")
        told = self._instruction(options, ids) if options.prefix is None else []
        own = [j - (j > at) for j in told if j != at]
        special = self.is_special(prefix)
        instruction = tuple(j for j in own if not special[j])
        return Target(prefix, prefix[:0], complete=False, audio_at=at, instruction=instruction)

    def with_one_placeholder(self, ids: Tensor) -> list[int]:
        """Return the tokens of a processor's prompt, (L,), with a run of placeholders reduced to one."""
        runs = ((token, list(run)) for token, run in groupby(ids.tolist()))
        return [i for token, run in runs for i in (run[:1] if token == self.audio_token_id else run)]

    def _instruction(self, options: GenerationOptions, ids: Sequence[int]) -> list[int]:
        """Return the indices of the prompt tokens that come from the options: those missing without the options."""
        own: set[int] = set()
        for name in self.options:
            nothing: dict[str, Any] = {name: ""}
            bare = self._prompt(replace(options, **nothing))
            shared = min(len(ids), len(bare))
            before = next((i for i in range(shared) if ids[i] != bare[i]), shared)
            rest = shared - before
            behind = next((i for i in range(rest) if ids[-1 - i] != bare[-1 - i]), rest)
            own |= {*range(before, len(ids) - behind)}
        return sorted(own)

    def as_before(
        self, options: GenerationOptions, prefix_ids: Sequence[int], audio_at: int | None = None
    ) -> GenerationOptions:
        """Return the options with the prompt of an earlier run: a chat template may include the date."""
        before, behind = prefix_ids[:audio_at], prefix_ids[audio_at:]
        return replace(options, prefix=(*before, self.audio_token_id, *behind))

    def prefix_ids(self, utterance: Utterance, options: GenerationOptions) -> Tensor:
        """Return the prompt without placeholders."""
        return self.start(options).prefix_ids

    def encode_text(self, utterance: Utterance, text: str, options: GenerationOptions) -> Target:
        """Return the target for a text that the user wants explained.

        Raises:
            ConfigError: If the text is empty, too long, or has tokens that the model cannot write.
        """
        found = super().encode_text(utterance, text, options)
        return replace(self.start(options), token_ids=found.token_ids, complete=True)

    def generate_rows(
        self, utterance: Utterance, inputs: Mapping[str, Tensor], options: GenerationOptions
    ) -> list[Target]:
        """Return what one call of ``generate()`` writes after the prompt, which is the same for all rows."""
        start, rows = self.start(options), len(next(iter(inputs.values())))
        ids = self.whole_ids(start, self.audio_length(utterance)).to(self.device).repeat(rows, 1)
        with self.refusals(options):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **self.generation_inputs(inputs),
                **self.generation_settings(options),
            )
        written = [self.split_output(sequence, ids.shape[1]) for sequence in output.sequences]
        return [replace(start, token_ids=each.token_ids, complete=each.complete) for each in written]

    def whole_ids(self, target: Target, length: int) -> Tensor:
        """Return the prompt and the output without its last token, (length + J,), with placeholders for the audio."""
        at, ids = _place_of_audio(target), target.context_ids
        return torch.cat([ids[:at], ids.new_full((length,), self.audio_token_id), ids[at:]])

    @contextmanager
    def _recorded_states(self, utterance: Utterance, rows: int) -> Iterator[list[Tensor]]:
        """Yield a list that collects the audio embeddings, (B, S, D), of every pass through the projector meanwhile.

        Families pack and pad them in different ways. But beams of a row always follow one another, so that every row
        has an equal share of the output, and its first S embeddings are those of its first beam.
        """
        recorded: list[Tensor] = []
        length = self.audio_length(utterance)

        def record(output: Tensor) -> None:
            packed = output.flatten(0, -2)
            if len(packed) % rows == 0:
                recorded[:] = [packed.unflatten(0, (rows, -1))[:, :length].clone()]  # of the last pass, without beams

        with forward_hook(self.projector, record):
            yield recorded

    def encoder_states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the audio embeddings, (B, S, D)."""
        embed = self.embed_audio if self._compiled is None else self._compiled
        return embed(**inputs)

    def compile(self) -> None:
        """Run encoder and projector with `torch.compile` from now on; the model itself stays unchanged."""
        if self._compiled is None:
            self._compiled = torch.compile(self.embed_audio, dynamic=False)

    def logits(
        self,
        utterance: Utterance,
        target: Target,
        features: Tensor | None = None,
        token_keep: Tensor | None = None,
        states: Tensor | None = None,
        cross: Any = None,
    ) -> Tensor:
        """Return the teacher-forced logits of all explained tokens.

        Args:
            utterance: The utterance.
            target: The output to explain.
            features: (B, T, C) perturbed spectrograms on the model's device; None: the clean one.
            token_keep: (B, J) which tokens of prompt and output to keep; None: all.
            states: (1 or B, S, D) audio embeddings, which save an encoder pass; None: for the clean spectrogram.
            cross: Always None: no part of the sequence is the same under all masks.

        Returns:
            (B, K, V) in the model's dtype.
        """
        if features is not None:
            states = self.encoder_states(self.model_inputs(utterance, features))
        elif states is None:
            states = self.encoder_states(utterance.inputs)
        text, at = self.token_embedding(on_device(target.context_ids, self.device)[None]), _place_of_audio(target)
        if token_keep is not None:
            text = text * token_keep.unsqueeze(-1).to(text)
        batch = max(len(states), len(text))
        text, audio = (part.expand(batch, -1, -1) for part in (text, states.to(text)))
        whole = torch.cat([text[:, :at], audio, text[:, at:]], dim=1)
        return self.last_logits(whole, len(target.token_ids)).to(self.device)

    def cross_attention(self, utterance: Utterance, target: Target, states: Tensor) -> None:
        """Return None: there is no cross-attention, and a perturbed token changes everything after it."""
        return None

    def attention_weights(self, utterance: Utterance, target: Target, states: Tensor | None = None) -> Tensor:
        """Return how much the language model attends to the audio when it writes each token.

        The weights are those of its self-attention in a pass with eager attention, whatever implementation the model
        normally uses, rounded to the model's dtype.

        Args:
            utterance: The utterance.
            target: The output.
            states: (1, S, D) audio embeddings, which save an encoder pass.

        Returns:
            (layers, heads, K, S) float32 on the CPU. The weights of a token and head sum to less than 1 over S: the
            rest goes to text.

        Raises:
            UnsupportedModelError: If the layers of the language model do not return attention weights.
        """
        at, length, tokens = _place_of_audio(target), self.audio_length(utterance), len(target.token_ids)
        seen: list[Tensor] = []

        def keep(output: Any) -> None:
            if not isinstance(output, tuple) or len(output) < 2 or output[1] is None:
                raise UnsupportedModelError(
                    f"{type(self.model).__name__} does not return attention weights, which the method needs; use a "
                    "method that does not read attention"
                )
            seen.append(output[1][0, :, -tokens:, at : at + length].detach().float().cpu())

        language_model = self.core.language_model
        with torch.no_grad(), ExitStack() as contexts:
            for layer in language_model.layers:
                contexts.enter_context(forward_hook(layer.self_attn, keep))
            contexts.enter_context(_attending_eagerly(language_model.config))
            self.logits(utterance, target, states=states)
        return torch.stack(seen)

    # Tokens: outputs start without a space, and prompts have more special tokens than a tokenizer names --------------

    def output_ids(self, text: str) -> list[int]:
        """Return the tokens of a whole output, which starts without a space."""
        return self.inner_ids(text)

    def special_ids(self) -> set[int]:
        """Return the tokens that are not text, including those that mark turns and the placeholder."""
        marks = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return super().special_ids() | marks | {self.audio_token_id}


def _place_of_audio(target: Target) -> int:
    """Return the number of prefix tokens before the audio.

    Raises:
        ConfigError: If the target does not say, because a `SpeechLLMAdapter` did not make it.
    """
    if target.audio_at is None:
        raise ConfigError("target has no audio_at, the place of the audio in the prompt; create it with the adapter")
    return target.audio_at


@contextmanager
def _attending_eagerly(config: Any) -> Iterator[None]:
    """Make a model use eager attention for a while, which returns the weights; restore its setting afterwards."""
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before

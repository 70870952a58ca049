"""What an adapter knows about its family's ``generate()``: its arguments, and how an output starts and ends."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from spes_hf.adapters.probe import is_quantised
from spes_hf.adapters.types import NOTHING_BESIDE, OPTIONS, GenerationOptions, Target
from spes_hf.checks import is_count
from spes_hf.errors import ConfigError, SpesError

# Settings of generate() with which every row of a batch is generated as if it were alone. Sampling is not among them,
# since rows share a random state; neither are the user's functions and objects, which see the whole batch.
_ROW_SETTINGS = frozenset(NOTHING_BESIDE) | {
    "_from_model_config",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "decoder_start_token_id",
    "early_stopping",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "pad_token_id",
    "remove_invalid_values",
    "renormalize_logits",
    "repetition_penalty",
    "sequence_bias",
    "suppress_tokens",
    "transformers_version",
    "use_cache",
}


class Generation:
    """The part of `spes_hf.adapters.Adapter` that deals with arguments and output of ``model.generate()``.

    ``generate()`` takes settings from its arguments and from the model's generation config. Both are treated equally.
    """

    model: Any

    options: ClassVar[tuple[str, ...]] = ()
    """The options that the family takes, out of language, task, tgt_lang and prompt."""

    prefix_settings: ClassVar[tuple[str, ...]] = ()
    """Arguments of ``generate()`` that determine the start of the output, if the family has any."""

    row_settings: ClassVar[tuple[str, ...] | None] = None
    """Family-specific settings that keep the rows of a batch independent; None: generate one row at a time."""

    @property
    def eos_token_id(self) -> int:
        """The token that ends an output."""
        return self.eos_token_ids[0]

    @property
    def eos_token_ids(self) -> list[int]:
        """The tokens that end an output; most models have one."""
        eos = self.model.generation_config.eos_token_id
        eos = self.model.config.eos_token_id if eos is None else eos
        return [int(i) for i in eos] if isinstance(eos, (list, tuple)) else [int(eos)]

    def start_token_id(self, options: GenerationOptions) -> int:
        """Return the token that ``generate()`` feeds the decoder first, in families with a single start token."""
        config = self.model.generation_config
        candidates = (
            options.generate_kwargs.get("decoder_start_token_id"),
            config.decoder_start_token_id,
            options.generate_kwargs.get("bos_token_id"),
            config.bos_token_id,
        )
        start = next((token for token in candidates if token is not None), None)
        if start is None:
            raise ConfigError(
                "model.generation_config has no decoder_start_token_id; load the checkpoint's own generation config"
            )
        return int(start)

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse options that the family's ``generate()`` does not have.

        Raises:
            ConfigError: In that case; the message names the option and those that exist.
        """
        for name, value in options.given(*OPTIONS).items():
            if name not in self.options:
                known = ", ".join(self.options) or "none of language, task, tgt_lang, prompt"
                raise ConfigError(
                    f"{name} is {value!r}, but {type(self.model).__name__} takes {known}; leave {name} out"
                )
        if "forced_decoder_ids" in options.generate_kwargs and "forced_decoder_ids" not in self.prefix_settings:
            raise ConfigError(
                f"generate_kwargs contains forced_decoder_ids, which {type(self.model).__name__} ignores; leave it out"
            )
        for name in ("num_beams", "max_new_tokens"):
            number = options.generate_kwargs.get(name)
            if number is not None and not is_count(number):
                raise ConfigError(
                    f"{name} is {number!r} in generate_kwargs; allowed: a whole number of at least 1, or leave it out"
                )
        outputs = options.generate_kwargs.get("num_return_sequences")
        where = "generate_kwargs" if outputs is not None else "model.generation_config"
        outputs = self.model.generation_config.num_return_sequences if outputs is None else outputs
        if outputs not in (None, 1):
            raise ConfigError(
                f"num_return_sequences is {outputs!r} in {where}, but only one output is explained; set it to 1"
            )

    def generates_in_batches(self, options: GenerationOptions) -> bool:
        """Return whether ``generate()`` writes the same for every row of a batch as for that row alone.

        False for families that do not declare it (`row_settings`), for quantised models, and with any setting, in the
        options or in the model's generation config, that is not known to act on each row separately.
        """
        if self.row_settings is None or is_quantised(self.model):
            return False
        known = _ROW_SETTINGS.union(self.row_settings)
        settings = {**self.model.generation_config.to_diff_dict(), **options.generate_kwargs}
        return all(value is None or value is False or name in known for name, value in settings.items())

    def num_beams(self, options: GenerationOptions) -> int:
        """Return the number of beams that ``generate()`` keeps for every row."""
        asked = options.generate_kwargs.get("num_beams")
        return int((self.model.generation_config.num_beams if asked is None else asked) or 1)

    def generation_config(self) -> Any:
        """Return a copy of the model's generation config that ``generate()`` may change."""
        return copy.deepcopy(self.model.generation_config)

    def generation_settings(self, options: GenerationOptions) -> dict[str, Any]:
        """Return the arguments of ``generate()`` that give one output with its prefix, and nothing else."""
        return {**options.generate_kwargs, **NOTHING_BESIDE}

    @contextmanager
    def refusals(self, options: GenerationOptions, *checked: str) -> Iterator[None]:
        """Turn errors of ``generate()`` about its arguments into errors about the user's arguments.

        Args:
            options: The options.
            *checked: The options out of language, task, tgt_lang and prompt that ``generate()`` checks itself.

        Raises:
            ConfigError: In place of a ValueError from ``generate()``.
        """
        try:
            yield
        except SpesError:  # its message already says what is wrong
            raise
        except ValueError as error:
            named = [*options.given(*checked), *(["generate_kwargs"] if options.generate_kwargs else [])]
            if named:
                which, why = " or ".join(named), str(error).rstrip(".")
                raise ConfigError(
                    f"model.generate() refused {which}: {why}; change {which}, or leave it out"
                ) from error
            raise ConfigError(
                f"model.generate() failed without any argument from you: {error}; check model.generation_config"
            ) from error

    def start_index(self, prefix: Tensor) -> int:
        """Return the index of the start token in the prefix, (P,); 0 in most families."""
        return 0

    def as_before(
        self, options: GenerationOptions, prefix_ids: Sequence[int], audio_at: int | None = None
    ) -> GenerationOptions:
        """Return options with which ``generate()`` starts from the prefix of an earlier run.

        Args:
            options: The options of that run.
            prefix_ids: Its prefix.
            audio_at: Where the audio is in the prefix, as in `Target`.
        """
        return options

    def split_output(self, sequence: Tensor, prefix_length: int) -> Target:
        """Return the target for a generated sequence: its prefix, then tokens up to the first end-of-sequence token."""
        sequence = sequence.cpu()
        tokens = sequence[prefix_length:]
        if not len(tokens):
            raise ConfigError("model.generate() wrote nothing; raise max_new_tokens or max_length in generate_kwargs")
        ends = torch.isin(tokens, torch.tensor(self.eos_token_ids, dtype=torch.int64, device="cpu")).nonzero()
        tokens = tokens[: int(ends[0]) + 1] if len(ends) else tokens
        return Target(sequence[:prefix_length], tokens, complete=bool(len(ends)))

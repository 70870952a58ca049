"""What an adapter knows of its family's ``generate()``: what it takes, where it starts, how an output ends."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from spes_hf.adapters.types import NOTHING_BESIDE, GenerationOptions, Target
from spes_hf.errors import ConfigError


class Generation:
    """The part of `spes_hf.adapters.Adapter` that deals with arguments and output of ``model.generate()``.

    ``generate()`` takes settings as arguments and from the model's generation config. Both are treated alike.
    """

    model: Any

    options: ClassVar[tuple[str, ...]] = ()
    """Which of language, task and tgt_lang the family's ``generate()`` takes."""

    prefix_settings: ClassVar[tuple[str, ...]] = ()
    """Which of ``generate()``'s arguments decide what the output starts from, in families that have such."""

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
        """Return the token that ``generate()`` feeds the decoder first, where a family has just one."""
        config = self.model.generation_config
        candidates = (
            options.generate_kwargs.get("decoder_start_token_id"),
            config.decoder_start_token_id,
            options.generate_kwargs.get("bos_token_id"),
            config.bos_token_id,
        )
        start = next((token for token in candidates if token is not None), None)
        if start is None:
            raise ConfigError("model.generation_config has no decoder_start_token_id; load the checkpoint's own")
        return int(start)

    def check_options(self, options: GenerationOptions) -> None:
        """Refuse options that the family's ``generate()`` does not know.

        Raises:
            ConfigError: Naming the option and those that exist.
        """
        for name, value in options.given("language", "task", "tgt_lang").items():
            if name not in self.options:
                known = ", ".join(self.options) or "none of language, task, tgt_lang"
                raise ConfigError(
                    f"{name} is {value!r}, but {type(self.model).__name__} takes {known}; leave {name} out"
                )
        if "forced_decoder_ids" in options.generate_kwargs and "forced_decoder_ids" not in self.prefix_settings:
            raise ConfigError(f"generate_kwargs holds forced_decoder_ids, which {type(self.model).__name__} ignores")
        outputs = options.generate_kwargs.get("num_return_sequences")
        where = "generate_kwargs" if outputs is not None else "model.generation_config"
        outputs = self.model.generation_config.num_return_sequences if outputs is None else outputs
        if outputs not in (None, 1):
            raise ConfigError(
                f"num_return_sequences is {outputs!r} in {where}, but one output is explained; set it to 1"
            )

    def generation_config(self) -> Any:
        """Return a copy of the model's generation config, which ``generate()`` may change."""
        return copy.deepcopy(self.model.generation_config)

    def generation_settings(self, options: GenerationOptions) -> dict[str, Any]:
        """Return the arguments of ``generate()`` that give one output with its prefix, and nothing else."""
        return {**options.generate_kwargs, **NOTHING_BESIDE}

    def start_index(self, prefix: Tensor) -> int:
        """Return which token of the prefix, (P,), is the start token; 0 where no family says otherwise."""
        return 0

    def as_before(self, options: GenerationOptions, prefix_ids: Sequence[int]) -> GenerationOptions:
        """Return the options with which ``generate()`` starts from a prefix that it worked out itself before."""
        return options

    def split_output(self, sequence: Tensor, prefix_length: int) -> Target:
        """Return the target for a generated sequence: its prefix, then tokens up to the first end-of-sequence."""
        sequence = sequence.cpu()
        tokens = sequence[prefix_length:]
        if not len(tokens):
            raise ConfigError("model.generate() wrote nothing; raise max_new_tokens or max_length in generate_kwargs")
        ends = torch.isin(tokens, torch.tensor(self.eos_token_ids, dtype=torch.int64, device="cpu")).nonzero()
        tokens = tokens[: int(ends[0]) + 1] if len(ends) else tokens
        return Target(sequence[:prefix_length], tokens, complete=bool(len(ends)))

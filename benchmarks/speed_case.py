"""What the speed benchmarks measure: explanations, as many bare calls of the model, and the obvious way."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from spes_hf import Explainer, Explanation, SpesConfig
from spes_hf.adapters import Adapter, GenerationOptions, Target, Utterance, get_adapter
from spes_hf.audio.load import load_audio
from spes_hf.demo import demo_audio, load_demo_model, load_tiny_model, tiny_clips
from spes_hf.functional import kl_divergence
from spes_hf.masking.draw import keep_bits, mask_key
from spes_hf.masking.perturbations import fill_values
from spes_hf.masking.segments import segment
from spes_hf.runtime.batching import starting_batch_size

RATE = 16_000
WHISPER, SPEECH2TEXT, SEAMLESS = "Whisper tiny.en", "Speech2Text (shipped)", "SeamlessM4T v2 (shipped)"
# For what does not depend on what the weights are, such as memory.
WHISPER_BASE = "Whisper base (random weights)"
BASE = {"attention_heads": 8, "ffn_dim": 2048}
ARGUMENTS: dict[str, dict[str, Any]] = {WHISPER: {}, SPEECH2TEXT: {}, SEAMLESS: {"tgt_lang": "deu"}}


@dataclass
class Case:
    """A model, and a clip repeated to some length.

    Attributes:
        name: Of the model.
        seconds: Length of the audio; None: the clip as it is.
        device: Where the model runs.
        text: To explain instead of what the model writes.
    """

    name: str
    seconds: float | None
    device: str
    text: str | None = None

    @cached_property
    def model_and_processor(self) -> tuple[Any, Any]:
        """The model in evaluation mode, and its processor."""
        if self.name == WHISPER:
            model, processor = load_demo_model()
        elif self.name == WHISPER_BASE:
            tiny, processor = load_demo_model()
            size = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6}
            size |= {f"{half}_{part}": n for half in ("encoder", "decoder") for part, n in BASE.items()}
            model = WhisperForConditionalGeneration(WhisperConfig(**{**tiny.config.to_dict(), **size}))
            model.generation_config = tiny.generation_config
        else:
            model, processor = load_tiny_model(
                {SPEECH2TEXT: "speech2text-en", SEAMLESS: "seamless-en-de-es"}[self.name]
            )
        return model.to(self.device).eval(), processor

    @property
    def model(self) -> Any:
        """The model."""
        return self.model_and_processor[0]

    @cached_property
    def audio(self) -> np.ndarray:
        """The clip, repeated, at 16 kHz."""
        path = demo_audio() if self.name in (WHISPER, WHISPER_BASE) else Path(tiny_clips()[0]["path"])
        samples = load_audio(str(path), RATE).samples
        return samples if self.seconds is None else np.resize(samples, round(self.seconds * RATE))

    @cached_property
    def adapter(self) -> Adapter:
        """The adapter of the model."""
        return get_adapter(*self.model_and_processor)

    @cached_property
    def utterance(self) -> Utterance:
        """What the model hears."""
        return self.adapter.encode(load_audio(self.audio, RATE, RATE))

    @cached_property
    def target(self) -> Target:
        """What is explained."""
        options = GenerationOptions(**ARGUMENTS.get(self.name, {}))
        if self.text is None:
            return self.adapter.generate(self.utterance, options)
        return self.adapter.encode_text(self.utterance, self.text, options)

    def with_tokens(self, count: int) -> Case:
        """Return the same case with the words written again and again, until there are that many tokens."""
        words, text = itertools.cycle(self.adapter.text(self.target.token_ids).split()), ""
        while len(self.adapter.text_ids(text)) + 1 < count:
            text = f"{text} {next(words)}".strip()
        found = Case(self.name, self.seconds, self.device, text)
        found.__dict__["model_and_processor"] = self.model_and_processor
        return found

    @cached_property
    def batch_size(self) -> int:
        """The number of copies that the engine starts with."""
        with torch.no_grad():
            reference = self.adapter.logits(self.utterance, self.target)[0]
        return starting_batch_size(reference.numel(), reference.device, self.utterance.inputs)

    def explain(self, masks: int, token_masks: int, compile: bool = False, autocast: str | None = None) -> Explanation:
        """Return the explanation by Eq. 3 as in the paper, with fewer masks."""
        found = self.explainer(masks, token_masks, compile, autocast)(
            self.audio, sampling_rate=RATE, text=self.text, **ARGUMENTS.get(self.name, {})
        )
        wait(self.device)
        return found

    def explainer(self, masks: int, token_masks: int, compile: bool, autocast: str | None) -> Explainer:
        """Return what explains with that many masks; compiled code is kept for the next time."""
        key = f"explainer {masks} {token_masks} {compile} {autocast}"
        if key not in self.__dict__:
            config = SpesConfig.paper("asr", num_spectrogram_masks=masks, num_token_masks=token_masks)
            self.__dict__[key] = Explainer(
                *self.model_and_processor,
                config,
                batch_size=self.batch_size,
                progress=False,
                compile=compile,
                autocast=autocast,
            )
        return self.__dict__[key]

    def gradient(self, masks: int, token_masks: int) -> Explanation:
        """Return the explanation by gradients, with backward passes for every token under every mask."""
        counts = {"num_spectrogram_masks": masks, "masks_per_token": masks, "num_token_masks": token_masks}
        config = SpesConfig(passes_per_mask=None, prior_weight=0.0, **counts)
        explainer = Explainer(*self.model_and_processor, config, progress=False)
        found = explainer(self.audio, sampling_rate=RATE, text=self.text, **ARGUMENTS.get(self.name, {}))
        wait(self.device)
        return found

    def literal_start(self, masks: int, token_masks: int) -> None:
        """Begin the obvious way under that many masks: what it holds is all there from the first batch on."""
        self.literal(masks, token_masks, first=1)

    def bare(self, masks: int, token_masks: int) -> None:
        """Call the model as often as the explanation does: with the encoder, then with its output given."""
        with torch.inference_mode():
            ids = self.target.context_ids.to(self.device)[None]
            inputs, states = self.utterance.inputs, self.adapter.encoder_states(self.utterance.inputs)
            for batch in batches(masks, self.batch_size):
                many = {k: v.expand(batch, *v.shape[1:]).contiguous() for k, v in inputs.items()}
                self.model(**many, decoder_input_ids=ids.expand(batch, -1), use_cache=False)
            for batch in batches(token_masks, self.batch_size):
                many = {k: v.expand(batch, -1) for k, v in inputs.items() if k == "attention_mask"}
                heard = BaseModelOutput(last_hidden_state=states.expand(batch, -1, -1).contiguous())
                self.model(encoder_outputs=heard, **many, decoder_input_ids=ids.expand(batch, -1), use_cache=False)
        wait(self.device)

    def literal(self, masks: int, token_masks: int, first: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the raw maps of `explain`, by full-resolution masks, whole softmaxes, and sums over (B, K, T, C).

        Only the ``first`` batches of each kind are run, if given: what is in memory does not grow any more after one.
        """
        adapter, utterance, target = self.adapter, self.utterance, self.target
        features = utterance.features.to(self.device)
        fill = fill_values("mean", features)
        levels = SpesConfig.paper("asr").patches_per_second
        labels = segment(utterance.features, utterance.duration_s, levels, 7.5, 0.0, 0.1)
        tokens, positions = len(target.token_ids), len(target.context_ids)
        audio = torch.zeros(tokens, *features.shape, device=self.device)
        perturbed = torch.zeros(features.shape, device=self.device)
        text = torch.zeros(tokens, positions, device=self.device)
        zeroed = torch.zeros(positions, device=self.device)
        with torch.no_grad():
            clean = adapter.logits(utterance, target)[0]
            for level, patches in enumerate(labels):
                rows = len(range(level, masks, len(labels)))
                bits = keep_bits(mask_key(0, "", f"spectrogram/{level}"), 0, rows, int(patches.max()) + 1, 0.5)
                masks_of_level = torch.from_numpy(bits)[:, patches]  # (N / 3, T, C)
                for keep in masks_of_level.to(self.device).split(self.batch_size)[:first]:
                    logits = adapter.logits(utterance, target, features=torch.where(keep, features, fill))
                    impact = kl_divergence(clean, logits)
                    audio += (impact[:, :, None, None] * (1 - keep.float())[:, None]).sum(0)
                    perturbed += (1 - keep.float()).sum(0)
            bits = keep_bits(mask_key(0, "", "token"), 0, token_masks, positions, 0.4)
            for keep in torch.from_numpy(bits).to(self.device).split(self.batch_size)[:first]:
                copies = features.expand(len(keep), -1, -1)
                impact = kl_divergence(clean, adapter.logits(utterance, target, features=copies, token_keep=keep))
                text += (impact[:, :, None] * (1 - keep.float())[:, None]).sum(0)
                zeroed += (1 - keep.float()).sum(0)
        wait(self.device)
        return audio / perturbed.clamp_min(1), text / zeroed.clamp_min(1)


def batches(total: int, size: int) -> Iterator[int]:
    """Return the sizes of the batches that make up a total."""
    yield from [size] * (total // size)
    yield from [total % size] if total % size else []


def wait(device: str) -> None:
    """Wait until the device has done what it was asked for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turn(repeats: int, *actions: Callable[[], Any]) -> list[list[float]]:
    """Return the seconds of every action, all of them once in every round."""
    rounds = [[timed(action) for action in actions] for _ in range(repeats)]
    return [list(seconds) for seconds in zip(*rounds, strict=True)]


def ratio_of(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the median over rounds of first / second."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))

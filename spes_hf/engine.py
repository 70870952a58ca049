"""The engine: plan masks, run the model under them, hand what happens to the estimator, finish."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spes_hf.adapters import GenerationOptions, Target, Utterance, get_adapter
from spes_hf.batching import Batch, FoundSizes, check_batch_size, enough_memory, starting_batch_size
from spes_hf.config import ExplainConfig, SpesConfig
from spes_hf.data.audio import load_audio
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation, Reliability
from spes_hf.finite import check_finite
from spes_hf.functional import ratio
from spes_hf.impact import make_impact
from spes_hf.locks import alone
from spes_hf.perturbation.base import Masks, Perturbation
from spes_hf.perturbation.masks import mask_key
from spes_hf.perturbation.plan import Problem, Reading, Run, plan
from spes_hf.preserve import preserved
from spes_hf.provenance import describe
from spes_hf.reliability import split_half

# Where a run may end if `target_reliability` is reached, as shares of its masks.
STAGES = (1 / 8, 1 / 4, 1 / 2, 1)


def explain(
    model: Any,
    processor: Any = None,
    audio: Any = None,
    sampling_rate: int | None = None,
    config: ExplainConfig | None = None,
    language: str | None = None,
    task: str | None = None,
    tgt_lang: str | None = None,
    text: str | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Explanation:
    """Return why the model writes each token for this audio: saliency over the spectrogram and over earlier tokens.

    Args:
        model: A speech-to-text model of a known family (see `spes_hf.list_adapters`), or a pipeline with one; left
            exactly as it was.
        processor: Its processor; a pipeline has its own: ``explain(pipe, audio=audio)``.
        audio: Samples (array, tensor or list), a path, the bytes of a file, or a row's audio of a `datasets` corpus.
        sampling_rate: Of bare samples that are not at the processor's rate, in Hz.
        config: Method and settings; None for `SpesConfig()`.
        language: Language of the speech, for families whose ``generate()`` takes it.
        task: "transcribe" or "translate", likewise.
        tgt_lang: Language of the text, likewise.
        text: Explain this output instead of the one that the model generates.
        generate_kwargs: Further arguments of ``model.generate()``, such as ``{"num_beams": 5}``.
        batch_size: Perturbed copies in one forward pass; None: found automatically.
        seed: Same seed, same masks.
        progress: Whether to show a progress bar.

    Returns:
        The explanation; ``.words()``, ``.plot()``, ``.to_html(path)`` and ``.save(path)`` are where to go on.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        AudioError: If the audio cannot be read, or is too short or too long.
        ConfigError: If an argument has a value outside what is allowed.
    """
    explainer = Explainer(model, processor, config, batch_size=batch_size, seed=seed, progress=progress)
    return explainer(
        audio,
        sampling_rate=sampling_rate,
        language=language,
        task=task,
        tgt_lang=tgt_lang,
        text=text,
        generate_kwargs=generate_kwargs,
    )


class Explainer:
    """`explain` for many utterances: checks model, processor and config once.

    Args:
        model: A speech-to-text model of a known family.
        processor: Its processor.
        config: Method and settings; None for `SpesConfig()`.
        batch_size: Perturbed copies in one forward pass; None: found automatically.
        seed: Same seed, same masks.
        progress: Whether to show a progress bar.
        autocast: "bfloat16" or "float16" to run the model by `torch.autocast` in that type, faster and less exact; None
            to run it as it is, even where autocast is switched on around the call.
        compile: Whether to run the encoder by `torch.compile`. Every shape of its input is compiled anew, which takes a
            minute, and torch stops compiling after eight: worth it for models whose input has one length (Whisper),
            with a `batch_size` of yours that is the same for all utterances. Results differ in the last digits.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If config, batch size, seed or autocast are outside what is allowed.
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        config: ExplainConfig | None = None,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        progress: bool = True,
        autocast: str | None = None,
        compile: bool = False,
    ):
        self.adapter = get_adapter(model, processor)
        self.config = SpesConfig() if config is None else config
        if not isinstance(self.config, ExplainConfig):
            raise ConfigError(f"config is {config!r}; pass a config such as SpesConfig(), or None")
        if not isinstance(seed, Integral) or isinstance(seed, bool):
            raise ConfigError(f"seed is {seed!r}; allowed: a whole number")
        if autocast not in (None, "bfloat16", "float16"):
            raise ConfigError(f'autocast is {autocast!r}; allowed: "bfloat16", "float16" or None')
        self.batch_size: int | None = check_batch_size(batch_size)
        self.found_sizes: FoundSizes = FoundSizes()
        self.seed: int = int(seed)
        self.progress: bool = progress
        self.autocast: str | None = autocast
        self.compile: bool = bool(compile)
        if self.compile:
            self.adapter.compile()

    def __call__(
        self,
        audio: Any,
        *,
        sampling_rate: int | None = None,
        language: str | None = None,
        task: str | None = None,
        tgt_lang: str | None = None,
        text: str | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        utterance_id: str = "",
    ) -> Explanation:
        """Return the explanation of one utterance.

        Args:
            audio: As for `explain`, like all that is not said here.
            sampling_rate: Of bare samples that are not at the processor's rate, in Hz.
            language: Language of the speech.
            task: "transcribe" or "translate".
            tgt_lang: Language of the text.
            text: Explain this output instead of the one that the model generates.
            generate_kwargs: Further arguments of ``model.generate()``.
            utterance_id: Gives every utterance of a corpus masks of its own.
        """
        options = GenerationOptions(language, task, tgt_lang, {} if generate_kwargs is None else generate_kwargs)
        options = options.with_defaults(self.adapter.settings, text_given=text is not None)
        self.adapter.check_options(options)
        waveform = load_audio(audio, self.adapter.sampling_rate, sampling_rate)
        started = time.perf_counter()
        with (
            _shared_graphs() if self.compile else nullcontext(),
            preserved(self.adapter.model, seed=mask_key(self.seed, utterance_id, "generate")),
            enough_memory(f"model with audio of {waveform.duration_s:.1f} s"),
        ):
            with alone():
                utterance = self.adapter.encode(waveform)
            with self._precision():
                if text is None:
                    target = self.adapter.generate(utterance, options)
                else:
                    target = self.adapter.encode_text(utterance, text, options)
                explanation = self._explain(utterance, target, utterance_id)
        passes = {name: explanation.pop(name) for name in ("forward_passes", "backward_passes")}
        provenance = describe(
            self.adapter,
            self.config,
            utterance,
            target,
            options,
            seed=self.seed,
            utterance_id=utterance_id,
            text_given=text is not None,
            seconds=time.perf_counter() - started,
            **passes,
            patches=[len(counts) for counts in explanation["audio_map"].denominators],
        )
        if self.autocast is not None:
            provenance["model"]["autocast"] = self.autocast
        if self.compile:
            provenance["model"]["compiled"] = True
        return Explanation(provenance=provenance, **explanation)

    def _precision(self) -> AbstractContextManager[Any]:
        """Return a context with autocast to the type that was asked for, if any."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.adapter.device.type, getattr(torch, self.autocast))

    def _explain(self, utterance: Utterance, target: Target, utterance_id: str) -> dict[str, Any]:
        """Return the fields of the explanation: plan, run, read off the sums."""
        adapter = self.adapter
        with torch.no_grad():
            states = adapter.encoder_states(utterance.inputs)
            reference = adapter.logits(utterance, target, states=states)[0]
            cross = adapter.cross_attention(utterance, target, states)
        dtype = adapter.dtype if self.autocast is None else getattr(torch, self.autocast)
        impact = make_impact(self.config.impact, reference, target.token_ids.to(adapter.device), dtype)
        problem = Problem(utterance, target, adapter.device, self.seed, utterance_id, adapter.differentiable, dtype)
        runs = plan(self.config, problem)
        planned = (run.passes(level, run.perturbation.rows(level)) for run in runs for level in _levels(run))
        passes = _Passes(forward=1)  # the clean pass
        with tqdm(
            total=sum(map(sum, planned)),
            desc="explaining",
            unit="pass",
            disable=not self.progress,
            delay=1,
        ) as bar:
            for number, run in enumerate(runs):

                def impact_of(masks: Masks, perturbation: Perturbation = run.perturbation) -> Tensor:
                    applied = perturbation.apply(masks)
                    logits = adapter.logits(utterance, target, states=states, cross=cross, **applied)
                    passes.count(masks.keep)
                    return impact(logits)

                size = starting_batch_size(reference, utterance.inputs, backward=run.backward_passes is not None)
                shape = (*utterance.features.shape, *reference.shape)
                batch = Batch(self.batch_size or size, f"run {number}", shape, self.found_sizes)
                for level, rows in _observe(run, impact_of, batch):
                    bar.update(sum(run.passes(level, rows)))
        return {
            **_read(runs, target, dtype),
            "text": adapter.text(target.token_ids),
            "pieces": tuple(adapter.pieces(target.token_ids)),
            "token_id_list": tuple(target.token_ids.tolist()),
            "context_pieces": tuple(adapter.pieces(target.context_ids)),
            "special": tuple(adapter.is_special(target.token_ids)),
            "prefix_length": len(target.prefix_ids),
            "probabilities": _probabilities(reference, target.token_ids.to(adapter.device)).cpu(),
            "features": utterance.features,
            "times": utterance.times,
            "frequencies": utterance.frequencies,
            "waveform": torch.from_numpy(utterance.waveform.samples),
            "sampling_rate": utterance.waveform.sampling_rate,
            "forward_passes": passes.forward,
            "backward_passes": passes.backward,
        }


@dataclass
class _Passes:
    """How many copies ran through the model, forwards and backwards, those of batches that failed later included."""

    forward: int = 0
    backward: int = 0

    def count(self, keep: Tensor) -> None:
        """Count a batch that ran forwards under these masks, (B, F), and every time that it will run backwards."""
        self.forward += len(keep)
        if keep.requires_grad:
            keep.register_hook(self._count_backward)

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


def _observe(run: Run, impact_of: Callable[[Masks], Tensor], batch: Batch) -> Iterator[tuple[int, range]]:
    """Show the estimator every mask of a run, batch by batch, the levels in turn; yield level and rows when done."""

    def show(level: int, rows: range) -> None:
        run.estimator.update(run.perturbation.draw(level, rows), impact_of)

    for todo in _stages(run):
        while any(todo):
            for level, rows in enumerate(todo):
                some, todo[level] = rows[: batch.size], rows[batch.size :]
                for part in run.parts(level, some):
                    for done in batch.over(part, partial(show, level)):
                        yield level, done


def _shared_graphs() -> AbstractContextManager[Any]:
    """Return a context in which compiled code lets many backward passes, one for each token, share a graph."""
    from torch._functorch import config

    return config.patch(donated_buffer=False)


def _read(runs: Sequence[Run], target: Target, dtype: torch.dtype) -> dict[str, Any]:
    """Return the maps that the estimators of all runs add up to."""
    found: dict[str, Any] = {}
    for run in runs:
        scores = run.estimator.scores()
        kept = scores.numerators if scores.sentence is None else (*scores.numerators, scores.sentence)
        check_finite(kept, "impacts, or their gradients,", dtype)
        if run.audio is not None:
            found["audio_map"] = run.audio.map(scores)
            found["audio_mean_impact"] = scores.mean_impact
            reliability = _reliability(run, run.audio, len(target.token_ids))
            if run.sentence is not None:
                found["sentence_map"] = run.sentence.map(scores)
                reliability = replace(reliability, sentence=_reliability(run, run.sentence).sentence)
            found["token_reliability"] = reliability
        if run.token_scores is not None:
            text = run.token_scores(scores)
            numerator = text.numerators[0]
            denominator = text.denominators[0].expand_as(numerator)
            found["raw_token_scores"] = ratio(numerator, denominator).float().masked_fill(~target.valid, torch.nan)
            # Text is what the model wrote itself. Masks that hide sound as well say nothing about text alone.
            written = target.valid.clone()
            written[:, : len(target.prefix_ids)] = False
            impact = ratio((numerator * written).sum(1), (denominator * written).sum(1)).float()
            found["token_mean_impact"] = torch.full_like(impact, torch.nan) if run.audio else impact
    return found


def _stages(run: Run) -> Iterator[list[range]]:
    """Return the rows of each level, part after part, until the map of the sentence is as reliable as asked for.

    Stages end with whole blocks of masks that balance one another, at the least number of masks or later. Where depends
    on the config alone, so results do not hang on the batch size.
    """
    rows = [run.perturbation.rows(level) for level in _levels(run)]
    shown = run.sentence or run.audio
    if run.target_reliability is None or shown is None:
        yield rows
        return
    block, least = run.perturbation.block, run.least_masks / len(rows)
    start = [0] * len(rows)
    for share in STAGES:
        end = [min(len(r), math.ceil(max(len(r) * share, least) / block) * block) for r in rows]
        yield [r[a:b] for r, a, b in zip(rows, start, end, strict=True)]
        if share < 1 and _reliability(run, shown).sentence >= run.target_reliability:
            return
        start = end


def _reliability(run: Run, shown: Reading, tokens: int = 1) -> Reliability:
    """Return the split-half reliability of what the masks so far have drawn."""
    first, second = (shown.map(run.estimator.half(i)) for i in (0, 1))
    return split_half(first, second, tokens)


def _levels(run: Run) -> range:
    return range(run.perturbation.levels)


def _probabilities(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return the probability of each explained token, (K,) float32."""
    return logits.float().softmax(-1).gather(1, token_ids[:, None]).squeeze(1)

"""`Explainer`: lets the method plan, runs the model accordingly, and puts the results together."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spes_hf.adapters import GenerationOptions, get_adapter
from spes_hf.adapters.output import Output, output_of
from spes_hf.audio.load import Waveform
from spes_hf.audio.long import open_audio
from spes_hf.checks import Progress, check_progress, check_whole, summed_up
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.masking.draw import mask_key
from spes_hf.methods import ExplainConfig, SpesConfig
from spes_hf.methods.run import Problem
from spes_hf.plans import Found, run_plan
from spes_hf.provenance import describe
from spes_hf.recording_folder import Asked
from spes_hf.recordings import explain_recording, is_recording
from spes_hf.runtime.batching import BatchSize, FoundSizes, check_batch_size, found_sizes_of
from spes_hf.runtime.identity import describe_model
from spes_hf.runtime.precision import check_autocast, graphs_of, precision_of
from spes_hf.runtime.ranks import Ranks
from spes_hf.scoring.contrast import CONTRASTS, Contrast
from spes_hf.scoring.encoder import EncoderOutput
from spes_hf.scoring.foils import Foil, contrasts_of
from spes_hf.scoring.objective import ContrastObjective, Objective, TokenObjective
from spes_hf.scoring.part import Chosen, listed, rows_of

if TYPE_CHECKING:
    from spes_hf.explanation.recording import Recording


class Explainer:
    """`explain` for many utterances: checks model, processor and config once.

    Args:
        model: A speech-to-text model of a known family.
        processor: Its processor.
        config: Method and settings; None for `SpesConfig()`.
        batch_size: Perturbed copies in one forward pass; "auto" or None: found automatically, and remembered.
        seed: Same seed, same masks.
        progress: As for `explain`.
        autocast: As for `explain`.
        compile: As for `explain`.
        accelerator: As for `explain`.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If config, batch size, seed or autocast is not allowed.

    Examples:
        >>> explainer = Explainer(model, processor, SpesConfig.fast(), progress=False)
        >>> [explainer(path).text for path in clips[:2]]
        ['Tom sells a small picture.', 'At half past eleven Tom needs the beautiful house.']
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        config: ExplainConfig | None = None,
        *,
        batch_size: BatchSize = None,
        seed: int = 0,
        progress: Progress = True,
        autocast: str | None = None,
        compile: bool = False,
        accelerator: Any = None,
    ):
        self.adapter = get_adapter(model, processor)
        self.config = SpesConfig() if config is None else config
        if not isinstance(self.config, ExplainConfig):
            raise ConfigError(f"config is {config!r}; pass a config such as SpesConfig(), or None")
        self.batch_size: int | None = check_batch_size(batch_size)
        self.found_sizes: FoundSizes = FoundSizes()
        self.seed: int = check_whole("seed", seed)
        self.progress: bool = progress is True
        self.watcher = check_progress(progress)
        self.autocast: str | None = check_autocast(autocast)
        self.compile: bool = bool(compile)
        self.ranks: Ranks = Ranks.of(accelerator)
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
        foil: Foil | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        utterance_id: str = "",
        words: Chosen | None = None,
        tokens: Chosen | None = None,
        timestamps: bool = False,
        start: float | None = None,
        end: float | None = None,
        segment: str | None = None,
        over: str = "spectrogram",
        folder: str | Path | None = None,
        prompt: str | None = None,
    ) -> Explanation | Recording:
        """Return the explanation of one utterance, or of a recording.

        Args:
            audio: As for `explain`, like all arguments not described here.
            sampling_rate: Rate of bare samples in Hz, if it is not the processor's.
            language: Language of the speech.
            task: "transcribe" or "translate".
            tgt_lang: Language of the text.
            text: Explain this output instead of the one that the model generates.
            foil: What the model did not write, as for `explain`.
            generate_kwargs: Further arguments of ``model.generate()``.
            utterance_id: Gives every utterance of a corpus its own masks.
            words: Words to explain; None: all.
            tokens: Tokens to explain; None: all.
            timestamps: Whether to explain timestamps.
            start: Start of the stretch of a recording to explain, in seconds.
            end: End of the stretch, in seconds.
            segment: "pauses" to cut a recording where speech pauses.
            over: "encoder" for saliency over the encoder's output as well.
            folder: Where to write the result, for a recording window by window.
            prompt: Instruction for speech LLMs.
        """
        named: dict[str, Any] = {"words": listed(words), "tokens": listed(tokens), "timestamps": timestamps}
        part = {"start": start, "end": end, "segment": segment}
        with self.ranks.together():
            options = self.adapter.options_of(language, task, tgt_lang, generate_kwargs, text is not None, prompt)
            config = self.config.with_impact_for(text is not None, foil is not None)
            config.check_over(over)
            if foil is not None and (words is not None or tokens is not None or timestamps):
                raise ConfigError("foil already says which places to explain; leave out words, tokens and timestamps")
            if not isinstance(timestamps, bool):
                raise ConfigError(f"timestamps is {timestamps!r}; allowed: True, False")
            waveform = open_audio(audio, self.adapter.sampling_rate, sampling_rate)
            asked = Asked(waveform, options, config, utterance_id, named, part, over)
            if is_recording(self.adapter, waveform, segment, start, end, folder, text=text, foil=foil):
                return explain_recording(self, asked, folder)
            explanation = self._explain(asked, text, foil)
            if folder is not None and self.ranks.is_first:
                explanation.save(folder)
            return explanation

    def _explain(self, asked: Asked, text: str | None, foil: Foil | None) -> Explanation:
        """Return the explanation of one utterance."""
        waveform, options, config = asked.waveform, asked.options, asked.config
        waveform = replace(waveform, samples=waveform.samples[:])
        started = time.perf_counter()
        with self.output(waveform, options, text, asked.utterance_id, config) as output:
            contrasts = () if foil is None else contrasts_of(self.adapter, output.target, foil)
            # If the model wrote nothing but timestamps, explain those.
            rows = None if contrasts else rows_of(self.adapter, [output.target], **asked.named)[0] or None
            objective = self.contrasting(output, contrasts, config) if contrasts else None
            found = self._find(config, output, asked.utterance_id, objective, rows, over=asked.over)
        return self._explained(output, found, config, options, asked.utterance_id, text is not None, foil, started)

    @contextmanager
    def output(
        self, waveform: Waveform, options: GenerationOptions, text: str | None, utterance_id: str, config: Any = None
    ) -> Iterator[Output]:
        """Yield what the model writes, while no other call uses the model; see `spes_hf.adapters.output.output_of`."""
        seed, prepare = mask_key(self.seed, utterance_id, "generate"), config and config.prepare
        made = output_of(self.adapter, waveform, options, text, seed, self._precision, prepare)
        with graphs_of(self.compile), made as output:
            yield output

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the model with the autocast and compile settings of this explainer."""
        with graphs_of(self.compile), self._precision:
            yield

    def contrasting(self, output: Output, contrasts: Sequence[Contrast], config: ExplainConfig) -> ContrastObjective:
        """Return the objective that measures these contrasts of an output.

        Args:
            output: What the model wrote.
            contrasts: The contrasts to measure.
            config: Defines the probability of a word, and the impact.

        Raises:
            NumericsError: If the model finds target or foil impossible, or its logits are NaN.
        """
        score = config.impact if config.impact in CONTRASTS else CONTRASTS[0]  # controls measure no impact
        return ContrastObjective(
            self.adapter,
            output.utterance,
            output.target,
            contrasts,
            score,
            config.word_probability,
            self._dtype,
            self._states(output),
        )

    def of_output(
        self,
        output: Output,
        options: GenerationOptions,
        utterance_id: str,
        config: ExplainConfig,
        objective: ContrastObjective | None = None,
        foil: Foil | None = None,
        text_given: bool = False,
        rows: Sequence[int] | None = None,
        window: Mapping[str, Any] | None = None,
        advance: Callable[[float], None] | None = None,
        over: str = "spectrogram",
    ) -> Explanation:
        """Return the explanation of an output that `output` yields.

        Args:
            output: What the model wrote.
            options: How it wrote.
            utterance_id: Gives every utterance of a corpus its own masks.
            config: Method and settings, with the impact for the output.
            objective: The contrasts to explain, as `contrasting` returns them; None: tokens.
            foil: Where the contrasts come from, for the provenance.
            text_given: Whether the text was given, not generated.
            rows: Indices of the tokens to explain; None: all.
            window: The window of a recording, for the provenance.
            advance: Called after every batch with its share of the passes; None: follow `progress`.
            over: As for `explain`.
        """
        started = time.perf_counter()
        with config.prepare(output.utterance, self.adapter.device):
            found = self._find(config, output, utterance_id, objective, rows, advance, over)
        return self._explained(output, found, config, options, utterance_id, text_given, foil, started, window)

    def _explained(
        self,
        output: Output,
        found: Found,
        config: ExplainConfig,
        options: GenerationOptions,
        utterance_id: str,
        text_given: bool,
        foil: Foil | None,
        started: float,
        window: Mapping[str, Any] | None = None,
    ) -> Explanation:
        """Return the explanation made of these results, with its provenance."""
        utterance, target = output.utterance, output.target
        provenance = describe(
            self.adapter,
            config,
            utterance,
            target,
            options,
            found.maps,
            seed=self.seed,
            utterance_id=utterance_id,
            text_given=text_given,
            foil=foil,
            autocast=self.autocast,
            compiled=self.compile,
            forward_passes=found.passes.forward,
            backward_passes=found.passes.backward,
            seconds=time.perf_counter() - started,
            processes=self.ranks.count,
            window=window,
            over=found.over,
        )
        return found.explanation(self.adapter, output, provenance)

    def _find(
        self,
        config: ExplainConfig,
        output: Output,
        utterance_id: str,
        contrasting: ContrastObjective | None,
        rows: Sequence[int] | None = None,
        advance: Callable[[float], None] | None = None,
        over: str = "spectrogram",
    ) -> Found:
        """Return the maps of an output, and the passes they took."""
        adapter, utterance, target = self.adapter, output.utterance, output.target
        if advance is None and self.watcher is not None:
            advance = summed_up(self.watcher)
        if self.ranks.count > 1:
            ids = [target.prefix_ids.tolist(), target.token_ids.tolist()]
            asked = [config.to_dict(), self.seed, utterance_id, rows, over, self.autocast, ids]
            about = describe_model(adapter.model)  # except where it was loaded from
            model = [about.get(name) for name in ("class", "type", "parameters", "weights", "adapters")]
            asked += [contrasting and repr(contrasting.contrasts), model, adapter.dtype]
            self.ranks.check_same("what is explained", [*asked, _digest(utterance.features)])
        objective: Objective = contrasting or TokenObjective(
            adapter, utterance, target, config.impact, self._dtype, rows, self._states(output)
        )
        when = adapter.is_timestamp(target.token_ids)
        said = [k for k, is_one in enumerate(when) if not is_one]
        problem = Problem(
            utterance,
            target,
            adapter.device,
            self.seed,
            utterance_id,
            differentiable=adapter.differentiable,
            dtype=self._dtype,
            rows=objective.valid,
            signed=objective.signed,
            explained=rows,
            over=over,
            sentence=said if said and contrasting is None else None,
            encoder_output=EncoderOutput(adapter, utterance, target, objective.states, objective.tokens),
            ranks=self.ranks,
        )
        found = run_plan(
            config,
            problem,
            objective,
            self.batch_size,
            self.sizes,
            self.progress and advance is None,
            advance,
        )
        return replace(found, contrasts=contrasting.measured if contrasting else None, rows=rows, over=over)

    def _states(self, output: Output) -> Tensor | None:
        """Return the encoder's output from generation; None for compiled code, which rounds differently."""
        return None if self.compile else output.states

    @property
    def sizes(self) -> FoundSizes:
        """The batch sizes that fitted: shared by all calls of the model, or this explainer's own if a size is given."""
        return self.found_sizes if self.batch_size else found_sizes_of(self.adapter, self._dtype)

    @property
    def _precision(self) -> AbstractContextManager[Any]:
        """A context with autocast to the requested type, if any."""
        return precision_of(self.autocast, self.adapter.device.type)

    @property
    def _dtype(self) -> torch.dtype:
        """The type that the model computes in."""
        return self.adapter.dtype if self.autocast is None else getattr(torch, self.autocast)


def _digest(features: Tensor) -> str:
    """Return a hash that identifies features."""
    return hashlib.blake2b(features.cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()

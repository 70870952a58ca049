"""Where does an error come from? Traces every error of a transcript to the sound, to the context, or to neither."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spes_hf.adapters import GenerationOptions
from spes_hf.adapters.output import Output
from spes_hf.audio.load import load_audio
from spes_hf.checks import Progress
from spes_hf.differences import Difference
from spes_hf.engine import Explainer
from spes_hf.errors import ConfigError
from spes_hf.explanation import Explanation
from spes_hf.explanation.diagnosis import Diagnosis, ErrorKind, WordError
from spes_hf.explanation.stretches import Stretch, joined, peak_stretch, profiles_in_time, stretches_in_order
from spes_hf.masking.draw import mask_key, uniform
from spes_hf.methods import SpesConfig
from spes_hf.runtime.batching import Batch, BatchSize, starting_batch_size
from spes_hf.scoring.contrast import Contrast, Odds
from spes_hf.scoring.foils import Words, contrast_at, differing, words_of_text
from spes_hf.scoring.objective import ContrastObjective

# Number of masks for the maps that show when each token was heard.
_ALIGNMENT_MASKS = 2
_ALIGNMENT_MASKS_EQ3 = 500

# Number of random orders of a stretch's frames to average over.
_ORDERS = 8

# Share of a stretch to leave out at either end, because its neighbours reach into it.
_EDGE = 0.15


def diagnose(
    model: Any,
    processor: Any = None,
    audio: Any = None,
    reference: str | None = None,
    sampling_rate: int | None = None,
    config: SpesConfig | None = None,
    language: str | None = None,
    task: str | None = None,
    tgt_lang: str | None = None,
    text: str | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    times: Sequence[Stretch] | None = None,
    batch_size: BatchSize = None,
    seed: int = 0,
    progress: Progress = True,
    autocast: str | None = None,
    compile: bool = False,
    prompt: str | None = None,
) -> Diagnosis:
    """Return for every error in what the model writes whether it was misheard, guessed or not heard.

    Aligns text and reference word by word, ignoring case and punctuation. For each error, it takes the log-odds of
    what was written against what was said (`explain` with the reference as foil) and splits them into *context* and
    *evidence*. The context is what remains when the frames of the words' own stretch of sound are shuffled at random,
    which keeps its loudness and timbre but leaves no word to hear. The evidence is what the stretch adds. Fill values
    would not do: the model hears them as a pause, so that noise would look like a word.

    Args:
        model: As for `explain`, like all arguments not described here.
        processor: Its processor.
        audio: What it hears.
        reference: What was said. For a translation, a variant of the same sentence.
        sampling_rate: Rate of bare samples, in Hz.
        config: Method and settings of the maps; None for `SpesConfig()`.
        language: Language of the speech.
        task: "transcribe" or "translate".
        tgt_lang: Language of the text.
        text: Diagnose this text instead of what the model generates.
        generate_kwargs: Further arguments of ``model.generate()``.
        times: Start and end of every word of the reference, in seconds, if known. Otherwise each token's own map shows
            when it was heard, or the contrast's map where tokens are not heard in order (translation).
        batch_size: Perturbed copies in one forward pass.
        seed: Same seed, same masks.
        progress: As for `explain`; a function gets the progress of the maps first, then that of aligning the tokens.
        autocast: As for `explain`.
        compile: As for `explain`.
        prompt: Instruction for speech LLMs.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        AudioError: If the audio cannot be read, or is too short or too long.
        ConfigError: If an argument is not allowed, or the reference is empty or has no word in common with the text.

    Examples:
        >>> print(diagnose(model, processor, clip, "Tom sells a small pitcher."))
        'Tom sells a small picture.': 1 error (1 misheard), WER 20%
          picture, said pitcher: misheard; ...
    """
    running: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast, "compile": compile}
    return Diagnoser(model, processor, config, seed=seed, progress=progress, **running)(
        audio,
        reference,
        sampling_rate=sampling_rate,
        language=language,
        task=task,
        tgt_lang=tgt_lang,
        text=text,
        generate_kwargs=generate_kwargs,
        times=times,
        prompt=prompt,
    )


class Diagnoser:
    """`diagnose` for many utterances: checks model, processor and config once.

    Args:
        model: A speech-to-text model of a known family, or a pipeline; it is left unchanged.
        processor: Its processor.
        config: Method and settings of the maps; None for `SpesConfig()`.
        batch_size: Perturbed copies in one forward pass; "auto" or None: found automatically, and remembered.
        seed: Same seed, same masks.
        progress: As for `diagnose`.
        autocast: As for `explain`.
        compile: As for `explain`.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        ConfigError: If config, batch size, seed or autocast is not allowed.

    Examples:
        >>> diagnoser = Diagnoser(model, processor, SpesConfig.fast())
        >>> diagnoser(clip, "Tom sells a small picture.").errors
        ()
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        config: SpesConfig | None = None,
        *,
        batch_size: BatchSize = None,
        seed: int = 0,
        progress: Progress = True,
        autocast: str | None = None,
        compile: bool = False,
    ):
        running: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast, "compile": compile}
        self.explainer = Explainer(model, processor, config, seed=seed, progress=progress, **running)
        if not isinstance(self.explainer.config, SpesConfig):
            raise ConfigError(f"config is {config!r}; a diagnosis reads the maps of SPES: pass a SpesConfig, or None")
        self.explainer.config.with_impact_for(text_given=False, foil=True)  # refuses what works only without a foil
        self.adapter = self.explainer.adapter
        counts = {"num_spectrogram_masks": _ALIGNMENT_MASKS, "masks_per_token": _ALIGNMENT_MASKS}
        # To find when each token was heard, leave out what its map would borrow from the others.
        settings: dict[str, Any] = {**counts, "passes_per_mask": None, "prior_weight": 0.0}
        if not self.adapter.differentiable:
            settings = {"estimator": "perturbation", "num_spectrogram_masks": _ALIGNMENT_MASKS_EQ3}
        self.alignment = SpesConfig(impact="log-probability", num_token_masks=1, **settings)

    def __call__(
        self,
        audio: Any,
        reference: Any,
        *,
        sampling_rate: int | None = None,
        language: str | None = None,
        task: str | None = None,
        tgt_lang: str | None = None,
        text: str | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        times: Sequence[Stretch] | None = None,
        utterance_id: str = "",
        prompt: str | None = None,
    ) -> Diagnosis:
        """Return the diagnosis of one utterance; arguments as for `diagnose`."""
        adapter, explainer = self.adapter, self.explainer
        options = adapter.options_of(language, task, tgt_lang, generate_kwargs, text is not None, prompt)
        if not isinstance(reference, str) or not reference.strip():
            raise ConfigError(f"reference is {reference!r}; pass the words that were said")
        said = tuple(words_of_text(adapter, reference))
        if not said:
            raise ConfigError(f"reference is {reference!r}, which has no words; pass the words that were said")
        waveform = load_audio(audio, adapter.sampling_rate, sampling_rate)
        known = _check_times(times, said, len(waveform.samples) / waveform.sampling_rate)
        with explainer.output(waveform, options, text, utterance_id) as output:
            words = Words.of(adapter, output.target.token_ids)
            if words.spoken:
                parts = differing(adapter, words, reference, "reference")
                errors, contrasts = self._contrasts(output, words, parts)
            else:
                every = tuple(range(len(said)))
                why_not = "the model wrote no word"
                errors = [WordError("deletion", "", " ".join(said), said_words=every, why_not=why_not)]
                contrasts = ()
            explanation = None
            if contrasts:
                given = text is not None
                config = explainer.config.with_impact_for(given, foil=True)
                objective = explainer.contrasting(output, contrasts, config)
                explanation = explainer.of_output(output, options, utterance_id, config, objective, reference, given)
                translation = options.task == "translate" or options.tgt_lang is not None
                heard = None if known or translation else self._heard(output, options, utterance_id)
                stretches = [_stretch(e, contrasts, explanation, heard, known) for e in errors]
                errors = self._measured(objective, errors, explanation, stretches, utterance_id)
        return Diagnosis(
            adapter.text(output.target.token_ids), reference, words.texts, said, tuple(errors), explanation
        )

    def _contrasts(
        self, output: Output, words: Words, parts: Sequence[tuple[Difference, tuple[str, ...]]]
    ) -> tuple[list[WordError], tuple[Contrast, ...]]:
        """Return the errors, and contrasts for those that can be examined."""
        errors: list[WordError] = []
        contrasts: list[Contrast] = []
        for here, others in parts:
            error = WordError(
                kind=_kind(here),
                written=" ".join(words.texts[words.spoken[i]] for i in here.first),
                said=" ".join(others),
                written_words=tuple(words.spoken[i] for i in here.first),
                said_words=tuple(here.second),
            )
            try:
                contrast = contrast_at(self.adapter, output.target, words, here, others, "reference")
            except ConfigError as why:  # the model cannot write these words; the other errors can still be examined
                errors.append(replace(error, why_not=str(why)))
                continue
            errors.append(replace(error, row=len(contrasts)))
            contrasts.append(contrast)
        return errors, tuple(contrasts)

    def _heard(self, output: Output, options: GenerationOptions, utterance_id: str) -> dict[int, np.ndarray]:
        """Return the evidence for each token over time."""
        return profiles_in_time(self.explainer.of_output(output, options, utterance_id, self.alignment))

    def _measured(
        self,
        objective: ContrastObjective,
        errors: Sequence[WordError],
        explanation: Explanation,
        stretches: Sequence[_Place | None],
        utterance_id: str,
    ) -> list[WordError]:
        """Return the errors with their bits."""
        own, sound = objective.odds, explanation.sound_bits
        found = []
        for error, place in zip(errors, stretches, strict=True):
            if error.row is None or place is None:
                found.append(error)
                continue
            row, (start, end) = error.row, place.stretch
            features = self._shuffled(objective, place, utterance_id, row)
            if features is None:
                why_not = f"its stretch of sound, {start:.2f}–{end:.2f} s, has fewer than two frames"
                found.append(replace(error, stretch=place.stretch, why_not=why_not))
                continue
            odds = self._odds(objective, row, features)
            written, said = (
                (getattr(own, name)[0, row] - torch.cat([getattr(o, name)[:, 0] for o in odds])).cpu().double()
                / math.log(2)
                for name in ("target", "foil")
            )
            evidence = written - said
            log_odds = float(own.bits[0, row])
            found.append(
                replace(
                    error,
                    log_odds=log_odds,
                    context=log_odds - float(evidence.mean()),
                    evidence=float(evidence.mean()),
                    without_sound=log_odds - float(sound[row]),
                    written_evidence=float(written.mean()),
                    said_evidence=float(said.mean()),
                    deviation=float(evidence.std() / math.sqrt(len(evidence))),
                    stretch=place.stretch,
                    reliability=float(explanation.reliability.tokens[row]),
                )
            )
        return found

    def _shuffled(self, objective: ContrastObjective, place: _Place, utterance_id: str, row: int) -> Tensor | None:
        """Return the spectrograms with the shuffled stretch of an error; None where it is too short to shuffle."""
        utterance, key = objective.utterance, mask_key(self.explainer.seed, utterance_id, f"orders/{row}")
        return shuffled(utterance.features, utterance.times, place.stretch, key, 0.0 if place.known else _EDGE)

    def _odds(self, objective: ContrastObjective, row: int, features: Tensor) -> list[Odds]:
        """Return the odds of a contrast for spectrograms, (N, T, C), run in batches that fit into memory."""
        explainer, device, found = self.explainer, self.adapter.device, list[Odds]()
        reader = replace(objective.reader, contrasts=objective.contrasts[row : row + 1])
        size = starting_batch_size(math.prod(reader.logits_shape), device, objective.utterance.inputs)
        shape = (*features.shape[1:], *reader.logits_shape)
        batch = Batch(explainer.batch_size or size, "orders", shape, explainer.sizes)

        def read(rows: range) -> None:
            found.append(reader.odds(features[rows.start : rows.stop].to(device)))

        with torch.no_grad():
            for _ in batch.over(range(len(features)), read):
                pass
        return found


@dataclass(frozen=True)
class _Place:
    """A stretch of sound, and whether the caller gave it."""

    stretch: Stretch
    known: bool = False


def shuffled(features: Tensor, times: Tensor, stretch: Stretch, key: int, edge: float = 0.0) -> Tensor | None:
    """Return spectrograms, (N, T, C), with the frames of one stretch shuffled; None if it has fewer than two frames.

    Args:
        features: (T, C).
        times: (T,) in seconds.
        stretch: Start and end, in seconds.
        key: Key of the random orders.
        edge: Share of the stretch, on each side, to leave as it is, provided that two frames remain in between.

    Examples:
        >>> shuffled(torch.arange(4.0)[:, None], torch.arange(4.0), (1.0, 2.0), key=0).sort(1).values[0, :, 0].tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    start, end = stretch
    for margin in (edge * (end - start), 0.0):
        inside = ((times >= start + margin) & (times <= end - margin)).nonzero()[:, 0]
        if len(inside) > 1:
            found = features.expand(_ORDERS, -1, -1).clone()
            for i, numbers in enumerate(torch.from_numpy(uniform(key, 0, _ORDERS, len(inside)))):
                found[i, inside] = features[inside[numbers.argsort()]]
            return found
    return None


def _stretch(
    error: WordError,
    contrasts: Sequence[Contrast],
    explanation: Explanation,
    heard: dict[int, np.ndarray] | None,
    times: Sequence[Stretch] | None,
) -> _Place | None:
    """Return the stretch of sound that belongs to the words of an error; None if the error cannot be examined."""
    if error.row is None:
        return None
    contrast, evidence = contrasts[error.row], explanation.evidence(error.row)
    own = None if times is None else joined(times[i] for i in error.said_words)
    if own is not None:
        return _Place(own, known=True)
    # The contrast shows better than the words' own maps where the sound speaks for or against them.
    profile = evidence.abs().sum(1).double().numpy()
    profiles = None if heard is None else {**heard, **{k: profile for k in contrast.tokens if k in heard}}
    cut = None if profiles is None else stretches_in_order(profiles, explanation.times)
    if cut is None:
        return _Place(peak_stretch(evidence, explanation.times))
    own = joined(cut[k] for k in contrast.tokens if k in cut)
    if own is not None:
        return _Place(own)
    # A word that was not written lies between the centres of its neighbours.
    before = joined([cut[k] for k in cut if k < contrast.start][-1:])
    after = joined([cut[k] for k in cut if k >= contrast.start][:1])
    start = float(explanation.times[0]) if before is None else sum(before) / 2
    end = float(explanation.times[-1]) if after is None else sum(after) / 2
    return _Place(peak_stretch(evidence, explanation.times, (start, end)))


def _kind(here: Difference) -> ErrorKind:
    if not here.second:
        return "insertion"
    if not here.first:
        return "deletion"
    return "substitution" if len(here.first) == len(here.second) else "several words"


def _check_times(times: Any, said: Sequence[str], seconds: float) -> list[Stretch] | None:
    """Return the times of the words of a reference, checked.

    Raises:
        ConfigError: If they are not pairs of seconds within the audio, one for each word.
    """
    if times is None:
        return None
    allowed = "allowed: one (start, end) in seconds for each word of the reference, with start before end"
    try:
        pairs = [(float(start), float(end)) for start, end in times]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"times is {times!r}; {allowed}") from error
    if len(pairs) != len(said):
        raise ConfigError(f"times has {len(pairs)} entries, but the reference has {len(said)} words; pass one per word")
    wrong = [pair for pair in pairs if not 0 <= pair[0] < pair[1] < math.inf]
    if wrong:
        raise ConfigError(f"times holds {wrong[0]!r}; {allowed}")
    late = [pair for pair in pairs if pair[0] >= seconds]
    if late:
        raise ConfigError(f"times holds {late[0]!r}, but the audio ends at {seconds:.2f} s; pass seconds, not samples")
    return pairs

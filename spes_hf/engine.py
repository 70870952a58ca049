"""`explain`, which most users need alone, and `Explainer`, the same for many utterances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spes_hf.checks import Progress
from spes_hf.explainer import Explainer
from spes_hf.explanation import Explanation
from spes_hf.methods import ExplainConfig
from spes_hf.runtime.batching import BatchSize
from spes_hf.runtime.ranks import Ranks
from spes_hf.scoring.foils import Foil
from spes_hf.scoring.part import Chosen

if TYPE_CHECKING:
    from spes_hf.explanation.recording import Recording

__all__ = ["Explainer", "explain"]


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
    foil: Foil | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    batch_size: BatchSize = None,
    seed: int = 0,
    progress: Progress = True,
    words: Chosen | None = None,
    tokens: Chosen | None = None,
    timestamps: bool = False,
    start: float | None = None,
    end: float | None = None,
    segment: str | None = None,
    over: str = "spectrogram",
    folder: str | Path | None = None,
    accelerator: Any = None,
    autocast: str | None = None,
    compile: bool = False,
    prompt: str | None = None,
) -> Explanation | Recording:
    """Return why the model writes each token for this audio: saliency over the spectrogram and over earlier tokens.

    Audio that is longer than the model's window becomes a `Recording`: a sequence of explanations, one for each window
    that ``generate()`` itself went through.

    Args:
        model: A speech-to-text model of a known family (`spes_hf.list_adapters`), or a pipeline; left as it was.
        processor: Its processor; a pipeline has its own: ``explain(pipe, audio=audio)``.
        audio: Samples (array, tensor or list), a path, the bytes of a file, or a row's audio of a `datasets` corpus.
        sampling_rate: Of bare samples that are not at the processor's rate, in Hz.
        config: Method and settings; None for `SpesConfig()`.
        language: Language of the speech, for families whose ``generate()`` takes it.
        task: "transcribe" or "translate", likewise.
        tgt_lang: Language of the text, likewise.
        text: Explain this output instead of the one that the model generates.
        foil: Explain why the model wrote this and not that: a whole other text; replacements, by word or index
            (``{"country": "county"}``, ``{"country": ["county", "company"]}``), or by token to the id of a token; or a
            list of foils, which share the masks. Each place that differs is a row (`Explanation.contrasts`).
        generate_kwargs: Further arguments of ``model.generate()``, such as ``{"num_beams": 5}``.
        batch_size: Perturbed copies in one forward pass; "auto" or None: found automatically, and remembered.
        seed: Same seed, same masks.
        progress: Whether to show a progress bar; or a function to call with the share of the passes that is done, up to
            1. If it raises an error, the call ends with it.
        words: Explain these words alone, by text (all that read so) or by index: the backward passes for the others
            are spared, the maps are the same. A text, an index, or several.
        tokens: Tokens likewise.
        timestamps: Whether to explain the tokens that say when, too: what made the model cut there?
        start: Explain a recording from here on, in seconds, in the context that it had; whole segments by timestamps.
        end: Up to here, likewise. What comes later is not transcribed.
        segment: "pauses" to cut a recording where speech pauses, into separate utterances; None: the model's own way.
        over: "encoder" for saliency over the encoder's output as well (`Explanation.encoder_saliency`), in passes of
            the decoder alone; the other maps stay the same, bit for bit.
        folder: Where to write the result, a recording window by window: the same call continues what was interrupted.
            None: nowhere, or a temporary folder, until ``.save(path)``.
        accelerator: `accelerate.Accelerator()`, in every process that ``accelerate launch`` started: they share the
            masks, and each returns the whole explanation. None: this process works on its own.
        autocast: "bfloat16" or "float16" to run the model by `torch.autocast` in that type, faster and less exact; None
            to run it as it is, even where autocast is switched on around the call.
        compile: Whether to run the encoder by `torch.compile`; the last digits differ. Each new input shape is compiled
            for about a minute, and torch gives up after eight: give a `batch_size`, and inputs of one length (Whisper).
        prompt: Instruction for speech LLMs ("Translate into German."); None: the family's own for transcription.

    Returns:
        The explanation, or recording; ``.words()``, ``.plot()``, ``.to_html(path)`` and ``.save(path)`` come next.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        AudioError: If the audio cannot be read, or is too short or too long.
        ConfigError: If an argument has a value outside what is allowed.
        RankError: If another of the processes failed, is lost, or was called with something else.

    Examples:
        >>> ex = explain(model, processor, clip, config=SpesConfig.fast())
        >>> ex
        Explanation('Tom sells a small picture.', 7 tokens, 163 frames × 80 mel bins, 1.6 s, method=spes, ...)
        >>> foiled = explain(model, processor, clip, foil={"small": "big"}, config=SpesConfig.fast())
        >>> [contrast.foil for contrast in foiled.contrasts]
        ['big']
    """
    running: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast, "compile": compile}
    ranks = Ranks.of(accelerator)
    with ranks.together():
        explainer = Explainer(model, processor, config, seed=seed, progress=progress, **running)
        explainer.ranks = ranks
        return explainer(
            audio,
            sampling_rate=sampling_rate,
            language=language,
            task=task,
            tgt_lang=tgt_lang,
            text=text,
            foil=foil,
            generate_kwargs=generate_kwargs,
            words=words,
            tokens=tokens,
            timestamps=timestamps,
            start=start,
            end=end,
            segment=segment,
            over=over,
            folder=folder,
            prompt=prompt,
        )

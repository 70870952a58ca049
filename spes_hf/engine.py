"""`explain`, which is all that most users need, and `Explainer`, the same for many utterances."""

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
    that ``generate()`` processed.

    Args:
        model: A speech-to-text model of a known family (`spes_hf.list_adapters`), or a pipeline; it is left unchanged.
        processor: Its processor; a pipeline has its own: ``explain(pipe, audio=audio)``.
        audio: Samples (array, tensor or list), a path, the bytes of a file, or the audio of a row of a `datasets`
            corpus.
        sampling_rate: Rate of bare samples in Hz, if it is not the processor's.
        config: Method and settings; None for `SpesConfig()`.
        language: Language of the speech, for families whose ``generate()`` takes it.
        task: "transcribe" or "translate", likewise.
        tgt_lang: Language of the text, likewise.
        text: Explain this output instead of the one that the model generates.
        foil: Explain why the model wrote this and not that. Pass a whole other text; a mapping of replacements, by word
            or index (``{"country": "county"}``, ``{"country": ["county", "company"]}``), or by token to a token id; or
            a list of foils, which share the masks. Each place that differs is a row (`Explanation.contrasts`).
        generate_kwargs: Further arguments of ``model.generate()``, such as ``{"num_beams": 5}``.
        batch_size: Perturbed copies in one forward pass; "auto" or None: found automatically, and remembered.
        seed: Same seed, same masks.
        progress: Whether to show a progress bar; or a function to call with the share of the passes done, up to 1. If
            the function raises an error, the call stops and raises it.
        words: Explain only these words, given by text (all words that match) or by index. The maps are the same as for
            all words, but the backward passes for the others are skipped. A text, an index, or several.
        tokens: Explain only these tokens, likewise.
        timestamps: Whether to explain timestamp tokens too: what made the model cut there?
        start: Explain a recording from this second on, in its original context; whole segments by timestamps.
        end: Explain a recording up to this second, likewise. Later audio is not transcribed.
        segment: "pauses" to cut a recording into separate utterances where speech pauses; None: the model's own way.
        over: "encoder" for saliency over the encoder's output as well (`Explanation.encoder_saliency`). Its
            passes run only the decoder; the other maps stay the same, bit for bit.
        folder: Where to write the result, for a recording window by window: repeat an interrupted call to continue it.
            None: write nothing (a recording goes to a temporary folder) until ``.save(path)``.
        accelerator: `accelerate.Accelerator()`, in every process that ``accelerate launch`` started: they share the
            masks, and each returns the whole explanation. None: this process works alone.
        autocast: "bfloat16" or "float16" to run the model under `torch.autocast` in that type, faster but less exact;
            None to run it in its own type, even if autocast is on around the call.
        compile: Whether to run the encoder with `torch.compile`; the last digits differ. Each new input shape triggers
            a recompilation of about a minute, and torch gives up after eight: set `batch_size`, and use inputs of one
            length (Whisper).
        prompt: Instruction for speech LLMs ("Translate into German."); None: the family's own for transcription.

    Returns:
        The explanation, or recording. Next, use ``.words()``, ``.plot()``, ``.to_html(path)`` or ``.save(path)``.

    Raises:
        UnsupportedModelError: If the family has no adapter, or model and processor do not belong together.
        AudioError: If the audio cannot be read, or is too short or too long.
        ConfigError: If an argument has a value that is not allowed.
        RankError: If another process failed, is lost, or was called with different arguments.

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

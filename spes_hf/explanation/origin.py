"""Where an explanation comes from, read out of its provenance: the one place that knows the names in there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spes_hf.adapters.types import OPTIONS
from spes_hf.names import FORMER_METHODS


@dataclass(frozen=True)
class Origin:
    """What the provenance of an explanation says; what it does not say has a neutral value.

    Attributes:
        method: Name of the method; "?" where it is not known.
        config: Its settings, as `ExplainConfig.to_dict` writes them.
        seed: Of the masks.
        utterance_id: Of the utterance in its corpus.
        model: Class, name, dtype, number of parameters and digest of the weights of the model.
        source: Where the audio came from.
        notes: What was done to the audio.
        text_given: Whether the text was given, not generated.
        reached_length_limit: Whether a length limit cut the text.
        language: Language of the speech that was asked for.
        task: "transcribe" or "translate", likewise.
        tgt_lang: Language of the text, likewise.
        prompt: The instruction that was given; None: the family's own, if it takes any.
        generate_kwargs: Further arguments of ``generate()``, as `to_plain` writes them.
        prefix: Start and prompt tokens.
        prefix_ids: Their ids; None in explanations of before, which kept some values as notes in words.
        start: Index of the start token, which a prompt may precede.
        audio_at: How many tokens of the prefix come before the audio; None where the decoder reads the audio apart.
        cost: Passes, and seconds.
        over: "encoder" where there is a map of the encoder's output besides that of the "spectrogram".
        window: Where the explanation lies in a recording, and how it was written; empty where it is of a whole clip.
    """

    method: str = "?"
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    utterance_id: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    notes: tuple[str, ...] = ()
    text_given: bool = False
    reached_length_limit: bool = False
    language: str | None = None
    task: str | None = None
    tgt_lang: str | None = None
    prompt: str | None = None
    generate_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    prefix_ids: tuple[int, ...] | None = None
    start: int = 0
    audio_at: int | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    over: str = "spectrogram"
    window: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_recording(self) -> bool:
        """Whether it is of a window that the model itself cut from a recording."""
        return bool(self.window.get("native"))

    @classmethod
    def read(cls, provenance: Mapping[str, Any]) -> Origin:
        """Return what a provenance says."""
        config, model, audio, output, cost, window = (
            provenance.get(name) or {} for name in ("config", "model", "audio", "output", "cost", "window")
        )
        method = str(config.get("method", "?"))
        prefix, ids = tuple(output.get("prefix") or ()), output.get("prefix_ids")
        start = output.get("start")
        if start is None:  # explanations of before do not say
            start = prefix.index("<|startoftranscript|>") if "<|startoftranscript|>" in prefix else 0
        return cls(
            method=FORMER_METHODS.get(method, method),
            config=config,
            seed=provenance.get("seed"),
            utterance_id=str(provenance.get("utterance_id") or ""),
            model=model,
            source=str(audio.get("source", "")),
            notes=tuple(audio.get("notes") or ()),
            text_given=bool(output.get("given", False)),
            reached_length_limit=bool(output.get("reached_length_limit", False)),
            **{name: output.get(name) for name in OPTIONS},
            generate_kwargs=output.get("generate_kwargs") or {},
            prefix=prefix,
            prefix_ids=None if ids is None else tuple(ids),
            start=int(start),
            audio_at=output.get("audio_at"),
            cost=cost,
            over=str(provenance.get("over", "spectrogram")),
            window=window,
        )


def without_time(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provenance without how long it took, and how many processes: the same however it is made."""
    spent = (provenance.get("cost") or {}).items()
    cost = {name: value for name, value in spent if name not in ("seconds", "processes")}
    return {**provenance, "cost": cost}

"""Where an explanation comes from, read from its provenance: the only module that knows the names in there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spes_hf.adapters.types import OPTIONS
from spes_hf.names import FORMER_METHODS


@dataclass(frozen=True)
class Origin:
    """The content of an explanation's provenance; anything missing has a neutral value.

    Attributes:
        method: Name of the method; "?" if it is not known.
        config: Its settings, as `ExplainConfig.to_dict` writes them.
        seed: Seed of the masks.
        utterance_id: Id of the utterance in its corpus.
        model: Class, name, dtype, number of parameters and digest of the weights of the model.
        source: Where the audio came from.
        notes: What was done to the audio.
        text_given: Whether the text was given, not generated.
        reached_length_limit: Whether a length limit cut the text.
        language: The requested language of the speech.
        task: The requested task, "transcribe" or "translate".
        tgt_lang: The requested language of the text.
        prompt: The instruction that was given; None: the family's own, if it takes any.
        generate_kwargs: Further arguments of ``generate()``, as `to_plain` writes them.
        prefix: Start and prompt tokens.
        prefix_ids: Their ids; None in explanations by earlier versions, which stored some values as notes in words.
        start: Index of the start token, which may come after a prompt.
        audio_at: Number of prefix tokens before the audio; None if the decoder reads the audio separately.
        cost: Number of passes, and seconds.
        over: "encoder" if there is a map of the encoder's output next to that of the "spectrogram".
        window: Where the explanation lies in a recording, and how its text was written; empty for a whole clip.
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
        """Whether it explains a window that the model itself cut from a recording."""
        return bool(self.window.get("native"))

    @classmethod
    def read(cls, provenance: Mapping[str, Any]) -> Origin:
        """Return the content of a provenance."""
        config, model, audio, output, cost, window = (
            provenance.get(name) or {} for name in ("config", "model", "audio", "output", "cost", "window")
        )
        method = str(config.get("method", "?"))
        prefix, ids = tuple(output.get("prefix") or ()), output.get("prefix_ids")
        start = output.get("start")
        if start is None:  # explanations by earlier versions do not have it
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
    """Return a provenance without the time and the number of processes it took, so that it is always the same."""
    spent = (provenance.get("cost") or {}).items()
    cost = {name: value for name, value in spent if name not in ("seconds", "processes")}
    return {**provenance, "cost": cost}

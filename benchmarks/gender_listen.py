"""What a model makes of the utterances of the study of gender: what it writes, and what hiding parts of them changes.

All odds are in bits: log2 of how much likelier the model finds the feminine ending than the masculine one, behind the
Spanish text in front of the adjective.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from gender_speech import NOUNS, Case, Spoken
from torch import Tensor

from spes_hf.adapters import Adapter, GenerationOptions, Target, Utterance
from spes_hf.audio.load import load_audio

RATE = 16_000
BANDS = {"below 300 Hz": (0, 300), "300-1000 Hz": (300, 1000), "1-3 kHz": (1000, 3000), "above 3 kHz": (3000, 9000)}
SPANISH = GenerationOptions(tgt_lang="spa")


class Listener:
    """A model, and how to ask it about endings.

    Args:
        adapter: Of the model.
    """

    def __init__(self, adapter: Adapter) -> None:
        """Ask nothing yet."""
        self.adapter = adapter

    def hear(self, said: Spoken) -> Utterance:
        """Return the utterance as the model sees it."""
        return self.adapter.encode(load_audio(said.samples, RATE, RATE))

    def write(self, utterance: Utterance, features: Tensor | None = None) -> str:
        """Return the Spanish text that the model writes, of other features (T, C) where they are given."""
        return self.adapter.text(self.adapter.generate(utterance, SPANISH, features).token_ids).strip()

    def target(self, utterance: Utterance, case: Case) -> Target:
        """Return the Spanish text up to the adjective and with its feminine ending, as a target."""
        return self.adapter.encode_text(utterance, f"{case.prefix} {case.endings['f']}", SPANISH)

    def odds(
        self,
        utterance: Utterance,
        case: Case,
        features: Tensor | None = None,
        hide_words: list[list[int]] | None = None,
    ) -> Tensor:
        """Return the odds of the feminine ending, (B,) in bits.

        Args:
            utterance: What the model hears.
            case: What is asked.
            features: (B, T, C) instead of the clean ones.
            hide_words: Or B lists of the words before the adjective to hide, by index.
        """
        target = self.target(utterance, case)
        place = len(target.token_ids) - 2  # the last one ends the text
        ids = []
        for gender in "fm":
            (token,) = self.adapter.text_ids(case.endings[gender])
            ids.append(token)
        assert ids[0] == int(target.token_ids[place])
        keep = None
        if hide_words is not None:
            before = len(target.prefix_ids)
            assert place == len(case.prefix.split())  # a token for each word
            keep = torch.ones(len(hide_words), len(target.context_ids), dtype=torch.bool)
            for row, words in enumerate(hide_words):
                keep[row, [before + i for i in words]] = False
        with torch.no_grad():
            logits = self.adapter.logits(utterance, target, features=features, token_keep=keep)[:, place].float()
        return (logits[:, ids[0]] - logits[:, ids[1]]).cpu() / math.log(2)


def ending(text: str, case: Case) -> str:
    """Return which ending of the adjective a text has: "f", "m" or "none"."""
    words = re.findall(r"\w+", text.lower())
    found = [gender for gender, word in case.endings.items() if word in words]
    return found[0] if len(found) == 1 else "none"


def noun(text: str) -> str:
    """Return the gender of the nouns for people related or grown that a text has: "f", "m" or "none"."""
    words = set(re.findall(r"\w+", text.lower()))
    found = [gender for gender in "fm" if words & NOUNS[gender]]
    return found[0] if len(found) == 1 else "none"


def same_but_ending(text: str, other: str, case: Case) -> bool:
    """Return whether two texts differ in the ending of the adjective at most."""

    def neutral(text: str) -> str:
        return re.sub(rf"\b({case.endings['f']}|{case.endings['m']})\b", "*", text)

    return neutral(text) == neutral(other)


def regions(utterance: Utterance, said: Spoken) -> dict[str, Tensor]:
    """Return the frames, (T,) bool, of the adjective, of the word that tells the gender, and of the other words."""
    times, spans = utterance.times, said.times

    def inside(words: Iterable[int]) -> Tensor:
        found = torch.zeros(len(times), dtype=torch.bool)
        for i in words:
            found |= (times >= spans[i][0]) & (times < spans[i][1])
        return found

    case = said.case
    found = {"adjective": inside([case.mood])}
    if case.cue is not None:
        found["word that tells"] = inside([case.cue])
    rest = [i for i in range(len(spans)) if i not in (case.mood, case.cue)]
    return {**found, "other words": inside(rest)}


def bands(utterance: Utterance) -> dict[str, Tensor]:
    """Return the mel bins, (C,) bool, of `BANDS`."""
    hz = utterance.frequencies
    return {name: (hz >= low) & (hz < high) for name, (low, high) in BANDS.items()}


def hidden(features: Tensor, where: Tensor) -> Tensor:
    """Return features with the mean of their mel bin where ``where``, (T, C) bool, is true."""
    return torch.where(where, features.mean(0).expand_as(features), features)


def measured(listener: Listener, said: Spoken) -> dict[str, Any]:
    """Return what the model writes for an utterance, and its odds with parts of the sound hidden, or alone."""
    utterance, case = listener.hear(said), said.case
    features = utterance.features
    masks: dict[str, Tensor] = {"nothing": torch.zeros_like(features, dtype=torch.bool)}
    masks["all sound"] = ~masks["nothing"]
    for name, rows in regions(utterance, said).items():
        masks[name] = rows[:, None].expand_as(features)
        masks[f"all but {name}"] = ~masks[name]
    for name, columns in bands(utterance).items():
        masks[name] = columns.expand_as(features)
        masks[f"all but {name}"] = ~masks[name]
    odds = listener.odds(utterance, case, torch.stack([hidden(features, mask) for mask in masks.values()]))
    written = listener.write(utterance)
    return {
        **about(said),
        "written": written,
        "ending": ending(written, case),
        "right": same_but_ending(written, case.sentence.translation("es"), case),
        "bits": dict(zip(masks, odds.tolist(), strict=True)),
    }


def about(said: Spoken) -> dict[str, Any]:
    """Return what is known of an utterance."""
    case = said.case
    return {
        "said": case.sentence.text,
        "group": case.group,
        "told": case.told,
        "voice": said.voice,
        "gender": said.gender,
    }


def swept(listener: Listener, found: Iterable[tuple[Spoken, int, float]]) -> list[dict[str, Any]]:
    """Return the odds and endings of utterances whose pitch was moved."""
    rows = []
    for said, base, pitch in found:
        utterance = listener.hear(said)
        rows.append(
            {
                **about(said),
                "base": base,
                "pitch": round(pitch, 1),
                "bits": float(listener.odds(utterance, said.case)[0]),
                "ending": ending(listener.write(utterance), said.case),
            }
        )
    return rows


def transplanted(listener: Listener, low: Spoken, high: Spoken) -> dict[str, Any]:
    """Return the odds of an utterance at a low and at a high pitch, and with parts of each put into the other.

    Nothing else differs between the two but, by a few hundredths of a second, when a word is said, which is evened out
    word by word: what moves the odds is what carries the pitch.

    Args:
        listener: The model.
        low: At a low pitch.
        high: The same sentence in the same voice at a high pitch.
    """
    row: dict[str, Any] = about(low)
    for name, own, other in (("low", low, high), ("high", high, low)):
        utterance, donor = listener.hear(own), listener.hear(other)
        ends = [[0.0, *(edge for word in said.times for edge in word), 99.0] for said in (own, other)]
        moments = np.interp(utterance.times.numpy(), *ends)
        frames = np.abs(moments[:, None] - donor.times.numpy()).argmin(1)
        theirs, ours = donor.features[torch.from_numpy(frames)], utterance.features
        areas = {area: rows[:, None].expand_as(ours) for area, rows in regions(utterance, own).items()}
        areas |= {area: columns.expand_as(ours) for area, columns in bands(utterance).items()}
        areas["all sound"] = torch.ones_like(ours, dtype=torch.bool)
        mixed = torch.stack([ours, *(torch.where(area, theirs, ours) for area in areas.values())])
        row[name] = dict(zip(("nothing", *areas), listener.odds(utterance, own.case, mixed).tolist(), strict=True))
    return row


def with_progress(items: list[Any], act: Callable[[Any], Any], what: str) -> list[Any]:
    """Return what ``act`` makes of every item, and print how far it is."""
    made = []
    for i, item in enumerate(items, 1):
        made.append(act(item))
        if i % 50 == 0 or i == len(items):
            print(f"{what}: {i} of {len(items)}", flush=True)
    return made

"""Explanations whose maps are planted, so that the right answer is known; and where words are spoken in the clips."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spes_hf import EnergyConfig, Explainer
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation import Explanation, PatchMap
from spes_hf.masking.segments import feature_labels


@pytest.fixture(scope="session")
def clips() -> dict[str, dict]:
    return {clip["id"]: clip for clip in tiny_clips()}


@pytest.fixture(scope="session")
def spoken(clips) -> dict[str, list]:
    """When each word of each clip is spoken, as `Alignments`."""
    return {name: clip["words"] for name, clip in clips.items()}


@pytest.fixture(scope="session")
def blank(clips) -> dict[str, Explanation]:
    """Explanations of six clips by the English model, at no cost: their maps wait to be planted."""
    explainer = Explainer(*load_tiny_model("speech2text-en"), EnergyConfig(), progress=False)
    return {name: explainer(clip["path"], utterance_id=name) for name, clip in list(clips.items())[:6]}


@pytest.fixture(scope="session")
def plant():
    """Function that returns an explanation with these raw maps, (K, T, C), and raw token scores, (K, J)."""

    def planted(explanation: Explanation, audio: torch.Tensor, token: torch.Tensor | None = None) -> Explanation:
        labels = feature_labels(explanation.features).int()
        scores = audio.flatten(1).float()
        known = explanation.raw_token_scores * 0
        return replace(
            explanation,
            audio_map=PatchMap(labels, (scores,)),
            sound_impact=scores.mean(1),
            text_impact=torch.zeros(len(scores)),
            raw_token_scores=known if token is None else known + token,
        )

    return planted


@pytest.fixture(scope="session")
def listening(blank, spoken, plant) -> dict[str, Explanation]:
    """Explanations of which every token's map is 1 where its word is spoken, with a little noise."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, explanation in blank.items():
        times = explanation.times
        audio = 0.1 * torch.rand(len(explanation), *explanation.features.shape, generator=generator)
        words = explanation.words()
        heard = [w for w, text in enumerate(words.tokens) if any(c.isalnum() for c in text)]
        if len(heard) != len(spoken[name]):
            continue
        for w, word in zip(heard, spoken[name], strict=True):
            for k in words.groups[w]:
                audio[k, (times >= word["start"]) & (times < word["end"])] += 1
        found[name] = plant(explanation, audio)
    return found

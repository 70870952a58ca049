"""The shipped speech LLM, a tiny Qwen3-ASR: what maps, bits and diagnoses say of a trained model of that kind."""

from __future__ import annotations

from statistics import mean

import numpy as np
import pytest
import tiny_models
import transformers
from test_diagnosing import guessed_against_the_sound

from spes_hf import Diagnoser, EnergyConfig, Explainer, SpesConfig
from spes_hf.analysis import time_localization
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_tiny_model, tiny_clips

pytestmark = pytest.mark.skipif(
    not hasattr(transformers, "Qwen3ASRForConditionalGeneration"), reason="transformers has no Qwen3-ASR before 5.20"
)


@pytest.fixture(scope="module")
def speech_llm():
    return load_tiny_model("qwen3-asr-en")


@pytest.fixture(scope="module")
def explained(speech_llm):
    """Explanations of every other clip."""
    explainer = Explainer(*speech_llm, SpesConfig.fast(), progress=False)
    return [explainer(c["path"], utterance_id=c["id"], language="English") for c in tiny_clips()[::2]]


@pytest.fixture(scope="module")
def spoken():
    return {clip["id"]: clip["words"] for clip in tiny_clips()}


def test_maps_follow_the_order_of_words_and_lie_where_they_are_spoken(explained, spoken):
    assert mean(map(tiny_models.order_correlation, explained)) >= 0.85
    found = time_localization(explained, spoken)
    saliency = found.maps["saliency"]
    assert found.n >= 60
    assert saliency.test.p_value < 1e-10 and saliency.test.effect_size > 1.2
    assert saliency.mass > 2 * saliency.duration_share and saliency.hits > 0.8
    for control in ("energy", "random"):
        assert found.against[control].p_value < 1e-6 and found.maps[control].hits < saliency.hits


def test_names_are_heard_and_the_end_follows_from_text(explained):
    bits: dict[str, list[float]] = {"name": [], "end": []}
    for explanation in explained:
        for token, value in zip(explanation.tokens, explanation.sound_bits.tolist(), strict=True):
            kind = {"Tom": "name", "Anna": "name", "Laura": "name", "Peter": "name", "<|im_end|>": "end"}.get(
                token.strip()
            )
            if kind:
                bits[kind].append(value)
    assert len(bits["name"]) >= 6
    assert mean(bits["end"]) < 1 < 3 < mean(bits["name"])


def test_the_instruction_of_a_forced_language_says_little_of_the_words(explained):
    """Sound, instruction and earlier text are told apart: of a transcript the sound says most."""
    instruction = [float(bits) for e in explained for bits in e.token_instruction_bits]
    sound = [float(bits) for e in explained for bits in e.sound_bits]
    assert mean(np.abs(instruction)) < 0.2 * mean(sound)


def test_words_in_the_prompt_are_told_by_the_instruction_where_the_sound_is_drowned(speech_llm):
    """Under noise the prompt's word gains more from the instruction than the other words of the sentence."""
    explainer = Explainer(*speech_llm, EnergyConfig(), progress=False)
    rng, gains = np.random.default_rng(0), []
    for clip in tiny_clips():
        words = [word.strip(".,?()") for word in clip["transcript"].split()]
        long = [word for word in words if len(word) > 4]
        if not long:
            continue
        prompt = long[len(long) // 2]
        samples = np.asarray(load_audio(clip["path"], 16_000).samples)
        noisy = samples + 0.5 * np.abs(samples).max() * rng.standard_normal(len(samples)).astype(np.float32)
        audio = {"array": noisy, "sampling_rate": 16_000}
        found = explainer(audio, text=clip["transcript"], language="English", prompt=prompt)
        own = [word.strip() == prompt for word in found.tokens]
        bits = found.token_instruction_bits.tolist()
        if any(own):
            others = mean(bit for bit, is_own in zip(bits, own, strict=True) if not is_own)
            gains.append(mean(bit for bit, is_own in zip(bits, own, strict=True) if is_own) - others)
    assert len(gains) >= 15
    assert mean(gains) > 0.1 and sum(gain > 0 for gain in gains) >= 0.6 * len(gains)


def test_a_forced_text_that_the_sound_contradicts_is_guessed(speech_llm):
    diagnoser = Diagnoser(*speech_llm, SpesConfig.fast(), progress=False)
    right = guessed_against_the_sound(diagnoser, language="English")
    assert len(right) >= 6 and sum(right) >= 0.8 * len(right)


def test_without_a_forced_language_it_writes_the_language_first(speech_llm):
    clip = tiny_clips()[0]
    found = Explainer(*speech_llm, EnergyConfig(), progress=False)(clip["path"])
    assert found.text == clip["transcript"]
    assert "".join(found.tokens[:3]) == "language English<asr_text>"
    assert found.sound_bits[:3].max() < 1

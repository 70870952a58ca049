"""The shipped trained models: what the paper says of real ones, as far as it holds of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_models
from plausibility import SYNTHETIC, first_word_of, source_words

from spes_hf import Explainer, SpesConfig
from spes_hf.analysis import (
    frequency_profile,
    intermediate_tokens,
    modality_balance,
    positional,
    scatter,
    time_localization,
)
from spes_hf.demo import load_tiny_model

CONFIG = SpesConfig(estimator="gradient", num_token_masks=300)
# Tokens share their scale with the map of the sound: how large the differences between them are depends on it.
EXACT = replace(CONFIG, masks_per_token=12, passes_per_mask=None, prior_weight=0.0)


def explained(model, clips, config, **arguments):
    explainer = Explainer(*load_tiny_model(model), config, progress=False)
    return [explainer(clip["path"], utterance_id=clip["id"], **arguments) for clip in clips]


def english_clips(clips):
    """Clips that hold words of `SYNTHETIC`."""
    wanted = {word for words in SYNTHETIC.values() for word in words}
    return [c for c in clips.values() if {w["word"].strip("().?").lower() for w in c["words"]} & wanted]


def german_clips(clips):
    return [clip for clip in clips.values() if clip["kind"] == "verb-final"]


@pytest.fixture(scope="module")
def english(clips):
    return explained("speech2text-en", english_clips(clips), CONFIG)


@pytest.fixture(scope="module")
def german(clips):
    return explained("seamless-en-de-es", german_clips(clips), CONFIG, tgt_lang="deu")


def test_maps_lie_where_words_are_spoken(english, spoken):
    found = time_localization(english, spoken)
    saliency = found.maps["saliency"]
    assert found.n >= 60
    assert saliency.test.p_value < 1e-20 and saliency.test.effect_size > 1.2
    assert saliency.utterance_test.p_value < 1e-4
    assert saliency.mass > 2 * saliency.duration_share and saliency.hits > 0.85
    for control in ("energy", "random"):
        assert found.against[control].p_value < 1e-8 and found.maps[control].hits < saliency.hits


def test_fricatives_high_nasals_low(english, spoken):
    """Words that begin with /s/ against words that begin with /n/: above 4 kHz against below 1 kHz."""
    found = frequency_profile(english, spoken, SYNTHETIC)
    (comparison,) = found.comparisons
    assert comparison.first == "s-" and min(comparison.n) >= 7
    assert comparison.tilt.difference > 0 and comparison.tilt.p_value < 0.01 and comparison.tilt.effect_size > 1
    assert any(high > 4_000 for _, high in comparison.significant_hz)


def test_positions(clips):
    """The latest token comes first, as in the paper. Start and intermediate tokens do not keep its order here."""
    for explanations in (
        explained("speech2text-en", english_clips(clips), EXACT),
        explained("seamless-en-de-es", german_clips(clips), EXACT, tgt_lang="deu"),
    ):
        found = positional(explanations)
        assert found.order[0] == "latest"
        for test in (found.tests["latest", "start"], found.tests["latest", "intermediate"]):
            assert test.p_value < 0.01 and test.effect_size > 0.3


def test_german_words_lie_at_their_sources(german, clips):
    """Every word of the translation has the times of the words that it translates; final verbs among them."""
    sources = {name: source_words(clip) for name, clip in clips.items()}
    found = time_localization(german, sources)
    saliency = found.maps["saliency"]
    assert found.n >= 35 and saliency.test.p_value < 1e-10 and found.against["energy"].p_value < 1e-8
    verbs = [
        case
        for explanation, clip in zip(german, [c for c in clips.values() if c["kind"] == "verb-final"], strict=True)
        for case in tiny_models.moved_cases(explanation, clip)
    ]
    assert len(verbs) >= 5
    assert sum(map(tiny_models.nearer_to_source, verbs)) >= len(verbs) - 1
    last = [w for w in saliency.words if w.word in {case["word"].strip(".?,") for case in verbs}]
    assert len(last) >= 5 and sum(w.contrast > 0 for w in last) >= len(last) - 1


def test_marks_and_their_partners(clips, spoken):
    """ "?" rests on its question word more than "." on the first word; ")" rests on "("; both on text."""
    chosen = [c for c in clips.values() if c["kind"] in ("question", "parenthesis")]
    chosen += [c for c in clips.values() if c["kind"] == "statement"]
    explanations = explained("speech2text-en", chosen, CONFIG)
    found = first_word_of("?.", explanations, spoken)
    assert found["n"] == [4, 8]
    assert found["weight"]["test"].difference > 0.1 and found["weight"]["test"].effect_size > 0.5
    brackets = intermediate_tokens(explanations, min_count=4).of(")")
    assert brackets.by[0][0] == "(" and brackets.hits >= 2
    # Marks that close something are heard nowhere in particular: their maps are the most scattered, all four of them.
    types = scatter(explanations, min_count=4).types
    assert len(types) == 7 and {t.token for t in types[-4:]} == {"?", ")", ".", "</s>"}
    # Among themselves the four are close, and their order is that of finer masks.
    finer = replace(EXACT, patches_per_second=(400.0,), mask_design="independent", masks_per_token=8)
    types = scatter(explained("speech2text-en", chosen, finer), min_count=4).types
    assert {"?", "</s>"} <= {t.token for t in types[-3:]}
    bits = {t.token: t.sound_bits for t in modality_balance(explanations, min_count=3).types}
    assert max(bits[mark] for mark in (")", "</s>")) < bits["Tom"]

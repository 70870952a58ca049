"""The shipped trained models: maps must say where they listened (word times are known from synthesis)."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest
import tiny_models
from scipy.stats import mannwhitneyu

import spes_hf
from spes_hf import SpesConfig
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.names import TINY_MODELS

BUDGET = {"num_spectrogram_masks": 500, "num_token_masks": 200}


@pytest.fixture(scope="module")
def clips():
    return tiny_clips()


@pytest.fixture(scope="module")
def recognised(clips):
    return tiny_models.explain_clips("speech2text-en", SpesConfig.paper("asr", **BUDGET), clips)


@pytest.fixture(scope="module")
def moving(clips):
    return [clip for clip in clips if clip["kind"] in ("verb-final", "number")]


@pytest.fixture(scope="module")
def translated(moving):
    return tiny_models.explain_clips("seamless-en-de-es", SpesConfig.paper("st", **BUDGET), moving, tgt_lang="deu")


def test_recognition_is_monotonic(recognised):
    assert mean(map(tiny_models.order_correlation, recognised)) >= 0.9


def test_moved_words_are_explained_by_their_source(translated, moving):
    cases = [case for e, clip in zip(translated, moving, strict=True) for case in tiny_models.moved_cases(e, clip)]
    assert len(cases) >= 12
    assert mean(map(tiny_models.nearer_to_source, cases)) >= 0.8


def test_closing_marks_lean_on_text(recognised):
    shares = tiny_models.punctuation_and_words(recognised)
    closing = shares["?"] + shares[")"]
    assert len(closing) >= 6
    assert mean(closing) > mean(shares["content"])
    assert mannwhitneyu(closing, shares["content"], alternative="greater").pvalue < 0.01


def test_what_sound_says_and_what_text_says(recognised):
    """Names are heard; that the sentence ends, the text before it says."""
    bits = {"name": [], "end": []}
    for explanation in recognised:
        for token, value in zip(explanation.tokens, explanation.sound_bits.tolist(), strict=True):
            kind = {"Tom": "name", "Anna": "name", "Laura": "name", "Peter": "name", "</s>": "end"}.get(token.strip())
            if kind:
                bits[kind].append(value)
    assert mean(bits["end"]) < 1 < 3 < mean(bits["name"])


@pytest.mark.parametrize(
    ("name", "arguments", "reference"),
    [
        ("speech2text-en", {}, "transcript"),
        ("qwen3-asr-en", {"language": "English"}, "transcript"),
        ("seamless-en-de-es", {"tgt_lang": "deu"}, "translation_de"),
        ("seamless-en-de-es", {"tgt_lang": "spa"}, "translation_es"),
    ],
)
def test_the_models_have_learnt_their_task(clips, name, arguments, reference):
    """WER at most 10 %, BLEU at least 60; the model cards say more, on 400 utterances."""
    import jiwer
    import sacrebleu

    from spes_hf.adapters import GenerationOptions, get_adapter
    from spes_hf.audio.load import load_audio

    adapter = get_adapter(*load_tiny_model(name))
    written = []
    for clip in clips:
        utterance = adapter.encode(load_audio(clip["path"], 16_000))
        target = adapter.generate(utterance, GenerationOptions(**arguments))
        assert target.complete
        written.append(adapter.text(target.token_ids))
    references = [clip[reference] for clip in clips]
    if reference == "transcript":
        assert jiwer.wer(references, written) <= 0.10
    else:
        assert sacrebleu.corpus_bleu(written, [references]).score >= 60


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_models_are_small_and_have_a_card(name):
    folder = Path(spes_hf.__file__).parent / "assets" / "tiny" / name
    assert (folder / "model.safetensors").stat().st_size < 6_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    for section in ("## Use", "## Results", "## Data", "## Limits", "license: apache-2.0"):
        assert section in card

"""Real Whisper tiny.en on a real clip: what the maps mean."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch
from agreement import assert_explanations_agree
from scipy.stats import spearmanr
from settings import pyramid

from spes_hf import AttentionConfig, Explanation, Insertion, SpesConfig, cli, compare, explain, listen_back, sound_check
from spes_hf.audio.load import load_audio
from spes_hf.explanation.listening import listen

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def demo(whisper, tmp_path_factory) -> tuple[Path, str]:
    """The first command of README.md as it is, `spes-hf demo`: the folder that it writes, and what it prints."""
    folder, printed = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["demo", "--quiet", "--out", str(folder)]) == 0
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def explanation(demo) -> Explanation:
    return Explanation.load(demo[0])


def test_demo_end_to_end(demo, explanation, jfk):
    folder, printed = demo
    assert "ask not what your country can do for you" in printed and str(folder / "explanation.html") in printed
    for name, size in (("explanation.html", 100_000), ("sentence.png", 10_000), ("tokens.png", 10_000)):
        assert (folder / name).stat().st_size > size
    assert SpesConfig.from_dict(explanation.provenance["config"]) == SpesConfig.fast()
    assert explanation.provenance["seed"] == 0


def right_words(text, explanation) -> int:
    """Return how many of the 22 words of the transcript stand in a text in their order, as jiwer counts hits."""
    said, wanted = (" ".join(re.findall(r"[a-z']+", t.lower())) for t in (text, explanation.text))
    return jiwer.process_words(wanted, said).hits if said else 0


def test_demo_page_shows_what_the_model_writes_for_the_parts(demo, explanation, whisper):
    heard = listen_back(*whisper, explanation)
    page = (demo[0] / "explanation.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert data["heard"] == {"top": 0.2, "kept": heard.kept.strip(), "rest": heard.rest.strip()}


def test_the_model_finds_the_sentence_in_what_the_map_keeps(whisper, explanation):
    """The salient fifth says nearly all of it, the other four fifths nearly nothing. Random patches say nothing."""
    heard = listen_back(*whisper, explanation, top=0.2)
    assert right_words(heard.kept, explanation) >= 16 and right_words(heard.rest, explanation) <= 6
    patches = torch.rand(110, 8, generator=torch.Generator().manual_seed(0))
    patches = patches.repeat_interleave(10, 0).repeat_interleave(10, 1)
    random = Insertion(*whisper, (0, 0.2))(explanation, patches)["insertion"]["texts"][1]
    assert right_words(random, explanation) <= 6
    assert listen_back(*whisper, explanation, top=1).kept == explanation.text


def test_the_sentence_is_in_the_sound_that_the_map_keeps(whisper, explanation):
    """As sound, too: of the salient tenth, not of the rest, nor of as many of the least salient or random cells."""

    def written(sound):
        return right_words(sound_check(*whisper, sound, sampling_rate=16_000).text, explanation)

    def kept(saliency):
        return written(listen(explanation, saliency, 0.1, complement=False).samples)

    cells = torch.rand(1100, 80, generator=torch.Generator().manual_seed(0))
    others = [written(explanation.listen(top=0.1, complement=True).samples), kept(-explanation.sentence_saliency)]
    assert written(explanation.listen(top=0.1).samples) >= 13 and max([*others, kept(cells)]) <= 7


def test_transcript(explanation):
    assert "ask not what your country can do for you" in explanation.text
    assert explanation.tokens[-1] == "<|endoftext|>"
    assert explanation.context_tokens[:2] == ["<|startoftranscript|>", "<|notimestamps|>"]
    assert explanation.features.shape == (1100, 80)


def test_saliency_moves_forward_with_the_words(explanation):
    """Spearman between word order and time centroid of the top 5 % of each word's map (§8.1)."""
    words = [word for word in explanation.words().tokens if word.strip().isalpha()]
    centroids = explanation.words().time_centroids(top=0.05)
    order = [i for i, word in enumerate(explanation.words().tokens) if word.strip().isalpha()]
    assert len(words) == 22
    assert spearmanr(order, centroids[order]).statistic >= 0.95


def test_map_and_attention_listen_at_the_same_places(whisper, explanation, jfk):
    attention = explain(*whisper, jfk, config=AttentionConfig(), progress=False)
    found = compare(explanation, attention)
    assert found.names == ("spes", "attention") and found.same_grid
    spoken = [word for word in explanation.words().tokens if word.strip() not in ",."]
    assert [a for a, _ in found.words] == [b for _, b in found.words] == spoken
    known = found.agreement
    assert not known.isnan().any() and float(known.mean()) > 0.2
    shifted = replace(found, pairs=tuple(replace(p, second=((p.second[0] + 9) % 22,)) for p in found.pairs))
    assert float(shifted.agreement.mean()) < float(known.mean()) - 0.2  # not with the maps of other words
    assert "Americans" in str(found) and f"{found.agreement[4]:.2f}" in str(found)


def test_what_the_sound_told(explanation):
    """The first time a phrase is said the sound tells it; said again, turned round, text tells it, too."""
    words = explanation.words()
    said = [(word.strip(), bits) for word, bits in zip(words.tokens, words.sound_bits.tolist(), strict=True)]
    measured = {"fellow": [10.1], "country": [7.7, 2.6], "do": [1.2, 0.1], ".": [0.0]}
    for word, expected in measured.items():
        assert [bits for other, bits in said if other == word] == pytest.approx(expected, abs=0.2), word
    for word in ("your", "country", "what", "can", "do"):
        first, second = (bits for other, bits in said if other == word)
        assert second < first - 1, word
    again = [
        p for w, p in zip(words.tokens, words.probability_without_sound.tolist(), strict=True) if w.strip() == "do"
    ]
    assert again[1] == pytest.approx(0.92, abs=0.02)  # the model would have written it in silence


def test_what_is_written_for_silence_was_not_heard(whisper):
    found = sound_check(*whisper, np.zeros(32_000, dtype=np.float32), sampling_rate=16_000)
    assert found.not_heard == ("you",) and found.bits_per_token == pytest.approx(0, abs=0.01)
    assert found.verdict == "made up" and "probably made up, 0.0 bits a token" in str(found)


def test_the_check_agrees_with_the_explanation(whisper, jfk, explanation):
    found = sound_check(*whisper, jfk)
    words = explanation.words()
    assert found.text == explanation.text and list(found.words) == words.tokens
    assert list(found.word_bits) == pytest.approx(words.sound_bits.tolist(), abs=1e-3)
    assert found.verdict == "heard" and found.not_heard == ("do",)
    assert found.bits_per_token == pytest.approx(explanation.bits_per_token, abs=1e-3)


def test_features_are_what_the_model_saw(whisper, jfk, explanation):
    _, processor = whisper
    samples = load_audio(jfk, 16_000).samples
    window = processor(samples, sampling_rate=16_000, return_tensors="pt").input_features
    assert torch.equal(explanation.features, window[0, :, :1100].T)


def test_probabilities_are_the_models(whisper, jfk, explanation):
    model, processor = whisper
    window = processor(load_audio(jfk, 16_000).samples, sampling_rate=16_000, return_tensors="pt").input_features
    ids = torch.tensor([[50257, 50362, *explanation.token_ids]])
    with torch.no_grad():
        probabilities = model(input_features=window, decoder_input_ids=ids[:, :-1]).logits[0, 1:].softmax(-1)
    expected = probabilities.gather(1, ids[0, 2:, None]).squeeze(1)
    torch.testing.assert_close(explanation.token_probabilities, expected, atol=1e-5, rtol=0)


@pytest.mark.numerics
def test_batch_size_does_not_matter(whisper, jfk):
    clip = load_audio(jfk, 16_000).samples[: 3 * 16_000]
    config = pyramid(num_spectrogram_masks=9, num_token_masks=9)
    first, other = (explain(*whisper, clip, config=config, batch_size=size, progress=False) for size in (1, 8))
    assert_explanations_agree(other, first)


def test_a_half_precision_model_says_the_same(whisper, jfk):
    model, processor = whisper
    clip = load_audio(jfk, 16_000).samples[: 3 * 16_000]
    config = pyramid(num_spectrogram_masks=6, num_token_masks=30)
    full = explain(model, processor, clip, config=config, text="And so, my fellow", progress=False)
    half = explain(
        copy.deepcopy(model).to(torch.bfloat16),
        processor,
        clip,
        config=config,
        text="And so, my fellow",
        progress=False,
    )
    valid = ~full.raw_token.isnan()
    assert np.corrcoef(full.raw_token[valid], half.raw_token[valid])[0, 1] > 0.98

"""The package on top of Canary and Cohere Transcribe: maps, bits, words, contrasts, deletion, pages, jobs."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from settings import pyramid
from test_contract import FEW, close
from test_fast_conformers import noise
from tiny import TEXT, VARIED

from spes_hf import SpesConfig, explain
from spes_hf.jobs.run import explain_dataset, load_explained
from spes_hf.metrics.deletion import Deletion


@pytest.mark.parametrize("estimator", ["gradient", "perturbation"])
def test_explained_from_maps_to_the_page(fast, estimator, tmp_path):
    config = FEW if estimator == "perturbation" else SpesConfig(masks_per_token=2, num_token_masks=8)
    found = explain(
        *(fast.model, fast.processor, fast.audio),
        config=config,
        text=TEXT,
        over="encoder",
        progress=False,
        **fast.family.options,
    )
    tokens = len(found)
    assert found.raw_audio.shape == (tokens, 71, 128) and found.audio_saliency.isfinite().all()
    assert (found.raw_audio.flatten(1).std(1) > 0).all()
    assert found.raw_token.shape == (tokens, len(fast.family.prefix) + tokens - 1)
    assert found.sound_bits.isfinite().all() and found.text_bits[0] == 0
    assert found.sound_bits.abs().max() > 0.01
    assert found.encoder_saliency.shape == (tokens, 9) and found.encoder_times.tolist() == pytest.approx(
        [0.08 * s for s in range(9)]
    )
    words = found.words()
    assert [word.strip() for word in words.tokens[:6]] == TEXT.split()
    close(words.sound_bits[:6].sum(), found.sound_bits[:-1].sum(), 1e-3)
    deleted = Deletion(fast.model, fast.processor, (0.0, 0.2, 1.0))(found)["deletion"]
    assert len(deleted["texts"]) == 3
    page = tmp_path / "page.html"
    found.to_html(page)
    assert "schläft" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("config", [SpesConfig(masks_per_token=2, num_token_masks=8), FEW], ids=["gradient", "eq3"])
def test_why_this_and_not_that(fast, config):
    found = explain(
        *(fast.model, fast.processor, fast.audio),
        config=config,
        text=TEXT,
        foil={"hund": "perro"},
        progress=False,
        **fast.family.options,
    )
    (contrast,) = found.contrasts
    assert contrast.target.strip() == "hund" and contrast.foil.strip() == "perro"
    assert found.raw_audio.isfinite().all() and (found.raw_audio < 0).any() and (found.raw_audio > 0).any()


def test_a_job_of_three_rows(fast, tmp_path):
    rows = {
        "id": ["a", "b", "c"],
        "audio": [noise(0.5 + 0.1 * i, i).tolist() for i in range(3)],
        "text": ["the dog", "the garden", "der hund"],
    }
    config = pyramid(num_spectrogram_masks=9, num_token_masks=6)
    summary = explain_dataset(
        *(fast.model, fast.processor, Dataset.from_dict(rows), tmp_path / "job", config),
        metrics=[Deletion(fast.model, fast.processor, (0.0, 0.5, 1.0))],
        sampling_rate=16_000,
        generate_kwargs=VARIED,
        progress=False,
        **fast.family.options,
    )
    assert summary.rows == 3 and not summary.failures
    found = load_explained(tmp_path / "job", cache_dir=tmp_path / "cache")
    assert list(found["id"]) == ["a", "b", "c"]
    direct = explain(
        *(fast.model, fast.processor, np.asarray(rows["audio"][1], dtype=np.float32)),
        config=config,
        generate_kwargs=VARIED,
        progress=False,
        **fast.family.options,
    )
    assert found["prediction"][1] == direct.text

"""Agreement of cross-attention with saliency: on planted maps, where it is known, and on a trained model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from spes_hf import ConfigError, SpesConfig, explain
from spes_hf.adapters import Target, get_adapter
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.analysis import UtteranceAgreement, attention_agreement, utterance_agreement
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation.maps import EncoderMap


def pearson(one, other):
    return float(np.corrcoef(one.numpy(), other.numpy())[0, 1])


@pytest.fixture(scope="module")
def attention(blank):
    """Random attention of 3 layers with 2 heads, for each explanation, over 5 positions of padding as well."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, explanation in blank.items():
        length = (len(explanation.times) - 1) // 4 + 1
        found[name] = torch.randn(3, 2, len(explanation), length + 5, generator=generator).mul(2).softmax(-1)
    return found


@pytest.fixture(scope="module")
def planted(blank, attention, plant):
    """Explanations whose map of the encoder is head (1, 0), and that of the spectrogram is layer 2, over time."""
    found = {}
    for name, explanation in blank.items():
        length = (len(explanation.times) - 1) // 4 + 1
        positions = EncoderPositions.on_frames(explanation.times, 4, 0.0, length)
        sound = positions.spread(attention[name][2].mean(0))
        audio = sound[..., None].expand(-1, -1, explanation.features.shape[1]) * 3 - 1
        scores = attention[name][1, 0, :, :length] * 5 + 2
        encoder = EncoderMap(scores, positions.times)
        found[name] = replace(plant(explanation, audio), encoder_map=encoder)
    return found


@pytest.fixture(scope="module")
def each(planted, attention):
    heads = [(1, 0), (2, 1)]
    return [utterance_agreement(e, attention[name], name, heads) for name, e in planted.items()]


def test_the_head_that_was_planted_is_found(each):
    found = attention_agreement(each)
    assert found.utterances == len(each) == 6 and found.tokens == sum(a.tokens for a in each)
    assert found.encoder.best_head == (1, 0) and found.encoder.of_best_head.value == pytest.approx(1)
    assert found.encoder.best_layer == 1 and 0.5 < found.encoder.of_best_layer.value < 0.9
    assert found.input.best_layer == 2 and found.input.of_best_layer.value == pytest.approx(1, abs=1e-5)
    assert 0.2 < found.input.all.value < 0.9
    others = found.encoder.heads[[0, 0, 1, 2, 2], [0, 1, 1, 0, 1]]
    assert np.abs(others).max() < 0.15
    assert abs(found.between.value) < 0.2
    assert found.encoder.all.low <= found.encoder.all.value <= found.encoder.all.high
    assert found.encoder.alignment.value > 0.5
    assert "head 1.0 1.00 [1.00, 1.00]" in str(found)


def test_it_is_pearson_s_correlation_token_by_token(planted, attention, each):
    name, explanation = next(iter(planted.items()))
    length = explanation.raw_encoder.shape[1]
    rows = [k for k, special in enumerate(explanation.special) if not special]
    mean = attention[name].mean((0, 1))[:, :length]
    expected = np.mean([pearson(mean[k], explanation.raw_encoder[k]) for k in rows])
    assert each[0].encoder.all == pytest.approx(expected) and each[0].tokens == len(rows) == len(explanation) - 1
    frames = [(explanation.encoder_positions.nearest == s).nonzero()[:, 0] for s in range(length)]
    over_time = explanation.raw_audio.mean(2)
    pooled = torch.stack([over_time[:, f].mean(1) for f in frames], 1)
    expected = np.mean([pearson(attention[name][0, 1, k, :length], pooled[k]) for k in rows])
    assert each[0].input.heads[0, 1] == pytest.approx(expected, abs=1e-6)


def test_results_survive_json(each):
    again = [UtteranceAgreement.from_dict(json.loads(json.dumps(a.to_dict()))) for a in each]
    assert attention_agreement(again).to_dict() == attention_agreement(each).to_dict()
    without = replace(each[0], input=replace(each[0].input, alignment=float("nan")))
    assert np.isnan(UtteranceAgreement.from_dict(json.loads(json.dumps(without.to_dict()))).input.alignment)
    json.dumps(attention_agreement([without]).to_dict(), allow_nan=False)


def test_a_constant_map_has_no_correlation(planted, attention):
    name, explanation = next(iter(planted.items()))
    flat = EncoderMap(torch.zeros_like(explanation.raw_encoder), explanation.encoder_times)
    found = utterance_agreement(replace(explanation, encoder_map=flat), attention[name])
    assert np.isnan(found.encoder.all) and np.isnan(found.encoder.heads).all() and np.isfinite(found.input.all)
    summary = attention_agreement([found])
    assert np.isnan(summary.encoder.all.value) and str(summary.encoder.all) == "–"


def test_a_figure_of_all_heads(each):
    figure, axes = attention_agreement(each).plot()
    assert [ax.get_title() for ax in axes] == ["spectrogram over time", "encoder's output"]
    assert axes[0].images[0].get_array().shape == (3, 2)
    figure.canvas.draw()


def test_what_does_not_fit_is_refused(blank, planted, attention, each):
    name, explanation = next(iter(planted.items()))
    with pytest.raises(ValueError, match='pass over="encoder" to explain'):
        utterance_agreement(blank[name], attention[name])
    with pytest.raises(ConfigError, match="explanation is over words; pass one over tokens"):
        utterance_agreement(explanation.words(), attention[name])
    for wrong in (attention[name][0], attention[name][:, :, 1:], attention[name][..., :3]):
        with pytest.raises(ConfigError, match="attention has shape .*; allowed: "):
            utterance_agreement(explanation, wrong)
    with pytest.raises(ConfigError, match="utterances is empty"):
        attention_agreement([])
    heads = np.zeros((1, 1))
    other = replace(each[0], input=replace(each[0].input, heads=heads))
    with pytest.raises(ConfigError, match="pass those of one model"):
        attention_agreement([each[0], other])


def test_part_of_the_output(planted, attention):
    """Rows of a part have the attention of their own tokens."""
    model = load_tiny_model("speech2text-en")
    config = SpesConfig(num_spectrogram_masks=1, masks_per_token=1, num_token_masks=10)
    part = explain(*model, tiny_clips()[0]["path"], config=config, over="encoder", tokens=[2], progress=False)
    length = part.raw_encoder.shape[1]
    weights = torch.rand(1, 1, len(part.written_ids), length, generator=torch.Generator().manual_seed(0))
    found = utterance_agreement(part, weights)
    assert found.tokens == 1 and found.encoder.all == pytest.approx(pearson(weights[0, 0, 2], part.raw_encoder[0]))


def test_on_a_trained_model_attention_is_part_of_the_explanation():
    model, processor = load_tiny_model("speech2text-en")
    adapter, found = get_adapter(model, processor), []
    config = SpesConfig(num_spectrogram_masks=4, masks_per_token=4, num_token_masks=200)
    for clip in tiny_clips()[:3]:
        explanation = explain(model, processor, clip["path"], config=config, over="encoder", progress=False)
        ids = (torch.tensor(explanation.origin.prefix_ids), torch.tensor(explanation.written_ids))
        utterance = adapter.encode(load_audio(clip["path"], adapter.sampling_rate))
        attention = adapter.attention_weights(utterance, Target(*ids, complete=True))
        found.append(utterance_agreement(explanation, attention, clip["id"]))
    summary = attention_agreement(found)
    assert 0.4 < summary.encoder.all.value < 0.9 and 0.2 < summary.input.all.value < 0.7
    assert summary.encoder.heads.shape == (model.config.decoder_layers, model.config.decoder_attention_heads)

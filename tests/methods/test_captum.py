"""Gradient baselines on the small random Whisper."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from agreement import GRADIENT, assert_raw_maps_agree

from spes_hf import CaptumConfig, ConfigError, ExplainConfig, explain

SHORT = {"max_new_tokens": 6}
ATTRIBUTIONS = ("saliency", "input_x_gradient", "integrated_gradients")


def run(small_whisper, tone, attribution, steps=4, **kwargs):
    settings = {"steps": steps} if attribution == "integrated_gradients" else {}
    config = CaptumConfig(attribution=attribution, num_token_masks=8, **settings)
    return explain(*small_whisper, tone, config=config, generate_kwargs=SHORT, progress=False, **kwargs)


def test_without_captum(small_whisper, tone, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match=r"pip install 'captum>=0\.9' \(the extra 'captum'\)"):
        run(small_whisper, tone, "saliency")


def test_config():
    assert ExplainConfig.from_dict(CaptumConfig(steps=3).to_dict()) == CaptumConfig(steps=3)
    for arguments, words in (
        ({"attribution": "lime"}, "attribution is 'lime'; allowed: saliency"),
        ({"steps": 0}, "steps is 0"),
        ({"impact": "kl"}, "gradient of KL at the clean input is 0"),
        ({"num_spectrogram_masks": 5}, "num_spectrogram_masks is 5; allowed: 0"),
        ({"num_token_masks": 0}, "num_token_masks is 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            CaptumConfig(**arguments)


@pytest.fixture(scope="module")
def gradients(small_whisper, tone):
    """(K, T, C) gradient of every token's probability, by plain calls of the model; and the features."""
    pytest.importorskip("captum", reason="the captum extra is not installed: pip install -e '.[captum]'")
    model, processor = small_whisper
    found = run(small_whisper, tone, "saliency")
    window = processor(tone, sampling_rate=16_000, return_tensors="pt", max_length=32_000).input_features
    window.requires_grad_()
    ids = torch.tensor([[50257, 50362, *found.token_ids]])
    probabilities = model(input_features=window, decoder_input_ids=ids[:, :-1]).logits[0, 1:].softmax(-1)
    picked = probabilities.gather(1, ids[0, 2:, None]).squeeze(1)
    gradients = [torch.autograd.grad(p, window, retain_graph=True)[0][0, :, :120].T for p in picked]
    return torch.stack(gradients), found.features


@pytest.mark.parametrize("attribution", ["saliency", "input_x_gradient"])
def test_equals_the_plain_gradient(small_whisper, tone, gradients, attribution):
    gradient, features = gradients
    expected = gradient.abs() if attribution == "saliency" else gradient * features
    found = run(small_whisper, tone, attribution)
    torch.testing.assert_close(found.raw_audio, expected, atol=1e-5, rtol=1e-3)
    assert found.reliability.tokens.isnan().all() and found.raw_token[:, 0].isfinite().all()
    assert found.provenance["cost"]["forward_passes"] == 3 + 6 + 8


def test_integrated_gradients_add_up(small_whisper, tone, gradients):
    """Completeness: attributions sum to the fall of the probability from the spectrogram to the fill."""
    model, processor = small_whisper
    found = run(small_whisper, tone, "integrated_gradients", steps=32)
    window = processor(tone, sampling_rate=16_000, return_tensors="pt", max_length=32_000).input_features
    window[0, :, :120] = found.features.mean(0)[:, None]
    ids = torch.tensor([[50257, 50362, *found.token_ids]])
    with torch.no_grad():
        probabilities = model(input_features=window, decoder_input_ids=ids[:, :-1]).logits[0, 1:].softmax(-1)
    fall = found.probabilities - probabilities.gather(1, ids[0, 2:, None]).squeeze(1)
    torch.testing.assert_close(found.raw_audio.sum((1, 2)), fall, atol=0.05, rtol=0.05)
    assert found.provenance["cost"]["forward_passes"] == 3 + 6 * 32 + 8


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
def test_independent_of_batch_size_and_leaves_the_model_untouched(small_whisper, tone, gradients, attribution):
    first = run(small_whisper, tone, attribution)
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    model.train()
    trained = [p.requires_grad for p in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for batch_size in (1, 3, 64):
        again = run((model, processor), tone, attribution, batch_size=batch_size)
        assert_raw_maps_agree(again.raw_audio, first.raw_audio, GRADIENT)
        assert_raw_maps_agree(again.raw_token, first.raw_token)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == trained
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_with_a_foil_it_differentiates_the_log_odds(small_whisper, tone):
    pytest.importorskip("captum", reason="the captum extra is not installed: pip install -e '.[captum]'")
    config = CaptumConfig(steps=2, num_token_masks=4)
    found = explain(*small_whisper, tone, config=config, text="so my", foil={"my": "his"}, progress=False)
    assert found.origin.config["impact"] == "log-odds" and found.evidence_unit(0) == "bits"
    assert float(found.raw_audio.abs().max()) > 0

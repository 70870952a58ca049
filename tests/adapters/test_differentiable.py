"""Gradients pass through every family: from the logits to the features that `explain` perturbs."""

from __future__ import annotations

import torch
from tiny import VARIED

from spes_hf import SpesConfig, explain


def test_gradients_agree_with_finite_differences(exact):
    """In float64, one feature at a time: a random weighting of all logits of a batch of two."""
    generator = torch.Generator().manual_seed(0)
    clean = exact.utterance.features.double()
    features = torch.stack([clean, clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)])
    shape = exact.adapter.logits(exact.utterance, exact.target, features=features).shape
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)

    def value(features):
        return (weights * exact.adapter.logits(exact.utterance, exact.target, features=features)).sum()

    leaf = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    assert (gradient.abs() > 0).any(2).all()  # every frame of either copy
    for copy_, frame, mel in ((0, 0, 0), (0, 31, 40), (1, 5, 7), (1, len(clean) - 1, clean.shape[1] - 1)):
        step = torch.zeros_like(features)
        step[copy_, frame, mel] = 1e-5
        with torch.no_grad():
            slope = (value(features + step) - value(features - step)) / 2e-5
        torch.testing.assert_close(gradient[copy_, frame, mel], slope, rtol=1e-4, atol=1e-6)


def test_every_family_is_explained_by_gradients(case):
    config = SpesConfig(estimator="gradient", num_spectrogram_masks=3, masks_per_token=2, num_token_masks=3)
    model, processor = case.copy()
    needed = [parameter.requires_grad for parameter in model.parameters()]
    options = {"generate_kwargs": VARIED, "progress": False, **case.family.options}
    found = explain(model, processor, case.audio, sampling_rate=16_000, config=config, **options)
    assert len(found) == len(case.target.token_ids)
    assert found.raw_audio.isfinite().all()
    assert (found.raw_audio.flatten(1).std(1) > 0).all()
    assert found.sentence_saliency.min() == 0 and found.sentence_saliency.max() == 1
    assert found.provenance["cost"]["backward_passes"] == 2 * len(found) + 3
    assert [parameter.requires_grad for parameter in model.parameters()] == needed
    assert all(parameter.grad is None for parameter in model.parameters())

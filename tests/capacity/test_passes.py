"""The passes of a plan are those that a real explanation counts, whatever the method, the audio and the output."""

from __future__ import annotations

import pytest

from spes_hf import (
    AttentionConfig,
    BubbleNoiseConfig,
    CaptumConfig,
    EnergyConfig,
    FeatureWiseConfig,
    RandomConfig,
    SpesConfig,
    explain,
)
from spes_hf.capacity.passes import passes_of
from spes_hf.demo import load_tiny_model, tiny_clips

FEW = {"num_spectrogram_masks": 7, "num_token_masks": 5}
CONFIGS = {
    "default": SpesConfig(),
    "fast": SpesConfig.fast(),
    "a pass for every token": SpesConfig(masks_per_token=3, passes_per_mask=None, **FEW),
    "shared passes": SpesConfig(masks_per_token=12, passes_per_mask=2, num_spectrogram_masks=16, num_token_masks=4),
    "paper": SpesConfig.paper("asr", **FEW),
    "joint": SpesConfig(estimator="perturbation", perturb="joint", num_spectrogram_masks=9),
    "feature-wise": FeatureWiseConfig(**FEW),
    "bubble noise": BubbleNoiseConfig(**FEW),
    "saliency": CaptumConfig(attribution="saliency", num_token_masks=3),
    "integrated gradients": CaptumConfig(steps=3, num_token_masks=3),
    "attention": AttentionConfig(),
    "energy": EnergyConfig(),
    "random": RandomConfig(),
}


@pytest.fixture(scope="module")
def model():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def clips():
    return sorted((c["path"] for c in tiny_clips()), key=len)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_real_explanation_takes_these_passes(model, clips, name):
    if name in ("saliency", "integrated gradients"):
        pytest.importorskip("captum", reason="the extra captum is not installed")
    for clip in clips[:1] if name in ("default", "fast") else clips[:2]:
        real = explain(*model, clip, config=CONFIGS[name], progress=False)
        planned = passes_of(CONFIGS[name], len(real.token_ids), prefix=real.prefix_length)
        cost = real.origin.cost
        assert (planned.forward, planned.backward) == (cost["forward_passes"], cost["backward_passes"])
        # What is counted by kind is all that is counted.
        assert planned.whole + planned.decoder + planned.heard == planned.forward


def test_over_the_encoder(model, clips):
    config = SpesConfig(num_spectrogram_masks=4, masks_per_token=2, num_token_masks=5)
    real = explain(*model, clips[0], config=config, over="encoder", progress=False)
    planned = passes_of(config, len(real.token_ids), over="encoder", prefix=real.prefix_length)
    cost = real.origin.cost
    assert (planned.forward, planned.backward) == (cost["forward_passes"], cost["backward_passes"])
    assert planned.heard >= 5


def test_kinds_of_passes():
    few = passes_of(SpesConfig.paper("st", num_spectrogram_masks=30, num_token_masks=11), tokens=9)
    # The clean pass, the one without sound, the one without text.
    assert (few.whole, few.backward, few.decoder, few.heard, few.decoder_backward) == (30 + 1, 0, 11 + 1, 1, 0)
    gradient = passes_of(SpesConfig(num_spectrogram_masks=8, masks_per_token=4, passes_per_mask=None), tokens=6)
    assert (gradient.whole, gradient.backward) == (8 + 1, 8 + 4 * 6)
    pilot = passes_of(SpesConfig(), tokens=20)
    assert pilot.decoder_backward == 4 * 20  # sizes of the gradients of all tokens under four masks


def test_a_run_that_may_stop_early_is_counted_to_its_end():
    full, early = (SpesConfig(num_spectrogram_masks=64, target_reliability=r) for r in (None, 0.5))
    assert passes_of(early, 9) == passes_of(full, 9)

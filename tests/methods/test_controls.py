"""Every method, end to end on the small random Whisper: one kind of result, the same promises."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys

import pytest
import torch
from agreement import assert_explanations_agree, assert_raw_maps_agree

from spes_hf import (
    AttentionConfig,
    BubbleNoiseConfig,
    ConfigError,
    EnergyConfig,
    ExplainConfig,
    Explainer,
    Explanation,
    FeatureWiseConfig,
    RandomConfig,
    SpesConfig,
    ablations,
    explain,
    functional,
)
from spes_hf.masking.draw import keep_bits, mask_key
from spes_hf.masking.segments import slic_labels

SHORT = {"max_new_tokens": 6}
FEW = {"num_spectrogram_masks": 12, "num_token_masks": 8}
METHODS = ablations("asr", **FEW)
FREE = ("random", "energy", "attention")
SEEDLESS = ("energy", "attention")


def run(small_whisper, tone, config, **kwargs):
    return explain(*small_whisper, tone, config=config, generate_kwargs=SHORT, progress=False, **kwargs)


@pytest.fixture(scope="module")
def results(small_whisper, tone) -> dict[str, Explanation]:
    return {name: run(small_whisper, tone, config) for name, config in METHODS.items()}


# Promises of all methods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_same_kind_of_result(results, name):
    found, reference = results[name], results["SPES"]
    assert found.text == reference.text and found.token_ids == reference.token_ids
    assert found.audio_saliency.shape == reference.audio_saliency.shape == (6, 120, 80)
    assert found.audio_saliency.min() >= 0 and found.audio_saliency.max() <= 1
    assert found.audio_saliency.isfinite().all() and found.raw_audio.isfinite().all()
    assert torch.equal(found.token_saliency.isnan(), reference.token_saliency.isnan())
    assert torch.equal(found.probabilities, reference.probabilities)
    assert found.reliability.tokens.shape == (6,)
    assert torch.equal(found.sound_bits, reference.sound_bits) and found.sound_bits.isfinite().all()
    assert torch.equal(found.text_bits, reference.text_bits)
    assert found.words().sentence_saliency.shape == (120, 80)
    config = ExplainConfig.from_dict(found.provenance["config"])
    assert config == METHODS[name]
    joint = getattr(METHODS[name], "perturb", "") == "joint"
    free = 3 + (name == "attention")
    passes = free if name in FREE else 3 + 12 + (0 if joint else 8)
    assert found.provenance["cost"]["forward_passes"] == passes


KINDS = ("SPES", "feature-wise", "bubble noise", "joint")  # the others differ from SPES by a setting


@pytest.mark.parametrize("name", [pytest.param(m, marks=[pytest.mark.numerics] * (m in KINDS)) for m in METHODS])
def test_deterministic_in_the_seed_and_independent_of_batch_size(small_whisper, tone, results, name):
    for batch_size in (1, 5):
        again = run(small_whisper, tone, METHODS[name], batch_size=batch_size)
        assert_explanations_agree(again, results[name])
    other = run(small_whisper, tone, METHODS[name], seed=1)
    assert torch.equal(other.raw_audio, results[name].raw_audio) == (name in SEEDLESS)


@pytest.mark.parametrize("name", METHODS)
def test_another_utterance_has_other_masks(small_whisper, tone, name):
    explainer = Explainer(*small_whisper, METHODS[name], progress=False)
    first, second = (explainer(tone, generate_kwargs=SHORT, utterance_id=i).raw_audio for i in "ab")
    assert torch.equal(first, second) == (name in SEEDLESS)


@pytest.mark.parametrize("name", ["feature-wise", "bubble noise", *FREE])
def test_the_model_is_left_as_it_was(small_whisper, tone, results, name):
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    model.train()
    model.config.dropout = 0.5
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = run((model, processor), tone, METHODS[name])
    torch.testing.assert_close(found.raw_audio, results[name].raw_audio, atol=1e-5, rtol=0)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["feature-wise", "bubble noise", *FREE])
def test_every_method_can_be_saved(results, name, tmp_path):
    again = Explanation.load(results[name].save(tmp_path / "saved"))
    torch.testing.assert_close(again.audio_saliency, results[name].audio_saliency)
    assert again.provenance == results[name].provenance


# Feature-wise ---------------------------------------------------------------------------------------------------------


def test_feature_wise_is_eq_3_over_single_features(small_whisper, tone, results):
    """By plain calls of the model, one mask at a time."""
    model, processor = small_whisper
    found = results["feature-wise"]
    inputs = processor(tone, sampling_rate=16_000, return_tensors="pt", max_length=32_000).input_features
    ids = torch.tensor([[50257, 50362, *found.token_ids]])

    def logits(window):
        with torch.no_grad():
            return model(input_features=window, decoder_input_ids=ids[:, :-1]).logits[0, 1:]

    clean, features = logits(inputs), found.features
    key = mask_key(0, "", "spectrogram/features")
    keep = torch.from_numpy(keep_bits(key, 0, 12, 9600, 0.7)).float()
    assert 0.28 < keep.mean() < 0.32
    impacts = []
    for mask in keep:
        window = inputs.clone()
        window[0, :, :120] = torch.where(mask.view(120, 80) > 0, features, features.mean(0)).T
        impacts.append(functional.kl_divergence(clean, logits(window)))
    expected = functional.saliency(keep, torch.stack(impacts)).view(-1, 120, 80)
    assert_raw_maps_agree(found.raw_audio, expected)
    assert len(found.raw_audio[0].unique()) > 500  # no patches


# Bubble Noise ---------------------------------------------------------------------------------------------------------


def test_bubble_noise_weighs_impacts_by_the_noise(small_whisper, tone, results):
    found = results["bubble noise"]
    (counts,) = found.audio_map.weights
    assert 0 < counts.min() and counts.max() <= 12  # Σ (1 − M), in parts of masks
    assert 0.4 < counts.mean() / 12 < 0.7
    wide = run(small_whisper, tone, BubbleNoiseConfig(**FEW, bubble_width_s=5.0, bubble_height_bins=500.0))
    assert wide.audio_map.weights[0].mean() < 2  # nearly all of it within a bubble


# At no cost -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FREE)
def test_methods_at_no_cost_have_no_reliability(results, name):
    assert results[name].reliability.tokens.isnan().all()
    assert results[name].reliability.sentence != results[name].reliability.sentence


def test_energy_is_the_spectrogram(results):
    found = results["energy"]
    order = found.features.flatten().argsort(descending=True, stable=True)
    for saliency in (found.sentence_saliency, *found.audio_saliency):
        assert (saliency.flatten()[order].diff() <= 1e-6).all()
    torch.testing.assert_close(found.raw_audio[3], found.features - found.features.min())
    constant = [row[~row.isnan()].unique() for row in found.token_saliency]
    assert all(len(values) == 1 for values in constant)
    assert found.sound_impact.isnan().all() and found.text_impact.isnan().all()  # no mask hid anything


def test_random_is_uniform_and_new_for_every_token(results):
    raw = results["random"].raw_audio
    assert raw.min() >= 0 and raw.max() < 1 and abs(raw.mean() - 0.5) < 0.01
    between = torch.corrcoef(raw.flatten(1)) - torch.eye(6)
    assert between.abs().max() < 0.05
    token = results["random"].raw_token
    assert token[~token.isnan()].std() > 0.1


# The paper's settings -------------------------------------------------------------------------------------------------


def test_table_1():
    for task, tau in (("asr", 7.5), ("st", 5.0)):
        found = ablations(task)
        full = SpesConfig.paper(task)
        assert full.max_duration_s == tau
        expected = {
            "feature-wise": FeatureWiseConfig(),
            "bubble noise": BubbleNoiseConfig(),
            "SPES": full,
            "- multi-scale": dataclasses.replace(full, patches_per_second=(500.0,)),
            "- clustering": full.changed(segmentation="grid"),
            "- duration adaptation": SpesConfig.paper(task, patches=(2000, 2500, 3000)),
            "- KL": dataclasses.replace(full, impact="probability"),
            "joint": SpesConfig.paper(task, perturb="joint"),
            "coarse": dataclasses.replace(full, patches_per_second=(20.0, 40.0, 60.0), num_spectrogram_masks=1000),
            "random": RandomConfig(),
            "energy": EnergyConfig(),
            "attention": AttentionConfig(),
        }
        assert found == expected
        # Also where a text is given: the paper's impact is KL.
        impacts = {name: config.to_dict()["impact"] for name, config in found.items()}
        assert impacts == {**dict.fromkeys(found, "kl"), "- KL": "probability", **dict.fromkeys(FREE, "auto")}


def test_defaults_are_those_of_the_paper():
    config = FeatureWiseConfig()
    assert (config.num_spectrogram_masks, config.num_token_masks) == (20_000, 2_000)
    assert (config.spectrogram_mask_prob, config.token_mask_prob, config.impact) == (0.7, 0.1, "kl")
    config = BubbleNoiseConfig()
    assert (config.num_spectrogram_masks, config.num_token_masks, config.token_mask_prob) == (1_000, 2_000, 0.4)
    assert (config.bubbles_per_second, config.bubble_width_s, config.bubble_height_bins) == (10, 0.43, 31)


def test_fixed_patches_do_not_depend_on_the_length(small_whisper, tone):
    config = SpesConfig(**FEW, estimator="perturbation", patches=[100, 300])
    assert config.patches == (100, 300) and config.num_levels == 2
    for samples in (tone, tone[:9600]):
        found = run(small_whisper, samples, config)
        expected = torch.stack([slic_labels(found.features, k) for k in (100, 300)])
        assert torch.equal(found.audio_map.labels.long(), expected)


@pytest.mark.parametrize("value", [(), (0,), (2000.0,), ("2000",), True, "2000", -3])
def test_bad_patches_are_refused(value):
    with pytest.raises(ConfigError, match=r"SpesConfig.patches is .*2000, 2500, 3000"):
        SpesConfig(patches=value)


def test_masks_must_reach_every_fixed_level():
    with pytest.raises(ConfigError, match="each of the 4 levels"):
        SpesConfig(patches=(1, 2, 3, 4), num_spectrogram_masks=3)
    assert SpesConfig(patches=50, num_spectrogram_masks=1).patches == (50,)


def test_bad_values_are_refused():
    for name in ("bubbles_per_second", "bubble_width_s", "bubble_height_bins"):
        for value in (0, -1, float("nan"), float("inf"), "10", None):
            with pytest.raises(ConfigError, match=f"BubbleNoiseConfig.{name} is"):
                BubbleNoiseConfig(**{name: value})
    for config in (RandomConfig, EnergyConfig, AttentionConfig):
        with pytest.raises(ConfigError, match=f"{config.__name__}.num_spectrogram_masks is 100; allowed: 0, since"):
            config(num_spectrogram_masks=100)
    with pytest.raises(ConfigError, match="FeatureWiseConfig.num_token_masks is 0"):
        FeatureWiseConfig(num_token_masks=0)
    with pytest.raises(ConfigError, match="task is 'tts'"):
        ablations("tts")


def test_configs_survive_json(tmp_path):
    for config in ablations("st", num_spectrogram_masks=99).values():
        config.to_json(tmp_path / "config.json")
        assert ExplainConfig.from_json(tmp_path / "config.json") == config


def test_any_method_can_be_read_in_a_fresh_process():
    code = """
from spes_hf import ExplainConfig
print(ExplainConfig.from_dict({"method": "random"}), ExplainConfig.from_dict({"method": "bubble-noise"}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "RandomConfig(" in result.stdout and "BubbleNoiseConfig(" in result.stdout

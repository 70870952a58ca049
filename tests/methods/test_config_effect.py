"""Every field of every config changes what is done, or is refused; numbers of masks follow the estimator."""

from __future__ import annotations

import dataclasses
import json
import pickle
import warnings

import pytest
import torch

from spes_hf import (
    AttentionConfig,
    BubbleNoiseConfig,
    CaptumConfig,
    ConfigError,
    EnergyConfig,
    ExplainConfig,
    FeatureWiseConfig,
    RandomConfig,
    SpesConfig,
    ablations,
    explain,
)
from spes_hf.methods.base import _METHODS

EQ3 = {"estimator": "perturbation"}
FEW = {"num_spectrogram_masks": 4, "num_token_masks": 3}
SPES = {**FEW, "masks_per_token": 4, "patches_per_second": (40.0,)}
# Another value of every field.
OTHER = {
    "num_spectrogram_masks": 6,
    "num_token_masks": 5,
    "spectrogram_mask_prob": 0.2,
    "token_mask_prob": 0.8,
    "impact": "contrastive",
    "word_probability": "chain",
    "fill": "min",
    "patches_per_second": (90.0,),
    "max_duration_s": 0.2,
    "segmentation": "grid",
    "patches": (30,),
    "slic_sigma": 2.0,
    "slic_compactness": 30.0,
    "mask_design": "balanced",
    "perturb": "joint",
    "estimator": None,  # the other one
    "masks_per_token": 2,
    "passes_per_mask": 1,
    "prior_weight": 0.5,
    "pool_patches_per_second": (30.0,),
    "sentence_patches_per_second": (30.0,),
    "sentence_impact": "relative",
    "target_reliability": 0.000001,
    "bubbles_per_second": 30.0,
    "bubble_width_s": 0.1,
    "bubble_height_bins": 60.0,
    "attribution": "saliency",
    "steps": 3,
    "layers": (0,),
    "heads": ((0, 1), (1, 0)),
    "energy": False,
}
# Every class, in every state that decides what it reads.
STATES = {
    "gradient": SpesConfig(**SPES),
    "gradient, grid": SpesConfig(**SPES, segmentation="grid"),
    "gradient, patches": SpesConfig(**FEW, masks_per_token=4, patches=(40,)),
    "gradient, patches, no pools": SpesConfig(
        **FEW, masks_per_token=4, patches=(40,), pool_patches_per_second=None, sentence_patches_per_second=None
    ),
    "Eq. 3": SpesConfig(**FEW, **EQ3, patches_per_second=(40.0,)),
    "Eq. 3, patches": SpesConfig(**FEW, **EQ3, patches=(40,)),
    "Eq. 3, joint": SpesConfig(**EQ3, num_spectrogram_masks=4, patches_per_second=(40.0,), perturb="joint"),
    "feature-wise": FeatureWiseConfig(**FEW),
    "bubble noise": BubbleNoiseConfig(**FEW),
    "random": RandomConfig(),
    "energy": EnergyConfig(),
    "attention": AttentionConfig(),
    "attention, some heads": AttentionConfig(heads=((1, 1),)),
    "integrated gradients": CaptumConfig(num_token_masks=3, steps=2),
    "saliency": CaptumConfig(num_token_masks=3, attribution="saliency"),
}
CASES = [(state, field.name) for state, config in STATES.items() for field in dataclasses.fields(config)]


def numbers(small_whisper, tone, config, foil=None):
    found = explain(*small_whisper, tone[:9_600], config=config, text="so my", foil=foil, progress=False)
    maps = [found.raw_audio, found.raw_token, found.sentence_saliency, found.audio_saliency]
    return maps, found.provenance["cost"]["forward_passes"], found.provenance["cost"]["backward_passes"]


@pytest.fixture(scope="module")
def results(small_whisper, tone):
    return {}


def test_every_field_and_every_class_is_covered():
    classes = {type(config) for config in STATES.values()}
    assert classes == {c for c in _METHODS.values() if c.__module__.startswith("spes_hf.")}
    assert OTHER.keys() == {field.name for config in classes for field in dataclasses.fields(config)}


@pytest.mark.parametrize(("state", "name"), CASES, ids=[f"{state}: {name}" for state, name in CASES])
def test_a_setting_changes_the_result_or_is_refused(small_whisper, tone, results, state, name):
    config = STATES[state]
    if isinstance(config, CaptumConfig):
        pytest.importorskip("captum", reason="the captum extra is not installed: pip install -e '.[captum]'")
    now, value = getattr(config, name), OTHER[name]
    if name == "estimator":
        value = "perturbation" if now == "gradient" else "gradient"
    elif now == value:
        value = {"segmentation": "slic", "attribution": "input_x_gradient", "perturb": "separate"}.get(name)
    if name == "target_reliability" and name not in config.unread(vars(config)):
        config = config.changed(num_spectrogram_masks=400 if state == "Eq. 3, joint" else 64)  # 4 cannot agree
    try:
        changed = config.changed(**{name: value})
    except ConfigError as error:
        # Refused with the field's name; or that of the setting which the other estimator does not know.
        refused = ("perturb", config.perturb) if (state, name) == ("Eq. 3, joint", "estimator") else (name, value)
        assert f"{type(config).__name__}.{refused[0]} is {refused[1]!r}; allowed:" in str(error)
        return
    foil = {"my": "his"} if name == "word_probability" else None  # without a foil it is refused
    if (config, foil is None) not in results:
        results[config, foil is None] = numbers(small_whisper, tone, config, foil)
    before, after = results[config, foil is None], numbers(small_whisper, tone, changed, foil)
    same = before[1:] == after[1:] and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(before[0], after[0], strict=True)
    )
    assert not same


@pytest.mark.parametrize(
    ("config", "settings", "name"),
    [
        (BubbleNoiseConfig, {"fill": "zero"}, "fill"),
        (BubbleNoiseConfig, {"spectrogram_mask_prob": 0.3}, "spectrogram_mask_prob"),
        (SpesConfig, {"segmentation": "grid", "slic_sigma": 1.0}, "slic_sigma"),
        (SpesConfig, {**EQ3, "masks_per_token": 3}, "masks_per_token"),
        (SpesConfig, {**EQ3, "sentence_patches_per_second": None}, "sentence_patches_per_second"),
        (SpesConfig, {**EQ3, "sentence_impact": "sum"}, "sentence_impact"),
        (SpesConfig, {**EQ3, "perturb": "joint", "num_token_masks": 7}, "num_token_masks"),
        (SpesConfig, {"patches": 50, "patches_per_second": 90.0}, "patches_per_second"),
        (SpesConfig, {**EQ3, "patches": 50, "max_duration_s": 3.0}, "max_duration_s"),
        (RandomConfig, {"impact": "probability"}, "impact"),
        (EnergyConfig, {"fill": "min"}, "fill"),
        (AttentionConfig, {"impact": "probability"}, "impact"),
        (AttentionConfig, {"heads": "alignment", "layers": (-1,)}, "layers"),
        (CaptumConfig, {"attribution": "saliency", "steps": 3}, "steps"),
        (CaptumConfig, {"attribution": "input_x_gradient", "fill": "zero"}, "fill"),
        (CaptumConfig, {"spectrogram_mask_prob": 0.3}, "spectrogram_mask_prob"),
    ],
)
def test_a_setting_without_effect_is_refused_by_name(config, settings, name):
    with pytest.raises(ConfigError, match=rf"{config.__name__}\.{name} is .*; allowed: .*, since .*; leave it out"):
        config(**settings)


def test_presets_and_ablations_leave_out_what_an_override_makes_void():
    assert SpesConfig.paper("st", patches=(50, 60)).max_duration_s == SpesConfig().max_duration_s
    assert SpesConfig.paper("asr", perturb="joint").num_token_masks == SpesConfig().num_token_masks
    assert SpesConfig.fast(**EQ3).masks_per_token == SpesConfig().masks_per_token
    rows = ablations("asr", num_spectrogram_masks=9, num_token_masks=8, impact="probability", fill="zero")
    assert rows["SPES"].fill == "zero" and rows["bubble noise"].fill == "mean" and rows["energy"] == EnergyConfig()
    with pytest.raises(ConfigError, match="masks_per_token is 3"):
        SpesConfig.paper("asr", masks_per_token=3)


def test_other_settings_make_old_ones_void_without_complaint():
    assert SpesConfig(masks_per_token=3).changed(**EQ3) == SpesConfig(**EQ3)
    with pytest.raises(ConfigError, match="slic_sigma is 2.0"):
        SpesConfig().changed(segmentation="grid", slic_sigma=2.0)


# What follows from the estimator -------------------------------------------------------------------------------------


def test_the_number_of_masks_follows_the_estimator():
    gradient, eq3 = SpesConfig(), SpesConfig(**EQ3)
    assert (gradient.num_spectrogram_masks, gradient.mask_design) == (32, "antithetic")
    assert (eq3.num_spectrogram_masks, eq3.mask_design) == (3_000, "independent")
    assert SpesConfig.fast(**EQ3).num_spectrogram_masks == 3_000
    assert SpesConfig.fast().num_spectrogram_masks == 8
    for chosen in (gradient, eq3):
        assert SpesConfig(estimator=chosen.estimator, num_spectrogram_masks=50).num_spectrogram_masks == 50


def test_replace_works_out_what_follows_and_keeps_what_was_said():
    assert dataclasses.replace(SpesConfig(), **EQ3) == SpesConfig(**EQ3)
    assert dataclasses.replace(SpesConfig(**EQ3), estimator="gradient") == SpesConfig()
    said = SpesConfig(num_spectrogram_masks=50, mask_design="balanced")
    kept = dataclasses.replace(said, **EQ3)
    assert (kept.num_spectrogram_masks, kept.mask_design) == (50, "balanced")


def test_what_follows_survives_pickle_and_json():
    for config in (SpesConfig(), SpesConfig(**EQ3), SpesConfig.fast(), SpesConfig(num_spectrogram_masks=50)):
        read = ExplainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        for copy in (pickle.loads(pickle.dumps(config)), read):
            assert copy == config and hash(copy) == hash(config)
            other = "gradient" if config.estimator == "perturbation" else "perturbation"
            assert copy.changed(estimator=other) == config.changed(estimator=other)
    assert type(SpesConfig().to_dict()["num_spectrogram_masks"]) is int


def test_a_stored_config_keeps_loading():
    """As a version without such checks wrote it: settings without effect, and few masks that were Eq. 3's default."""
    old = {
        **{name: value for name, value in SpesConfig().to_dict().items() if name != "mask_design"},
        **EQ3,
        "num_spectrogram_masks": 32,
        "masks_per_token": 4,
        "spes_hf_version": "0.1.0",
    }
    with pytest.warns(UserWarning, match="SpesConfig.masks_per_token has no effect and is ignored"):
        found = ExplainConfig.from_dict(old)
    assert found == SpesConfig(**EQ3, num_spectrogram_masks=32)
    with pytest.raises(ConfigError, match="masks_per_token is 4"):  # by hand: no version
        SpesConfig.from_dict({**EQ3, "masks_per_token": 4})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ExplainConfig.from_dict(SpesConfig(**EQ3).to_dict())


def test_one_method_does_not_read_its_numbers_of_masks():
    with pytest.raises(ConfigError, match="RandomConfig.num_token_masks is 5; allowed: 0, since"):
        RandomConfig(num_token_masks=5)

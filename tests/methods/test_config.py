import dataclasses
import json
import math
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spes_hf import CaptumConfig, ConfigError, ExplainConfig, RandomConfig, SpesConfig, SpesError, __version__
from spes_hf.methods import GradientConfig, register_method
from spes_hf.methods.presets import preset
from spes_hf.names import PRESETS

NAN, INF = float("nan"), float("inf")

BAD = {
    "num_spectrogram_masks": [0, -1, 1.5, 100.0, "100", None, True, NAN, INF],
    "num_token_masks": [0, -1, 1.5, 100.0, "100", None, True, NAN, INF],
    "spectrogram_mask_prob": [0, 1, 0.0, 1.0, -0.1, 1.1, 50, NAN, INF, None, "0.5", True],
    "token_mask_prob": [0, 1, 0.0, 1.0, -0.1, 1.1, 40, NAN, INF, None, "0.4", True],
    "impact": ["KL", "wer", "", None, 1, ["kl"]],
    "word_probability": ["word", "", None, 1],
    "fill": ["median", "", None, NAN, INF, -INF, True, [0.0]],
    "patches_per_second": [(), [], (0,), (-400,), (400, 0), (400, NAN), (INF,), ("400",), "400", (True,), True, 0],
    "max_duration_s": [0, -1, NAN, INF, "7.5", True],
    "segmentation": ["SLIC", "kmeans", "", None],
    "slic_sigma": [-1, -0.1, NAN, INF, None, "0", True],
    "slic_compactness": [0, -1, NAN, INF, None, "0.1", True],
    "mask_design": ["sobol", "pairs", "", False, 2],
    "perturb": ["both", "", None],
    "estimator": ["gradients", "", None],
    "patches": [(), (0,), (2000.0,), ("2000",), True, "2000", -3],
    "masks_per_token": [0, -1, 1.5, 8.0, "8", None, True, NAN, INF],
    "passes_per_mask": [0, -1, 1.5, 8.0, "8", True, NAN, INF],
    "prior_weight": [-1, -0.1, NAN, INF, None, "0", True],
    "pool_patches_per_second": [(), [], (0,), (-80,), (80, 0), (80, NAN), (INF,), ("80",), "80", (True,), True, 0],
    "sentence_patches_per_second": [(), [], (0,), (-80,), (80, 0), (80, NAN), (INF,), ("80",), "80", (True,), True, 0],
    "sentence_impact": ["log", "", False, 1, ["sum"]],
    "target_reliability": [0, 1, 1.0, -0.5, 95, NAN, INF, "0.9", True],
}
ALLOWED = {
    "num_spectrogram_masks": "whole number",
    "num_token_masks": "whole number",
    "spectrogram_mask_prob": "probability",
    "token_mask_prob": "probability",
    "impact": "kl, log-probability, probability, contrastive, log-odds, difference, relative, auto",
    "word_probability": "word-boundary, chain, length-normalised",
    "fill": '"mean", "zero", "min"',
    "patches_per_second": "above 0",
    "max_duration_s": "None",
    "segmentation": "slic, grid",
    "slic_sigma": "at least 0",
    "slic_compactness": "above 0",
    "mask_design": "independent, antithetic, balanced, None",
    "perturb": "separate, joint",
    "estimator": "perturbation, gradient",
    "patches": "2000, 2500, 3000",
    "masks_per_token": "whole number",
    "passes_per_mask": "whole number, at least 1, or None",
    "prior_weight": "at least 0",
    "pool_patches_per_second": "above 0, for example (400, 500, 600), or None",
    "sentence_patches_per_second": "above 0, for example (400, 500, 600), or None",
    "sentence_impact": "relative, sum, None",
    "target_reliability": "between 0 and 1, or None",
}


def cases():
    return [pytest.param(name, value, id=f"{name}={value!r}") for name, values in BAD.items() for value in values]


def test_every_field_is_covered_here():
    assert BAD.keys() == ALLOWED.keys() == {f.name for f in dataclasses.fields(SpesConfig)}


@pytest.mark.parametrize(("name", "value"), cases())
def test_a_bad_value_is_refused_by_name(name, value):
    with pytest.raises(ConfigError) as caught:
        SpesConfig(**{name: value})
    message = str(caught.value)
    assert f"SpesConfig.{name}" in message
    shown = tuple(value) if isinstance(value, list) and name.endswith("patches_per_second") else value
    assert repr(shown) in message or f"({value!r}.0,)" in message  # one number of patches is a level on its own
    assert ALLOWED[name] in message
    assert isinstance(caught.value, SpesError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_spectrogram_masks", 3),
        ("num_spectrogram_masks", np.int64(500)),
        ("num_token_masks", 1),
        ("spectrogram_mask_prob", 1e-6),
        ("token_mask_prob", 0.999),
        ("token_mask_prob", np.float64(0.25)),
        ("impact", "probability"),
        ("impact", "contrastive"),
        ("fill", "zero"),
        ("fill", "min"),
        ("fill", 0),
        ("fill", -1.5),
        ("patches_per_second", (0.5,)),
        ("max_duration_s", None),
        ("max_duration_s", 30),
        ("segmentation", "grid"),
        ("slic_sigma", 0),
        ("slic_sigma", 10.0),
        ("slic_compactness", 10),
        ("estimator", "perturbation"),
        ("masks_per_token", 1),
        ("passes_per_mask", 1),
        ("passes_per_mask", None),
        ("prior_weight", 0),
        ("prior_weight", 2.5),
        ("pool_patches_per_second", None),
        ("pool_patches_per_second", (20.0, 400.0)),
        ("sentence_patches_per_second", None),
        ("sentence_patches_per_second", (20.0, 400.0)),
        ("sentence_impact", "sum"),
        ("sentence_impact", "relative"),
        ("target_reliability", 0.9),
        ("target_reliability", None),
    ],
)
def test_a_good_value_is_kept(name, value):
    assert getattr(SpesConfig(**{name: value}), name) == value


def test_gradients_are_of_the_sound_alone():
    assert SpesConfig(estimator="perturbation", perturb="joint").perturb == "joint"
    with pytest.raises(ConfigError, match="perturb is 'joint'.*separate.*estimator=\"perturbation\""):
        SpesConfig(estimator="gradient", perturb="joint")


def test_pools_may_be_given_as_a_list_or_one_number():
    assert SpesConfig(pool_patches_per_second=[20, 80]).pool_patches_per_second == (20, 80)
    assert SpesConfig(pool_patches_per_second=80).pool_patches_per_second == (80.0,)
    for pools in (None, (80.0,)):
        config = SpesConfig(pool_patches_per_second=pools, masks_per_token=3)
        assert SpesConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_level_needs_a_mask():
    SpesConfig(patches_per_second=(1, 2, 3), num_spectrogram_masks=3)
    with pytest.raises(ConfigError, match=r"num_spectrogram_masks is 2.*3 levels"):
        SpesConfig(patches_per_second=(1, 2, 3), num_spectrogram_masks=2)


def test_levels_may_be_given_as_a_list_or_one_number():
    assert SpesConfig(patches_per_second=[400, 500]).patches_per_second == (400, 500)
    assert SpesConfig(patches_per_second=500).patches_per_second == (500.0,)
    assert SpesConfig(patches_per_second=[400, 500]) == SpesConfig(patches_per_second=(400.0, 500.0))
    assert hash(SpesConfig(patches_per_second=[400])) == hash(SpesConfig(patches_per_second=400))


def test_a_list_given_is_not_shared():
    levels = [400.0, 500.0]
    config = SpesConfig(patches_per_second=levels)
    levels.append(600.0)
    assert config.patches_per_second == (400.0, 500.0)


def test_configs_are_immutable_and_take_keywords_only():
    config = SpesConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_token_masks = 3
    with pytest.raises(TypeError):
        SpesConfig(1_000)
    with pytest.raises(TypeError, match="num_masks"):
        SpesConfig(num_masks=5)
    with pytest.raises(ConfigError, match="num_token_masks"):
        dataclasses.replace(config, num_token_masks=0)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(("task", "tau"), [("asr", 7.5), ("st", 5.0)])
def test_paper_preset_is_the_paper(task, tau):
    config = SpesConfig.paper(task)
    assert config.num_spectrogram_masks == 20_000
    assert config.num_token_masks == 2_000
    assert config.spectrogram_mask_prob == 0.5
    assert config.token_mask_prob == 0.4
    assert config.patches_per_second == (400, 500, 600)
    assert config.max_duration_s == tau
    assert config.segmentation == "slic"
    assert config.slic_sigma == 0
    assert config.slic_compactness == 0.1
    assert config.impact == "kl"
    assert config.fill == "mean"
    assert config.perturb == "separate"
    assert config.estimator == "perturbation"


def test_presets_take_overrides():
    assert SpesConfig.paper("asr", num_spectrogram_masks=30).num_spectrogram_masks == 30
    assert SpesConfig.paper("st", max_duration_s=None).max_duration_s is None
    assert SpesConfig.fast(token_mask_prob=0.2).token_mask_prob == 0.2
    with pytest.raises(ConfigError, match="token_mask_prob"):
        SpesConfig.fast(token_mask_prob=2)


def test_presets_by_name():
    assert preset("fast") == SpesConfig.fast()
    assert preset("default") == SpesConfig()
    assert preset("paper") == SpesConfig.paper("asr")
    assert preset("paper", "st") == SpesConfig.paper("st")
    assert all(preset(name, num_token_masks=7).num_token_masks == 7 for name in PRESETS)
    with pytest.raises(ConfigError, match="'best'.*fast, default, paper"):
        preset("best")
    with pytest.raises(ConfigError, match="task is 'mt'.*asr.*st"):
        SpesConfig.paper("mt")


def test_fast_costs_less_than_the_default():
    fast, default = SpesConfig.fast(), SpesConfig()
    assert fast.estimator == default.estimator == "gradient"
    assert fast.num_spectrogram_masks < default.num_spectrogram_masks
    assert fast.masks_per_token < default.masks_per_token
    assert default.num_spectrogram_masks < SpesConfig.paper("asr").num_spectrogram_masks


@settings(max_examples=40, deadline=None)
@given(
    num_spectrogram_masks=st.integers(5, 10**6),
    spectrogram_mask_prob=st.floats(0, 1, exclude_min=True, exclude_max=True),
    fill=st.sampled_from(["mean", "zero", "min"]) | st.floats(-1e6, 1e6),
    patches_per_second=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=5).map(tuple),
    max_duration_s=st.none() | st.floats(1e-3, 1e6),
    impact=st.sampled_from(["kl", "probability", "contrastive"]),
    perturb=st.sampled_from(["separate", "joint"]),
)
def test_json_round_trip(tmp_path_factory, **values):
    config = SpesConfig(estimator="perturbation", **values)
    written = json.dumps(config.to_dict(), allow_nan=False)
    assert SpesConfig.from_dict(json.loads(written)) == config
    path = tmp_path_factory.getbasetemp() / "config.json"
    config.to_json(path)
    for reader in (SpesConfig, ExplainConfig):
        back = reader.from_json(path)
        assert back == config
        assert type(back) is SpesConfig
        assert hash(back) == hash(config)


def test_dict_names_the_method_and_the_version():
    values = SpesConfig().to_dict()
    assert values["method"] == "spes"
    assert values["spes_hf_version"] == __version__
    assert values.keys() - {"method", "spes_hf_version"} == {f.name for f in dataclasses.fields(SpesConfig)}


def test_dict_is_the_same_after_json():
    values = SpesConfig().to_dict()
    assert json.loads(json.dumps(values)) == values


def test_from_dict_leaves_its_argument_alone():
    values = SpesConfig().to_dict()
    before = dict(values)
    SpesConfig.from_dict(values)
    assert values == before


def test_from_dict_fills_in_defaults():
    assert SpesConfig.from_dict({"num_token_masks": 9}) == SpesConfig(num_token_masks=9)
    assert ExplainConfig.from_dict({"method": "spes"}) == SpesConfig()


@pytest.mark.parametrize(
    ("reader", "values", "message"),
    [
        (ExplainConfig, {"method": "lime"}, "method is 'lime'; known methods:.*spes"),
        (ExplainConfig, {}, "method is None; known methods:.*spes"),
        (SpesConfig, {"num_mask": 3, "sigma": 1}, "SpesConfig has no field num_mask, sigma.*num_spectrogram_masks"),
        (SpesConfig, {"num_mask": 3, "spes_hf_version": "9.9"}, rf"written by spes_hf 9\.9; this is {__version__}"),
        (SpesConfig, {"num_token_masks": 0}, "num_token_masks is 0"),
    ],
)
def test_from_dict_refuses(reader, values, message):
    with pytest.raises(ConfigError, match=message):
        reader.from_dict(values)


def test_a_config_of_another_method_is_refused():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OtherConfig(ExplainConfig):
        method = "other-method-of-a-test"

        def plan(self, problem):
            return []

    try:
        register_method(OtherConfig, "its-former-name")
        assert type(ExplainConfig.from_dict({**OtherConfig().to_dict(), "method": "its-former-name"})) is OtherConfig
        assert type(ExplainConfig.from_dict(OtherConfig().to_dict())) is OtherConfig
        with pytest.raises(ConfigError, match="OtherConfig, not a SpesConfig"):
            SpesConfig.from_dict(OtherConfig().to_dict())
    finally:
        from spes_hf.methods.base import _METHODS

        for name in ("other-method-of-a-test", "its-former-name"):
            _METHODS.pop(name, None)


def test_an_impact_that_was_asked_for_is_not_the_automatic_one():
    asked, automatic = SpesConfig(impact="kl"), SpesConfig()
    assert (asked.impact, automatic.impact) == ("kl", "kl")
    assert asked.to_dict() != automatic.to_dict()  # so that nothing takes the one's results for the other's
    automatically = "log-probability"
    expected = {"kl": asked, automatically: automatic}
    for impact, config in [*expected.items(), (automatically, SpesConfig(impact="auto"))]:
        for same in (config, SpesConfig.from_dict(config.to_dict()), dataclasses.replace(config, num_token_masks=9)):
            assert same.with_impact_for(text_given=True).impact == impact
            assert same.with_impact_for(text_given=False).to_dict()["impact"] == "kl"
    assert SpesConfig.paper("asr").with_impact_for(text_given=True).impact == "kl"
    assert RandomConfig().with_impact_for(text_given=True) == RandomConfig()
    assert CaptumConfig(impact="auto").impact == "probability"


def test_a_stored_config_of_the_former_gradient_method_is_one_of_captum():
    found = ExplainConfig.from_dict({**CaptumConfig(steps=5).to_dict(), "method": "gradient"})
    assert found == CaptumConfig(steps=5)
    assert GradientConfig is CaptumConfig


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "3", '"spes"', "null", b"\xff\xfe"])
def test_from_json_refuses_what_is_no_config(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match="config.json"):
        SpesConfig.from_json(path)


def test_from_json_of_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.json"):
        ExplainConfig.from_json(tmp_path / "nowhere.json")
    with pytest.raises(ConfigError):
        ExplainConfig.from_json(tmp_path)


def test_json_holds_no_nonstandard_number(tmp_path):
    SpesConfig(fill=-math.pi).to_json(tmp_path / "config.json")
    assert "NaN" not in (tmp_path / "config.json").read_text()
    assert SpesConfig.from_json(tmp_path / "config.json").fill == -math.pi


def test_a_config_of_before_does_what_it_did():
    """Tokens shared no passes, and maps had no prior; Eq. 3 has neither."""

    def before(config):
        return {k: v for k, v in config.to_dict().items() if k not in ("passes_per_mask", "prior_weight")}

    found = SpesConfig.from_dict(before(SpesConfig(masks_per_token=12)))
    assert (found.masks_per_token, found.passes_per_mask, found.prior_weight) == (12, None, 0.0)
    by_hand = SpesConfig.from_dict({"masks_per_token": 12})  # no version: written today
    assert by_hand == SpesConfig(masks_per_token=12)
    eq3 = SpesConfig.paper("asr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SpesConfig.from_dict(before(eq3)) == eq3

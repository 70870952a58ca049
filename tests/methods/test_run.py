import dataclasses

import numpy as np
import pytest
import torch

from spes_hf.adapters.base import Target, Utterance
from spes_hf.audio.load import Waveform
from spes_hf.errors import ConfigError
from spes_hf.functional import num_patches
from spes_hf.masking import segments
from spes_hf.masking.perturbations import (
    JointPerturbation,
    Masks,
    Perturbation,
    SpectrogramPerturbation,
    TokenPerturbation,
    fill_values,
)
from spes_hf.methods import EnergyConfig, ExplainConfig, RandomConfig, SpesConfig, list_methods, register_method
from spes_hf.methods.base import _METHODS
from spes_hf.methods.reading import token_run
from spes_hf.methods.run import Maps, Problem

T, C, K, P = 40, 8, 4, 2
CONFIG = SpesConfig(
    estimator="perturbation", num_spectrogram_masks=31, num_token_masks=7, patches_per_second=(20, 60, 120)
)


def problem(seed=0, utterance_id="clip", features=None):
    if features is None:
        features = torch.randn(T, C, generator=torch.Generator().manual_seed(1))
    utterance = Utterance(
        waveform=Waveform(np.zeros(6_400, np.float32), 16_000, "test"),
        features=features,
        inputs={},
        times=torch.arange(T) * 0.01,
        frequencies=torch.arange(C) * 100.0,
    )
    target = Target(prefix_ids=torch.arange(P), token_ids=torch.arange(K) + 10, complete=True)
    return Problem(utterance, target, torch.device("cpu"), seed, utterance_id)


class Counted(Perturbation):
    def __init__(self, num_masks, levels):
        self.num_masks, self.levels = num_masks, levels

    def draw(self, level, rows):
        raise AssertionError("never called")

    def apply(self, masks):
        raise AssertionError("never called")


@pytest.mark.parametrize(
    ("masks", "levels", "expected"),
    [
        (20_000, 3, [6_667, 6_667, 6_666]),
        (20_000, 1, [20_000]),
        (7, 3, [3, 2, 2]),
        (6, 3, [2, 2, 2]),
        (2, 3, [1, 1, 0]),
    ],
)
def test_masks_are_spread_evenly_over_the_levels(masks, levels, expected):
    perturbation = Counted(masks, levels)
    rows = [perturbation.rows(level) for level in range(levels)]
    assert [len(r) for r in rows] == expected
    assert all(r == range(len(r)) for r in rows)


def test_separate_runs():
    audio, token = CONFIG.plan(problem())
    assert isinstance(audio.perturbation, SpectrogramPerturbation)
    assert isinstance(token.perturbation, TokenPerturbation)
    assert audio.perturbation.num_masks == 31
    assert token.perturbation.num_masks == 7
    assert audio.perturbation.labels.shape == (3, T, C)
    assert audio.perturbation.units == tuple(int(level.max()) + 1 for level in audio.perturbation.labels)
    assert audio.perturbation.mask_prob == 0.5
    assert token.perturbation.mask_prob == 0.4
    assert token.perturbation.units == P + K - 1  # decoder inputs, prefix included


def test_spectrogram_masks_switch_whole_patches_to_the_fill():
    case = problem()
    audio, _ = dataclasses.replace(CONFIG, fill=-7.0).plan(case)
    for level in range(3):
        masks = audio.perturbation.draw(level, range(4, 9))
        assert masks.keep.shape == (5, audio.perturbation.units[level])
        assert masks.rows == range(4, 9)
        applied = audio.perturbation.apply(masks)
        assert applied.keys() == {"features"}  # clean tokens
        for row, features in zip(masks.keep, applied["features"], strict=True):
            kept = row[audio.perturbation.labels[level]]
            assert torch.equal(features[kept], case.utterance.features[kept])
            assert (features[~kept] == -7).all()


def test_fill_is_that_of_the_mel_bin():
    case = problem()
    audio, _ = CONFIG.plan(case)
    nothing_kept = Masks(torch.zeros(1, audio.perturbation.units[0], dtype=torch.bool), 0, range(1))
    features = audio.perturbation.apply(nothing_kept)["features"][0]
    torch.testing.assert_close(features, case.utterance.features.mean(0).expand(T, C))


def test_token_masks_leave_the_spectrogram_clean():
    token = token_run(CONFIG, problem())
    masks = token.perturbation.draw(0, range(2, 6))
    applied = token.perturbation.apply(masks)
    assert applied.keys() == {"token_keep"}
    assert torch.equal(applied["token_keep"], masks.keep)
    assert masks.keep.shape == (4, P + K - 1)


def test_joint_run():
    case = problem()
    (run,) = CONFIG.changed(perturb="joint").plan(case)
    joint, (separate, _) = run.perturbation, CONFIG.plan(case)
    assert isinstance(joint, JointPerturbation)
    assert joint.num_masks == 31  # N^X
    assert joint.levels == 3
    drawn = []
    for level in range(3):
        masks = joint.draw(level, range(5))
        units = joint.spectrogram.units[level]
        assert masks.keep.shape == (5, units + P + K - 1)
        assert torch.equal(masks.keep[:, :units], separate.perturbation.draw(level, range(5)).keep)
        applied = joint.apply(masks)
        assert applied.keys() == {"features", "token_keep"}
        assert torch.equal(applied["token_keep"], masks.keep[:, units:])
        expected = separate.perturbation.apply(separate.perturbation.draw(level, range(5)))["features"]
        assert torch.equal(applied["features"], expected)
        drawn.append(applied["token_keep"])
    assert not torch.equal(drawn[0], drawn[1])  # every level has token masks of its own


def test_joint_scores_are_taken_apart_and_tokens_pooled():
    (run,) = CONFIG.changed(perturb="joint").plan(problem())
    keeps, impacts = [], []
    for level in range(3):
        masks = run.perturbation.draw(level, run.perturbation.rows(level))
        impact = torch.rand(len(masks.rows), K, generator=torch.Generator().manual_seed(level))
        run.estimator.add(masks, impact)
        keeps.append(masks.keep)
        impacts.append(impact)
    maps = run.maps(torch.float32)
    audio, units = maps.audio, run.perturbation.spectrogram.units
    assert [tuple(n.shape) for n in audio.values] == [(K, u) for u in units]
    assert [tuple(d.shape) for d in audio.weights] == [(u,) for u in units]
    # Tokens are the same units at every level: one sum over all 31 masks.
    perturbed = torch.cat([~keep[:, u:] for keep, u in zip(keeps, units, strict=True)]).double()
    expected = (torch.cat(impacts).double().T @ perturbed / perturbed.sum(0)).float()
    valid = problem().target.valid
    torch.testing.assert_close(maps.token[valid], expected[valid])
    assert maps.token[~valid].isnan().all()
    assert maps.text_impact.isnan().all()  # no mask hid text alone


def test_every_level_is_segmented_once(monkeypatch):
    """Though φ = 400 is one of the masks', the tokens' and the sentence's."""
    asked, really = [], segments.slic_labels

    def counted(features, patches, *settings):
        asked.append(patches)
        return really(features, patches, *settings)

    monkeypatch.setattr(segments, "slic_labels", counted)
    case = problem()
    levels = {"pool_patches_per_second": (400.0, 1600.0), "sentence_patches_per_second": (80.0, 400.0)}
    SpesConfig(patches_per_second=400, **levels).plan(case)
    assert sorted(asked) == [num_patches(case.utterance.duration_s, phi, 7.5) for phi in (80, 400, 1600)]


def bits(runs):
    return [
        run.perturbation.draw(level, range(6)).keep.flatten().tolist()
        for run in runs
        for level in range(run.perturbation.levels)
    ]


def test_masks_depend_on_seed_and_utterance():
    base = bits(CONFIG.plan(problem()))
    assert bits(CONFIG.plan(problem())) == base
    for other in (problem(seed=1), problem(utterance_id="other")):
        for one, two in zip(bits(CONFIG.plan(other)), base, strict=True):
            assert one != two


def test_masks_do_not_depend_on_how_many_there_are():
    more = dataclasses.replace(CONFIG, num_spectrogram_masks=310, num_token_masks=70)
    assert bits(more.plan(problem())) == bits(CONFIG.plan(problem()))


def test_grid_ignores_the_spectrogram_more_than_slic():
    loud = torch.randn(T, C, generator=torch.Generator().manual_seed(2)) * torch.linspace(0, 5, T)[:, None]
    grid, slic = (
        SpesConfig(estimator="perturbation", segmentation=name, patches_per_second=(60,))
        .plan(problem(features=loud))[0]
        .perturbation.labels[0]
        for name in ("grid", "slic")
    )
    assert not torch.equal(grid, slic)


def test_fill_values():
    features = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    assert fill_values("mean", features).tolist() == [2.0, 1.0]
    assert fill_values("zero", features).tolist() == [0.0, 0.0]
    assert fill_values("min", features).tolist() == [-2.0, -2.0]  # of the whole spectrogram
    assert fill_values(0.5, features).tolist() == [0.5, 0.5]
    assert fill_values(-3, features).tolist() == [-3.0, -3.0]
    assert all(fill_values(fill, features).dtype == torch.float32 for fill in ("mean", "zero", "min", 1))


@pytest.mark.parametrize("config", [RandomConfig(), EnergyConfig()])
def test_methods_without_masks_plan_finished_maps(config):
    maps = Maps.merged(config.plan(problem()))
    assert maps.audio.values[0].shape == (K, T * C) and maps.audio.weights is None
    assert maps.sound_impact.isnan().all() and maps.text_impact.isnan().all()
    assert torch.equal(maps.token.isnan(), ~problem().target.valid)


class Unnamed(ExplainConfig):
    def plan(self, problem):
        return []


class Unplanned(ExplainConfig):
    method = "unplanned"


class Taken(SpesConfig):
    method = "energy"


@pytest.mark.parametrize(
    ("config_class", "why"),
    [
        (int, "pass a subclass of ExplainConfig"),
        (SpesConfig(), "pass a subclass of ExplainConfig"),
        (Unnamed, "Unnamed.method is None; allowed: a name"),
        (Unplanned, "Unplanned has no plan"),
        (Taken, "'energy' is taken by EnergyConfig"),
    ],
)
def test_a_method_that_cannot_be_registered_is_refused(config_class, why):
    before = dict(_METHODS)
    with pytest.raises(ConfigError, match=why):
        register_method(config_class)
    assert before == _METHODS


def test_methods_are_listed_by_their_own_names():
    assert list_methods() == ["attention", "bubble-noise", "captum", "energy", "feature-wise", "random", "spes"]


def test_a_config_without_a_plan_says_so():
    with pytest.raises(ConfigError, match="Unplanned has no plan; define its method plan"):
        Unplanned().plan(problem())


def test_the_base_class_is_no_method():
    with pytest.raises(ConfigError, match="ExplainConfig names no method"):
        ExplainConfig()


def test_gradients_come_in_pairs_and_eq_3_draws_masks_as_ever():
    case = problem()
    for estimator, design in (("gradient", "antithetic"), ("perturbation", "independent")):
        sound, _ = SpesConfig(estimator=estimator).plan(case)
        assert sound.perturbation.design == design
        sound, _ = SpesConfig(estimator=estimator, mask_design="balanced").plan(case)
        assert (sound.perturbation.design, sound.perturbation.block) == ("balanced", 8)

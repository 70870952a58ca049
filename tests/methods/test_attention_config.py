"""Cross-attention as a map: on random models what it is made of, on trained ones what it shows."""

from __future__ import annotations

import copy

import pytest
import torch

from spes_hf import AttentionConfig, ConfigError, Deletion, EnergyConfig, Explanation, Recording, SpesConfig, explain
from spes_hf.adapters import Target, get_adapter
from spes_hf.analysis.stats import rank_correlation
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.methods import ExplainConfig

SHORT = {"max_new_tokens": 6}


def run(small_whisper, tone, config, **kwargs):
    return explain(*small_whisper, tone, config=config, generate_kwargs=SHORT, progress=False, **kwargs)


@pytest.fixture(scope="module")
def weights(small_whisper, tone):
    """Cross-attention of the clean run, by the adapter: (2 layers, 2 heads, 6, 100)."""
    adapter = get_adapter(*small_whisper)
    found = run(small_whisper, tone, EnergyConfig())
    ids = torch.tensor(found.token_ids)
    target = Target(torch.tensor([50257, 50362]), ids, complete=False)
    return adapter.attention_weights(adapter.encode(load_audio(tone, 16_000, 16_000)), target)


@pytest.fixture(scope="module")
def english():
    return load_tiny_model("speech2text-en")


def over_time(explanation):
    """Return the map of a config without energy over time, (K, T)."""
    raw = explanation.raw_audio
    assert torch.equal(raw, raw[..., :1].expand_as(raw)), "constant over frequencies"
    return raw[..., 0]


# What it is made of ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, lambda w: w.mean((0, 1))),
        ({"layers": (-1,)}, lambda w: w[1].mean(0)),
        ({"layers": 0}, lambda w: w[0].mean(0)),
        ({"heads": ((0, 1), (-1, 0))}, lambda w: (w[0, 1] + w[1, 0]) / 2),
    ],
)
def test_the_map_is_the_mean_of_the_chosen_heads(small_whisper, tone, weights, settings, expected):
    profile = expected(weights)[:, :60].repeat_interleave(2, dim=1)  # 120 frames of 200
    found = run(small_whisper, tone, AttentionConfig(energy=False, **settings))
    torch.testing.assert_close(over_time(found), profile, atol=1e-6, rtol=0)
    assert found.audio_map.values[0].shape == (6, 60), "kept by position"
    loud = run(small_whisper, tone, AttentionConfig(**settings))
    energy = found.features - found.features.min()
    torch.testing.assert_close(loud.raw_audio, profile[..., None] * energy, atol=1e-5, rtol=0)
    constant = loud.raw_token[~loud.raw_token.isnan()]
    assert (constant == 0).all()
    assert found.evidence_unit(0) == "attention" and loud.evidence_unit(0) == "feature units"


def test_alignment_heads_are_those_of_the_generation_config(small_whisper, tone, weights):
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    model.generation_config.alignment_heads = [[1, 1], [0, 0]]
    found = run((model, processor), tone, AttentionConfig(heads="alignment", energy=False))
    expected = (weights[1, 1] + weights[0, 0])[:, :60].repeat_interleave(2, dim=1) / 2
    torch.testing.assert_close(over_time(found), expected, atol=1e-6, rtol=0)


def test_a_pass_of_the_decoder_is_all_that_it_takes(small_whisper, tone):
    assert run(small_whisper, tone, AttentionConfig()).provenance["cost"]["forward_passes"] == 4
    assert run(small_whisper, tone, EnergyConfig()).provenance["cost"]["forward_passes"] == 3


def test_rows_are_those_of_all_tokens(small_whisper, tone):
    whole = run(small_whisper, tone, AttentionConfig())
    part = run(small_whisper, tone, AttentionConfig(), tokens=[1, 4])
    assert torch.equal(part.raw_audio, whole.raw_audio[[1, 4]])


def test_a_contrast_has_the_attention_of_what_was_written(english):
    clip = tiny_clips()[0]["path"]
    plain = explain(*english, clip, config=AttentionConfig(), progress=False)
    words = plain.words()
    word = next(name.strip() for name in words.tokens if len(name.strip()) > 3 and words.tokens.count(name) == 1)
    found = explain(*english, clip, config=AttentionConfig(), foil={word: "red"}, progress=False)
    (contrast,) = found.contrasts
    torch.testing.assert_close(found.raw_audio[0], plain.raw_audio[list(contrast.tokens)].mean(0))
    assert found.provenance["cost"]["forward_passes"] == 4


def test_every_window_of_a_recording_has_its_own(whisper, jfk):
    samples = torch.from_numpy(load_audio(jfk, 16_000).samples).repeat(3)[: 33 * 16_000]
    config, settings = AttentionConfig(heads="alignment"), {"sampling_rate": 16_000, "progress": False}
    found = explain(*whisper, samples, config=config, generate_kwargs={"max_new_tokens": 12}, **settings)
    assert isinstance(found, Recording) and len(found) >= 2
    for each in found:
        assert each.method == "attention" and each.raw_audio.isfinite().all() and each.raw_audio.max() > 0


def test_it_survives_storage_and_is_judged_like_any_other(english, tmp_path):
    found = explain(*english, tiny_clips()[0]["path"], config=AttentionConfig(energy=False, layers=-1), progress=False)
    loaded = Explanation.load(found.save(tmp_path / "clip"))
    assert torch.equal(loaded.raw_audio, found.raw_audio)
    assert ExplainConfig.from_dict(dict(loaded.origin.config)) == AttentionConfig(energy=False, layers=(-1,))
    assert Deletion(*english, (0.0, 0.5, 1.0), against="prediction")(loaded)["deletion"]["method"].startswith(
        "attention"
    )
    pairs = AttentionConfig(heads=[[0, 1], [1, 1]])
    pairs.to_json(tmp_path / "config.json")
    assert ExplainConfig.from_json(tmp_path / "config.json") == pairs and pairs.heads == ((0, 1), (1, 1))


# What it shows --------------------------------------------------------------------------------------------------------


def test_attention_follows_the_order_of_the_words(english):
    """On a trained model: the later the word, the later it attends."""
    for clip in tiny_clips()[:3]:
        words = explain(*english, clip["path"], config=AttentionConfig(energy=False), progress=False).words()
        profile = over_time(words)
        centres = (profile * words.times).sum(1) / profile.sum(1)
        assert rank_correlation(range(len(centres)), centres.numpy()).statistic > 0.8


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, r"layers is \(\); allowed: distinct indices of decoder layers"),
        ({"layers": (0, 0)}, "distinct indices"),
        ({"layers": (0.5,)}, "allowed: distinct indices of decoder layers"),
        ({"layers": True}, "layers is True"),
        ({"heads": "some"}, 'heads is \'some\'; allowed: "all", "alignment" or pairs'),
        ({"heads": ()}, "heads is ()"),
        ({"heads": (0, 1)}, r"pairs \(layer, head\)"),
        ({"heads": ((0, 1), (0, 1))}, r"pairs \(layer, head\)"),
        ({"heads": ((0, 1, 2),)}, r"pairs \(layer, head\)"),
        ({"heads": None}, "heads is None"),
        ({"energy": 1}, "energy is 1; allowed: True, False"),
        ({"num_token_masks": 5}, "num_token_masks is 5; allowed: 0, since"),
        ({"fill": "zero"}, "fill is 'zero'.*does not read it"),
    ],
)
def test_bad_values_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message.replace("is ()", r"is \(\)")):
        AttentionConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (0, 2)}, r"AttentionConfig.layers is \(0, 2\), but the model has no 2; allowed: layers 0 … 1"),
        ({"layers": (-3,)}, "has no -3"),
        ({"heads": ((0, 0), (1, 2))}, r"has no \(1, 2\); allowed: layers 0 … 1, heads 0 … 1"),
        ({"heads": "alignment"}, "'alignment', but the model has no"),  # those of a larger model
    ],
)
def test_layers_and_heads_that_the_model_has_not_are_refused(small_whisper, tone, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(small_whisper, tone, AttentionConfig(**settings))


def test_alignment_heads_that_nobody_has_said_are_refused(english):
    with pytest.raises(ConfigError, match=r'AttentionConfig.heads is "alignment", but .*; pass heads="all", or pairs'):
        explain(*english, tiny_clips()[0]["path"], config=AttentionConfig(heads="alignment"), progress=False)


def test_other_methods_ask_the_model_for_nothing_more(small_whisper, tone):
    config = SpesConfig(num_spectrogram_masks=2, masks_per_token=2, num_token_masks=2)
    assert run(small_whisper, tone, config).provenance["cost"]["forward_passes"] == 3 + 2 + 2

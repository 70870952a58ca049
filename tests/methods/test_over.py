"""Saliency over the encoder's output: on random models what it is, on trained ones what it shows."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from agreement import assert_raw_maps_agree

from spes_hf import (
    AttentionConfig,
    ConfigError,
    EnergyConfig,
    Explain,
    Explainer,
    Explanation,
    ExplanationFormatError,
    Recording,
    SpesConfig,
    explain,
    functional,
)
from spes_hf.adapters import get_adapter
from spes_hf.analysis.stats import rank_correlation
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation.timestamps import without_timestamps
from spes_hf.masking.draw import keep_bits, mask_key
from spes_hf.masking.perturbations import EncoderPerturbation

SHORT = {"max_new_tokens": 6}
GRADIENT = SpesConfig(num_spectrogram_masks=4, masks_per_token=4, num_token_masks=20)
EQ3 = SpesConfig(estimator="perturbation", num_spectrogram_masks=4, num_token_masks=30, patches_per_second=(40.0,))
CONFIGS = {"gradient": GRADIENT, "Eq. 3": EQ3}


def run(small_whisper, tone, config, **kwargs):
    return explain(*small_whisper, tone, config=config, generate_kwargs=SHORT, progress=False, **kwargs)


@pytest.fixture(scope="module")
def results(small_whisper, tone):
    return {name: run(small_whisper, tone, config, over="encoder") for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def english():
    return load_tiny_model("speech2text-en")


# What it is -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_other_maps_stay_the_same_bit_for_bit(small_whisper, tone, results, name):
    plain, found = run(small_whisper, tone, CONFIGS[name]), results[name]
    for attribute in ("raw_audio", "raw_token", "sentence_saliency", "sound_bits", "text_bits", "probabilities"):
        one, other = getattr(plain, attribute).nan_to_num(7.0), getattr(found, attribute).nan_to_num(7.0)
        assert torch.equal(one, other), attribute
    assert torch.equal(plain.reliability.tokens.nan_to_num(7.0), found.reliability.tokens.nan_to_num(7.0))


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_times_and_passes(results, name):
    found = results[name]
    assert found.raw_encoder.shape == found.encoder_saliency.shape == (6, 60)  # of 100, the rest is padding
    assert found.encoder_saliency.min() == 0 and found.encoder_saliency.max() == 1
    torch.testing.assert_close(found.encoder_times, found.times[::2])
    cost = found.provenance["cost"]
    assert found.provenance["over"] == found.origin.over == "encoder"
    passes = {"gradient": (3 + 1 + 4 + 4 + 20 + 20, 4 * (5 + 1)), "Eq. 3": (3 + 4 + 30 + 30, 0)}[name]
    assert (cost["forward_passes"], cost["backward_passes"]) == passes


def test_without_it_the_provenance_is_as_before(small_whisper, tone):
    found = run(small_whisper, tone, EnergyConfig())
    assert "over" not in found.provenance and found.origin.over == "spectrogram" and found.encoder_map is None
    for name in ("raw_encoder", "encoder_saliency", "encoder_times", "encoder_positions"):
        with pytest.raises(ValueError, match=r'no map of the encoder\'s output; pass over="encoder" to explain'):
            getattr(found, name)


def literal_impacts(small_whisper, tone, token_ids, keep):
    """Return the KL divergences, (B, K), with positions set to the mean state, one plain call for each mask."""
    model, processor = small_whisper
    adapter = get_adapter(model, processor)
    utterance = adapter.encode(load_audio(tone, 16_000, 16_000))
    ids = torch.tensor([[50257, 50362, *token_ids]])[:, :-1]
    found = []
    with torch.no_grad():
        states = model.get_encoder()(utterance.inputs["input_features"]).last_hidden_state
        mean = states[:, :60].mean(1)

        def logits(states):
            return model(encoder_outputs=(states,), decoder_input_ids=ids).logits[0, 1:]

        clean = logits(states)
        for mask in keep:
            changed = states.clone()
            for s in (~mask).nonzero()[:, 0].tolist():
                changed[:, s] = mean
            found.append(functional.kl_divergence(clean, logits(changed)))
    return torch.stack(found)


def test_eq_3_over_positions_one_mask_at_a_time(small_whisper, tone, results):
    found = results["Eq. 3"]
    keep = torch.from_numpy(keep_bits(mask_key(0, "", "encoder"), 0, 30, 60, 0.5))
    impacts = literal_impacts(small_whisper, tone, found.token_ids, keep)
    assert_raw_maps_agree(found.raw_encoder, functional.saliency(keep.float(), impacts))


def test_the_estimator_of_the_spectrogram_makes_no_difference(small_whisper, tone, results):
    config = GRADIENT.changed(num_token_masks=30)
    found = run(small_whisper, tone, config, over="encoder")
    assert_raw_maps_agree(found.raw_encoder, results["Eq. 3"].raw_encoder)


@pytest.mark.parametrize("name", CONFIGS)
def test_same_masks_whatever_the_batch_and_others_with_another_seed(small_whisper, tone, results, name):
    for batch_size in (1, 3):
        again = run(small_whisper, tone, CONFIGS[name], over="encoder", batch_size=batch_size)
        assert_raw_maps_agree(again.raw_encoder, results[name].raw_encoder, share=5e-4)
    other = run(small_whisper, tone, CONFIGS[name], over="encoder", seed=1)
    assert not torch.allclose(other.raw_encoder, results[name].raw_encoder)


def test_padding_is_never_perturbed_and_what_is_kept_stays_exact():
    states = torch.randn(1, 10, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    perturbation = EncoderPerturbation(states, units=6, key=3, mask_prob=0.5, num_masks=8)
    masks = perturbation.draw(0, range(2, 7))
    found = perturbation.apply(masks)["states"]
    assert found.shape == (5, 10, 4) and found.dtype == torch.bfloat16
    assert torch.equal(found[:, 6:], states[:, 6:].expand(5, -1, -1))
    sound, mean = (
        values.expand(5, -1, -1) for values in (states[:, :6], states[:, :6].float().mean(1, True).bfloat16())
    )
    assert torch.equal(found[:, :6][masks.keep], sound[masks.keep])
    assert torch.equal(found[:, :6][~masks.keep], mean.expand(5, 6, -1)[~masks.keep])


def test_joint_perturbation_has_its_masks_too(small_whisper, tone):
    config = EQ3.changed(perturb="joint", num_spectrogram_masks=7)
    found = run(small_whisper, tone, config, over="encoder")
    assert found.raw_encoder.shape == (6, 60) and found.provenance["cost"]["forward_passes"] == 3 + 7 + 7


def test_attention_over_the_encoder_is_attention(small_whisper, tone):
    found = run(small_whisper, tone, AttentionConfig(energy=False), over="encoder")
    torch.testing.assert_close(found.encoder_positions.spread(found.raw_encoder), found.raw_audio[..., 0])
    assert found.provenance["cost"]["forward_passes"] == 4


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_has_one(name):
    config = CONFIGS[name]
    for model, settings, stride in (("speech2text-en", {}, 4), ("seamless-en-de-es", {"tgt_lang": "deu"}, None)):
        found = explain(
            *load_tiny_model(model), tiny_clips()[0]["path"], config=config, over="encoder", progress=False, **settings
        )
        assert found.raw_encoder.shape == (len(found), len(found.encoder_times))
        assert found.raw_encoder.isfinite().all() and (found.raw_encoder.std(1) > 0).all()
        assert stride is None or len(found.encoder_times) == (len(found.times) - 1) // stride + 1
        pooled = found.encoder_positions.pool(found.raw_audio.mean(2))
        assert pooled.shape == found.raw_encoder.shape


# Rows, words, foils, recordings ---------------------------------------------------------------------------------------


def test_some_tokens_alone_have_the_same_maps(small_whisper, tone, results):
    for name, config in CONFIGS.items():
        part = run(small_whisper, tone, config, over="encoder", tokens=[1, 4])
        assert_raw_maps_agree(part.raw_encoder, results[name].raw_encoder[[1, 4]], share=5e-4)


def test_words_are_means_over_their_tokens(english):
    found = explain(*english, tiny_clips()[0]["path"], config=GRADIENT, over="encoder", progress=False)
    words = found.words()
    for group, raw, normalised in zip(words.groups, words.raw_encoder, words.encoder_saliency, strict=True):
        torch.testing.assert_close(raw, found.raw_encoder[list(group)].mean(0))
        torch.testing.assert_close(normalised, found.encoder_saliency[list(group)].mean(0))
    assert torch.equal(words.encoder_times, found.encoder_times)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_foil_has_signed_maps(english, name):
    clip = tiny_clips()[0]["path"]
    names = explain(*english, clip, config=EnergyConfig(), progress=False).words().tokens
    word = next(each.strip() for each in names if len(each.strip()) > 3 and names.count(each) == 1)
    found = explain(*english, clip, config=CONFIGS[name], foil={word: "red"}, over="encoder", progress=False)
    assert found.raw_encoder.shape == (1, len(found.encoder_times))
    assert found.raw_encoder.min() < 0 < found.raw_encoder.max()


def test_every_window_of_a_recording_has_one(english, tmp_path):
    samples = torch.cat([torch.from_numpy(load_audio(clip["path"], 16_000).samples) for clip in tiny_clips()[:2]])
    settings = {"sampling_rate": 16_000, "config": GRADIENT, "segment": "pauses", "progress": False}
    folder = tmp_path / "recording"
    found = explain(*english, samples, over="encoder", folder=folder, **settings)
    assert isinstance(found, Recording) and len(found) >= 1
    for window in found:
        assert window.raw_encoder.isfinite().all() and window.origin.over == "encoder"
        assert window.encoder_times[0] >= window.times[0] - 1e-3
    again = Recording.from_row(found.to_row())
    assert torch.equal(again[0].raw_encoder, found[0].raw_encoder)
    with pytest.raises(ConfigError, match="different: over"):
        explain(*english, samples, folder=folder, **settings)


def test_timestamps_are_left_out_as_rows(results):
    found = results["gradient"]
    some = dataclasses.replace(found.part or _part_of(found), timestamps=(False, True, False, False, False, False))
    spoken = without_timestamps(dataclasses.replace(found, part=some))
    rows = [0, 2, 3, 4, 5]
    assert torch.equal(spoken.raw_encoder, found.raw_encoder[rows])
    assert torch.equal(spoken.encoder_saliency, found.encoder_saliency[rows])


def _part_of(found):
    from spes_hf.explanation.parts import Part

    k = len(found.pieces)
    bits = tuple(found.token_sound_bits.tolist())
    return Part(tuple(range(k)), found.token_id_list, found.pieces, found.special, bits, (False,) * k)


# Storage and jobs -----------------------------------------------------------------------------------------------------


def test_it_is_stored_and_read_again(results, tmp_path):
    found = results["gradient"]
    for again in (Explanation.load(found.save(tmp_path / "clip")), Explanation.from_row(found.to_row())):
        assert torch.equal(again.raw_encoder, found.raw_encoder)
        assert torch.equal(again.encoder_times, found.encoder_times)
        torch.testing.assert_close(again.words().encoder_saliency, found.words().encoder_saliency)
    without = dataclasses.replace(found, encoder_map=None)
    versions = [
        json.loads((each.save(tmp_path / name) / "explanation.json").read_text(encoding="utf-8"))["format_version"]
        for name, each in (("with", found), ("without", without))
    ]
    assert versions[0] == versions[1], "earlier versions read all but the new map"


def test_damaged_maps_are_refused(results):
    found = results["gradient"]
    for scores, times in (
        (found.raw_encoder[:2], found.encoder_times),
        (found.raw_encoder, found.encoder_times[:-1]),
        (found.raw_encoder * float("nan"), found.encoder_times),
        (found.raw_encoder[:, :0], found.encoder_times[:0]),
        (found.raw_encoder, found.encoder_times * float("inf")),
    ):
        damaged = dataclasses.replace(found, encoder_map=type(found.encoder_map)(scores, times))
        with pytest.raises(ExplanationFormatError, match="encoder_map"):
            Explanation.from_row(damaged.to_row())


def test_the_transform_passes_it_on_and_jobs_of_before_go_on(english):
    transform = Explain(*english, GRADIENT, over="encoder")
    row = transform({"audio": tiny_clips()[0]["path"], "id": "a"})
    assert row["error"] == "" and Explanation.from_row(row).raw_encoder.isfinite().all()
    plain, before = Explain(*english, GRADIENT).identity(), transform.identity()
    assert plain["over"] is None and before["over"] == "encoder"
    with pytest.raises(ConfigError, match="over is 'encoder', but config is a EnergyConfig"):
        Explain(*english, EnergyConfig(), over="encoder")


# What it shows --------------------------------------------------------------------------------------------------------


def test_the_map_follows_the_words(english):
    """On a trained model: what a word rests on in the encoder's output lies where it is spoken, one after the other."""
    explainer = Explainer(*english, SpesConfig(num_spectrogram_masks=1, masks_per_token=1), progress=False)
    found, inside = [], []
    for clip in tiny_clips()[:5]:
        words = explainer(clip["path"], over="encoder").words()
        rows = [row for row, name in enumerate(words.tokens) if name.strip().isalpha()]
        names = [words.tokens[row].strip().lower() for row in rows]
        raw = words.raw_encoder[rows]
        excess = (raw - raw.mean(1, keepdim=True)).clamp_min(0) ** 2
        centres = (excess * words.encoder_times).sum(1) / excess.sum(1)
        found.append(rank_correlation(range(len(rows)), centres.numpy()).statistic)
        peaks = dict(zip(names, words.encoder_times[raw.argmax(1)].tolist(), strict=True))
        for word in clip["words"]:
            name = word["word"].strip(".,").lower()
            if names.count(name) == 1:
                inside.append(word["start"] - 0.05 <= peaks[name] <= word["end"] + 0.05)
    assert min(found) > 0.8 and sum(found) / len(found) > 0.9
    assert len(inside) > 20 and sum(inside) / len(inside) > 0.85


# What is refused ------------------------------------------------------------------------------------------------------


def test_bad_values_are_refused(small_whisper, tone):
    with pytest.raises(ConfigError, match="over is 'decoder'; allowed: 'spectrogram', 'encoder'"):
        run(small_whisper, tone, GRADIENT, over="decoder")
    with pytest.raises(
        ConfigError, match="config is a EnergyConfig.*pass one of AttentionConfig, SpesConfig as config"
    ):
        run(small_whisper, tone, EnergyConfig(), over="encoder")


def test_a_method_that_promises_a_map_must_draw_it(small_whisper, tone):
    class Promising(EnergyConfig):
        overs = ("spectrogram", "encoder")

    with pytest.raises(ConfigError, match="'energy' returned no map of the encoder's output"):
        run(small_whisper, tone, Promising(), over="encoder")


def test_the_model_is_left_as_it_was(small_whisper, tone, results):
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = run((model, processor), tone, GRADIENT, over="encoder")
    assert_raw_maps_agree(found.raw_encoder, results["gradient"].raw_encoder, share=5e-4)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())

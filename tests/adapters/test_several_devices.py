"""Models that lie on several devices: what they find is what they find on one, wherever their parts lie.

The devices are pretended ones, on which tensors may not meet those of another (`pretended_devices`), and real ones
where a machine has two.
"""

from __future__ import annotations

import agreement
import numpy as np
import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils.modeling import compute_module_sizes
from pretended_devices import pretended, pretended_devices, run_alone, starts_them
from test_contract import plain_inputs
from test_offload import state
from test_wrappers import FOUR, explained
from tiny import VARIED
from tiny_fast_conformers import FAST_CONFORMERS
from tiny_llm import LLMS
from torch import nn
from torch.utils._pytree import tree_leaves

from spes_hf import (
    AttentionConfig,
    ContrastiveDeletion,
    Deletion,
    SpesConfig,
    UnsupportedModelError,
    WordDeletion,
    diagnose,
    explain,
    sound_check,
)
from spes_hf.adapters import get_adapter

FEW = SpesConfig(estimator="perturbation", num_spectrogram_masks=4, num_token_masks=3, patches_per_second=(40, 80))
GRADIENT = SpesConfig(estimator="gradient", num_spectrogram_masks=2, masks_per_token=1, num_token_masks=2)

# Qwen3-ASR adds to its audio in place, which its encoder can only do where it lies whole.
ROOM = {"qwen3_asr": 0.7}
SHARES = {FEW: agreement.EQ_3, GRADIENT: agreement.GRADIENT}


def close(found, expected, share):
    """What is the same but for rounding: attention runs by other code on other devices."""
    assert found.token_ids == expected.token_ids
    for name in ("raw_audio", "raw_token"):
        values, wanted = getattr(found, name), getattr(expected, name)
        assert torch.equal(values.isnan(), wanted.isnan())
        for row, own in zip(values, wanted, strict=True):
            assert agreement.largest(row - own) <= agreement.raw_error(own, share)
    torch.testing.assert_close(found.sound_bits, expected.sound_bits, rtol=1e-4, atol=1e-4)


def parts(case, model):
    """Return the names of the encoder, the decoder, and what belongs to neither."""
    encoder = {"model.decoder": "model.encoder", "text_decoder": "speech_encoder"}[case.family.decoder]
    head = case.family.decoder.rpartition(".")[0]
    outside = [name for name, _ in model.named_children() if name not in (encoder, case.family.decoder, head)]
    return encoder, case.family.decoder, outside


def halves(case, model, one, other):
    """The encoder on one device, all that writes on the other."""
    encoder, decoder, outside = parts(case, model)
    return {encoder: one, **dict.fromkeys((decoder, *outside), other)}


def scattered(case, model, one, other):
    """The encoder and the first layer of the decoder on one device; the embedding, whose weights are also those of the
    output layer, and the last layer of the decoder, with a cache of its own, on the other, which is the main device."""
    encoder, decoder, outside = parts(case, model)
    inside = [name for name, _ in model.get_submodule(decoder).named_children() if name != "layers"]
    layers = [f"{decoder}.layers.{i}" for i in range(len(model.get_submodule(decoder).layers))]
    here = dict.fromkeys((encoder, *layers[:-1]), other)
    return {**here, **dict.fromkeys((*(f"{decoder}.{name}" for name in inside), layers[-1], *outside), one)}


PLACES = {"halves": halves, "scattered": scattered}


def automatic(model, one, other, share):
    """Return the map that Accelerate makes where this share of the model fits on the first device."""
    total = compute_module_sizes(model)[""]
    room, whole = {0: int(share * total), 1: total}, model._no_split_modules
    return {name: (one, other)[i] for name, i in infer_auto_device_map(model, room, whole).items()}


@pytest.fixture(scope="module")
def on_one(cases):
    """Function that returns what a family's model finds where it lies on one device, found once."""
    made = {}

    def of(name, **kwargs):
        key = (name, repr(kwargs))
        if key not in made:
            made[key] = explained(cases(name), cases(name).model, **kwargs)
        return made[key]

    return of


@starts_them
def test_pretended_devices_in_a_process_of_their_own():
    run_alone(__file__)


@pretended
def test_pretended_devices_keep_tensors_apart():
    numbers, graph = torch.arange(6.0).view(2, 3), torch.ones(2, 3, requires_grad=True)
    with pretended_devices():
        here, there = numbers.to("pretended:0"), numbers.to("pretended:1")
        assert (here.device.index, there.device.index) == (0, 1)
        for others in (there, numbers):
            with pytest.raises(RuntimeError, match="same device"):
                here + others
        assert torch.equal((here + there.to(here.device)).cpu(), 2 * numbers)
        assert torch.arange(3, device="pretended:1").device == there.device and there.sum().item() == 15
        (gradient,) = torch.autograd.grad(((graph.to("pretended:0") * here).to("pretended:1") * there).sum(), graph)
    assert torch.equal(gradient, numbers * numbers)
    assert not torch.accelerator.is_available()


@pretended
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", FOUR)
def test_split_model_equals_the_model(cases, on_one, two, name, where):
    case = cases(name)
    model, _ = case.copy()
    model = dispatch_model(model, PLACES[where](case, model, *two), main_device=two[0])
    assert len({weight.device for weight in model.parameters()}) == 2
    model.train()
    before = state(model)
    for config in (FEW, GRADIENT):
        found = explained(case, model, config=config)
        close(found, on_one(name, config=config), SHARES[config])
        assert found.provenance["model"]["device"] == two[where == "scattered"]
        assert state(model) == before


@pretended
@pytest.mark.parametrize(
    "name", ["whisper-en", "seamless_m4t", *FAST_CONFORMERS, *(name for name in LLMS if name != "granite_speech")]
)
def test_model_with_an_automatic_map_equals_the_model(cases, on_one, two, name):
    case = cases(name)
    model, _ = case.copy()
    model = dispatch_model(model, automatic(model, *two, ROOM.get(name, 0.5)), main_device=two[0])
    assert len({weight.device for weight in model.parameters()}) == 2
    for config in (FEW, GRADIENT):
        close(explained(case, model, config=config), on_one(name, config=config), SHARES[config])


@pretended
def test_granite_speech_is_refused(cases, two):
    """Its own code picks the audio by a mask on the encoder's device, where text and audio meet on the other."""
    case = cases("granite_speech")
    model, _ = case.copy()
    places = {f"model.{name}": two[name == "language_model"] for name, _ in model.model.named_children()}
    model = dispatch_model(model, {**places, "lm_head": two[1]}, main_device=two[0])
    assert len({weight.device for weight in model.parameters()}) == 2
    with pytest.raises(UnsupportedModelError, match=r"GraniteSpeech.*does not run with its device_map"):
        explained(case, model, config=FEW)


@pretended
@pytest.mark.parametrize("name, elsewhere", zip(FOUR, ["cpu", "disk", "cpu", "disk"], strict=True))
def test_model_that_is_partly_offloaded_equals_the_model(cases, on_one, two, tmp_path, name, elsewhere):
    """An accelerator that holds a part, and gets the rest when it is needed."""
    case = cases(name)
    model, _ = case.copy()
    weights = list(model.parameters())  # Accelerate knows tied weights by their address, which must not be used again
    model = dispatch_model(model, halves(case, model, elsewhere, two[1]), offload_dir=str(tmp_path / "weights"))
    assert len(weights) == len(list(model.parameters()))
    assert any(weight.is_meta for weight in model.parameters())
    before = state(model)
    for config in (FEW, GRADIENT):
        close(explained(case, model, config=config), on_one(name, config=config), SHARES[config])
        assert state(model) == before


@pretended
@pytest.mark.parametrize("name", FOUR)
def test_every_question_takes_a_split_model(cases, two, name):
    case = cases(name)
    split, _ = case.copy()
    split = dispatch_model(split, scattered(case, split, *two), main_device=two[0])
    settings = {**case.family.options, "generate_kwargs": VARIED}
    quiet = {**settings, "progress": False}
    answers = []
    for model in (case.model, split):
        written = explain(model, case.processor, case.audio, config=FEW, over="encoder", **quiet)
        by_gradient = explain(model, case.processor, case.audio, config=GRADIENT, over="encoder", **quiet)
        given = {**quiet, "text": "der kleine hund"}
        contrast = explain(model, case.processor, case.audio, config=GRADIENT, foil={"kleine": "garten"}, **given)
        attention = explain(model, case.processor, case.audio, config=AttentionConfig(), **given)
        row = {"explanation": written}
        curves = [
            Deletion(model, case.processor, (0.0, 1.0))(row)["deletion"]["texts"],
            WordDeletion(model, case.processor, (0.0, 0.5))({"explanation": attention})["word_deletion"],
            ContrastiveDeletion(model, case.processor, (0.0, 0.5))({"explanation": contrast})["contrastive_deletion"],
        ]
        heard = sound_check(model, case.processor, case.audio, text="der kleine hund", **settings)
        judged = diagnose(model, case.processor, case.audio, "der garten hund", config=GRADIENT, **given)
        found = [written.raw_encoder, by_gradient.raw_encoder, contrast.raw_audio, contrast.log_odds]
        answers.append([*found, attention.raw_audio, torch.tensor(heard.word_bits), curves, judged])
    for expected, found in zip(*answers, strict=True):
        if isinstance(expected, torch.Tensor):
            assert agreement.largest(found - expected) <= agreement.raw_error(expected, agreement.GRADIENT)
        elif isinstance(expected, list):
            found, expected = tree_leaves(found), tree_leaves(expected)
            numbers = [[v for v in values if isinstance(v, float)] for values in (found, expected)]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-6)
            assert [v for v in found if not isinstance(v, float)] == [v for v in expected if not isinstance(v, float)]
        else:
            assert str(found) == str(expected)  # verdicts, and bits to one decimal


@pretended
def test_recording_takes_a_split_model(cases, two):
    case = cases("whisper-en")
    sound = (0.1 * np.random.default_rng(0).standard_normal(5 * 16_000)).astype(np.float32)
    split, _ = case.copy()
    split = dispatch_model(split, scattered(case, split, *two), main_device=two[0])
    settings = {"config": FEW, "generate_kwargs": {"max_new_tokens": 6}, "progress": False}
    expected, found = (explain(model, case.processor, sound, 16_000, **settings) for model in (case.model, split))
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        close(one, other, SHARES[FEW])


@pretended
def test_part_that_a_map_tears_apart_is_named(cases, two):
    """Speech2Text adds positions to what its convolutions make, and moves neither."""
    case = cases("speech_to_text")
    model, _ = case.copy()
    where = {f"model.encoder.{name}": two[0] for name, _ in model.model.encoder.named_children()}
    where |= {"model.encoder.embed_positions": two[1], "model.decoder": two[1], "lm_head": two[1]}
    model = dispatch_model(model, where, main_device=two[0])
    with pytest.raises(RuntimeError, match="same device"):
        model(**{k: v.to(two[0]) for k, v in plain_inputs(case).items()}, decoder_input_ids=torch.tensor([[2]]))
    before = state(model)
    with pytest.raises(UnsupportedModelError, match=r"device_map.*same device.*_no_split_modules"):
        explained(case, model, config=FEW)
    assert state(model) == before


@pretended
@pytest.mark.parametrize("name", FOUR)
def test_model_in_pieces_without_hooks_is_refused(cases, two, name):
    case = cases(name)
    model, _ = case.copy()
    model.get_submodule(case.family.decoder).to("meta")  # a device that every machine has
    for module in model.get_submodule(case.family.decoder).modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                module._parameters[key] = nn.Parameter(torch.zeros(weight.shape, device="cpu").to(two[1]))
    with pytest.raises(
        UnsupportedModelError, match=r"is spread over cpu and pretended:1, but nothing moves.*device_map"
    ):
        get_adapter(model, case.processor)
    model.register_forward_pre_hook(lambda *inputs: None)  # of the user's, who may know what it moves
    assert get_adapter(model, case.processor).model is model


@pytest.mark.parametrize("name", [*FOUR, *FAST_CONFORMERS])
def test_no_other_family_has_a_plan_of_tensor_parallelism(cases, name):
    """docs/scaling.md says so; when transformers has one, a test of it belongs here."""
    assert not cases(name).model.supports_tp_plan


@pytest.mark.parametrize("name", LLMS)
def test_speech_llms_have_a_plan_of_tensor_parallelism(cases, name):
    """It is refused (`tests/runtime/test_sharding.py`)."""
    assert cases(name).model.supports_tp_plan


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", FOUR)
def test_two_real_devices_agree_with_one(cases, name, where):
    case = cases(name)
    one, _ = case.copy()
    split, _ = case.copy()
    split = dispatch_model(split, PLACES[where](case, split, "cuda:0", "cuda:1"), main_device="cuda:0")
    for config in (FEW, GRADIENT):
        expected = explained(case, one.to("cuda:0"), config=config, text="der garten")
        found = explained(case, split, config=config, text="der garten")
        share = 1e-3 * float(expected.raw_audio.abs().max())
        torch.testing.assert_close(found.raw_audio, expected.raw_audio, rtol=1e-3, atol=share)
        torch.testing.assert_close(found.raw_token, expected.raw_token, rtol=1e-3, atol=share, equal_nan=True)

"""Quantised models: gradients are taken where they pass, and refused where they do not."""

from __future__ import annotations

import copy

import bitsandbytes
import pytest
import torch
from test_contract import FEW, plain_inputs
from test_wrappers import FOUR, GRADIENT, explained, with_lora
from torch import nn

from spes_hf import CaptumConfig, UnsupportedModelError
from spes_hf.adapters import get_adapter, probe
from spes_hf.runtime.identity import model_identity
from spes_hf.runtime.wrapping import as_it_is

REFUSED = (
    "no gradients flow through the model, since some weights are quantised or were created in inference mode"
    ".*estimator=.perturbation"
)


def quantised(model, make):
    """Return the model with its linear layers, but the output's, made anew by a function."""
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and not name.endswith(("proj_out", "lm_head")):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make(layer))
    return model


def four_bit(layer):
    made = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, torch.float32, quant_type="nf4"
    )
    made.load_state_dict(layer.state_dict())
    return made.to("cpu").requires_grad_(False)


def eight_bit(layer):
    made = bitsandbytes.nn.Linear8bitLt(
        layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False, threshold=6.0
    )
    made.load_state_dict(layer.state_dict())
    return made.to("cpu").requires_grad_(False)


BITS = {"4 bit": four_bit, "8 bit": eight_bit}


def dynamic(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def bare_gradient(case, model):
    """Return the gradient of the clean output's log-probability, by a bare call of the model."""
    inputs = plain_inputs(case)
    inputs["input_features"] = inputs["input_features"].requires_grad_()
    logits = model(**inputs, decoder_input_ids=case.target.context_ids[None]).logits
    logits = logits[0, len(case.target.prefix_ids) - 1 :].log_softmax(-1)
    value = logits.gather(1, case.target.token_ids[:, None]).sum()
    return torch.autograd.grad(value, inputs["input_features"])[0]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", FOUR)
def test_bitsandbytes_model_is_explained_by_gradients(cases, name, bits):
    case = cases(name)
    model = quantised(case.copy()[0], BITS[bits])
    model.is_quantized = True  # as from_pretrained() marks it
    needed = [weight.requires_grad for weight in model.parameters()]
    before = model_identity(model)
    adapter = get_adapter(model, case.processor)
    assert adapter.differentiable
    found = explained(case, model, config=GRADIENT)
    assert "weights" not in found.provenance["model"]  # reading them would unpack them
    assert found.raw_audio.isfinite().all() and (found.raw_audio.abs().amax((1, 2)) > 0).all()
    assert [weight.requires_grad for weight in model.parameters()] == needed
    assert all(weight.grad is None for weight in model.parameters())
    assert model_identity(model) == before
    # The adapter's gradient is that of a bare call.
    features = case.utterance.features[None].clone().requires_grad_()
    model.train()  # or else bitsandbytes packs 4-bit weights for the CPU, which stops gradients
    for layer in model.modules():
        layer.training = isinstance(layer, bitsandbytes.nn.Linear4bit)
    logits = adapter.logits(case.utterance, case.target, features=features)[0].log_softmax(-1)
    (gradient,) = torch.autograd.grad(logits.gather(1, case.target.token_ids[:, None]).sum(), features)
    expected = bare_gradient(case, model)[0]
    expected = expected.T if name == "whisper-en" else expected.reshape(-1, 80)
    torch.testing.assert_close(gradient[0], expected[: len(gradient[0])], rtol=1e-3, atol=1e-4)
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("bits", BITS)
def test_adapter_on_a_quantised_model(cases, bits):
    """QLoRA: the adapter's layers around quantised ones."""
    case = cases("whisper-en")
    model = quantised(case.copy()[0], BITS[bits])
    wrapped = with_lora(model, "SEQ_2_SEQ_LM", target_modules=["q_proj", "fc1"])
    assert get_adapter(wrapped, case.processor).differentiable
    found = explained(case, wrapped, config=GRADIENT)
    assert (found.raw_audio.abs().amax((1, 2)) > 0).all()


@pytest.mark.parametrize("name", FOUR)
def test_dynamically_quantised_model_is_refused(cases, name):
    case = cases(name)
    model = dynamic(case.copy()[0])
    assert not get_adapter(model, case.processor).differentiable
    with pytest.raises(UnsupportedModelError, match=REFUSED):
        explained(case, model, config=GRADIENT)
    assert explained(case, model, config=FEW).raw_audio.isfinite().all()


def test_captum_on_a_model_without_gradients_is_refused(cases):
    pytest.importorskip("captum", reason="the captum extra is not installed: pip install -e '.[captum]'")
    case = cases("whisper-en")
    with pytest.raises(UnsupportedModelError, match="CaptumConfig.*quantised"):
        explained(case, dynamic(case.copy()[0]), config=CaptumConfig(attribution="saliency", num_token_masks=4))


def test_one_layer_that_stops_gradients_is_enough(cases):
    """By the residual connections a gradient arrives that looks right and is not."""
    case = cases("whisper-en")
    model, _ = case.copy()
    layer = model.model.encoder.layers[0]
    layer.fc1 = dynamic(nn.Sequential(copy.deepcopy(layer.fc1)))[0]
    assert bare_gradient(case, model).abs().max() > 0
    adapter = get_adapter(model, case.processor)
    assert not adapter.differentiable
    with pytest.raises(UnsupportedModelError, match=REFUSED):
        explained(case, model, config=GRADIENT)


class Rounded(nn.Module):
    """A layer with integer weights, whose input is rounded: its gradient is 0 everywhere."""

    def __init__(self, layer):
        super().__init__()
        self.in_features = layer.in_features
        self.weight = nn.Parameter((layer.weight.data * 100).to(torch.int8), requires_grad=False)

    def forward(self, x):
        return (x * 100).round() @ (self.weight.to(x.dtype).T / 10_000)


class Unknown(nn.Module):
    """A layer with integer weights, of which nothing is known."""

    def __init__(self, layer):
        super().__init__()
        self.register_buffer("packed", (layer.weight.data * 100).to(torch.int8))

    def forward(self, x):
        return x @ (self.packed.to(x.dtype).T / 100)


@pytest.mark.parametrize("kind", [Rounded, Unknown])
def test_layers_that_pass_no_gradient_or_cannot_be_asked(cases, kind):
    model, processor = cases("whisper-en").copy()
    model.model.encoder.layers[0].fc1 = kind(model.model.encoder.layers[0].fc1)
    assert not get_adapter(model, processor).differentiable


def test_flag_alone_decides_nothing(case):
    model, processor = case.copy()
    model.is_quantized, model.hf_quantizer = True, object()
    assert get_adapter(model, processor).differentiable


def test_weights_of_inference_mode_are_refused(cases):
    model, processor = cases("whisper-en").copy()
    with torch.inference_mode():
        model.model.encoder.conv1.weight = nn.Parameter(model.model.encoder.conv1.weight.clone(), requires_grad=False)
    assert not get_adapter(model, processor).differentiable


def test_layers_are_asked_once_and_left_as_they_were(cases, monkeypatch):
    case = cases("whisper-en")
    model = quantised(case.copy()[0], four_bit)
    layers = [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    passes = []
    handles = [layer.register_forward_hook(lambda *_: passes.append(1)) for layer in layers]
    random = torch.get_rng_state()
    with torch.inference_mode():  # whatever mode the user is in
        assert get_adapter(model, case.processor).differentiable
    assert len(passes) == len(layers)
    assert get_adapter(model, case.processor).differentiable
    assert len(passes) == len(layers)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in model.parameters())
    for handle in handles:
        handle.remove()
    known = len(probe._PROBED)
    del model, layers, handles
    import gc

    gc.collect()
    assert len(probe._PROBED) < known  # nothing is kept of models that are gone


def test_layer_that_was_packed_for_the_cpu_is_asked_again():
    """On CPUs that bitsandbytes has a kernel for, a pass without gradients packs 4-bit weights; then none pass."""
    layer = four_bit(nn.Linear(64, 64)).eval()
    assert probe.passes_gradients(layer, torch.float32)
    with as_it_is(layer), torch.no_grad():
        layer(torch.ones(1, 2, 64))
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    supported = layer.support_avx512bf16_for_cpu
    assert probe.passes_gradients(layer, torch.float32)
    with torch.no_grad():
        layer(torch.ones(1, 2, 64))
    assert probe.passes_gradients(layer, torch.float32) == (not supported)


def test_plain_models_are_not_asked(case, monkeypatch):
    def fail(*arguments):
        raise AssertionError("a plain layer was probed")

    monkeypatch.setattr(probe, "_probe", fail)
    assert get_adapter(case.model, case.processor).differentiable

"""Models that Accelerate has spread: weights on the CPU or on disk until they are used, layers on several devices."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from test_contract import FEW, plain_inputs
from test_wrappers import FOUR, GRADIENT, explained, same
from torch import nn

from spes_hf import Deletion, UnsupportedModelError, explain
from spes_hf.adapters import get_adapter
from spes_hf.runtime.identity import model_identity
from spes_hf.runtime.preserve import leave_unchanged


def on_disk(model, folder):
    disk_offload(model, folder, execution_device=torch.device("cpu"))
    return model


def on_cpu(model, folder):
    return cpu_offload(model, execution_device=torch.device("cpu"))


def spread(model, folder, to_disk):
    """Dispatch a model, leaf by leaf, with those on disk that a function picks by index and name."""
    leaves = [name for name, module in model.named_modules() if name and not list(module.children())]
    where = {name: "disk" if to_disk(i, name) else "cpu" for i, name in enumerate(leaves)}
    where.update({name: "cpu" for name, _ in model.named_parameters() if name.rpartition(".")[0] not in where})
    return dispatch_model(model, where, main_device="cpu", offload_dir=folder)


def partly_on_disk(model, folder):
    return spread(model, folder, lambda i, name: i % 2)


def embeddings_on_disk(model, folder):
    return spread(model, folder, lambda i, name: name.endswith(("embed_tokens", "shared", "proj_out", "lm_head")))


SPREAD = {
    "disk": on_disk,
    "cpu": on_cpu,
    "partly on disk": partly_on_disk,
    "embeddings on disk": embeddings_on_disk,
}


def state(model):
    """Return of an offloaded model what a call could change; the weights themselves are on disk."""
    return {
        "needed": {name: weight.requires_grad for name, weight in model.named_parameters(remove_duplicate=False)},
        "where": {name: weight.device for name, weight in model.named_parameters(remove_duplicate=False)},
        "hooks": [(name, id(getattr(m, "_hf_hook", None)), len(m._forward_hooks)) for name, m in model.named_modules()],
        "forward": [id(vars(module).get("forward")) for module in model.modules()],
        "training": [module.training for module in model.modules()],
        "gradients": [weight.grad for weight in model.parameters()],
    }


@pytest.mark.parametrize("how", SPREAD)
@pytest.mark.parametrize("name", FOUR)
def test_offloaded_model_equals_the_model_bit_for_bit(cases, tmp_path, name, how):
    case = cases(name)
    model, _ = case.copy()
    next(iter(model.parameters())).requires_grad_(False)
    frozen = {id(weight) for weight in model.parameters() if not weight.requires_grad}
    assert frozen
    expected = [explained(case, case.model, config=config) for config in (FEW, GRADIENT)]
    model = SPREAD[how](model, str(tmp_path / "weights"))
    assert any(weight.is_meta for weight in model.parameters())
    with torch.no_grad():  # which parts weights that were tied
        model(**plain_inputs(case), decoder_input_ids=case.target.context_ids[None])
    model.train()
    before = state(model)
    for config, plain in zip((FEW, GRADIENT), expected, strict=True):
        found = explained(case, model, config=config)
        same(found, plain)
        known = dict(plain.provenance["model"])
        del known["weights"]  # what waits elsewhere is not read again for every explanation
        assert found.provenance["model"] == known
        assert state(model) == before
    assert model_identity(model) == model_identity(case.model)
    row = {"explanation": expected[0]}
    curve = Deletion(model, case.processor, (0.0, 0.5, 1.0))(row)["deletion"]
    assert curve == Deletion(case.model, case.processor, (0.0, 0.5, 1.0))(row)["deletion"]
    assert state(model) == before
    with torch.no_grad():  # and it runs as before
        ids = case.target.context_ids[None]
        logits = [m.eval()(**plain_inputs(case), decoder_input_ids=ids).logits for m in (model, case.model)]
    assert torch.equal(*logits)


def test_weights_that_are_reloaded_get_their_gradients_back(cases, tmp_path):
    """Every pass puts new weights into the layers; what is switched back must be the weights that are there then."""
    case = cases("whisper-en")
    model = on_disk(case.copy()[0], str(tmp_path / "weights"))
    weight = model.model.encoder.layers[0].fc1.weight
    with leave_unchanged(model):
        assert not any(w.requires_grad for w in model.parameters())
        model.get_encoder()(case.utterance.inputs["input_features"])
        assert not any(w.requires_grad for w in model.parameters())
    assert model.model.encoder.layers[0].fc1.weight is not weight
    assert model.model.encoder.layers[0].fc1.weight.requires_grad


def test_what_was_off_before_is_off_afterwards(cases):
    """Whatever a model's own code switches on meanwhile, in one part of the model or in all of them."""
    case = cases("whisper-en")
    model, _ = case.copy()
    model.eval().requires_grad_(False)
    model.model.decoder.layers[0].train().requires_grad_(True)
    before = state(model)
    modes = [module.training for module in model.modules()]
    with leave_unchanged(model):
        assert not any(module.training for module in model.modules())
        model.train().requires_grad_(True)
    assert before["needed"] == state(model)["needed"] and len({*before["needed"].values()}) == 2
    assert modes == [module.training for module in model.modules()]


def test_offloaded_models_with_other_weights_have_other_identities(cases, tmp_path):
    case = cases("whisper-en")
    model, _ = case.copy()
    model.model.encoder.conv1.bias.data[0] += 1
    assert model_identity(on_disk(model, str(tmp_path / "a"))) != model_identity(case.model)


def test_model_without_weights_is_refused(cases, tmp_path):
    case = cases("whisper-en")
    with pytest.raises(UnsupportedModelError, match=r"no weights for model\.encoder\.conv1.*meta device.*from_pre"):
        get_adapter(case.copy()[0].to("meta"), case.processor)
    model, _ = case.copy()
    model.model.decoder.layers[1].fc2.to("meta")  # only there
    with pytest.raises(UnsupportedModelError, match=r"decoder\.layers\.1\.fc2\.weight.*with 2 such parameters in all"):
        explain(model, case.processor, case.audio, progress=False)
    model = on_disk(case.copy()[0], str(tmp_path / "weights"))
    model.model.decoder.layers[1].fc2 = nn.Linear(48, 32, device="meta")  # that no hook fills
    with pytest.raises(UnsupportedModelError, match=r"decoder\.layers\.1\.fc2\.weight.*with 2 such parameters in all"):
        get_adapter(model, case.processor)


@pytest.mark.parametrize("name", FOUR)
def test_token_masks_follow_the_embedding_to_its_device(cases, name):
    """The meta device as a second one: it refuses to be mixed with the CPU as another would."""
    case = cases(name)
    adapter = copy.copy(case.adapter)
    adapter.model, _ = case.copy()
    elsewhere = adapter.token_embedding.to("meta")
    add_hook_to_module(elsewhere, AlignDevicesHook(execution_device="meta"))
    ids, keep = torch.zeros(3, 4, dtype=torch.long), torch.ones(3, 4, dtype=torch.bool)
    with adapter.perturbed_tokens(ids, keep) as inputs:
        found = inputs.get("decoder_inputs_embeds")
        found = elsewhere(inputs["decoder_input_ids"]) if found is None else found
    assert found.is_meta and found.shape[:2] == (3, 4)


@pytest.mark.parametrize("name", FOUR)
def test_input_goes_where_the_encoder_computes(cases, name):
    case = cases(name)
    adapter = copy.copy(case.adapter)
    adapter.model, _ = case.copy()
    adapter.model.get_submodule(case.family.decoder).to("meta")
    assert adapter.device == torch.device("cpu")
    adapter.encoder.to("meta")
    add_hook_to_module(adapter.encoder, AlignDevicesHook(execution_device="cuda:1", io_same_device=True))
    assert adapter.device == torch.device("cuda:1")

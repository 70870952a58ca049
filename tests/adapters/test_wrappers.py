"""Models inside PEFT, torch.compile, DDP, DataParallel, Accelerate: all give the plain model's map."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import compile_regions
from test_contract import FEW, assert_untouched, plain_inputs, snapshot
from tiny import VARIED
from torch import nn

from spes_hf import Deletion, Explain, SpesConfig, UnsupportedModelError, explain, explain_dataset
from spes_hf.runtime.identity import model_identity

FOUR = ["whisper-en", "speech_to_text", "seamless_m4t", "seamless_m4t_v2"]
GRADIENT = SpesConfig(estimator="gradient", num_spectrogram_masks=3, masks_per_token=2, num_token_masks=4)


def explained(case, model, **kwargs):
    arguments = {"config": FEW, "generate_kwargs": VARIED, "progress": False, **case.family.options, **kwargs}
    return explain(model, case.processor, case.audio, **arguments)


def same(found, expected):
    """Bit for bit."""
    assert found.token_ids == expected.token_ids
    assert torch.equal(found.raw_audio, expected.raw_audio)
    assert torch.equal(found.raw_token.nan_to_num(), expected.raw_token.nan_to_num())
    assert torch.equal(found.probabilities, expected.probabilities)


@pytest.fixture(scope="module")
def plain(cases):
    """Function that returns the explanation of a plain model, made once."""
    made = {}

    def of(name, config=FEW):
        if (name, config) not in made:
            made[name, config] = explained(cases(name), cases(name).model, config=config)
        return made[name, config]

    return of


def with_lora(model, task_type=None, name="default", seed=0, **kwargs):
    """Return the model with LoRA layers that change what it does."""
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "linear_q", "fc1"], **kwargs}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type=task_type, **settings), adapter_name=name)
    enliven(wrapped, name, seed)
    return wrapped.eval()


def enliven(wrapped, name="default", seed=0):
    generator = torch.Generator().manual_seed(seed)
    for weight, values in wrapped.named_parameters():
        if "lora_" in weight and f".{name}" in weight:
            values.data.copy_(0.3 * torch.randn(values.shape, generator=generator))


# PEFT -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_type", ["SEQ_2_SEQ_LM", "FEATURE_EXTRACTION", None])
@pytest.mark.parametrize("name", FOUR)
def test_peft_model_equals_the_model_with_its_adapter_merged(cases, plain, name, task_type):
    case = cases(name)
    model, _ = case.copy()
    wrapped = with_lora(model, task_type)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    before = snapshot(wrapped)
    configs = {key: value.to_dict() for key, value in wrapped.peft_config.items()}
    found, expected = explained(case, wrapped), explained(case, merged)
    assert found.token_ids == expected.token_ids
    torch.testing.assert_close(found.raw_audio, expected.raw_audio, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.raw_token, expected.raw_token, rtol=1e-3, atol=1e-4, equal_nan=True)
    assert not torch.equal(found.probabilities, plain(name).probabilities)  # the adapter shows
    assert found.provenance["model"]["class"] == type(case.model).__name__
    assert found.provenance["model"]["adapters"] == ["default"]
    assert_untouched(wrapped, before)
    assert wrapped.get_base_model() is model and wrapped.active_adapter == "default"
    assert {key: value.to_dict() for key, value in wrapped.peft_config.items()} == configs


def test_peft_model_with_its_adapter_off_equals_the_base_model(cases, plain):
    case = cases("whisper-en")
    wrapped = with_lora(case.copy()[0])
    with wrapped.disable_adapter():
        off = explained(case, wrapped)
    same(off, plain("whisper-en"))
    assert "adapters" not in off.provenance["model"]
    assert not torch.equal(explained(case, wrapped).probabilities, off.probabilities)


def test_peft_identity_tells_adapters_apart(cases):
    model, _ = cases("whisper-en").copy()
    bare = model_identity(model)
    wrapped = with_lora(model)
    first = model_identity(wrapped)
    assert first == model_identity(wrapped.get_base_model()) != bare  # the base model holds the layers
    seen = [bare, first]

    enliven(wrapped, seed=5)  # other weights
    seen.append(model_identity(wrapped))
    wrapped.add_adapter("other", peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "fc1"]))
    enliven(wrapped, "other", 7)
    wrapped.set_adapter("default")
    seen.append(model_identity(wrapped))
    wrapped.set_adapter("other")  # the same weights, another one active
    seen.append(model_identity(wrapped))
    for layer in wrapped.modules():
        if hasattr(layer, "scale_layer"):
            layer.scale_layer(0.5)
    seen.append(model_identity(wrapped))
    with wrapped.disable_adapter():
        seen.append(model_identity(wrapped))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])
    assert model_identity(copy.deepcopy(wrapped)) == model_identity(wrapped)


def test_peft_layers_may_be_anywhere(cases):
    """On embeddings and on the output layer too, where spes_hf looks for the model's structure."""
    for name, targets in (
        ("whisper-en", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("whisper-en", {"target_modules": ["q_proj"], "modules_to_save": ["proj_out"]}),
        ("whisper-en", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [0, 1]}}),
        ("speech_to_text", {"target_modules": ["fc1", "embed_tokens"]}),
        ("seamless_m4t_v2", {"target_modules": ["linear_q", "embed_tokens"]}),
    ):
        case = cases(name)
        model, _ = case.copy()
        wrapped = with_lora(model, "SEQ_2_SEQ_LM", **targets)
        before = snapshot(wrapped)
        found = explained(case, wrapped)
        assert_untouched(wrapped, before)
        with torch.no_grad():
            ids = torch.tensor([[*case.target.prefix_ids.tolist(), *found.token_ids[:-1]]])
            logits = wrapped.get_base_model()(**plain_inputs(case), decoder_input_ids=ids).logits[0]
        expected = logits.softmax(-1)[len(case.target.prefix_ids) - 1 :].gather(
            1, torch.tensor(found.token_ids)[:, None]
        )
        torch.testing.assert_close(found.probabilities, expected.squeeze(1), rtol=1e-4, atol=1e-5)
        assert found.raw_token.nan_to_num().abs().max() > 1e-4


def test_injected_adapter_is_part_of_the_model(cases):
    case = cases("whisper-en")
    model, _ = case.copy()
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=["q_proj"]), model, "mine")
    enliven(model, "mine")
    found = explained(case, model)
    assert found.provenance["model"]["adapters"] == ["mine"]
    same(explained(case, with_lora(case.copy()[0], name="mine", target_modules=["q_proj"], lora_alpha=8)), found)


@pytest.mark.parametrize("task_type", ["SEQ_2_SEQ_LM", None])
def test_learned_prompt_is_refused(cases, task_type):
    case = cases("whisper-en")
    model, _ = case.copy()
    config = peft.PrefixTuningConfig(
        task_type=task_type, num_virtual_tokens=3, num_layers=2, token_dim=32, num_attention_heads=2
    )
    wrapped = peft.PeftModelForSeq2SeqLM(model, config) if task_type else peft.PeftModel(model, config)
    with pytest.raises(UnsupportedModelError, match=r"learned prompt \(PREFIX_TUNING\).*get_base_model"):
        explained(case, wrapped)


# Compiled models and parallel wrappers --------------------------------------------------------------------------------


def break_if_compiled(*args, **kwargs):
    raise AssertionError("compiled code was run")


def compiled(model):
    return torch.compile(model, backend=lambda graph, inputs: break_if_compiled)


def compiled_in_place(model):
    model.compile(backend=lambda graph, inputs: break_if_compiled)
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend=lambda graph, inputs: break_if_compiled)
    return model


def compiled_parts(model):
    model.model.encoder = torch.compile(model.model.encoder, backend=lambda graph, inputs: break_if_compiled)
    model.model.decoder.layers[0].compile(backend=lambda graph, inputs: break_if_compiled)
    return model


def compiled_regions(model):
    return compile_regions(model, backend=lambda graph, inputs: break_if_compiled)


WRAPPERS = {
    "compile": compiled,
    "compile in place": compiled_in_place,
    "compile forward": compiled_forward,
    "compile parts": compiled_parts,
    "compile regions": compiled_regions,
    "DataParallel": nn.DataParallel,
    "compile in DataParallel": lambda model: nn.DataParallel(compiled(model)),
    "prepare": lambda model: prepared(model),
    "prepare bfloat16": lambda model: prepared(model, "bf16"),
}


def prepared(model, mixed_precision=None):
    """Return what Accelerate makes of a model; its own state is as it was, for the tests that follow."""
    from accelerate.state import AcceleratorState, PartialState

    states = [dict(kind._shared_state) for kind in (PartialState, AcceleratorState)]
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return Accelerator(cpu=True, mixed_precision=mixed_precision).prepare(model)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        for kind, state in zip((PartialState, AcceleratorState), states, strict=True):
            kind._shared_state.update(state)


def attributes(model):
    """Return what wrapping puts into a model, as it is: the very objects."""
    names = ("forward", "_compiled_call_impl", "_original_forward")
    return [
        (name, id(module), [vars(module).get(n) for n in names], {k: id(v) for k, v in module._modules.items()})
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_model_equals_the_model_bit_for_bit(cases, plain, wrapper):
    for name in FOUR if wrapper in ("compile", "DataParallel", "prepare bfloat16") else FOUR[:1]:
        case = cases(name)
        wrapped = WRAPPERS[wrapper](case.copy()[0])
        wrapped.train()
        state = snapshot(wrapped) if wrapper.startswith(("prepare", "compile in place", "compile forward")) else None
        before = attributes(wrapped)
        same(explained(case, wrapped), plain(name))
        same(explained(case, wrapped, config=GRADIENT), plain(name, GRADIENT))
        assert attributes(wrapped) == before
        assert all(p.requires_grad and p.grad is None for n, p in wrapped.named_parameters() if "embed_pos" not in n)
        assert wrapped.training
        if state is not None:
            assert_untouched(wrapped, state)
        assert model_identity(wrapped) == model_identity(case.model)


def test_model_stays_compiled_and_cast_afterwards(cases):
    case = cases("whisper-en")
    ids = case.target.context_ids[None]
    model = compiled_forward(case.copy()[0])
    explained(case, model)
    with pytest.raises(AssertionError, match="compiled code was run"):
        model(**plain_inputs(case), decoder_input_ids=ids)
    model = prepared(case.copy()[0], "bf16")
    with torch.no_grad():
        before = model(**plain_inputs(case), decoder_input_ids=ids).logits
        explained(case, model)
        after = model(**plain_inputs(case), decoder_input_ids=ids).logits
        exact = case.model(**plain_inputs(case), decoder_input_ids=ids).logits
    assert torch.equal(before, after) and not torch.equal(after, exact)


def test_wrapped_model_is_handed_back_after_an_exception(cases):
    case = cases("whisper-en")
    model = compiled_parts(case.copy()[0])
    before = attributes(model)
    with pytest.raises(ValueError, match="text is ''"):
        explained(case, model, text="")
    assert attributes(model) == before


def test_ddp_equals_the_model_and_trains_afterwards(cases, plain, tmp_path):
    case = cases("whisper-en")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, _ = case.copy()
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        same(explained(case, wrapped), plain("whisper-en"))
        same(explained(case, wrapped, config=GRADIENT), plain("whisper-en", GRADIENT))
        wrapped(**plain_inputs(case), decoder_input_ids=case.target.context_ids[None]).logits.sum().backward()
        assert model.model.encoder.conv1.weight.grad is not None
        same(explained(case, torch.compile(wrapped)), plain("whisper-en"))
        settings = {"use_orig_params": True, "device_id": torch.device("cpu")}
        split = torch.distributed.fsdp.FullyShardedDataParallel(case.copy()[0], **settings)
        with pytest.raises(UnsupportedModelError, match="FullyShardedDataParallel.*split over processes"):
            explained(case, split)
    finally:
        torch.distributed.destroy_process_group()


def test_every_entry_point_takes_a_wrapped_model(cases, plain, tmp_path):
    from datasets import Dataset

    case = cases("whisper-en")
    wrapped = compiled(with_lora(case.copy()[0], "FEATURE_EXTRACTION"))
    inside = wrapped._orig_mod.get_base_model()
    explanation = explained(case, wrapped)
    row = {"explanation": explanation}
    expected = Deletion(inside, case.processor, (0.0, 1.0))(row)["deletion"]
    assert Deletion(wrapped, case.processor, (0.0, 1.0))(row)["deletion"] == expected
    row = {"audio": {"array": case.audio, "sampling_rate": 16_000}, "id": "a"}
    transform = Explain(wrapped, case.processor, FEW, generate_kwargs=VARIED)
    plainly = Explain(inside, case.processor, FEW, generate_kwargs=VARIED)
    assert transform.fingerprint() == plainly.fingerprint()
    assert transform(row)["explanation"] == plainly(row)["explanation"]
    data = Dataset.from_list([{"audio": case.audio.tolist(), "id": "a"}])
    done = explain_dataset(
        wrapped,
        case.processor,
        data,
        tmp_path / "out",
        FEW,
        generate_kwargs=VARIED,
        progress=False,
        sampling_rate=16_000,
    )
    assert done.finished == 1 and not done.failures

import copy

import pytest
import soundfile
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from spes_hf.runtime import identity
from spes_hf.runtime.identity import is_all_here, model_identity, weights_digest


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 16)
    layers = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    rest = {"vocab_size": 20, "max_source_positions": 10, "max_target_positions": 8, **tokens}
    return WhisperForConditionalGeneration(WhisperConfig(**sizes, **layers, **heads, **rest)).eval()


@pytest.fixture(params=["in memory", "on a device"])
def somewhere(request, monkeypatch):
    """Weights are read by a checksum in the machine's memory, and by sums on a device."""
    if request.param == "on a device":
        monkeypatch.setattr(identity, "_is_in_memory", lambda tensor: False)


@pytest.fixture
def tiny_dataset():
    from datasets import Dataset

    return Dataset.from_dict({"id": ["a"]})


@pytest.fixture
def hashed(monkeypatch):
    """A list that gets one entry for every tensor that is hashed."""
    seen, of = [], identity._bytes_of
    monkeypatch.setattr(identity, "_bytes_of", lambda tensor: seen.append(1) or of(tensor))
    return seen


def test_weights_are_hashed_once(model, hashed, somewhere):
    first = weights_digest(model)
    assert len(hashed) == len(model.state_dict())
    model(input_features=torch.zeros(1, 80, 20), decoder_input_ids=torch.tensor([[1]]))
    model.train().eval()
    assert weights_digest(model) == first and len(hashed) == len(model.state_dict())


def test_an_explanation_more_hashes_nothing(small_whisper, tone, hashed):
    from spes_hf import EnergyConfig, explain

    model = copy.deepcopy(small_whisper[0])
    settings = {"config": EnergyConfig(), "generate_kwargs": {"max_new_tokens": 3}, "progress": False}
    first = explain(model, small_whisper[1], tone, **settings)
    assert hashed
    hashed.clear()
    second = explain(model, small_whisper[1], tone, **settings)
    assert not hashed
    assert first.provenance["model"]["weights"] == second.provenance["model"]["weights"] == weights_digest(model)


def in_place(weight):
    with torch.no_grad():
        weight[0, 0, 0] += 1


def by_data(weight):
    weight.data[0, 0, 0] += 1


def swapped(weight):
    weight.data[:2] = weight.data[:2].flip(0).clone()


def replaced(weight):
    weight.data = weight.data * 2


def farther(weight):
    weight.data[[0, 2]] = weight.data[[2, 0]].clone()


def columns(weight):
    weight.data[..., [0, 2]] = weight.data[..., [2, 0]].clone()


def two_numbers(weight):
    weight.data[0, 0, [0, 2]] = weight.data[0, 0, [2, 0]].clone()


def trained(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()


def merged(weight):
    weight.data += 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "change", [in_place, by_data, swapped, farther, columns, two_numbers, replaced, merged, trained]
)
def test_changed_weights_have_another_digest_and_the_old_ones_the_old(model, change, somewhere):
    weight = model.get_encoder().conv1.weight
    before, old = weights_digest(model), weight.detach().clone()
    change(weight)
    assert weights_digest(model) != before
    weight.data.copy_(old)
    assert weights_digest(model) == before


def test_the_last_bit_of_a_number_shows_among_large_ones(model, somewhere):
    weight = model.get_encoder().conv1.weight
    weight.data[1] = 1e30
    before = weights_digest(model)
    weight.data[0, 0, 0] = torch.nextafter(weight.data[0, 0, 0], torch.tensor(torch.inf))
    assert weights_digest(model) != before


def test_a_single_number_shows(model, somewhere):
    model.register_buffer("scale", torch.tensor(1.0))
    before = weights_digest(model)
    model.scale.data.fill_(2)
    assert weights_digest(model) != before


def test_loaded_weights_and_another_module_show(model, somewhere):
    before, state = weights_digest(model), copy.deepcopy(model.state_dict())
    state["model.encoder.conv1.bias"] += 1
    model.load_state_dict(state)
    loaded = weights_digest(model)
    assert loaded != before
    model.model.encoder.conv1 = copy.deepcopy(model.model.encoder.conv2)
    assert weights_digest(model) not in (before, loaded)


def test_tied_weights_are_parted(model, somewhere):
    """The same numbers, now in two places: they are hashed again, and have the same digest."""
    before = weights_digest(model)
    model.proj_out.weight = torch.nn.Parameter(model.proj_out.weight.detach().clone())
    assert weights_digest(model) == before
    model.proj_out.weight.data += 1
    assert weights_digest(model) != before


def test_a_chain_of_maps_reads_the_weights_once(small_whisper, tone, tmp_path, hashed):
    from datasets import Audio, Dataset

    from spes_hf import Deletion, EnergyConfig, Explain

    soundfile.write(tmp_path / "tone.wav", tone, 16_000)
    data = Dataset.from_dict({"audio": [str(tmp_path / "tone.wav")]}).cast_column("audio", Audio(decode=False))
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    explained = data.map(Explain(model, processor, EnergyConfig(), generate_kwargs={"max_new_tokens": 3}))
    explained.map(Deletion(model, processor, [0.5, 1.0]))
    assert len(hashed) == len(model.state_dict())


def test_a_description_of_a_job_reads_a_model_once(tiny_dataset, model, hashed):
    from spes_hf.jobs.job import describe_job
    from spes_hf.rows import RowTransform

    class Running(RowTransform):
        key = "running"

        def __call__(self, row):
            return row

        def columns(self):
            return {}

        def identity(self):
            return model_identity(model)

    job = describe_job(tiny_dataset, [Running(), Running()], None)
    assert job["transforms"] == [model_identity(model)] * 2
    assert len(hashed) == len(model.state_dict())


def test_quantised_weights_do_not_identify(model):
    assert is_all_here(model)
    dynamic = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    assert not is_all_here(dynamic)


def test_a_copy_and_a_loaded_model_have_the_same_digest(model, tmp_path):
    assert weights_digest(copy.deepcopy(model)) == weights_digest(model)
    model.save_pretrained(tmp_path)
    assert weights_digest(type(model).from_pretrained(tmp_path)) == weights_digest(model)
    assert weights_digest(copy.deepcopy(model).half()) != weights_digest(model)


def test_not_a_number_among_the_weights_is_hashed_once_too(model, hashed):
    model.get_encoder().conv1.weight.data[0, 0, 0] = torch.nan
    first = weights_digest(model)
    hashed.clear()
    assert weights_digest(model) == first and not hashed


def test_weights_that_are_not_here_do_not_identify(model):
    assert is_all_here(model)
    model.get_encoder().conv1.to("meta")
    assert not is_all_here(model)
    assert weights_digest(model)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_weights_are_read(model, shape):
    before = weights_digest(model)
    model.register_buffer("empty", torch.ones(shape))
    assert weights_digest(model) != before


def test_inference_tensors_and_8_bit_floats_are_read(model):
    with torch.inference_mode():
        made = copy.deepcopy(model)
    assert weights_digest(made) == weights_digest(model)
    model.register_buffer("small", torch.ones(4).to(torch.float8_e4m3fn))
    assert weights_digest(model) != weights_digest(made)

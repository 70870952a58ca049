"""Operations without weights are those that torch counts while a real model of each family runs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spes_hf.adapters import get_adapter
from spes_hf.capacity.operations import Operations, Weightless, noise_of
from spes_hf.capacity.passes import Passes, made_up_target
from spes_hf.demo import load_tiny_model

TOKENS, PREFIX = 7, 2


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module", params=["small whisper", "speech2text-en", "seamless-en-de-es"])
def family(request, small_whisper):
    model, processor = small_whisper if request.param == "small whisper" else load_tiny_model(request.param)
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")  # matrix products, which are counted
    adapter = get_adapter(model, processor)
    utterance, target = adapter.encode(noise_of(adapter, 1.2)), made_up_target(TOKENS, PREFIX, token=5)
    weightless = Weightless.of(model.config, processor)
    heard = weightless.adapter.encode(noise_of(weightless.adapter, 1.2))
    return adapter, utterance, target, Operations.count(weightless.adapter, heard, target, weightless.mode)


def test_forwards(family):
    adapter, utterance, target, found = family
    features, keep = utterance.features[None], torch.ones(1, PREFIX + TOKENS - 1, dtype=torch.bool)
    with torch.no_grad():
        states = adapter.encoder_states(utterance.inputs)
        cross = adapter.cross_attention(utterance, target, states)
        assert found.encoder == counted(lambda: adapter.encoder_states(utterance.inputs))
        assert found.whole == counted(lambda: adapter.logits(utterance, target, features=features))
        assert found.heard == counted(lambda: adapter.logits(utterance, target, states=states))
        assert found.decoder == counted(
            lambda: adapter.logits(utterance, target, token_keep=keep, states=states, cross=cross)
        )
    assert found.whole == found.encoder + found.heard and 0 < found.decoder < found.heard


def test_backwards(family):
    adapter, utterance, target, found = family
    leaf = utterance.features[None].clone().requires_grad_()
    logits = adapter.logits(utterance, target, features=leaf)
    value = logits.float().log_softmax(-1).sum()
    assert found.backward == counted(lambda: torch.autograd.grad(value, leaf))
    leaf = adapter.encoder_states(utterance.inputs).detach().requires_grad_()
    value = adapter.logits(utterance, target, states=leaf).float().log_softmax(-1).sum()
    assert found.decoder_backward == counted(lambda: torch.autograd.grad(value, leaf))


def test_a_batch_of_passes_is_so_many_times_one(family):
    adapter, utterance, target, found = family
    with torch.no_grad():
        three = counted(lambda: adapter.logits(utterance, target, features=utterance.features.expand(3, -1, -1)))
    assert three == found.of(Passes(whole=3))
    assert found.of(Passes(whole=1, backward=2, decoder=3, heard=4, decoder_backward=5)) == (
        found.whole + 2 * found.backward + 3 * found.decoder + 4 * found.heard + 5 * found.decoder_backward
    )


def test_attention_is_counted(small_whisper):
    """The encoder by hand: projections, feed-forward layers, two convolutions, and 4 S² D a layer for attention."""
    model, processor = small_whisper
    before = model.config._attn_implementation
    weightless, target = Weightless.of(model.config, processor), made_up_target(TOKENS)
    assert model.config._attn_implementation == before
    utterance = weightless.adapter.encode(noise_of(weightless.adapter, 0.8))
    found = Operations.count(weightless.adapter, utterance, target, weightless.mode)
    length, width, layers = 100, model.config.d_model, model.config.encoder_layers
    products = 2 * length * (4 * width**2 + 2 * width * model.config.encoder_ffn_dim) * layers
    convolutions = 2 * 3 * width * (2 * length * model.config.num_mel_bins + length * width)
    assert found.encoder == products + convolutions + layers * 4 * length**2 * width


def test_no_weight_is_in_memory(small_whisper):
    weightless = Weightless.of(small_whisper[0].config, small_whisper[1])
    parameter = next(weightless.adapter.model.parameters())
    assert type(parameter.data).__name__ == "FakeTensor" or type(parameter).__name__ == "FakeTensor"
    assert weightless.bytes == 2 * sum(p.numel() for p in small_whisper[0].parameters())


def test_a_checkpoint_is_read_without_its_weights(small_whisper, tmp_path):
    small_whisper[0].config.save_pretrained(tmp_path)
    small_whisper[1].save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert Weightless.load(str(tmp_path)).adapter.encoder is not None
    with pytest.raises(OSError):
        Weightless.load(str(tmp_path / "none"))

"""Cross-attention as the model itself computes it, and where the encoder's positions lie in time."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import VARIED
from torch import nn

from spes_hf import UnsupportedModelError
from spes_hf.adapters import Adapter, GenerationOptions, get_adapter
from spes_hf.adapters.positions import EncoderPositions
from spes_hf.audio.load import load_audio


def eager_attention(adapter, utterance, target):
    """Return what a copy of the model says that it attends to, (layers, heads, K, S).

    The encoder runs as it is: that of SeamlessM4T v2 returns something else where it attends eagerly.
    """
    model = copy.deepcopy(adapter.model)
    if hasattr(model, "set_modality"):
        model.set_modality("speech")
    with torch.no_grad():
        encoder = model.speech_encoder if hasattr(model, "speech_encoder") else model.get_encoder()
        states = encoder(**utterance.inputs)
        model.set_attn_implementation("eager")
        rest = {name: value for name, value in utterance.inputs.items() if name != "input_features"}
        ids = target.context_ids[None]
        found = model(encoder_outputs=states, **rest, decoder_input_ids=ids, output_attentions=True)
    return torch.stack(found.cross_attentions)[:, 0, :, len(target.prefix_ids) - 1 :]


def written(case, samples):
    utterance = case.adapter.encode(load_audio(samples, case.adapter.sampling_rate, 16_000))
    return utterance, case.adapter.generate(utterance, case.options)


def test_weights_are_those_of_the_model(exact):
    found = exact.adapter.attention_weights(exact.utterance, exact.target)
    expected = eager_attention(exact.adapter, exact.utterance, exact.target)
    assert found.shape == expected.shape == (2, 2, len(exact.target.token_ids), expected.shape[-1])
    assert found.dtype == torch.float32 and found.device.type == "cpu"
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=0)
    assert found.std(-1).min() > 0


def test_states_spare_the_encoder_a_pass(case):
    with torch.no_grad():
        states = case.adapter.encoder_states(case.utterance.inputs)
    with_states = case.adapter.attention_weights(case.utterance, case.target, states)
    assert torch.equal(with_states, case.adapter.attention_weights(case.utterance, case.target))
    other = case.adapter.attention_weights(case.utterance, case.target, states.flip(1))
    assert not torch.allclose(other, with_states, atol=1e-3)


@pytest.mark.parametrize("name", ["seamless_m4t", "seamless_m4t_v2", "seamless_m4t_v2-full", "canary", "cohere_asr"])
def test_positions_behind_the_mask_have_no_weight(cases, clip, name):
    """71 frames: the last of 36 stacked ones is padding, and so is the last of 10 positions.

    A FastConformer has 72 frames and one of padding, and 10 positions as well.
    """
    case = cases(name)
    utterance, target = written(case, torch.from_numpy(clip).repeat(2)[: 400 + 70 * 160].numpy())
    found = case.adapter.attention_weights(utterance, target)
    assert found.shape[-1] == 10 and case.adapter.attended(utterance) == 9
    assert (found[..., 9:] == 0).all() and (found[..., :9] > 0).all()
    torch.testing.assert_close(found, eager_attention(case.adapter, utterance, target), atol=1e-4, rtol=0)
    assert len(case.adapter.encoder_positions(utterance)) == 9


def test_half_precision_is_computed_in_float32(case):
    model, processor = case.copy()
    adapter = get_adapter(model.to(torch.bfloat16), processor)
    utterance = adapter.encode(case.utterance.waveform)
    exact = case.adapter.attention_weights(case.utterance, case.target)
    with torch.autocast("cpu", torch.bfloat16):
        found = adapter.attention_weights(utterance, case.target)
    assert found.dtype == torch.float32 and not torch.equal(found.bfloat16().float(), found)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    assert float((found - exact).abs().mean()) < 0.02


def test_the_model_is_left_as_it_was(case):
    def hooks(model):
        return [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()]

    model, processor = case.copy()
    before, own = copy.deepcopy(model.state_dict()), hooks(model)
    get_adapter(model, processor).attention_weights(case.utterance, case.target)
    assert hooks(model) == own and not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_alignment_heads_are_those_of_the_generation_config(case):
    assert case.adapter.alignment_heads is None
    if case.family.decoder == "model.decoder" and hasattr(case.model.config, "max_source_positions"):
        model, processor = case.copy()
        model.generation_config.alignment_heads = [[1, 0], [0, 1]]
        known = ((1, 0), (0, 1)) if model.config.model_type == "whisper" else None
        assert get_adapter(model, processor).alignment_heads == known


def test_a_decoder_without_projections_is_refused(case):
    class Other(type(case.adapter)):
        @property
        def attention_modules(self):
            return [nn.Identity()]

    with pytest.raises(UnsupportedModelError, match="Identity.*has no projection q_proj; override attention_weights"):
        Other(case.model, case.processor).attention_weights(case.utterance, case.target)


# Positions in time ---------------------------------------------------------------------------------------------------


def convolutions(case):
    """Return the convolutions between frames and positions, and how many frames they read as one."""
    encoder = case.adapter.encoder
    if case.model.config.model_type == "whisper":
        return [encoder.conv1, encoder.conv2], 1
    if case.model.config.model_type == "speech_to_text":
        return list(encoder.conv.conv_layers), 1
    if hasattr(encoder, "subsampling"):
        return [layer for layer in encoder.subsampling.layers if getattr(layer, "stride", (1,))[0] > 1], 1
    return [layer.residual_conv for layer in encoder.adapter.layers], 2


def test_a_position_lies_at_the_centre_of_the_frames_that_it_is_made_of(case):
    """A click at one frame shows in the positions whose window it lies in, through convolutions of ones."""
    positions = case.adapter.encoder_positions(case.utterance)
    layers, stacked = convolutions(case)
    frames = len(case.utterance.times) // stacked
    reached = torch.eye(frames, dtype=torch.float64)[:, None]  # a click each
    for layer in layers:
        kernel = torch.ones(1, 1, layer.kernel_size[0], dtype=torch.float64)
        reached = nn.functional.conv1d(reached, kernel, stride=layer.stride[0], padding=layer.padding[0])
    shown = reached[:, 0] > 0  # (frames, S)
    assert len(positions) == shown.shape[1]
    hop = float(case.utterance.times[1] - case.utterance.times[0])
    for s in range(1, len(positions) - 1):
        window = shown[:, s].nonzero()[:, 0]
        first, last = stacked * int(window[0]), stacked * int(window[-1]) + stacked - 1
        if first > 0 and last < stacked * frames - 1:  # whole
            centre = float(case.utterance.times[0]) + hop * (first + last) / 2
            assert float(positions.times[s]) == pytest.approx(centre, abs=1e-5)
    if case.model.config.model_type != "whisper":  # which has positions of padding besides
        assert case.adapter.attention_weights(case.utterance, case.target).shape[-1] == len(positions)


def test_positions_of_whisper_have_two_frames_each(cases):
    case = cases("whisper")
    positions = case.adapter.encoder_positions(case.utterance)
    assert len(positions) == 36 and positions.nearest.tolist() == [t // 2 for t in range(72)]
    values = torch.rand(3, 100, generator=torch.Generator().manual_seed(0))
    spread = positions.spread(values)
    assert spread.shape == (3, 72) and torch.equal(spread[:, 10], values[:, 5])
    assert torch.equal(positions.pool(spread), values[:, :36])
    odd = EncoderPositions.on_frames(case.utterance.times[:71], 2, 0.0, 36)
    assert odd.nearest[-1] == 35 and torch.equal(odd.pool(odd.spread(values)), values[:, :36])


@pytest.mark.parametrize(("stride", "first"), [(2, 0.0), (4, 0.0), (8, -0.5), (16, -0.5)])
@pytest.mark.parametrize("start", [0.0, 12.34, 3_000.02])
def test_frames_find_their_nearest_position_by_times_alone(stride, first, start):
    """Times of recordings are float32: rounding moves no frame."""
    frames = (start + 0.01 * torch.arange(2_999, dtype=torch.float64)).float()
    positions = EncoderPositions.on_frames(frames, stride, first, 2_998 // stride + 1)
    distance = (torch.arange(2_999)[:, None] - first - stride * torch.arange(len(positions))).abs()
    assert torch.equal(positions.nearest, distance.min(1).indices)  # the earlier of two


def test_a_single_position_takes_all_frames():
    positions = EncoderPositions.on_frames(torch.tensor([0.0, 0.01, 0.02]), 16, -0.5, 1)
    assert positions.nearest.tolist() == [0, 0, 0] and positions.pool(torch.tensor([1.0, 2.0, 6.0])).tolist() == [3.0]


def test_a_family_that_does_not_say_where_positions_lie_is_refused(case):
    with pytest.raises(UnsupportedModelError, match="add the method encoder_positions"):
        super(Adapter, case.adapter).encoder_positions(case.utterance)


def test_options_do_not_matter_for_the_shape(cases):
    case = cases("speech_to_text")
    target = case.adapter.generate(case.utterance, GenerationOptions(generate_kwargs={**VARIED, "max_new_tokens": 3}))
    assert case.adapter.attention_weights(case.utterance, target).shape[2] == 3

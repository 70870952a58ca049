"""What every adapter must do, on a tiny random model of its family. New families: one entry in ``tiny.FAMILIES``.

What the adapters are compared with is written without them: plain calls of model and processor, the model's own input
edited value by value, the decoder's embedding replaced by a module in a copy of the model, one mask at a time.
"""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from agreement import assert_explanations_agree
from settings import pyramid
from tiny import TEXT, VARIED
from torch import nn

from spes_hf import AudioError, ConfigError, UnsupportedModelError, explain
from spes_hf.adapters import GenerationOptions, get_adapter
from spes_hf.audio.load import load_audio

FEW = pyramid(num_spectrogram_masks=9, num_token_masks=8)
LOUD = pyramid(num_spectrogram_masks=18, num_token_masks=8, fill=4.0)


def plain_inputs(case, audio=None):
    """Return what the processor makes of the clip, or of other sound, as a user would call it."""
    extractor = case.processor.feature_extractor
    inputs = extractor(case.audio if audio is None else audio, sampling_rate=16_000, return_tensors="pt")
    inputs["input_features"] = inputs["input_features"].to(case.model.dtype)
    return {name: inputs[name] for name in ("input_features", "attention_mask") if name in inputs}


def plain_generate(case, **kwargs):
    """Return the (L,) tokens of a plain call of ``model.generate()``, prefix and all."""
    plain = case.family.plain(case.processor) if callable(case.family.plain) else case.family.plain
    settings = {**plain, **VARIED, **kwargs}
    with torch.no_grad():
        output = copy.deepcopy(case.model).generate(**plain_inputs(case), return_dict_in_generate=True, **settings)
    return output.sequences[0]


def plain_logits(case, inputs, model=None, ids=None):
    """Return the (K, V) logits of a plain call of the model."""
    ids = case.target.context_ids if ids is None else ids
    with torch.no_grad():
        model = copy.deepcopy(case.model) if model is None else model
        logits = model(**inputs, decoder_input_ids=ids[None]).logits
    return logits[0, len(case.target.prefix_ids) - 1 :]


def literal_features(case, keep, fill, inputs_of=plain_inputs, logits_of=plain_logits):
    """Return the logits, (B, K, V), of spectrograms edited value by value in the model's own layout."""
    results = []
    for mask in keep:
        inputs = {name: value.clone() for name, value in inputs_of(case).items()}
        for frame, mel in (~mask).nonzero().tolist():
            case.family.set_value(inputs["input_features"], frame, mel, float(fill[mel]))
        results.append(logits_of(case, inputs))
    return torch.stack(results)


class ZeroSome(nn.Module):
    """A token embedding in which some positions of the sequence are zero."""

    def __init__(self, embedding, keep):
        super().__init__()
        self.embedding, self.keep = embedding, keep

    def forward(self, ids):
        vectors = self.embedding(ids).clone()
        for j, kept in enumerate(self.keep.tolist()):
            if not kept:
                vectors[:, j] = 0.0
        return vectors


def literal_tokens(case, keep, model=None, inputs=None):
    """Return the logits, (B, K, V), of a copy of the model whose embedding zeroes one mask after the other."""
    results = []
    for mask in keep:
        changed = copy.deepcopy(case.model if model is None else model)
        decoder = changed.get_submodule(case.family.decoder)
        decoder.embed_tokens = ZeroSome(decoder.embed_tokens, mask)
        results.append(plain_logits(case, plain_inputs(case) if inputs is None else inputs, changed))
    return torch.stack(results)


def masks(shape, seed=0, prob=0.4):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= prob


def perturbed_features(case, keep, fill):
    return torch.where(keep, case.utterance.features, fill)


def states(case):
    with torch.no_grad():
        inputs = case.adapter.model_inputs(case.utterance, case.utterance.features[None])
        return case.adapter.encoder_states(inputs)


def logits(case, **kwargs):
    with torch.no_grad():
        return case.adapter.logits(case.utterance, case.target, **kwargs)


def close(actual, expected, atol=None):
    """Check that two tensors agree: to 1e-9 in float64, else to 1e-5 of the largest value, or of 1."""
    rounding = 1e-5 * max(1.0, float(expected.nan_to_num().abs().max()))
    atol = (1e-9 if expected.dtype == torch.float64 else rounding) if atol is None else atol
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0, equal_nan=True)


def explained(case, **kwargs):
    arguments = {"config": FEW, "generate_kwargs": VARIED, "progress": False, **case.family.options, **kwargs}
    return explain(case.model, case.processor, arguments.pop("audio", case.audio), **arguments)


# The model's inputs ---------------------------------------------------------------------------------------------------


def test_features_go_in_bit_for_bit(case):
    made = case.adapter.model_inputs(case.utterance, case.utterance.features[None])
    own = plain_inputs(case)
    assert set(own) <= set(made)
    for name, value in own.items():
        assert torch.equal(made[name], value.to(made[name].dtype))


def test_changed_features_come_back_out_at_their_place(case):
    changed = torch.randn(2, *case.utterance.features.shape)
    made = case.adapter.model_inputs(case.utterance, changed)["input_features"]
    for frame, mel in [(0, 0), (1, 0), (7, 79), (10, 3), (case.family.frames - 1, 41)]:
        own = made[1:].clone()
        case.family.set_value(own, frame, mel, float(changed[1, frame, mel]))
        assert torch.equal(own, made[1:])
        case.family.set_value(own, frame, mel, 99.0)
        assert (own != made[1:]).sum() == 1


def test_inputs_of_the_utterance_are_never_written_to(case):
    before = {name: value.clone() for name, value in case.utterance.inputs.items()}
    case.adapter.model_inputs(case.utterance, torch.zeros(2, *case.utterance.features.shape))
    assert all(torch.equal(value, before[name]) for name, value in case.utterance.inputs.items())


def test_axes(case):
    frames, bins = case.utterance.features.shape
    assert frames == case.family.frames
    assert bins == case.processor.feature_extractor.feature_size
    times, frequencies = case.utterance.times, case.utterance.frequencies
    assert times.shape == (frames,) and frequencies.shape == (bins,)
    assert float(times[0]) == pytest.approx(case.family.first_time)
    assert times.diff().tolist() == pytest.approx([0.01] * (frames - 1), abs=1e-6)
    assert frequencies.diff().min() > 0 and 20 < frequencies[0] < 60 and 7600 < frequencies[-1] < 8000
    assert case.utterance.features.dtype == torch.float32
    assert case.utterance.duration_s == pytest.approx(11_400 / 16_000)


def test_axes_are_where_the_sound_is(case):
    """A beep of 2 kHz in the middle of noise is loudest at its own time and frequency."""
    t = np.arange(24_000) / 16_000
    sound = 0.01 * np.random.default_rng(0).standard_normal(len(t)) + 0.5 * np.sin(2 * np.pi * 2000 * t) * (
        np.abs(t - 0.9) < 0.02
    )
    utterance = case.adapter.encode(load_audio(sound.astype(np.float32), 16_000, 16_000))
    loud = utterance.features - utterance.features.mean(0)
    frame, mel = divmod(int(loud.argmax()), loud.shape[1])
    assert float(utterance.times[frame]) == pytest.approx(0.9, abs=0.04)
    bands = (loud[(utterance.times - 0.9).abs() < 0.01]).mean(0)
    if case.processor.feature_extractor.feature_size == 80:  # a beep this short spreads over neighbouring bins
        assert float(utterance.frequencies[int(bands.argmax())]) == pytest.approx(2000, rel=0.1)


def test_too_short_audio_is_refused(case):
    for samples in (1, 100, 300):
        waveform = load_audio(0.1 * np.sin(np.arange(samples)), 16_000, 16_000)
        with pytest.raises(AudioError, match=r"ms long, fewer than two frames.*sampling_rate"):
            case.adapter.encode(waveform)


def test_shortest_audio_is_explained(case):
    noise = 0.1 * np.random.default_rng(0).standard_normal(1_000).astype(np.float32)
    explanation = explained(case, audio=noise, generate_kwargs={"max_new_tokens": 3})
    frames, bins = case.adapter.encode(load_audio(noise, 16_000, 16_000)).features.shape
    assert 2 <= frames <= 7
    assert explanation.raw_audio.shape == (len(explanation), frames, bins) and 1 <= len(explanation) <= 3
    assert explanation.raw_audio.isfinite().all() and (explanation.raw_audio.flatten(1).std(1) > 0).all()


# The forward pass -----------------------------------------------------------------------------------------------------


def test_clean_pass_is_the_model_s_own(exact):
    expected = plain_logits(exact, plain_inputs(exact))
    assert expected.std() > 0.1
    close(logits(exact)[0], expected)
    close(logits(exact, states=states(exact))[0], expected)
    close(logits(exact, features=exact.utterance.features[None])[0], expected)


def test_clean_pass_in_float32_is_the_model_s_own(case):
    close(logits(case)[0], plain_logits(case, plain_inputs(case)), 1e-6)


@pytest.mark.parametrize("samples", [11_240, 11_600, 12_000])
def test_clean_pass_is_the_model_s_own_whatever_padding_there_is(exact, samples):
    """Encoders make one position of several frames: the last one can hold sound, padding, or both."""
    sound = np.resize(exact.audio, samples)
    utterance = exact.adapter.encode(load_audio(sound, 16_000, 16_000))
    expected = plain_logits(exact, plain_inputs(exact, sound))
    with torch.no_grad():
        found = exact.adapter.encoder_states(exact.adapter.model_inputs(utterance, utterance.features[None]))
        cross = exact.adapter.cross_attention(utterance, exact.target, found)
        for given in ({}, {"features": utterance.features[None]}, {"states": found}, {"states": found, "cross": cross}):
            close(exact.adapter.logits(utterance, exact.target, **given)[0], expected)


def test_masks_of_ones_change_nothing(exact):
    clean = logits(exact)
    keep = torch.ones(3, len(exact.target.context_ids))
    close(logits(exact, token_keep=keep), clean.expand(3, -1, -1))
    close(logits(exact, token_keep=keep.bool(), states=states(exact)), clean.expand(3, -1, -1))
    kept = perturbed_features(exact, torch.ones_like(exact.utterance.features[None], dtype=torch.bool), torch.zeros(()))
    close(logits(exact, features=kept), clean)


def test_perturbed_features_equal_the_literal_edit(exact):
    fill = exact.utterance.features.mean(0) + 0.5
    keep = masks((3, *exact.utterance.features.shape))
    actual = logits(exact, features=perturbed_features(exact, keep, fill))
    close(actual, literal_features(exact, keep, fill))
    assert (actual - logits(exact)).abs().amax((1, 2)).min() > 1e-3


def test_every_true_frame_reaches_the_model(exact):
    clean = logits(exact)
    for frame in (0, 1, exact.family.frames - 2, exact.family.frames - 1):
        keep = torch.ones(1, *exact.utterance.features.shape, dtype=torch.bool)
        keep[:, frame] = False
        features = perturbed_features(exact, keep, torch.full((keep.shape[2],), 3.0))
        assert (logits(exact, features=features) - clean).abs().max() > 1e-5


def test_perturbed_tokens_equal_the_literal_embedding(exact):
    keep = masks((5, len(exact.target.context_ids)))
    keep[0], keep[1] = False, True
    keep[1, 0] = False
    expected = literal_tokens(exact, keep)
    assert (expected - logits(exact)).abs().amax((1, 2)).min() > 1e-3
    close(logits(exact, token_keep=keep), expected)
    close(logits(exact, token_keep=keep, states=states(exact)), expected)
    close(logits(exact, token_keep=keep.float(), states=states(exact)), expected)


def test_keys_and_values_of_the_encoder_serve_every_mask(exact):
    keep, clean = masks((5, len(exact.target.context_ids))), states(exact)
    with torch.no_grad():
        cross = exact.adapter.cross_attention(exact.utterance, exact.target, clean)
    assert cross is not None and all(len(part) == 1 for layer in cross for part in layer)
    kept = copy.deepcopy(cross)
    expected = literal_tokens(exact, keep)
    for _ in range(2):  # and are left as they were
        close(logits(exact, token_keep=keep, states=clean, cross=cross), expected)
    close(logits(exact, states=clean, cross=cross), logits(exact))
    for layer, same in zip(cross, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, same, strict=True))


def test_keys_and_values_of_the_encoder_are_not_worked_out_again(exact):
    keep, clean = masks((5, len(exact.target.context_ids))), states(exact)
    with torch.no_grad():
        cross = exact.adapter.cross_attention(exact.utterance, exact.target, clean)
    projections = [
        m.k_proj
        for name, m in exact.model.get_submodule(exact.family.decoder).named_modules()
        if name.endswith(("encoder_attn", "cross_attention"))
    ]
    calls = []
    handles = [p.register_forward_hook(lambda *_: calls.append(1)) for p in projections]
    logits(exact, token_keep=keep, states=clean, cross=cross)
    assert len(projections) == 2 and not calls
    logits(exact, token_keep=keep, states=clean)
    assert len(calls) == 2
    for handle in handles:
        handle.remove()


def test_a_fraction_of_a_token_is_a_fraction_of_its_embedding(exact):
    """What a gradient with respect to a mask needs."""
    clean, j = logits(exact), len(exact.target.context_ids)
    keep = torch.ones(1, j, requires_grad=True)
    exact.adapter.logits(exact.utterance, exact.target, token_keep=keep, states=states(exact)).square().sum().backward()
    assert keep.grad is not None and keep.grad.isfinite().all() and keep.grad.abs().min() > 0
    half = logits(exact, token_keep=torch.full((1, j), 0.5), states=states(exact))
    assert 0 < (half - clean).abs().max()


def test_gradient_reaches_the_features(exact):
    features = exact.utterance.features[None].clone().requires_grad_()
    exact.adapter.logits(exact.utterance, exact.target, features=features).square().sum().backward()
    assert features.grad is not None and features.grad.shape == features.shape
    reached = features.grad[0].abs().amax(1) > 0
    assert reached.all(), (~reached).nonzero().flatten().tolist()
    for parameter in exact.model.parameters():
        parameter.grad = None


def test_both_at_once(exact):
    keep, fill = masks((1, *exact.utterance.features.shape)), exact.utterance.features.mean(0)
    token_keep = masks((1, len(exact.target.context_ids)), seed=1)
    features = perturbed_features(exact, keep, fill)
    inputs = {name: value.clone() for name, value in plain_inputs(exact).items()}
    for frame, mel in (~keep[0]).nonzero().tolist():
        exact.family.set_value(inputs["input_features"], frame, mel, float(fill[mel]))
    close(logits(exact, features=features, token_keep=token_keep), literal_tokens(exact, token_keep, inputs=inputs))


def test_one_at_a_time_equals_many_at_once(exact):
    keep, fill = masks((6, *exact.utterance.features.shape)), exact.utterance.features.mean(0)
    features, token_keep = perturbed_features(exact, keep, fill), masks((6, len(exact.target.context_ids)))
    many = logits(exact, features=features, token_keep=token_keep)
    single = [logits(exact, features=features[i : i + 1], token_keep=token_keep[i : i + 1]) for i in range(6)]
    close(torch.cat(single), many)
    clean = states(exact)
    many = logits(exact, token_keep=token_keep, states=clean)
    close(torch.cat([logits(exact, token_keep=k[None], states=clean) for k in token_keep]), many)


def test_a_later_token_never_changes_an_earlier_row(exact):
    keep = torch.ones(1, len(exact.target.context_ids), dtype=torch.bool)
    keep[:, -1] = False
    changed = (logits(exact, token_keep=keep) - logits(exact)).abs().amax(-1)[0]
    assert changed[:-1].max() < 1e-5 < changed[-1]
    assert bool(exact.target.valid[-1].all()) and not bool(exact.target.valid[:-1, -1].any())


# What is generated ----------------------------------------------------------------------------------------------------


def test_generates_what_the_model_generates(case):
    sequence = plain_generate(case)
    assert torch.cat([case.target.prefix_ids, case.target.token_ids]).tolist() == sequence.tolist()
    assert case.processor.tokenizer.convert_ids_to_tokens(case.target.prefix_ids.tolist()) == [*case.family.prefix]
    assert len(set(case.target.token_ids.tolist())) >= 6 and not case.target.complete


def test_prefix_does_not_depend_on_what_is_generated(case):
    assert torch.equal(case.adapter.prefix_ids(case.utterance, case.options).cpu(), case.target.prefix_ids)


def test_settings_of_generation_are_respected(case):
    beams = {"num_beams": 3, "max_new_tokens": 5, "no_repeat_ngram_size": 1}
    target = case.adapter.generate(case.utterance, GenerationOptions(**case.family.options, generate_kwargs=beams))
    sequence = plain_generate(case, **beams)
    assert torch.cat([target.prefix_ids, target.token_ids]).tolist() == sequence.tolist()
    assert len(target.token_ids) <= 5 and not target.complete
    assert target.context_ids.tolist() == [*target.prefix_ids.tolist(), *target.token_ids[:-1].tolist()]


def test_end_of_sequence_is_the_last_token_and_explained(case):
    """The start token can be the end-of-sequence token too; only the first one after the prefix ends the output."""
    eos = case.adapter.eos_token_id
    settings = {"max_new_tokens": 5, "forced_eos_token_id": eos}
    target = case.adapter.generate(case.utterance, GenerationOptions(**case.family.options, generate_kwargs=settings))
    assert target.complete and target.token_ids[-1] == eos and eos not in target.token_ids[:-1]
    assert case.processor.tokenizer.convert_ids_to_tokens(target.prefix_ids.tolist()) == [*case.family.prefix]


def test_generates_from_other_features(case):
    other = 5 * torch.randn(case.utterance.features.shape, generator=torch.Generator().manual_seed(3))
    target = case.adapter.generate(case.utterance, case.options, other)
    assert torch.equal(target.prefix_ids, case.target.prefix_ids)
    assert target.token_ids.tolist() != case.target.token_ids.tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_generating_gives_the_states_of_its_encoder_at_no_extra_pass(case, beams):
    other = 5 * torch.randn(case.utterance.features.shape, generator=torch.Generator().manual_seed(3))
    settings = GenerationOptions(**case.family.options, generate_kwargs={**VARIED, "num_beams": beams})
    passes = []
    handle = case.adapter.encoder.register_forward_hook(lambda *_: passes.append(1))
    plain_generate(case, num_beams=beams)  # in a copy, whose encoder has the hook as well
    own, passes[:] = len(passes), []
    target, found = case.adapter.generate_with_states(case.utterance, settings, other)
    handle.remove()
    assert len(passes) == own == 1 and not case.adapter.encoder._forward_hooks
    assert torch.equal(target.token_ids, case.adapter.generate(case.utterance, settings, other).token_ids)
    with torch.no_grad():
        expected = case.adapter.encoder_states(case.adapter.model_inputs(case.utterance, other[None]))
    assert torch.equal(found, expected)
    # Which is as good as the features themselves for the teacher-forced pass, a batch of them too.
    clean = logits(case)
    both = torch.cat([found, states(case)])
    close(logits(case, states=both), torch.cat([logits(case, features=other[None]), clean]))


def test_text_is_written_as_the_model_writes_it(case):
    target = case.adapter.encode_text(case.utterance, TEXT, case.options)
    assert target.complete and target.token_ids[-1] == case.adapter.eos_token_id
    assert torch.equal(target.prefix_ids, case.target.prefix_ids)
    assert case.adapter.text(target.token_ids) == TEXT
    assert "".join(case.adapter.pieces(target.token_ids[:-1])).encode("utf-8", "surrogateescape").decode() == " " + TEXT
    again = case.adapter.encode_text(case.utterance, f"  {case.adapter.text(target.token_ids)} ", case.options)
    assert torch.equal(again.token_ids, target.token_ids)
    assert case.adapter.is_special(target.token_ids) == [False] * (len(target.token_ids) - 1) + [True]
    special = zip(case.family.prefix, case.adapter.is_special(target.prefix_ids), strict=True)
    assert [token for token, is_special in special if not is_special] == [t for t in case.family.prefix if t == "▁"]


def questions(adapter, monkeypatch, ask):
    """Return how often a function asks the tokenizer for names or numbers of tokens."""
    kind, asked = type(adapter.tokenizer), []
    with monkeypatch.context() as patch:
        for name in ("convert_ids_to_tokens", "convert_tokens_to_ids"):
            really = getattr(kind, name)
            patch.setattr(kind, name, lambda *a, really=really, **k: asked.append(1) or really(*a, **k))
        ask()
    return len(asked)


@pytest.mark.parametrize("method", ["is_special", "is_timestamp", "pieces"])
def test_the_tokenizer_is_asked_once_for_all_tokens(case, monkeypatch, method):
    one, many = torch.arange(40, 41), torch.arange(10, 60)
    ask = getattr(case.adapter, method)
    assert questions(case.adapter, monkeypatch, lambda: ask(many)) == questions(
        case.adapter, monkeypatch, lambda: ask(one)
    )


def test_text_that_the_model_cannot_write_is_refused(case):
    unknown = "<|en|>" if case.model.config.model_type == "whisper" else "日本"
    for text, message in (("", "text is ''"), (f"hund {unknown}", "tokens that the model cannot write")):
        with pytest.raises(ConfigError, match=message):
            case.adapter.encode_text(case.utterance, text, case.options)


def test_wrong_options_are_refused(case):
    for options, message in case.family.wrong:
        with pytest.raises(ConfigError, match=message):
            explain(case.model, case.processor, case.audio, config=FEW, progress=False, **options)
        with pytest.raises(ConfigError, match=message):
            explain(case.model, case.processor, case.audio, text=TEXT, config=FEW, progress=False, **options)


def test_wrong_processor_is_refused(case, cases):
    other = cases("whisper" if case.model.config.model_type != "whisper" else "speech_to_text")
    with pytest.raises(UnsupportedModelError, match=f"processor is a {type(other.processor).__name__}.*expected"):
        get_adapter(case.model, other.processor)


def test_processor_of_another_checkpoint_is_refused(case):
    processor = copy.deepcopy(case.processor)
    processor.feature_extractor.num_mel_bins = processor.feature_extractor.feature_size = 40
    with pytest.raises(UnsupportedModelError, match="40 mel bins.*same checkpoint"):
        get_adapter(case.model, processor)


# The whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.numerics
def test_explanation_is_the_same_for_every_batch_size(case):
    first, other = (explained(case, config=LOUD, batch_size=size) for size in (1, 4))  # of 6 masks a level
    tokens, context = len(case.target.token_ids), len(case.target.context_ids)
    assert first.raw_audio.shape == (tokens, *case.utterance.features.shape)
    assert first.raw_token.shape == (tokens, context)
    assert first.token_ids == case.target.token_ids.tolist()
    assert float(first.raw_audio.max()) > 1e-4 and float(first.raw_token.nan_to_num().max()) > 1e-4
    assert_explanations_agree(other, first)


def test_explains_a_given_text(case):
    explanation = explained(case, text=TEXT)
    assert explanation.text == TEXT and explanation.token_ids[-1] == case.adapter.eos_token_id


def snapshot(model):
    """Return all of a model that a call could change."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "training": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "modules": [id(module) for module in model.modules()],
        "generation": json.dumps(model.generation_config.to_dict(), sort_keys=True, default=str),
        "config": json.dumps(model.config.to_dict(), sort_keys=True, default=str),
        "modality": (model.main_input_name, getattr(model, "current_modality", None)),
        "attributes": {name for name in vars(model)},
        "gradients": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "random": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),
    }


def assert_untouched(model, before):
    after = snapshot(model)
    assert all(torch.equal(after["state"][name], value) for name, value in before.pop("state").items())
    after.pop("state")
    for name, value in before.items():
        assert after[name] == value, name


@pytest.mark.parametrize("mode", ["eval", "train", "mixed"])
def test_model_is_left_as_it_was(case, mode):
    model, processor = case.copy()
    model.train(mode != "eval")
    if mode == "mixed":
        next(iter(model.children())).eval()
        next(iter(model.parameters())).requires_grad_(False)
    before = snapshot(model)
    spoilt = explain(
        model, processor, case.audio, config=FEW, generate_kwargs=VARIED, progress=False, **case.family.options
    )
    assert_untouched(model, before)
    close(spoilt.raw_audio, explained(case).raw_audio)  # no dropout, whatever the mode was


@pytest.mark.parametrize("where", ["decoder", "output"])
def test_model_is_left_as_it_was_after_an_exception(case, where, monkeypatch):
    model, processor = case.copy()
    model.train()
    before, calls = snapshot(model), []
    module = model.get_submodule(case.family.decoder) if where == "decoder" else model.get_output_embeddings()

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) > 12:  # in the middle of the masks
            raise KeyError("broken")
        return type(module).forward(module, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyError, match="broken"):
        patch.setattr(module, "forward", fail)
        explain(model, processor, case.audio, config=FEW, generate_kwargs=VARIED, batch_size=2, **case.family.options)
    vars(module).pop("forward", None)
    assert_untouched(model, before)


def test_model_can_be_trained_afterwards(case):
    model, processor = case.copy()
    explain(model, processor, case.audio, config=FEW, generate_kwargs=VARIED, progress=False, **case.family.options)
    untouched, _ = case.copy()
    for one in (model, untouched):
        logits = one(**plain_inputs(case), decoder_input_ids=case.target.context_ids[None]).logits
        logits.log_softmax(-1)[..., 0].sum().backward()
    gradients = [(one.grad, other.grad) for one, other in zip(model.parameters(), untouched.parameters(), strict=True)]
    assert sum(bool(other.any()) for _, other in gradients if other is not None) > len(gradients) / 4
    for one, other in gradients:  # each of those that would have one without having been explained
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(case, dtype):
    model, processor = case.copy()
    model.to(dtype)
    arguments = dict(config=FEW, text=TEXT, generate_kwargs={}, progress=False, **case.family.options)
    half = explain(model, processor, case.audio, **arguments)
    full = explain(case.model, case.processor, case.audio, **arguments)
    assert half.features.dtype == half.raw_audio.dtype == torch.float32
    assert torch.equal(half.features, full.features)
    assert half.raw_audio.isfinite().all()
    together = torch.stack([half.raw_audio.flatten(), full.raw_audio.flatten()])
    assert torch.corrcoef(together)[0, 1] > (0.98 if dtype == torch.float16 else 0.8)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}

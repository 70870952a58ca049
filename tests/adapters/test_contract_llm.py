"""What the adapter of every speech LLM must do, on a tiny random model. New families: one entry in ``tiny_llm.LLMS``.

What the adapters are compared with is written without them (``plain_llm``): the processor's own placeholders and masks,
plain calls of the model, its input edited value by value, its embedding replaced by a module in a copy of the model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_llm import audio_of, literal_features, literal_tokens, plain, plain_generate, plain_logits, sound_of
from test_contract import close, explained, logits, masks, states
from tiny_llm import INSTRUCTION

from spes_hf import AudioError
from spes_hf.adapters import GenerationOptions, get_adapter
from spes_hf.audio.load import load_audio


@pytest.fixture
def case(llm):
    """Each family in turn."""
    return llm


@pytest.fixture
def exact(exact_llm):
    """Each family in turn in float64, where equal means equal to 1e-9."""
    return exact_llm


# The model's inputs ---------------------------------------------------------------------------------------------------


def test_features_go_in_bit_for_bit(case):
    made = case.adapter.generation_inputs(
        case.adapter.model_inputs(case.utterance, case.utterance.features[None].to(case.model.dtype))
    )
    own = audio_of(plain(case))
    assert set(own) == set(made)
    for name, value in own.items():
        assert torch.equal(made[name], value.to(made[name].dtype)), name


def test_changed_features_come_back_out_at_their_place(case):
    changed = torch.randn(2, *case.utterance.features.shape)
    both = case.adapter.model_inputs(case.utterance, changed)
    made = case.adapter.generation_inputs({name: value[1:] for name, value in both.items()})["input_features"]
    for frame, mel in [(0, 0), (1, 0), (7, 79), (10, 3), (case.family.frames - 1, 41)]:
        own = made.clone()
        case.family.set_value(own, frame, mel, float(changed[1, frame, mel]))
        assert torch.equal(own, made)
        case.family.set_value(own, frame, mel, 99.0)
        assert (own != made).sum() == 1


def test_inputs_of_the_utterance_are_never_written_to(case):
    before = {name: value.clone() for name, value in case.utterance.inputs.items()}
    case.adapter.model_inputs(case.utterance, torch.zeros(2, *case.utterance.features.shape))
    assert all(torch.equal(value, before[name]) for name, value in case.utterance.inputs.items())


def test_axes(case):
    frames, bins = case.utterance.features.shape
    assert frames == case.family.frames
    times, frequencies = case.utterance.times, case.utterance.frequencies
    assert times.shape == (frames,) and frequencies.shape == (bins,)
    assert float(times[0]) == pytest.approx(case.family.first_time)
    assert times.diff().tolist() == pytest.approx([0.01] * (frames - 1), abs=1e-6)
    assert frequencies.diff().min() > 0 and 10 < frequencies[0] < 60 and 7600 < frequencies[-1] < 8000
    assert case.utterance.features.dtype == torch.float32


def test_frequencies_are_those_of_the_processor_s_filters(case):
    granite = getattr(case.processor, "audio_processor", None)
    filters = case.processor.feature_extractor.mel_filters if granite is None else granite.mel_filters.mel_scale.fb
    filters = torch.as_tensor(filters)
    width, used = 8_000 / (len(filters) - 1), filters.amax(0) > 0
    assert used.sum() > 75 and filters.shape[1] == len(case.utterance.frequencies)
    peaks = filters.argmax(0) * width
    assert float((peaks - case.utterance.frequencies)[used].abs().max()) <= width / 2 + 0.5


def test_axes_are_where_the_sound_is(case):
    """A beep of 2 kHz in noise is loudest at its own time and frequency."""
    t = np.arange(24_000) / 16_000
    sound = 0.01 * np.random.default_rng(0).standard_normal(len(t)) + 0.5 * np.sin(2 * np.pi * 2000 * t) * (
        np.abs(t - 0.9) < 0.02
    )
    utterance = case.adapter.encode(load_audio(sound.astype(np.float32), 16_000, 16_000))
    loud = utterance.features - utterance.features.mean(0)
    assert float(utterance.times[int(loud.amax(1).argmax())]) == pytest.approx(0.9, abs=0.04)
    bands = loud[(utterance.times - 0.9).abs() < 0.01].mean(0)
    assert float(utterance.frequencies[int(bands.argmax())]) == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize("seconds", [0.3, 0.7125, 1.0, 1.47, 1.99, 3.5])
def test_each_audio_embedding_lies_where_the_frames_are_that_it_is_made_of(case, seconds):
    """A click moves the embeddings around it alone, where the encoder's layers, which look everywhere, are left out."""
    model, processor = case.copy()
    adapter = get_adapter(model, processor)
    adapter.encoder.layers = torch.nn.ModuleList([])
    utterance = adapter.encode(load_audio(sound_of(case, round(16_000 * seconds)), 16_000, 16_000))
    positions = adapter.encoder_positions(utterance)
    features = utterance.features[None].clone().requires_grad_()
    embeddings = adapter.encoder_states(adapter.model_inputs(utterance, features))[0]
    assert len(embeddings) == adapter.audio_length(utterance) >= len(positions)
    chunk = case.family.chunk
    for s in range(len(positions)):
        (gradient,) = torch.autograd.grad(embeddings[s].square().sum(), features, retain_graph=True)
        reached = gradient[0].abs().amax(1).nonzero()[:, 0]
        first, last = int(reached[0]), int(reached[-1])
        assert len(reached) == last - first + 1  # next to each other
        assert utterance.times[first] - 0.005 <= positions.times[s] <= utterance.times[last] + 0.005
        cut = first % chunk == 0 or last % chunk == chunk - 1 or last == len(utterance.times) - 1
        if not cut:  # a whole window, whose centre says where it lies
            centre = float(utterance.times[first] + utterance.times[last]) / 2
            assert float(positions.times[s]) == pytest.approx(centre, abs=case.family.slack_s + 1e-5)
    nearest = positions.nearest
    assert nearest[0] == 0 and nearest[-1] == len(positions) - 1 and set(nearest.diff().tolist()) <= {0, 1}


def test_too_short_audio_is_refused(case):
    for samples in (1, 100, 300):
        waveform = load_audio(0.1 * np.sin(np.arange(samples)), 16_000, 16_000)
        with pytest.raises(AudioError, match=r"ms long, fewer than .* frames.*sampling_rate"):
            case.adapter.encode(waveform)


def test_shortest_audio_is_explained(case):
    noise = 0.1 * np.random.default_rng(0).standard_normal(1_000).astype(np.float32)
    explanation = explained(case, audio=noise, generate_kwargs={"max_new_tokens": 3})
    assert explanation.raw_audio.isfinite().all() and (explanation.raw_audio.flatten(1).std(1) > 0).all()


# Prompt and placeholders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [None, INSTRUCTION])
def test_the_sequence_is_the_processor_s(case, prompt):
    """Placeholders, as many as the processor makes, at their place, and all of the text around them."""
    options = case.family.options if prompt is None else {**case.family.options, "prompt": prompt}
    own = plain(case, options)["input_ids"][0]
    start = case.adapter.start(GenerationOptions(**options))
    length = case.adapter.audio_length(case.utterance)
    assert length == case.family.audio_tokens == int((own == case.model.config.audio_token_id).sum())
    whole = case.adapter.whole_ids(replace(start, token_ids=case.target.token_ids), length)
    assert whole[: len(own)].tolist() == own.tolist()
    assert whole[len(own) :].tolist() == case.target.token_ids[:-1].tolist()
    pieces = case.adapter.pieces(start.prefix_ids)
    before, behind = case.family.before, case.family.behind
    if prompt is None:
        assert "".join(pieces[: start.audio_at]) == before and "".join(pieces[start.audio_at :]) == behind
    shown = "".join(pieces[j] for j in start.instruction)
    assert shown == (case.family.instruction if prompt is None else case.family.told)
    assert states(case).shape[:2] == (1, length)


def test_a_prompt_is_made_once(case, monkeypatch):
    """By the processor, which reads templates and makes features of silence for it."""
    kind, made = type(case.adapter), []
    really = kind.prompt_ids
    monkeypatch.setattr(kind, "prompt_ids", lambda self, options: made.append(options) or really(self, options))
    adapter = get_adapter(case.model, case.processor)
    for options in (case.options, GenerationOptions(prompt=INSTRUCTION)):
        first, _ = adapter.start(options), made.clear()
        for again in (options, replace(options, generate_kwargs={"max_new_tokens": 2})):
            adapter.check_options(again)
            adapter.generate(case.utterance, again)
            adapter.encode_text(case.utterance, "garden", again)
        assert not made and torch.equal(adapter.start(options).prefix_ids, first.prefix_ids)


@pytest.mark.parametrize("samples", [8_000, 11_401, 15_999, 16_000, 16_001, 20_000, 31_999, 32_001, 56_000])
def test_placeholders_are_as_many_as_the_processor_makes(case, samples):
    noise = sound_of(case, samples)
    utterance = case.adapter.encode(load_audio(noise, 16_000, 16_000))
    ids = plain(case, audio=noise)["input_ids"]
    assert case.adapter.audio_length(utterance) == int((ids == case.model.config.audio_token_id).sum())
    with torch.no_grad():
        assert case.adapter.encoder_states(utterance.inputs).shape[1] == case.adapter.audio_length(utterance)


def test_placeholders_are_no_context(case):
    explanation = explained(case)
    prefix = case.target.prefix_ids
    assert case.model.config.audio_token_id not in case.target.context_ids.tolist()
    assert explanation.prefix_length == len(prefix) and explanation.origin.audio_at == case.target.audio_at
    assert len(explanation.context_tokens) == len(prefix) + len(case.target.token_ids) - 1
    assert explanation.words().context_tokens[: len(prefix)] == explanation.context_tokens[: len(prefix)]


def test_a_padded_sequence_reads_the_same(case):
    """As in a batch: padding on the left, behind a mask."""
    inputs, pad = plain(case), case.model.generation_config.pad_token_id
    ids = torch.cat([inputs["input_ids"][0].new_full((5,), pad), inputs["input_ids"][0], case.target.token_ids[:-1]])
    mask = torch.ones_like(ids)
    mask[:5] = 0
    with torch.no_grad():
        found = case.model(input_ids=ids[None], attention_mask=mask[None], **audio_of(inputs)).logits
    close(logits(case)[0], found[0, -len(case.target.token_ids) :], 1e-4)


# The forward pass -----------------------------------------------------------------------------------------------------


def test_clean_pass_is_the_model_s_own(exact):
    expected = plain_logits(exact)
    assert expected.std() > 0.1
    close(logits(exact)[0], expected)
    close(logits(exact, states=states(exact))[0], expected)
    close(logits(exact, features=exact.utterance.features[None])[0], expected)


def test_perturbed_features_equal_the_literal_edit(exact):
    fill = exact.utterance.features.mean(0) + 0.5
    keep = masks((3, *exact.utterance.features.shape))
    actual = logits(exact, features=torch.where(keep, exact.utterance.features, fill))
    close(actual, literal_features(exact, keep, fill))
    assert (actual - logits(exact)).abs().amax((1, 2)).min() > 1e-3


def test_every_true_frame_reaches_the_model(exact):
    clean = logits(exact)
    for frame in (0, 1, exact.family.frames - 2, exact.family.frames - 1):
        changed = exact.utterance.features[None].clone()
        changed[:, frame] += 3.0
        assert (logits(exact, features=changed) - clean).abs().max() > 1e-6


def test_perturbed_tokens_equal_the_literal_embedding(exact):
    """Of prompt and output alike; the audio stays."""
    keep = masks((5, len(exact.target.context_ids)))
    keep[0], keep[1] = False, True
    keep[1, 0] = False
    expected = literal_tokens(exact, keep)
    assert (expected - logits(exact)).abs().amax((1, 2)).min() > 1e-3
    close(logits(exact, token_keep=keep), expected)
    close(logits(exact, token_keep=keep, states=states(exact)), expected)
    close(logits(exact, token_keep=keep.float(), states=states(exact)), expected)


def test_no_mask_over_tokens_hides_the_audio(exact):
    nothing = torch.zeros(1, len(exact.target.context_ids), dtype=torch.bool)
    louder = states(exact) * 1.5
    heard, other = logits(exact, token_keep=nothing), logits(exact, token_keep=nothing, states=louder)
    assert (heard - other).abs().max() > 1e-3


def test_both_at_once(exact):
    keep, fill = masks((1, *exact.utterance.features.shape)), exact.utterance.features.mean(0)
    token_keep = masks((1, len(exact.target.context_ids)), seed=1)
    inputs = {name: value.clone() for name, value in plain(exact).items()}
    for frame, mel in (~keep[0]).nonzero().tolist():
        exact.family.set_value(inputs["input_features"], frame, mel, float(fill[mel]))
    features = torch.where(keep, exact.utterance.features, fill)
    close(logits(exact, features=features, token_keep=token_keep), literal_tokens(exact, token_keep, inputs))


def test_one_at_a_time_equals_many_at_once(exact):
    keep, fill = masks((4, *exact.utterance.features.shape)), exact.utterance.features.mean(0)
    features = torch.where(keep, exact.utterance.features, fill)
    token_keep = masks((4, len(exact.target.context_ids)))
    many = logits(exact, features=features, token_keep=token_keep)
    single = [logits(exact, features=features[i : i + 1], token_keep=token_keep[i : i + 1]) for i in range(4)]
    close(torch.cat(single), many)
    with torch.no_grad():
        perturbed = exact.adapter.encoder_states(exact.adapter.model_inputs(exact.utterance, features))
    close(logits(exact, states=perturbed, token_keep=token_keep), many)


def test_masks_of_ones_change_nothing(exact):
    keep = torch.ones(3, len(exact.target.context_ids))
    close(logits(exact, token_keep=keep), logits(exact).expand(3, -1, -1))


def test_a_fraction_of_a_token_is_a_fraction_of_its_embedding(exact):
    keep = torch.ones(1, len(exact.target.context_ids), requires_grad=True)
    exact.adapter.logits(exact.utterance, exact.target, token_keep=keep).square().sum().backward()
    assert keep.grad is not None and keep.grad.isfinite().all() and keep.grad.abs().min() > 0
    exact.model.zero_grad(set_to_none=True)


def test_gradient_reaches_every_true_frame(exact):
    features = exact.utterance.features[None].clone().requires_grad_()
    exact.adapter.logits(exact.utterance, exact.target, features=features).square().sum().backward()
    assert features.grad is not None and (features.grad[0].abs().amax(1) > 0).all()
    exact.model.zero_grad(set_to_none=True)


def test_a_later_token_never_changes_an_earlier_row(exact):
    keep = torch.ones(1, len(exact.target.context_ids), dtype=torch.bool)
    keep[:, -1] = False
    changed = (logits(exact, token_keep=keep) - logits(exact)).abs().amax(-1)[0]
    assert changed[:-1].max() < 1e-5 < changed[-1]


def test_states_spare_the_encoder_a_pass(case):
    calls = []
    handle = case.adapter.encoder.register_forward_hook(lambda *_: calls.append(1))
    clean = states(case)
    calls.clear()
    logits(case, states=clean, token_keep=torch.ones(2, len(case.target.context_ids)))
    assert not calls
    logits(case)
    assert calls == [1]
    handle.remove()


def test_no_cache_is_left_in_the_pass(case):
    """A cache would hold the prompt of the mask before."""
    kept = []

    def keep(module, args, kwargs):
        kept.append((kwargs.get("use_cache"), kwargs.get("cache", kwargs.get("past_key_values"))))

    handle = case.adapter.core.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    logits(case)
    handle.remove()
    assert kept == [(False, None)]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_implementation_of_attention_does_not_matter(case, implementation):
    model, processor = case.copy()
    model.set_attn_implementation({"text_config": implementation})
    adapter = get_adapter(model, processor)
    with torch.no_grad():
        close(adapter.logits(case.utterance, case.target), logits(case), 1e-4)
    found = adapter.attention_weights(case.utterance, case.target)
    torch.testing.assert_close(found, case.adapter.attention_weights(case.utterance, case.target), atol=1e-5, rtol=1e-4)
    assert model.config.get_text_config()._attn_implementation == implementation


def test_attention_is_that_of_the_language_model(exact):
    found = exact.adapter.attention_weights(exact.utterance, exact.target)
    model, inputs = exact.copy()[0], plain(exact)
    model.set_attn_implementation("eager")
    ids = torch.cat([inputs["input_ids"][0], exact.target.token_ids[:-1]])
    with torch.no_grad():
        output = model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            output_attentions=True,
            **audio_of(inputs),
        )
    places = (ids == exact.model.config.audio_token_id).nonzero()[:, 0]
    expected = torch.stack(output.attentions)[:, 0, :, -len(exact.target.token_ids) :][..., places]
    assert found.shape == expected.shape and found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=0)
    assert (found.sum(-1) < 1).all() and found.min() > 0


def test_several_chunks(exact):
    """All that reads or writes the audio, on 3.5 s: chunks of 1 s, of 2 s, windows of 0.3 s."""
    audio = sound_of(exact, 56_000)
    utterance = exact.adapter.encode(load_audio(audio, 16_000, 16_000))
    target, found = exact.adapter.generate_with_states(utterance, exact.options)
    with torch.no_grad():
        close(found, exact.adapter.encoder_states(utterance.inputs))
    long = replace(exact, audio=audio, utterance=utterance, target=target)
    sequence = plain_generate(long)
    own = sequence[sequence != exact.model.config.audio_token_id]
    assert [*target.prefix_ids.tolist(), *target.token_ids.tolist()] == own.tolist()
    close(logits(long)[0], plain_logits(long))
    keep = torch.ones(3, *utterance.features.shape, dtype=torch.bool)
    for i, frames in enumerate((slice(0, 5), slice(98, 103), slice(198, 340))):
        keep[i, frames] = masks((frames.stop - frames.start, keep.shape[2]), seed=i)
    fill = utterance.features.mean(0) + 0.5
    actual = logits(long, features=torch.where(keep, utterance.features, fill))
    close(actual, literal_features(long, keep, fill))
    assert (actual - logits(long)).abs().amax((1, 2)).min() > 1e-6
    token_keep = masks((2, len(target.context_ids)))
    close(logits(long, token_keep=token_keep), literal_tokens(long, token_keep))

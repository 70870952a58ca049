"""Traps of single speech LLMs, each with a test that fails without its cure."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_llm import literal_tokens, plain, plain_generate, plain_logits
from settings import pyramid
from test_contract import assert_untouched, explained, snapshot
from tiny import VARIED
from tiny_llm import INSTRUCTION, LLMS

from spes_hf import AudioError, ConfigError, Deletion, UnsupportedModelError, explain
from spes_hf.adapters import GenerationOptions, get_adapter
from spes_hf.audio.load import load_audio

FEW = pyramid(num_spectrogram_masks=6, num_token_masks=4)


def dated(processor, day):
    """Return a copy of a processor whose chat template writes the day in front, as some do with that of today."""
    found = copy.deepcopy(processor)
    holder = found if getattr(found, "chat_template", None) else found.tokenizer
    holder.chat_template = f"{day} {holder.chat_template}"
    return found


@pytest.mark.parametrize("name", ["granite_speech", "qwen2_audio", "qwen3_asr"])
def test_metrics_use_the_prompt_of_then(cases, name):
    """A chat template may have the date in it, and the model writes something else the day after."""
    case = cases(name)
    before, after = (dated(case.processor, day) for day in ("garden", "perro"))
    settings = {"config": FEW, "generate_kwargs": VARIED, "progress": False, **case.family.options}
    explanation = explain(case.model, before, case.audio, **settings)
    assert explain(case.model, after, case.audio, **settings).text != explanation.text
    found = Deletion(case.model, after, fractions=(0.0, 1.0))(explanation)["deletion"]
    assert found["texts"][0] == explanation.text


def test_a_prompt_of_then_has_no_instruction_by_the_template_of_now(cases):
    """The day in front of it is no instruction, though no prompt of the day after has it."""
    case = cases("qwen2_audio")
    before, after = (get_adapter(case.model, dated(case.processor, day)) for day in ("garden", "perro"))
    then = before.start(case.options)
    again = after.start(after.as_before(case.options, then.prefix_ids.tolist(), then.audio_at))
    assert torch.equal(again.prefix_ids, then.prefix_ids) and again.audio_at == then.audio_at
    assert then.instruction and again.instruction == ()


def test_qwen2_audio_reads_thirty_seconds(cases):
    case = cases("qwen2_audio")
    long = np.random.default_rng(0).standard_normal(33_000).astype(np.float32)
    with pytest.raises(AudioError, match='reads at most 2 s; pass segment="pauses"'):
        case.adapter.encode(load_audio(long, 16_000, 16_000))


@pytest.mark.parametrize("name", ["qwen2_audio", "qwen3_asr", "voxtral"])
def test_a_processor_of_another_checkpoint_is_refused(cases, name):
    case = cases(name)
    processor = copy.deepcopy(case.processor)
    processor.feature_extractor.feature_size = 40
    with pytest.raises(UnsupportedModelError, match="40 mel bins.*same checkpoint"):
        get_adapter(case.model, processor)


def test_granite_s_processor_of_another_checkpoint_is_refused(cases):
    case = cases("granite_speech")
    processor = copy.deepcopy(case.processor)
    processor.audio_processor.melspec_kwargs["n_mels"] = 40
    with pytest.raises(UnsupportedModelError, match="40 mel bins.*same checkpoint"):
        get_adapter(case.model, processor)


def test_a_chat_template_that_fails_is_refused_but_a_stored_prompt_needs_none(cases):
    case = cases("qwen3_asr")
    stored = case.adapter.start(case.options)
    _, processor = case.copy()
    processor = copy.deepcopy(processor)
    processor.chat_template = "{{ raise_exception('only for chats') }}{{ content }}"
    adapter = type(case.adapter)(case.model, processor)
    with pytest.raises(ConfigError, match="cannot make a prompt: only for chats; load the processor of the checkpoint"):
        adapter.check_options(case.options)
    again = adapter.as_before(case.options, stored.prefix_ids.tolist(), stored.audio_at)
    adapter.check_options(again)
    assert torch.equal(adapter.start(again).prefix_ids, stored.prefix_ids)


def test_a_chat_template_without_a_place_for_the_audio_is_refused(cases):
    case = cases("qwen2_audio")
    processor = copy.deepcopy(case.processor)
    processor.chat_template = "{% for message in messages %}{{ message.role }}{% endfor %}"
    with pytest.raises(ConfigError, match="0 places for the audio"):
        explain(case.model, processor, case.audio, config=FEW, progress=False)


@pytest.mark.parametrize("name", ["granite_speech", "qwen2_audio", "qwen3_asr"])
def test_a_chat_template_that_was_changed_makes_another_prompt(cases, name):
    case = cases(name)
    processor = dated(case.processor, "garden")
    adapter = get_adapter(case.model, processor)

    def prompt():
        return "".join(adapter.pieces(adapter.start(case.options).prefix_ids))

    before = prompt()
    holder = processor if processor.chat_template else processor.tokenizer
    holder.chat_template = holder.chat_template.replace("garden", "perro")
    assert before.startswith("garden") and prompt() == before.replace("garden", "perro", 1)


@pytest.mark.parametrize("options", [{}, {"prompt": INSTRUCTION}])
@pytest.mark.parametrize("name", ["granite_speech", "qwen2_audio", "qwen3_asr"])
def test_a_processor_that_makes_no_prompt_is_not_the_option_s_fault(cases, name, options):
    case = cases(name)
    processor = copy.deepcopy(case.processor)
    processor.chat_template = processor.tokenizer.chat_template = None
    adapter = get_adapter(case.model, processor)
    with pytest.raises(
        ConfigError, match="^[A-Za-z0-9]*Processor cannot make a prompt: .*chat.template.*; load the processor"
    ):
        adapter.options_of(**case.family.options, **options)


@pytest.mark.parametrize("options", [{}, {"prompt": INSTRUCTION}])
def test_of_several_options_the_one_that_the_processor_refuses_is_named(cases, options):
    with pytest.raises(ConfigError, match="^language is 'xx', which the processor refuses: "):
        cases("qwen3_asr").adapter.options_of(language="xx", **options)


def test_qwen3_asr_writes_the_language_itself(cases):
    """Where none is forced; what comes before the mark is explained, and no part of the text."""
    case = cases("qwen3_asr")
    mark = case.processor.tokenizer.convert_tokens_to_ids("<asr_text>")
    ids = torch.tensor([*case.adapter.inner_ids("language German"), mark, *case.adapter.inner_ids("der hund"), 321])
    assert case.adapter.text(ids[:-1]) == "der hund" and case.adapter.text(ids[-2:-1]) != ""
    special = case.adapter.is_special(ids)
    assert special[ids.tolist().index(mark)] and sum(special[:-1]) == 1
    start = case.adapter.start(GenerationOptions())
    assert "".join(case.adapter.pieces(start.prefix_ids)).endswith("assistant\n") and start.instruction == ()


def test_qwen3_asr_pads_short_clips_with_zeros_that_are_no_sound(cases):
    case = cases("qwen3_asr")
    utterance = case.adapter.encode(load_audio(case.audio[:3_200], 16_000, 16_000))
    assert len(utterance.features) == 20 and int(utterance.inputs["input_features_mask"].sum()) == 50
    assert case.adapter.audio_length(utterance) == 7 and len(case.adapter.encoder_positions(utterance)) == 3


def test_voxtral_takes_a_language_for_its_own_transcription(cases):
    case = cases("voxtral")
    settings = GenerationOptions(language="de", generate_kwargs=VARIED)
    start = case.adapter.start(settings)
    pieces = case.adapter.pieces(start.prefix_ids)
    assert "".join(pieces[start.audio_at :]) == "[/INST]lang:de[TRANSCRIBE]"
    assert "".join(pieces[j] for j in start.instruction) == "lang:de"
    sequence = plain_generate(case, {"language": "de"})
    target = case.adapter.generate(case.utterance, settings)
    assert [*target.prefix_ids.tolist(), *target.token_ids.tolist()] == sequence[sequence != 24].tolist()


def test_voxtral_refuses_beams_over_several_chunks(cases):
    """``generate()`` copies each chunk in place, and every beam hears a mixture."""
    case = cases("voxtral")
    long = (0.1 * np.random.default_rng(0).standard_normal(40_000)).astype(np.float32)
    with pytest.raises(ConfigError, match="num_beams is 2, but the audio has 2 chunks"):
        explained(case, audio=long, generate_kwargs={"num_beams": 2, "max_new_tokens": 4})


def test_granite_hears_with_its_lora(cases):
    """A text alone switches it off; the model is explained as it hears, and left as it was."""
    peft = pytest.importorskip("peft")
    case = cases("granite_speech")
    model, processor = case.copy()
    places = r".*(language_model.*(q_proj|v_proj)|projector\.linear)"
    lora = peft.LoraConfig(r=4, target_modules=places, init_lora_weights=False)
    model = peft.inject_adapter_in_model(lora, model)
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    settings = dict(config=FEW, text="der kleine hund", progress=False)
    on = explain(model, processor, case.audio, **settings)
    for layer in layers:
        layer.enable_adapters(False)
    frozen = [p.requires_grad for p in model.parameters()]
    off = explain(model, processor, case.audio, **settings)
    torch.testing.assert_close(off.probabilities, on.probabilities)
    torch.testing.assert_close(off.raw_audio, on.raw_audio)
    assert len(layers) == 5 and all(layer.disable_adapters for layer in layers)
    assert frozen == [p.requires_grad for p in model.parameters()]
    without = explain(case.model, processor, case.audio, **settings)
    assert not torch.allclose(without.probabilities, on.probabilities)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("on", [False, True])
def test_what_learns_of_granite_s_lora_is_as_it_was(cases, on, learns, monkeypatch):
    """Its ``generate()`` switches the adapter on, and PEFT has weights learn where that is on and nowhere else."""
    peft = pytest.importorskip("peft")
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)  # any that is installed
    case = cases("granite_speech")
    model, processor = case.copy()
    model.add_adapter(peft.LoraConfig(r=4, target_modules=".*language_model.*(q_proj|v_proj)"))
    (model.enable_adapters if on else model.disable_adapters)()
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora" in name and learns)
    before = snapshot(model)
    explain(model, processor, case.audio, config=FEW, generate_kwargs=VARIED, progress=False)
    assert_untouched(model, before)
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    assert len(layers) == 4 and {layer.disable_adapters for layer in layers} == {not on}


@pytest.mark.parametrize("name", ["granite_speech", "qwen2_audio", "qwen3_asr", "voxtral"])
def test_a_click_at_three_seconds_moves_the_embeddings_around_it(cases, name, tmp_path):
    """In windows and chunks of the released sizes, where the encoder's layers, which look everywhere, are left out."""
    model, processor = cases(name).copy()
    if name in ("qwen2_audio", "voxtral"):
        model, processor = LLMS[name].build(tmp_path, seconds=30)
    adapter = get_adapter(model, processor)
    adapter.encoder.layers = torch.nn.ModuleList([])
    samples = (0.1 * np.random.default_rng(0).standard_normal(5 * 16_000)).astype(np.float32)
    utterance = adapter.encode(load_audio(samples, 16_000, 16_000))
    clicked = utterance.features.clone()
    clicked[int((utterance.times - 3.0).abs().argmin())] += 5.0
    with torch.no_grad():
        both = adapter.encoder_states(adapter.model_inputs(utterance, torch.stack([utterance.features, clicked])))
    assert both.shape[1] == {"granite_speech": 51, "qwen2_audio": 125, "qwen3_asr": 65, "voxtral": 375}[name]
    positions = adapter.encoder_positions(utterance)
    moved = ((both[0] - both[1]).abs().amax(-1) > 1e-4).nonzero()[:, 0]
    assert len(moved) and float((positions.times[moved] - 3.0).abs().max()) < 0.3
    assert int(positions.nearest[300]) in moved.tolist()


def test_a_model_of_an_older_transformers_is_refused(cases):
    model, processor = cases("qwen2_audio").copy()
    model.model.heard = model.model.language_model
    del model.model.language_model
    with pytest.raises(
        UnsupportedModelError, match="has an unsupported structure in transformers .*; install 5.10 or newer"
    ):
        get_adapter(model, processor)


def test_another_instruction_has_other_bits(cases):
    """Each those that its own words are worth, by plain calls in which their embeddings are zero."""
    case, found = cases("qwen2_audio"), []
    for options in ({}, {"prompt": INSTRUCTION}):
        found.append(explained(case, text="der hund", **options).instruction_bits)
        target = case.adapter.encode_text(case.utterance, "der hund", GenerationOptions(**options))
        told, inputs, ids = replace(case, target=target), plain(case, options), target.token_ids
        keep = torch.ones(1, len(target.context_ids), dtype=torch.bool)
        keep[:, list(target.instruction)] = False
        lost = plain_logits(told, inputs).log_softmax(-1) - literal_tokens(told, keep, inputs)[0].log_softmax(-1)
        torch.testing.assert_close(found[-1], lost[range(len(ids)), ids] / np.log(2), atol=1e-3, rtol=0)
    assert not torch.allclose(*found)

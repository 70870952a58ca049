"""What goes wrong with the libraries underneath, and that the adapters do not fall for it.

Each test first shows the trap, so that it fails when a cure is no longer needed, and then the cure.
"""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from test_contract import (
    FEW,
    close,
    explained,
    literal_features,
    literal_tokens,
    logits,
    masks,
    perturbed_features,
    plain_inputs,
    plain_logits,
    states,
)
from tiny import TEXT
from transformers.modeling_outputs import BaseModelOutput

from spes_hf import AudioError, ConfigError, UnsupportedModelError, explain
from spes_hf.adapters import GenerationOptions, get_adapter
from spes_hf.audio.load import load_audio

SPEECH_TO_TEXT = ["speech_to_text", "speech_to_text-languages"]
SEAMLESS = ["seamless_m4t", "seamless_m4t-full", "seamless_m4t_v2", "seamless_m4t_v2-full"]
FULL = ["seamless_m4t-full", "seamless_m4t_v2-full"]


def embeds_pass(case, keep):
    """Return the (B, K, V) logits of the obvious token perturbation: zeroed ``decoder_inputs_embeds``."""
    embeddings = case.adapter.token_embedding(case.target.context_ids.expand(len(keep), -1)) * keep.unsqueeze(-1)
    inputs = {name: value.expand(len(keep), *value.shape[1:]) for name, value in plain_inputs(case).items()}
    with torch.no_grad():
        output = copy.deepcopy(case.model)(**inputs, decoder_inputs_embeds=embeddings)
    return output.logits[:, len(case.target.prefix_ids) - 1 :]


# Positions after a zeroed embedding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEAMLESS)
def test_seamless_takes_a_zeroed_embedding_for_padding(cases, name):
    case = cases(name, torch.float64)
    keep = torch.ones(1, len(case.target.context_ids))
    assert (embeds_pass(case, keep) - logits(case)).abs().max() < 1e-5
    keep[:, 2] = 0
    expected = literal_tokens(case, keep.bool())
    assert (embeds_pass(case, keep) - expected).abs().max() > 1e-2
    close(logits(case, token_keep=keep), expected)


@pytest.mark.parametrize("name", SPEECH_TO_TEXT)
def test_speech_to_text_crashes_without_ids(cases, name):
    case = cases(name, torch.float64)
    keep = masks((2, len(case.target.context_ids)))
    with pytest.raises(AttributeError):
        embeds_pass(case, keep.float())
    close(logits(case, token_keep=keep), literal_tokens(case, keep))


@pytest.mark.parametrize("name", ["whisper-en", "whisper"])
def test_whisper_takes_embeddings_rightly(cases, name):
    case = cases(name, torch.float64)
    keep = masks((3, len(case.target.context_ids)))
    close(embeds_pass(case, keep.float()), literal_tokens(case, keep))


@pytest.mark.parametrize("name", ["speech_to_text", *SEAMLESS])
def test_output_layer_shares_the_embedding_and_is_left_alone(cases, name):
    """With tied weights, zeroing rows of the embedding would change what every position can write."""
    case = cases(name)
    assert case.model.lm_head.weight is case.adapter.token_embedding.weight
    keep = torch.ones(1, len(case.target.context_ids), dtype=torch.bool)
    keep[:, 1:3] = False
    spoilt = copy.deepcopy(case.model)
    spoilt.lm_head.weight.data[case.target.context_ids[1:3]] = 0
    wrong = plain_logits(case, plain_inputs(case), spoilt)
    actual = logits(case, token_keep=keep)[0]
    assert (wrong - actual).abs().max() > 1e-2
    assert (actual[:, case.target.context_ids[1:3]].abs() > 1e-6).all()


# One encoder pass for all token masks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["whisper", "speech_to_text-languages", *SEAMLESS])
def test_encoder_output_of_one_serves_a_batch(cases, name):
    case = cases(name, torch.float64)
    keep = masks((4, len(case.target.context_ids)))
    close(logits(case, token_keep=keep, states=states(case)), literal_tokens(case, keep))


@pytest.mark.parametrize("name", ["seamless_m4t", "seamless_m4t_v2-full", "speech_to_text"])
def test_no_encoder_pass_where_its_output_is_given(cases, name):
    case = cases(name)
    clean = states(case)
    calls = []
    encoder = case.model.get_submodule("model.encoder" if name == "speech_to_text" else "speech_encoder")
    handle = encoder.register_forward_hook(lambda *args: calls.append(1))
    logits(case, token_keep=masks((4, len(case.target.context_ids))), states=clean)
    handle.remove()
    assert not calls


# Two frames stacked into one, and the mask ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEAMLESS)
def test_seamless_stacks_two_frames(cases, name):
    case = cases(name)
    own = plain_inputs(case)
    assert own["input_features"].shape == (1, 35, 160)  # 69 frames and one of padding
    assert own["attention_mask"].tolist() == [[1] * 34 + [0]]
    assert case.utterance.features.shape == (68, 80)
    frame = own["input_features"][0, 3]
    assert torch.equal(case.utterance.features[6], frame[:80]) and torch.equal(case.utterance.features[7], frame[80:])


@pytest.mark.parametrize("name", SEAMLESS)
def test_seamless_mask_leaves_the_odd_frame_out(cases, name):
    """The last of 69 frames stands in a masked place: the model does not hear it, and it is no true frame."""
    case = cases(name, torch.float64)
    own = plain_inputs(case)
    clean = plain_logits(case, own)
    changed = {**own, "input_features": own["input_features"].clone()}
    changed["input_features"][0, 34] = 5.0
    close(plain_logits(case, changed), clean)
    without = {"input_features": own["input_features"]}
    assert (plain_logits(case, without) - clean).abs().max() > 1e-3  # what is lost without the mask
    close(logits(case)[0], clean)
    close(logits(case, states=states(case))[0], clean)


@pytest.mark.parametrize("name", SEAMLESS)
@pytest.mark.parametrize("samples", [11_200, 11_400, 11_560, 11_720])
def test_seamless_round_trip_for_odd_and_even_lengths(cases, clip, name, samples):
    case = cases(name)
    sound = np.resize(clip, samples)
    utterance = case.adapter.encode(load_audio(sound, 16_000, 16_000))
    own = case.processor(audio=sound, sampling_rate=16_000, return_tensors="pt")
    made = case.adapter.model_inputs(utterance, utterance.features[None])
    frames = 1 + (samples - 400) // 160
    assert len(utterance.features) == frames // 2 * 2 == 2 * int(own["attention_mask"].sum())
    assert torch.equal(made["input_features"], own["input_features"].float())
    assert torch.equal(made["attention_mask"], own["attention_mask"])


@pytest.mark.parametrize("name", SEAMLESS)
def test_perturbing_one_frame_of_a_pair_leaves_the_other(cases, name):
    case = cases(name, torch.float64)
    keep = torch.ones(2, *case.utterance.features.shape, dtype=torch.bool)
    keep[0, 20], keep[1, 21] = False, False
    fill = torch.full((80,), 2.0)
    actual = logits(case, features=perturbed_features(case, keep, fill))
    close(actual, literal_features(case, keep, fill))
    assert (actual[0] - actual[1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", SPEECH_TO_TEXT)
def test_speech_to_text_is_told_that_all_frames_count(cases, name):
    case = cases(name)
    made = case.adapter.model_inputs(case.utterance, case.utterance.features[None].expand(3, -1, -1))
    assert made["attention_mask"].tolist() == [[1] * 69] * 3


# Features -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["speech_to_text", "seamless_m4t_v2"])
def test_mean_is_zero_where_the_paper_fills_with_zero(cases, clip, name):
    case = cases(name)
    features = case.adapter.encode(load_audio(clip[:11_240], 16_000, 16_000)).features  # 68 frames
    close(features.mean(0), torch.zeros(80), 1e-4)


@pytest.mark.parametrize("name", SPEECH_TO_TEXT)
def test_silence_is_refused_where_it_becomes_nan(cases, name):
    case = cases(name)
    with pytest.raises(AudioError, match=r"80 of 80 mel bins that never change.*silence"):
        case.adapter.encode(load_audio(np.zeros(8_000, np.float32), 16_000, 16_000))


@pytest.mark.parametrize("name", SEAMLESS[:1])
def test_silence_is_read_where_it_is_finite(cases, name):
    case = cases(name)
    assert case.adapter.encode(load_audio(np.zeros(8_000, np.float32), 16_000, 16_000)).features.abs().max() < 0.01


# Languages and forced tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEAMLESS)
def test_seamless_without_a_language_is_refused(cases, name):
    case = cases(name)
    with pytest.raises(ConfigError, match="tgt_lang is missing; allowed: deu, eng, spa"):
        case.adapter.generate(case.utterance, GenerationOptions())
    assert case.adapter.prefix_ids(case.utterance, GenerationOptions(tgt_lang="__spa__")).tolist() == [
        3,
        case.processor.tokenizer.convert_tokens_to_ids("__spa__"),
    ]


@pytest.mark.parametrize("name", FULL)
def test_full_model_writes_languages_that_it_does_not_speak(cases, name):
    case = cases(name)
    with torch.no_grad(), pytest.raises(ValueError, match="not supported") if name == FULL[0] else torch.no_grad():
        copy.deepcopy(case.model).generate(**plain_inputs(case), tgt_lang="deu", generate_speech=False)
    target = case.adapter.generate(
        case.utterance, GenerationOptions(tgt_lang="deu", generate_kwargs={"max_new_tokens": 4})
    )
    assert case.processor.tokenizer.convert_ids_to_tokens(target.prefix_ids.tolist()) == ["</s>", "__deu__"]


@pytest.mark.parametrize("name", SEAMLESS)
def test_seamless_without_its_generation_config_is_refused(cases, name):
    model, processor = cases(name).copy()
    del model.generation_config.text_decoder_lang_to_code_id
    adapter = get_adapter(model, processor)
    with pytest.raises(ConfigError, match="text_decoder_lang_to_code_id.*from_pretrained"):
        adapter.generate(cases(name).utterance, GenerationOptions(tgt_lang="deu"))


def test_language_decides_what_is_written(cases):
    case = cases("speech_to_text-languages")
    texts = []
    for code in ("de", "es"):
        options = GenerationOptions(tgt_lang=code, generate_kwargs=case.options.generate_kwargs)
        target = case.adapter.generate(case.utterance, options)
        assert case.processor.tokenizer.convert_ids_to_tokens(target.prefix_ids.tolist()) == ["</s>", f"<lang:{code}>"]
        texts.append(target.token_ids.tolist())
    assert texts[0] != texts[1]


def test_forced_token_may_come_from_generation_settings(cases):
    case = cases("speech_to_text-languages")
    german = case.processor.tokenizer.lang_code_to_id["de"]
    by_name = case.adapter.generate(
        case.utterance, GenerationOptions(tgt_lang="de", generate_kwargs={"max_new_tokens": 5})
    )
    settings = {"max_new_tokens": 5, "forced_bos_token_id": german}
    by_token = case.adapter.generate(case.utterance, GenerationOptions(generate_kwargs=settings))
    model, processor = case.copy()
    model.generation_config.forced_bos_token_id = german
    options = GenerationOptions(generate_kwargs={"max_new_tokens": 5})
    by_config = get_adapter(model, processor).generate(case.utterance, options)
    for target in (by_token, by_config):
        assert torch.equal(target.prefix_ids, by_name.prefix_ids) and torch.equal(target.token_ids, by_name.token_ids)
    with pytest.raises(ConfigError, match="leave one of the two out"):
        case.adapter.generate(case.utterance, GenerationOptions(tgt_lang="de", generate_kwargs=settings))


def test_forced_token_is_explained_by_nothing(cases):
    """The language token is no explained token; it is a decoder input of all of them."""
    case = cases("speech_to_text-languages")
    explanation = explained(case)
    assert explanation.context_tokens[:2] == ["</s>", "<lang:es>"]
    assert "<lang:es>" not in explanation.tokens
    assert not explanation.raw_token[:, :2].isnan().any()


def test_output_that_ends_at_once_is_one_explained_token(cases):
    """Start and end are the same token; the prefix must not swallow the end, nor the end be cut at the start."""
    case = cases("speech_to_text")
    model, processor = case.copy()
    adapter = get_adapter(model, processor)
    target = adapter.generate(
        case.utterance, GenerationOptions(generate_kwargs={"forced_eos_token_id": 2, "max_new_tokens": 1})
    )
    assert target.prefix_ids.tolist() == [2] and target.token_ids.tolist() == [2] and target.complete
    assert adapter.logits(case.utterance, target).shape[1] == 1


def test_nothing_but_a_prefix_is_refused(cases):
    case = cases("speech_to_text-languages")
    with pytest.raises(ConfigError, match="max_new_tokens"):
        explained(case, generate_kwargs={"max_new_tokens": 1})


def test_tokens_of_text_do_not_depend_on_the_tokenizer_s_language(cases):
    case = cases("seamless_m4t_v2")
    tokenizer = case.processor.tokenizer
    expected = case.adapter.text_ids(TEXT)
    assert tokenizer(TEXT).input_ids != expected  # with language and end
    before = (tokenizer.src_lang, tokenizer.tgt_lang, tokenizer.cur_lang_code)
    tokenizer.tgt_lang = "deu"
    assert case.adapter.text_ids(TEXT) == expected
    tokenizer.src_lang, tokenizer.tgt_lang = before[0], before[1]


def test_vocabulary_of_one_case_takes_text_of_any(cases):
    case = cases("speech_to_text")
    processor = copy.deepcopy(case.processor)
    processor.tokenizer.do_upper_case = True
    adapter = get_adapter(case.model, processor)
    target = adapter.encode_text(case.utterance, TEXT.upper(), GenerationOptions())
    assert (
        target.token_ids.tolist()
        == case.adapter.encode_text(case.utterance, TEXT, GenerationOptions()).token_ids.tolist()
    )
    assert adapter.text(target.token_ids) == TEXT.upper()


# Full models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FULL)
def test_full_model_does_not_take_speech_states_for_text(cases, name):
    """Given encoder output, a full model in text mode lays the mask of the speech frames over far fewer states."""
    case = cases(name, torch.float64)
    model = copy.deepcopy(case.model)
    model.set_modality("text")
    inputs = plain_inputs(case)
    output = BaseModelOutput(last_hidden_state=states(case))
    with pytest.raises(RuntimeError), torch.no_grad():
        ids = case.target.context_ids[None]
        model(encoder_outputs=output, attention_mask=inputs["attention_mask"], decoder_input_ids=ids)
    for modality in ("text", "speech"):
        model.set_modality(modality)
        adapter = get_adapter(model, case.processor)
        with torch.no_grad():
            actual = adapter.logits(case.utterance, case.target, states=adapter.encoder_states(inputs))
        close(actual, logits(case))
        assert model.current_modality == modality


@pytest.mark.parametrize("name", FULL)
def test_full_model_does_not_warn_at_every_pass(cases, name, caplog):
    case = cases(name)
    logger = logging.getLogger("transformers")
    propagate, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(logging.WARNING):
            explained(case)
    finally:
        logger.propagate = propagate
    assert "calls the same method" not in caplog.text


@pytest.mark.parametrize("version", ["", "v2"])
@pytest.mark.parametrize("kind", ["ForTextToText", "ForSpeechToSpeech", "ForTextToSpeech"])
def test_other_seamless_models_are_refused(cases, version, kind):
    import transformers

    case = cases("seamless_m4t_v2-full" if version else "seamless_m4t-full")
    model = getattr(transformers, f"SeamlessM4T{version}{kind}")(case.model.config)
    with pytest.raises(UnsupportedModelError, match=rf"{kind}, which does not turn speech into text.*ForSpeechToText"):
        get_adapter(model, case.processor)


def test_model_without_output_layer_is_refused(cases):
    case = cases("speech_to_text")
    with pytest.raises(UnsupportedModelError, match="Speech2TextModel.*ForConditionalGeneration"):
        get_adapter(case.model.model, case.processor)


def test_subclasses_of_a_known_model_are_taken(cases):
    case = cases("seamless_m4t_v2")
    model = copy.deepcopy(case.model)
    model.__class__ = type("Mine", (type(model),), {})
    assert get_adapter(model, case.processor).languages


@pytest.mark.parametrize("text", [None, TEXT], ids=["generated", "given"])
@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_seamless_keeps_no_position_embeddings_that_break_training(tmp_path, clip, positions, text):
    """Version 1 keeps its position embeddings; kept from inference mode, they refuse to be trained with."""
    import tiny

    model, processor = tiny.seamless("", full=False, position_embeddings_type=positions)(tmp_path)
    inputs = processor(audio=clip, sampling_rate=16_000, return_tensors="pt")
    ids = torch.tensor([[3, 4]])
    if positions == "rotary":
        spoilt = copy.deepcopy(model)
        with torch.inference_mode():
            spoilt(**inputs, decoder_input_ids=ids)
        with pytest.raises(RuntimeError, match="Inference tensors"):
            spoilt(**inputs, decoder_input_ids=ids).logits.sum().backward()
    settings = {"max_new_tokens": 3}
    explain(model, processor, clip, config=FEW, tgt_lang="deu", text=text, generate_kwargs=settings, progress=False)
    model(**inputs, decoder_input_ids=ids).logits.sum().backward()

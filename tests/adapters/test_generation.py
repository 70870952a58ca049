"""What ``generate()`` takes, as an argument or from the generation config: one treatment for both."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from tiny import TEXT, VARIED
from transformers import LogitsProcessorList, SequenceBiasLogitsProcessor

from spes_hf import ConfigError, EnergyConfig, explain
from spes_hf.adapters import GenerationOptions, get_adapter

EVERY = ["whisper", "whisper-en", "speech_to_text", "speech_to_text-languages", "seamless_m4t", "seamless_m4t_v2-full"]


def by_argument(case, settings, **options):
    return case.adapter.generate(case.utterance, GenerationOptions(**options, generate_kwargs=settings))


def by_config(case, settings, **options):
    model, processor = case.copy()
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    before = copy.deepcopy(vars(model.generation_config))
    found = get_adapter(model, processor).generate(case.utterance, GenerationOptions(**options))
    assert vars(model.generation_config) == before
    return found


def written(target):
    return target.prefix_ids.tolist(), target.token_ids.tolist(), target.complete


SETTINGS = {
    "num_beams": {"num_beams": 3, "length_penalty": 0.5},
    "max_length": {"max_length": 9, "max_new_tokens": None},
    "max_new_tokens": {"max_new_tokens": 4},
    "suppress_tokens": {"suppress_tokens": [5, 6, 20, 21, 22]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [5, 6, 20, 21, 22]},
    "sequence_bias": {"sequence_bias": [[[20], 50.0]]},
    "bad_words_ids": {"bad_words_ids": [[20], [21, 22]]},
    "repetition_penalty": {"repetition_penalty": 3.0},
    "forced_eos_token_id": {"max_new_tokens": 4},
    "what is returned": {
        "output_scores": True,
        "output_logits": True,
        "output_attentions": True,
        "output_hidden_states": True,
        "return_dict_in_generate": False,
    },
    "num_return_sequences": {"num_return_sequences": 1},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", EVERY)
def test_argument_and_config_give_the_same(cases, name, setting):
    case = cases(name)
    settings = {**VARIED, **SETTINGS[setting]}
    if setting == "forced_eos_token_id":
        settings["forced_eos_token_id"] = case.adapter.eos_token_id
    found = written(by_argument(case, settings, **case.family.options))
    assert found == written(by_config(case, settings, **case.family.options))
    assert found[0] == case.target.prefix_ids.tolist()
    if setting in ("what is returned", "num_return_sequences"):
        assert found == written(case.target)


@pytest.mark.parametrize("route", [by_argument, by_config])
@pytest.mark.parametrize("name", EVERY)
def test_more_than_one_output_is_refused(cases, name, route):
    case = cases(name)
    settings = {**VARIED, "num_beams": 2, "num_return_sequences": 2}
    where = "generate_kwargs" if route is by_argument else "model.generation_config"
    with pytest.raises(ConfigError, match=f"num_return_sequences is 2 in {where}.*set it to 1"):
        route(case, settings, **case.family.options)


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("generation_config", "set model.generation_config"),
        ("eos_token_id", "set model.generation_config.eos_token_id"),
        ("encoder_outputs", "leave it out"),
        ("decoder_input_ids", "leave it out"),
        ("text_decoder_input_ids", "leave it out"),
        ("past_key_values", "leave it out"),
    ],
)
def test_arguments_that_would_change_what_is_explained_are_refused(setting, remedy):
    with pytest.raises(ConfigError, match=f"generate_kwargs contains {setting.removeprefix('text_')}.*{remedy}"):
        GenerationOptions(generate_kwargs={setting: 1})


@pytest.mark.parametrize("name", EVERY)
def test_wrong_options_cost_no_pass(cases, name):
    case = cases(name)
    passes = []
    handle = case.adapter.encoder.register_forward_hook(lambda *_: passes.append(1))
    wrong = [dict(options) for options, _ in case.family.wrong if options.get("language") != "xx"]
    wrong += [{"generate_kwargs": {"num_return_sequences": 3}}, {"generate_kwargs": {"generation_config": None}}]
    wrong += [] if name.startswith("whisper") else [{"generate_kwargs": {"forced_decoder_ids": [[1, 4]]}}]
    try:
        for options in wrong:
            with pytest.raises(ConfigError):
                explain(case.model, case.processor, "no such file", config=EnergyConfig(), progress=False, **options)
        with pytest.raises(ConfigError):
            explain(case.model, case.processor, case.audio, text=" ", progress=False, **case.family.options)
    finally:
        handle.remove()
    assert not passes


# Whisper --------------------------------------------------------------------------------------------------------------


def special(case, *tokens):
    return case.processor.tokenizer.convert_tokens_to_ids([f"<|{token}|>" for token in tokens])


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        ({"forced_decoder_ids": [[1, "es"], [2, "translate"]]}, ["es", "translate", "notimestamps"]),
        ({"forced_decoder_ids": [[1, "de"]]}, ["de", "notimestamps"]),
        ({"return_timestamps": True, "forced_decoder_ids": [[1, "de"]]}, ["de"]),
    ],
)
def test_start_tokens_of_whisper_by_either_route(cases, settings, prefix):
    case = cases("whisper")
    forced = [[position, *special(case, token)] for position, token in settings["forced_decoder_ids"]]
    settings = {**VARIED, **settings, "forced_decoder_ids": forced}
    found = by_argument(case, settings)
    assert found.prefix_ids.tolist() == special(case, "startoftranscript", *prefix)
    assert written(found) == written(by_config(case, settings))


@pytest.mark.parametrize(
    "options", [{"language": "es"}, {"language": "de", "task": "translate"}, {"task": "translate"}]
)
def test_language_and_task_of_whisper_by_either_route(cases, options):
    case = cases("whisper")
    found = by_argument(case, VARIED, **options)
    assert written(found) == written(by_config(case, {**VARIED, **options}))


def test_being_multilingual_by_either_route(cases):
    case = cases("whisper")
    for route in (by_argument, by_config):
        with pytest.raises(ConfigError, match="refused language.*English-only.*; change language.*, or leave it out$"):
            if route is by_argument:
                route(case, {**VARIED, "is_multilingual": False}, language="de")
            else:
                route(case, {"is_multilingual": False}, language="de")


def test_start_token_by_either_route(cases):
    for name in ("whisper", "speech_to_text", "seamless_m4t"):
        case = cases(name)
        start = special(case, "startoflm")[0] if name == "whisper" else 20
        settings = {**VARIED, "decoder_start_token_id": start}
        found = by_argument(case, settings, **case.family.options)
        assert found.prefix_ids[0] == start and len(found.prefix_ids) == len(case.target.prefix_ids)
        assert written(found) == written(by_config(case, settings, **case.family.options))


def test_thresholds_of_the_fallback_by_either_route(cases):
    case = cases("whisper")
    thresholds = {"logprob_threshold": -0.001, "no_speech_threshold": 0.6, "compression_ratio_threshold": 1.35}
    found = by_argument(case, {**VARIED, **thresholds, "temperature": 0.0}, **case.family.options)
    model, processor = case.copy()
    for name, value in thresholds.items():
        setattr(model.generation_config, name, value)
    options = GenerationOptions(**case.family.options, generate_kwargs={**VARIED, "temperature": 0.0})
    assert written(found) == written(get_adapter(model, processor).generate(case.utterance, options))


@pytest.mark.parametrize("route", ["argument", "config"])
def test_text_with_timestamps_is_refused(cases, route):
    """As an argument it always was; from the config it was taken, with a prefix of another kind of output."""
    case = cases("whisper")
    model, processor = case.copy()
    settings = {"return_timestamps": True} if route == "argument" else {}
    model.generation_config.return_timestamps = route == "config"
    adapter = get_adapter(model, processor)
    passes = []
    adapter.encoder.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(ConfigError, match="text is given, but return_timestamps is True in gen.*False"):
        adapter.encode_text(case.utterance, TEXT, GenerationOptions(**case.family.options, generate_kwargs=settings))
    assert not passes
    off = GenerationOptions(**case.family.options, generate_kwargs={"return_timestamps": False})
    assert torch.equal(adapter.encode_text(case.utterance, TEXT, off).prefix_ids, case.target.prefix_ids)


def test_timestamps_by_either_route(cases):
    case = cases("whisper")
    settings = {**VARIED, "return_timestamps": True, "suppress_tokens": None}
    found = by_argument(case, settings, **case.family.options)
    assert case.adapter.pieces(found.prefix_ids) == ["<|startoftranscript|>", "<|de|>", "<|translate|>"]
    assert re.fullmatch(r"<\|\d\.\d\d\|>", case.adapter.pieces(found.token_ids)[0])  # the model's own
    assert written(found) == written(by_config(case, settings, **case.family.options))


@pytest.mark.parametrize("first", ["<|nospeech|>", "<|en|>", "<|1.00|>", "<|speaker|>"])
def test_whisper_s_prefix_ends_where_the_model_begins(cases, tmp_path, first):
    """Even if the model begins with a special token: what it was not given, it wrote."""
    case = cases("whisper")
    model, processor = case.family.build(tmp_path)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|speaker|>"]}, False)
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    token = processor.tokenizer.convert_tokens_to_ids(first)
    adapter = get_adapter(model, processor)
    settings = {"max_new_tokens": 3, "suppress_tokens": None, "sequence_bias": [[[token], 1000.0]]}
    target = adapter.generate(case.utterance, GenerationOptions(**case.family.options, generate_kwargs=settings))
    assert target.prefix_ids.tolist() == case.target.prefix_ids.tolist()
    assert target.token_ids.tolist() == [token] * 3


def test_prompt_of_any_kind_belongs_to_the_prefix(cases):
    case = cases("whisper")
    prompt = case.processor.tokenizer.get_prompt_ids("der hund")
    assert isinstance(prompt, np.ndarray)
    found = [
        by_argument(case, {**VARIED, "prompt_ids": ids}, **case.family.options)
        for ids in (prompt, prompt.tolist(), torch.tensor(prompt))
    ]
    assert found[0].prefix_ids.tolist() == [*prompt.tolist(), *case.target.prefix_ids.tolist()]
    assert written(found[0]) == written(found[1]) == written(found[2])
    assert case.adapter.start_index(found[0].prefix_ids) == len(prompt)
    assert case.adapter.start_index(case.target.prefix_ids) == 0
    given = case.adapter.encode_text(
        case.utterance, TEXT, GenerationOptions(**case.family.options, generate_kwargs={"prompt_ids": prompt})
    )
    assert torch.equal(given.prefix_ids, found[0].prefix_ids)


def test_logits_processors_and_assistants_are_followed_and_left_as_they_were(cases):
    case = cases("whisper")
    chosen = int(case.target.token_ids[0])
    processors = LogitsProcessorList([SequenceBiasLogitsProcessor([[[chosen], -1e4]])])
    found = by_argument(case, {**VARIED, "logits_processor": processors}, **case.family.options)
    assert chosen not in found.token_ids.tolist() and len(processors) == 1
    assert written(found) == written(
        by_argument(case, {**VARIED, "sequence_bias": [[[chosen], -1e4]]}, **case.family.options)
    )
    assistant = copy.deepcopy(case.model)
    before = assistant.generation_config.to_dict()
    assisted = by_argument(case, {"max_new_tokens": 6, "assistant_model": assistant}, **case.family.options)
    assert written(assisted) == written(by_argument(case, {"max_new_tokens": 6}, **case.family.options))
    assert assistant.generation_config.to_dict() == before


# Speech2Text, SeamlessM4T ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["whisper-en", "whisper", "speech_to_text", "seamless_m4t", "canary"])
def test_what_generate_refuses_is_looked_for_where_it_was_said(cases, name):
    case = cases(name)
    wrong, options = {"cache_implementation": "nonsense"}, case.family.options
    named = " or ".join([*(options if name == "whisper" else ()), "generate_kwargs"])
    with pytest.raises(ConfigError, match=rf"^model\.generate\(\) refused {named}: .*nonsense"):
        explain(case.model, case.processor, case.audio, config=EnergyConfig(), generate_kwargs=wrong, **options)
    model, processor = case.copy()
    model.generation_config.cache_implementation = "nonsense"
    if name != "whisper":  # whose language and task generate() checks itself
        with pytest.raises(
            ConfigError, match="failed without any argument from you: .*nonsense.*; check model.generation_config"
        ):
            explain(model, processor, case.audio, config=EnergyConfig(), **options)


def test_a_named_language_beats_the_config_and_is_refused_next_to_an_argument(cases):
    case = cases("speech_to_text-languages")
    codes = case.processor.tokenizer.lang_code_to_id
    found = by_config(case, {**VARIED, "forced_bos_token_id": codes["de"]}, tgt_lang="es")
    assert written(found) == written(case.target)
    with pytest.raises(ConfigError, match="leave one of the two out"):
        by_argument(case, {"forced_bos_token_id": codes["de"]}, tgt_lang="es")

"""``generate()`` for several spectrograms at once writes for each what it writes for that one alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from test_quantised import dynamic, four_bit, quantised
from tiny import FAMILIES, VARIED
from tiny_fast_conformers import FAST_CONFORMERS
from tiny_llm import INSTRUCTION, LLMS
from transformers import LogitsProcessorList, MaxLengthCriteria, SequenceBiasLogitsProcessor, StoppingCriteriaList

from spes_hf.adapters import Adapter, GenerationOptions, SpeechLLMAdapter, get_adapter
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.functional import deletion_masks
from spes_hf.runtime.preserve import leave_unchanged

FOUR = ["whisper", "speech_to_text-languages", "seamless_m4t", "seamless_m4t_v2"]
LONG = {"max_new_tokens": 24, "no_repeat_ngram_size": 2}
SHARES = [0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.35, 0.5, 0.7, 1]


@pytest.fixture(params=[*FAMILIES, *FAST_CONFORMERS, *LLMS])
def exact(request, cases):
    """Each family in turn, speech LLMs too, in float64."""
    return cases(request.param, torch.float64)


def deleted(utterance, shares):
    """Return the features, (shares, T, C), with these shares of them, the loudest, at the mean."""
    clean = utterance.features
    masks = deletion_masks(clean, shares)
    return torch.where(masks, clean, clean.mean(0))


def varied(case, count):
    """Return features, (count, T, C), of which the model writes different texts; a random speech LLM needs noise."""
    if not isinstance(case.adapter, SpeechLLMAdapter):
        return deleted(case.utterance, SHARES[:count])
    clean = case.utterance.features
    return clean + 5 * torch.randn(
        count, *clean.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float32, device="cpu"
    )


def copies(adapter, options, chunks=1):
    """Return how many copies of a row the encoder reads: ``generate()`` of a speech LLM gives it every beam's."""
    return chunks * adapter.num_beams(options) if isinstance(adapter, SpeechLLMAdapter) else 1


def written(target):
    return target.prefix_ids.tolist(), target.token_ids.tolist(), target.complete


def alone(adapter, utterance, options, features):
    """Return what is written for each of the spectrograms in a call of its own, and the encoder's outputs."""
    found = [adapter.generate_with_states(utterance, options, each) for each in features]
    return [written(target) for target, _ in found], torch.cat([states for _, states in found])


def together(adapter, utterance, options, features, chunks=1):
    """Return the same of one call for all of them, each of whose rows the encoder reads in ``chunks`` chunks."""
    sizes = []
    handle = adapter.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs.get("input_features", args[0] if args else None))),
        with_kwargs=True,
    )
    targets, states = adapter.generate_each(utterance, options, features)
    handle.remove()
    assert adapter.generates_in_batches(options) and set(sizes) == {copies(adapter, options, chunks) * len(features)}
    return [written(target) for target in targets], states


# All families ---------------------------------------------------------------------------------------------------------


def ending(case, features, settings):
    """Return an adapter of a model that ends an output at a token that some rows write early, and some never."""
    options = GenerationOptions(**case.family.options, generate_kwargs=settings)
    rows = [target.token_ids.tolist() for target in case.adapter.generate_each(case.utterance, options, features)[0]]
    model, processor = case.copy()
    ends = {token: {row.index(token) if token in row else -1 for row in rows} for row in rows for token in row[1:-1]}
    token = max(ends, key=lambda token: (-1 in ends[token], len(ends[token])))
    model.generation_config.eos_token_id = [case.adapter.eos_token_id, token]
    return type(case.adapter)(model, processor), options


@pytest.mark.parametrize("beams", [1, 3])
def test_every_row_is_written_as_if_it_were_alone(exact, beams):
    """Rows end at different places, or at the limit; what pads the others is no part of them.

    60 rows for a speech LLM, since most have no shipped trained model.
    """
    features = varied(exact, 30 if isinstance(exact.adapter, SpeechLLMAdapter) else 6)
    adapter, options = ending(exact, features, {**LONG, "num_beams": beams})
    expected, states = alone(adapter, exact.utterance, options, features)
    found, at_once = together(adapter, exact.utterance, options, features)
    assert found == expected
    torch.testing.assert_close(at_once, states, atol=1e-9, rtol=1e-9)
    lengths = {len(tokens) for _, tokens, _ in expected}
    assert any(complete for *_, complete in expected) and (beams > 1 or len(lengths) > 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"early_stopping": True, "num_beams": 2, "length_penalty": 2.0},
        {"early_stopping": "never", "num_beams": 3, "length_penalty": -1.0, "min_new_tokens": 3},
        {"min_new_tokens": 4, "repetition_penalty": 2.0, "suppress_tokens": [5, 6]},
        {"sequence_bias": [[[20], 5.0]], "bad_words_ids": [[21, 22]], "use_cache": False},
        {"exponential_decay_length_penalty": (3, 1.5), "renormalize_logits": True, "remove_invalid_values": True},
    ],
)
@pytest.mark.parametrize("name", [*FOUR, *LLMS])
def test_settings_that_leave_rows_alone(cases, name, settings):
    case = cases(name, torch.float64)
    features = varied(case, 5)
    adapter, options = ending(case, features, {**LONG, **settings})
    expected, _ = alone(adapter, case.utterance, options, features)
    assert together(adapter, case.utterance, options, features)[0] == expected
    assert len({tuple(tokens) for _, tokens, _ in expected}) > 1


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"return_timestamps": True}])
@pytest.mark.parametrize("prompt", [False, True])
def test_windows_of_whisper(cases, settings, prompt):
    """A window of a recording starts from a prefix of its own; timestamps and prompts are each row's."""
    case = cases("whisper", torch.float64)
    ids = case.processor.tokenizer.get_prompt_ids("der kleine hund").tolist()
    options = replace(case.options, generate_kwargs={**VARIED, **settings})
    if prompt:
        options = replace(options, generate_kwargs={**options.generate_kwargs, "prompt_ids": torch.tensor(ids)})
    else:
        options = replace(options, prefix=(*ids, *case.target.prefix_ids.tolist()))
    features = deleted(case.utterance, SHARES[:5])
    expected, _ = alone(case.adapter, case.utterance, options, features)
    assert together(case.adapter, case.utterance, options, features)[0] == expected
    assert len({tuple(tokens) for _, tokens, _ in expected}) > 1
    assert all(prefix[: len(ids)] == ids for prefix, *_ in expected)


@pytest.mark.parametrize(
    ("name", "beams"),
    [("granite_speech", 1), ("granite_speech", 2), ("qwen3_asr", 1), ("qwen3_asr", 2), ("voxtral", 1)],
)
def test_rows_of_several_chunks(cases, name, beams):
    """3.5 s, which speech LLMs pack in ways of their own: chunks of 1 s, of 2 s, windows of 0.3 s.

    Beams over several chunks of Voxtral are refused: ``test_voxtral_refuses_beams_over_several_chunks``.
    """
    case = cases(name, torch.float64)
    noise = np.random.default_rng(1).standard_normal(56_000)
    utterance = case.adapter.encode(load_audio((0.1 * noise).astype(np.float32), 16_000, 16_000))
    options = replace(case.options, generate_kwargs={**VARIED, "num_beams": beams})
    features = varied(replace(case, utterance=utterance), 5)
    expected, states = alone(case.adapter, utterance, options, features)
    found, at_once = together(case.adapter, utterance, options, features, chunks=2 if name == "voxtral" else 1)
    assert found == expected and len({tuple(tokens) for _, tokens, _ in expected}) > 1
    torch.testing.assert_close(at_once, states, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", LLMS)
def test_prompts_of_speech_llms(cases, name, stored):
    """Any instruction, and the prompt of an earlier run, which metrics start from."""
    case = cases(name, torch.float64)
    options = replace(case.options, prompt=INSTRUCTION)
    start = case.adapter.start(options)
    if stored:
        options = case.adapter.as_before(case.options, start.prefix_ids.tolist(), start.audio_at)
    features = varied(case, 5)
    expected, _ = alone(case.adapter, case.utterance, options, features)
    assert together(case.adapter, case.utterance, options, features)[0] == expected
    assert len({tuple(tokens) for _, tokens, _ in expected}) > 1
    assert all(prefix == start.prefix_ids.tolist() for prefix, *_ in expected)


@pytest.mark.parametrize("beams", [1, 2])
def test_granite_hears_every_row_with_its_lora(cases, beams, monkeypatch):
    """It is off before the call, and changes both the encoder and the language model."""
    peft = pytest.importorskip("peft")
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **_: None)  # any that is installed
    case = cases("granite_speech", torch.float64)
    model, processor = case.copy()
    places = r".*(language_model.*(q_proj|v_proj)|projector\.linear)"
    model.add_adapter(peft.LoraConfig(r=4, target_modules=places, init_lora_weights=False))
    model.double().disable_adapters()
    adapter = get_adapter(model, processor)
    options = replace(case.options, generate_kwargs={**VARIED, "num_beams": beams})
    features = varied(case, 5)
    expected, states = alone(adapter, case.utterance, options, features)
    found, at_once = together(adapter, case.utterance, options, features)
    assert found == expected and len({tuple(tokens) for _, tokens, _ in expected}) > 1
    torch.testing.assert_close(at_once, states, atol=1e-9, rtol=1e-9)
    assert expected != alone(case.adapter, case.utterance, options, features)[0]


# Trained models, in float32 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(
    ("name", "options"),
    [("speech2text-en", {}), ("seamless-en-de-es", {"tgt_lang": "deu"}), ("seamless-en-de-es", {"tgt_lang": "spa"})],
)
def test_trained_models_write_the_same(name, options, beams):
    """60 rows in all, of texts that are right, that are wrong, and that were made up."""
    adapter = get_adapter(*load_tiny_model(name))
    settings = GenerationOptions(**options, generate_kwargs={"num_beams": beams})
    clip = tiny_clips()[2 * beams]
    utterance = adapter.encode(load_audio(clip["path"], adapter.sampling_rate))
    features = deleted(utterance, SHARES)
    expected, _ = alone(adapter, utterance, settings, features)
    assert together(adapter, utterance, settings, features)[0] == expected
    assert len({tuple(tokens) for _, tokens, _ in expected}) >= 3


@pytest.mark.skipif(
    not hasattr(transformers, "Qwen3ASRForConditionalGeneration"), reason="transformers has no Qwen3-ASR before 5.20"
)
@pytest.mark.parametrize("beams", [1, 4])
def test_a_trained_speech_llm_writes_the_same(beams):
    """60 rows in all, as above."""
    adapter = get_adapter(*load_tiny_model("qwen3-asr-en"))
    options = GenerationOptions(language="English", generate_kwargs={"num_beams": beams})
    for clip in tiny_clips()[:3]:
        utterance = adapter.encode(load_audio(clip["path"], adapter.sampling_rate))
        features = deleted(utterance, SHARES)
        expected, _ = alone(adapter, utterance, options, features)
        assert together(adapter, utterance, options, features)[0] == expected
        assert len({tuple(tokens) for _, tokens, _ in expected}) >= 3


@pytest.mark.real_model
def test_real_whisper_writes_the_same(whisper, jfk):
    adapter = get_adapter(*whisper)
    utterance = adapter.encode(load_audio(jfk, 16_000))
    features = deleted(utterance, SHARES[:5])[[0, 2, 4]]
    for settings in ({"max_new_tokens": 30}, {"max_new_tokens": 12, "num_beams": 2, "return_timestamps": True}):
        options = GenerationOptions(generate_kwargs=settings)
        expected, _ = alone(adapter, utterance, options, features)
        assert together(adapter, utterance, options, features)[0] == expected
        assert len({tuple(tokens) for _, tokens, _ in expected}) > 1


# One row at a time ----------------------------------------------------------------------------------------------------


class Streamer:
    """Takes what is generated, as a user's own would."""

    def put(self, value):
        pass

    def end(self):
        pass


SINGLE = {
    "sampling": {"do_sample": True},
    "sampling with beams": {"do_sample": True, "num_beams": 2},
    "temperature": {"temperature": 0.7},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "assisted by a prompt": {"prompt_lookup_num_tokens": 2},
    "assisted by a model": {"assistant_model": torch.nn.Linear(1, 1)},
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "logits processor": {"logits_processor": LogitsProcessorList([SequenceBiasLogitsProcessor([[[20], -1e4]])])},
    "stopping criteria": {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(6)])},
    "allowed tokens": {"prefix_allowed_tokens_fn": lambda row, ids: [20]},
    "streamer": {"streamer": Streamer()},
    "seconds": {"max_time": 5.0},
    "strings": {"stop_strings": ["hund"]},
    "static cache": {"cache_implementation": "static"},
    "what no version knows": {"unheard_of": 1},
    "the fallback of Whisper": {"temperature": (0.0, 0.2), "compression_ratio_threshold": 1.35},
    "a threshold of Whisper": {"no_speech_threshold": 0.6},
}


@pytest.mark.parametrize("setting", SINGLE)
@pytest.mark.parametrize("name", [*FOUR, *LLMS])
def test_what_ties_rows_together_is_generated_one_by_one(cases, name, setting):
    case = cases(name)
    options = replace(case.options, generate_kwargs={**VARIED, **SINGLE[setting]})
    assert case.adapter.generates_in_batches(case.options) and not case.adapter.generates_in_batches(options)


@pytest.mark.parametrize("setting", [{"do_sample": True}, {"prompt_lookup_num_tokens": 2}, {"max_time": 5.0}])
@pytest.mark.parametrize("name", [*FOUR, *LLMS])
def test_settings_of_the_generation_config_count(cases, name, setting):
    case = cases(name)
    model, processor = case.copy()
    for key, value in setting.items():
        setattr(model.generation_config, key, value)
    adapter = get_adapter(model, processor)
    assert not adapter.generates_in_batches(case.options)
    off = {key: False if value is True else None for key, value in setting.items()}
    assert adapter.generates_in_batches(replace(case.options, generate_kwargs={**VARIED, **off}))


def test_a_family_that_says_nothing_is_generated_one_by_one(cases):
    case = cases("speech_to_text")

    class Silent(type(case.adapter)):
        row_settings = None

        def generate_rows(self, utterance, inputs, options):
            assert len(inputs["input_features"]) == 1
            return super().generate_rows(utterance, inputs, options)

    silent, features = Silent(case.model, case.processor), deleted(case.utterance, SHARES[:3])
    assert not silent.generates_in_batches(case.options)
    found, states = silent.generate_each(case.utterance, case.options, features)
    assert [written(target) for target in found] == alone(case.adapter, case.utterance, case.options, features)[0]
    assert len(states) == 3


def test_a_family_that_does_not_generate_rows_is_no_family(cases):
    """There is no second method that would do instead, or be overridden in vain."""
    case = cases("speech_to_text")

    class Without(type(case.adapter)):
        generate_rows = Adapter.generate_rows

    with pytest.raises(TypeError, match="generate_rows"):
        Without(case.model, case.processor)


@pytest.mark.parametrize("make", [dynamic, lambda model: quantised(model, four_bit)])
def test_a_quantised_model_is_generated_one_by_one(cases, make):
    """It may scale what it reads by the largest value of all rows."""
    case = cases("speech_to_text")
    adapter = get_adapter(make(copy.deepcopy(case.model)), case.processor)
    assert not adapter.generates_in_batches(case.options)


def test_sampling_draws_as_one_call_after_the_other(cases):
    case = cases("whisper")
    options = replace(case.options, generate_kwargs={"max_new_tokens": 8, "do_sample": True, "temperature": 3.0})
    features = deleted(case.utterance, SHARES[:4])
    with leave_unchanged(case.model, seed=3):
        expected, _ = alone(case.adapter, case.utterance, options, features)
    with leave_unchanged(case.model, seed=3):
        targets, states = case.adapter.generate_each(case.utterance, options, features)
    assert [written(target) for target in targets] == expected and len(states) == 4
    with leave_unchanged(case.model, seed=4):
        assert alone(case.adapter, case.utterance, options, features)[0] != expected

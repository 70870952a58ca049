"""Canary and Cohere Transcribe: prompts, masks, features, positions, long audio."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from test_contract import FEW, close, logits, plain_inputs, plain_logits, states
from tiny import TEXT, VARIED
from tiny_fast_conformers import FAST_CONFORMERS
from transformers.modeling_outputs import BaseModelOutput

from spes_hf import AudioError, ConfigError, Recording, UnsupportedModelError, explain
from spes_hf.adapters import GenerationOptions, get_adapter
from spes_hf.audio.load import load_audio
from spes_hf.metrics.deletion import Deletion

NAMES = [*FAST_CONFORMERS]


@pytest.fixture(params=NAMES)
def fast64(request, cases):
    """The same in float64."""
    return cases(request.param, torch.float64)


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(16_000 * seconds))).astype(np.float32)


def prefix(case, **options):
    """Return the names of the tokens that the output starts from."""
    settings = GenerationOptions(**options)
    case.adapter.check_options(settings)
    ids = case.adapter.prefix_ids(case.utterance, settings)
    return case.processor.tokenizer.convert_ids_to_tokens(ids.tolist())


# The prompt -----------------------------------------------------------------------------------------------------------


def test_canary_is_prompted_as_its_processor_does(cases):
    case = cases("canary")
    for options, languages in [
        ({}, ["<|en|>", "<|en|>"]),
        ({"language": "de"}, ["<|de|>", "<|de|>"]),
        ({"language": "German", "tgt_lang": "english"}, ["<|de|>", "<|en|>"]),
        ({"tgt_lang": "es"}, ["<|en|>", "<|es|>"]),
    ]:
        names = {"language": "source_language", "tgt_lang": "target_language"}
        asked = {names[name]: value for name, value in options.items()}
        request = case.processor.apply_transcription_request(case.audio, **asked)
        found = prefix(case, **options)
        assert found[3:5] == languages
        assert found == case.processor.tokenizer.convert_ids_to_tokens(request["decoder_input_ids"][0].tolist())


def test_both_languages_have_a_part_in_what_is_written(cases):
    case = cases("canary")
    options = [{"language": "de"}, {"language": "de", "tgt_lang": "es"}, {"language": "en", "tgt_lang": "de"}]
    targets = [case.adapter.encode_text(case.utterance, TEXT, GenerationOptions(**each)) for each in options]
    with torch.no_grad():
        first, *others = [case.adapter.logits(case.utterance, target) for target in targets]
    assert all((other - first).abs().max() > 1e-3 for other in others)


def test_punctuation_is_the_prompt_s(fast):
    given = {**fast.family.options, "generate_kwargs": {**VARIED, "punctuation": False}}
    assert "<|nopnc|>" in prefix(fast, **given) and "<|pnc|>" not in prefix(fast, **given)
    found = explain(fast.model, fast.processor, fast.audio, config=FEW, progress=False, **given)
    assert "<|nopnc|>" in found.context_pieces[: found.prefix_length]
    ids = torch.tensor([fast.processor.tokenizer.convert_tokens_to_ids([*prefix(fast, **given)])])
    with torch.no_grad():
        plain = copy.deepcopy(fast.model).generate(**plain_inputs(fast), decoder_input_ids=ids, **VARIED)[0]
    assert found.token_ids == plain[ids.shape[1] :].tolist()
    again = Deletion(fast.model, fast.processor, (0.0, 0.5, 1.0))(found)["deletion"]
    assert again["texts"][0] == found.text
    with pytest.raises(ConfigError, match=r"punctuation is 'no' in generate_kwargs; allowed: True, False"):
        prefix(fast, **fast.family.options, generate_kwargs={"punctuation": "no"})


def test_start_token_that_the_prompt_lacks_comes_first(fast):
    """As ``generate()`` adds it, and with no start token the beginning of sequence."""
    model, processor = fast.copy()
    plain = fast.family.plain(processor)
    for start in (12, None):
        model.generation_config.decoder_start_token_id = start
        target = get_adapter(model, processor).generate(fast.utterance, fast.options)
        with torch.no_grad():
            expected = copy.deepcopy(model).generate(**plain_inputs(fast), **plain, **VARIED)[0]
        assert torch.cat([target.prefix_ids, target.token_ids]).tolist() == expected.tolist()
        assert target.prefix_ids[0] == (start or 4) and len(target.prefix_ids) == len(fast.family.prefix) + 1


def test_a_language_that_the_vocabulary_lacks_is_refused(fast):
    """The processors take "fr", which would become an unknown token or a row of letters."""
    with pytest.raises(ConfigError, match="language is 'fr', which this checkpoint does not have; allowed: de, en"):
        explain(fast.model, fast.processor, fast.audio, language="fr")
    with pytest.raises(ConfigError, match="language is 3, which this checkpoint does not have"):
        prefix(fast, language=3)


def test_prompt_is_special_though_the_tokenizer_names_it_not(fast):
    ids = torch.tensor(fast.processor.tokenizer.convert_tokens_to_ids(["<|nopnc|>", "<|es|>", "▁hund", "7", "▁"]))
    assert not {ids[0].item(), ids[1].item()} & set(fast.processor.tokenizer.all_special_ids)
    assert fast.adapter.is_special(ids)[:2] == [True, True] and not any(fast.adapter.is_special(ids)[3:])


def test_digits_are_words_of_the_vocabulary(fast):
    text = "and in 1999 the 7 dogs"
    target = fast.adapter.encode_text(fast.utterance, text, fast.options)
    assert fast.adapter.text(target.token_ids) == text == fast.processor.tokenizer.decode(target.token_ids[:-1])
    assert set(fast.adapter.added_words().values()) == set("0123456789")
    found = explain(
        fast.model, fast.processor, fast.audio, text=text, config=FEW, progress=False, **fast.family.options
    )
    assert [word.strip() for word in found.words().tokens[:6]] == text.split()


# Masks and features ---------------------------------------------------------------------------------------------------


def test_encoder_output_needs_its_mask(fast):
    """A plain `BaseModelOutput` has none, and without one the decoder would attend to padding."""
    plain = BaseModelOutput(last_hidden_state=states(fast))
    ids = fast.target.context_ids[None]
    with pytest.raises(AttributeError, match="attention_mask"):
        fast.model(encoder_outputs=plain, decoder_input_ids=ids)
    close(logits(fast, states=states(fast))[0], plain_logits(fast, plain_inputs(fast)), 1e-5)


def test_the_frame_of_padding_is_masked_and_no_true_frame(fast64, clip):
    """Of 73 frames the last is padding, and so is the last of 10 positions."""
    utterance = fast64.adapter.encode(load_audio(np.resize(clip, 11_600), 16_000, 16_000))
    features, mask = utterance.inputs["input_features"], utterance.inputs["attention_mask"]
    assert features.shape == (1, 73, 128) and mask.sum() == 72 == len(utterance.features)
    assert (features[0, -1] == 0).all() and fast64.adapter.attended(utterance) == 9
    ids = fast64.target.context_ids[None]
    with torch.no_grad():
        clean = fast64.model(**utterance.inputs, decoder_input_ids=ids).logits
        changed = features.clone()
        changed[0, -1] = 9.0
        close(fast64.model(input_features=changed, attention_mask=mask, decoder_input_ids=ids).logits, clean)
        without = fast64.model(input_features=changed, decoder_input_ids=ids).logits
        assert (without - clean).abs().max() > 1e-3
        found = fast64.adapter.encoder_states(utterance.inputs)
        assert found.shape[1] == 10
        token_keep = torch.ones(3, ids.shape[1])
        start = len(fast64.target.prefix_ids) - 1
        for given in ({"states": found}, {"states": found, "token_keep": token_keep}):
            teacher_forced = fast64.adapter.logits(utterance, fast64.target, **given)
            close(teacher_forced, clean[:, start:].expand(len(teacher_forced), -1, -1))
    weights = fast64.adapter.attention_weights(utterance, fast64.target)
    assert (weights[..., 9:] == 0).all() and (weights[..., :9] > 0).all()


def test_features_do_not_depend_on_what_they_are_padded_with(fast64, clip):
    """They are normalised over the true frames: in a batch with longer sound they and the output stay the same."""
    extractor = fast64.processor.feature_extractor
    longer = np.concatenate([clip, noise(1.0)])
    batch = extractor([clip, longer], sampling_rate=16_000, return_tensors="pt")
    own = fast64.utterance.features
    assert batch["attention_mask"].sum(1).tolist() == [71, 171]
    torch.testing.assert_close(batch["input_features"][0, :71], own, atol=1e-4, rtol=0)
    torch.testing.assert_close(own.mean(0), torch.zeros(128), atol=1e-5, rtol=0)
    torch.testing.assert_close(own.std(0), torch.ones(128), atol=1e-3, rtol=0)
    padded = torch.zeros(1, 172, 128, dtype=torch.float64)
    padded[0, :71] = own.double()
    mask = batch["attention_mask"][:1]
    ids = fast64.target.context_ids[None]
    with torch.no_grad():
        found = fast64.model(input_features=padded, attention_mask=mask, decoder_input_ids=ids).logits
    close(found[:, len(fast64.target.prefix_ids) - 1 :], logits(fast64))


def test_frequencies_are_those_of_the_filters(fast):
    filters = fast.processor.feature_extractor.mel_filters  # (C, bins of the spectrum)
    peaks = filters.argmax(1) * 8_000 / (filters.shape[1] - 1)
    wide = slice(60, None)  # where a filter is wider than a bin of the spectrum
    torch.testing.assert_close(fast.utterance.frequencies[wide], peaks[wide].float(), atol=16.0, rtol=0)


def test_silence_is_read_where_it_is_finite(fast):
    assert fast.adapter.encode(load_audio(np.zeros(8_000, np.float32), 16_000, 16_000)).features.isfinite().all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(fast64, implementation):
    model, processor = fast64.copy()
    model.set_attn_implementation(implementation)
    adapter = get_adapter(model, processor)
    keep = torch.rand(3, len(fast64.target.context_ids), generator=torch.Generator().manual_seed(0)) >= 0.4
    with torch.no_grad():
        found = adapter.logits(fast64.utterance, fast64.target, token_keep=keep)
        with_cache = adapter.logits(
            fast64.utterance,
            fast64.target,
            token_keep=keep,
            states=states(fast64),
            cross=adapter.cross_attention(fast64.utterance, fast64.target, states(fast64)),
        )
    # In float32, whatever the model's dtype, the eager one makes weights of scores.
    close(found, logits(fast64, token_keep=keep), 1e-5)
    close(with_cache, found, 1e-5)


# Positions in time ----------------------------------------------------------------------------------------------------


def test_a_click_moves_the_positions_around_it(fast64):
    """Four convolution layers of 3 frames, each at half the rate of the one before, reach 7 frames to either side."""
    utterance = fast64.adapter.encode(load_audio(noise(4.0), 16_000, 16_000))
    clicked = utterance.features.clone()
    frame = int((utterance.times - 3.0).abs().argmin())
    assert float(utterance.times[frame]) == pytest.approx(3.0, abs=1e-4)
    clicked[frame] += 5.0
    moved = []
    for features in (utterance.features, clicked):
        inputs = fast64.adapter.model_inputs(utterance, features[None])
        with torch.no_grad():
            moved.append(fast64.adapter.encoder.subsampling(inputs["input_features"], inputs["attention_mask"])[0])
    changed = (moved[1] - moved[0]).abs().amax(1) > 1e-9
    positions = fast64.adapter.encoder_positions(utterance)
    assert len(positions) == 50 and float(positions.times[1] - positions.times[0]) == pytest.approx(0.08)
    around = (positions.times.double() - 3.0).abs() < 0.0755
    assert changed[: len(positions)].tolist() == around.tolist() and 1 <= around.sum() <= 2
    assert not changed[len(positions) :].any()
    assert around[positions.nearest[frame]]


def test_a_click_in_the_sound_is_in_its_own_frames(fast):
    sound = 0.001 * noise(4.0)
    sound[48_000] = 0.9
    utterance = fast.adapter.encode(load_audio(sound, 16_000, 16_000))
    loud = utterance.features.mean(1)
    assert (utterance.times[loud > loud.max() / 2] - 3.0).abs().max() <= 0.0201
    assert (utterance.times[loud.topk(2).indices] - 3.0).abs().max() <= 0.0101


@pytest.mark.parametrize("samples", [320, 1_280, 11_240, 11_360, 11_400, 11_520, 12_800])
def test_positions_are_those_that_the_encoder_returns(fast, samples):
    utterance = fast.adapter.encode(load_audio(noise(samples / 16_000), 16_000, 16_000))
    with torch.no_grad():
        output = fast.adapter.encoder(**utterance.inputs)
    positions = fast.adapter.encoder_positions(utterance)
    assert len(positions) == int(output.attention_mask.sum()) == fast.adapter.attended(utterance)
    assert len(positions) <= output.last_hidden_state.shape[1]
    assert positions.times[0] == 0.0 and positions.times[-1] <= utterance.times[-1]


# Long audio -----------------------------------------------------------------------------------------------------------


def test_canary_reads_what_its_encoder_is_configured_for(cases):
    case = cases("canary")
    assert case.adapter.longest_s == pytest.approx(4.8) and case.adapter.undivided_s is None
    assert len(case.adapter.encode(load_audio(noise(4.8), 16_000, 16_000)).features) == 480
    for call in (case.adapter.encode, case.adapter.long_form):
        with pytest.raises(AudioError, match=r'segment="pauses"'):
            call(load_audio(noise(4.9), 16_000, 16_000))
    found = explain(
        *(case.model, case.processor, noise(6.0)),
        config=FEW,
        segment="pauses",
        sampling_rate=16_000,
        generate_kwargs=VARIED,
        progress=False,
        **case.family.options,
    )
    assert isinstance(found, Recording) and len(found) >= 2


def test_cohere_cuts_long_audio_as_its_processor_does(cases):
    """The parts, what is written for each, and the whole text, are those of a plain call."""
    case = cases("cohere_asr")
    sound = noise(12.0) * (1 + np.sin(np.arange(192_000) / 9_000)).astype(np.float32)
    extractor = case.processor.feature_extractor
    chunks = extractor._split_audio_chunks_energy(torch.from_numpy(sound))
    inputs = case.processor(sound, language="de", sampling_rate=16_000)
    index = inputs.pop("audio_chunk_index")
    with torch.no_grad():
        plain = copy.deepcopy(case.model).generate(**inputs, **VARIED)
    text = case.processor.decode(plain, skip_special_tokens=True, audio_chunk_index=index, language="de")
    found = explain(
        *(case.model, case.processor, sound),
        config=FEW,
        sampling_rate=16_000,
        generate_kwargs=VARIED,
        progress=False,
        **case.family.options,
    )
    assert isinstance(found, Recording) and len(chunks) >= 3
    ends = np.cumsum([len(chunk) for chunk in chunks]) / 16_000
    assert [w.end_s for w in found.windows] == pytest.approx(ends.tolist())
    assert [w.start_s for w in found.windows] == pytest.approx([0.0, *ends[:-1].tolist()])
    written = [[*w.written.prefix_ids, *w.written.token_ids] for w in found.windows]
    assert written == [row.tolist() for row in plain]
    assert found.text.replace(" ", "") == text[0].replace(" ", "")
    assert found.provenance["windows"] == "of generate()"
    second = list(found)[1]
    assert second.times[0] == pytest.approx(ends[0], abs=1e-4)
    gone = Deletion(case.model, case.processor, (0.0, 0.5, 1.0))(second)["deletion"]
    assert gone["texts"][0] == second.text


def test_cohere_reads_audio_up_to_its_limit_in_one_piece(cases):
    case = cases("cohere_asr")
    assert case.adapter.undivided_s == case.adapter.longest_s == 4.5
    whole = explain(
        case.model, case.processor, noise(4.5), config=FEW, generate_kwargs=VARIED, progress=False, language="de"
    )
    assert not isinstance(whole, Recording) and len(whole.times) == 450
    with pytest.raises(AudioError, match="reads at most 4.5 s; pass segment"):
        case.adapter.encode(load_audio(noise(4.6), 16_000, 16_000))


# What is refused ------------------------------------------------------------------------------------------------------


def test_a_model_of_the_checkpoint_s_own_code_is_refused(fast):
    """What ``trust_remote_code=True`` loads has the names of transformers' classes, and is other code."""
    remote = type(type(fast.model).__name__, (torch.nn.Module,), {"__module__": "transformers_modules.repo.modeling"})()
    remote.config = fast.model.config
    with pytest.raises(
        UnsupportedModelError,
        match="from the checkpoint's own code, which is not supported; load model and processor without "
        "trust_remote_code",
    ):
        get_adapter(remote, fast.processor)

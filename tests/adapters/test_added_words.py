"""Vocabularies that users extended: what was added is a word, whatever letters it has."""

from __future__ import annotations

import pytest
import torch
from transformers import AddedToken

from spes_hf import ConfigError, EnergyConfig, Explanation, explain
from spes_hf.adapters import _ADAPTERS, GenerationOptions, get_adapter
from spes_hf.adapters.vocabulary import ByteLevelVocabulary

ADDED = ["ñandú", "日本", "Zürich", "covid"]
TEXT = "der ñandú läuft in 日本 und in Zürich"
FAMILIES = ["whisper", "speech_to_text", "speech_to_text-languages", "seamless_m4t", "seamless_m4t_v2-full"]


@pytest.fixture(scope="module", params=FAMILIES)
def extended(request, tmp_path_factory, cases):
    """A case, and an adapter of its model with words and a special token added."""
    case = cases(request.param)
    model, processor = case.family.build(tmp_path_factory.mktemp("extended"))
    assert processor.tokenizer.add_tokens(ADDED) == len(ADDED)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|speaker|>"]}, False)
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    return case, get_adapter(model, processor)


def ids_of(adapter, *tokens):
    return torch.tensor(adapter.tokenizer.convert_tokens_to_ids(list(tokens)))


def test_byte_level_vocabularies_are_of_one_kind():
    for name in ("whisper", "granite_speech", "qwen2_audio", "qwen3_asr", "voxtral"):
        for method in ("text_ids", "inner_ids", "piece", "added_piece"):
            assert getattr(_ADAPTERS[name], method) is getattr(ByteLevelVocabulary, method), (name, method)


def test_added_words_are_text_and_added_special_tokens_are_not(extended):
    _, adapter = extended
    ids = ids_of(adapter, *ADDED, "<|speaker|>")
    assert adapter.is_special(ids) == [False] * len(ADDED) + [True]
    assert [piece.strip() for piece in adapter.pieces(ids)] == [*ADDED, "<|speaker|>"]


def test_letters_of_added_words_are_kept(extended):
    _, adapter = extended
    ids = adapter.text_ids(TEXT)
    assert set(ids_of(adapter, "ñandú", "日本", "Zürich").tolist()) <= set(ids)
    assert adapter.text(torch.tensor(ids)) == TEXT
    assert "".join(adapter.pieces(torch.tensor(ids))).encode("utf-8", "surrogateescape").decode().strip() == TEXT
    with_end = torch.tensor([*ids, adapter.eos_token_id, ids_of(adapter, "<|speaker|>")[0]])
    assert adapter.text(with_end) == TEXT


def test_added_words_are_words_of_a_given_text(extended, tmp_path):
    case, adapter = extended
    settings = {"config": EnergyConfig(), "text": TEXT, "progress": False, **case.family.options}
    found = explain(adapter.model, adapter.processor, case.audio, **settings)
    assert found.text == TEXT
    assert "ñandú" in [token.strip() for token in found.tokens]
    words = found.words()
    assert [word.strip() for word in words.tokens if word.strip()] == TEXT.split()
    again = Explanation.load(found.save(tmp_path / "saved"))
    assert again.tokens == found.tokens and again.special == found.special and again.text == TEXT
    assert again.words().tokens == words.tokens


def test_added_words_that_the_model_writes_are_words(extended):
    """The bias of the output is what makes a random model write them."""
    case, adapter = extended
    word = ids_of(adapter, "ñandú").tolist()
    bias = [[word, 100.0]]
    settings = {"sequence_bias": bias, "max_new_tokens": 3}
    options = GenerationOptions(**case.family.options, generate_kwargs=settings)
    target = adapter.generate(case.utterance, options)
    assert set(target.token_ids.tolist()) == {*word} and target.prefix_ids.tolist() == case.target.prefix_ids.tolist()
    assert "ñandú" in adapter.text(target.token_ids) and not any(adapter.is_special(target.token_ids))


def test_special_tokens_and_words_without_an_embedding_are_refused_in_a_text(extended, cases):
    case, adapter = extended
    with pytest.raises(ConfigError, match="tokens that the model cannot write.*speaker"):
        adapter.encode_text(case.utterance, "der <|speaker|>", case.options)
    small = get_adapter(case.model, adapter.processor)  # embeddings of before
    with pytest.raises(ConfigError, match="tokens that the model cannot write.*ñandú"):
        small.encode_text(case.utterance, "der ñandú", case.options)


def test_words_added_with_the_space_of_the_vocabulary_start_with_a_space(cases, tmp_path):
    for name, word in (("whisper", "Ġcovid"), ("speech_to_text", "▁covid"), ("seamless_m4t", "▁covid")):
        model, processor = cases(name).family.build(tmp_path)
        processor.tokenizer.add_tokens([word])
        adapter = get_adapter(model, processor)
        assert adapter.pieces(ids_of(adapter, word)) == [" covid"], name


@pytest.mark.parametrize("case_of_tokenizer", ["do_lower_case", "do_upper_case"])
def test_vocabulary_of_one_case_finds_words_added_in_another(cases, tmp_path, case_of_tokenizer):
    model, processor = cases("speech_to_text").family.build(tmp_path)
    setattr(processor.tokenizer, case_of_tokenizer, True)
    processor.tokenizer.add_tokens([AddedToken("Zürich", normalized=False)])
    adapter = get_adapter(model, processor)
    ids = adapter.text_ids("Der Hund in Zürich")
    assert ids[-1] == ids_of(adapter, "Zürich") and ids[:-1] == adapter.text_ids("der hund in")
    text = "DER HUND IN ZÜRICH" if case_of_tokenizer == "do_upper_case" else "der hund in Zürich"
    assert adapter.text(torch.tensor(ids)) == text


def test_timestamps_stay_special_next_to_added_words(cases, tmp_path):
    model, processor = cases("whisper").family.build(tmp_path)
    processor.tokenizer.add_tokens(["covid"])
    adapter = get_adapter(model, processor)
    ids = ids_of(adapter, "covid", "<|0.00|>", "<|2.00|>", "<|endoftext|>", "<|notimestamps|>")
    assert adapter.is_special(ids) == [False, True, True, True, True]
    with pytest.raises(ConfigError, match="tokens that the model cannot write.*0.00"):
        adapter.encode_text(cases("whisper").utterance, "<|0.00|> der hund", GenerationOptions())

# Copyright 2026 The spes_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Tests of the tiny corpus with adjectives that agree with the speaker, and of a model that learns its new words."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from tiny_speech.lexicon import KIN, PERSONS, SPEAKER_MOODS
from tiny_speech.sentences import KINDS, SPEAKER_KINDS, Sentence, SpeakerGrammar, generate_sentences
from tiny_speech.synthesis import DEV_VOICES, TEST_VOICES, available_synthesisers, make_corpus, voice_gender

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "train_tiny_models.py"
# Of `generate_sentences(500, seed=7)` as the shipped models were trained on: words, alignments and kinds.
PLAIN = "95d8aacf831ff0fcbb7ef3d6fc1845e75d09b1529664862d394bcfb290a9a1c8"
MASCULINE = {row[2]: row[0] for row in SPEAKER_MOODS}
FEMININE = {row[3]: row[0] for row in SPEAKER_MOODS}

needs_espeak = pytest.mark.skipif(
    "espeak" not in available_synthesisers(), reason="espeak-ng is not installed: apt-get install espeak-ng"
)


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    return generate_sentences(2000, seed=5, speaker_gender=True)


def bare(words: list[str]) -> list[str]:
    return [word.strip(".,?()") for word in words]


def ending(sentence: Sentence) -> str:
    """Return the gender of the adjective that follows "estoy" or "está"."""
    words = bare(sentence.words("es"))
    place = next(i for i, word in enumerate(words) if word.lower() in ("estoy", "está")) + 1
    assert (words[place] in FEMININE) != (words[place] in MASCULINE)
    return "f" if words[place] in FEMININE else "m"


def of_kind(sentences: list[Sentence], *kinds: str) -> list[Sentence]:
    found = [sentence for sentence in sentences if sentence.kind in kinds]
    assert len(found) > 50
    return found


# ---------------------------------------------------------------------------------------------------------- grammar


def test_without_the_option_a_seed_gives_the_sentences_of_the_shipped_models():
    rows = [repr((s.source, s.target, s.kind)) for s in generate_sentences(500, seed=7)]
    assert hashlib.sha256("\n".join(rows).encode()).hexdigest() == PLAIN
    assert all(sentence.speaker is None for sentence in generate_sentences(50, seed=7))


def test_the_seed_fixes_the_sentences_with_the_option_too(sentences):
    assert sentences == generate_sentences(2000, seed=5, speaker_gender=True)
    assert {sentence.kind for sentence in sentences} == {*KINDS, *SPEAKER_KINDS}
    assert len({sentence.text for sentence in sentences}) == len(sentences)


def test_adjectives_agree_with_the_voice(sentences):
    spoken = of_kind(sentences, "speaker", "speaker-cue")
    assert {sentence.speaker for sentence in spoken} == {"f", "m"}
    assert all(ending(sentence) == sentence.speaker for sentence in spoken)


def test_only_speakers_fix_the_voice(sentences):
    for sentence in sentences:
        assert (sentence.speaker is not None) == (sentence.kind in ("speaker", "speaker-cue"))


def test_a_noun_that_tells_the_speaker_agrees_with_the_voice(sentences):
    nouns = {row[0]: gender for gender in "fm" for row in (*KIN[gender], *PERSONS[gender])}
    for sentence in of_kind(sentences, "speaker-cue"):
        assert {nouns[word] for word in bare(sentence.words("en")) if word in nouns} == {sentence.speaker}


def test_the_same_words_are_said_by_women_and_men():
    grammar = SpeakerGrammar(seed=0)
    state = grammar.random.getstate()
    woman = grammar.of_kind("speaker", "f")
    grammar.random.setstate(state)
    man = grammar.of_kind("speaker", "m")
    assert woman.text == man.text and woman.translation("de") == man.translation("de")
    assert ending(woman) == "f" and ending(man) == "m"


def test_a_pronoun_tells_the_gender_in_the_third_person(sentences):
    genders = {"she": "f", "he": "m"}
    seen = set()
    for sentence in of_kind(sentences, "third-person"):
        english = [word.lower() for word in bare(sentence.words("en"))]
        pronouns = {genders[word] for word in english if word in genders}
        if pronouns:
            assert pronouns == {ending(sentence)}
            assert not {"ella", "él"} & set(bare(sentence.words("es")))  # Spanish drops it
        seen |= pronouns
    assert seen == {"f", "m"}


@pytest.mark.parametrize(
    ("kind", "gender", "start", "german", "spanish"),
    [
        ("speaker", "f", "I am tired because Anna", "Ich bin müde, weil Anna", "Estoy cansada porque Anna"),
        ("speaker", "m", "On Monday I am", "Am Montag bin ich", "El lunes estoy"),
        ("speaker-cue", "f", "I am the mother of", "Ich bin die Mutter von", "Soy la madre de"),
        ("speaker-cue", "m", "As an uncle I am sick.", "Als Onkel bin ich krank.", "Como tío estoy enfermo."),
        ("third-person", "f", "She is tired because", "Sie ist müde, weil", "Está cansada porque"),
        ("third-person", "m", "The son of", "Der Sohn von", "El hijo de"),
    ],
)
def test_templates_give_exact_translations(kind, gender, start, german, spanish):
    grammar = SpeakerGrammar(seed=1)
    drawn = (grammar.of_kind(kind, gender) for _ in range(5000))
    sentence = next(sentence for sentence in drawn if sentence.text.startswith(start))
    assert sentence.translation("de").startswith(german)
    assert sentence.translation("es").startswith(spanish)


def test_alignments_point_at_words_of_the_sentence(sentences):
    for sentence in of_kind(sentences, *SPEAKER_KINDS):
        for language in ("de", "es"):
            links = sentence.alignment(language)
            assert len(links) == len(sentence.words(language))
            assert all(0 <= i < len(sentence.source) for sources in links for i in sources)
        english = bare(sentence.words("en"))
        for word, sources in zip(bare(sentence.words("es")), sentence.alignment("es"), strict=True):
            told = FEMININE.get(word) or MASCULINE.get(word)
            if told:
                assert [english[i] for i in sources] == [told]
        missing = {i for i in range(len(english))} - {i for sources in sentence.alignment("es") for i in sources}
        dropped = {"i", "a", "an", "she", "he", "past", "at", "o'clock", "to"}  # what Spanish says by the verb, or not
        assert {english[i].lower() for i in missing} <= dropped


# ----------------------------------------------------------------------------------------------------------- corpus


@needs_espeak
def test_voices_of_the_corpus_have_the_gender_of_their_sentences(tmp_path):
    make_corpus(tmp_path, {"train": 40, "dev": 20, "tst-COMMON": 40}, seed=2, workers=1, speaker_gender=True)
    rows = json.loads((tmp_path / "alignments" / "tst-COMMON.json").read_text())
    kinds = {row["kind"] for row in rows}
    assert {"speaker", "speaker-cue", "third-person"} <= kinds
    by_text = {s.text: s for s in generate_sentences(40, seed=2, speaker_gender=True)}
    for row in rows:
        wanted = by_text[row["transcript"]].speaker
        assert wanted in (None, voice_gender(row["speaker"]))
        assert len(row["words"]) == len(row["transcript"].split())


def test_every_split_has_voices_of_both_genders():
    for voices in (DEV_VOICES, TEST_VOICES):
        assert {voice_gender(voice) for voice in voices} == {"f", "m"}


# --------------------------------------------------------------------------------------------------------- training


def test_new_words_are_added_to_a_trained_model(tmp_path, recipe, sentences):
    torch.manual_seed(0)
    plain = [s.translation("es") for s in generate_sentences(30, seed=1)]
    processor = recipe.seamless_processor(plain, tmp_path / "old")
    model = recipe.seamless_model(processor, 32)
    new_texts = [*plain[:10], "Estoy enferma.", "Está enfermo."]
    grown_processor, grown = recipe.with_new_words("seamless", model, processor, new_texts, tmp_path / "new")
    assert grown_processor.tokenizer.tokenize("Estoy enferma.") == ["▁Estoy", "▁enferma", "."]
    old_ids, new_ids = processor.tokenizer.get_vocab(), grown_processor.tokenizer.get_vocab()
    for word in recipe.word_pieces(" ".join(plain[:10])):
        for name in ("shared.weight", "lm_head.weight", "text_decoder.embed_tokens.weight"):
            old_row = model.state_dict()[name][old_ids[word]]
            assert torch.equal(grown.state_dict()[name][new_ids[word]], old_row)
    for name, weight in model.state_dict().items():
        if not name.endswith(("shared.weight", "embed_tokens.weight", "lm_head.weight")):
            assert torch.equal(grown.state_dict()[name], weight)


def test_only_the_corpus_command_takes_the_option(recipe, capsys):
    assert recipe.parse_arguments(["corpus", "--speaker-gender"]).speaker_gender
    assert not recipe.parse_arguments(["corpus"]).speaker_gender
    assert not recipe.parse_arguments(["all"]).speaker_gender
    with pytest.raises(SystemExit):
        recipe.parse_arguments(["all", "--speaker-gender"])
    assert "--speaker-gender" in capsys.readouterr().err

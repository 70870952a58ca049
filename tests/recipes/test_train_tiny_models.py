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
"""Tests of the tiny corpus, its synthesis and the recipe that trains the tiny models."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_speech.lexicon import ADJECTIVES, NOUNS, number_words
from tiny_speech.mustc import Utterance, write_mustc_split
from tiny_speech.sentences import (
    KINDS,
    Grammar,
    Sentence,
    count_phrase,
    generate_sentences,
    join,
    number_phrase,
    object_phrase,
    phrase,
    wrap,
)
from tiny_speech.synthesis import (
    DEV_VOICES,
    TEST_VOICES,
    TRAIN_VARIANTS,
    Voice,
    available_synthesisers,
    make_corpus,
    synthesize,
)

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "train_tiny_models.py"
ASSETS = ROOT / "spes_hf" / "assets" / "tiny"

needs_espeak = pytest.mark.skipif(
    "espeak" not in available_synthesisers(), reason="espeak-ng is not installed: apt-get install espeak-ng"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices lose time to a second thread, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    return generate_sentences(3000, seed=11)


def noun(english: str) -> tuple[str, ...]:
    return next(entry for entry in NOUNS if entry[0] == english)


def adjective(english: str) -> tuple[str, ...]:
    return next(entry for entry in ADJECTIVES if entry[0] == english)


def texts(part) -> tuple[str, str, str]:
    return " ".join(part.source), *(" ".join(word for word, _ in part.target[lang]) for lang in ("de", "es"))


# ---------------------------------------------------------------------------------------------------------- grammar


@pytest.mark.parametrize(
    ("number", "german", "spanish"),
    [
        (0, "null", "cero"),
        (1, "eins", "uno"),
        (7, "sieben", "siete"),
        (12, "zwölf", "doce"),
        (16, "sechzehn", "dieciséis"),
        (17, "siebzehn", "diecisiete"),
        (20, "zwanzig", "veinte"),
        (21, "einundzwanzig", "veintiuno"),
        (22, "zweiundzwanzig", "veintidós"),
        (23, "dreiundzwanzig", "veintitrés"),
        (26, "sechsundzwanzig", "veintiséis"),
        (30, "dreißig", "treinta"),
        (31, "einunddreißig", "treinta y uno"),
        (47, "siebenundvierzig", "cuarenta y siete"),
        (66, "sechsundsechzig", "sesenta y seis"),
        (77, "siebenundsiebzig", "setenta y siete"),
        (99, "neunundneunzig", "noventa y nueve"),
    ],
)
def test_numbers_are_spelled_as_in_the_dictionary(number, german, spanish):
    words = number_words(number)
    assert (words["de"], words["es"]) == (german, spanish)


def test_all_numbers_differ_in_every_language():
    for language in ("en", "de", "es"):
        assert len({number_words(number)[language] for number in range(100)}) == 100


@pytest.mark.parametrize("number", [number for number in range(21, 100) if number % 10])
def test_german_two_digit_numbers_name_the_ones_first(number):
    tens, ones = divmod(number, 10)
    german = number_words(number)["de"]
    first = "ein" if ones == 1 else number_words(ones)["de"]
    assert german == first + "und" + number_words(10 * tens)["de"]
    assert number_phrase(number).target["de"] == ((german, (0, 1)),)


@pytest.mark.parametrize(
    ("number", "masculine", "feminine"),
    [
        (21, "veintiún", "veintiuna"),
        (31, "treinta y un", "treinta y una"),
        (91, "noventa y un", "noventa y una"),
        (23, "veintitrés", "veintitrés"),
    ],
)
def test_spanish_numbers_agree_with_their_noun(number, masculine, feminine):
    assert number_words(number, "m")["es"] == masculine
    assert number_words(number, "f")["es"] == feminine


@pytest.mark.parametrize("number", [-1, 100])
def test_numbers_out_of_range_are_refused(number):
    with pytest.raises(ValueError, match=str(number)):
        number_words(number)


@pytest.mark.parametrize(
    ("english", "colour", "definite", "german", "spanish"),
    [
        ("house", "red", True, "das rote Haus", "la casa roja"),
        ("house", "red", False, "ein rotes Haus", "una casa roja"),
        ("dog", "white", True, "den weißen Hund", "el perro blanco"),
        ("dog", "white", False, "einen weißen Hund", "un perro blanco"),
        ("flower", "blue", True, "die blaue Blume", "la flor azul"),
        ("flower", "blue", False, "eine blaue Blume", "una flor azul"),
        ("cat", "small", True, "die kleine Katze", "el gato pequeño"),
    ],
)
def test_objects_agree_in_gender_and_case(english, colour, definite, german, spanish):
    part = object_phrase(noun(english), adjective(colour), definite)
    assert texts(part) == (f"{'the' if definite else 'a'} {colour} {english}", german, spanish)
    assert part.target["es"][1][1] == (2,) and part.target["es"][2][1] == (1,)


def test_counted_plurals_agree():
    assert texts(count_phrase(21, noun("house"), adjective("blue"))) == (
        "twenty one blue houses",
        "einundzwanzig blaue Häuser",
        "veintiuna casas azules",
    )


def test_the_verb_goes_to_the_end_of_a_german_clause_and_keeps_its_source():
    parts = (
        phrase("I think that", "Ich/0 denke,/1 dass/2", "Pienso/0+1 que/2"),
        phrase("Anna", "Anna/0", "Anna/0"),
        phrase("sees", "sieht/0", "ve/0"),
        object_phrase(noun("house"), adjective("red")),
    )
    part = wrap(join(*parts, de=(0, 1, 3, 2)), "", ".")
    sentence = Sentence(part.source, part.target, "verb-final")
    assert sentence.text == "I think that Anna sees the red house."
    assert sentence.translation("de") == "Ich denke, dass Anna das rote Haus sieht."
    assert sentence.translation("es") == "Pienso que Anna ve la casa roja."
    assert sentence.alignment("de") == [[0], [1], [2], [3], [5], [6], [7], [4]]
    verb = sentence.moved("de")[0]
    assert verb == {
        "target": "sieht.",
        "target_index": 7,
        "monotonic_index": 7,
        "source_word": "sees",
        "source_index": 4,
    }


def test_parts_of_a_swapped_number_point_at_their_own_words():
    part = wrap(join(phrase("Tom has", "Tom/0 hat/1", "Tom/0 tiene/1"), count_phrase(23, noun("book"))), "", ".")
    sentence = Sentence(part.source, part.target, "number")
    assert sentence.translation("de") == "Tom hat dreiundzwanzig Bücher."
    pairs = {(row["part"], row["source_word"], row["source_index"]) for row in sentence.moved("de")}
    assert pairs == {("drei", "three", 3), ("zwanzig", "twenty", 2)}


class Scripted:
    """Stands in for the grammar's random state: takes what is wanted, and a fixed number for the first draw."""

    def __init__(self, first_draw: float, wanted: set[str], integer: int = 23) -> None:
        self.draws, self.wanted, self.integer = [first_draw], wanted, integer

    def random(self) -> float:
        return self.draws.pop() if self.draws else 0.0

    def choice(self, options):
        return next((option for option in options if option[0] in self.wanted), options[0])

    def randint(self, low: int, high: int) -> int:
        return self.integer


@pytest.mark.parametrize(
    ("template", "draw", "english", "german", "spanish"),
    [
        ("question", 0.1, "What does Anna see?", "Was sieht Anna?", "¿Qué ve Anna?"),
        ("question", 0.3, "Who sees the red house?", "Wer sieht das rote Haus?", "¿Quién ve la casa roja?"),
        (
            "question",
            0.6,
            "How many houses does Anna have?",
            "Wie viele Häuser hat Anna?",
            "¿Cuántas casas tiene Anna?",
        ),
        (
            "question",
            0.9,
            "Why does Anna see the red house?",
            "Warum sieht Anna das rote Haus?",
            "¿Por qué ve Anna la casa roja?",
        ),
        (
            "parenthesis",
            0.1,
            "Anna (my sister) sees the red house.",
            "Anna (meine Schwester) sieht das rote Haus.",
            "Anna (mi hermana) ve la casa roja.",
        ),
    ],
)
def test_templates_give_exact_translations(template, draw, english, german, spanish):
    grammar = Grammar(seed=0)
    grammar.random = Scripted(draw, {"Anna", "sees", "house", "red", "sister", "Why"})
    part = getattr(grammar, template)()
    assert texts(part) == (english, german, spanish)


@pytest.mark.parametrize(
    ("template", "draws", "english", "german", "spanish"),
    [
        (
            "verb_final",
            [0.0, 0.1, 0.9],
            "I think that Anna sees the red house.",
            "Ich denke, dass Anna das rote Haus sieht.",
            "Pienso que Anna ve la casa roja.",
        ),
        (
            "verb_final",
            [0.0, 0.6],
            "Anna is tired because Anna sees the red house.",
            "Anna ist müde, weil Anna das rote Haus sieht.",
            "Anna está cansada porque Anna ve la casa roja.",
        ),
        (
            "verb_final",
            [0.0, 0.7],
            "Anna must see the red house.",
            "Anna muss das rote Haus sehen.",
            "Anna debe ver la casa roja.",
        ),
        (
            "verb_final",
            [0.0, 0.9],
            "Anna has seen the red house.",
            "Anna hat das rote Haus gesehen.",
            "Anna ha visto la casa roja.",
        ),
        (
            "number",
            [0.0, 0.6],
            "Anna is twenty three years old.",
            "Anna ist dreiundzwanzig Jahre alt.",
            "Anna tiene veintitrés años.",
        ),
        (
            "number",
            [0.0, 0.9],
            "Anna waits in room twenty three.",
            "Anna wartet in Zimmer dreiundzwanzig.",
            "Anna espera en la habitación veintitrés.",
        ),
        (
            "statement",
            [0.0, 0.0, 0.5],
            "on Monday Anna sees the red house.",
            "am Montag sieht Anna das rote Haus.",
            "el lunes Anna ve la casa roja.",
        ),
    ],
)
def test_reordering_templates_give_exact_translations(template, draws, english, german, spanish):
    grammar = Grammar(seed=0)
    grammar.random = Scripted(0.0, {"Anna", "sees", "house", "red", "tired", "must", "Monday"})
    grammar.random.draws = draws[::-1]
    assert texts(getattr(grammar, template)()) == (english, german, spanish)


def test_sentences_are_well_formed(sentences):
    assert {sentence.kind for sentence in sentences} == set(KINDS)
    assert len({sentence.text for sentence in sentences}) == len(sentences)
    for sentence in sentences:
        end = "?" if sentence.kind == "question" else "."
        for language in ("en", "de", "es"):
            text = " ".join(sentence.words(language))
            assert text.endswith(end) and "  " not in text and "/" not in text
            assert text.lstrip("¿")[0].isupper()
            assert text.count("(") == text.count(")") == (sentence.kind == "parenthesis")
        assert sentence.translation("es").startswith("¿") == (sentence.kind == "question")
        for language in ("de", "es"):
            linked = {i for sources in sentence.alignment(language) for i in sources}
            missing = set(range(len(sentence.source))) - linked
            assert {sentence.source[i] for i in missing} <= {"does", "to", "past", "old.", "o'clock", "o'clock."}


def test_the_vocabulary_is_small(sentences):
    words = {re.sub(r"[.,?()]", "", word).lower() for sentence in sentences for word in sentence.source}
    assert 150 <= len(words) <= 300


def test_the_seed_fixes_the_sentences_and_exclusion_keeps_splits_apart():
    first = generate_sentences(200, seed=3)
    assert first == generate_sentences(200, seed=3)
    other = generate_sentences(200, seed=3, exclude=[sentence.text for sentence in first])
    assert not {sentence.text for sentence in first} & {sentence.text for sentence in other}


# ------------------------------------------------------------------------------------------------ layout and voices


def test_mustc_layout_round_trip(tmp_path, recipe):
    rng = np.random.default_rng(0)
    spoken = [
        Utterance(sentence, f"voice{i % 2}", rng.uniform(-0.5, 0.5, 4000 + 160 * i).astype(np.float32))
        for i, sentence in enumerate(generate_sentences(6, seed=1))
    ]
    write_mustc_split(tmp_path, "dev", spoken)
    for language in ("de", "es"):
        folder = tmp_path / f"en-{language}" / "data" / "dev"
        lines = (folder / "txt" / "dev.yaml").read_text().splitlines()
        assert len(lines) == 6 and all(line.startswith("- {duration: ") for line in lines)
        segments = yaml.safe_load("\n".join(lines))
        assert {"duration", "offset", "speaker_id", "wav"} <= set(segments[0])
        assert len({segment["wav"] for segment in segments}) == 2
        assert all((folder / "wav" / segment["wav"]).is_file() for segment in segments)
        assert len((folder / "txt" / f"dev.{language}").read_text().splitlines()) == 6
    ordered = sorted(spoken, key=lambda utterance: utterance.speaker)
    for utterance, example in zip(ordered, recipe.read_split(tmp_path, "dev"), strict=True):
        assert example.texts["de"] == utterance.sentence.translation("de")
        assert example.texts["es"] == utterance.sentence.translation("es")
        np.testing.assert_allclose(example.samples, utterance.samples, atol=1e-4)


@needs_espeak
@pytest.mark.parametrize("name", ["espeak:en-us+m4", "espeak:en-gb-x-rp+f5"])
def test_word_times_cover_the_speech_in_order(name):
    text = "Anna (my sister) sees the twenty three houses."
    samples, times = synthesize(text, Voice(name))
    assert samples.dtype == np.float32 and np.abs(samples).max() <= 1
    assert len(times) == len(text.split())
    flat = [edge for pair in times for edge in pair]
    assert flat == sorted(flat) and flat[0] >= 0 and flat[-1] <= len(samples) / 16000 + 1e-3
    assert all(end - start > 0.03 for start, end in times)
    energy = [np.abs(samples[int(start * 16000) : int(end * 16000)]).mean() for start, end in times]
    pause = np.abs(samples[int(times[2][1] * 16000) : int(times[3][0] * 16000)]).mean()
    assert pause < 0.2 * min(energy)


@needs_espeak
def test_an_unknown_voice_is_refused_by_name():
    with pytest.raises(ValueError, match="no-such"):
        synthesize("Hello.", Voice("espeak:no-such+m1"))


@needs_espeak
def test_corpus_splits_share_neither_sentences_nor_voices(tmp_path, recipe):
    make_corpus(tmp_path, {"train": 40, "dev": 6, "tst-COMMON": 24}, seed=2, workers=1)
    splits = {split: recipe.read_split(tmp_path, split) for split in recipe.SPLITS}
    english = {split: {example.texts["en"] for example in examples} for split, examples in splits.items()}
    assert not english["train"] & english["tst-COMMON"] and not english["dev"] & english["tst-COMMON"]
    rows = json.loads((tmp_path / "alignments" / "tst-COMMON.json").read_text())
    assert [row["transcript"] for row in rows] == [example.texts["en"] for example in splits["tst-COMMON"]]
    assert all(len(row["words"]) == len(row["transcript"].split()) for row in rows)


def test_voices_of_the_test_split_are_in_no_other_split():
    test = {voice.split("+")[1] for voice in TEST_VOICES}
    assert not test & set(TRAIN_VARIANTS)
    assert not test & {voice.split("+")[1] for voice in DEV_VOICES}


# ----------------------------------------------------------------------------------------- tokenizers and training


@pytest.fixture(scope="module")
def corpus_texts(sentences) -> dict[str, list[str]]:
    return {language: [" ".join(s.words(language)) for s in sentences] for language in ("en", "de", "es")}


def test_speech2text_tokens_are_words_and_round_trip(tmp_path, recipe, corpus_texts):
    processor = recipe.speech2text_processor(corpus_texts["en"], tmp_path)
    tokenizer = processor.tokenizer
    assert type(tokenizer).__name__ == "Speech2TextTokenizer"
    for text in corpus_texts["en"]:
        ids = tokenizer(text).input_ids
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.convert_ids_to_tokens(ids[:-1]) == recipe.word_pieces(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_seamless_tokens_are_words_and_round_trip(tmp_path, recipe, corpus_texts):
    processor = recipe.seamless_processor([text for texts in corpus_texts.values() for text in texts], tmp_path)
    tokenizer = processor.tokenizer
    assert type(tokenizer).__name__ == "SeamlessM4TTokenizer"
    for language, lines in corpus_texts.items():
        code = recipe.SEAMLESS_CODES[language]
        for text in lines[:1000]:
            ids = tokenizer(text_target=text, tgt_lang=code).input_ids
            assert tokenizer.convert_ids_to_tokens(ids[:2]) == ["</s>", f"__{code}__"]
            assert tokenizer.convert_ids_to_tokens(ids[2:-1]) == recipe.word_pieces(text)
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_german_number_is_split_into_its_parts(tmp_path, recipe):
    numbers = [number_words(number)["de"] for number in range(100)]
    lines = [f"Anna hat {number} Hunde." for number in numbers]
    tokenizer = recipe.seamless_processor(lines, tmp_path).tokenizer
    for number, line in zip(numbers, lines, strict=True):
        tokens = tokenizer.tokenize(line)
        assert tokens == recipe.word_pieces(line)
        parts = number.split("und")
        assert len(tokens) == 4 + (2 * len(parts) - 1)


@pytest.mark.parametrize(("channels", "stack"), [(80, 1), (160, 2), (128, 1)])
def test_masking_sets_features_to_the_mean_of_their_channel_and_nothing_else(recipe, channels, stack):
    random.seed(0)
    features = torch.randn(50, channels, generator=torch.Generator().manual_seed(0)) + torch.arange(channels)
    masked = recipe.spec_augment(features.clone(), stack, strength=1.0)
    means = features.view(50 * stack, -1).mean(0).tile(stack)
    changed = masked != features
    assert 0.05 < changed.float().mean() < 0.9
    assert (masked == means)[changed].all()


def test_qwen3_asr_tokens_are_words_and_prompts_end_where_generation_starts(tmp_path, recipe, corpus_texts):
    processor = recipe.BUILD["qwen3_asr"][0](corpus_texts["en"], tmp_path)
    tokenizer = processor.tokenizer
    for text in corpus_texts["en"]:
        ids = recipe.target_ids(processor, "qwen3_asr", "en", [text])[0]
        assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(ids) - 1 <= len(recipe.word_pieces(text)) + 2 * text.count("'") and tokenizer.pad_token_id not in ids
    random.seed(0)
    samples = np.zeros(24_000, dtype=np.float32)
    kinds = set()
    for prompt, written in recipe.qwen3_asr.prompts_for(processor, corpus_texts["en"][:40]):
        given = prompt.split("<|im_end|>")[0].split("system\n")[1] or None
        forced = not written.startswith("language English<asr_text>")
        asked = processor.apply_transcription_request(
            [samples], language="English" if forced else None, prompt=given
        ).input_ids[0]
        length = int(recipe.qwen3_asr.audio_lengths(torch.tensor(150)))
        audio = processor.audio_token
        assert tokenizer(prompt.replace(audio, audio * length)).input_ids == asked.tolist()
        kinds.add((forced, given is not None))
    assert len(kinds) == 4


def test_qwen3_asr_packs_as_many_embeddings_as_it_says(tmp_path, recipe, corpus_texts):
    processor = recipe.BUILD["qwen3_asr"][0](corpus_texts["en"][:50], tmp_path)
    for frames in (50, 99, 100, 101, 108, 250, 1000):
        told = processor._get_audio_token_length(torch.tensor(frames))
        assert int(recipe.qwen3_asr.audio_lengths(torch.tensor(frames))) == told


@pytest.mark.parametrize("family", ["speech2text", "seamless"])
def test_training_and_generation_agree_on_how_a_sequence_starts(tmp_path, recipe, corpus_texts, family):
    torch.manual_seed(0)
    build = recipe.speech2text_processor if family == "speech2text" else recipe.seamless_processor
    processor = build([line for lines in corpus_texts.values() for line in lines[:300]], tmp_path)
    model = (recipe.speech2text_model if family == "speech2text" else recipe.seamless_model)(processor, 32).eval()
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    language = "en" if family == "speech2text" else "es"
    inputs = processor.feature_extractor(samples, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
    options = {} if family == "speech2text" else {"tgt_lang": "spa"}
    ids = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, **options).sequences[0]
    expected = recipe.target_ids(processor, family, language, [corpus_texts[language][0]])[0]
    prefix = 1 if family == "speech2text" else 2
    assert ids[:prefix].tolist() == expected[:prefix]


@pytest.mark.parametrize("family", ["speech2text", "seamless", "qwen3_asr"])
def test_a_few_steps_lower_the_loss(tmp_path, recipe, corpus_texts, family):
    torch.manual_seed(0)
    random.seed(0)
    languages = ["en", "de", "es"] if family == "seamless" else ["en"]
    lines = {language: corpus_texts[language][:4] for language in languages}
    build_processor, build_model = recipe.BUILD[family]
    processor = build_processor([line for rows in lines.values() for line in rows], tmp_path)
    model = build_model(processor, 32)
    channels = {"speech2text": 80, "seamless": 160, "qwen3_asr": 128}[family]
    features = [np.random.default_rng(i).standard_normal((200, channels)).astype(np.float16) for i in range(4)]
    targets = {language: recipe.target_ids(processor, family, language, lines[language]) for language in languages}
    batches = recipe.Batches(features, targets, 4, 2 if family == "seamless" else 1, model.config.pad_token_id)
    head = recipe.ctc_layer(family, model, len(processor.tokenizer))
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)
    losses = []
    batch = batches.batch(list(range(4)), strength=0.0)
    for _ in range(12):
        random.seed(0)
        loss = recipe.loss_of(model, head, batch, family, processor, ctc_weight=0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]


def test_the_recipe_declares_its_dependencies_and_has_help(recipe, capsys):
    header = (ROOT / "recipes" / "train_tiny_models.py").read_text(encoding="utf-8")
    assert "# /// script" in header and '#     "spes-hf",' in header
    for arguments in (["--help"], ["train", "--help"], ["evaluate", "--help"]):
        with pytest.raises(SystemExit) as stop:
            recipe.parse_arguments(arguments)
        assert stop.value.code == 0
    assert "--model" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------- shipped files


def test_shipped_clips_are_complete():
    import soundfile

    rows = [json.loads(line) for line in (ASSETS / "clips" / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 24
    kinds = [row["kind"] for row in rows]
    assert kinds.count("verb-final") >= 6 and kinds.count("number") >= 6
    assert kinds.count("question") >= 4 and kinds.count("parenthesis") >= 4
    for row in rows:
        info = soundfile.info(ASSETS / "clips" / row["file"])
        assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
        assert [word["word"] for word in row["words"]] == row["transcript"].split()
        assert row["words"][-1]["end"] <= info.frames / 16000 + 1e-3
        for language in ("de", "es"):
            target = row[f"translation_{language}"].split()
            for moved in row["moved"][language]:
                assert target[moved["target_index"]] == moved["target"]
                assert row["transcript"].split()[moved["source_index"]] == moved["source_word"]


@pytest.mark.parametrize("name", ["speech2text-en", "seamless-en-de-es", "qwen3-asr-en"])
def test_shipped_models_are_small_and_have_a_card(name):
    folder = ASSETS / name
    assert (folder / "model.safetensors").stat().st_size < 6_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0") and "evaluate --model" in card

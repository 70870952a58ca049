"""Log-odds of what was written against a foil: hand-worked numbers, signs, sharing, and bad foils."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from spes_hf import ConfigError, EnergyConfig, Explanation, SpesConfig, explain
from spes_hf.adapters import Target, get_adapter
from spes_hf.adapters.output import output_of
from spes_hf.audio.load import load_audio
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation.packing import pack, unpack
from spes_hf.scoring.contrast import Contrast, ContrastReader, Odds
from spes_hf.scoring.foils import Words, contrasts_of
from spes_hf.scoring.objective import ContrastObjective

FAST = SpesConfig(num_spectrogram_masks=4, masks_per_token=4, num_token_masks=40)
KENNEDY = "And so, my fellow Americans, ask not what your country can do for you."


@pytest.fixture(scope="module")
def clip():
    return next(c for c in tiny_clips() if c["kind"] == "statement")


@pytest.fixture(scope="module")
def english():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def written(english, clip):
    """The explanation of what the model wrote, cheaply."""
    return explain(*english, clip["path"], config=EnergyConfig(), progress=False)


def content_word(explanation) -> str:
    """Return a noun, adjective or verb in the middle of the text that occurs once."""
    words = [w.strip() for w in explanation.words().tokens]
    return next(w for w in words[2:] if len(w) > 3 and words.count(w) == 1)


# Numbers --------------------------------------------------------------------------------------------------------------


class Table:
    """A model of three words and an end, whose next token depends on the last one by a table of probabilities."""

    # 0 " a", 1 "b" (goes on), 2 " c", 3 end
    NEXT = torch.tensor(
        [
            [0.1, 0.5, 0.2, 0.2],
            [0.25, 0.25, 0.25, 0.25],
            [0.6, 0.1, 0.1, 0.2],
            [0.4, 0.1, 0.4, 0.1],
        ]
    )

    def logits(self, utterance, target, features=None, token_keep=None, states=None, cross=None):
        rows = self.NEXT[target.context_ids][len(target.prefix_ids) - 1 :].log()
        return rows[None]

    def word_ends(self, vocabulary):
        return torch.tensor([True, False, True, True])


def odds(contrast: Contrast, word_probability: str) -> Odds:
    target = Target(torch.tensor([3]), torch.tensor([0, 3]), complete=True)
    return ContrastReader(Table(), None, target, [contrast], word_probability, torch.zeros(1)).odds()


def test_word_boundary_on_hand_worked_numbers():
    """ "a" against "ab", of which it is a prefix: p(a) · p(end of word | a) against p(a) p(b | a) · p(end | ab)."""
    contrast = Contrast("a", "ab", 0, (0,), (0, 1))
    found = odds(contrast, "word-boundary")
    assert math.exp(found.target) == pytest.approx(0.4 * (0.1 + 0.2 + 0.2))
    assert math.exp(found.foil) == pytest.approx(0.4 * 0.5 * 0.75)
    assert float(found.bits) == pytest.approx(math.log2(0.2 / 0.15), abs=1e-6)
    assert float(found.score("difference")) == pytest.approx(0.05)
    assert float(found.score("relative")) == pytest.approx(0.2 / 0.35)


def test_chain_rule_and_length_normalisation_on_hand_worked_numbers():
    contrast = Contrast("a", "ab", 0, (0,), (0, 1))
    assert math.exp(odds(contrast, "chain").target) == pytest.approx(0.4)
    assert math.exp(odds(contrast, "chain").foil) == pytest.approx(0.2)
    assert math.exp(odds(contrast, "length-normalised").foil) == pytest.approx(math.sqrt(0.4 * 0.5))


def test_single_tokens_have_no_boundary():
    contrast = Contrast("a", "c", 1, (0,), (2,), words_end=False)
    assert math.exp(odds(contrast, "word-boundary").target) == pytest.approx(0.1)
    assert math.exp(odds(contrast, "word-boundary").foil) == pytest.approx(0.2)


# Foils ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kennedy(whisper):
    """Real Whisper's adapter, and what it writes of the demo clip, by hand."""
    adapter = get_adapter(*whisper)
    ids = torch.tensor([*adapter.text_ids(KENNEDY), adapter.eos_token_id])
    return adapter, Target(torch.tensor([50257, 50362]), ids, complete=True)


def named(kennedy, foil):
    return [(c.target, c.foil) for c in contrasts_of(*kennedy, foil)]


def test_a_text_differs_where_its_words_do(kennedy):
    foil = "and so my fellow americans ask not what your county can do for you"
    (contrast,) = contrasts_of(*kennedy, foil)
    adapter, target = kennedy
    assert contrast.name == "country, not county" and contrast.words_end
    assert target.token_ids[contrast.start : contrast.start + 1].tolist() == [*contrast.target_ids]
    assert adapter.pieces(torch.tensor(contrast.foil_ids)) == [" county"]
    assert contrast.tokens == (contrast.start,)


def test_spans_of_different_lengths(kennedy):
    adapter, _ = kennedy
    (contrast,) = contrasts_of(*kennedy, KENNEDY.replace("fellow Americans", "mellow American friends"))
    assert (contrast.target, contrast.foil) == ("fellow Americans", "mellow American friends")
    assert adapter.pieces(torch.tensor(contrast.foil_ids)) == [" mell", "ow", " American", " friends"]


def test_missing_and_additional_words_share_the_next_word(kennedy):
    adapter, target = kennedy
    (gone,) = contrasts_of(*kennedy, KENNEDY.replace("not what", "what"))
    assert (gone.target, gone.foil) == ("not", "(nothing)")
    assert adapter.text(torch.tensor(gone.target_ids)) == "not what" and len(gone.foil_ids) == 1
    (more,) = contrasts_of(*kennedy, KENNEDY.replace("your country", "your own country"))
    assert (more.target, more.foil) == ("(nothing)", "own") and more.tokens == ()
    assert adapter.text(torch.tensor(more.foil_ids)) == "own country"
    (end,) = contrasts_of(*kennedy, KENNEDY.replace("for you.", "for you now."))
    assert end.target_ids == (*target.token_ids[-2:].tolist(),) and not end.words_end
    assert end.foil_ids[-2:] == end.target_ids


@pytest.mark.parametrize(
    ("text", "foil", "target_text", "foil_text"),
    [
        ("Well, so I think it is.", "so I think it is", " Well, so", " so"),
        ("I think, well, it is.", "I think it is", " well, it", " it"),
        ('He said "cat sat on it".', "He said the cat sat on it", ' "cat', ' the "cat'),
        ('He said "the cat sat on it".', "He said cat sat on it", "the cat", "cat"),
        ("He paid $5 for it.", "He paid nearly 5 for it", " $5", " nearly $5"),
        ("He said yes.", "He said", " yes.", "."),
    ],
)
def test_marks_around_missing_and_additional_words(kennedy, text, foil, target_text, foil_text):
    """Target is what the model wrote, marks included; the foil is spaced as words are."""
    adapter, _ = kennedy
    ids = torch.tensor([*adapter.text_ids(text), adapter.eos_token_id])
    (contrast,) = contrasts_of(adapter, Target(torch.tensor([50257, 50362]), ids, complete=True), foil)
    end = contrast.start + len(contrast.target_ids)
    assert ids[contrast.start : end].tolist() == [*contrast.target_ids]
    spoken = [[i for i in some if i != adapter.eos_token_id] for some in (contrast.target_ids, contrast.foil_ids)]
    assert ["".join(adapter.pieces(torch.tensor(some))) for some in spoken] == [target_text, foil_text]


def test_replacements_by_word_and_by_index(kennedy):
    words = Words.of(kennedy[0], kennedy[1].token_ids).texts
    index = words.index("country")
    assert named(kennedy, {"country": "county"}) == named(kennedy, {index: "county"}) == [("country", "county")]
    several = [{"country": ["county", "company"]}, {"Country": "contrary"}]
    assert [foil for _, foil in named(kennedy, several)] == ["county", "company", "contrary"]
    assert [c.question for c in contrasts_of(*kennedy, several)] == [0, 0, 1]


def test_a_token_is_replaced_by_an_id(kennedy):
    adapter, target = kennedy
    (contrast,) = contrasts_of(*kennedy, {1: 11})
    assert contrast.target_ids == (int(target.token_ids[1]),) and contrast.foil_ids == (11,)
    assert not contrast.words_end and contrast.start == 1


def test_case_of_a_foil_without_capitals(kennedy):
    """A transcript in capitals takes the case of the words that it replaces; a foil that has both keeps its own."""
    assert named(kennedy, KENNEDY.upper().replace("COUNTRY", "COUNTY")) == [("country", "county")]
    assert named(kennedy, KENNEDY.lower().replace("americans", "canadians")) == [("Americans", "Canadians")]
    assert named(kennedy, KENNEDY.replace("country", "Paris")) == [("country", "Paris")]


def test_case_alone_is_a_foil_if_nothing_else_differs(kennedy):
    assert named(kennedy, KENNEDY.replace("country", "Country")) == [("country", "Country")]


@pytest.mark.parametrize(
    ("foil", "message"),
    [
        (KENNEDY, "equals the output"),
        ("", "contains no words"),
        ("...", "contains no words"),
        ("der kleine hund schläft im garten", "no word in common"),
        ({"county": "country"}, "does not occur"),
        ({"you": "me", "your": "your"}, "with itself"),
        ({99: "county"}, "index from 0 to"),
        ({"country": 999_999}, "51864 tokens"),
        ({"country": 1.5}, "allowed: words, or a token id"),
        ({}, "replaces nothing"),
        ([], "which is empty"),
        (7, "a int"),
        ({"country": "country"}, "with itself"),
    ],
)
def test_bad_foils_are_refused(kennedy, foil, message):
    with pytest.raises(ConfigError, match=message) as refused:
        contrasts_of(*kennedy, foil)
    assert "foil" in str(refused.value)


def test_words_that_the_model_cannot_write_are_refused(english, clip, written):
    with pytest.raises(ConfigError, match="tokens that the model cannot write"):
        explain(*english, clip["path"], foil={content_word(written): "北京"}, config=FAST, progress=False)


@pytest.mark.parametrize(
    ("config", "foil", "message"),
    [
        (SpesConfig(impact="log-odds"), None, "which needs a foil"),
        (SpesConfig(impact="kl"), {1: "x"}, "allowed with foil: log-odds, difference, relative"),
        (SpesConfig(word_probability="chain"), None, "has an effect only with a foil"),
    ],
)
def test_impacts_go_with_a_foil_or_without(english, clip, config, foil, message):
    with pytest.raises(ConfigError, match=message):
        explain(*english, clip["path"], config=config, foil=foil, progress=False)


# Maps -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(english, clip):
    """The adapter, and the output that contrasts are read off."""
    adapter = get_adapter(*english)
    with output_of(adapter, load_audio(clip["path"], 16_000), adapter.options_of(), None, 0) as output:
        yield adapter, output


def objective_of(opened, contrasts, **settings):
    adapter, output = opened
    return ContrastObjective(adapter, output.utterance, output.target, contrasts, **settings)


def masked(opened, seed=0):
    """Return three spectrograms with random features at zero, and which decoder inputs to keep."""
    adapter, output = opened
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(3, *output.utterance.features.shape, generator=generator) > 0.5
    tokens = torch.rand(3, len(output.target.context_ids), generator=generator) > 0.4
    return output.utterance.features * keep, tokens


@pytest.mark.parametrize("impact", ["log-odds", "difference", "relative"])
@pytest.mark.parametrize("word_probability", ["word-boundary", "chain", "length-normalised"])
def test_a_target_against_itself_moves_nothing(opened, written, impact, word_probability):
    adapter, output = opened
    (contrast,) = contrasts_of(adapter, output.target, {content_word(written): "red"})
    same = replace(contrast, foil=contrast.target, foil_ids=contrast.target_ids)
    objective = objective_of(opened, [same], impact=impact, word_probability=word_probability)
    features, tokens = masked(opened)
    assert objective(features).eq(0).all() or impact == "relative"
    assert objective(features).abs().max() < 1e-6 and objective(token_keep=tokens).abs().max() < 1e-6


@pytest.mark.parametrize("impact", ["log-odds", "difference"])
def test_swapping_target_and_foil_turns_the_sign(opened, written, impact):
    adapter, output = opened
    contrasts = contrasts_of(adapter, output.target, {content_word(written): ["red", "on the table"]})
    one, other = (objective_of(opened, some, impact=impact) for some in (contrasts, [c.swapped() for c in contrasts]))
    features, tokens = masked(opened)
    assert one(features).abs().max() > 0.01
    torch.testing.assert_close(one(features), -other(features))
    torch.testing.assert_close(one(token_keep=tokens), -other(token_keep=tokens))


def test_a_foil_alone_equals_the_same_among_several(english, clip, written):
    word = content_word(written)
    several = explain(*english, clip["path"], foil={word: ["red", "window", "on Monday"]}, config=FAST, progress=False)
    alone = explain(*english, clip["path"], foil={word: "window"}, config=FAST, progress=False)
    assert [c.foil for c in several.contrasts] == ["red", "window", "on Monday"]
    assert (several.raw_audio[1] - alone.raw_audio[0]).abs().max() < 1e-6
    torch.testing.assert_close(several.raw_token[1], alone.raw_token[0], atol=1e-6, rtol=0, equal_nan=True)
    assert float(several.log_odds[1]) == pytest.approx(float(alone.log_odds[0]), abs=1e-6)


def test_eq_3_and_gradients_agree_on_where(english, clip, written):
    """Both say where the sound speaks for the word; both have a zero, and both have the same sign in sum."""
    word, settings = content_word(written), {"progress": False, "foil": {content_word(written): "red"}}
    gradient = explain(*english, clip["path"], config=SpesConfig(num_token_masks=40), **settings)
    eq3 = explain(
        *english,
        clip["path"],
        config=SpesConfig(estimator="perturbation", num_spectrogram_masks=1500, num_token_masks=40),
        **settings,
    )
    assert gradient.contrasts[0].target == eq3.contrasts[0].target == word
    profiles = [ex.evidence(0).sum(1) for ex in (gradient, eq3)]
    r = float(np.corrcoef(*(p.numpy() for p in profiles))[0, 1])
    assert r > 0.6
    assert all((ex.raw_audio < 0).any() and (ex.raw_audio > 0).any() for ex in (gradient, eq3))
    assert abs(float(eq3.raw_audio.mean())) < 0.2 * float(eq3.raw_audio.std())
    assert gradient.evidence_unit(0) == eq3.evidence_unit(0) == "bits"


def test_tokens_that_have_no_part_are_near_zero(opened, written):
    """Eq. 3 for contrasts is centred: a decoder input that moves nothing has a score of 0, whatever the others do."""
    from spes_hf.scoring.eq3 import PerturbationEstimator

    estimator = PerturbationEstimator(1, centred=True)
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(4000, 3, generator=generator) > 0.4
    impact = 3.0 * (~keep[:, :1]) - 1.0 * (~keep[:, 1:2])

    class Drawn:
        level = 0
        halves = torch.arange(4000) % 2

    Drawn.keep = keep
    estimator.add(Drawn, impact)
    (values,), (weights,) = estimator.scores().values, estimator.scores().weights
    first, second, nothing = (values[0] / weights).tolist()
    assert first == pytest.approx(3 * 0.6, abs=0.1) and second == pytest.approx(-0.6, abs=0.1)
    assert abs(nothing) < 0.1


def test_bits_of_sound_and_text_are_of_log_odds(opened, english, clip, written):
    adapter, output = opened
    word = content_word(written)
    found = explain(*english, clip["path"], foil={word: "red"}, config=FAST, progress=False)
    contrasts = contrasts_of(adapter, output.target, {word: "red"})
    objective = objective_of(opened, contrasts)
    features = output.utterance.features
    silence = features.mean(0).expand_as(features)[None]
    assert float(found.log_odds[0]) == pytest.approx(float(objective.odds.bits), abs=1e-4)
    expected = float(objective.odds.bits - objective.bits(features=silence))
    assert float(found.sound_bits[0]) == pytest.approx(expected, abs=1e-3)
    assert float(found.token_probabilities[0]) == pytest.approx(float(objective.odds.target.exp()), abs=1e-5)
    assert math.isnan(found.bits_per_token) and found.verdict == "not known"


def test_a_probability_without_sound_is_refused_with_a_foil(english, clip, written):
    found = explain(*english, clip["path"], foil={content_word(written): "red"}, config=EnergyConfig(), progress=False)
    for name in ("probability_without_sound", "probability_without_text"):
        with pytest.raises(ValueError, match="those of log-odds"):
            getattr(found, name)


def test_context_ends_where_target_and_foil_begin(english, clip, written):
    found = explain(*english, clip["path"], foil={content_word(written): "red"}, config=FAST, progress=False)
    before = found.prefix_length + found.contrasts[0].start
    assert found.raw_token[0, :before].isfinite().all() and found.raw_token[0, before:].isnan().all()
    words = found.words()
    assert words.tokens == found.tokens
    known = ~words.token_saliency[0].isnan()
    assert known.sum() > 2 and bool(known[: int(known.sum())].all())
    assert len(words.token_saliency[0]) == len(words.context_tokens)


def test_it_is_stored_whole(english, clip, written, tmp_path):
    found = explain(*english, clip["path"], foil=[{content_word(written): "red"}], config=FAST, progress=False)
    for again in (Explanation.load(found.save(tmp_path / "saved")), unpack(pack(found))):
        assert again.contrasts == found.contrasts and again.tokens == found.tokens
        assert torch.equal(again.raw_audio, found.raw_audio)
        assert torch.equal(again.raw_token.nan_to_num(), found.raw_token.nan_to_num())
    assert found.provenance["output"]["foil"] and found.origin.config["impact"] == "log-odds"


@pytest.mark.parametrize("end", [" red", ""])
def test_an_output_that_a_limit_cut(english, clip, written, end):
    """The foil goes on, or ends earlier, where no end of sequence was written."""
    cut = {"generate_kwargs": {"max_new_tokens": 3}, "config": FAST, "progress": False}
    words = written.text.split()[:3]
    foil = " ".join(words if end else words[:1]) + end
    found = explain(*english, clip["path"], foil=foil, **cut)
    assert found.reached_length_limit and found.raw_token.isfinite().any() and math.isfinite(float(found.log_odds[0]))


@pytest.mark.parametrize("name", ["speech2text-en", "seamless-en-de-es"])
def test_swapping_the_text_turns_the_log_odds(name, clip):
    """The foil explained as the text, with the text as its foil: the same contrast from the other side."""
    settings = {"tgt_lang": "deu"} if name.startswith("seamless") else {}
    model = load_tiny_model(name)
    foil = "alten" if settings else "red"
    plain = explain(*model, clip["path"], config=EnergyConfig(), progress=False, **settings)
    words = [w.strip() for w in plain.words().tokens]
    word = next(w for w in words[2:] if len(w) > 3 and words.count(w) == 1 and w != foil)
    one = explain(*model, clip["path"], foil={word: foil}, config=FAST, progress=False, **settings)
    text = plain.text.replace(word, foil)
    other = explain(*model, clip["path"], text=text, foil={foil: word}, config=FAST, progress=False, **settings)
    assert float(one.log_odds[0]) == pytest.approx(-float(other.log_odds[0]), abs=1e-3)
    torch.testing.assert_close(one.evidence(0), -other.evidence(0), atol=1e-3, rtol=1e-3)


def test_real_whisper_says_why_country_and_not_county(whisper, jfk):
    """ "country" is spoken at 5.86 to 6.43 s, and the word in front is what speaks for it in the text."""
    found = explain(*whisper, jfk, foil={"country": "county"}, text=KENNEDY, config=FAST, progress=False)
    assert float(found.log_odds[0]) > 5 and float(found.sound_bits[0]) > 3
    assert 5.8 < float(found.time_centroids()[0]) < 6.5

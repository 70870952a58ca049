import dataclasses
import math

import pytest
import torch

from spes_hf import functional
from spes_hf.explanation import Explanation, PatchMap, Reliability

NAN = float("nan")
T, C, P = 3, 2, 2
PIECES = (" Good", " mor", "ning", ".", "</s>")
K = len(PIECES)
J = P + K - 1
ORDER = torch.arange(J) < (P + torch.arange(K))[:, None]


def make(**changes):
    """Five tokens: two words, a full stop, the end; every token with a map of its own, two levels of patches."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([[[0, 0], [1, 1], [1, 2]], [[0, 1], [0, 1], [0, 1]]])
    scores = (
        (torch.rand(K, 3, generator=generator) * 9, torch.rand(K, 2, generator=generator)),
        (torch.tensor([3.0, 2.0, 4.0]), torch.tensor([2.0, 5.0])),
    )
    values = dict(
        text="Good morning.",
        pieces=PIECES,
        token_id_list=(11, 12, 13, 14, 2),
        context_pieces=("<s>", "<en>", *PIECES[:-1]),
        special=(False,) * 4 + (True,),
        prefix_length=P,
        probabilities=torch.tensor([0.9, 0.8, 0.5, 0.25, 1.0]),
        features=torch.rand(T, C, generator=generator),
        times=torch.tensor([0.0, 0.5, 1.0]),
        frequencies=torch.tensor([100.0, 200.0]),
        audio_map=PatchMap.of(labels, *scores),
        raw_token_scores=torch.rand(K, J, generator=generator).masked_fill(~ORDER, NAN),
        text_impact=torch.rand(K, generator=generator),
        token_sound_bits=torch.randn(K, generator=generator),
        token_text_bits=torch.randn(K, generator=generator),
        sound_impact=torch.rand(K, generator=generator),
        token_reliability=Reliability(torch.rand(K, generator=generator), 0.876),
        waveform=torch.zeros(24_000),
        sampling_rate=16_000,
        provenance={"config": {"method": "spes"}},
    )
    return Explanation(**{**values, **changes})


def pixel_map(maps):
    maps = torch.as_tensor(maps, dtype=torch.float32)
    labels = torch.arange(maps[0].numel()).view(1, *maps.shape[1:])
    return PatchMap.of(labels, (maps.flatten(1),))


# Over tokens ---------------------------------------------------------------------------------------------------------


def test_shapes_and_names():
    ex = make()
    assert len(ex) == K
    assert ex.tokens == list(PIECES)
    assert ex.token_ids == [11, 12, 13, 14, 2]
    assert ex.context_tokens == ["<s>", "<en>", " Good", " mor", "ning", "."]
    assert torch.equal(ex.token_probabilities, ex.probabilities)
    assert ex.raw_audio.shape == ex.audio_saliency.shape == (K, T, C)
    assert ex.raw_token.shape == ex.token_saliency.shape == (K, J)
    assert ex.sentence_saliency.shape == (T, C)
    assert ex.sound_bits.shape == ex.text_bits.shape == ex.probability_without_sound.shape == (K,)
    assert ex.time_centroids().shape == (K,)
    assert not ex.over_words


def test_saliency_is_the_functional_one_on_the_raw_maps():
    ex = make()
    audio, token = functional.paired_min_max(*functional.standardize(ex.raw_audio, ex.raw_token, ORDER), ORDER)
    assert torch.equal(ex.audio_saliency, audio)
    assert torch.equal(ex.token_saliency[ORDER], token[ORDER])


def test_not_yet_generated_is_nan():
    ex = make()
    assert torch.equal(ex.token_saliency.isnan(), ~ORDER)
    assert torch.equal(ex.raw_token.isnan(), ~ORDER)
    assert ex.audio_saliency.isfinite().all()


def test_each_token_fills_the_unit_interval():
    ex = make()
    for k in range(K):
        both = torch.cat([ex.audio_saliency[k].flatten(), ex.token_saliency[k][ORDER[k]]])
        assert both.min() == 0
        assert both.max() == 1


def test_raw_audio_by_hand():
    # Feature (2, 1): patch 2 of level 0, patch 1 of level 1: (n₀ + n₁) / (4 + 5).
    ex = make()
    upper, lower = ex.audio_map.values
    torch.testing.assert_close(ex.raw_audio[3, 2, 1], (upper[3, 2] + lower[3, 1]) / 9)


def test_sentence_map_is_the_mean_over_tokens_with_the_last():
    ex = make()
    torch.testing.assert_close(ex.sentence_saliency, ex.audio_saliency.mean(0))
    assert not torch.allclose(ex.sentence_saliency, ex.audio_saliency[:-1].mean(0))


def test_a_sentence_map_of_its_own_is_shown_for_the_sentence():
    # Means of 0 and 3 by patch: [[0, 0], [3, 3], [3, 9]] scaled by its range; z-scores first would change nothing.
    labels = torch.tensor([[[0, 0], [1, 1], [1, 2]]])
    scores = ((torch.tensor([[0.0, 3.0, 9.0]]),),)
    ex = make(sentence_map=PatchMap.of(labels, *scores))
    expected = torch.tensor([[0, 0], [1, 1], [1, 3]]) / 3
    torch.testing.assert_close(ex.sentence_saliency, expected)
    torch.testing.assert_close(ex.words().sentence_saliency, expected)
    assert torch.equal(ex.audio_saliency, make().audio_saliency)
    flat = make(sentence_map=PatchMap.of(labels, (torch.full((1, 3), -7.0),)))
    assert not flat.sentence_saliency.any()


def test_only_the_end_of_sequence():
    # Silence: the model writes nothing. One token, one decoder input.
    ex = make(
        pieces=("</s>",),
        token_id_list=(2,),
        context_pieces=("<s>",),
        special=(True,),
        prefix_length=1,
        text="",
        probabilities=torch.tensor([0.5]),
        audio_map=pixel_map([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]),
        raw_token_scores=torch.tensor([[7.0]]),
        text_impact=torch.tensor([1.0]),
        token_reliability=Reliability(torch.tensor([NAN]), NAN),
    )
    assert ex.audio_saliency[0].flatten().tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ex.token_saliency.item() == pytest.approx(0.5)  # a one-element map has z-score 0
    assert "1 tokens" in repr(ex)
    assert "reliability=nan" in repr(ex)


def test_no_words_at_all():
    ex = make(special=(True,) * K).words()
    assert len(ex) == 0
    assert ex.tokens == []
    assert ex.token_probabilities.shape == (0,)
    assert ex.audio_saliency.shape == (0, T, C)
    assert ex.raw_audio.shape == (0, T, C)
    assert ex.token_saliency.shape == (0, P)
    assert ex.sentence_saliency.shape == (T, C)
    assert ex.sound_bits.shape == ex.text_bits.shape == (0,)
    assert ex.time_centroids().shape == (0,)


# Over words ----------------------------------------------------------------------------------------------------------


def test_words():
    words = make().words()
    assert words.over_words
    assert len(words) == 3
    assert words.tokens == [" Good", " morning", "."]
    assert words.token_ids == [[11], [12, 13], [14]]
    assert words.context_tokens == ["<s>", "<en>", " Good", " morning"]  # no word stands after the last
    assert words.text == "Good morning."
    assert words.words() is words


def test_every_part_of_an_explanation_has_one_entry_a_word(tmp_path):
    from spes_hf.explanation.packing import from_row, to_row

    words = make().words()
    words.save(tmp_path)
    for ex in (make(), words, Explanation.load(tmp_path), from_row(to_row(words))):
        parts = [ex.tokens, ex.token_ids, ex.token_probabilities, ex.raw_audio, ex.raw_token, ex.audio_saliency]
        parts += [
            ex.token_saliency,
            ex.sound_bits,
            ex.text_bits,
            ex.time_centroids(),
            ex.reliability.tokens,
            to_row(ex)["tokens"],
        ]
        parts += [to_row(ex)["token_probabilities"]]
        assert [len(part) for part in parts] == [len(ex)] * len(parts)
        assert len(ex.context_tokens) == ex.raw_token.shape[1] == ex.token_saliency.shape[1]
    assert len(words) == 3 != len(make())


def test_reliability_of_a_word_is_the_mean_over_its_tokens(tmp_path):
    ex = make()
    words = ex.words()
    tokens = ex.reliability.tokens
    expected = torch.stack([tokens[0], (tokens[1] + tokens[2]) / 2, tokens[3]])
    torch.testing.assert_close(words.reliability.tokens, expected)
    assert words.reliability.sentence == ex.reliability.sentence
    words.save(tmp_path)
    loaded = Explanation.load(tmp_path)
    assert torch.equal(loaded.reliability.tokens, words.reliability.tokens)
    assert torch.equal(loaded.token_reliability.tokens, tokens)


def test_probability_of_a_word_is_the_product():
    torch.testing.assert_close(make().words().token_probabilities, torch.tensor([0.9, 0.8 * 0.5, 0.25]))


def test_word_maps_are_means_after_both_normalisations():
    ex = make()
    words = ex.words()
    torch.testing.assert_close(words.audio_saliency[0], ex.audio_saliency[0])
    torch.testing.assert_close(words.audio_saliency[1], ex.audio_saliency[1:3].mean(0))
    torch.testing.assert_close(words.raw_audio[1], ex.raw_audio[1:3].mean(0))
    torch.testing.assert_close(words.sound_bits[1], ex.sound_bits[1:3].sum())
    # Not the normalisation of the mean: the sentence map does not change either.
    assert words.audio_saliency[1].max() <= 1
    assert torch.equal(words.sentence_saliency, ex.sentence_saliency)


@pytest.mark.parametrize("name", ["token_saliency", "raw_token"])
def test_word_context_by_hand(name):
    ex, nan = make(), torch.tensor(NAN)
    by_token, by_word = getattr(ex, name), getattr(ex.words(), name)
    assert by_word.shape == (3, 4)
    s = by_token
    expected = torch.stack(
        [
            # <s>, <en>, " Good", " morning" (columns 3 and 4 of the tokens)
            torch.stack([s[0, 0], s[0, 1], nan, nan]),
            # " morning" is tokens 1 and 2; its own first token, context of the second, is no context of the word
            torch.stack([s[1:3, 0].mean(), s[1:3, 1].mean(), s[1:3, 2].mean(), nan]),
            torch.stack([s[3, 0], s[3, 1], s[3, 2], s[3, 3:5].mean()]),
        ]
    )
    torch.testing.assert_close(by_word, expected, equal_nan=True)


def test_context_of_words_where_the_last_word_was_cut():
    # No end-of-sequence token: a part of the last word is a decoder input, but context of no word.
    pieces = (" a", " b", "c")
    ex = make(
        pieces=pieces,
        special=(False,) * 3,
        token_id_list=(1, 2, 3),
        context_pieces=("<s>", " a", " b"),
        prefix_length=1,
        probabilities=torch.ones(3),
        audio_map=pixel_map(torch.rand(3, T, C)),
        raw_token_scores=torch.rand(3, 3).masked_fill(~(torch.arange(3) < torch.tensor([[1], [2], [3]])), NAN),
        text_impact=torch.ones(3),
    )
    words = ex.words()
    assert words.tokens == [" a", " bc"]
    assert words.context_tokens == ["<s>", " a"]
    assert words.token_saliency.isnan().tolist() == [[False, True], [False, False]]


def test_parts_of_a_character_are_readable_as_tokens_and_whole_as_words():
    ex = make(pieces=(" caf", "\udcc3", "\udca9", ".", "</s>"))
    assert ex.tokens == [" caf", "\\xc3", "\\xa9", ".", "</s>"]
    assert ex.words().tokens == [" café", "."]


# Readings ------------------------------------------------------------------------------------------------------------


def test_bits_by_hand():
    # Words: "Good" in one token, "morning" in two, ".": 3; 2 + 1 = 3; 0.5. 0.9 / 2³, 0.8 · 0.5 / 2³, 0.25 / 2^½.
    ex = make(token_sound_bits=torch.tensor([3.0, 2.0, 1.0, 0.5, -1.0]), token_text_bits=torch.arange(5.0))
    assert ex.sound_bits.tolist() == [3, 2, 1, 0.5, -1]
    assert ex.words().sound_bits.tolist() == [3, 3, 0.5] and ex.words().text_bits.tolist() == [0, 3, 3]
    torch.testing.assert_close(ex.words().probability_without_sound, torch.tensor([0.9 / 8, 0.4 / 8, 0.25 / 2**0.5]))
    torch.testing.assert_close(ex.probability_without_text[4], torch.tensor(1.0 / 16))
    unlikely = make(probabilities=torch.full((K,), 1e-38), token_sound_bits=torch.full((K,), -200.0))
    assert unlikely.words().probability_without_sound.isfinite().all()
    assert ex.bits_per_token == ex.words().bits_per_token == 6.5 / 4  # the end of the sentence is none of the text
    assert math.isnan(make(token_sound_bits=torch.full((5,), NAN)).bits_per_token)


def test_evidence_has_its_zero_where_there_is_no_effect():
    maps = torch.randn(K, T, C)
    ex = make(audio_map=pixel_map(maps), sentence_map=pixel_map(maps[:1] - 3))
    assert torch.equal(ex.evidence(1), maps[1])
    torch.testing.assert_close(ex.evidence(), (maps[0] - 3) / maps[0].std())
    # Explanations of before have a map of the sentence without a zero: it is not shown as if it had one.
    before = make(audio_map=pixel_map(maps), sentence_map=pixel_map(maps[:1]), token_sound_bits=torch.full((K,), NAN))
    torch.testing.assert_close(before.evidence(), torch.stack([m / m.std() for m in maps]).mean(0))
    torch.testing.assert_close(ex.words().evidence(1), maps[1:3].mean(0))
    assert (ex.evidence_unit(1), ex.evidence_unit()) == ("nats", "standard deviations")
    # Eq. 3: less the impact of the average mask.
    eq_3 = make(sound_impact=torch.full((K,), 0.5))
    torch.testing.assert_close(eq_3.evidence(0), eq_3.raw_audio_saliency[0] - 0.5)
    assert eq_3.evidence().shape == (T, C)
    never = PatchMap.of(torch.tensor([[[0, 1]] * T]), (torch.ones(K, 2),), (torch.tensor([2.0, 0.0]),))
    hidden, kept = make(audio_map=never, sound_impact=torch.full((K,), 2.0)).evidence(0).T
    assert (hidden == -1.5).all() and (kept == 0).all()  # what was never hidden speaks neither for nor against


def test_time_centroids_by_hand():
    # Six features; the top half are three. Token 0: 10 at 0 s, 8 at 1 s, 2 at 0.5 s: above the least of them 8, 6, 0:
    # (8·0 + 6·1) / 14. Token 1: one peak at 1 s.
    maps = torch.zeros(K, T, C)
    maps[0] = torch.tensor([[10.0, 1.0], [2.0, 0.0], [0.0, 8.0]])
    maps[1, 2, 0] = 5.0
    maps[2:] = torch.arange(6.0).view(T, C)
    ex = make(audio_map=pixel_map(maps))
    centroids = ex.time_centroids(top=0.5)
    assert centroids[0].item() == pytest.approx(6 / 14, abs=1e-6)
    assert centroids[1].item() == pytest.approx(1.0, abs=1e-6)
    assert ex.time_centroids(top=0.01)[0].item() == 0.0  # at least one feature: the peak
    assert ex.words().time_centroids(top=0.5).shape == (3,)


@pytest.mark.parametrize("top", [0, -0.1, 1.1, NAN])
def test_time_centroids_refuse_a_share_outside(top):
    with pytest.raises(ValueError, match=f"top is {top}"):
        make().time_centroids(top)


def test_find():
    ex = make()
    assert ex.find(0) == 0
    assert ex.find(-1) == K - 1
    assert ex.find("Good") == ex.find(" Good") == 0
    assert ex.find("</s>") == 4
    assert ex.words().find("morning") == 1


@pytest.mark.parametrize("index", [K, -K - 1, 99])
def test_find_out_of_range(index):
    with pytest.raises(IndexError, match=rf"token is {index}, but 5 are explained; allowed: 0 … 4"):
        make().find(index)


def test_find_a_text_that_does_not_occur():
    with pytest.raises(KeyError, match="'evening' does not occur.*Good"):
        make().find("evening")


def test_find_a_text_that_occurs_twice():
    ex = make(pieces=(" the", " cat", " the", ".", "</s>"))
    with pytest.raises(KeyError, match=r"'the' occurs at \[0, 2\]; pass one of these"):
        ex.find("the")


def test_repr():
    text = repr(make())
    assert text == (
        "Explanation('Good morning.', 5 tokens, 3 frames × 2 mel bins, 1.5 s, method=spes, reliability=0.88)"
    )
    assert "3 words" in repr(make().words())
    assert "method=?" in repr(make(provenance={}))


def test_explanations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().text = "x"


def test_reading_does_not_change_the_raw_maps():
    ex = make()
    before = ex.raw_audio.clone(), ex.raw_token_scores.clone()
    _ = ex.audio_saliency, ex.token_saliency, ex.sentence_saliency, ex.sound_bits, ex.time_centroids()
    _ = ex.words().raw_token
    torch.testing.assert_close(ex.raw_audio, before[0], rtol=0, atol=0)
    torch.testing.assert_close(ex.raw_token_scores, before[1], rtol=0, atol=0, equal_nan=True)


def test_patch_map_holds_small_types():
    scores = ((torch.ones(1, 1).double(),), (torch.ones(1).double(),))
    found = PatchMap.of(torch.zeros(1, 2, 2, dtype=torch.long), *scores)
    assert found.labels.dtype == torch.int32
    assert found.values[0].dtype == found.weights[0].dtype == torch.float32


def test_patch_never_perturbed_is_zero():
    scores = ((torch.tensor([[6.0, 0.0]]),), (torch.tensor([2.0, 0.0]),))
    assert PatchMap.of(torch.tensor([[[0, 1]]]), *scores).dense(0).tolist() == [[3.0, 0.0]]

"""The judge of single words, on a shipped model that hears."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import spes_hf.metrics.words as judge
from spes_hf import (
    ConfigError,
    EnergyConfig,
    OutOfMemoryError,
    SpesConfig,
    WordDeletion,
    WordInsertion,
    explain,
)
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.metrics import WORD_DELETION_FRACTIONS, WORD_INSERTION_FRACTIONS, compare, summarize
from spes_hf.metrics.spoken import spoken_words, spread
from spes_hf.metrics.word_scores import word_scores

FEW = SpesConfig(num_spectrogram_masks=8, masks_per_token=12, num_token_masks=2)
TWO = (0.02, 0.05)
DELETION, INSERTION = WordDeletion.key, WordInsertion.key


@pytest.fixture(scope="module")
def recogniser():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def clips():
    wanted = ("Tom sells a small picture.", "What does Peter find?", "Anna sees fifty eight gardens.")
    return [next(clip for clip in tiny_clips() if clip["transcript"] == text) for text in wanted]


@pytest.fixture(scope="module")
def salient(recogniser, clips):
    """Explanations by gradients."""
    return [explain(*recogniser, clip["path"], config=FEW, progress=False) for clip in clips]


@pytest.fixture(scope="module")
def loud(recogniser, clips):
    """Explanations by energy, at no cost."""
    return [explain(*recogniser, clip["path"], config=EnergyConfig(), progress=False) for clip in clips]


@pytest.fixture(scope="module")
def multi(recogniser, clips):
    """An explanation, by energy, with a word of three tokens."""
    text = "Tom sells a smaller picture."
    return explain(*recogniser, clips[0]["path"], text=text, config=EnergyConfig(), progress=False)


@pytest.fixture
def passes(recogniser):
    """How many perturbed copies went through the encoder, batch by batch."""
    found = []
    handle = recogniser[0].get_encoder().register_forward_hook(lambda _, __, out: found.append(len(out[0])))
    yield found
    handle.remove()


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# Is it a judge? -------------------------------------------------------------------------------------------------------


def test_the_map_of_a_word_beats_that_of_another_word(recogniser, salient):
    metric = WordDeletion(*recogniser)
    own, other = [], []
    for explanation in salient:
        own.append(metric(explanation))
        words = explanation.words()
        spoken = [word.row for word in spoken_words(explanation)]
        swapped = words.audio_saliency.clone()
        swapped[spoken] = words.audio_saliency[spoken[1:] + spoken[:1]]
        other.append(metric(explanation, swapped))
    assert all(row[DELETION]["method"] == "custom" for row in other)
    own, other = (summarize(rows, samples=50) for rows in (own, other))
    assert own[DELETION].value < other[DELETION].value - 30
    assert own["word_specificity"].value > other["word_specificity"].value + 8
    assert own["word_margin"].value > 40 and other["word_margin"].value < 0


def test_loudness_does_not_win(recogniser, clips, salient, loud):
    metrics = WordDeletion(*recogniser), WordInsertion(*recogniser)
    own, energy = (summarize([metrics[1](metrics[0](each)) for each in some], samples=200) for some in (salient, loud))
    for key, by in ((DELETION, -40), (INSERTION, 5), ("word_margin", 40)):
        found = compare(own[key], energy[key], samples=200)
        assert found.difference > by if by > 0 else found.difference < by, key
        assert 0 not in found.interval
    # All words have the same map, so what a word loses on average, the others lose.
    assert energy["word_margin"].points == pytest.approx([0] * 6, abs=1e-6)
    assert energy["word_specificity"].value == pytest.approx(energy[DELETION].points[-1])

    # At a share of the features that takes the words away, loudness takes the others, too; evidence of a word does not,
    # without the prior, which is evidence for all of them.
    bare = [explain(*recogniser, clip["path"], config=replace(FEW, prior_weight=0.0), progress=False) for clip in clips]
    harsh = [
        summarize([WordDeletion(*recogniser, [0.1])(each) for each in some], samples=10)["word_specificity"].value
        for some in (bare, loud)
    ]
    assert harsh[0] > harsh[1] + 3


# Are the numbers right? -----------------------------------------------------------------------------------------------


def probabilities_by_hand(recogniser, explanation, features):
    """Return the probability of every token of the output for these features, from the model itself."""
    model, processor = recogniser
    inputs = processor(explanation.waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    assert torch.equal(inputs["input_features"][0], explanation.features)
    ids = torch.tensor(explanation.token_id_list)
    start = torch.tensor([model.config.decoder_start_token_id])
    with torch.no_grad():
        output = model(
            input_features=features[None],
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=torch.cat([start, ids[:-1]])[None],
        )
    return output.logits[0].softmax(-1)[torch.arange(len(ids)), ids].double().numpy()


@pytest.mark.parametrize("metric", [WordDeletion, WordInsertion])
def test_numbers_by_hand(recogniser, multi, metric):
    groups = [(0,), (1,), (2,), (3, 4, 5), (6,)]  # without the full stop
    maps = noise(len(multi.words()), *multi.features.shape)
    found = metric(*recogniser, [0.1, 0.4])(multi, maps)[metric.key]
    assert found["words"] == ["Tom", "sells", "a", "smaller", "picture"] and found["indices"] == [0, 1, 2, 3, 4]
    fractions = [0.0, 0.1, 0.4] if metric is WordDeletion else [0.1, 0.4]
    assert found["fractions"] == fractions
    clean = multi.features.numpy()
    mean = np.broadcast_to(clean.mean(0), clean.shape)
    for w in range(5):
        order = np.argsort(-maps[w].numpy().ravel(), kind="stable")
        for s, fraction in enumerate(fractions):
            chosen = np.zeros(clean.size, dtype=bool)
            chosen[order[: int(fraction * clean.size)]] = True
            chosen = chosen.reshape(clean.shape)
            features = np.where(chosen, mean, clean) if metric is WordDeletion else np.where(chosen, clean, mean)
            tokens = probabilities_by_hand(recogniser, multi, torch.from_numpy(features.astype(np.float32)))
            words = np.array([tokens[list(group)].prod() for group in groups])
            assert found["probabilities"][w][s] == pytest.approx(words[w], rel=1e-3, abs=1e-7)
            assert found["others"][w][s] == pytest.approx(np.delete(words, w).mean(), rel=1e-3, abs=1e-7)
    tokens = probabilities_by_hand(recogniser, multi, multi.features)
    assert found["clean"] == pytest.approx([tokens[list(group)].prod() for group in groups], rel=1e-3)


def test_ends(recogniser, salient):
    explanation = salient[0]
    deleted = WordDeletion(*recogniser, [1.0])(explanation)[DELETION]
    inserted = WordInsertion(*recogniser)(explanation)[INSERTION]
    clean = explanation.words().token_probabilities[:5].tolist()
    for found in (deleted, inserted):
        assert found["clean"] == pytest.approx(clean, rel=1e-3)
    assert [row[0] for row in deleted["probabilities"]] == deleted["clean"]
    assert [row[-1] for row in inserted["probabilities"]] == pytest.approx(inserted["clean"], rel=1e-4)
    silent = [row[1] for row in deleted["probabilities"]]
    assert silent == pytest.approx([row[0] for row in inserted["probabilities"]], rel=1e-4)
    assert silent == pytest.approx(explanation.words().probability_without_sound[:5].tolist(), rel=1e-2)
    assert deleted["fractions"] == [0.0, 1.0] and inserted["fractions"] == list(WORD_INSERTION_FRACTIONS)
    assert WordDeletion(*recogniser).fractions == (0.0, *WORD_DELETION_FRACTIONS)


def test_a_window_of_fixed_length(small_whisper, explanation):
    """Whisper reads more frames than there is sound, and may write parts of characters."""
    found = WordDeletion(*small_whisper, [0.5])(explanation)[DELETION]
    words = explanation.words()
    assert found["words"]
    for text, index, clean in zip(found["words"], found["indices"], found["clean"], strict=True):
        assert words.tokens[index].strip() == text
        assert clean == pytest.approx(float(words.token_probabilities[index]), rel=1e-3)


def test_equal_saliencies_go_in_order_of_time_then_frequency(recogniser, loud):
    explanation = loud[0]
    metric = WordDeletion(*recogniser, TWO)
    falling = -torch.arange(explanation.features.numel()).view(explanation.features.shape).float()
    flat, ramp = (metric(explanation, each)[DELETION] for each in (torch.zeros_like(falling), falling))
    assert flat["probabilities"] == ramp["probabilities"]
    rising = metric(explanation, -falling)[DELETION]
    assert flat["probabilities"] != rising["probabilities"]


@pytest.mark.parametrize("fill", ["zero", "min", 0.3])
def test_fill(recogniser, loud, fill):
    explanation = loud[0]
    found = WordDeletion(*recogniser, [1.0], fill=fill)(explanation)[DELETION]
    value = {"zero": 0.0, "min": float(explanation.features.min())}.get(fill, fill)
    tokens = probabilities_by_hand(recogniser, explanation, torch.full_like(explanation.features, value))
    assert [row[1] for row in found["probabilities"]] == pytest.approx(tokens[:5].tolist(), rel=1e-3, abs=1e-7)
    assert found["fill"] == str(fill)


# Which words ----------------------------------------------------------------------------------------------------------


def test_at_most_so_many_words_spread_over_the_sentence(recogniser, loud):
    assert spread(range(9), 3) == [1, 4, 7] and spread(range(5), 1) == [2] and spread(range(4), 3) == [0, 2, 3]
    assert spread(range(4), 9) == spread(range(4), None) == [0, 1, 2, 3] and spread([], 2) == []
    assert all(len(set(spread(range(n), m))) == m for n in range(1, 30) for m in range(1, n + 1))
    whole = WordDeletion(*recogniser, TWO)(loud[0])[DELETION]
    some = WordDeletion(*recogniser, TWO, 2)(loud[0])[DELETION]
    assert some["indices"] == [1, 3] and some["max_words"] == 2 and whole["max_words"] is None
    for name in ("clean", "probabilities", "others"):
        assert np.allclose(some[name], [whole[name][1], whole[name][3]], atol=1e-6)


def test_an_explanation_of_some_words(recogniser, clips, salient):
    """Their own maps, and the others are all other words of the output, explained or not."""
    metric = WordDeletion(*recogniser, TWO)
    whole = metric(salient[0])[DELETION]
    part = explain(*recogniser, clips[0]["path"], config=FEW, words=["small", 1], progress=False)
    found = metric(part)[DELETION]
    assert found["words"] == ["sells", "small"] and found["indices"] == [1, 3]
    for name in ("clean", "probabilities", "others"):
        assert np.allclose(found[name], [whole[name][1], whole[name][3]], rtol=0.02, atol=1e-4), name
    assert found["method"] == whole["method"]
    assert metric(part, noise(2, *part.features.shape))[DELETION]["indices"] == [1, 3]
    with pytest.raises(ConfigError, match="saliency has 6 maps, but there are 2 words; pass one for each"):
        metric(part, noise(6, *part.features.shape))


def test_a_word_with_some_tokens_explained_is_judged_whole(recogniser, clips, multi):
    part = explain(
        *recogniser, clips[0]["path"], text=multi.text, config=EnergyConfig(), tokens=[4, 6, 7], progress=False
    )
    found, whole = (WordDeletion(*recogniser, TWO)(each)[DELETION] for each in (part, multi))
    assert found["words"] == ["smaller", "picture"] and found["indices"] == [3, 4]
    assert np.allclose(found["probabilities"], whole["probabilities"][3:], atol=1e-6)


def test_words_or_tokens(recogniser, salient):
    metric = WordInsertion(*recogniser, TWO)
    assert metric(salient[0].words())[INSERTION] == metric(salient[0])[INSERTION]


def test_a_word_alone_has_no_specificity(recogniser, clips, loud):
    metric = WordDeletion(*recogniser, TWO)
    one = explain(*recogniser, clips[0]["path"], text="Tom.", config=EnergyConfig(), progress=False)
    row = metric(one)
    assert row[DELETION]["words"] == ["Tom"] and row[DELETION]["others"] == [[]]
    assert summarize([row], samples=10).keys() == {DELETION}
    company = metric(loud[0])
    both, without = (summarize(rows, samples=10) for rows in ([row, company], [company]))
    assert both["word_specificity"].value == without["word_specificity"].value
    assert both["word_specificity"].num_utterances == 1 and both[DELETION].num_utterances == 2


def test_an_output_without_words(recogniser, clips, loud, passes):
    nothing = explain(*recogniser, clips[0]["path"], text=".", config=EnergyConfig(), progress=False)
    passes.clear()
    row = WordDeletion(*recogniser)(nothing)
    assert row[DELETION]["words"] == row[DELETION]["probabilities"] == [] and not passes
    with pytest.raises(ConfigError, match=r"rows have no word for 'word_deletion' \(1 utterances\)"):
        summarize([row])
    assert summarize([row, WordDeletion(*recogniser)(loud[0])], samples=10)[DELETION].num_utterances == 1


def test_recordings_go_window_by_window(recogniser, clips):
    rng, parts = np.random.default_rng(0), []
    for clip in clips[:2]:
        parts += [soundfile.read(clip["path"], dtype="float32")[0], (1e-4 * rng.standard_normal(12_800))]
    sound = np.concatenate(parts).astype(np.float32)
    recording = explain(*recogniser, sound, 16_000, config=EnergyConfig(), segment="pauses", progress=False)
    assert len(recording) == 2
    metric = WordDeletion(*recogniser, TWO, 3)
    found, apart = metric(recording)[DELETION], [metric(each)[DELETION] for each in recording]
    for name in ("words", "clean", "probabilities", "others"):
        assert found[name] == apart[0][name] + apart[1][name]
    words = [word.strip() for word in recording.words().tokens]
    assert [words[i] for i in found["indices"]] == found["words"] and len(found["words"]) == 6
    assert found["prediction"] == " ".join(entry["prediction"] for entry in apart)
    assert metric(recording.to_row())[DELETION] == found
    with pytest.raises(ConfigError, match="saliency is not allowed with a recording"):
        metric(recording, noise(3, 3))


# What it costs --------------------------------------------------------------------------------------------------------


def test_a_pass_for_each_word_and_fraction(recogniser, salient, loud, passes):
    for metric, expected in ((WordDeletion, 1 + 5 * 5), (WordInsertion, 2 + 5 * 7)):
        passes.clear()
        metric(*recogniser)(salient[0])
        assert sum(passes) == expected
    passes.clear()
    WordDeletion(*recogniser)(loud[0])  # all words have one map
    assert sum(passes) == 1 + 5


@pytest.mark.parametrize("metric", [WordDeletion, WordInsertion])
def test_batch_size_changes_nothing(recogniser, salient, metric, passes):
    one, three, found = (metric(*recogniser, batch_size=size)(salient[1])[metric.key] for size in (1, 3, None))
    assert {1, 3} <= set(passes) and max(passes) > 3
    for name in ("clean", "probabilities", "others"):
        assert np.allclose(one[name], three[name], atol=1e-5) and np.allclose(one[name], found[name], atol=1e-5)


def test_half_the_batch_where_memory_runs_out(recogniser, loud, monkeypatch):
    model, processor = copy.deepcopy(recogniser[0]), recogniser[1]
    expected = WordDeletion(model, processor)(loud[0])[DELETION]
    forward, limit = model.forward, [2]

    def small_memory(*args, **kwargs):
        if len(kwargs["decoder_input_ids"]) > limit[0]:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", small_memory)
    found = WordDeletion(model, processor)(loud[0])[DELETION]
    assert np.allclose(found["probabilities"], expected["probabilities"], atol=1e-5)
    limit[0] = 0
    with pytest.raises(OutOfMemoryError, match=r"model with audio of 1\.\d s does not fit"):
        WordDeletion(model, processor)(loud[0])


# Rows and settings ----------------------------------------------------------------------------------------------------


def test_rows(recogniser, loud, tmp_path):
    metric = WordDeletion(*recogniser, TWO, 2)
    failed = {"id": "u2", "error": "AudioError: no sound"}
    assert metric(failed) == {**failed, DELETION: None}
    row = {"id": "u1", "explanation": str(loud[0].save(tmp_path / "saved"))}
    found = metric(row)
    assert found.keys() == {"id", "explanation", DELETION}
    assert found[DELETION].keys() == metric.columns()[DELETION].keys()
    assert found[DELETION] == metric(loud[0])[DELETION]
    batch = metric({"id": ["a", "b"], "explanation": [row["explanation"], None], "error": ["", "AudioError"]})
    assert batch[DELETION] == [found[DELETION], None]
    scores = summarize([found | {"error": ""}, {**failed, DELETION: None}], samples=10)
    assert scores[DELETION].num_utterances == 1


def test_over_a_data_set(recogniser, clips, loud):
    from datasets import Dataset

    one = explain(*recogniser, clips[0]["path"], text="Tom.", config=EnergyConfig(), progress=False)
    rows = [{"error": "", **each.to_row()} for each in (*loud[:2], one)]
    data = Dataset.from_list([*rows, dict.fromkeys(rows[0]) | {"error": "AudioError"}])
    metrics = WordDeletion(*recogniser, TWO, 2), WordInsertion(*recogniser, TWO, 2)
    mapped = data.map(metrics[0]).map(metrics[1], batched=True)
    features = metrics[1].features(metrics[0].features(data.features))
    assert {key: mapped.features[key] for key in (DELETION, INSERTION)} == {
        key: features[key] for key in (DELETION, INSERTION)
    }
    assert mapped[0][DELETION] == metrics[0](loud[0])[DELETION] and mapped[3][DELETION] is None
    assert mapped[2][DELETION]["others"] == [[]]
    scores, alone = summarize(mapped, samples=10), summarize([metrics[0](each) for each in (*loud[:2], one)], samples=9)
    assert scores.keys() == {DELETION, INSERTION, "word_specificity", "word_margin"}
    assert scores[DELETION].value == pytest.approx(alone[DELETION].value)


@pytest.mark.parametrize("metric", [WordDeletion, WordInsertion])
def test_it_can_be_pickled(recogniser, loud, metric):
    transform = metric(*recogniser, TWO, 1, fill="zero")
    again = pickle.loads(pickle.dumps(transform))
    assert again(loud[0])[metric.key] == transform(loud[0])[metric.key]
    others = [metric(*recogniser, TWO, 2, fill="zero"), metric(*recogniser, TWO, 1), metric(*recogniser)]
    assert again.fingerprint() == transform.fingerprint()
    assert len({each.fingerprint() for each in (transform, *others)}) == 4


def test_arguments_of_generate_do_not_matter(recogniser, clips):
    """Those that an explanation keeps as a note only stop `Deletion`; nothing is generated here."""
    kwargs = {"stopping_criteria": [lambda ids, scores, **_: torch.zeros(len(ids), dtype=torch.bool)]}
    odd = explain(*recogniser, clips[0]["path"], config=EnergyConfig(), generate_kwargs=kwargs, progress=False)
    assert len(WordDeletion(*recogniser, TWO)(odd)[DELETION]["words"]) == 5


def test_a_foil_is_refused(recogniser, clips):
    found = explain(*recogniser, clips[0]["path"], config=EnergyConfig(), foil={"small": "big"}, progress=False)
    with pytest.raises(
        ConfigError, match="Tom sells a small picture.*has a foil.*use ContrastiveDeletion, or explain it w"
    ):
        WordDeletion(*recogniser)(found)


def test_what_does_not_fit_is_refused(recogniser, small_whisper, loud):
    with pytest.raises(ConfigError, match="row has no 'explanation'"):
        WordDeletion(*recogniser)({"id": 1})
    with pytest.raises(ConfigError, match="pass the model that was explained"):
        WordDeletion(*small_whisper)(loud[0])
    with pytest.raises(ConfigError, match=r"saliency has shape \(3, 4\)"):
        WordDeletion(*recogniser)(loud[0], torch.zeros(3, 4))
    with pytest.raises(ConfigError, match="saliency contains 1 values that are NaN"):
        WordDeletion(*recogniser)(loud[0], torch.where(loud[0].features == loud[0].features[0, 0], torch.nan, 1.0))


@pytest.mark.parametrize("wrong", ["paper", [], [5], [0.5, 0.5], [0.2, 0.1], [-0.1, 1], [None], None, 3, [0.0]])
@pytest.mark.parametrize("metric", [WordDeletion, WordInsertion])
def test_fractions_that_are_none(recogniser, metric, wrong):
    with pytest.raises(ConfigError, match="fractions is .*; (allowed|pass)"):
        metric(*recogniser, wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_words": 0}, "max_words is 0; allowed: a whole number, at least 1, or None"),
        ({"max_words": 2.5}, "max_words is 2.5"),
        ({"max_words": True}, "max_words is True"),
        ({"fill": "max"}, "fill is 'max'; allowed"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_other_settings_that_are_refused(recogniser, settings, message):
    with pytest.raises(ConfigError, match=message):
        WordDeletion(*recogniser, **settings)
    with pytest.raises(ConfigError, match="at least two"):
        WordInsertion(*recogniser, [0.5])


# Scores ---------------------------------------------------------------------------------------------------------------


def entry(probabilities, others, method="m", max_words=None):
    return {
        "fractions": [0.0, 0.01, 0.05],
        "words": [str(w) for w in range(len(probabilities))],
        "indices": list(range(len(probabilities))),
        "clean": [row[0] for row in probabilities],
        "probabilities": probabilities,
        "others": others,
        "max_words": max_words,
        "prediction": f"{len(probabilities)} words",
        "fill": "mean",
        "method": method,
    }


ONE = entry([[1.0, 0.5, 0.0], [0.8, 0.3, 0.2]], [[0.8, 0.8, 0.6], [1.0, 0.9, 0.8]])
ALONE = entry([[0.6, 0.1, 0.1]], [[]])


def test_scores_by_hand():
    scores = word_scores(DELETION, [ONE, ALONE], samples=50)
    # Three words, whatever utterance they are in.
    assert scores[DELETION].points == pytest.approx([80, 30, 10])
    assert scores[DELETION].value == pytest.approx((0.01 * 55 + 0.04 * 20) / 0.05)
    assert scores["word_specificity"].value == pytest.approx(70) and scores["word_specificity"].curve is None
    assert scores["word_margin"].points == pytest.approx([0, 45, 60])
    assert scores["word_margin"].value == pytest.approx((0.01 * 22.5 + 0.04 * 52.5) / 0.05)
    better = {name: score.higher_is_better for name, score in scores.items()}
    assert better == {DELETION: False, "word_specificity": True, "word_margin": True}
    assert "fractions:0-0.05:3|words:3|max-words:all" in scores[DELETION].signature
    assert "fraction:0.05|words:2" in scores["word_specificity"].signature
    inserted = word_scores(INSERTION, [ONE, ALONE], samples=50)
    assert inserted.keys() == {INSERTION} and inserted[INSERTION].higher_is_better
    low, high = scores[DELETION].interval.low, scores[DELETION].interval.high
    areas = [(0.01 * 65 + 0.04 * 25) / 0.05, (0.01 * 35 + 0.04 * 10) / 0.05]  # one utterance or the other, twice
    assert (high, low) == pytest.approx(areas)


def test_scores_of_two_methods_are_compared_over_the_same_words():
    worse = entry([[1.0, 0.9, 0.5], [0.8, 0.8, 0.7]], ONE["others"])
    own, other = (summarize([{DELETION: each}, {DELETION: ALONE}], samples=20) for each in (ONE, worse))
    assert compare(own[DELETION], other[DELETION], samples=50).difference < 0
    assert compare(own["word_specificity"], other["word_specificity"], samples=50).difference == 0
    fewer = summarize([{DELETION: {**ONE, "indices": [0, 2]}}, {DELETION: ALONE}], samples=20)
    with pytest.raises(ConfigError, match="same utterances"):
        compare(own[DELETION], fewer[DELETION])


def test_different_settings_are_not_mixed():
    for other in ({"method": "other"}, {"max_words": 2}, {"fill": "zero"}, {"fractions": [0.0, 0.1]}):
        with pytest.raises(ConfigError, match=f"different {next(iter(other))}"):
            summarize([{DELETION: ONE}, {DELETION: ALONE | other}])


def test_masks_are_kept_as_bits():
    mask = noise(7, 5) > 0.5
    packed = judge._packed(mask)
    assert len(packed) == 5 and torch.equal(judge._unpacked(packed, mask.shape), mask)

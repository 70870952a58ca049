import pickle

import numpy as np
import pytest
import torch

from spes_hf import ConfigError, ContrastiveDeletion, Deletion, EnergyConfig, Size, SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.metrics import compare, summarize, target_maps
from spes_hf.metrics.contrastive import check_shares
from spes_hf.metrics.flips import flip_scores
from spes_hf.metrics.written import _Judge, text_of, written_in
from spes_hf.scoring.contrast import NOTHING, Contrast
from spes_hf.scoring.foils import Words

FEW = SpesConfig(num_spectrogram_masks=8, masks_per_token=8, num_token_masks=2)
FOILS = {"small": ["big", "new"], "picture": "bottle"}
KEY = "contrastive_deletion"


@pytest.fixture(scope="module")
def recogniser():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def clip():
    return next(clip for clip in tiny_clips() if clip["transcript"] == "Tom sells a small picture.")


@pytest.fixture(scope="module")
def contrasted(recogniser, clip):
    return explain(*recogniser, clip["path"], config=FEW, foil=FOILS, progress=False)


# Rates ----------------------------------------------------------------------------------------------------------------


def entry(written, clean=None, method="m", fractions=(0.1, 0.2)):
    return {
        "fractions": list(fractions),
        "contrasts": [f"{k}, not {k + 1}" for k in range(len(written))],
        "written": written,
        "clean": clean or ["target"] * len(written),
        "log_odds": [[0.0] * len(fractions) for _ in written],
        "prediction": "a text",
        "by": "continuation",
        "fill": "mean",
        "method": method,
    }


ONE = entry([["target", "foil"], ["other", "foil"], ["foil", "other"]])
TWO = entry([["target", "target"], ["foil", "foil"]], clean=["target", "other"])


def test_rates_by_hand():
    scores = flip_scores([ONE, TWO], samples=50)
    assert scores.keys() == {"flip_to_foil", "flip_to_other", "coverage"}
    # Four contrasts: the last of the second utterance is not written to begin with.
    assert scores["flip_to_foil"].points == pytest.approx([25, 50])
    assert scores["flip_to_other"].points == pytest.approx([25, 25])
    assert scores["coverage"].points == pytest.approx([75, 75])
    assert scores["flip_to_foil"].value == pytest.approx(37.5)
    assert scores["flip_to_foil"].higher_is_better and scores["coverage"].higher_is_better
    assert not scores["flip_to_other"].higher_is_better
    assert "contrasts:4|left-out:1" in scores["coverage"].signature and "utterances:2" in scores["coverage"].signature
    assert 37.5 in scores["flip_to_foil"].interval


def test_one_fraction_is_a_rate_without_a_curve():
    score = flip_scores([entry([["foil"], ["target"]], fractions=[0.1])], samples=10)["flip_to_foil"]
    assert score.curve is None and score.value == pytest.approx(50)


def test_rows_with_errors_are_left_out_of_the_summary():
    rows = [{KEY: ONE, "error": ""}, {KEY: None, "error": "AudioError: x"}, {KEY: TWO, "error": ""}]
    assert summarize(rows, samples=10)["coverage"].points == pytest.approx([75, 75])


def test_summaries_are_compared_on_the_same_contrasts():
    better = summarize([{KEY: ONE}, {KEY: TWO}], samples=20)
    worse = summarize([{KEY: entry([["target"] * 2] * 3)}, {KEY: TWO}], samples=20)
    found = compare(better["flip_to_foil"], worse["flip_to_foil"], samples=200)
    assert found.difference == pytest.approx(37.5)
    with pytest.raises(ConfigError, match="same utterances"):
        compare(better["flip_to_foil"], summarize([{KEY: ONE}], samples=5)["flip_to_foil"])


def test_different_settings_are_not_mixed():
    with pytest.raises(ConfigError, match="different method"):
        summarize([{KEY: ONE}, {KEY: entry([["foil", "foil"]], method="other")}])
    with pytest.raises(ConfigError, match="different by"):
        summarize([{KEY: ONE}, {KEY: ONE | {"by": "generation"}}])


def test_no_contrast_that_the_model_writes():
    with pytest.raises(ConfigError, match="no contrast with a target that the model writes.*1 contrasts left out"):
        flip_scores([entry([["foil", "foil"]], clean=["foil"])])


# What the model writes ------------------------------------------------------------------------------------------------


def test_the_word_in_question_gives_way_to_its_foil(recogniser, contrasted, clip):
    """Where the model is known to listen: the time of the replaced word, against the same share elsewhere."""
    word = next(word for word in clip["words"] if word["word"] == "small")
    times = contrasted.times
    inside = ((times >= word["start"]) & (times < word["end"])).float()[:, None].expand(-1, 80)
    share = float(inside.mean())
    metric = ContrastiveDeletion(*recogniser, [share])
    own, elsewhere = (metric(contrasted, saliency)[KEY] for saliency in (inside, 1 - inside.roll(20, 0)))
    small = [k for k, name in enumerate(own["contrasts"]) if name.startswith("small")]
    assert all(own["written"][k] != ["target"] for k in small)
    assert all(own["log_odds"][k][0] < contrasted.contrasts[k].log_odds - 5 for k in small)
    picture = next(k for k, name in enumerate(own["contrasts"]) if name.startswith("picture"))
    assert own["written"][picture] == ["target"]  # it is said later
    assert elsewhere["clean"] == ["target"] * 3


def test_contrastive_maps_flip_to_the_foil(recogniser, contrasted):
    found = ContrastiveDeletion(*recogniser, [0.05, 0.2])(contrasted)[KEY]
    k = found["contrasts"].index("small, not big")
    assert "foil" in found["written"][k]
    random = torch.rand(contrasted.features.shape, generator=torch.Generator().manual_seed(0))
    nothing = ContrastiveDeletion(*recogniser, [0.05])(contrasted, random)[KEY]
    assert nothing["written"][k] == ["target"] and nothing["method"] == "custom"
    assert nothing["log_odds"][k][0] > found["log_odds"][k][0] + 3


def test_ends(recogniser, contrasted):
    found = ContrastiveDeletion(*recogniser, [0.0, 1.0])(contrasted)[KEY]
    assert found["clean"] == [row[0] for row in found["written"]] == ["target"] * 3
    clean = [row[0] for row in found["log_odds"]]
    assert clean == pytest.approx(contrasted.log_odds.tolist(), abs=1e-3)
    # All is deleted, so the log-odds lose what the sound gave them.
    left = (contrasted.log_odds - contrasted.sound_bits).tolist()
    assert [row[1] for row in found["log_odds"]] == pytest.approx(left, abs=1e-3)


def test_generating_anew_agrees_where_only_the_word_changes(recogniser, contrasted):
    ways = [
        ContrastiveDeletion(*recogniser, [0.01, 0.1], by=by)(contrasted)[KEY] for by in ("continuation", "generation")
    ]
    assert ways[0]["clean"] == ways[1]["clean"] and ways[0]["log_odds"] == ways[1]["log_odds"]
    same = np.array(ways[0]["written"]) == np.array(ways[1]["written"])
    assert same.mean() >= 0.8


@pytest.mark.parametrize("by", ["continuation", "generation"])
def test_batch_size_changes_nothing(recogniser, contrasted, by):
    one, all_at_once = (ContrastiveDeletion(*recogniser, by=by, batch_size=n)(contrasted)[KEY] for n in (1, 64))
    assert one["written"] == all_at_once["written"]
    assert np.allclose(one["log_odds"], all_at_once["log_odds"], atol=1e-3)


def test_plain_maps_of_the_same_words(recogniser, contrasted, clip):
    plain = explain(*recogniser, clip["path"], config=FEW, progress=False)
    maps = target_maps(plain, contrasted.contrasts)
    assert maps.shape == (3, *plain.features.shape)
    words = plain.words()
    assert torch.allclose(maps[0], words.audio_saliency[words.find("small")], atol=1e-6)
    assert torch.equal(maps, target_maps(words, contrasted.contrasts))
    assert ContrastiveDeletion(*recogniser, [0.05])(contrasted, maps)[KEY]["method"] == "custom"
    with pytest.raises(ConfigError, match="plain has contrasts"):
        target_maps(contrasted, contrasted.contrasts)
    other = explain(*recogniser, tiny_clips()[5]["path"], config=EnergyConfig(), progress=False)
    with pytest.raises(ConfigError, match="plain explains .* has no"):
        target_maps(other, contrasted.contrasts)


def test_the_text_is_found_again(recogniser, contrasted, tmp_path):
    adapter = ContrastiveDeletion(*recogniser).adapter
    text = text_of(contrasted, adapter)
    assert adapter.text(text.token_ids) == "Tom sells a small picture."
    assert tuple(text.prefix_ids.tolist()) == contrasted.origin.prefix_ids
    for contrast in contrasted.contrasts:
        ids = text.token_ids[contrast.start : contrast.start + len(contrast.target_ids)].tolist()
        assert tuple(ids) == contrast.target_ids[: len(ids)]


def contrast_of(adapter, target, foil, **fields):
    ids = [tuple(adapter.text_ids(text)) for text in (target, foil)]
    return Contrast(target, foil, 0, *ids, **fields)


def test_a_word_is_written_when_it_ends(small_whisper):
    adapter = ContrastiveDeletion(*small_whisper).adapter
    judge = _Judge(adapter, contrast_of(adapter, "country", "county"))
    cases = {
        " country": None,  # may go on
        " country can": "target",
        " County can": "foil",
        " county, the": "foil",
        " countryside": "other",
        " town": "other",
        ", county.": "foil",
    }
    for text, expected in cases.items():
        ids = tuple(adapter.tokenizer(text, add_special_tokens=False).input_ids)
        found = next((v for n in range(1, len(ids) + 1) if (v := judge(ids[:n]))), None)
        assert found == expected, text
    ids = tuple(adapter.text_ids("county"))
    assert judge((*ids, adapter.eos_token_id)) == "foil"
    glued = tuple(adapter.tokenizer("country", add_special_tokens=False).input_ids)
    assert next(v for n in range(1, len(glued) + 2) if (v := judge((*glued, adapter.eos_token_id)[:n]))) == "other"


def test_the_longer_of_two_that_begin_alike(small_whisper):
    adapter = ContrastiveDeletion(*small_whisper).adapter
    judge = _Judge(adapter, contrast_of(adapter, "New", "New York"))
    ids = [tuple(adapter.text_ids(text)) for text in ("New York is", "New York", "New Year")]
    assert judge(ids[0]) == "foil" and judge(ids[1]) is None and judge(ids[2]) == "target"
    case = _Judge(adapter, contrast_of(adapter, "White", "white"))
    assert [case(tuple(adapter.text_ids(text))) for text in ("White house", "white house", "green house")] == [
        "target",
        "foil",
        "other",
    ]


def test_single_tokens(small_whisper):
    adapter = ContrastiveDeletion(*small_whisper).adapter
    judge = _Judge(adapter, Contrast(".", "?", 3, (13,), (30,), words_end=False))
    assert [judge((i,)) for i in (13, 30, 11)] == ["target", "foil", "other"]


def words(text):
    pieces = [" " + word for word in text.split()]
    groups = tuple((k,) for k in range(len(pieces)))
    return Words(tuple(pieces), groups, tuple(text.split()), tuple(range(len(pieces))))


@pytest.mark.parametrize(
    ("target", "foil", "tokens", "start", "other", "expected"),
    [
        ("small", "big", (3,), 3, "Tom sells a small picture", "target"),
        ("small", "big", (3,), 3, "Tom sells a big picture", "foil"),
        ("small", "big", (3,), 3, "Anna buys a BIG. bottle", "foil"),
        ("small", "big", (3,), 3, "Tom sells a new picture", "other"),
        ("small", "big", (3,), 3, "Tom sells a picture", "other"),
        ("small", "big", (3,), 3, "Tom sells a very small picture", "target"),
        ("small", NOTHING, (3,), 3, "Tom sells a picture", "foil"),
        ("small", NOTHING, (3,), 3, "Tom sells a big picture", "other"),
        (NOTHING, "very", (), 3, "Tom sells a very small picture", "foil"),
        (NOTHING, "very", (), 3, "Tom sells a small picture", "target"),
    ],
)
def test_words_of_a_new_output(target, foil, tokens, start, other, expected):
    contrast = Contrast(target, foil, start, (0,), (1,), tokens=tokens)
    assert written_in(words("Tom sells a small picture"), words(other), contrast) == expected


# Rows and settings ----------------------------------------------------------------------------------------------------


def test_rows(recogniser, contrasted, tmp_path):
    metric = ContrastiveDeletion(*recogniser, [0.02])
    failed = {"id": "u2", "error": "AudioError: no sound"}
    assert metric(failed) == {**failed, KEY: None}
    row = {"id": "u1", "explanation": str(contrasted.save(tmp_path / "saved"))}
    found = metric(row)
    assert found.keys() == {"id", "explanation", KEY} and found[KEY].keys() == metric.columns()[KEY].keys()
    assert found[KEY]["written"] == metric(contrasted)[KEY]["written"]
    batch = metric({"id": ["a", "b"], "explanation": [row["explanation"], None], "error": ["", "AudioError"]})
    assert batch[KEY] == [found[KEY], None]


def test_an_explanation_without_contrasts(recogniser, clip):
    plain = explain(*recogniser, clip["path"], config=EnergyConfig(), progress=False)
    with pytest.raises(ConfigError, match="Tom sells a small picture.*has no contrasts; pass .*foil="):
        ContrastiveDeletion(*recogniser)(plain)


def test_metrics_of_a_text_do_not_score_contrasts(recogniser, contrasted, clip):
    with pytest.raises(ConfigError, match="has a foil.*use ContrastiveDeletion"):
        Deletion(*recogniser)(contrasted)
    # Two foils of the first word: neither row has any text in front of it.
    found = explain(*recogniser, clip["path"], config=FEW, foil={"Tom": ["Paul", "Anna"]}, progress=False)
    assert Size()(found)["size"]["audio"][0] == 100


def test_energy_with_a_foil(recogniser, clip):
    found = explain(*recogniser, clip["path"], config=EnergyConfig(), foil=FOILS, progress=False)
    metric = ContrastiveDeletion(*recogniser, [0.05])
    own = metric(found)[KEY]
    assert own["method"].startswith("energy|") and own["written"] == metric(found, found.features)[KEY]["written"]


def test_maps_that_do_not_fit(recogniser, contrasted):
    metric = ContrastiveDeletion(*recogniser)
    with pytest.raises(ConfigError, match="saliency has 2 maps, but there are 3 contrasts"):
        metric(contrasted, torch.zeros(2, *contrasted.features.shape))
    with pytest.raises(ConfigError, match=r"saliency has shape \(3, 4\)"):
        metric(contrasted, torch.zeros(3, 4))


def test_it_can_be_pickled(recogniser, contrasted):
    metric = ContrastiveDeletion(*recogniser, [0.03], fill="zero")
    again = pickle.loads(pickle.dumps(metric))
    assert again(contrasted)[KEY] == metric(contrasted)[KEY]
    assert again.fingerprint() == metric.fingerprint() != ContrastiveDeletion(*recogniser, [0.04]).fingerprint()


@pytest.mark.parametrize("wrong", ["paper", [], [5], [0.5, 0.5], [0.2, 0.1], [-0.1, 1], [None], None, 3])
def test_fractions_that_are_none(wrong, recogniser):
    with pytest.raises(ConfigError, match=r"fractions is .*; allowed: .* in \[0, 1\] \(5 % is 0.05\)"):
        ContrastiveDeletion(*recogniser, wrong)


def test_other_settings_that_are_refused(recogniser):
    assert check_shares([0.5]) == (0.5,)
    for settings, message in (
        ({"fill": "max"}, "fill is 'max'; allowed"),
        ({"by": "guess"}, 'by is \'guess\'; allowed: "continuation", "generation"'),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"generate_kwargs": {"num_beams": 2}}, 'generate_kwargs is .* which has no effect with by="continuation"'),
    ):
        with pytest.raises(ConfigError, match=message):
            ContrastiveDeletion(*recogniser, **settings)


def test_the_model_is_left_as_it_was(recogniser, contrasted):
    model = recogniser[0]
    model.train()
    state = torch.random.get_rng_state()
    try:
        assert ContrastiveDeletion(*recogniser, [0.0])(contrasted)[KEY]["written"] == [["target"]] * 3
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())

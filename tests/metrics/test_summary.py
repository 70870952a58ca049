import pickle
import re
import warnings

import numpy as np
import pytest
import sacrebleu

from spes_hf import ConfigError, Deletion, Insertion, Size, functional
from spes_hf.metrics import Bleu, compare, plot_curves, summarize, wer

REFERENCES = ["a b c d", "e f", "g h i j k l"]


def entry(texts, prediction, fractions=(0.0, 0.5, 1.0), **other):
    return {
        "fractions": list(fractions),
        "texts": list(texts),
        "token_probability": [1.0, 0.5, 0.25],
        "prediction": prediction,
        "against": "reference",
        "fill": "mean",
        "method": "spes|masks:3+2|config:0|seed:0",
        **other,
    }


@pytest.fixture
def rows():
    """Three utterances; errors at 0, 50, 100 %: 0 4 4 of 4 words, 0 0 2 of 2, 1 1 12 of 6."""
    return [
        {"id": 0, "text": REFERENCES[0], "deletion": entry(["a b c d", "", "x"], "a b c d")},
        {"id": 1, "text": REFERENCES[1], "deletion": entry(["e f", "e f", ""], "e f")},
        {"id": 2, "text": REFERENCES[2], "deletion": entry(["g h i j k x", "g h i j k x", "z " * 12], "g h i j k x")},
    ]


def test_curve_and_area_by_hand(rows):
    score = summarize(rows, REFERENCES)["deletion"]
    expected = [100 * 1 / 12, 100 * 5 / 12, 100.0]  # 18 errors in 12 words: capped for the corpus
    assert score.curve.y.tolist() == pytest.approx(expected)
    assert score.value == pytest.approx((expected[0] + 2 * expected[1] + expected[2]) / 4)
    assert score.value == pytest.approx(functional.area_under_curve(score.curve.y, score.curve.x))
    assert score.curve.x.tolist() == [0, 0.5, 1] and score.num_utterances == 3
    assert score.higher_is_better
    assert score.value in score.interval
    assert (score.curve.low <= score.curve.y + 1e-9).all() and (score.curve.y <= score.curve.high + 1e-9).all()


def test_the_scale_is_0_to_100_whatever_the_range_of_fractions():
    wrong = [{"deletion": entry(["x", "x", "x"], "a", (0.0, 0.1, 0.2))}]
    assert summarize(wrong, ["a"])["deletion"].value == pytest.approx(100)


def test_bleu_of_every_step_is_sacrebleus(rows):
    score = summarize(rows, REFERENCES, metric="bleu", samples=20)["deletion"]
    for step, value in enumerate(score.curve.y):
        texts = [row["deletion"]["texts"][step] for row in rows]
        assert value == sacrebleu.corpus_bleu(texts, [REFERENCES]).score
    assert not score.higher_is_better
    assert "bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in score.signature


def test_scripts_without_spaces_have_cer_and_bleu_and_one_warning():
    texts = [["今天天气很好", "今天天气", ""], ["我们去公园吧", "我们去", ""]]
    rows = [{"deletion": entry(t, t[0]), "insertion": entry(t[::-1], t[0])} for t in texts]
    references = [t[0] for t in texts]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        summarize(rows, references, samples=10)
        summarize(rows, metric="bleu", against="prediction", samples=10)
    assert len(told) == 2 and all("Chinese or Japanese" in str(w.message) for w in told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cer = summarize(rows, references, metric="cer", samples=10)
        bleu = summarize(rows, references, metric="bleu:zh", samples=10)
    assert cer["deletion"].curve.y.tolist() == pytest.approx([0, 100 * 5 / 12, 100]) and cer["clean"].value == 0
    assert cer["deletion"].higher_is_better and "|cer|cap:100|jiwer:" in cer["deletion"].signature
    assert bleu["clean"].value == pytest.approx(100) and "|tok:zh|" in bleu["deletion"].signature
    assert not bleu["deletion"].higher_is_better


def test_insertion_points_the_other_way(rows):
    inserted = [{**row, "insertion": row["deletion"]} for row in rows]
    scores = summarize(inserted, REFERENCES, samples=10)
    assert scores["deletion"].higher_is_better and not scores["insertion"].higher_is_better
    assert not scores["deletion_probability"].higher_is_better and scores["insertion_probability"].higher_is_better
    bleu = summarize(inserted, REFERENCES, metric=Bleu("none"), samples=10)
    assert bleu["insertion"].higher_is_better and "tok:none" in bleu["insertion"].signature


def test_probability_by_hand(rows):
    score = summarize(rows, REFERENCES, samples=10)["deletion_probability"]
    assert score.curve.y.tolist() == [100, 50, 25]
    assert score.value == pytest.approx((75 + 37.5) / 2)


def test_the_clean_output(rows):
    score = summarize(rows, REFERENCES, samples=10)["clean"]
    assert score.value == pytest.approx(100 / 12) and not score.higher_is_better and score.curve is None
    assert score.points == [score.value]


def test_against_the_prediction(rows):
    score = summarize(rows, against="prediction")["deletion"]
    assert score.curve.y.tolist() == pytest.approx([0, 100 * 4 / 12, 100])
    told = [{**row, "deletion": {**row["deletion"], "against": "prediction"}} for row in rows]
    assert summarize(told)["deletion"].value == score.value
    assert "against:prediction" in score.signature


def test_references_by_column_and_rows_with_errors(rows):
    by_list = summarize(rows, REFERENCES)["deletion"]
    assert summarize(rows, "text")["deletion"].value == by_list.value
    failed = {"id": 9, "error": "AudioError: empty", "text": "never counted", "deletion": None}
    with_error = summarize([rows[0], failed, *rows[1:]], "text")["deletion"]
    assert with_error.value == by_list.value and with_error.num_utterances == 3
    listed = summarize([rows[0], failed, *rows[1:]], [REFERENCES[0], "", *REFERENCES[1:]])["deletion"]
    assert listed.value == by_list.value and listed.interval == by_list.interval


def test_interval_is_that_of_resampled_corpora(rows):
    """The interval from cached counts, the long way: every resampled corpus scored anew."""
    score = summarize(rows, REFERENCES, samples=40, seed=5)["deletion"]
    times = np.random.default_rng(5).multinomial(3, np.full(3, 1 / 3), size=40)
    values = []
    for counts in times:
        picked = [i for i, n in enumerate(counts) for _ in range(n)]
        curve = [
            wer([rows[i]["deletion"]["texts"][s] for i in picked], [REFERENCES[i] for i in picked]) for s in range(3)
        ]
        values.append((curve[0] + 2 * curve[1] + curve[2]) / 4)
    assert (score.interval.low, score.interval.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_seed_and_confidence(rows):
    first, again = (summarize(rows, REFERENCES, samples=50, seed=1)["deletion"].interval for _ in range(2))
    assert first == again
    narrow = summarize(rows, REFERENCES, samples=50, seed=1, confidence=0.5)["deletion"].interval
    assert narrow.confidence == 0.5 and narrow.high - narrow.low < first.high - first.low


def test_signature_tells_how(rows):
    score = summarize(rows, REFERENCES)["deletion"]
    for part in (
        "spes|",
        "masks:3+2",
        "fill:mean",
        "against:reference",
        "fractions:0-1:3",
        "wer",
        "jiwer:",
        "spes_hf:",
    ):
        assert part in score.signature
    assert "utterances:3|bs:1000|bs-seed:0" in score.signature
    assert "\n" not in str(score)
    assert re.match(r"deletion = \d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\] \(higher is better\) spes", str(score))


def test_comparison_of_two_methods(rows):
    worse = [
        {**row, "deletion": {**row["deletion"], "texts": [row["deletion"]["prediction"]] * 2 + [""]}} for row in rows
    ]
    first, second = (summarize(r, REFERENCES)["deletion"] for r in (rows, worse))
    found = compare(first, second)
    assert found.difference == pytest.approx(first.value - second.value) and found.difference > 0
    assert found == compare(first, second) and 0 < found.p_value <= 1
    assert compare(first, first).p_value == 1


def test_comparison_of_what_cannot_be_compared(rows):
    first = summarize(rows, REFERENCES)
    with pytest.raises(ConfigError, match="pass two of one name"):
        compare(first["deletion"], first["clean"])
    with pytest.raises(ConfigError, match=r"\(3 utterances\).*\(2\)"):
        compare(first["deletion"], summarize(rows[:2], REFERENCES[:2])["deletion"])
    with pytest.raises(ConfigError, match="same rows"):
        compare(first["deletion"], summarize(rows[::-1], REFERENCES[::-1])["deletion"])
    other = [{**row, "deletion": {**row["deletion"], "fractions": [0, 0.1, 1]}} for row in rows]
    with pytest.raises(ConfigError, match="same fractions"):
        compare(first["deletion"], summarize(other, REFERENCES)["deletion"])


@pytest.mark.parametrize(
    ("references", "words"),
    [
        (None, "references is missing.*against=.prediction"),
        (REFERENCES[:2], "references has 2 texts, but there are 3 rows"),
        ("transcript", "references is 'transcript', but row 0 has no such column; allowed: id, text, deletion"),
        ([None, "a", "b"], r"references\[0\] is None"),
    ],
)
def test_references_that_do_not_fit(rows, references, words):
    with pytest.raises(ConfigError, match=words):
        summarize(rows, references)


def test_rows_that_cannot_be_summarized(rows):
    with pytest.raises(ConfigError, match="no explained utterance: all 0 rows"):
        summarize([])
    with pytest.raises(ConfigError, match="no explained utterance: all 1 rows have an error"):
        summarize([{"error": "x"}])
    with pytest.raises(ConfigError, match="no entry to score; expected one of deletion, insertion, size"):
        summarize([{"id": 1}])
    with pytest.raises(ConfigError, match="row 1 .* has no 'deletion'"):
        summarize([rows[0], {"id": 1}], REFERENCES[:2])
    with pytest.raises(ConfigError, match="different method: energy; spes"):
        summarize([rows[0], {"deletion": {**rows[1]["deletion"], "method": "energy"}}], REFERENCES[:2])
    with pytest.raises(ConfigError, match="different fill"):
        summarize([rows[0], {"deletion": {**rows[1]["deletion"], "fill": "zero"}}], REFERENCES[:2])
    short = {"deletion": {**rows[0]["deletion"], "texts": ["a"]}}
    with pytest.raises(ConfigError, match="row 0 has 1 texts, but there are 3 fractions"):
        summarize([short], ["a"])
    with pytest.raises(ConfigError, match="metric is 'ter'; allowed: wer, cer, bleu"):
        summarize(rows, REFERENCES, metric="ter")
    with pytest.raises(ConfigError, match="against is 'gold'"):
        summarize(rows, REFERENCES, against="gold")


def test_plot(rows):
    scores = summarize([{**row, "insertion": row["deletion"]} for row in rows], REFERENCES, samples=10)
    figure, axes = plot_curves({"SPES": scores["deletion"], "random": scores["deletion"]})
    assert [line.get_label() for line in axes.lines] == [
        f"{m} ({scores['deletion'].value:.1f})" for m in ("SPES", "random")
    ]
    assert axes.lines[0].get_xdata().tolist() == [0, 50, 100]
    assert axes.get_ylabel() == "WER" and axes.get_xlabel() == "features deleted, most salient first (%)"
    figure.canvas.draw()
    long = "default:estimator=perturbation,patches_per_second=400/500/600,num_spectrogram_masks=96"
    figure, axes = plot_curves({long: scores["deletion"], "random": scores["deletion"]})
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
    assert legend.get_texts()[0].get_text().replace("\n", "").startswith(long)
    _, alone = plot_curves([scores["insertion"]])
    assert alone.lines[0].get_label().startswith("spes (")
    with pytest.raises(ConfigError, match="which has no curve"):
        plot_curves({"clean": scores["clean"]})
    with pytest.raises(ConfigError, match="scores is empty"):
        plot_curves({})


def test_a_data_set_goes_through(small_whisper, explanation, tmp_path):
    """`datasets.map` with each transform, then the scores."""
    import datasets

    datasets.disable_progress_bars()
    path = str(explanation.save(tmp_path / "saved"))
    data = datasets.Dataset.from_list([{"text": "hello there", "explanation": path}] * 2)
    for number, transform in enumerate((Deletion(*small_whisper, [0, 1]), Insertion(*small_whisper, [0, 1]), Size())):
        data = data.map(transform, new_fingerprint=f"step{number}", keep_in_memory=True)
    scores = summarize(data, "text", samples=10)
    assert scores.keys() == {
        "deletion",
        "deletion_probability",
        "insertion",
        "insertion_probability",
        "clean",
        "size_audio",
        "size_token",
    }
    assert all(score.num_utterances == 2 and 0 <= score.value <= 100 for score in scores.values())
    assert "energy|masks:0+0" in scores["size_audio"].signature


def test_scores_can_be_pickled(rows):
    score = summarize(rows, REFERENCES, metric="bleu", samples=10)["deletion"]
    again = pickle.loads(pickle.dumps(score))
    assert compare(score, again, samples=10).difference == 0

import sys
import warnings

import jiwer
import numpy as np
import pytest
import sacrebleu

from spes_hf import ConfigError
from spes_hf.metrics import Bleu, CharacterErrorRate, WordErrorRate, bleu, cer, wer
from spes_hf.metrics.quality import get_quality

HYPOTHESES = ["the cat sat on the mat today .", "a dog barks , loudly", "", "Guten Morgen , liebe Leute !", "yes"]
REFERENCES = [
    "the cat sat on a mat today .",
    "the dog barked loudly",
    "hello there you",
    "Guten Morgen, liebe Leute!",
    "no",
]


def test_wer_by_hand():
    # 1 substitution of 3 words, then 1 deletion and 1 insertion of 4
    assert wer(["a b x"], ["a b c"]) == pytest.approx(100 / 3)
    assert wer(["a b x", "p q r t u"], ["a b c", "p q r s"]) == pytest.approx(100 * (1 + 2) / 7)


def test_text_is_not_normalised():
    assert wer(["Hello, World"], ["hello world"]) == 100
    assert wer(["  hello   world "], ["hello world"]) == 0


def test_the_cap_is_on_the_corpus_not_on_an_utterance():
    statistics = WordErrorRate().statistics(["w x y z", "a b c d e f g h"], ["a", "a b c d e f g h"])
    assert statistics.tolist() == [[4, 1], [0, 8]]
    assert wer(["w x y z", "a b c d e f g h"], ["a", "a b c d e f g h"]) == pytest.approx(400 / 9)  # not (100 + 0) / 2
    assert wer(["w x y z"], ["a"]) == 100


def test_an_empty_reference_counts_what_was_inserted():
    assert wer(["a b", "c"], ["", "c"]) == 100
    assert wer(["", "c d"], ["", "c d"]) == 0
    assert wer(["", ""], ["a", "b"]) == 100


@pytest.mark.parametrize("tokenize", ["13a", "none", "char"])
def test_bleu_is_sacrebleus_own(tokenize):
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize=tokenize).score
    assert expected > 1
    assert bleu(HYPOTHESES, REFERENCES, tokenize) == expected


@pytest.mark.parametrize("hypotheses", [["zzz"] * 5, [""] * 5, REFERENCES, ["the cat"] * 5])
def test_bleu_at_the_ends_is_sacrebleus_own(hypotheses):
    assert bleu(hypotheses, REFERENCES) == sacrebleu.corpus_bleu(hypotheses, [REFERENCES]).score
    assert 0 <= bleu(hypotheses, REFERENCES) <= 100 + 1e-9


def test_scores_of_many_sums_at_once():
    for quality in (Bleu(), WordErrorRate(), CharacterErrorRate()):
        statistics = quality.statistics(HYPOTHESES, REFERENCES)
        sums = np.stack([statistics.sum(0), statistics[:2].sum(0)])[None]
        expected = [quality(HYPOTHESES, REFERENCES), quality(HYPOTHESES[:2], REFERENCES[:2])]
        assert quality.score(sums).tolist() == [expected]


@pytest.mark.parametrize(
    ("hypotheses", "references", "words"),
    [
        (["a"], ["a", "b"], "references has 2 texts, but there are 1 utterances"),
        ([], [], "references is empty"),
        ("a", ["a"], "hypotheses is 'a'; pass a list"),
        (["a"], "a", "references is 'a'; pass a list"),
        (["a"], [None], r"references\[0\] is None"),
        ([1.5], ["a"], r"hypotheses\[0\] is 1.5"),
    ],
)
@pytest.mark.parametrize("score", [wer, cer, bleu])
def test_misuse(score, hypotheses, references, words):
    with pytest.raises(ConfigError, match=words):
        score(hypotheses, references)


def test_references_without_a_word():
    with pytest.raises(ConfigError, match="references contain no words"):
        wer(["a"], [" "])


def test_unknown_tokenizer():
    with pytest.raises(ConfigError, match="tokenize is 'klingon'.*13a"):
        Bleu("klingon")


# Scripts without spaces between words ---------------------------------------------------------------------------------

SPACELESS = {
    "Chinese or Japanese": ["今天天气很好", "我们去公园吧"],
    "Thai": ["วันนี้อากาศดี", "ไปสวนกันเถอะ"],
    "Lao": ["ມື້ນີ້ອາກາດດີ"],
    "Khmer": ["ថ្ងៃនេះអាកាសធាតុល្អ"],
    "Burmese": ["ဒီနေ့ရာသီဥတုကောင်းတယ်"],
}
SPACED = [
    REFERENCES,
    ["오늘 날씨가 좋네요"],
    ["आज मौसम अच्छा है"],
    ["الطقس جميل اليوم"],
    ["He lives in 東京 and works there"],
    ["12 %"],
]


def test_cer_by_hand_and_as_jiwer_has_it():
    assert cer(["abxd"], ["abcd"]) == 25
    assert cer(["ab cd"], ["abcd"]) == 25 and cer(["  abcd "], ["abcd"]) == 0
    assert cer(["今天天氣好"], ["今天天气很好"]) == pytest.approx(100 * 2 / 6)
    assert cer(["x" * 9], ["abc"]) == 100 and cer(["ab", "c"], ["", "c"]) == 100
    assert cer(HYPOTHESES, REFERENCES) == pytest.approx(100 * jiwer.cer(REFERENCES, HYPOTHESES))


def test_references_without_a_character():
    with pytest.raises(ConfigError, match="references contain no characters"):
        cer(["a"], [" "])


@pytest.mark.parametrize("tokenize", ["zh", "ja-mecab", "char"])
def test_bleu_by_name_is_sacrebleus_own(tokenize):
    if tokenize == "ja-mecab":
        pytest.importorskip("MeCab", reason="the ja extra is not installed: pip install -e '.[ja]'")
    hypotheses, references = (
        ["今日は天気がいいですね", "公園に行きました"],
        ["今日は天気がとてもいいですね", "公園に行きます"],
    )
    reference = sacrebleu.metrics.BLEU(tokenize=tokenize)
    expected = reference.corpus_score(hypotheses, [references]).score
    quality = get_quality(f"bleu:{tokenize}")
    assert expected > 1 and quality(hypotheses, references) == expected
    assert quality.signature == f"bleu|{reference.get_signature()}" and f"tok:{tokenize}" in quality.signature


@pytest.mark.parametrize("script", SPACELESS)
def test_wer_of_a_script_without_spaces_warns(script):
    with pytest.warns(UserWarning, match=f"metric is 'wer', but the references are in {script}.*'cer'"):
        wer(SPACELESS[script], SPACELESS[script])
    with pytest.warns(UserWarning, match=f"tokenizer '13a', but the references are in {script}.*'bleu:"):
        bleu(SPACELESS[script], SPACELESS[script])


def test_scores_that_suit_the_script_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for texts in SPACELESS.values():
            cer(texts, texts), bleu(texts, texts, "char")
        for texts in SPACED:
            wer(texts, texts), bleu(texts, texts)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("bleu:klingon", "tokenize is 'klingon'; allowed: .*ja-mecab"),
        ("bleu:", "tokenize is ''; allowed"),
        ("wer:zh", "metric is 'wer:zh'; allowed: wer, cer, bleu"),
        ("meteor", "metric is 'meteor'; allowed: wer, cer, bleu, bleu with a sacrebleu tokenizer"),
        (None, "metric is None; allowed"),
    ],
)
def test_unknown_metrics(metric, words):
    with pytest.raises(ConfigError, match=words):
        get_quality(metric)


def test_a_tokenizer_whose_package_is_missing_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "MeCab", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"'ja-mecab', but MeCab is not installed; pip install 'sacrebleu\[ja\]'"):
        Bleu("ja-mecab")


@pytest.mark.parametrize("tokenize", ["spm", "flores101", "flores200"])
def test_a_tokenizer_that_would_be_downloaded_is_refused(tokenize, monkeypatch, tmp_path):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=f"'{tokenize}', but its model .* does not exist; download https://.* there"):
        get_quality(f"bleu:{tokenize}")

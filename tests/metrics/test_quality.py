import numpy as np
import pytest
import sacrebleu

from spes_hf import ConfigError
from spes_hf.metrics import Bleu, WordErrorRate, bleu, wer

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
    for quality in (Bleu(), WordErrorRate()):
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
@pytest.mark.parametrize("score", [wer, bleu])
def test_misuse(score, hypotheses, references, words):
    with pytest.raises(ConfigError, match=words):
        score(hypotheses, references)


def test_references_without_a_word():
    with pytest.raises(ConfigError, match="no word at all"):
        wer(["a"], [" "])


def test_unknown_tokenizer():
    with pytest.raises(ConfigError, match="tokenize is 'klingon'.*13a"):
        Bleu("klingon")

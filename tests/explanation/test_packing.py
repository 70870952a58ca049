from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from settings import pyramid

from spes_hf import EnergyConfig, Explanation, ExplanationFormatError, FeatureWiseConfig, SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.explanation import PatchMap, Reliability
from spes_hf.explanation.packing import pack, unpack

FEW = {"num_spectrogram_masks": 6, "num_token_masks": 4}


@pytest.fixture(scope="module")
def speech2text():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def found(speech2text):
    return explain(*speech2text, tiny_clips()[0]["path"], config=pyramid(**FEW), progress=False)


def assert_same(a, b):
    """Every field of two explanations is equal, floats to the bit."""
    for entry in fields(Explanation):
        x, y = getattr(a, entry.name), getattr(b, entry.name)
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype and torch.equal(x.nan_to_num(7), y.nan_to_num(7)), entry.name
        elif isinstance(x, PatchMap):
            assert torch.equal(x.labels, y.labels) and x.labels.dtype == y.labels.dtype
            for p, q in zip((*x.values, *(x.weights or ())), (*y.values, *(y.weights or ())), strict=True):
                assert torch.equal(p, q)
        elif entry.name == "token_reliability":
            assert torch.equal(x.tokens.nan_to_num(7), y.tokens.nan_to_num(7))
            assert x.sentence == y.sentence or (np.isnan(x.sentence) and np.isnan(y.sentence))
        else:
            assert x == y, entry.name


@pytest.mark.parametrize(
    "config", [pyramid(**FEW), FeatureWiseConfig(**FEW), SpesConfig(), EnergyConfig()], ids=lambda c: c.method
)
def test_the_whole_object_comes_back(speech2text, config):
    found = explain(*speech2text, tiny_clips()[0]["path"], config=config, progress=False)
    assert_same(Explanation.from_row(found.to_row()), found)
    assert_same(Explanation.from_row(found.words().to_row()), found.words())


def test_what_there_is_to_look_at(found):
    row = found.to_row()
    assert row["prediction"] == found.text and row["tokens"] == found.tokens
    assert row["token_probabilities"] == found.token_probabilities.tolist()
    assert row["reliability"] == found.reliability.sentence and row["reached_length_limit"] is False


def test_bytes_do_not_depend_on_when(found):
    assert pack(found) == pack(unpack(pack(found)))


def test_formats_that_drop_zeros_at_the_end_drop_none(found):
    """A recording that ends in silence."""
    from datasets import Dataset

    quiet = replace(found, waveform=torch.zeros_like(found.waveform), text_impact=torch.zeros(len(found)))
    data = Dataset.from_list([quiet.to_row(), found.to_row()])
    for name in (None, "numpy", "torch"):
        assert_same(Explanation.from_row(data.with_format(name)[0]), quiet)
        assert_same(Explanation.from_row(data.with_format(name)[1]), found)
    for row in (quiet.to_row(), found.to_row()):
        assert row["explanation"].endswith(b"\x01")


def synthetic(found, tokens, frames, bins, labels):
    """An explanation of a given size, with the maps of given patches."""
    generator = torch.Generator().manual_seed(0)
    counts = [int(level.max()) + 1 for level in labels]
    return replace(
        found,
        pieces=(" word",) * tokens,
        token_id_list=(5,) * tokens,
        special=(False,) * tokens,
        context_pieces=(" word",) * tokens,
        prefix_length=1,
        probabilities=torch.rand(tokens, generator=generator),
        features=torch.rand(frames, bins, generator=generator),
        times=torch.arange(frames) / 100,
        frequencies=torch.arange(bins).float(),
        audio_map=PatchMap(
            labels.int(),
            tuple(torch.randn(tokens, count, generator=generator) for count in counts),
            tuple(torch.rand(count, generator=generator) for count in counts),
        ),
        sentence_map=None,
        raw_token_scores=torch.rand(tokens, tokens, generator=generator),
        text_impact=torch.rand(tokens, generator=generator),
        token_sound_bits=torch.randn(tokens, generator=generator),
        token_text_bits=torch.randn(tokens, generator=generator),
        sound_impact=torch.rand(tokens, generator=generator),
        token_reliability=Reliability(torch.rand(tokens, generator=generator), 0.5),
    )


def test_thirty_seconds_and_sixty_tokens_fit(found):
    """60 tokens × 3,000 frames × 128 bins: 92 MB of dense maps, at one value per feature at most as much."""
    dense = 60 * 3_000 * 128 * 4
    t, c = torch.arange(3_000)[:, None], torch.arange(128)[None]
    patches = torch.stack(
        [(t // w) * (128 // w) + c // w for w in (16, 12, 8)]
    )  # as many as SPES has at 7.5 s, or more
    spes = synthetic(found, 60, 3_000, 128, patches)
    packed = pack(spes)
    assert_same(unpack(packed), spes)
    assert len(packed) < dense / 10

    every_feature = (t * 128 + c)[None]
    wise = synthetic(found, 60, 3_000, 128, every_feature)
    packed = pack(wise)
    assert len(packed) < 1.04 * dense
    assert torch.equal(unpack(packed).audio_map.values[0], wise.audio_map.values[0])


def test_what_is_no_explanation_is_refused(found):
    packed = pack(found)
    for wrong in (b"", b"x", packed[:100], packed[: len(packed) // 2], b"\x00" * 64, b"{}" * 50):
        with pytest.raises(ExplanationFormatError, match="explanation .*explain again"):
            unpack(wrong)
    with pytest.raises(ExplanationFormatError, match="row has an? .*|row has no 'explanation'"):
        Explanation.from_row({"id": 3})
    with pytest.raises(ExplanationFormatError, match="row has a str at 'explanation'"):
        Explanation.from_row({"explanation": "text"})
    with pytest.raises(ExplanationFormatError, match="row has an error instead of an explanation: AudioError: empty"):
        Explanation.from_row({"explanation": b"", "error": "AudioError: empty"})


def test_a_later_format_is_named(found):
    later = pack(found).replace(b'{\\"version\\": 2,', b'{\\"version\\": 9,', 1)
    assert later != pack(found)
    with pytest.raises(ExplanationFormatError, match="format version 9; this version of spes_hf reads 1 to 4"):
        unpack(later)

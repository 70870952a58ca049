"""All words against time, in one figure."""

import numpy as np
import pytest
import torch

from spes_hf import SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.errors import ConfigError
from spes_hf.viz import plot_overview, scale
from spes_hf.viz.overview import word_profile


def names(ax):
    return [tick.get_text() for tick in ax.get_yticklabels()]


def test_rows_are_words_and_columns_are_frames(explanation):
    _, (strip, rows) = explanation.plot_overview()
    words = explanation.words()
    assert names(rows) == [scale.shown(word) for word in words.tokens]
    assert rows.get_xlabel() == "time (s)"
    assert rows.get_xlim() == strip.get_xlim() == pytest.approx(scale.time_extent(words.times))
    np.testing.assert_array_equal(strip.images[0].get_array(), words.features.T.numpy())
    drawn = np.asarray(rows.images[0].get_array())
    assert drawn.shape == (len(words), len(words.times))
    for row, k in zip(drawn, range(len(words)), strict=True):
        summed = words.evidence(k).double().sum(1)
        np.testing.assert_allclose(row, (summed / summed.abs().max()).numpy(), atol=1e-9)


def test_bits_stand_next_to_the_words(explanation):
    _, (_, rows) = plot_overview(explanation)
    texts = [text.get_text() for text in rows.texts]
    expected = [f"{bits:.1f}".replace("-", "−") for bits in explanation.words().sound_bits.tolist()]
    assert texts == [*expected, "bits"]


def test_long_texts_are_cut_and_say_so(make):
    long = make(pieces=tuple(f" word{k}" for k in range(70)))
    figure, (_, rows) = plot_overview(long)
    assert len(names(rows)) == 60 and "(the first 60 of 70)" in figure.get_suptitle()
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in rows.get_yticklabels()]
    assert all(above.y0 >= below.y1 - 1 for above, below in zip(boxes, boxes[1:], strict=False)), "labels overlap"
    assert len(names(plot_overview(long, longest=3)[1][1])) == 3
    with pytest.raises(ConfigError, match="longest is 0"):
        plot_overview(long, 0)


def test_an_output_without_words_says_so(make):
    _, (_, rows) = plot_overview(make(pieces=("<|endoftext|>",)))
    assert [text.get_text() for text in rows.texts] == ["no words were written"]


def test_rows_of_contrasts_are_contrasts(contrasting):
    _, (_, rows) = plot_overview(contrasting([("a", "b"), ("$c$", "d")]))
    assert names(rows) == ["a, not b", "$c$, not d"]


def test_a_map_without_effect_stays_zero():
    assert not word_profile(torch.zeros(5, 3)).any()


def test_words_of_a_trained_model_make_a_staircase():
    clip = next(c for c in tiny_clips() if c["kind"] == "statement")
    model, processor = load_tiny_model("speech2text-en")
    found = explain(model, processor, clip["path"], config=SpesConfig.fast(), progress=False)
    _, (_, rows) = found.plot_overview()
    spoken = {word["word"].strip(".,?!"): word for word in clip["words"]}
    drawn = np.asarray(rows.images[0].get_array())
    strongest = dict(zip(names(rows), found.times[drawn.argmax(1)].tolist(), strict=True))
    inside = [spoken[w]["start"] - 0.1 <= t <= spoken[w]["end"] + 0.1 for w, t in strongest.items() if w in spoken]
    assert len(inside) >= 4 and sum(inside) >= len(inside) - 1

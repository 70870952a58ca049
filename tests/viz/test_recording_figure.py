import io
import math
import re

import pytest
import torch

from spes_hf.bits import MADE_UP_BITS, probability_made_up
from spes_hf.viz.recording_figure import plot_recording, recording_html

PIECES = (" one", " <b>two</b>", " $three", " four")


@pytest.fixture(scope="module")
def recording(recorded, tmp_path_factory):
    part, window, whole = recorded
    text = "".join(PIECES)
    windows = (
        window(0, 0.0, 6.0, ((0.0, 3.0, text, 0, 2), (3.0, 3.1, " too long for so short a time", 2, 4))),
        window(1, 6.0, 9.0, skipped=True),
        window(2, 9.0, 12.0, ((9.0, 12.0, " Nobody asked.", 0, 4),), explained=False),
    )
    explanation = part(PIECES, range(4), token_sound_bits=torch.tensor([9.0, 8, 0.5, 0.5]))
    return whole(tmp_path_factory.mktemp("recording"), windows, {0: explanation}, 12.0)


def test_bound_is_where_made_up_is_as_likely_as_heard():
    assert probability_made_up(MADE_UP_BITS) == pytest.approx(0.5)


def test_figure_shows_loudness_bits_and_what_fits(recording):
    figure, axes = plot_recording(recording)
    assert len(axes) == 3 and axes[-1].get_xlim() == (0, 12)
    flat = [bar for bar in axes[1].patches if bar.get_hatch() != "..." and bar.get_y() == 0]
    bars = {(bar.get_x(), round(bar.get_height(), 3)) for bar in flat}
    assert (0.0, 8.5) in bars and (3.0, 0.5) in bars
    assert [text.get_text() for text in axes[2].texts] == ["one <b>two</b> $three four", "Nobody asked."]
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend == ["heard", f"probably made up: below {MADE_UP_BITS:.1f} bits (dotted)", "not explained"]
    figure.savefig(io.BytesIO())


def test_text_that_does_not_fit_is_cut(recorded, tmp_path):
    _, window, whole = recorded
    text = "a text of very many words " * 10
    windows = (window(0, 0.0, 60.0, ((0.0, 6.0, text, 0, 60), (6.0, 8.0, text, 60, 120), (8.0, 60.0, text, 120, 180))),)
    _, axes = plot_recording(whole(tmp_path / "cut", windows, {}, 60.0))
    (cut, full) = (found.get_text() for found in axes[2].texts)  # 2 s have no room for a word
    assert cut.endswith(" …") and cut.count("\n") == 6 and text.startswith(" ".join(cut[:-2].split("\n")))
    assert full.replace("\n", " ") == text.strip()


@pytest.mark.filterwarnings("ignore:no installed font")
def test_wide_characters_take_their_room(recorded, tmp_path):
    _, window, whole = recorded
    wide = "音声認識" * 40
    windows = (window(0, 0.0, 60.0, ((0.0, 10.0, wide, 0, 40), (10.0, 60.0, wide, 40, 80))),)
    figure, axes = plot_recording(whole(tmp_path / "wide", windows, {}, 60.0))
    figure.canvas.draw()
    ends = [text.get_window_extent().x1 for text in axes[2].texts]
    first, second = axes[2].transData.transform([(10.0, 0.0), (60.0, 0.0)])[:, 0]
    assert 0.7 * first < ends[0] <= first and 0.7 * second < ends[1] <= second


def test_neighbours_that_were_made_up_share_their_room(recorded, tmp_path):
    part, window, whole = recorded
    segments = tuple((float(k), k + 1.0, f" word{k}", k, k + 1) for k in range(50))
    bits = torch.full((50,), 9.0, dtype=torch.float32, device="cpu")
    bits[10:40] = 0.0
    pieces = tuple(f" word{k}" for k in range(50))
    explanation = part(pieces, range(50), frames=30, bins=4, patches=5, token_sound_bits=bits)
    _, axes = plot_recording(whole(tmp_path / "run", (window(0, 0.0, 50.0, segments),), {0: explanation}, 50.0))
    (shown,) = axes[2].texts  # one second has no room for a word
    assert shown.get_text().split() == [f"word{k}" for k in range(10, 40)] and shown.xy[0] == 10.0


def test_figure_of_an_hour_has_no_room_for_texts(recorded, tmp_path):
    _, window, whole = recorded
    windows = (window(0, 0.0, 3600.0, ((0.0, 3.0, " a text", 0, 2),)),)
    figure, axes = plot_recording(whole(tmp_path / "long", windows, {}, 3600.0, rate=0))
    assert len(axes) == 2 and axes[0].get_ylabel() == "no sound"
    figure.savefig(io.BytesIO())


def test_notebook_shows_a_row_for_each_segment(recording):
    shown = recording_html(recording)
    assert shown == recording._repr_html_()
    rows = [re.sub("<[^>]*>", "|", row) for row in re.findall("<tr>.*?</tr>", shown)[1:]]
    assert len(rows) == 3
    assert "8.5" in rows[0] and "heard" in rows[0] and "&lt;b&gt;two" in rows[0]
    assert "probably made up" in rows[1] and "not known" in rows[2]
    assert "1 of 2 segments probably made up" in shown and "<script" not in shown
    assert len(shown) < 100_000


def test_notebook_lists_what_was_made_up_of_many_segments(recorded, tmp_path):
    part, window, whole = recorded
    pieces = tuple(f" word{k}" for k in range(250))
    segments = tuple((float(k), k + 1.0, pieces[k], k, k + 1) for k in range(250))
    bits = torch.full((250,), 9.0)
    bits[[7, 70]] = 0.0
    explanation = part(pieces, range(250), frames=30, bins=4, patches=5, token_sound_bits=bits)
    shown = recording_html(whole(tmp_path / "many", (window(0, 0.0, 250.0, segments),), {0: explanation}, 250.0))
    assert shown.count("<tr>") == 3 and "word70" in shown
    assert "2 of 250 segments, that were probably made up" in shown
    assert math.isclose(len(shown), 20_000, rel_tol=0.9)

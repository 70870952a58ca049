import io
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from spes_hf.explanation import PatchMap
from spes_hf.viz import plot_saliency, plot_tokens, scale


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def test_saliency_axes_are_in_seconds_and_hertz(explanation):
    figure, axes = plot_saliency(explanation, 1)
    assert isinstance(figure, Figure)
    assert len(axes) == 3
    assert axes[2].get_xlabel() == "time (s)"
    for ax in axes:
        assert ax.get_ylabel() == "frequency (Hz)"
        assert ax.get_xlim() == pytest.approx(scale.time_extent(explanation.times))
        assert ax.get_ylim() == pytest.approx((-0.5, len(explanation.frequencies) - 0.5))
        assert labels(ax.get_yticklabels()) == ["100", "500", "1000", "2000", "4000", "8000"]
        assert ax.get_shared_x_axes().joined(ax, axes[0])


def test_saliency_panels_show_what_they_say(explanation):
    _, (spectrogram, saliency, overlay) = plot_saliency(explanation, 1)
    expected = explanation.evidence(1).T.numpy()
    np.testing.assert_array_equal(spectrogram.images[0].get_array(), explanation.features.T.numpy())
    np.testing.assert_array_equal(saliency.images[0].get_array(), expected)
    assert saliency.images[0].origin == "lower"
    back, front = overlay.images
    np.testing.assert_array_equal(front.get_array(), expected)
    opacity = front.get_alpha()
    end = scale.evidence_limit(explanation.evidence(1))
    assert (opacity[expected == 0] == 0).all()
    assert (opacity[abs(expected) >= end] == 1).all()
    assert front.get_clim() == saliency.images[0].get_clim() == (-end, end)


def test_colour_bars_tell_what_is_cut(explanation):
    figure, _ = plot_saliency(explanation, 0)
    bars = [ax.get_ylabel() for ax in figure.axes[3:]]
    assert len(bars) == 2
    assert bars[1] == "evidence from the sound (nats)\n0: no effect; below 0: against it"
    assert figure.axes[4].get_ylim()[0] < 0


def test_without_anything_against_it_the_scale_begins_at_zero(make):
    bare = make()
    scores = tuple(values.abs() for values in bare.audio_map.values)
    figure, _ = plot_saliency(make(audio_map=PatchMap(bare.audio_map.labels, scores)), 0)
    assert figure.axes[4].get_ylim()[0] == 0 and "against" not in figure.axes[4].get_ylabel()


@pytest.mark.parametrize("token", [1, "morn", " morn"])
def test_title_names_token_and_probability(explanation, token):
    figure, axes = plot_saliency(explanation, token)
    title = figure.get_suptitle()
    assert "“morn”" in title
    assert f"probability {explanation.token_probabilities[1]:.2f}" in title
    assert f"reliability {explanation.reliability.tokens[1]:.2f}" in axes[1].get_title(loc="left")


def test_title_of_a_word_names_its_reliability(explanation):
    words = explanation.words()
    _, axes = plot_saliency(words, 0)
    assert f"reliability {words.reliability.tokens[0]:.2f}" in axes[1].get_title(loc="left")


def test_sentence_and_words(explanation):
    figure, axes = plot_saliency(explanation)
    assert "whole sentence" in figure.get_suptitle()
    np.testing.assert_array_equal(axes[1].images[0].get_array(), explanation.evidence().T.numpy())
    words = explanation.words()
    figure, axes = plot_saliency(words, "morning")
    assert "“morning”: word 1" in figure.get_suptitle()
    np.testing.assert_array_equal(axes[1].images[0].get_array(), words.evidence(1).T.numpy())


def test_unknown_tokens_are_refused(explanation):
    with pytest.raises(KeyError, match="does not occur"):
        plot_saliency(explanation, "evening")
    with pytest.raises(IndexError, match="0 … 6"):
        plot_saliency(explanation, 7)


@pytest.mark.parametrize("words", [False, True])
def test_token_matrix_is_blank_where_not_yet_written(explanation, words):
    shown = explanation.words() if words else explanation
    figure, ax = plot_tokens(shown)
    drawn = ax.images[0].get_array()
    expected = shown.token_saliency.numpy()
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), np.isnan(expected))
    np.testing.assert_array_equal(drawn.filled(-1), np.nan_to_num(expected, nan=-1))
    assert ax.patch.get_hatch()
    assert labels(ax.get_xticklabels()) == [t.strip() for t in shown.context_tokens]
    assert labels(ax.get_yticklabels()) == [t.strip() for t in shown.tokens]
    assert ("word" if words else "token") in ax.get_ylabel()
    figure.savefig(io.BytesIO(), format="png", dpi=30)


def test_dollars_are_no_formula(explanation):
    figure, _ = plot_saliency(explanation, "$5")
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    assert "“$5”" in figure.get_suptitle()


def test_pyplot_and_its_settings_are_left_alone(explanation):
    settings = dict(matplotlib.rcParams)
    plot_saliency(explanation, 0)
    plot_tokens(explanation)
    assert dict(matplotlib.rcParams) == settings
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_notebooks_get_a_figure_that_shows(explanation, monkeypatch):
    from matplotlib import pyplot

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    figure, _ = plot_tokens(explanation)
    assert pyplot.get_fignums() == [figure.number]
    pyplot.close(figure)


def test_nothing_heavy_is_imported_before_a_picture():
    code = "import sys, spes_hf.viz; sys.exit('matplotlib' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_contrasts_are_named_as_such(contrasting):
    found = contrasting()
    figure, _ = plot_saliency(found, 0)
    assert figure.get_suptitle() == "“country, not county”: contrast 0, log-odds +3.0 bits"
    below = found.evidence(0).min() < 0
    assert [ax.get_ylabel().endswith("; below 0: for “county”") for ax in figure.axes[3:]] == [False, bool(below)]
    figure, _ = plot_saliency(found)
    assert figure.get_suptitle() == "all contrasts: “a text”"
    assert plot_tokens(found)[1].get_ylabel() == "contrast"

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import spes_hf
from spes_hf.functional import num_patches
from spes_hf.masking import segments
from spes_hf.masking.segments import GRID_SIGMA, label_maps, segment, segmented_ahead, slic_labels


@pytest.fixture(scope="module")
def spectrogram():
    """3 s of speech, 100 frames/s × 80 bins, log scale."""
    samples, rate = soundfile.read(Path(spes_hf.__file__).parent / "assets" / "jfk.flac", frames=48_000)
    assert rate == 16_000
    window = torch.hann_window(400).double()
    spectrum = torch.stft(torch.from_numpy(samples), 400, 160, window=window, return_complex=True)
    power = torch.nn.functional.adaptive_avg_pool1d(spectrum.abs().square().T, 80)
    return power[:300].clamp_min(1e-10).log10().float()


def is_dense(labels):
    return torch.equal(labels.unique(), torch.arange(int(labels.max()) + 1))


def boxiness(labels):
    """Mean share of its bounding box that a patch fills: 1 for rectangles."""
    shares = []
    for patch in labels.unique():
        rows, columns = (labels == patch).nonzero(as_tuple=True)
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        shares.append(len(rows) / float(box))
    return float(np.mean(shares))


@pytest.mark.parametrize("patches", [1, 2, 50, 400])
def test_labels_are_dense(spectrogram, patches):
    labels = slic_labels(spectrogram[:120], patches)
    assert labels.shape == (120, 80)
    assert labels.dtype == torch.int64
    assert labels.min() == 0
    assert is_dense(labels)


def test_number_of_patches_is_quantised(spectrogram):
    # scikit-image starts from a grid with whole-number steps: what is asked for is met only roughly.
    counts = {asked: int(slic_labels(spectrogram, asked).max()) + 1 for asked in (1_200, 1_500, 1_800)}
    assert all(1_350 <= count <= 1_550 for count in counts.values())
    assert torch.equal(slic_labels(spectrogram, 1_200), slic_labels(spectrogram, 1_500))


def test_a_pyramid_has_levels_that_differ(spectrogram):
    levels = segment(spectrogram, 3.0, (20, 80, 400), None, 0.0, 0.1)
    assert levels.shape == (3, 300, 80)
    counts = [int(level.max()) + 1 for level in levels]
    for asked, count in zip((60, 240, 1_200), counts, strict=True):
        assert 0.6 * asked < count < 1.5 * asked
    assert all(is_dense(level) for level in levels)


def test_segment_follows_eq_2(spectrogram):
    short = segment(spectrogram, 3.0, (80,), 1.0, 0.0, 0.1)[0]
    assert torch.equal(short, slic_labels(spectrogram, num_patches(3.0, 80, 1.0)))
    assert short.max() < segment(spectrogram, 3.0, (80,), None, 0.0, 0.1).max()


def test_levels_of_one_count_are_one_map(spectrogram):
    levels = segment(spectrogram[:50], 0.5, (100, 200, 100), None, 0.0, 0.1)
    assert torch.equal(levels[0], levels[2])
    assert not torch.equal(levels[0], levels[1])


def test_patches_are_drawn_the_same_every_time(spectrogram):
    assert torch.equal(slic_labels(spectrogram[:60], 100), slic_labels(spectrogram[:60], 100))


def test_patches_do_not_depend_on_the_scale_of_the_features(spectrogram):
    cut = spectrogram[:60].double()
    assert torch.equal(slic_labels(cut, 100), slic_labels(cut * 4 - 8, 100))


def test_patches_follow_the_spectrogram():
    # Loud above an oblique line, silent below: with few patches, none may hold much of both.
    loud = torch.arange(60)[:, None] > torch.arange(40)[None, :] + 10
    labels = slic_labels(loud.float(), 60)
    share = torch.stack([loud[labels == patch].float().mean() for patch in labels.unique()])
    assert ((share < 0.05) | (share > 0.95)).float().mean() > 0.9
    # The time axis comes first: the transposed picture has the transposed patches' purity, not their order.
    assert labels.shape == (60, 40)


def test_the_grid_is_more_regular_and_ignores_the_spectrogram(spectrogram):
    cut = spectrogram[:150]
    slic, grid = slic_labels(cut, 200), slic_labels(cut, 200, sigma=GRID_SIGMA)
    assert boxiness(grid) > boxiness(slic) + 0.1

    def variance_within(labels):
        patches = [cut[labels == patch] for patch in labels.unique()]
        return sum(float(p.var(unbiased=False)) * len(p) for p in patches) / cut.numel()

    assert variance_within(slic) < 0.8 * variance_within(grid)


def test_compactness_makes_patches_squarer(spectrogram):
    cut = spectrogram[:150]
    assert boxiness(slic_labels(cut, 200, compactness=10)) > boxiness(slic_labels(cut, 200)) + 0.1


@pytest.mark.parametrize("value", [0.0, -1.5, 7.0])
def test_constant_spectrogram(value):
    labels = slic_labels(torch.full((40, 16), value), 20)
    assert is_dense(labels)
    assert 10 <= labels.max() + 1 <= 40


def test_one_patch_is_the_whole_spectrogram(spectrogram):
    assert not slic_labels(spectrogram[:30], 1).any()


def test_more_patches_than_features():
    labels = slic_labels(torch.rand(5, 4, generator=torch.Generator().manual_seed(0)), 10_000)
    assert is_dense(labels)
    assert labels.max() < 20


@pytest.mark.parametrize("shape", [(1, 80), (40, 1), (1, 1), (2, 3)])
def test_tiny_spectrograms(shape):
    for sigma in (0.0, GRID_SIGMA):
        labels = slic_labels(torch.rand(shape), 4, sigma=sigma)
        assert labels.shape == shape
        assert is_dense(labels)


def test_features_are_left_alone(spectrogram):
    cut = spectrogram[:30].clone().requires_grad_()
    slic_labels(cut, 10)
    assert torch.equal(cut.detach(), spectrogram[:30])
    assert is_dense(slic_labels(spectrogram[:30].half(), 10))


def left():
    """Threads of a segmentation that are alive."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("slic")]


def test_levels_in_threads_are_those_one_by_one(spectrogram, monkeypatch):
    counts = (20, 80, 400, 80)
    expected = torch.stack([slic_labels(spectrogram, k) for k in counts])
    for cores in (1, 3):
        monkeypatch.setattr(segments, "own_cores", lambda cores=cores: cores)
        assert torch.equal(label_maps(spectrogram, counts, 0.0, 0.1), expected)
        assert not left()
    assert torch.equal(label_maps(spectrogram.double(), counts, 0.0, 0.1), expected)


@pytest.fixture
def asked(monkeypatch):
    """The k, and the thread, of every segmentation."""
    seen, really = [], segments.slic_labels

    def seeing(features, patches, *settings):
        seen.append((patches, threading.current_thread()))
        return really(features, patches, *settings)

    monkeypatch.setattr(segments, "slic_labels", seeing)
    return seen


def test_what_is_segmented_ahead_is_waited_for(spectrogram, asked):
    cut = spectrogram[:60]
    with segmented_ahead(cut, (20, 40), 0.0, 0.1, threads=2):
        end = time.monotonic() + 60
        while len(asked) < 2 and time.monotonic() < end:  # what no thread has begun is not waited for
            time.sleep(0.001)
        found = label_maps(cut, (40, 30, 20), 0.0, 0.1)
        # Once each, what was not foreseen too; and again with other settings, or of other features.
        with segmented_ahead(cut, (40, 20), 0.0, 0.1, threads=1):
            assert torch.equal(label_maps(cut, (40, 20), 0.0, 0.1), found[::2])
        assert sorted(k for k, _ in asked) == [20, 30, 40]
        label_maps(cut, (40,), 1.0, 0.1)
        label_maps(cut.clone(), (40,), 0.0, 0.1)
        assert [k for k, _ in asked[3:]] == [40, 40]
    assert all(thread is not threading.main_thread() and not thread.is_alive() for _, thread in asked)
    assert torch.equal(found, torch.stack([slic_labels(cut, k) for k in (40, 30, 20)]))
    assert not segments._ahead and not left()


def test_levels_that_no_thread_has_begun_are_not_waited_for(spectrogram, monkeypatch):
    """The only thread ahead is busy with the first one: the others are segmented now, and not again."""
    cut, really = spectrogram[:60], slic_labels
    expected = torch.stack([slic_labels(cut, k) for k in (40, 20, 30)])
    first, done, asked = threading.Event(), threading.Event(), []

    def busy(features, k, *settings):
        asked.append(k)
        if k == 20:
            first.set()
            assert done.wait(60)
        elif len(asked) == 3:
            done.set()
        return really(features, k, *settings)

    monkeypatch.setattr(segments, "slic_labels", busy)
    with segmented_ahead(cut, (20, 30, 40), 0.0, 0.1, threads=1):
        assert first.wait(60)
        assert torch.equal(label_maps(cut, (40, 20, 30), 0.0, 0.1), expected)
    assert sorted(asked) == [20, 30, 40]


def test_without_threads_nothing_is_segmented_ahead(spectrogram, asked):
    with segmented_ahead(spectrogram[:60], (20, 40), 0.0, 0.1, threads=0):
        assert not left()
    assert not asked


@pytest.mark.filterwarnings("ignore:invalid value")
def test_an_error_in_a_thread_comes_up_where_its_level_is_asked_for():
    broken = torch.ones(10, 4)
    broken[0, 0] = torch.inf
    for threads in (0, 2):
        with segmented_ahead(broken, (2, 3), 0.0, 0.1, threads), pytest.raises(ValueError, match="NaN"):
            label_maps(broken, (3,), 0.0, 0.1)
    # Nobody asks: another error is the one that counts.
    with pytest.raises(ZeroDivisionError), segmented_ahead(broken, (2,), 0.0, 0.1, threads=2):
        _ = 1 / 0
    assert not segments._ahead and not left()


def test_what_has_not_begun_is_dropped_with_the_rest(spectrogram, monkeypatch):
    begun, go = [], threading.Event()
    monkeypatch.setattr(segments, "slic_labels", lambda features, k, *settings: begun.append(k) or go.wait())
    with pytest.raises(KeyboardInterrupt), segmented_ahead(spectrogram, (20, 40, 80), 0.0, 0.1, threads=1):
        threading.Timer(0.2, go.set).start()
        raise KeyboardInterrupt
    assert begun in ([20], [])


def test_threads_compute_as_plain_torch_does(spectrogram):
    """Modes of the thread that asks stay there; and those in the threads do not reach it."""
    cut = spectrogram[:60]
    expected = label_maps(cut, (20, 40), 0.0, 0.1)
    with torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        with segmented_ahead(cut, (20,), 0.0, 0.1, threads=1):
            found = label_maps(cut, (20, 40), 0.0, 0.1)
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
    assert found.device.type == "cpu" and torch.equal(found, expected)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()

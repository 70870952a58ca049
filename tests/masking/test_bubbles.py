import numpy as np
import pytest
import torch

from spes_hf.masking.bubbles import BubblePerturbation
from spes_hf.masking.draw import mask_key

RADII = (21.5, 15.5)  # 0.43 s × 31 mel bins at 100 frames a second


def bubbles(features=None, **changed):
    features = torch.rand(300, 80) * 3 - 1 if features is None else features
    values = dict(
        features=features,
        bubbles=30,
        radii=RADII,
        bubble_key=mask_key(0, "u", "bubbles"),
        noise_key=mask_key(0, "u", "noise"),
        num_masks=10,
    )
    return BubblePerturbation(**{**values, **changed})


def masks_of(perturbation, rows=range(10)):
    return perturbation.draw(0, rows).keep.unflatten(1, perturbation.features.shape)


def test_a_bubble_is_an_ellipse():
    """By hand: at distance d of the way to the edge the mask is 1 − d², and 0 from the edge on."""
    perturbation = bubbles(bubbles=1, radii=(6.0, 3.0), features=torch.rand(40, 20))
    keep = masks_of(perturbation, range(20))
    for mask, ((time, mel),) in zip(keep, perturbation.centres(range(20)), strict=True):
        t, c = np.arange(40)[:, None] + 0.5, np.arange(20) + 0.5
        expected = np.clip(1 - ((t - time) / 6) ** 2 - ((c - mel) / 3) ** 2, 0, None)
        np.testing.assert_allclose(mask.numpy(), expected, atol=1e-5)
        frames, bins = mask.any(1).sum(), mask.any(0).sum()
        assert frames <= 12 and bins <= 6


def test_size_of_a_bubble():
    """0.43 s × 31 mel bins from edge to edge, where the spectrogram does not cut it off."""
    perturbation = bubbles(bubbles=1)
    for mask, ((time, mel),) in zip(masks_of(perturbation), perturbation.centres(range(10)), strict=True):
        if 22 < time < 278:
            assert 41 <= mask.any(1).sum() <= 43
        if 16 < mel < 64:
            assert 29 <= mask.any(0).sum() <= 31


def test_bubbles_that_overlap_keep_the_more():
    perturbation = bubbles()
    one = perturbation.centres(range(1))[0]
    alone = np.stack([perturbation._keep(centre[None]) for centre in one])
    np.testing.assert_array_equal(perturbation._keep(one), alone.max(0))


def test_about_half_is_noise():
    shares = [
        float(1 - masks_of(bubbles(torch.rand(frames, 80), bubbles=frames // 10)).mean()) for frames in (120, 500)
    ]
    assert all(0.45 <= share <= 0.65 for share in shares), shares


def test_centres_lie_in_the_spectrogram():
    centres = bubbles().centres(range(50)).reshape(-1, 2)
    assert (centres >= 0).all() and (centres < [300, 80]).all()
    np.testing.assert_allclose(centres.mean(0), [150, 40], rtol=0.06)


def test_noise_matches_the_range_of_the_utterance():
    perturbation = bubbles()
    noise = perturbation.noise(range(4))
    low, high = perturbation.features.min(), perturbation.features.max()
    assert noise.shape == (4, 300, 80)
    assert low <= noise.min() < low + 0.01 and high - 0.01 < noise.max() <= high
    assert float(noise.mean()) == pytest.approx(float(low + high) / 2, abs=0.02)
    assert not torch.equal(noise[0], noise[1])


def test_noise_replaces_outside_and_is_attenuated_and_added_inside():
    perturbation = bubbles()
    masks = perturbation.draw(0, range(3))
    found = perturbation.apply(masks)["features"]
    keep, noise = masks.keep.unflatten(1, (300, 80)), perturbation.noise(range(3))
    outside = keep == 0
    assert 0.1 < outside.float().mean() < 0.6
    assert torch.equal(found[outside], noise[outside])
    features = perturbation.features.expand(3, -1, -1)
    torch.testing.assert_close(found[~outside], (features + (1 - keep) * noise)[~outside])
    centre = keep > 0.99
    assert centre.any() and (found - features)[centre].abs().max() <= 0.01 * noise.abs().max()


def test_a_mask_depends_on_its_row_alone():
    perturbation = bubbles()
    together = perturbation.apply(perturbation.draw(0, range(8)))["features"]
    for row in (0, 3, 7):
        alone = perturbation.apply(perturbation.draw(0, range(row, row + 1)))["features"]
        assert torch.equal(alone[0], together[row])


def test_seed_and_utterance_change_the_masks():
    first, second = bubbles(), bubbles(bubble_key=mask_key(1, "u", "bubbles"))
    assert not torch.equal(masks_of(first), masks_of(second))
    assert torch.equal(masks_of(first), masks_of(bubbles()))


def test_a_bubble_larger_than_the_spectrogram():
    keep = masks_of(bubbles(torch.rand(5, 8), bubbles=1))
    assert keep.shape == (10, 5, 8)
    # Wherever its centre lies, all of the spectrogram is well inside of it, and kept the more the nearer it is.
    assert keep.min() > 0.5 and 0.95 < keep.flatten(1).amax(1).min() and keep.max() <= 1
    assert (keep.flatten(1).std(1) > 0).all()

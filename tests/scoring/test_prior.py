"""What the map of a token falls back on."""

from __future__ import annotations

import pytest
import torch

from spes_hf import SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.scoring.pooling import Pools
from spes_hf.scoring.prior import prior_of, with_prior


def test_it_grows_with_both_maps_and_stops_at_a_quantile():
    sentence = torch.tensor([-5.0, 0.0, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0, 400.0])
    prior = prior_of(sentence, torch.zeros(10))
    torch.testing.assert_close(prior, torch.tensor([0.0, 0.0, 0.125, 0.25, *[0.5] * 6]))
    both = prior_of(sentence, sentence.flip(0).abs())
    assert both.min() >= 0 and both.max() <= 1
    assert both[0] == 0.5  # no evidence, but it stands out


def test_nothing_to_go_by_is_no_prior():
    assert torch.equal(prior_of(torch.zeros(7), torch.zeros(7)), torch.zeros(7))
    assert torch.equal(prior_of(-torch.ones(7), torch.zeros(7)), torch.zeros(7))


def test_it_is_added_in_standard_deviations_over_the_same_patches():
    pools = Pools(torch.tensor([[[0, 0, 1, 1]], [[0, 1, 2, 3]]]))
    values = (torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 2.0, 4.0, 10.0]]))
    prior = torch.tensor([0.0, 1.0, 1.0, 1.0])
    own = (values[0][0][[0, 0, 1, 1]] + values[1][0]) / 2
    coarse, fine = with_prior(values, 2.0, prior, pools)
    torch.testing.assert_close(coarse - values[0], 2 * own.std() * torch.tensor([[0.5, 1.0]]))
    torch.testing.assert_close(fine - values[1], 2 * own.std() * prior[None])
    flat = (torch.zeros(1, 2), torch.zeros(1, 4))  # what has no effect stays at 0
    assert all(not level.any() for level in with_prior(flat, 2.0, prior, pools))


@pytest.fixture(scope="module")
def heard():
    def run(weight, **arguments):
        config = SpesConfig(num_spectrogram_masks=24, num_token_masks=2, prior_weight=weight)
        model = load_tiny_model("speech2text-en")
        return explain(*model, tiny_clips()[3]["path"], config=config, progress=False, **arguments)

    return run


def test_own_evidence_comes_first(heard):
    """The most salient features stay nearly the same; the order of the others becomes that of the sentence."""
    own, both = heard(0.0), heard(3.0)
    for k in range(len(own)):
        before, after = (
            set(e.raw_audio[k].flatten().topk(e.raw_audio[k].numel() // 100).indices.tolist()) for e in (own, both)
        )
        assert len(before & after) > 0.6 * len(before)
    shares = [
        torch.stack(
            [torch.corrcoef(torch.stack([m.flatten(), e.sentence_saliency.flatten()]))[0, 1] for m in e.raw_audio]
        )
        for e in (own, both)
    ]
    assert shares[1].mean() > shares[0].mean()


def test_contrasts_have_none(heard):
    words = [w.strip() for w in heard(0.0).words().tokens]
    foil = {words[1]: words[2]}
    assert torch.equal(heard(0.0, foil=foil).raw_audio, heard(3.0, foil=foil).raw_audio)

"""What the map of a token falls back on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spes_hf import Explanation, SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.scoring.prior import prior_of, with_prior


def alone(count):
    """Patches of single features."""
    return torch.arange(count).view(1, 1, count)


def row(*values):
    return torch.tensor([values])


def test_it_grows_with_both_maps_and_stops_at_a_quantile():
    sentence = row(-5.0, 0.0, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0, 400.0)
    prior = prior_of(sentence, torch.zeros(1, 10), alone(10))
    torch.testing.assert_close(prior, row(0.0, 0.0, 0.125, 0.25, *[0.5] * 6))
    both = prior_of(sentence, sentence.flip(1).abs(), alone(10))
    assert both.min() >= 0 and both.max() <= 1
    assert both[0, 0] == 0.5  # no evidence, but it stands out


def test_nothing_to_go_by_is_no_prior():
    for sentence in (torch.zeros(1, 7), -torch.ones(1, 7)):
        assert not prior_of(sentence, torch.zeros(1, 7), alone(7)).any()


def test_it_is_pooled_as_maps_of_tokens_are():
    pools = torch.tensor([[[0, 0, 1, 1]], [[0, 1, 2, 3]]], dtype=torch.int32)
    prior = prior_of(row(0.0, 4.0, 4.0, 4.0), torch.zeros(1, 4), pools)
    torch.testing.assert_close(prior, row(0.125, 0.375, 0.5, 0.5))


def test_it_is_added_in_standard_deviations():
    own, prior = row(1.0, 3.0, 5.0, 0.0), row(0.0, 1.0, 0.5, 0.25)
    torch.testing.assert_close(with_prior(own, 2.0, prior), own + 2 * own.std() * prior)
    assert not with_prior(torch.zeros(1, 4), 2.0, prior).any()  # what has no effect stays at 0


@pytest.fixture(scope="module")
def heard():
    def run(weight, **arguments):
        config = SpesConfig(num_spectrogram_masks=24, num_token_masks=2, prior_weight=weight)
        model = load_tiny_model("speech2text-en")
        return explain(*model, tiny_clips()[3]["path"], config=config, progress=False, **arguments)

    return run


def correlation(maps, other):
    rows = zip(maps.flatten(1), other.flatten(1), strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in rows])


def test_own_evidence_comes_first(heard):
    """The most salient features stay nearly the same; the order of the others becomes that of the sentence."""
    own, both = heard(0.0).audio_saliency, heard(3.0).audio_saliency
    count = own[0].numel() // 100
    for before, after in zip(own.flatten(1), both.flatten(1), strict=True):
        kept = set(before.topk(count).indices.tolist()) & set(after.topk(count).indices.tolist())
        assert len(kept) > 0.6 * count
    sentence = heard(0.0).sentence_saliency.expand_as(own)
    assert correlation(both, sentence).mean() > correlation(own, sentence).mean()


def test_evidence_and_reliability_are_of_a_token_alone(heard):
    own, both = heard(0.0), heard(3.0)
    assert torch.equal(own.raw_audio, both.raw_audio)
    assert torch.equal(own.evidence(1), both.evidence(1))
    assert torch.equal(own.reliability.tokens, both.reliability.tokens)
    assert not torch.equal(own.audio_saliency, both.audio_saliency)


def test_it_survives_saving(heard, tmp_path):
    found = heard(3.0)
    found.save(tmp_path / "why")
    assert torch.equal(Explanation.load(tmp_path / "why").audio_saliency, found.audio_saliency)


def test_contrasts_have_none(heard):
    words = [w.strip() for w in heard(0.0).words().tokens]
    foil = {words[1]: words[2]}
    assert torch.equal(heard(0.0, foil=foil).audio_saliency, heard(3.0, foil=foil).audio_saliency)


def test_eq_3_has_none():
    assert "prior_weight" in SpesConfig.unread({**vars(SpesConfig()), "estimator": "perturbation"})


def test_times_of_tokens_go_by_their_own_evidence():
    """The prior lies where the other words are spoken, and would move a time there."""
    config = SpesConfig(num_spectrogram_masks=8, masks_per_token=8, passes_per_mask=4, num_token_masks=4)
    found = explain(*load_tiny_model("speech2text-en"), tiny_clips()[0]["path"], config=config, progress=False)
    settings = {**found.provenance["config"], "prior_weight": 0.0}
    own = replace(found, provenance={**found.provenance, "config": settings})
    assert not torch.equal(found.audio_saliency, own.audio_saliency)
    for mine, theirs in ((found, own), (found.words(), own.words())):
        assert torch.equal(mine.time_centroids(), theirs.time_centroids())

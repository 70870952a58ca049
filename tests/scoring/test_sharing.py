"""Tokens that share backward passes: what tells them apart is exact where it can be, and close elsewhere."""

from __future__ import annotations

import pytest
import torch
from agreement import assert_explanations_agree

from spes_hf import SpesConfig, explain
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.masking.perturbations import Masks
from spes_hf.scoring.gradient import GradientEstimator
from spes_hf.scoring.sharing import Sharing, orthogonal_codes


@pytest.mark.parametrize(
    ("blocks", "order"),
    [(1, 1), (2, 2), (3, 1), (4, 4), (6, 2), (8, 8), (12, 12), (16, 16), (20, 4), (24, 24), (36, 12)],
)
def test_codes_are_orthogonal_over_all_blocks(blocks, order):
    codes = orthogonal_codes(blocks)
    assert codes.shape == (order, order) and blocks % order == 0
    assert torch.equal(codes.abs(), torch.ones(order, order))
    assert torch.equal(codes @ codes.T, order * torch.eye(order))


def even(tokens):
    return torch.ones(tokens, 40)


def test_words_of_a_group_lie_far_apart():
    sharing = Sharing.of(12, 5, 12, lambda: even(12), 0.01)
    assert sharing.groups == ((0, 5, 10), (1, 6, 11), (2, 7), (3, 8), (4, 9))
    assert sharing.places[6] == (1, 1)


def test_no_group_has_more_tokens_than_there_are_codes():
    sharing = Sharing.of(30, 2, 4, lambda: even(30), 0.01)
    assert max(map(len, sharing.groups)) <= 4
    assert sorted(k for group in sharing.groups for k in group) == list(range(30))


def test_nothing_is_asked_where_nothing_is_shared():
    def never():
        raise AssertionError("nobody shares")

    for tokens, passes, blocks in ((5, 5, 12), (3, 5, 12), (9, 2, 3)):  # enough passes, or a single code
        sharing = Sharing.of(tokens, passes, blocks, never, 0.01)
        assert not sharing.is_shared
        assert sharing.groups == tuple((k,) for k in range(tokens))


def test_shares_follow_the_attention_and_add_up_to_one():
    attention = torch.zeros(4, 200)
    for k in range(4):
        attention[k, 50 * k : 50 * k + 50] = 1 + k  # each its own stretch; how strong does not matter
    sharing = Sharing.of(4, 2, 2, lambda: attention, 0.01)
    assert sharing.groups == ((0, 2), (1, 3))
    for group in sharing.groups:
        torch.testing.assert_close(sharing.shares[list(group)].sum(0), torch.ones(200))
    assert sharing.shares[0, 25] > 0.95 and sharing.shares[2, 25] < 0.05
    torch.testing.assert_close(sharing.shares[0, 75], torch.tensor(0.5))  # neither attends: nobody knows


# The estimator -------------------------------------------------------------------------------------------------------

WEIGHTS = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))


def linear(masks):
    return (1 - masks.keep) @ WEIGHTS.T


def shared(blocks, rows=None):
    """An estimator of six tokens in two groups, whose shares are all 1: only signs tell tokens apart."""
    sharing = Sharing(((0, 2, 4), (1, 3, 5)), orthogonal_codes(blocks), torch.ones(6, 1))
    pools = torch.arange(10).view(1, 1, 10)
    sizes = torch.tensor([1.0, 0.01, 3.0, 0.2, 50.0, 1.0])
    return GradientEstimator(
        pools, 6, 2 * blocks, rows=rows, sharing=sharing, sizes=lambda impact: sizes.expand_as(impact)
    )


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_gradients_that_are_the_same_under_all_masks_are_told_apart_exactly(batch):
    """What the signs leave is how gradients vary from mask to mask: here they do not."""
    estimator = shared(blocks=8)
    keep = torch.rand(16, 10, generator=torch.Generator().manual_seed(1))
    for start in range(0, 16, batch):
        rows = range(start, min(16, start + batch))
        estimator.update(Masks(keep[rows.start : rows.stop], 0, rows, block=2), linear)
    torch.testing.assert_close(estimator.scores().values[0], WEIGHTS, rtol=1e-4, atol=1e-4)
    assert estimator.backward_passes(0, range(16)) == 16 * (2 + 1)


def test_some_tokens_have_the_maps_that_they_have_among_all():
    keep = torch.rand(16, 10, generator=torch.Generator().manual_seed(1))
    every, some = shared(8), shared(8, rows=[3, 5])
    for estimator in (every, some):
        estimator.update(Masks(keep, 0, range(16), block=2), lambda m: linear(m) ** 2)
    assert torch.equal(some.scores().values[0], every.scores().values[0][[3, 5]])
    assert torch.equal(some.scores().sentence, every.scores().sentence)
    assert some.backward_passes(0, range(16)) == 16 * (1 + 1)  # the other group is spared


# On trained models ---------------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module", params=[("speech2text-en", None), ("seamless-en-de-es", "deu")], ids=["s2t", "seamless"]
)
def heard(request):
    name, language = request.param
    clip = next(c for c in tiny_clips() if c["kind"] == "verb-final")["path"]

    def run(**settings):
        config = SpesConfig(num_spectrogram_masks=24, num_token_masks=2, prior_weight=0.0, **settings)
        return explain(*load_tiny_model(name), clip, config=config, tgt_lang=language, progress=False)

    return run


def test_shared_passes_draw_nearly_the_maps_of_single_ones(heard):
    alone, together = heard(passes_per_mask=None), heard()
    few = heard(passes_per_mask=None, masks_per_token=6)
    assert together.provenance["cost"]["backward_passes"] == 24 * (5 + 1)
    assert len(alone) > 8

    def agreement(found):
        pairs = zip(alone.raw_audio.flatten(1), found.raw_audio.flatten(1), strict=True)
        return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])

    own, less = agreement(together), agreement(few)
    # Half the passes spent on fewer masks would be no match. Measured: medians 0.99 and 0.87 against 0.81 and 0.64.
    assert own.median() > less.median() + 0.1
    assert own.mean() > less.mean()


def test_five_passes_are_exact_for_five_tokens(heard):
    found = heard(passes_per_mask=99)
    alone = heard(passes_per_mask=None)
    assert torch.equal(found.raw_audio, alone.raw_audio)


def test_the_batch_size_does_not_matter():
    model, processor = load_tiny_model("speech2text-en")
    config = SpesConfig(num_spectrogram_masks=8, masks_per_token=8, passes_per_mask=2, num_token_masks=2)
    first, *others = [
        explain(model, processor, tiny_clips()[3]["path"], config=config, batch_size=size, progress=False)
        for size in (1, 3, 8)
    ]
    for other in others:
        assert_explanations_agree(other, first)


def test_a_part_has_the_maps_of_the_whole():
    model, processor = load_tiny_model("speech2text-en")
    config = SpesConfig(num_spectrogram_masks=8, masks_per_token=8, passes_per_mask=3, num_token_masks=2)
    whole, part = (
        explain(model, processor, tiny_clips()[3]["path"], config=config, words=words, batch_size=4, progress=False)
        for words in (None, [1])
    )
    assert len(part) < len(whole)
    for row, k in enumerate(part.part.rows):
        assert torch.equal(part.raw_audio[row], whole.raw_audio[k])
    assert torch.equal(part.sentence_saliency, whole.sentence_saliency)
    assert part.provenance["cost"]["backward_passes"] < whole.provenance["cost"]["backward_passes"]

"""The bound for normalised maps holds whatever the rounding, is not far from the worst case, and knows flat maps."""

from __future__ import annotations

import pytest
import torch
from agreement import assert_explanations_agree, normalised_error, raw_error
from hypothesis import given, settings
from hypothesis import strategies as st

from spes_hf import functional


def normalised(audio, token):
    """Return the normalised maps of one token, (T, C) and (J,)."""
    valid = ~token.isnan()[None]
    audio, token = functional.paired_min_max(*functional.standardize(audio[None], token[None], valid), valid)
    return audio[0], token[0]


def moved(audio, token, errors, direction):
    """Return how far normalised maps move if the raw maps move by ``errors`` in these directions, in [-1, 1]."""
    before = normalised(audio, token)
    after = normalised(audio + errors[0] * direction[0], token + errors[1] * direction[1])
    return max(float((a - b).abs().nan_to_num().max()) for a, b in zip(before, after, strict=True))


def maps(seed, spread, tokens):
    generator = torch.Generator().manual_seed(seed)
    audio = 1 + spread * torch.rand(6, 5, generator=generator, dtype=torch.float64)
    token = torch.rand(tokens + 1, generator=generator, dtype=torch.float64)
    token[-1] = torch.nan
    return audio, token, generator


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-4, 1.0), st.integers(0, 5), st.floats(1e-8, 1e-2))
def test_no_rounding_moves_a_normalised_map_beyond_the_bound(seed, spread, tokens, size):
    audio, token, generator = maps(seed, spread, tokens)
    errors = (size, size / 3)
    bound = normalised_error(audio, token, errors)
    for _ in range(2):
        noise = [2 * torch.rand(m.shape, generator=generator, dtype=torch.float64) - 1 for m in (audio, token)]
        for direction in (noise, [n.sign() for n in noise], [(m - m.nanmean()).sign() for m in (audio, token)]):
            assert moved(audio, token, errors, direction) <= bound + 1e-9


def test_the_bound_is_within_ten_times_of_what_rounding_can_do():
    for seed in range(20):
        audio, token, _ = maps(seed, 1.0, 4)
        worst = -torch.ones_like(audio).flatten()
        worst[audio.argmax()] = 1  # all values but the largest fall: each is then further from it
        reached = moved(audio, token, (1e-4, 0.0), (worst.view_as(audio), torch.zeros_like(token)))
        assert reached <= normalised_error(audio, token, (1e-4, 0.0)) <= 10 * reached


def test_flat_maps_stretch_rounding():
    """A token whose impact is 1 nat give or take 1e-3: rounding of 1e-6 is past 1e-5 once the map is normalised."""
    audio, token, generator = maps(0, 1e-3, 0)
    noise = torch.rand(audio.shape, generator=generator, dtype=torch.float64).sub(0.5).sign()
    reached = moved(audio, token, (1e-6, 0.0), (noise, torch.zeros_like(token)))
    assert 1e-5 < 1e-4 < reached <= normalised_error(audio, token, (1e-6, 0.0)) < 0.05
    assert normalised_error(torch.ones(3, 4), token, (1e-6, 0.0)) == 1  # nothing can be promised
    assert normalised_error(100 * audio, token, (1e-4, 0.0)) == pytest.approx(
        normalised_error(audio, token, (1e-6, 0.0)), rel=1e-6
    )


def test_a_raw_map_may_differ_by_a_share_of_its_largest_value():
    assert raw_error(torch.tensor([float("nan"), -4.0, 1.0])) == pytest.approx(4e-4, rel=1e-2)
    assert 0 < raw_error(torch.zeros(3)) < 1e-5


def test_other_masks_do_not_agree(small_whisper, tone):
    """What the comparison is for: it tells one mask too many, and one mask that is another."""
    from dataclasses import replace

    from settings import pyramid

    from spes_hf import explain

    config = pyramid(num_spectrogram_masks=30, num_token_masks=8)
    settings = dict(text="ask not", progress=False)
    first = explain(*small_whisper, tone, config=config, **settings)
    assert_explanations_agree(first, first)
    for other in (
        explain(*small_whisper, tone, config=config, seed=1, **settings),
        explain(*small_whisper, tone, config=replace(config, num_spectrogram_masks=33), **settings),
        explain(*small_whisper, tone, config=replace(config, num_token_masks=9), **settings),
        replace(first, raw_token_scores=first.raw_token_scores * 1.01),
    ):
        with pytest.raises(AssertionError):
            assert_explanations_agree(other, first)

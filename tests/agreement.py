"""How far two explanations of one utterance by the same masks may lie apart: docs/compatibility.md, as numbers.

Masks are equal bit for bit. Raw maps differ by rounding, which processors, threads and batches do differently:
`raw_error` allows a share of the largest value of the map. Normalised maps differ by what follows from that:
`normalised_error`. A nearly flat map stretches rounding, so no fixed number holds for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spes_hf import Explanation, functional

# Raw maps agree within FLOOR + share · largest value. Backward passes round more than forward passes. Between
# instruction sets, threads and batch sizes, random weights reached four fifths of this, trained models a quarter.
FLOOR, EQ_3, GRADIENT = 1e-6, 1e-4, 5e-4


def largest(values: Tensor) -> float:
    """Return the largest absolute value; NaN (not yet generated) is left out."""
    values = values[~values.isnan()].abs()
    return float(values.max()) if values.numel() else 0.0


def raw_error(raw: Tensor, share: float = EQ_3) -> float:
    """Return how far another run's raw map of the same token may lie from this one, value by value."""
    return FLOOR + share * largest(raw)


def z_error(raw: Tensor, error: float) -> float:
    """Return how far the z-scores can move if every value of a raw map moves by up to ``error``.

    With c the centred values and s their deviation, z = c / s. The centred values move by up to 2e and the deviation by
    up to e · √(n / (n − 1)), so z moves by up to (2 + √2 · |z|) · e / s', s' being the deviation afterwards.
    """
    values = raw[~raw.isnan()].double()
    if values.numel() < 2:
        return 0.0  # one value is 0 before and after
    deviation = float(values.std()) - 2**0.5 * error
    if deviation <= 1e-6 * (largest(values) + error):
        return float("inf")  # the map may as well be flat, which is 0 everywhere
    reach = float(functional.z_score(values).abs().max())
    return (2 + 2**0.5 * reach) * error / deviation


def normalised_error(audio: Tensor, token: Tensor, errors: tuple[float, float]) -> float:
    """Return how far the normalised maps of one token can move if its raw maps move by up to ``errors``.

    u = (z − low) / (high − low) moves by up to 2d / R', if the z-scores move by up to d and R' is their joint range
    afterwards. Never more than 1, since both maps lie in [0, 1].

    Args:
        audio: (T, C) raw map of the spectrogram.
        token: (J,) raw map of the decoder inputs; NaN where not yet generated.
        errors: How far the raw maps move.
    """
    moved = max(z_error(audio, errors[0]), z_error(token, errors[1]))
    valid = ~token.isnan()
    both = torch.cat([functional.z_score(audio).flatten(), functional.z_score(token[valid])])
    span = float(both.max() - both.min()) - 2 * moved
    return min(1.0, 2 * moved / span) if span > 0 else 1.0


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference; where only one of the two is NaN, infinity."""
    assert found.shape == expected.shape
    if not torch.equal(found.isnan(), expected.isnan()):
        return float("inf")
    return largest(found - expected)


def assert_raw_maps_agree(found: Tensor, expected: Tensor, share: float = EQ_3) -> None:
    """Check two raw maps token by token, (K, …)."""
    for k, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert difference(one, other) <= raw_error(other, share), f"raw map of token {k}"


def assert_sentences_agree(found: Explanation, expected: Explanation) -> None:
    """Check the maps of the sentence: a map of its own within its `raw_error`, a mean of maps within theirs."""
    if expected.sentence_map is None:
        bounds = _bounds(expected)
        allowed = sum(bounds) / len(bounds)
    else:
        one, other = found.sentence_map.dense(0), expected.sentence_map.dense(0)
        error, span = raw_error(other, GRADIENT), float(other.max() - other.min())
        assert difference(one, other) <= error, "raw map of the sentence"
        allowed = min(1.0, 2 * error / (span - 2 * error)) if span > 2 * error else 1.0
    assert difference(found.sentence_saliency, expected.sentence_saliency) <= allowed + 1e-6, "map of the sentence"


def assert_explanations_agree(found: Explanation, expected: Explanation) -> None:
    """Check that two runs with the same masks say the same, as far as rounding lets them."""
    assert found.token_ids == expected.token_ids
    assert torch.equal(found.audio_map.labels, expected.audio_map.labels)
    for one, other in zip(found.audio_map.weights or (), expected.audio_map.weights or (), strict=True):
        assert torch.equal(one, other), "masks"  # how often each patch was hidden: the masks, summed up
    assert_raw_maps_agree(found.raw_audio, expected.raw_audio, _share(expected))
    assert_raw_maps_agree(found.raw_token, expected.raw_token)
    for k, bound in enumerate(_bounds(expected)):
        allowed = bound + 1e-6  # the maps themselves are rounded to float32
        assert difference(found.audio_saliency[k], expected.audio_saliency[k]) <= allowed, f"map of token {k}"
        assert difference(found.token_saliency[k], expected.token_saliency[k]) <= allowed, f"token map of token {k}"
    assert_sentences_agree(found, expected)
    for name in ("sound_bits", "text_bits"):
        assert difference(getattr(found, name), getattr(expected, name)) <= 1e-4, name
    one, other = (torch.tensor([e.reliability.sentence]) for e in (found, expected))
    assert difference(one, other) <= 2 * GRADIENT, "reliability"


def _share(explanation: Explanation) -> float:
    """Return the share for the raw maps of the spectrogram; a map of the sentence's own comes from gradients."""
    return EQ_3 if explanation.sentence_map is None else GRADIENT


def _bounds(explanation: Explanation) -> list[float]:
    """Return the `normalised_error` of every token."""
    return [
        normalised_error(audio, token, (raw_error(audio, _share(explanation)), raw_error(token)))
        for audio, token in zip(explanation.raw_audio, explanation.raw_token, strict=True)
    ]

"""The paper on one page: Eq. 2, KL divergence, Eq. 3, the two normalisations, deletion order, size curve, AUC.

Pure tensor functions. Symbols, here and everywhere in the package:

=======  ==================================================================
N        number of masks
F        number of units (what one mask bit switches: a patch, a feature, a token)
K        number of explained tokens
J        number of decoder inputs (start and prompt tokens, then y_1 … y_{K-1})
T, C     frames and mel bins of the spectrogram
V        size of the vocabulary
=======  ==================================================================

Masks: 1 = keep, 0 = perturb. Section and equation numbers are those of the SPES paper (Fucci et al., 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spes_hf.finite import allowed


def num_patches(duration_s: float, patches_per_second: float, max_duration_s: float | None = None) -> int:
    """Return the number of patches k to ask for (Eq. 2): ``min(len, τ) · φ``, rounded, at least 1.

    Args:
        duration_s: Length of the input, in seconds.
        patches_per_second: φ.
        max_duration_s: τ, in seconds, above which k stops growing; None for no limit.

    Examples:
        >>> num_patches(3.0, 400.0), num_patches(30.0, 400.0, max_duration_s=7.5)
        (1200, 3000)
    """
    seconds = duration_s if max_duration_s is None else min(duration_s, max_duration_s)
    return max(1, round(seconds * patches_per_second))


def kl_divergence(reference_logits: Tensor, perturbed_logits: Tensor) -> Tensor:
    """Return KL(p ‖ q) = Σ_v p_v · log(p_v / q_v) in nats (§4.2), p from the clean input and q from the perturbed one.

    Computed in float32 from log-softmax, whatever the dtype of the logits, so it stays finite where a probability
    underflows. Where p_v is exactly 0, the term is 0. A logit of -inf (a suppressed token) counts as 100 below the
    highest: it has no weight in p, and causes no infinite divergence in q.

    Args:
        reference_logits: (…, V), from the clean input; broadcast against ``perturbed_logits``.
        perturbed_logits: (…, V), from the perturbed input.

    Returns:
        (…) float32, at least 0; NaN where the logits are not a distribution.

    Examples:
        >>> fair, loaded = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
        >>> round(float(kl_divergence(fair, loaded)), 3), float(kl_divergence(fair, fair))
        (0.511, 0.0)
    """
    log_p = allowed(reference_logits).float().log_softmax(-1)
    log_q = allowed(perturbed_logits).float().log_softmax(-1)
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1).clamp_min(0.0)


def token_probabilities(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return the probability of each token, (…, K) float32.

    Args:
        logits: (…, K, V).
        token_ids: (K,).

    Examples:
        >>> logits = torch.tensor([[0.7, 0.3], [0.2, 0.8]]).log()
        >>> token_probabilities(logits, torch.tensor([0, 1]))
        tensor([0.7000, 0.8000])
    """
    return _token_log_probabilities(logits, token_ids).exp().float()


def evidence_bits(reference_logits: Tensor, other_logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return log2 p(y_k) − log2 q(y_k): how much likelier a token is under the first logits, in bits.

    3 bits: 8 times likelier; below 0: less likely. If q comes from a run without sound, these are the sound's bits; if
    it comes from a run without the written text, they are the text's. Bits of a word's tokens add up. Not from the
    paper.

    Args:
        reference_logits: (…, K, V), from the clean input.
        other_logits: (…, K, V), from the input without the source of evidence.
        token_ids: (K,) explained tokens.

    Returns:
        (…, K) float32; NaN where the logits are not a distribution.

    Examples:
        >>> with_sound, without = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.1, 0.9]]).log()
        >>> evidence_bits(with_sound, without, torch.tensor([0]))  # 8 times as likely
        tensor([3.])
    """
    nats = _token_log_probabilities(reference_logits, token_ids) - _token_log_probabilities(other_logits, token_ids)
    return (nats / math.log(2)).float()


def _token_log_probabilities(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return log p of each token, (…, K), in float32; sums over the vocabulary use the logits' precision or higher."""
    log_p = allowed(logits).float().log_softmax(-1)
    return log_p.gather(-1, token_ids.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def probability_difference(reference_logits: Tensor, perturbed_logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return p(y_k) − q(y_k), the drop in the explained token's probability (the paper's "− KL" ablation, §7.2).

    Args:
        reference_logits: (…, K, V), from the clean input; broadcast against ``perturbed_logits``.
        perturbed_logits: (…, K, V), from the perturbed input.
        token_ids: (K,) ids of the explained tokens.

    Returns:
        (…, K) float32 in [-1, 1].

    Examples:
        >>> clean, perturbed = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> probability_difference(clean, perturbed, torch.tensor([0]))
        tensor([0.5000])
    """

    def probability(logits: Tensor) -> Tensor:
        index = token_ids.expand(logits.shape[:-1]).unsqueeze(-1)
        return logits.float().log_softmax(-1).gather(-1, index).squeeze(-1).exp()

    return probability(reference_logits) - probability(perturbed_logits)


def saliency(keep: Tensor, impact: Tensor) -> Tensor:
    """Return S = Σ_i r_i (1 − M_i) / Σ_i (1 − M_i) (Eq. 3); 0 where a unit was never perturbed.

    Args:
        keep: (N, F) masks M; 1 = keep, 0 = perturb. Fractions count as partly perturbed.
        impact: (N, K) impacts r.

    Returns:
        (K, F) in the dtype of ``impact``.

    Examples:
        >>> keep = torch.tensor([[0, 1, 1], [1, 0, 1]])  # the third unit is never perturbed
        >>> saliency(keep, torch.tensor([[4.0], [1.0]]))
        tensor([[4., 1., 0.]])
    """
    perturbed = 1 - keep.to(impact.dtype)
    with torch.autocast(impact.device.type, enabled=False):
        return ratio(impact.T @ perturbed, perturbed.sum(0))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return numerator / denominator, 0 where the denominator is 0 (a feature that was never perturbed); NaN stays.

    Examples:
        >>> ratio(torch.tensor([3.0, 3.0]), torch.tensor([2.0, 0.0]))
        tensor([1.5000, 0.0000])
    """
    quotient = numerator / denominator.clamp_min(torch.finfo(denominator.dtype).tiny)
    return torch.where(denominator <= 0, 0.0, quotient)


def z_score(values: Tensor, counts: Tensor | None = None) -> Tensor:
    """Return values minus their mean, over their sample standard deviation (n − 1), in float64.

    A single value becomes 0, and so do constant values: those that differ by less than float32 resolves, 1e-6 of the
    largest.

    Args:
        values: Of any shape.
        counts: How often each value occurs, of the same shape; None: once.

    Examples:
        >>> z_score(torch.tensor([1.0, 2.0, 3.0])).tolist(), z_score(torch.tensor([5.0, 5.0])).tolist()
        ([-1.0, 0.0, 1.0], [0.0, 0.0])
    """
    centred, deviation = _centred(values.double(), counts)
    return torch.zeros_like(centred) if deviation is None else centred / deviation


def scaled(values: Tensor) -> Tensor:
    """Return values over their sample standard deviation, in float64, uncentred; 0 where values are constant.

    Examples:
        >>> scaled(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [1.0, 2.0, 3.0]
    """
    deviation = _centred(values.double())[1]
    return torch.zeros_like(values.double()) if deviation is None else values.double() / deviation


def _centred(values: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return float64 values minus their mean, and their sample standard deviation; None if they are constant."""
    number = values.numel() if counts is None else int(counts.sum())
    if not number:
        return values, None
    centred = values - (values.mean() if counts is None else (values * counts).sum() / number)
    squares = centred.square() if counts is None else centred.square() * counts
    deviation = squares.sum().div(max(1, number - 1)).sqrt()
    constant = number < 2 or bool(deviation <= 1e-6 * values.abs().max())
    return centred, None if constant else deviation


def standardize(audio: Tensor, token: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the z-scores of both maps of every token, each map on its own (§4.3, first step).

    Args:
        audio: (K, T, C) raw saliency of the spectrogram.
        token: (K, J) raw saliency of the decoder inputs.
        valid: (K, J) bool, true where decoder input j comes before token k.

    Returns:
        (K, T, C) and (K, J); NaN where not valid.

    Examples:
        >>> audio, token = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[10.0, 20.0, 30.0, 99.0]])
        >>> valid = torch.tensor([[True, True, True, False]])
        >>> standardize(audio, token, valid)[1]
        tensor([[-1.,  0.,  1., nan]])
    """
    audio_z = torch.empty_like(audio)
    token_z = torch.full_like(token, torch.nan)
    for k in range(len(audio)):
        audio_z[k] = z_score(audio[k])
        token_z[k, valid[k]] = z_score(token[k, valid[k]]).to(token.dtype)
    return audio_z, token_z


def paired_min_max(audio: Tensor, token: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps of every token scaled to [0, 1] by their joint minimum and maximum (§4.3, second step).

    If the joint range is 0, both maps become 0.

    Args:
        audio: (K, T, C).
        token: (K, J).
        valid: (K, J) bool, true where decoder input j comes before token k.

    Returns:
        (K, T, C) and (K, J); NaN where not valid.

    Examples:
        >>> audio, token = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[4.0]])
        >>> paired_min_max(audio, token, torch.tensor([[True]]))
        (tensor([[[0.0000, 0.2500]]]), tensor([[1.]]))
    """
    low = token.masked_fill(~valid, torch.inf).amin(1) if token.shape[1] else audio.new_full((len(audio),), torch.inf)
    high = token.masked_fill(~valid, -torch.inf).amax(1) if token.shape[1] else -low
    low = torch.minimum(low, audio.flatten(1).amin(1))
    span = torch.maximum(high, audio.flatten(1).amax(1)) - low

    def scale(values: Tensor, low: Tensor, span: Tensor) -> Tensor:
        return ratio(values - low, span).clamp(0, 1)  # NaN stays NaN

    audio = scale(audio, low[:, None, None], span[:, None, None])
    return audio, scale(token, low[:, None], span[:, None]).masked_fill(~valid, torch.nan)


def deletion_masks(saliency: Tensor, fractions: Sequence[float]) -> Tensor:
    """Return masks that delete the most salient features first (§5).

    For a fraction s, the first ⌊T·C·s⌋ features are perturbed. Ties are ordered by time, then by frequency, so the
    order is the same on every machine.

    Args:
        saliency: (T, C).
        fractions: S fractions of the features to perturb, each in [0, 1].

    Returns:
        (S, T, C) bool; True = keep.

    Raises:
        ValueError: If a fraction is outside [0, 1].

    Examples:
        >>> deletion_masks(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), [0.25, 0.5]).int()
        tensor([[[1, 0],
                 [1, 1]],
        <BLANKLINE>
                [[1, 0],
                 [0, 1]]], dtype=torch.int32)
    """
    outside = [s for s in fractions if not 0 <= s <= 1]
    if outside:
        raise ValueError(f"fractions must lie in [0, 1], got {outside}; 5 % is 0.05")
    order = saliency.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), dtype=torch.int64, device=order.device)
    # 1e-9: 0.05 · 60 is 3.0000000000000004 on one path and 2.9999999999999996 on another.
    taken = [int(s * rank.numel() + 1e-9) for s in fractions]
    counts = torch.tensor(taken, dtype=torch.int64, device=rank.device)
    return (rank >= counts[:, None]).unflatten(1, saliency.shape)


def size_curve(maps: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return the percentage of values ≥ t for every threshold t (§5, *size*).

    Args:
        maps: (K, …) normalised saliency in [0, 1]; NaN (not yet generated) is left out.
        thresholds: S thresholds.

    Returns:
        (S,) float64 in [0, 100].

    Raises:
        ValueError: If the maps hold no value at all.

    Examples:
        >>> size_curve(torch.tensor([0.1, 0.5, 0.9, torch.nan]), [0.0, 0.5, 0.95]).round(decimals=1).tolist()
        [100.0, 66.7, 0.0]
    """
    values = maps[~maps.isnan()]
    if not values.numel():
        raise ValueError("maps holds no value: it is empty, or every entry is NaN")
    return torch.stack([(values >= t).double().mean() * 100 for t in thresholds])


def area_under_curve(y: Tensor | Sequence[float], x: Tensor | Sequence[float]) -> float:
    """Return the area under y(x) by the trapezoidal rule.

    Args:
        y: (S,) ordinates; scores in 0–100 with x in [0, 1] give an area in 0–100.
        x: (S,) abscissae, increasing.

    Raises:
        ValueError: If the two differ in length, there are fewer than two points, or x is not increasing.

    Examples:
        >>> area_under_curve([100.0, 50.0, 0.0], [0.0, 0.5, 1.0])
        50.0
    """
    ordinates, abscissae = (torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in (y, x))
    if ordinates.shape != abscissae.shape or ordinates.ndim != 1 or len(ordinates) < 2:
        raise ValueError(
            f"y and x must have the same length, at least 2; got {tuple(ordinates.shape)} and {tuple(abscissae.shape)}"
        )
    if bool((abscissae.diff() <= 0).any()):
        raise ValueError(f"x must be increasing; got {abscissae.tolist()}")
    return float(torch.trapezoid(ordinates, abscissae))

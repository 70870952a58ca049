"""How far a perturbation moves the model's distribution: KL divergence, fall of probability, contrast (§4.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from spes_hf.errors import ConfigError
from spes_hf.finite import allowed, check_logits, not_finite

# Logits handled at once, so that nothing else of the size of all of them is made. On a CPU they stay in its
# cache; an accelerator wants fewer, larger steps.
_BLOCK, _SHARE = 2**17, 16

# The least log-probability: that of a token that is suppressed.
_LEAST = -100.0

# e to this power is far from the ends of float32.
_SAFE = 40.0


class Impact(ABC):
    """Measures the impact r of perturbations on the distribution of each explained token.

    Logits of -inf are those of suppressed tokens, which have no part in it.

    Args:
        reference_logits: (K, V), from the clean input.
        token_ids: (K,) explained tokens.
        dtype: What the model computes in, for errors; None: the type of the logits.

    Raises:
        NumericsError: If the logits are no distribution.
    """

    def __init__(self, reference_logits: Tensor, token_ids: Tensor, dtype: torch.dtype | None = None):
        self.dtype = reference_logits.dtype if dtype is None else dtype
        check_logits(reference_logits, "clean logits", self.dtype)
        self.reference_logits = allowed(reference_logits).float()
        self.token_ids = token_ids
        self.calls = 0
        self.sum = torch.zeros((), dtype=torch.float32, device=reference_logits.device)

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the impacts, (B, K) float32, of the perturbations that led to these logits, (B, K, V).

        Raises:
            NumericsError: If the logits are no distribution. An accelerator, which would have to wait for the answer,
                is asked after 1, 2, 4, 8, … calls; what comes after the last is seen in the sums.
        """
        impact = self.measure(logits)
        self.calls += 1
        self.sum += impact.detach().sum()
        if (impact.device.type == "cpu" or self.calls & (self.calls - 1) == 0) and not bool(self.sum.isfinite()):
            raise not_finite("logits under masks", self.dtype)
        return impact

    @abstractmethod
    def measure(self, logits: Tensor) -> Tensor:
        """Return the impacts, (B, K) float32; NaN where the logits, (B, K, V), are no distribution."""


class KLImpact(Impact):
    """KL(p ‖ q) in nats, as `functional.kl_divergence`, without a second tensor of the logits' size (§4.2).

    With W the clean and Z the perturbed logits, KL = Σ_v p_v (W_v − Z_v) + log Σ_v exp(Z_v − c) − log Σ_v exp(W_v − c)
    for any c. The last term is worked out once, in float64. With c = log Σ_v exp(W_v) both logarithms are near 0 where
    Z is near W: small divergences keep their digits, since nothing of the size of the logits cancels.
    """

    def __init__(self, reference_logits: Tensor, token_ids: Tensor, dtype: torch.dtype | None = None):
        super().__init__(reference_logits, token_ids, dtype)
        p, normaliser, rest = zip(*map(self._clean, self.reference_logits), strict=True)
        self.p = torch.stack(p)  # (K, V)
        self.normaliser = torch.stack(normaliser)  # (K, 1): c
        self.rest = torch.stack(rest)  # (K,): log Σ exp(W − c), which only rounding keeps from 0

    @staticmethod
    def _clean(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return p, c and log Σ exp(W − c) of one token's clean logits, (V,)."""
        exact = logits.cpu().double()
        normaliser = exact.logsumexp(-1, keepdim=True).float()
        # Rounded as the perturbed ones will be.
        rest = (logits.cpu() - normaliser).double().exp().sum().log().float()
        return exact.softmax(-1).float().to(logits.device), normaliser.to(logits.device), rest.to(logits.device)

    def measure(self, logits: Tensor) -> Tensor:
        """Return the divergences, (B, K) float32."""
        batch, tokens, vocabulary = logits.shape
        block = _BLOCK if logits.device.type == "cpu" else max(_BLOCK, logits.numel() // _SHARE)
        width = min(tokens, max(1, block // vocabulary))
        height = max(1, block // (width * vocabulary))
        columns = []
        for k in range(0, tokens, width):
            some = slice(k, k + width)
            rows = [self._divergence(logits[i : i + height, some], some) for i in range(0, batch, height)]
            columns.append(torch.cat(rows))
        return (torch.cat(columns, dim=1) - self.rest).clamp_min(0.0)

    def _divergence(self, logits: Tensor, tokens: slice) -> Tensor:
        """Return the first two terms for some rows and tokens, (b, k), of logits (b, k, V)."""
        c, top = self.normaliser[tokens], logits.detach().amax(-1, keepdim=True).float()
        # In float32 from here on, once: the gradient q − p of near certain tokens is the difference of two numbers near
        # each other, which autograd would round to the logits' type first, and add then.
        logits = allowed(logits.float(), top)
        # A sum, not a dot product: BLAS adds the vocabulary up in one go and loses three digits.
        moved = ((self.reference_logits[tokens] - logits) * self.p[tokens]).sum(-1)
        c = torch.where((top - c).abs() < _SAFE, c, top)  # any c is right; not every one is finite
        return moved + (logits - c).exp().sum(-1).log() + (c - self.normaliser[tokens]).squeeze(-1)


class ProbabilityImpact(Impact):
    """p(y_k) − q(y_k), as `functional.probability_difference`: the paper's "− KL" ablation (§7.2)."""

    def __init__(self, reference_logits: Tensor, token_ids: Tensor, dtype: torch.dtype | None = None):
        super().__init__(reference_logits, token_ids, dtype)
        self.reference_probability = self._probability(self.reference_logits[None])

    def _probability(self, logits: Tensor) -> Tensor:
        found = []
        for k in range(logits.shape[1]):
            column = logits[:, k].float()  # once, as in `KLImpact`
            normaliser = column.logsumexp(-1)
            chosen = column[:, self.token_ids[k]]
            found.append(torch.where(normaliser.isfinite(), self._of(chosen, normaliser), torch.nan))
        return torch.stack(found, dim=1)

    def _of(self, chosen: Tensor, normaliser: Tensor) -> Tensor:
        """Return what is compared, from the token's logits and log Σ exp of all."""
        return (chosen - normaliser).exp()

    def measure(self, logits: Tensor) -> Tensor:
        """Return the falls in probability, (B, K) float32."""
        return self.reference_probability - self._probability(logits)


class LogProbabilityImpact(ProbabilityImpact):
    """log p(y_k) − log q(y_k), the fall of the token's log-probability, in nats. Not from the paper.

    It depends on the token, also on one that the model would not write: what made it likelier counts for it.
    """

    def _of(self, chosen: Tensor, normaliser: Tensor) -> Tensor:
        return (chosen - normaliser).clamp_min(_LEAST)


class ContrastiveImpact(Impact):
    """Fall of log p(y_k) − log p(foil), the foil being the likeliest other token of the clean run, in nats."""

    def __init__(self, reference_logits: Tensor, token_ids: Tensor, dtype: torch.dtype | None = None):
        super().__init__(reference_logits, token_ids, dtype)
        others = self.reference_logits.scatter(-1, token_ids[:, None], float("-inf"))
        self.foil_ids = others.argmax(-1)
        self.reference_margin = self._margin(self.reference_logits[None])

    def _margin(self, logits: Tensor) -> Tensor:
        target = logits.gather(-1, self.token_ids.expand(logits.shape[:-1])[..., None])
        foil = logits.gather(-1, self.foil_ids.expand(logits.shape[:-1])[..., None])
        # What is suppressed has a margin all the same; what is no distribution has none.
        top = logits.detach().amax(-1, keepdim=True)
        target, foil = allowed(torch.cat([target, top], dim=-1)), allowed(torch.cat([foil, top], dim=-1))
        margin = target[..., 0].float() - foil[..., 0].float()
        return torch.where(top.squeeze(-1).isfinite(), margin, torch.nan)

    def measure(self, logits: Tensor) -> Tensor:
        """Return the falls of the margin, (B, K) float32."""
        return self.reference_margin - self._margin(logits)


IMPACTS: dict[str, type[Impact]] = {
    "kl": KLImpact,
    "log-probability": LogProbabilityImpact,
    "probability": ProbabilityImpact,
    "contrastive": ContrastiveImpact,
}


def make_impact(name: str, reference_logits: Tensor, token_ids: Tensor, dtype: torch.dtype | None = None) -> Impact:
    """Return the impact measure of that name.

    Raises:
        ConfigError: If there is none.
        NumericsError: If the logits are no distribution.
    """
    if name not in IMPACTS:
        raise ConfigError(f"impact is {name!r}; allowed: {', '.join(IMPACTS)}")
    return IMPACTS[name](reference_logits, token_ids, dtype)

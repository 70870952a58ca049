"""How far a perturbation moves the model's distribution: KL divergence, drop of probability, contrast (§4.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from spes_hf.errors import ConfigError
from spes_hf.finite import allowed, check_finite, check_logits, is_checked

# Number of logits processed at once, which avoids another tensor of the size of all logits. On a CPU they fit in the
# cache; an accelerator needs fewer, larger steps.
_BLOCK, _SHARE = 2**17, 16

# Lowest log-probability, used for suppressed tokens.
_LEAST = -100.0

# e to this power is well within the range of float32.
_SAFE = 40.0


class Impact(ABC):
    """Measures the impact r of perturbations on the distribution of each explained token.

    Logits of -inf belong to suppressed tokens, which are ignored.

    Args:
        reference_logits: (K, V), from the clean input.
        token_ids: (K,) explained tokens.
        dtype: The model's dtype, for error messages; None: the dtype of the logits.

    Raises:
        NumericsError: If the logits do not form a distribution.
    """

    def __init__(self, reference_logits: Tensor, token_ids: Tensor, dtype: torch.dtype | None = None):
        self.dtype = reference_logits.dtype if dtype is None else dtype
        check_logits(reference_logits, "clean logits", self.dtype)
        self.reference_logits = allowed(reference_logits).float()
        self.token_ids, self._ids = token_ids, token_ids.tolist()
        self.calls = 0
        self.sum = torch.zeros((), dtype=torch.float32, device=reference_logits.device)

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the impacts, (B, K) float32, of the perturbations that led to these logits, (B, K, V).

        Raises:
            NumericsError: If the logits do not form a distribution. On an accelerator, where the check has to wait for
                the device, it runs only after 1, 2, 4, 8, … calls; later errors show up in the sums.
        """
        impact = self.measure(logits)
        self.calls += 1
        self.sum += impact.detach().sum()
        if is_checked(self.calls, impact.device):
            check_finite([self.sum], "logits under masks", self.dtype)
        return impact

    @abstractmethod
    def measure(self, logits: Tensor) -> Tensor:
        """Return the impacts, (B, K) float32; NaN where the logits, (B, K, V), do not form a distribution."""


class KLImpact(Impact):
    """KL(p ‖ q) in nats, as `functional.kl_divergence`, without a second tensor of the logits' size (§4.2).

    With W the clean and Z the perturbed logits, KL = Σ_v p_v (W_v − Z_v) + log Σ_v exp(Z_v − c) − log Σ_v exp(W_v − c)
    for any c. The last term is computed once, in float64. With c = log Σ_v exp(W_v), both logarithms are near 0 where
    Z is near W, so small divergences keep their precision: no numbers as large as the logits cancel.
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
        # Rounded in the same way as the perturbed logits will be.
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
        # Convert to float32 once, here: for almost certain tokens, the gradient q − p is the difference of two close
        # numbers, and autograd would otherwise round each to the logits' dtype before adding them.
        logits = allowed(logits.float(), top)
        # A sum, not a dot product: BLAS adds up the vocabulary in one run and loses three digits.
        moved = ((self.reference_logits[tokens] - logits) * self.p[tokens]).sum(-1)
        c = torch.where((top - c).abs() < _SAFE, c, top)  # any c is correct, but not every c keeps the sum finite
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
            chosen = column[:, self._ids[k]]
            found.append(torch.where(normaliser.isfinite(), self._of(chosen, normaliser), torch.nan))
        return torch.stack(found, dim=1)

    def _of(self, chosen: Tensor, normaliser: Tensor) -> Tensor:
        """Return the value to compare, from the token's logits and log Σ exp of all logits."""
        return (chosen - normaliser).exp()

    def measure(self, logits: Tensor) -> Tensor:
        """Return the drops in probability, (B, K) float32."""
        return self.reference_probability - self._probability(logits)


class LogProbabilityImpact(ProbabilityImpact):
    """log p(y_k) − log q(y_k), the drop of the token's log-probability, in nats. Not from the paper.

    Unlike KL, it depends on the token, even one that the model would not write: input that makes it likelier counts in
    its favour.
    """

    def _of(self, chosen: Tensor, normaliser: Tensor) -> Tensor:
        return (chosen - normaliser).clamp_min(_LEAST)


class ContrastiveImpact(Impact):
    """Drop of log p(y_k) − log p(foil), in nats; the foil is the likeliest other token in the clean run."""

    def __init__(self, reference_logits: Tensor, token_ids: Tensor, dtype: torch.dtype | None = None):
        super().__init__(reference_logits, token_ids, dtype)
        others = self.reference_logits.scatter(-1, token_ids[:, None], float("-inf"))
        self.foil_ids = others.argmax(-1)
        self.reference_margin = self._margin(self.reference_logits[None])

    def _margin(self, logits: Tensor) -> Tensor:
        target = logits.gather(-1, self.token_ids.expand(logits.shape[:-1])[..., None])
        foil = logits.gather(-1, self.foil_ids.expand(logits.shape[:-1])[..., None])
        # Suppressed tokens still have a margin; logits that do not form a distribution have none.
        top = logits.detach().amax(-1, keepdim=True)
        target, foil = allowed(torch.cat([target, top], dim=-1)), allowed(torch.cat([foil, top], dim=-1))
        margin = target[..., 0].float() - foil[..., 0].float()
        return torch.where(top.squeeze(-1).isfinite(), margin, torch.nan)

    def measure(self, logits: Tensor) -> Tensor:
        """Return the drops of the margin, (B, K) float32."""
        return self.reference_margin - self._margin(logits)


IMPACTS: dict[str, type[Impact]] = {
    "kl": KLImpact,
    "log-probability": LogProbabilityImpact,
    "probability": ProbabilityImpact,
    "contrastive": ContrastiveImpact,
}


def make_impact(name: str, reference_logits: Tensor, token_ids: Tensor, dtype: torch.dtype | None = None) -> Impact:
    """Return the impact measure with this name.

    Raises:
        ConfigError: If there is no such measure.
        NumericsError: If the logits do not form a distribution.
    """
    if name not in IMPACTS:
        raise ConfigError(f"impact is {name!r}; allowed: {', '.join(IMPACTS)}")
    return IMPACTS[name](reference_logits, token_ids, dtype)

"""How far a perturbation moves the model's distribution: KL divergence, fall of probability, contrast (§4.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from spes_hf.errors import ConfigError

# Rows of the vocabulary handled at once, so that nothing of the size of the logits is made beside them.
_ROWS = 64


class Impact(ABC):
    """Measures the impact r of perturbations on the distribution of each explained token.

    Args:
        reference_logits: (K, V), from the clean input.
        token_ids: (K,) explained tokens.
    """

    def __init__(self, reference_logits: Tensor, token_ids: Tensor):
        self.reference_logits = reference_logits.float()
        self.token_ids = token_ids

    @abstractmethod
    def __call__(self, logits: Tensor) -> Tensor:
        """Return the impacts, (B, K) float32, of the perturbations that led to these logits, (B, K, V)."""


class KLImpact(Impact):
    """KL(p ‖ q) in nats, as `functional.kl_divergence`, without a second tensor of the logits' size (§4.2).

    With d = clean logits − perturbed logits, KL = Σ_v p_v d_v + log Σ_v p_v exp(−d_v). Small divergences keep their
    digits, since nothing of the size of the logits themselves cancels.
    """

    def __init__(self, reference_logits: Tensor, token_ids: Tensor):
        super().__init__(reference_logits, token_ids)
        self.log_p = self.reference_logits.log_softmax(-1)
        self.p = self.log_p.exp()

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the divergences, (B, K) float32."""
        batch, tokens, _ = logits.shape
        divergence = logits.new_empty((batch, tokens), dtype=torch.float32)
        for k in range(tokens):
            for start in range(0, batch, _ROWS):
                rows = slice(start, start + _ROWS)
                d = self.reference_logits[k] - logits[rows, k]
                # A sum, not a dot product: BLAS adds the vocabulary up in one go and loses three digits.
                divergence[rows, k] = (d * self.p[k]).sum(-1) + (self.log_p[k] - d).logsumexp(-1)
        return divergence.clamp_min_(0.0)


class ProbabilityImpact(Impact):
    """p(y_k) − q(y_k), as `functional.probability_difference`: the paper's "− KL" ablation (§7.2)."""

    def __init__(self, reference_logits: Tensor, token_ids: Tensor):
        super().__init__(reference_logits, token_ids)
        self.reference_probability = self._probability(self.reference_logits[None])

    def _probability(self, logits: Tensor) -> Tensor:
        chosen = logits.gather(-1, self.token_ids.expand(logits.shape[:-1])[..., None]).squeeze(-1).float()
        normaliser = [logits[:, k].float().logsumexp(-1) for k in range(logits.shape[1])]
        return (chosen - torch.stack(normaliser, dim=1)).exp()

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the falls in probability, (B, K) float32."""
        return self.reference_probability - self._probability(logits)


class ContrastiveImpact(Impact):
    """Fall of log p(y_k) − log p(foil), the foil being the likeliest other token of the clean run, in nats."""

    def __init__(self, reference_logits: Tensor, token_ids: Tensor):
        super().__init__(reference_logits, token_ids)
        others = self.reference_logits.scatter(-1, token_ids[:, None], float("-inf"))
        self.foil_ids = others.argmax(-1)
        self.reference_margin = self._margin(self.reference_logits[None])

    def _margin(self, logits: Tensor) -> Tensor:
        target = logits.gather(-1, self.token_ids.expand(logits.shape[:-1])[..., None])
        foil = logits.gather(-1, self.foil_ids.expand(logits.shape[:-1])[..., None])
        return (target.float() - foil.float()).squeeze(-1)

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the falls of the margin, (B, K) float32."""
        return self.reference_margin - self._margin(logits)


_IMPACTS: dict[str, type[Impact]] = {
    "kl": KLImpact,
    "probability": ProbabilityImpact,
    "contrastive": ContrastiveImpact,
}


def make_impact(name: str, reference_logits: Tensor, token_ids: Tensor) -> Impact:
    """Return the impact measure of that name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in _IMPACTS:
        raise ConfigError(f"impact is {name!r}; allowed: {', '.join(_IMPACTS)}")
    return _IMPACTS[name](reference_logits, token_ids)

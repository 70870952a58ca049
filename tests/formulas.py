"""What the impacts are, as formulas: the engine is compared with them."""

from __future__ import annotations

# Impacts as formulas of the clean and the perturbed log-probabilities, (K, V), of the tokens and of their rivals.
FORMULAS = {
    "kl": lambda p, q, token, rival: (p.exp() * (p - q)).sum(-1),
    "probability": lambda p, q, token, rival: (p.gather(1, token).exp() - q.gather(1, token).exp()).squeeze(1),
    "contrastive": lambda p, q, token, rival: (
        (p.gather(1, token) - p.gather(1, rival)) - (q.gather(1, token) - q.gather(1, rival))
    ).squeeze(1),
}

"""Checks that turn NaN and infinities into an error, so that they never reach a map."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from spes_hf.errors import NumericsError

# A logit of -inf (a suppressed token) counts as this far below the highest: a probability of 4e-44.
_LOWEST = 100.0

_REMEDIES = {
    torch.float16: "whose largest number is 65,504; load the model with dtype=torch.float32 or torch.bfloat16, or "
    'leave out autocast="float16"',
    torch.bfloat16: "which has 3 digits; load the model with dtype=torch.float32, and check its weights",
}
_OTHER = "so its weights may be damaged; load them again, and check parameter.isfinite().all() for each"


def not_finite(what: str, dtype: torch.dtype) -> NumericsError:
    """Return the error for numbers that are NaN or infinite; it names the model's type and the remedy.

    Args:
        what: Which numbers.
        dtype: The type that the model computes in.
    """
    name = str(dtype).removeprefix("torch.")
    return NumericsError(
        f"{what} of the model are NaN or infinite; it computes in {name}, {_REMEDIES.get(dtype, _OTHER)}"
    )


def check_finite(values: Iterable[Tensor], what: str, dtype: torch.dtype) -> None:
    """Raise an error if tensors hold NaN or infinities.

    Raises:
        NumericsError: Naming the type and the remedy.
    """
    if not all(bool(v.isfinite().all()) for v in values):
        raise not_finite(what, dtype)


def is_checked(calls: int, device: torch.device) -> bool:
    """Return whether to check the numbers of this call, 1, 2, 3, …: on an accelerator after 1, 2, 4, 8, … calls.

    There, a check waits until the device has done all that was asked of it before.
    """
    return device.type == "cpu" or calls & (calls - 1) == 0


def check_logits(logits: Tensor, what: str, dtype: torch.dtype) -> None:
    """Raise an error if logits, (…, V), are not a distribution: NaN or +inf anywhere, or nothing but -inf.

    Raises:
        NumericsError: Naming the type and the remedy.
    """
    check_finite([logits.detach().amax(-1)], what, dtype)


def allowed(logits: Tensor, top: Tensor | None = None) -> Tensor:
    """Return logits, (…, V), with finite numbers instead of -inf; invalid distributions stay invalid.

    Suppressed tokens have logits of -inf. Their probability is 0 before and after, and 0 · (−inf) would be NaN.

    Args:
        logits: (…, V).
        top: (…, 1) float32, the highest logit of each distribution, if known.
    """
    if top is None:
        top = logits.detach().amax(-1, keepdim=True).float()
    return torch.where(logits == -torch.inf, top - _LOWEST, logits)

"""The global state of torch, set aside: results do not depend on what the user switched on around the call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from spes_hf.runtime.locks import float32_by_default


@contextmanager
def plain_torch(devices: Iterable[torch.device]) -> Iterator[None]:
    """Compute as torch does out of the box; afterwards all is as it was.

    Inference mode and autocast are off, new tensors are float32 on the CPU unless they say otherwise. What processors
    and models make inside transformers depends on that.

    Args:
        devices: Where the model computes, besides the CPU.
    """
    with ExitStack() as stack:
        # What inference mode makes takes no part in a backward pass, whatever mode the user is in.
        stack.enter_context(torch.inference_mode(False))
        for kind in {"cpu", *(device.type for device in devices)}:
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(float32_by_default())
        yield

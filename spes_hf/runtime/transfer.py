"""Copies to a CUDA GPU for which the program does not wait."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def on_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Return an array or a tensor as a tensor on a device.

    An ordinary copy to a CUDA GPU waits until the GPU has done all that was asked of it before. This one does not, so
    the program can meanwhile prepare what comes next.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)

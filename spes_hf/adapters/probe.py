"""Whether gradients flow through a model's layers: tested by running each layer, not judged by its name."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from spes_hf.runtime.offload import execution_device

# Results by layer and by the layout of its weights at that time: bitsandbytes may repack weights in any pass.
_PROBED: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], bool]] = WeakKeyDictionary()

_PACKED = (torch.int8, torch.uint8, torch.int16, torch.int32)


def passes_gradients(model: nn.Module, dtype: torch.dtype) -> bool:
    """Return whether gradients flow through all layers of a model.

    Ordinary layers pass gradients unless their weights were made in inference mode. Quantised layers are tested once
    each, with a forward and a backward pass of random numbers. A single layer that stops gradients is enough for False:
    a gradient would still arrive through the residual connections, look right and be wrong.

    Args:
        model: The model, without wrappers.
        dtype: Dtype of the layers' inputs.
    """
    if any(weight.is_inference() for weight in (*model.parameters(), *model.buffers())):
        return False
    return all(_passes(layer, dtype) for layer in model.modules() if _is_quantised(layer))


def is_quantised(model: nn.Module) -> bool:
    """Return whether any layer except embeddings is quantised; such layers may round the rows of a batch jointly."""
    return any(map(_is_quantised, model.modules()))


def _is_quantised(layer: nn.Module) -> bool:
    """Return whether a layer has weights of its own that are not plain floating-point numbers."""
    if hasattr(layer, "num_embeddings"):  # an embedding: no gradient of the sound flows through it
        return False
    weights = [weight for weight in layer._parameters.values() if weight is not None]
    packed = any(b is not None and b.dtype in _PACKED and b.ndim > 0 for b in layer._buffers.values())
    plain = all(w.is_floating_point() and type(w) is nn.Parameter and type(w.data) is torch.Tensor for w in weights)
    return packed or not plain or ".quantized" in type(layer).__module__


def _passes(layer: nn.Module, dtype: torch.dtype) -> bool:
    packed = [
        getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", None)
        for weight in layer._parameters.values()
    ]
    known, key = _PROBED.setdefault(layer, {}), (dtype, execution_device(layer), *packed)
    if key not in known:
        known[key] = _probe(layer, dtype)
    return known[key]


def _probe(layer: Any, dtype: torch.dtype) -> bool:
    """Return whether a gradient at a layer's output reaches its input."""
    width = next((w for name in ("in_features", "infeatures") if isinstance(w := getattr(layer, name, None), int)), 0)
    if not width:  # a container (its layers are tested separately), or an unknown kind of layer
        return not any(True for _ in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))
    generator = torch.Generator("cpu").manual_seed(0)
    device = execution_device(layer) or torch.device("cpu")
    with torch.inference_mode(False), torch.enable_grad():
        rows = torch.randn(1, 2, width, generator=generator, dtype=torch.float32, device="cpu")
        rows = rows.to(device, dtype).requires_grad_()
        try:
            output = layer(rows)
            (gradient,) = torch.autograd.grad(output.float().square().sum(), rows)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, TypeError, AttributeError):
            return False
    return bool(gradient.isfinite().all()) and bool((gradient != 0).any())

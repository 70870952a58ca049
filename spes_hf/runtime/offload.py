"""Models that Accelerate has spread over several devices, or with weights offloaded to the CPU or to disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spes_hf.errors import UnsupportedModelError


def execution_device(module: nn.Module) -> torch.device | None:
    """Return the device of a module's input: from its hooks, or else of its first weight; None if it has no weights."""
    for child in module.modules():
        for hook in _hooks(child):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
        for weight in child._parameters.values():
            if weight is not None and not weight.is_meta:
                return weight.device
    return None


def devices(model: nn.Module) -> set[torch.device]:
    """Return every device that the model computes on."""
    found = {weight.device for weight in model.parameters() if not weight.is_meta}
    hooks = (hook for module in model.modules() for hook in _hooks(module))
    return found | {torch.device(d) for hook in hooks if (d := getattr(hook, "execution_device", None)) is not None}


def apart(model: nn.Module) -> list[str]:
    """Return the devices of a model on several devices without hooks that move tensors between them; else empty.

    Accelerate's hooks move tensors, and the user's own hooks may too.
    """
    found = sorted({str(weight.device) for weight in model.parameters() if not weight.is_meta})
    moved = any(_hooks(module) or module._forward_pre_hooks for module in model.modules()) if len(found) > 1 else True
    return [] if moved else found


@contextmanager
def at_home(model: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """Make ``model.device`` report the device of the model's input for a while; restore the model's hooks afterwards.

    ``generate()`` puts its first tokens on ``model.device``, which is the device of the first weight: "meta" if that
    weight is offloaded, and not the encoder's device if the first weight belongs to the decoder. For a model spread
    over devices, ``generate()`` also adds a hook of its own to the encoder.

    Args:
        model: The model.
        device: The device of its input; None: from its hooks, or else of its first weight.

    Raises:
        UnsupportedModelError: If tensors on different devices meet inside the model and its hooks do not move them.
    """
    kind, missing = type(model), object()
    device, first = device or execution_device(model), next(model.parameters(), None)
    spread = hasattr(model, "hf_device_map") or any(_hooks(module) for module in model.modules())
    before = [
        (vars(module), {name: vars(module).get(name, missing) for name in ("forward", "_old_forward", "_hf_hook")})
        for module in (model.modules() if spread else ())
    ]
    before += [
        (vars(hook), {"io_same_device": hook.io_same_device})
        for module in (model.modules() if spread else ())
        for hook in _hooks(module)
        if hasattr(hook, "io_same_device")
    ]
    if first is not None and device is not None and first.device != device:
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "device": property(lambda _: device)}
        model.__class__ = type(kind.__name__, (kind,), names)
    try:
        yield
    except RuntimeError as error:
        if not spread or "same device" not in str(error):
            raise
        raise UnsupportedModelError(
            f"{kind.__name__} does not run with its device_map: tensors on different devices meet inside one of its "
            f"parts ({str(error).splitlines()[0][:300]}). Keep that part on one device: list it as a whole in "
            "device_map, such as the encoder or the decoder, or add its class to the model's _no_split_modules"
        ) from error
    finally:
        model.__class__ = kind
        for attributes, values in before:
            for name, value in values.items():
                if value is missing:
                    attributes.pop(name, None)
                else:
                    attributes[name] = value


def missing_weights(model: nn.Module) -> list[str]:
    """Return the names of the parameters without values, neither loaded nor offloaded."""
    empty = [name for name, weight in model.named_parameters(remove_duplicate=False) if weight.is_meta]
    kept = dict(_kept(model)) if empty else {}
    return [name for name in empty if name not in kept]


def named_weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the entries of the model's state dict in order of their names, without the name prefix of compiled parts.

    Offloaded weights are loaded one at a time.
    """
    state = model.state_dict()
    kept = dict(_kept(model)) if any(isinstance(v, Tensor) and v.is_meta for v in state.values()) else {}
    for plain, name in sorted((name.replace("_orig_mod.", ""), name) for name in state):
        value = state[name]
        if isinstance(value, Tensor) and value.is_meta and name in kept:
            weights, key = kept[name]
            value = weights[key]
        yield plain, value


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters of the model; tied ones count once, even if offloading has separated them."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    parted = {
        name
        for name, source in tied.items()
        if name in weights and source in weights and (weights[name].is_meta or weights[source].is_meta)
    }
    return sum(weight.numel() for weight in {id(w): w for n, w in weights.items() if n not in parted}.values())


def _hooks(module: nn.Module) -> list[Any]:
    """Return Accelerate's hooks of a module."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


def _kept(model: nn.Module) -> Iterator[tuple[str, tuple[Mapping[str, Tensor], str]]]:
    """Yield the name of every offloaded weight, with the mapping that has it and its key there."""
    for prefix, module in model.named_modules():
        for hook in _hooks(module):
            if not getattr(hook, "offload", False) or hook.weights_map is None:
                continue
            inner = module.state_dict() if hook.place_submodules else {**module._parameters, **module._buffers}
            for key, value in inner.items():
                if isinstance(value, Tensor) and value.is_meta:
                    yield f"{prefix}.{key}" if prefix else key, (hook.weights_map, key)

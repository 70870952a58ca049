"""Wrapped models: finds the model inside, and runs it temporarily without its wrappers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from spes_hf.errors import UnsupportedModelError
from spes_hf.runtime.sharding import REMEDY, split_over_processes

# Entries of an adapter's configuration that say where it came from, not what it does.
_WHERE_FROM = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}


def unwrap(model: Any) -> Any:
    """Return the transformers model inside the wrappers of `torch.compile`, DDP, DataParallel, Accelerate and PEFT.

    Changes nothing. Active PEFT adapters stay active: their layers are part of the model inside.

    Raises:
        UnsupportedModelError: If the wrapper adds something that the model inside lacks: a learned prompt, or weights
            that are split over processes.
    """
    from accelerate.utils import extract_model_from_parallel

    while isinstance(model, torch.nn.Module):
        split = split_over_processes(model)
        if split is not None:
            raise UnsupportedModelError(f"{split}: its weights are split over processes, and {REMEDY}")
        inside = extract_model_from_parallel(model, keep_torch_compile=False)
        if type(inside).__module__.split(".")[0] == "peft":
            inside = _base_model(inside)
        if inside is model:
            break
        model = inside
    return model


def _base_model(model: Any) -> Any:
    """Return the model inside a PEFT model, or inside one of its tuners."""
    config: Any = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise UnsupportedModelError(
            f"model is a {type(model).__name__} with a learned prompt ({config.peft_type.value}), which is outside the "
            "model's layers and not supported; pass a model with LoRA or another adapter inside its layers, or the "
            "base model: model.get_base_model()"
        )
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model.model if isinstance(getattr(model, "model", None), torch.nn.Module) else model


def active_adapters(model: Any) -> dict[str, Any]:
    """Return the state of a model's PEFT layers apart from their weights, ready for JSON; empty if there are none.

    "layers": the enabled adapters of each layer, by name, with their scaling; "configs": the adapters' configurations.
    """
    layers = {
        name.replace("_orig_mod.", ""): {
            adapter: _plain((getattr(layer, "scaling", None) or {}).get(adapter))
            for adapter in ([] if layer.disable_adapters else layer.active_adapters)
        }
        for name, layer in model.named_modules()
        if type(layer).__module__.split(".")[0] == "peft" and hasattr(layer, "disable_adapters")
    }
    used = {adapter for layer in layers.values() for adapter in layer}
    configs = {
        name: {k: _plain(v) for k, v in config.to_dict().items() if k not in _WHERE_FROM}
        for name, config in (getattr(model, "peft_config", None) or {}).items()
        if name in used
    }
    return {"layers": layers, "configs": configs} if layers else {}


def _plain(value: Any) -> Any:
    """Return a value in a form that JSON can represent, the same in every process."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


@contextmanager
def as_it_is(model: Any) -> Iterator[None]:
    """Run a model temporarily without wrappers around its code: compiled parts and Accelerate's mixed precision.

    Compiled code ignores hooks that are set after compilation, and Accelerate's mixed precision would cover only the
    decoder, since the encoder is run separately. Also stops bitsandbytes from repacking 4-bit weights permanently, as
    it does on some CPUs in a pass without gradients: afterwards no gradients would flow. All is restored at the end.

    Args:
        model: The model inside all wrappers, see `unwrap`.
    """
    undo: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in list(model.modules()):
            attributes, children = vars(module), module._modules
            for name, child in children.items():
                inside = child
                while isinstance(inside, torch._dynamo.OptimizedModule):
                    inside = inside._orig_mod
                if inside is not child:
                    undo.append((children, name, child))
                    children[name] = inside
            for name, off in (("_compiled_call_impl", None), ("support_avx512bf16_for_cpu", False)):
                if attributes.get(name):
                    undo.append((attributes, name, attributes[name]))
                    attributes[name] = off
            if "forward" in attributes and not isinstance(module, torch._dynamo.OptimizedModule):
                forward = _own_forward(module, attributes["forward"])
                if forward is not attributes["forward"]:
                    undo.append((attributes, "forward", attributes["forward"]))
                    attributes["forward"] = forward
        yield
    finally:
        for where, name, before in reversed(undo):
            where[name] = before


def _own_forward(module: Any, forward: Any) -> Any:
    """Return a module's forward method from before it was compiled or cast; Accelerate's device hooks stay."""
    while True:
        if hasattr(forward, "_torchdynamo_orig_callable"):
            forward = forward._torchdynamo_orig_callable
        elif "_original_forward" in vars(module) and forward is not vars(module)["_original_forward"]:
            forward = vars(module)["_original_forward"]
        else:
            return forward

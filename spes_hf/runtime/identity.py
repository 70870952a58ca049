"""Which model, and which processor, it was, wherever they lie and came from: names, settings, digests."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from spes_hf.runtime.offload import count_parameters, named_weights
from spes_hf.runtime.wrapping import active_adapters, unwrap

_CHUNK = 1 << 24

# Hashing reads every byte, and moves those on a GPU: once for each model, and again when it has learnt.
_known: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()

# Whole numbers by their size in bytes.
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def names_of(model: Any) -> dict[str, Any]:
    """Return what a model says that it is: class, name, and how many parameters it has."""
    return {
        "class": type(model).__name__,
        "name": getattr(model.config, "_name_or_path", "") or "",
        "parameters": count_parameters(model),
    }


def describe_model(model: Any) -> dict[str, Any]:
    """Return what provenance says of a model: names, type, and a digest of its weights where they say which it is."""
    adapters = sorted({name for layer in active_adapters(model).get("layers", {}).values() for name in layer})
    return {
        **names_of(model),
        "revision": getattr(model.config, "_commit_hash", None),
        "type": model.config.model_type,
        **({"weights": weights_digest(model)} if is_all_here(model) else {}),
        **({"adapters": adapters} if adapters else {}),
    }


def model_identity(model: Any) -> dict[str, Any]:
    """Return what a model is: class, configuration, and a digest of its weights; wherever it lies and came from.

    Wrappers do not count. Adapters of PEFT do: their weights, and which are active.
    """
    model = unwrap(model)
    configs = {
        name: _settings(getattr(model, name)) for name in ("config", "generation_config") if hasattr(model, name)
    }
    adapters = active_adapters(model)
    return {
        "class": type(model).__name__,
        "weights": weights_digest(model),
        "settings": _digest(configs),
        **({"adapters": _digest(adapters)} if adapters else {}),
    }


def processor_identity(processor: Any) -> str:
    """Return a digest of a processor: its settings, its vocabulary, and its chat template where it has one."""
    extractor, tokenizer = getattr(processor, "feature_extractor", None), processor.tokenizer
    extractor = processor.audio_processor if extractor is None else extractor
    chat = [template for of in (processor, tokenizer) if (template := getattr(of, "chat_template", None)) is not None]
    return _digest(
        {
            "class": type(processor).__name__,
            "features": _settings(extractor),
            "vocabulary": tokenizer.get_vocab(),
            "special": sorted(map(str, tokenizer.all_special_tokens)),
            **({"chat": chat} if chat else {}),
        }
    )


def _settings(config: Any) -> dict[str, Any]:
    """Return a configuration without what says where it came from."""
    values = config.to_dict()
    return {k: v for k, v in values.items() if k not in ("_name_or_path", "_commit_hash", "transformers_version")}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def weights_digest(model: Any) -> str:
    """Return a digest of a model's weights, and of which of PEFT's adapters are active.

    Every byte is hashed once for each model object, and again after a change; `_signature` says what shows one.
    """
    weights = model.state_dict()
    adapters = active_adapters(model)
    here = all(map(_is_here, weights.values()))
    signature = (json.dumps(adapters, sort_keys=True), *_signature(weights))
    known = _known.get(model)
    if here and known is not None and known[0] == signature:
        return known[1]
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in named_weights(model):
        if not _is_here(tensor):  # no weights at all: what it is called
            digest.update(f"{name}={tensor!r};{getattr(model.config, '_name_or_path', '')}".encode())
            continue
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        for part in _bytes_of(tensor):
            digest.update(part)
    if adapters:
        digest.update(signature[0].encode())
    found = digest.hexdigest()
    _known[model] = signature, found
    return found


def is_all_here(model: Any) -> bool:
    """Return whether all of a model's weights are plain tensors in memory, so that their digest says which model it is.

    Quantised layers are not: to read their state may unpack them in place, makes new tensors each time, or fails.
    """
    weights = (*model.parameters(), *model.buffers())
    plain = all(type(weight) in (torch.nn.Parameter, Tensor) and type(weight.data) is Tensor for weight in weights)
    return plain and all(map(_is_here, weights)) and not any(map(_is_packed, model.modules()))


def _is_packed(module: Any) -> bool:
    return ".quantized" in type(module).__module__


def _is_here(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and not tensor.is_meta


def _signature(weights: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what changes when weights do, at the cost of reading them twice: no copy, no transfer, no hashing.

    In-place changes count versions up, but for those by ``weight.data``; these show in the sums.
    """
    here = {name: tensor for name, tensor in sorted(weights.items()) if _is_here(tensor)}
    where = tuple(
        (name, tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.dtype, tuple(tensor.shape))
        for name, tensor in here.items()
    )
    # Tied weights are read once.
    distinct = {
        (t.data_ptr(), t.dtype, t.shape, t.stride()): t
        for t in here.values()
        if t.numel() and t.ndim and not t.is_quantized
    }
    with torch.no_grad():
        sums = [_sums(t) for t in distinct.values()]  # all are under way before the first is waited for
    return where, b"".join(pair.cpu().numpy().tobytes() for pair in sums)


def _sums(tensor: Tensor) -> Tensor:
    """Return weighted sums of the sums of all rows, and of those of all columns, (2,).

    No two weights are equal, so that numbers, rows and columns that change places show. The bits are added up as whole
    numbers, without rounding, so that a change of any single number shows, and as wide ones as fit, since that is
    fastest.
    """
    values = tensor.detach()
    if values.device.type == "mps":  # which does not add up whole numbers of 64 bits everywhere
        table = values.reshape(-1, values.shape[-1]).float()
        return torch.stack([_weighted(table.sum(1)), _weighted(table.sum(0))])
    values = values.contiguous()
    row = values.itemsize * values.shape[-1]
    width = next(size for size in (8, 4, 2, 1) if row % size == 0 and values.data_ptr() % size == 0)
    bits = values.view(_WHOLE[width])
    table = bits.reshape(-1, bits.shape[-1])
    return torch.stack([_weighted(table.sum(dim, dtype=torch.int64)) for dim in (1, 0)])


def _weighted(sums: Tensor) -> Tensor:
    return (sums * torch.arange(1, 2 * len(sums), 2, dtype=sums.dtype, device=sums.device)).sum()


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor, some megabytes at a time, so that a model on a GPU needs no second home."""
    flat = tensor.detach().reshape(-1)
    for part in flat.split(_CHUNK):
        yield memoryview(part.cpu().contiguous().view(torch.uint8).numpy())

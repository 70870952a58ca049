"""Identity of a model and a processor, independent of where they are stored: names, settings, digests."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor

from spes_hf.runtime.offload import count_parameters, named_weights
from spes_hf.runtime.wrapping import active_adapters, unwrap

_CHUNK = 1 << 24

# Hashing reads every byte and copies weights from the GPU, so do it once per model, and again only after a change.
_known: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()

# Integer dtypes by their size in bytes.
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def names_of(model: Any) -> dict[str, Any]:
    """Return a model's class, name and number of parameters."""
    return {
        "class": type(model).__name__,
        "name": getattr(model.config, "_name_or_path", "") or "",
        "parameters": count_parameters(model),
    }


def describe_model(model: Any) -> dict[str, Any]:
    """Return a model's entry in the provenance: names, type, and a digest of its weights if all are in memory."""
    adapters = sorted({name for layer in active_adapters(model).get("layers", {}).values() for name in layer})
    return {
        **names_of(model),
        "revision": getattr(model.config, "_commit_hash", None),
        "type": model.config.model_type,
        **({"weights": weights_digest(model)} if is_all_here(model) else {}),
        **({"adapters": adapters} if adapters else {}),
    }


def model_identity(model: Any) -> dict[str, Any]:
    """Return the identity of a model, wherever it is stored: class, configuration, and a digest of its weights.

    Wrappers do not count. PEFT adapters do: their weights, and which of them are active.
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
    """Return a digest of a processor: its settings, its vocabulary, and its chat template if it has one."""
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
    """Return a configuration without the entries that say where it came from."""
    values = config.to_dict()
    return {k: v for k, v in values.items() if k not in ("_name_or_path", "_commit_hash", "transformers_version")}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def weights_digest(model: Any) -> str:
    """Return a digest of a model's weights and of its active PEFT adapters.

    Every byte is hashed once per model object, and again after a change, which `_signature` detects.
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
        if not _is_here(tensor):  # no values at all: use the name
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
    """Return whether all of a model's weights are plain tensors in memory, so that their digest identifies the model.

    Quantised layers are excluded: reading their state may unpack them in place, create new tensors each time, or fail.
    """
    weights = (*model.parameters(), *model.buffers())
    plain = all(type(weight) in (torch.nn.Parameter, Tensor) and type(weight.data) is Tensor for weight in weights)
    return plain and all(map(_is_here, weights)) and not any(map(_is_packed, model.modules()))


def _is_packed(module: Any) -> bool:
    return ".quantized" in type(module).__module__


def _is_here(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and not tensor.is_meta


def _signature(weights: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a signature that changes with the weights, at the speed of reading them, without transfer.

    In-place changes increase version counters, except changes through ``weight.data``; those show in a fast checksum of
    the bytes in the machine's memory, and in the sums over those on a device.
    """
    here = {name: tensor for name, tensor in sorted(weights.items()) if _is_here(tensor)}
    where = tuple(
        (name, tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.dtype, tuple(tensor.shape))
        for name, tensor in here.items()
    )
    # Tied weights are read once.
    distinct = {
        (t.data_ptr(), t.dtype, t.shape, t.stride()): t if t.ndim else t.reshape(1)
        for t in here.values()
        if t.numel() and not t.is_quantized
    }
    with torch.no_grad():
        sums = [_sums(t) for t in distinct.values() if not _is_in_memory(t)]  # start all before waiting for the first
        checksum = xxhash.xxh3_128()
        for tensor in filter(_is_in_memory, distinct.values()):
            checksum.update(tensor.detach().reshape(-1).view(torch.uint8).numpy())
    return where, checksum.digest(), b"".join(pair.cpu().numpy().tobytes() for pair in sums)


def _is_in_memory(tensor: Tensor) -> bool:
    """Return whether it is a plain tensor in the machine's memory."""
    return type(tensor) is Tensor and tensor.device.type == "cpu"


def _sums(tensor: Tensor) -> Tensor:
    """Return a weighted sum over the row sums, and one over the column sums, (2,).

    All weights differ, so numbers, rows or columns that swap places change the result. Bits are summed as integers,
    without rounding, so a change of any single number changes the result; the widest integers that fit are fastest.
    """
    values = tensor.detach()
    if values.device.type == "mps":  # MPS does not support sums of 64-bit integers everywhere
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
    """Yield the bytes of a tensor a few megabytes at a time, so that a model on a GPU is never copied as a whole."""
    flat = tensor.detach().reshape(-1)
    for part in flat.split(_CHUNK):
        yield memoryview(part.cpu().contiguous().view(torch.uint8).numpy())

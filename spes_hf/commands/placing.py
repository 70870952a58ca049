"""Where a command's model runs: on one device (``--device``), or spread over several (``--device-map``)."""

from __future__ import annotations

from typing import Any

from spes_hf.errors import ConfigError
from spes_hf.files import TextFileError, read_json

# Maps that transformers makes itself.
AUTOMATIC = ("auto", "balanced", "sequential")

DeviceMap = str | dict[str, int | str]
"""What ``from_pretrained(device_map=…)`` takes: one of `AUTOMATIC`, or the device of each part of the model."""


def device_map_of(device_map: str | None, device: str | None = None) -> DeviceMap | None:
    """Return the device map that the options ask for; None if the model is to be on one device.

    Args:
        device_map: Value of ``--device-map``: one of `AUTOMATIC`, or the path of a JSON file.
        device: Value of ``--device``.

    Raises:
        ConfigError: If both are given, a launcher started several processes on this machine, or the file holds no
            device map.
    """
    if device_map is None:
        return None
    if device is not None:
        raise ConfigError(
            f"--device is {device!r} and --device-map is {device_map!r}, but each says where the model runs; pass only "
            "one of them"
        )
    from spes_hf.runtime.workers import count_launched

    if (launched := count_launched()) > 1:
        raise ConfigError(
            f"--device-map is {device_map!r}, but a launcher started {launched} processes on this machine, and "
            "each would spread the model over the same devices. Start one process for each group of devices that holds "
            "the model, each with its own CUDA_VISIBLE_DEVICES; a recipe's --process-index and --num-processes divide "
            "the work"
        )
    return device_map if device_map in AUTOMATIC else _from_file(device_map)


def check_placing(device: str | None, device_map: str | None) -> None:
    """Refuse options that no model could be loaded with.

    Args:
        device: Value of ``--device``.
        device_map: Value of ``--device-map``.

    Raises:
        ConfigError: If torch cannot use the device, or for any reason of `device_map_of`.
    """
    device_map_of(device_map, device)
    if device is not None:
        import torch

        # Without a tensor on it: this process may not be the one that computes, and would hold the device for ever.
        here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        known = ["cpu", *([here.type] if here is not None else [])]
        try:
            found = torch.device(device)
        except RuntimeError as error:
            raise ConfigError(f"--device is {device!r}, which is no device; allowed: {', '.join(known)}") from error
        count = torch.accelerator.device_count() if here is not None and found.type == here.type else 1
        if found.type not in known or (found.index or 0) >= count:
            raise ConfigError(f"--device is {device!r}, which torch cannot use here; allowed: {', '.join(known)}")


def is_on_cpu(device_map: DeviceMap) -> bool:
    """Return whether a model with this map computes on the CPU alone."""
    import torch

    if isinstance(device_map, str):
        return not torch.accelerator.is_available()
    return set(device_map.values()) <= {"cpu", "disk"}


def check_parts(model: Any, device_map: DeviceMap, given: str) -> None:
    """Refuse a map that names parts that the model lacks, or leaves some out.

    Args:
        model: The model, with or without its weights.
        device_map: Its map.
        given: Value of ``--device-map``, for messages.

    Raises:
        ConfigError: If there are such parts.
    """
    if isinstance(device_map, str):
        return
    weights = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    modules = [name for name, _ in model.named_modules()]
    parts = ", ".join(name for name in modules if name and name.count(".") < 2)
    unknown = [part for part in device_map if part not in modules and part not in weights]
    if unknown:
        raise ConfigError(
            f"--device-map {given!r} names {unknown[0]!r}, which is no part of this {type(model).__name__}; its "
            f'largest parts: {parts}; "" is the whole model'
        )
    without = [name for name in weights if not any(p in ("", name) or name.startswith(f"{p}.") for p in device_map)]
    if without:
        raise ConfigError(
            f"--device-map {given!r} has no device for {without[0]!r}; give one for every part of the model: {parts}"
        )


def _from_file(path: str) -> dict[str, int | str]:
    """Return the map in a JSON file.

    Raises:
        ConfigError: If the file does not hold one.
    """
    allowed = f'allowed: {", ".join(AUTOMATIC)}, or a JSON file such as {{"model.encoder": 0, "model.decoder": "cpu"}}'
    try:
        found = read_json(path)
    except (OSError, TextFileError) as error:
        raise ConfigError(f"--device-map is {path!r}; {allowed}. As a file, it cannot be read: {error}") from error
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"--device-map {path!r} holds {found!r}; {allowed}")
    for part, device in found.items():
        if isinstance(device, bool) or not isinstance(device, (int, str)):
            raise ConfigError(f"--device-map {path!r} puts {part!r} on {device!r}, which is no device; {allowed}")
    return found

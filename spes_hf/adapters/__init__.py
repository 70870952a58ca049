"""One adapter per model family, found by ``model.config.model_type``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from spes_hf.adapters.base import Adapter, GenerationOptions, Target, Utterance
from spes_hf.adapters.canary import CanaryAdapter
from spes_hf.adapters.cohere_asr import CohereAsrAdapter
from spes_hf.adapters.given import take, warn_of_float16
from spes_hf.adapters.granite_speech import GraniteSpeechAdapter
from spes_hf.adapters.qwen2_audio import Qwen2AudioAdapter
from spes_hf.adapters.qwen3_asr import Qwen3ASRAdapter
from spes_hf.adapters.seamless_m4t import SeamlessM4TAdapter
from spes_hf.adapters.seamless_m4t_v2 import SeamlessM4Tv2Adapter
from spes_hf.adapters.speech_llm import SpeechLLMAdapter
from spes_hf.adapters.speech_to_text import Speech2TextAdapter
from spes_hf.adapters.unknown import why_unknown
from spes_hf.adapters.voxtral import VoxtralAdapter
from spes_hf.adapters.whisper import WhisperAdapter
from spes_hf.errors import UnsupportedModelError

AdapterT = TypeVar("AdapterT", bound=type[Adapter])

_ADAPTERS: dict[str, type[Adapter]] = {}


def register_adapter(model_type: str) -> Callable[[AdapterT], AdapterT]:
    """Return a decorator that registers an adapter class for a ``config.model_type``.

    Raises:
        ValueError: If the name is empty or taken, or the class is not an `Adapter`.

    Examples:
        >>> from spes_hf.adapters.speech_to_text import Speech2TextAdapter
        >>> @register_adapter("my_speech_to_text")
        ... class MyAdapter(Speech2TextAdapter):
        ...     pass
        >>> "my_speech_to_text" in list_adapters()
        True
    """

    def register(adapter_class: AdapterT) -> AdapterT:
        if not model_type or not isinstance(model_type, str):
            raise ValueError(f"model_type is {model_type!r}; pass the model's config.model_type, a non-empty string")
        if not (isinstance(adapter_class, type) and issubclass(adapter_class, Adapter)):
            raise ValueError(f"{adapter_class!r} is not an adapter; pass a subclass of spes_hf.adapters.Adapter")
        if _ADAPTERS.get(model_type, adapter_class) is not adapter_class:
            raise ValueError(f"model_type {model_type!r} already has the adapter {_ADAPTERS[model_type].__name__}")
        _ADAPTERS[model_type] = adapter_class
        return adapter_class

    return register


def list_adapters() -> list[str]:
    """Return the model types that have an adapter.

    Examples:
        >>> "whisper" in list_adapters()
        True
    """
    return sorted(_ADAPTERS)


def get_adapter(model: Any, processor: Any = None) -> Adapter:
    """Return the adapter of a model and its processor.

    Args:
        model: A speech-to-text model, wrapped or not, or a pipeline.
        processor: Its processor; a pipeline has its own.

    Raises:
        UnsupportedModelError: If the model's family has no adapter or needs a newer transformers, or the processor
            belongs to another family.

    Examples:
        >>> adapter = get_adapter(model, processor)
        >>> type(adapter).__name__, adapter.sampling_rate
        ('Speech2TextAdapter', 16000)
    """
    given = take(model, processor, {name: known.processor_classes for name, known in _ADAPTERS.items()})
    model, processor = given.model, given.processor
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in _ADAPTERS:
        raise UnsupportedModelError(
            f"model is a {type(model).__name__} of type {model_type!r}, which {why_unknown(model)}; known types: "
            f"{', '.join(list_adapters())}. A family with a spectrogram as input can be added with "
            "register_adapter(model_type)"
        )
    missing = missing_version(model_type)
    if missing:
        raise UnsupportedModelError(f"model is of type {model_type!r}, which needs {missing}")
    adapter = _ADAPTERS[model_type](model, processor)
    if given.settings:
        adapter.settings = given.settings
    warn_of_float16(model, adapter.device, adapter.dtype)
    return adapter


def missing_version(model_type: str) -> str | None:
    """Return the transformers version that a family needs; None if the installed one is enough or the type unknown.

    Examples:
        >>> print(missing_version("whisper"))
        None
    """
    import transformers

    since = _ADAPTERS[model_type].since_transformers if model_type in _ADAPTERS else ""
    if _release(transformers.__version__) >= _release(since):
        return None
    return f"transformers {since} or newer, but {transformers.__version__} is installed; pip install -U transformers"


def missing_version_for(name: str) -> str | None:
    """Return `missing_version` for a checkpoint: a folder, or a name on the Hub.

    Examples:
        >>> model.config.save_pretrained(folder / "checkpoint")
        >>> print(missing_version_for(str(folder / "checkpoint")))
        None
    """
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(name)
    except (OSError, ValueError):  # the later error about loading it says more
        return None
    return missing_version(str(config.get("model_type")))


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


register_adapter("canary")(CanaryAdapter)
register_adapter("cohere_asr")(CohereAsrAdapter)
register_adapter("granite_speech")(GraniteSpeechAdapter)
register_adapter("qwen2_audio")(Qwen2AudioAdapter)
register_adapter("qwen3_asr")(Qwen3ASRAdapter)
register_adapter("seamless_m4t")(SeamlessM4TAdapter)
register_adapter("seamless_m4t_v2")(SeamlessM4Tv2Adapter)
register_adapter("speech_to_text")(Speech2TextAdapter)
register_adapter("voxtral")(VoxtralAdapter)
register_adapter("whisper")(WhisperAdapter)

__all__ = [
    "Adapter",
    "GenerationOptions",
    "SpeechLLMAdapter",
    "Target",
    "Utterance",
    "get_adapter",
    "list_adapters",
    "missing_version",
    "missing_version_for",
    "register_adapter",
]

"""What users pass as model and processor: unpacks pipelines; errors for wrong objects have the line to write."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch

from spes_hf.errors import UnsupportedModelError
from spes_hf.runtime.offload import apart, missing_weights
from spes_hf.runtime.wrapping import unwrap

# What a pipeline adds to generate()'s arguments for its own use.
_OF_PIPELINES = {"return_language", "return_token_timestamps", "return_segments", "transformers_version"}

_warned: WeakSet[torch.nn.Module] = WeakSet()


@dataclass(frozen=True)
class Given:
    """A model without wrappers, its processor, and its default generation settings.

    Attributes:
        model: The transformers model.
        processor: Its processor.
        settings: Arguments of ``generate()`` that came with a pipeline.
    """

    model: Any
    processor: Any
    settings: Mapping[str, Any] = field(default_factory=dict)


def take(model: Any, processor: Any, processor_classes: Mapping[str, Sequence[str]]) -> Given:
    """Return the model and the processor in what the user passed.

    Args:
        model: A model, or a pipeline.
        processor: Its processor; None for the pipeline's own.
        processor_classes: Names of processor classes, by model type.

    Raises:
        UnsupportedModelError: If either is something else; the message has the line to write.
    """
    settings: dict[str, Any] = {}
    if _is_a(model, "Pipeline"):
        if not _is_a(model, "AutomaticSpeechRecognitionPipeline"):
            raise UnsupportedModelError(
                f"model is a {type(model).__name__}; pass a speech-to-text pipeline: "
                'pipeline("automatic-speech-recognition", model=name)'
            )
        processor = _processor_of(model, processor_classes) if processor is None else processor
        settings = pipeline_settings(model)
        model = model.model
    model = unwrap(model)
    _check_model(model, processor)
    _check_processor(model, processor)
    return Given(model, processor, settings)


def check_family(model: Any, processor: Any, model_classes: Sequence[str], processor_classes: Sequence[str]) -> None:
    """Refuse a model or a processor of another family, judged by class names, and unusable weights.

    Weights are unusable if they are missing, or on several devices without anything that moves tensors between them.

    Raises:
        UnsupportedModelError: In that case; for a wrong class, the message lists the allowed classes.
    """
    if model_classes and not {c.__name__ for c in type(model).__mro__} & {*model_classes}:
        raise UnsupportedModelError(
            f"model is a {type(model).__name__}, which does not turn speech into text; load it as a "
            f"{' or '.join(model_classes)}"
        )
    if not {c.__name__ for c in type(processor).__mro__} & {*processor_classes}:
        raise UnsupportedModelError(
            f"processor is a {type(processor).__name__}, but the model is a {type(model).__name__}; expected "
            f"{' or '.join(processor_classes)}: AutoProcessor.from_pretrained(the model's own name)"
        )
    missing = missing_weights(model)
    if missing:
        raise UnsupportedModelError(
            f"model has no weights for {missing[0]} (on the meta device, with {len(missing)} such parameters in all); "
            "load it with from_pretrained() before explaining"
        )
    devices = apart(model)
    if devices:
        raise UnsupportedModelError(
            f"model is spread over {' and '.join(devices)}, but nothing moves tensors between them; load it with "
            'from_pretrained(name, device_map="auto"), or pass it through accelerate.dispatch_model'
        )


def pipeline_settings(pipe: Any) -> dict[str, Any]:
    """Return a pipeline's generation settings, as arguments of ``generate()``.

    These are the arguments it was created with, and its defaults where model and user set nothing (beam search, since
    transformers 5). How it cuts long audio into chunks is not included.
    """
    model_config = pipe.model.generation_config
    found = dict(pipe._forward_params)
    if hasattr(pipe, "_prepare_generate_kwargs"):
        found = pipe._prepare_generate_kwargs(found)
    elif getattr(pipe, "generation_config", None) is not None:
        found = {"generation_config": pipe.generation_config, **found}
    config = found.pop("generation_config", None)
    if config is not None:
        standard = model_config.to_dict()
        found = {**{k: v for k, v in config.to_dict().items() if v is not None and v != standard.get(k)}, **found}
    if "return_timestamps" in found:
        found["return_timestamps"] = bool(found["return_timestamps"])
    return {name: value for name, value in found.items() if name not in _OF_PIPELINES and not name.startswith("_")}


def _processor_of(pipe: Any, processor_classes: Mapping[str, Sequence[str]]) -> Any:
    """Return a pipeline's processor, or one built from its feature extractor and tokenizer."""
    if pipe.processor is not None:
        return pipe.processor
    import transformers

    for name in processor_classes.get(getattr(getattr(pipe.model, "config", None), "model_type", None) or "", ()):
        if hasattr(transformers, name):
            return getattr(transformers, name)(feature_extractor=pipe.feature_extractor, tokenizer=pipe.tokenizer)
    return None


def _check_model(model: Any, processor: Any) -> None:
    if isinstance(model, (str, os.PathLike)):
        name = os.fspath(model)
        raise UnsupportedModelError(
            f"model is {name!r}, the name of a model; load it first: "
            f"model = AutoModelForSpeechSeq2Seq.from_pretrained({name!r}); "
            f"processor = AutoProcessor.from_pretrained({name!r})"
        )
    if inspect.isclass(model):
        raise UnsupportedModelError(
            f"model is the class {model.__name__}; pass an instance: {model.__name__}.from_pretrained(name)"
        )
    if _is_a(model, "ProcessorMixin") and hasattr(processor, "generate"):
        raise UnsupportedModelError(
            f"model is a {type(model).__name__} and processor a {type(processor).__name__}; they are swapped, pass the "
            "model first: explain(model, processor, audio)"
        )
    if _is_a(model, "PreTrainedConfig", "PretrainedConfig"):
        raise UnsupportedModelError(
            f"model is a {type(model).__name__}, a configuration without weights; load the model: "
            "AutoModelForSpeechSeq2Seq.from_pretrained(name)"
        )


def _check_processor(model: Any, processor: Any) -> None:
    name = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    line = f"processor = AutoProcessor.from_pretrained({name!r})" if name else "AutoProcessor.from_pretrained(name)"
    if not hasattr(model, "config"):
        return  # the error about the model says more
    if isinstance(processor, (str, os.PathLike)):
        raise UnsupportedModelError(
            f"processor is {os.fspath(processor)!r}; load it first: "
            f"processor = AutoProcessor.from_pretrained({os.fspath(processor)!r})"
        )
    if processor is None:
        raise UnsupportedModelError(f"processor is None, which is allowed only with a pipeline; load it: {line}")
    if inspect.isclass(processor):
        raise UnsupportedModelError(f"processor is the class {processor.__name__}; pass an instance: {line}")
    if _is_a(processor, "Pipeline"):
        raise UnsupportedModelError(
            f"processor is a {type(processor).__name__}; pass the pipeline as the model, without a processor: "
            "explain(pipe, audio=audio)"
        )
    kind = "feature extractor" if _is_a(processor, "FeatureExtractionMixin") else "tokenizer"
    if kind == "feature extractor" or _is_a(processor, "PreTrainedTokenizerBase"):
        raise UnsupportedModelError(
            f"processor is a {type(processor).__name__}, only a {kind}; pass the processor, which includes it: {line}"
        )


def _is_a(value: Any, *classes: str) -> bool:
    """Return whether a value is an instance of a transformers class with one of these names; imports nothing."""
    return any(
        parent.__name__ in classes and parent.__module__.split(".")[0] == "transformers"
        for parent in type(value).__mro__
    )


def warn_of_float16(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Warn once per model that float16 on a CPU is slow and inexact."""
    if device.type != "cpu" or dtype != torch.float16 or model in _warned:
        return
    _warned.add(model)
    warnings.warn(
        f"model is a {type(model).__name__} in float16 on a CPU, which on most processors is many times slower than "
        "float32, and less exact; call model.float(), or load it with dtype=torch.float32",
        stacklevel=5,
    )

"""What commands and recipes share: options for model, method and speed, and how to read them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spes_hf.commands.placing import DeviceMap, check_parts, device_map_of, is_on_cpu
from spes_hf.errors import AudioError, ConfigError, SpesError, UnsupportedModelError
from spes_hf.files import TextFileError, read_text
from spes_hf.names import PRESETS, TINY_MODELS

if TYPE_CHECKING:
    from spes_hf.methods import ExplainConfig

# The model of the demo extra. It needs no hub; neither do the models that the package ships (`TINY_MODELS`).
DEMO = "demo"

METRICS = ("deletion", "insertion", "size", "word_deletion", "word_insertion")
# Options that take whole numbers of at least 1.
COUNTS = ("batch_size", "limit", "max_new_tokens", "max_utterances", "max_words", "num_beams")
TYPES = ("auto", "float32", "bfloat16", "float16")
MODELS = f"Hub id, folder, or a model that needs no hub: {DEMO} (Whisper tiny.en), {', '.join(TINY_MODELS)}"


def add_model(command: argparse._ActionsContainer, about: str | None = None, device: str = "cuda if available") -> None:
    """Add the options that choose the model, how it writes, and where it runs.

    Args:
        command: The command's parser.
        about: Help of ``--model``; None: the models that there are.
        device: Where the model runs by default, for the help.
    """
    command.add_argument("--model", required=True, metavar="ID_OR_PATH", help=about or MODELS)
    command.add_argument("--language", help="language of the speech (Whisper)")
    command.add_argument("--task", choices=("transcribe", "translate"), help="task for Whisper")
    command.add_argument("--tgt-lang", help="language of the text (SeamlessM4T, multilingual Speech2Text)")
    add_prompt(command)
    add_generation(command)
    add_loading(command, device)


def add_prompt(command: argparse._ActionsContainer) -> None:
    """Add the option for the instruction of a speech LLM."""
    command.add_argument("--prompt", help="instruction for a speech LLM (default: the family's own)")


def add_generation(command: argparse._ActionsContainer) -> None:
    """Add the options for arguments of ``generate()``."""
    command.add_argument("--num-beams", type=int, metavar="N", help="number of beams in beam search")
    command.add_argument("--max-new-tokens", type=int, metavar="N", help="maximum length of the text, in tokens")


def add_loading(command: argparse._ActionsContainer, device: str = "cuda if available") -> None:
    """Add the options that say where the model runs, and in which type.

    Args:
        command: The command's parser.
        device: Where the model runs by default, for the help.
    """
    command.add_argument("--device", help=f"where the model runs, for example cuda (default: {device})")
    command.add_argument(
        "--device-map",
        metavar="MAP",
        help="spread the model over several devices, instead of --device: auto, balanced, sequential, or a JSON file "
        'with the device of each part, such as {"model.encoder": 0, "model.decoder": 1, "lm_head": 1}',
    )
    command.add_argument(
        "--dtype",
        choices=TYPES,
        default="auto",
        help="type of the weights (default: auto, which is float32 on CPU, otherwise the checkpoint's own)",
    )


def add_method(
    command: argparse._ActionsContainer, preset: str = "default", presets: Sequence[str] = PRESETS, tokens: bool = True
) -> None:
    """Add the options that choose method and settings.

    Args:
        command: The command's parser.
        preset: The preset to use if neither a preset nor a config is given.
        presets: The presets to choose from.
        tokens: Whether to add an option for the number of token masks.
    """
    command.add_argument("--preset", choices=presets, help=f"settings of the method (default: {preset})")
    add_config(command, "instead of a preset; --num-masks and --num-token-masks override the file's")
    command.add_argument("--num-masks", type=int, metavar="N", help="number of masks over the spectrogram")
    if tokens:
        command.add_argument("--num-token-masks", type=int, metavar="N", help="number of masks over earlier tokens")


def add_config(command: argparse._ActionsContainer, use: str) -> None:
    """Add the option for a file with method and settings.

    Args:
        command: The command's parser.
        use: How they are used, for the help.
    """
    written = "method and settings that ExplainConfig.to_json() wrote"
    command.add_argument("--config", type=Path, metavar="FILE", help=f"{written}, {use}")


def add_running(command: argparse._ActionsContainer) -> None:
    """Add the options that say how the passes run."""
    add_batch_size(command)
    add_autocast(command)
    command.add_argument(
        "--compile",
        action="store_true",
        help="run the encoder with torch.compile; pays off for many clips of one input length, with a --batch-size",
    )


def add_batch_size(command: argparse._ActionsContainer) -> None:
    """Add the option for the number of copies in one pass."""
    command.add_argument(
        "--batch-size",
        type=batch_size,
        metavar="B",
        help="perturbed copies in one forward pass; auto halves it until it fits into memory (default: auto)",
    )


def add_autocast(command: argparse._ActionsContainer) -> None:
    """Add the option that says in which type the model computes."""
    command.add_argument(
        "--autocast", choices=("bfloat16", "float16"), help="run the model under torch.autocast in this type"
    )


def batch_size(text: str) -> int | str:
    """Return the batch size in a text: a number, or "auto"."""
    return text if text == "auto" else int(text)


def running_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return how the passes run, as arguments of `explain` and similar functions."""
    return {"batch_size": options.batch_size, "autocast": options.autocast, "compile": options.compile}


def is_translation(options: argparse.Namespace) -> bool:
    """Return whether the model is to translate."""
    return options.task == "translate" or options.tgt_lang is not None


def writing_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return how the model writes, as arguments of `explain` and similar functions."""
    return {
        **{name: getattr(options, name) for name in ("language", "task", "tgt_lang", "prompt")},
        "generate_kwargs": generate_kwargs_of(options),
    }


def generate_kwargs_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``generate()`` that the options set.

    Raises:
        ConfigError: If one is below 1.
    """
    check_numbers(options)
    given = {"num_beams": options.num_beams, "max_new_tokens": options.max_new_tokens}
    return {name: value for name, value in given.items() if value is not None}


def check_numbers(options: argparse.Namespace) -> None:
    """Refuse numbers that nothing could run with.

    Args:
        options: The command line's options; those of `COUNTS` that the command lacks are not checked.

    Raises:
        ConfigError: If one is below 1.
    """
    for name in COUNTS:
        value = getattr(options, name, None)
        if isinstance(value, int) and value < 1:
            other = ', or "auto"' if name == "batch_size" else ""
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; allowed: a whole number of at least 1{other}")


def config_of(options: argparse.Namespace, preset: str = "default", translation: bool = False) -> ExplainConfig:
    """Return method and settings: those of ``--config`` or of the preset, with the numbers of masks from the options.

    Args:
        options: The command line's options, including those of `add_method`.
        preset: The preset to use if neither is given.
        translation: Whether the model translates, which sets τ of the paper's preset.

    Raises:
        ConfigError: If both are given, or the file holds no config, or a number does not suit the method.
    """
    from spes_hf.methods.presets import preset as preset_of

    asked = {"num_spectrogram_masks": options.num_masks, "num_token_masks": getattr(options, "num_token_masks", None)}
    counts: dict[str, Any] = {name: count for name, count in asked.items() if count is not None}
    if options.config is None:
        return preset_of(options.preset or preset, "st" if translation else "asr", **counts)
    if options.preset is not None:
        raise ConfigError(
            f"--config is {str(options.config)!r} and --preset is {options.preset!r}, but each sets method and "
            "settings; pass only one of them"
        )
    return config_in(options.config, counts)


def config_in(path: Path, counts: Mapping[str, int], drop_unused: bool = False) -> ExplainConfig:
    """Return method and settings of the file that ``--config`` names.

    Args:
        path: The file.
        counts: Numbers of masks that override the file's.
        drop_unused: Whether to leave out numbers that the method does not use, instead of refusing them.

    Raises:
        ConfigError: If the file holds no config, or a number does not suit the method.
    """
    from spes_hf.methods import ExplainConfig

    try:
        config = ExplainConfig.from_json(path)
        used: dict[str, Any] = {k: v for k, v in counts.items() if not (drop_unused and k in config.unused)}
        return replace(config, **used)
    except ConfigError as error:
        raise ConfigError(f"--config {str(path)!r}: {error}") from error


def check_audio(path: str) -> str:
    """Return the path of a recording if it exists.

    Raises:
        AudioError: If there is no such file.
    """
    if not Path(path).is_file():
        raise AudioError(f"audio {path!r} does not exist; pass the path of a recording")
    return path


def check_folder(path: Path) -> Path:
    """Return the path if it can be a folder to write to.

    Raises:
        ConfigError: If it is a file.
    """
    if path.is_file():
        raise ConfigError(f"--out is {str(path)!r}, which is a file; pass a folder")
    return path


def text_or_file(given: str, name: str = "--reference") -> str:
    """Return the content of a text file if the text is the path of one, otherwise the text.

    Args:
        given: Text, or path of a text file.
        name: Name of the option, for errors.

    Raises:
        ConfigError: If the file holds no text.
    """
    path = Path(given)
    try:
        is_file = path.is_file()
    except OSError:  # a text too long for a file name
        is_file = False
    if not is_file:
        return given
    try:
        text = read_text(path)
    except (OSError, TextFileError) as error:
        raise ConfigError(f"{name} {given!r} cannot be read as text: {error}") from error
    if not text.strip():
        raise ConfigError(f"{name} is {given!r}, which is an empty file; pass a file with what was said")
    return " ".join(text.split())


def load_model(name: str, device: str | None, dtype: str, device_map: str | None = None) -> tuple[Any, Any]:
    """Return the model of that name and its processor.

    Args:
        name: Value of ``--model``.
        device: Value of ``--device``.
        dtype: Value of ``--dtype``.
        device_map: Value of ``--device-map``.

    Raises:
        ConfigError: If torch cannot use the device, or the model cannot be spread in this way.
        UnsupportedModelError: If the model cannot be loaded.
    """
    import torch

    spread = device_map_of(device_map, device)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto" and (device == "cpu" if spread is None else is_on_cpu(spread)):
        dtype = "float32"  # half precision is slower and less exact on CPU
    try:
        if name == DEMO or (name in TINY_MODELS and not Path(name).exists()):
            from spes_hf.demo import load_demo_model, load_tiny_model

            given = torch.float32 if dtype == "auto" else getattr(torch, dtype)
            load = load_demo_model if name == DEMO else partial(load_tiny_model, name)
            with _spreading(name, spread, device_map):
                model, processor = load(dtype=given, device_map=spread)
        else:
            from transformers import AutoConfig, AutoProcessor

            from spes_hf.adapters.loading import auto_class_of

            config = AutoConfig.from_pretrained(name)
            kind = auto_class_of(config)
            if isinstance(spread, dict):
                with torch.device("meta"):  # the parts are known before gigabytes of weights are read
                    check_parts(kind.from_config(config), spread, str(device_map))
            processor = AutoProcessor.from_pretrained(name)
            with _spreading(name, spread, device_map):
                model = kind.from_pretrained(name, dtype=dtype, device_map=spread)
    except (ImportError, KeyError, OSError, ValueError) as error:
        raise cannot_load(name, error) from error
    if spread is not None:
        check_parts(model, spread, str(device_map))
        return model, processor
    try:
        return model.to(device), processor
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--device is {device!r}, which torch or the model cannot use here: {error}") from error


@contextmanager
def _spreading(name: str, spread: DeviceMap | None, given: str | None) -> Iterator[None]:
    """Say that the device map is what a model cannot be loaded with; without one, do nothing.

    Raises:
        ConfigError: In place of any error except those about files and packages.
    """
    try:
        yield
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        if spread is None or isinstance(error, SpesError):
            raise
        raise ConfigError(
            f"--model {name!r} cannot be loaded with --device-map {given!r}: {error}\nCheck the parts and devices of "
            "the map, or leave it out"
        ) from error


def model_of(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the model that the options name, where and in the type that they say, and its processor.

    Raises:
        ConfigError: If torch cannot use the device, the model cannot be spread in this way, or a number is not allowed.
        UnsupportedModelError: If the model cannot be loaded.
    """
    check_numbers(options)  # find out now, not when the model is loaded
    return load_model(options.model, options.device, options.dtype, options.device_map)


def cannot_load(name: str, error: Exception) -> Exception:
    """Return the error to raise for a model that cannot be loaded; errors of this package stay as they are."""
    if isinstance(error, SpesError):
        return error
    from spes_hf.adapters import missing_version_for

    missing = missing_version_for(name)
    if missing:
        return UnsupportedModelError(f"--model {name!r} needs {missing}")
    close = get_close_matches(name, (DEMO, *TINY_MODELS), n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return UnsupportedModelError(
        f"--model {name!r} cannot be loaded: {meant}Pass the id of a speech-to-text model on the Hub, a folder that "
        f"save_pretrained() wrote (model and processor), or one of {DEMO}, {', '.join(TINY_MODELS)}\n{error}"
    )


def listed(option: str, given: str, allowed: tuple[str, ...]) -> list[str]:
    """Return the names in a comma-separated list, each once.

    Raises:
        ConfigError: If the list is empty, or has a name that is not allowed.
    """
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    unknown = [name for name in names if name not in allowed]
    if unknown or not names:
        raise ConfigError(f"{option} is {given!r}; allowed: one or more of {', '.join(allowed)}, separated by commas")
    return names

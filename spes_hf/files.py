"""Reads text files with byte order marks, Windows line ends or stray control characters; writes files atomically.

Only a line feed ends a line. A carriage return before it belongs to the line end; one alone ends a line if the file has
no line feed. `str.splitlines` would also split at U+000B, U+0085, U+2028 and others, which occur within texts.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from spes_hf.errors import ConfigError

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_REMEDY = 'save it as UTF-8 (in Excel: "CSV UTF-8"; in a shell: iconv -f {0} -t UTF-8 OLD > NEW)'


class TextFileError(ConfigError):
    """A text file's encoding cannot be determined for certain, or its content is not what its name says."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces an older one at the end, in one step; if interrupted, the older one stays.

    Until then, the new file is in the same folder, with a dot before its name and a unique suffix after it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: str | Path) -> str:
    """Return the text of a file, as `decode` reads it, with line ends unchanged.

    Raises:
        OSError: If the file cannot be opened.
        TextFileError: If its encoding is neither UTF-8 nor marked; names file, line and remedy.
    """
    return decode(Path(path).read_bytes(), str(path))


def decode(raw: bytes, source: str) -> str:
    """Return the text in the bytes of a file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Removes byte order marks, including those in the middle where files were joined. Removes NUL characters with a
    warning.

    Args:
        raw: The bytes.
        source: Name of the file, for messages.

    Raises:
        TextFileError: If the bytes are in another encoding.
    """
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    if encoding == "utf-8" and (unmarked := _unmarked_utf16(raw)):
        raise TextFileError(
            f"{source}: is UTF-16 without a byte order mark (byte {raw.find(0)} is NUL); {_REMEDY.format(unmarked)}"
        )
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise TextFileError(_undecodable(raw, encoding, error, source)) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        warnings.warn(
            f"{source}: removed {text.count(chr(0))} NUL characters, the first in line {line}",
            UserWarning,
            stacklevel=3,
        )
        text = text.replace("\0", "")
    return re.sub("(?m)^\ufeff+", "", text)


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text, without line ends; text after the last line end is a line if it is not empty.

    >>> split_lines("one\r\ntwo\u2028still two\n")
    ['one', 'two\u2028still two']
    """
    if "\n" not in text:
        lines = text.split("\r")
    else:
        lines = [line.rstrip("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a file, read by `read_text` and split by `split_lines`."""
    return split_lines(read_text(path))


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file; control characters in strings are allowed.

    Raises:
        OSError: If the file cannot be opened.
        TextFileError: If it is not JSON; names file, line and column.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, source: str) -> Any:
    """Return the content of a JSON text; control characters in strings are allowed.

    Raises:
        TextFileError: If it is not JSON; names source, line and column.
    """
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise TextFileError(f"{source}: is not JSON: {error}") from error


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, ignoring empty lines.

    Raises:
        OSError: If the file cannot be opened.
        TextFileError: If a line is not a JSON object; names file and line.
    """
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, strict=False)
        except (ValueError, RecursionError) as error:
            raise TextFileError(
                f"{path}:{number}: is not JSON: {error}; a JSON-lines file has one object per line"
            ) from error
        if not isinstance(row, dict):
            raise TextFileError(
                f"{path}:{number}: is a {type(row).__name__}; a JSON-lines file has one object per line"
            )
        rows.append(row)
    return rows


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a CSV or TSV file, with the names in its first line as keys.

    In a file that ends in .tsv, tabs separate the columns; in others, whichever of these the first line has most of:
    commas, semicolons (as Excel writes in half of Europe) or tabs. Ignores empty lines and columns without a name.
    Excel omits empty cells at the end of a row; they become "".

    Raises:
        OSError: If the file cannot be opened.
        TextFileError: If a row has more cells than the first line, or quotes are wrong; names file and line.
    """
    text = read_text(path)
    first, _, rest = text.partition("\n")
    if marked := re.fullmatch(r"sep=(.)\r?", first):  # a hint to Excel
        text, delimiter = rest, marked[1]
    else:
        delimiter = "\t" if Path(path).suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    rows: list[dict[str, str]] = []
    line = 1
    try:
        for cells in reader:
            if names is None:
                names = cells
            elif any(cells[len(names) :]):
                raise csv.Error(f"it has more cells than the {len(names)} columns of the first line")
            elif cells:
                cells += [""] * (len(names) - len(cells))
                rows.append({name: cell for name, cell in zip(names, cells, strict=False) if name})
            line = reader.line_num + 1
    except csv.Error as error:
        raise TextFileError(
            f"{path}:{line + bool(marked)}: cannot be read: {error}; put double quotes around a cell that contains "
            f'{delimiter!r}, a line end or ", and write "" for a " in it'
        ) from error
    return rows


def _unmarked_utf16(raw: bytes) -> str | None:
    """Return which UTF-16 (little-endian or big-endian) unmarked bytes are in, if they look like UTF-16.

    The high byte of a character is NUL in Latin, and below a space in most alphabets: so every other byte is small, and
    the bytes between are not. The two bytes of a line feed confirm the order.
    """
    if len(raw) % 2 or 0 not in raw:
        return None
    for name, high, low, feed in (
        ("UTF-16LE", raw[1::2], raw[::2], b"\n\0"),
        ("UTF-16BE", raw[::2], raw[1::2], b"\0\n"),
    ):
        small = sum(high.count(byte) for byte in (*range(9), *range(14, 32)))
        if 4 * small > len(high) and 0 not in low and (b"\n" not in raw or feed in raw):
            return name
    return None


def _undecodable(raw: bytes, encoding: str, error: UnicodeDecodeError, source: str) -> str:
    """Return the error message for bytes whose encoding cannot be determined."""
    if encoding != "utf-8":
        return (
            f"{source}: starts as {encoding.upper()}, but byte {error.start} is wrong ({error.reason}); write the file "
            "again"
        )
    before = raw[: error.start]
    line, column = before.count(b"\n") + 1, len(before.rpartition(b"\n")[2].decode("utf-8")) + 1
    guess = "UTF-16LE" if 0 in raw else "WINDOWS-1252"
    also = "UTF-16 without a byte order mark" if 0 in raw else "Latin-1 or another code page of Windows"
    return (
        f"{source}:{line}: is not UTF-8 at column {column} (byte 0x{raw[error.start]:02x} at offset {error.start}), "
        f"perhaps {also}; {_REMEDY.format(guess)}"
    )

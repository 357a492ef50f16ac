"""The header of a GGUF file, walked within the file's bounds before a library reads it.

A header states how many keys, items and tensors follow. A short file can state 2**60 of them, and
a reader that believes it never ends.
"""

import struct
from pathlib import Path
from typing import BinaryIO

from mixtune.errors import ModelError

MAX_KEYS, MAX_TENSORS, MAX_NAME = 100_000, 1_000_000, 65_536
MAX_HEADER = 2**28
"""Bytes before the first tensor; the largest vocabularies take some tens of millions."""
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MAX_DEPTH = 2


def check_header(path: Path) -> None:
    """Refuse a GGUF file whose header states more than the file can hold.

    Raises:
        ModelError: it is no GGUF file, or its header does not fit into it.
    """
    try:
        with path.open("rb") as file:
            _Walk(file, min(path.stat().st_size, MAX_HEADER)).header()
    except (ValueError, OSError) as error:
        raise ModelError(
            f"the header of this GGUF file cannot be used: {error}",
            where=str(path),
            found=f"{path.stat().st_size:,} bytes" if path.is_file() else None,
            wanted="a whole GGUF file, version 2 or 3",
            remedy="download the file again",
        ) from error


class _Walk:
    """A position in a header that never passes its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def header(self) -> None:
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number(4)
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        tensors, keys = self._number(8), self._number(8)
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise ValueError(f"it states {tensors:,} tensors and {keys:,} keys")
        for _ in range(keys):
            self._text(MAX_NAME)
            self._value(self._number(4))
        for _ in range(tensors):
            self._text(MAX_NAME)
            dimensions = self._number(4)
            if dimensions > 8:
                raise ValueError(f"a tensor with {dimensions} dimensions")
            self._skip(8 * dimensions + 4 + 8)

    def _value(self, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            self._text(self._left)
        elif kind == _ARRAY and depth < _MAX_DEPTH:
            item, count = self._number(4), self._number(8)
            if item in _SIZES:
                self._skip(_SIZES[item] * count)
                return
            # An item takes eight bytes at least, so the count is bounded by what is left.
            if 8 * count > self._left:
                raise ValueError(f"a list of {count:,} items")
            for _ in range(count):
                self._value(item, depth + 1)
        elif kind in _SIZES:
            self._skip(_SIZES[kind])
        else:
            raise ValueError(f"a value of the unknown type {kind}")

    def _text(self, limit: int) -> None:
        length = self._number(8)
        if length > limit:
            raise ValueError(f"a text of {length:,} bytes")
        self._skip(length)

    def _number(self, size: int) -> int:
        return int(struct.unpack("<I" if size == 4 else "<Q", self._take(size))[0])

    def _take(self, size: int) -> bytes:
        self._shorten(size)
        return self._file.read(size)

    def _skip(self, size: int) -> None:
        self._shorten(size)
        self._file.seek(size, 1)

    def _shorten(self, size: int) -> None:
        if size > self._left:
            raise ValueError("it ends within the header")
        self._left -= size

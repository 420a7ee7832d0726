"""Answers that are files: which the gateway can read itself, instead of the slot.

Only files whose bytes on disk are what `read` would give, so types are compared exactly:
a GzipFile has a `fileno` too, and it is that of the compressed file. What is no such file
(a pipe, a BytesIO, an iterator that a middleware put around one) is read by the slot.
"""

from __future__ import annotations

import io
import os
import stat
import tempfile
import wsgiref.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Unwrapper = Callable[[Any], Any]

_unwrappers: dict[type, Unwrapper] = {}

# What was found for types of answers. Bounded, because an application may make types up.
_by_kind: dict[type, Unwrapper | None] = {}
_MAX_KINDS = 1024

# Deeper than anybody nests them: a guard against one that contains itself.
_DEPTH = 8


def see_through(kind: type, unwrapper: Unwrapper) -> None:
    """Look into things of this type.

    `unwrapper` is shown one, and returns what that passes on unchanged, byte for byte and
    from the same position; None if it passes on nothing so.
    """
    _unwrappers[kind] = unwrapper
    _by_kind.clear()


def _unwrapper_of(kind: type) -> Unwrapper | None:
    try:
        return _by_kind[kind]
    except KeyError:
        found = next((each for base, each in _unwrappers.items() if issubclass(kind, base)), None)
        if len(_by_kind) < _MAX_KINDS:
            _by_kind[kind] = found
        return found


class FileWrapper:
    """`wsgi.file_wrapper`: a file as an iterator over its blocks."""

    def __init__(self, filelike: Any, block_size: int = 8192) -> None:
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        # An application that wraps this one must see blocks of the size that it asked
        # for; we ourselves take larger ones.
        block: bytes = self.filelike.read(self.block_size)
        if not block:
            raise StopIteration
        return block

    def blocks(self, size: int) -> Iterator[bytes]:
        """The file in blocks of at most `size` bytes."""
        while block := self.filelike.read(size):
            yield block

    # For frameworks that cut out ranges themselves.

    def seekable(self) -> bool:
        """Whether `seek` works."""
        return hasattr(self.filelike, "seekable") and bool(self.filelike.seekable())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the file's position."""
        return int(self.filelike.seek(offset, whence))

    def tell(self) -> int:
        """The file's position."""
        return int(self.filelike.tell())


class Part(NamedTuple):
    """A part of an open file on disk: from its position on."""

    descriptor: int
    offset: int
    length: int


def part_of(body: Any) -> Part | None:
    """What of a file on disk `body` would give when read; None if it is no such file."""
    limit = None
    if _is_range_of_werkzeug(body):
        # Not begun: its file is where it was, and is to be read from elsewhere.
        body.iterable.seek(body.start_byte)
        body, limit = body.iterable, body.byte_range
    file = _plain(body)
    if file is None:
        return None
    try:
        if not file.readable():
            return None
        if file.writable():
            file.flush()  # The gateway sees only what has left our buffer.
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return None
        offset = file.tell()
    except (OSError, ValueError):
        # Closed, or not as it seems: reading it tells the application.
        return None
    length = max(0, status.st_size - offset)
    return Part(file.fileno(), offset, length if limit is None else min(length, limit))


def _plain(body: Any) -> io.FileIO | io.BufferedReader | io.BufferedRandom | None:
    for _ in range(_DEPTH):
        kind = type(body)
        if kind is io.BufferedReader or kind is io.BufferedRandom:
            return body if type(body.raw) is io.FileIO else None
        if kind is io.FileIO:
            file: io.FileIO = body
            return file
        if kind is FileWrapper or kind is wsgiref.util.FileWrapper:
            body = body.filelike
        elif kind is tempfile._TemporaryFileWrapper:
            body = body.file
        else:
            unwrapper = _unwrapper_of(kind)
            if unwrapper is None:
                return None
            body = unwrapper(body)
    return None


def _is_range_of_werkzeug(body: Any) -> bool:
    """Whether this is what Flask's `send_file` answers a Range header with."""
    kind = type(body)
    return (
        kind.__name__ == "_RangeWrapper"
        and kind.__module__ == "werkzeug.wsgi"
        and type(getattr(body, "iterable", None)) is FileWrapper
        and getattr(body, "seekable", False)
        and getattr(body, "read_length", 1) == 0
        and isinstance(getattr(body, "byte_range", None), int)
        and isinstance(getattr(body, "start_byte", None), int)
    )

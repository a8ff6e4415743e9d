"""Objects of a bucket for DuckDB, which asks for the ranges it needs; loaded only where it does.

What was read last is kept in memory, up to `CACHE_BYTES`: a version of an object never changes.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from fsspec.spec import AbstractFileSystem

from chgdb.places import RemotePath, Version

__all__ = ["CACHE_BYTES", "RangeFiles"]

CACHE_BYTES = 2**26


class RangeFiles(AbstractFileSystem):  # type: ignore[misc] # fsspec has no types
    """A few objects, of the versions that a listing gave, as a file system to read from.

    Args:
        paths: the objects; there are no others.

    Attributes:
        problem: the first that kept an object from being read.
    """

    protocol = "s3"
    cachable = False

    def __init__(self, paths: Iterable[RemotePath]) -> None:
        super().__init__()
        self.problem: tuple[RemotePath, OSError] | None = None
        self._paths = {str(path): path for path in paths}

    def open(self, path: str, mode: str = "rb", **_: Any) -> io.RawIOBase:
        if mode != "rb":
            raise PermissionError(f"{path}: is only read")
        return _Ranges(self, self._paths[path])

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": _version(self._paths[path]).size, "type": "file"}

    def modified(self, path: str) -> datetime:  # noqa: ARG002
        # DuckDB reads what is younger than 10 s twice; what it reads is of one version in any case
        return datetime.fromtimestamp(0, UTC)

    def glob(self, path: str, **_: Any) -> list[str]:
        return [path] if path in self._paths else []

    def exists(self, path: str, **_: Any) -> bool:
        return path in self._paths


class _Ranges(io.RawIOBase):
    """An object that is read with one request per call of `read`."""

    def __init__(self, files: RangeFiles, path: RemotePath) -> None:
        self._files = files
        self._path = path
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = _version(self._path).size
        self._position = offset + {os.SEEK_CUR: self._position, os.SEEK_END: size}.get(whence, 0)
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = _version(self._path).size
        stop = end if size < 0 else min(end, self._position + size)
        if stop <= self._position:
            return b""
        try:
            content = _cache.read(self._path, self._position, stop)
        except OSError as error:
            self._files.problem = self._files.problem or (self._path, error)
            raise
        self._position += len(content)
        return content


class _Cache:
    """The ranges that were read last; threads may read at once."""

    def __init__(self) -> None:
        self._ranges: OrderedDict[tuple[str, str, int, int], bytes] = OrderedDict()
        self._size = 0
        self._mutex = threading.Lock()

    def read(self, path: RemotePath, start: int, stop: int) -> bytes:
        """The bytes start...stop - 1 of an object."""
        key = (str(path), _version(path).etag, start, stop)
        with self._mutex:
            if key in self._ranges:
                self._ranges.move_to_end(key)
                return self._ranges[key]
        content = path.read_bytes(start, stop)
        with self._mutex:
            self._size += len(content) - len(self._ranges.pop(key, b""))
            self._ranges[key] = content
            while self._size > CACHE_BYTES:
                self._size -= len(self._ranges.popitem(last=False)[1])
        return content


_cache = _Cache()


def _version(path: RemotePath) -> Version:
    return path.version or path.stat()

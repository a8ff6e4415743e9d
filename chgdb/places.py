"""Objects of a bucket as paths: a store on object storage is read and written like a folder.

`RemotePath` has what a store uses of `pathlib.Path`, and fails like it: with an OSError whose text
is one line. There are no folders in a bucket; an object appears, and is replaced, as a whole.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import S3Store

__all__ = ["SCHEME", "Place", "RemotePath", "Version", "as_os_error"]

SCHEME = "s3://"

_TIMEOUT = timedelta(seconds=120)
"""Of one request."""

_RETRIES = 4
_RETRY_TIMEOUT = timedelta(seconds=20)
"""A server that cannot be reached is given up after so many further tries, or so long."""


@dataclass(frozen=True)
class Version:
    """What is known of an object without reading it.

    Attributes:
        size: in bytes.
        etag: another one once the object was replaced.
        modified: when, by the clock of the server.
    """

    size: int
    etag: str
    modified: datetime


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object in a bucket, or the beginning of the names of several.

    Endpoint and credentials are those of the AWS_* variables. Paths made from one another, by `/`,
    `parent` and `iterdir`, share their connections.

    Attributes:
        bucket: its name.
        key: of the object.
        version: of the object where a listing gave it; reading fails once it has changed.
    """

    bucket: str
    key: str
    version: Version | None = field(default=None, compare=False, repr=False)
    _connections: list[Any] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def of(cls, url: str) -> RemotePath:
        """The path that `s3://bucket/key` names.

        Raises:
            ValueError: it names no bucket.
            ModuleNotFoundError: obstore is not installed.
        """
        import obstore  # noqa: F401 (told from at once)

        bucket, _, key = url.removeprefix(SCHEME).partition("/")
        parts = [part for part in key.split("/") if part]
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise ValueError(f"{bucket!r} is not the name of a bucket")
        if any(part in (".", "..") for part in parts) or not key.isprintable():
            raise ValueError(f"{key!r} is not the name of an object")
        return cls(bucket, "/".join(parts))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> RemotePath:
        return replace(self, key=f"{self.key}/{name}".lstrip("/"), version=None)

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem

    @property
    def parent(self) -> RemotePath:
        """The path without the last part of the key."""
        return replace(self, key=self.key.rpartition("/")[0], version=None)

    # ------------------------------------------------------------------ reading

    def stat(self) -> Version:
        """Size, version and age of the object.

        Raises:
            OSError: there is no such object, or the server cannot be asked.
        """
        import obstore

        with self._mapped():
            return _version(obstore.head(self._client, self.key))

    def exists(self) -> bool:
        """Whether there is an object of this name."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def read_bytes(self, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes start...stop - 1 of the object, by default all.

        Raises:
            FileExistsError: it is another object than that of `version`.
            OSError: there is no such object, or it cannot be read.
        """
        return self.read()[0] if stop is None and not start else self._range(start, stop)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object as text.

        Raises:
            OSError: as of `read_bytes`.
        """
        return self.read_bytes().decode(encoding)

    def read(self) -> tuple[bytes, Version]:
        """The whole object, and which version of it that is.

        Raises:
            OSError: as of `read_bytes`.
        """
        import obstore

        with self._mapped():
            answer = obstore.get(self._client, self.key, options=self._condition)
            return bytes(answer.bytes()), _version(answer.meta)

    def iterdir(self) -> Iterator[RemotePath]:
        """The objects whose names go on with one part, with their versions.

        Raises:
            OSError: the server cannot be asked; that there are none is no error.
        """
        import obstore

        with self._mapped():
            found = obstore.list_with_delimiter(self._client, self._prefix)["objects"]
        yield from map(self._listed, found)

    def walk(self) -> Iterator[RemotePath]:
        """All objects whose names go on, with their versions.

        Raises:
            OSError: as of `iterdir`.
        """
        import obstore

        with self._mapped():
            for page in obstore.list(self._client, self._prefix):
                yield from map(self._listed, page)

    # ------------------------------------------------------------------ writing

    def write_bytes(self, content: bytes | Path, *, expected: str | None = None) -> str:
        """Put an object, whole, in the place of the one that is there; its new etag.

        Args:
            content: bytes, or the file that holds them.
            expected: etag of the object to replace, "" for none; by default whatever is there.

        Raises:
            FileExistsError: what is there is not what was expected.
            OSError: it cannot be written.
        """
        import obstore

        mode: Any = {None: "overwrite", "": "create"}.get(expected, {"e_tag": expected})
        with self._mapped():
            return str(obstore.put(self._client, self.key, content, mode=mode)["e_tag"])

    def unlink(self, missing_ok: bool = True) -> None:  # noqa: ARG002 (as of pathlib.Path)
        """Delete the object, if there is one: a server does not tell.

        Raises:
            OSError: it cannot be deleted.
        """
        import obstore

        with self._mapped():
            obstore.delete(self._client, self.key)

    def replace(self, target: RemotePath) -> None:
        """Copy the object within the bucket, then delete it; for a moment there are both.

        Raises:
            OSError: there is no such object, or it cannot be written.
        """
        import obstore

        with self._mapped():
            obstore.copy(self._client, self.key, target.key)
        self.unlink()

    # ------------------------------------------------------------------ inside

    def client(self, *, within: bool = False) -> S3Store:
        """What asks the server for objects of the bucket, or of those below this path."""
        from obstore.store import S3Store

        plain = _endpoint().startswith("http://")
        return S3Store(
            self.bucket,
            prefix=self.key if within else None,
            client_options={"allow_http": plain, "timeout": _TIMEOUT, "connect_timeout": "5s"},
            retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_TIMEOUT},
        )

    @cached_property
    def _client(self) -> S3Store:
        """One for all the paths that were made from the same one."""
        if not self._connections:
            self._connections.append(self.client())
        return self._connections[0]  # type: ignore[no-any-return]

    @property
    def _prefix(self) -> str | None:
        return f"{self.key}/" if self.key else None

    def _listed(self, meta: Any) -> RemotePath:
        return replace(self, key=meta["path"], version=_version(meta))

    @property
    def _condition(self) -> GetOptions:
        return {"if_match": self.version.etag} if self.version else {}

    def _range(self, start: int, stop: int | None) -> bytes:
        import obstore

        wanted: Any = {"offset": start} if stop is None else (start, stop)
        with self._mapped():
            options: GetOptions = {**self._condition, "range": wanted}
            return bytes(obstore.get(self._client, self.key, options=options).bytes())

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            problem = as_os_error(error, self.bucket)
            if problem is None:
                raise
            raise problem from error


Place = Path | RemotePath
"""Where a store is, or a file of it."""


def as_os_error(error: Exception, bucket: str = "") -> OSError | None:
    """What obstore raised as an OSError whose text is one line; None if another raised it."""
    if not type(error).__module__.startswith("obstore") and not (
        isinstance(error, FileNotFoundError) and error.errno is None
    ):
        return None
    text = str(error)
    code = _between(text, "Code")
    if code == "NoSuchBucket":
        return OSError(errno.EIO, f"there is no bucket {_between(text, 'BucketName') or bucket}")
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "there is no such object")
    if kind in ("AlreadyExistsError", "PreconditionError"):
        return FileExistsError(errno.EEXIST, "another process has changed it")
    if kind in ("PermissionDeniedError", "UnauthenticatedError"):
        why = f" ({code})" if code else ""
        return PermissionError(errno.EACCES, f"the server refuses the AWS_* credentials{why}")
    if "169.254.169.254" in text or "credential" in text.lower():
        return PermissionError(
            errno.EACCES,
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_SKIP_SIGNATURE=true for a public bucket",
        )
    if code:
        return OSError(errno.EIO, f"{code}: {_between(text, 'Message')}")
    if "HTTP error" in text or "error sending request" in text:
        return ConnectionError(errno.EIO, f"{_endpoint() or 'the server'} does not answer")
    return OSError(errno.EIO, text.partition("\n")[0])


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def _between(text: str, tag: str) -> str:
    """The content of an element of the XML in which a server explains itself."""
    found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _version(meta: Any) -> Version:
    return Version(int(meta["size"]), str(meta["e_tag"]), meta["last_modified"])

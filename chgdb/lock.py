"""The lock of a store's one writer: that of a file, or an object that says who writes.

The system gives the lock of a file back when its owner ends, however that happens. Who owns it
stands in a file beside it, for the message of those who wait in vain.

The object is never deleted, so that every change of it is one conditional PUT, of which one of two
writers gets the better. It is empty while nobody writes. Else it names its owner, who renews it
while it lives; one that was not renewed for `LEASE` seconds is another's to take.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from chgdb.errors import StoreError
from chgdb.files import one_line, reason, shown
from chgdb.places import Place, RemotePath, Version

__all__ = ["LEASE", "writer_lock"]

LEASE = 60.0
"""Seconds, by the clock of the server, after which an owner who did not renew counts as dead."""

_POLL = 0.5
"""Seconds between two looks at a lock that another holds."""

Renew = Callable[[], None]


@contextmanager
def writer_lock(path: Place, timeout: float) -> Iterator[Renew]:
    """Hold the lock of a store while the block runs.

    Args:
        path: of the lock.
        timeout: seconds to wait for another writer.

    Yields:
        What raises a StoreError if the lock was lost; to be called before a change takes effect.

    Raises:
        StoreError: another process holds the lock, or the store cannot be written.
    """
    hold = _holding_object if isinstance(path, RemotePath) else _holding_file
    try:
        with hold(path, timeout) as renew:  # type: ignore[arg-type] # the same kind of path
            yield renew
    except _RefusedError as error:
        raise StoreError(f"{shown(path.parent)}: cannot be written ({error})") from error


class _RefusedError(Exception):
    """The system or the server does not let the lock be taken."""


@contextmanager
def _holding_file(path: Path, timeout: float) -> Iterator[Renew]:
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=timeout)
    note = path.with_name(f"{path.name}-owner")
    try:
        lock.acquire()
    except Timeout as error:
        raise _busy(path, timeout, _noted(note)) from error
    except (OSError, NotImplementedError) as error:
        raise _RefusedError(reason(error)) from error
    try:
        try:
            note.write_bytes(_claim(_this_process()))
        except OSError:  # no room: better no name than that of a former owner
            _remove(note)
        yield lambda: None
    finally:
        _remove(note)
        lock.release()


def _noted(note: Path) -> str:
    """Who says to own the lock of a file, "" for nobody."""
    try:
        return _owner(note.read_bytes())
    except OSError:
        return ""


def _remove(note: Path) -> None:
    with suppress(OSError):
        note.unlink(missing_ok=True)


@contextmanager
def _holding_object(path: RemotePath, timeout: float) -> Iterator[Renew]:
    lease = _Lease(path)
    deadline = time.monotonic() + timeout
    try:
        while not lease.taken():
            if time.monotonic() >= deadline:
                raise _busy(path, timeout, lease.owner, _LAPSES)
            time.sleep(min(_POLL, timeout))
    except OSError as error:
        raise _RefusedError(reason(error)) from error
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(LEASE / 4):
            with suppress(StoreError):  # told by whoever asks before a change
                lease.renew()

    keeper = threading.Thread(target=keep, name="chgdb-lock", daemon=True)
    keeper.start()
    try:
        yield lease.renew
    finally:
        ended.set()
        keeper.join()
        lease.release()


class _Lease:
    """An object that this process wants to own, or owns.

    Attributes:
        owner: who owned it at the last look; "" for nobody.
    """

    def __init__(self, path: RemotePath) -> None:
        self.owner = ""
        self._path = path
        self._who = ""
        self._etag = ""
        self._mutex = threading.Lock()

    def taken(self) -> bool:
        """Try to get it."""
        try:
            content, version = self._path.read()
        except FileNotFoundError:
            etag = ""
        else:
            self.owner, etag = _owner(content), version.etag
            if self.owner and not self._lapsed(version):
                return False
        self._who = _this_process()
        try:
            self._etag = self._path.write_bytes(_claim(self._who), expected=etag)
        except FileExistsError:
            return False
        return True

    def renew(self) -> None:
        """Make it young again.

        Raises:
            StoreError: another process has taken it, or the server does not answer.
        """
        with self._mutex:
            try:
                self._etag = self._path.write_bytes(_claim(self._who), expected=self._etag)
            except FileExistsError as error:
                raise StoreError(
                    f"{self._path.parent}: another process has taken over the lock, which was not "
                    f"renewed for {LEASE:g} s; nothing of this step is stored, repeat it"
                ) from error
            except OSError as error:
                raise StoreError(f"{self._path}: cannot be written ({reason(error)})") from error

    def release(self) -> None:
        """Give it back, unless another has it; one that cannot be given back lapses."""
        with suppress(OSError):
            self._path.write_bytes(b"", expected=self._etag)

    def _lapsed(self, version: Version) -> bool:
        """Whether its owner has not renewed it; no clock but that of the server is asked."""
        clock = self._path.parent / f"{self._path.name}-clock"
        clock.write_bytes(b"")
        return (clock.stat().modified - version.modified).total_seconds() > LEASE


_LAPSES = f"; if it is dead, {LEASE:g} s after its last sign"


def _this_process() -> str:
    """Who takes a lock now."""
    import socket

    now = datetime.now(UTC).isoformat(" ", timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {now}"


def _claim(owner: str) -> bytes:
    """What says who owns a lock; no two are the same, so that each has an etag of its own."""
    return json.dumps({"owner": owner, "claim": secrets.token_hex(8)}).encode()


def _owner(content: bytes) -> str:
    """Who a lock belongs to, "" for nobody."""
    try:
        return one_line(str(json.loads(content)["owner"])) if content else ""
    except (ValueError, TypeError, KeyError):
        return "a process that does not say who it is"


def _busy(path: Place, timeout: float, owner: str, hint: str = "") -> StoreError:
    who = f"another process ({owner})" if owner else "another process"
    return StoreError(
        f"{shown(path.parent)}: {who} has been writing for {timeout:g} s; try again later{hint}"
    )

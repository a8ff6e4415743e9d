from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3_server import Server

from chgdb import lock
from chgdb.errors import StoreError
from chgdb.files import place
from chgdb.lock import writer_lock
from chgdb.places import RemotePath


@pytest.fixture
def remote(bucket: str) -> RemotePath:
    return RemotePath.of(bucket) / ".lock"


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with writer_lock(path, 0.0) as renew:
        renew()
        with (
            pytest.raises(
                StoreError,
                match=rf"another process \(process {os.getpid()} on .+ since 2.+\) has been",
            ),
            writer_lock(path, 0.05),
        ):
            pass
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    with writer_lock(path, 0.0):
        pass


HOLD = """
import sys, time
from pathlib import Path
from chgdb.lock import writer_lock
with writer_lock(Path(sys.argv[1]), 0.0):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, and ends by being killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def test_the_file_of_a_dead_writer_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with (
        holder(path) as process,
        pytest.raises(StoreError, match=rf"\(process {process.pid} on .+ since"),
        writer_lock(path, 0.05),
    ):
        pass
    assert (tmp_path / ".lock-owner").exists()  # it could not say good-bye
    with (
        writer_lock(path, 0.0),
        pytest.raises(StoreError, match=rf"\(process {os.getpid()} on"),
        writer_lock(path, 0.0),
    ):
        pass
    assert not (tmp_path / ".lock-owner").exists()


def test_an_owner_that_cannot_be_noted_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / ".lock"
    (tmp_path / ".lock-owner").write_text('{"owner": "one that is dead"}')
    monkeypatch.setattr(Path, "write_bytes", full)
    with (
        writer_lock(path, 0.0),
        pytest.raises(StoreError, match="another process has been writing"),
        writer_lock(path, 0.0),
    ):
        pass


def test_one_writer_of_a_bucket_at_a_time(remote: RemotePath) -> None:
    with writer_lock(remote, 0.0) as renew:
        renew()
        with (
            pytest.raises(StoreError, match=r"another process \(process \d+ on .+\) has been"),
            writer_lock(place(str(remote)), 0.05),
        ):
            pass
    assert remote.read_bytes() == b""
    with writer_lock(remote, 0.0):
        pass


def test_a_writer_waits_for_another(remote: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_POLL", 0.02)
    order = []
    entered = threading.Event()

    def first() -> None:
        with writer_lock(remote, 0.0):
            entered.set()
            time.sleep(0.2)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(10)
    with writer_lock(place(str(remote)), 20.0):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_of_many_writers_one_holds_it(remote: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_POLL", 0.01)
    inside, most = 0, 0

    def write() -> None:
        nonlocal inside, most
        with writer_lock(place(str(remote)), 60.0):
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
    assert remote.read_bytes() == b""


def test_the_lock_of_a_dead_writer_is_taken_over(
    remote: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.write_bytes(json.dumps({"owner": "the dead"}).encode())
    with pytest.raises(StoreError, match="the dead"), writer_lock(remote, 0.0):
        pass
    monkeypatch.setattr(lock, "LEASE", 1.0)
    with writer_lock(remote, 20.0):
        assert b"the dead" not in remote.read_bytes()


def test_a_living_writer_keeps_its_lock(
    remote: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE", 1.0)
    with writer_lock(remote, 0.0) as renew:
        held = remote.read_bytes()
        time.sleep(2.5)
        assert remote.read_bytes() != held
        with pytest.raises(StoreError, match="has been writing"), writer_lock(remote, 0.0):
            pass
        renew()


def test_a_writer_that_lost_its_lock_is_told_and_leaves_it(remote: RemotePath) -> None:
    other = b'{"owner": "another"}'
    with writer_lock(remote, 0.0) as renew:
        remote.write_bytes(other)
        with pytest.raises(StoreError, match="taken over the lock"):
            renew()
    assert remote.read_bytes() == other


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_a_lock_that_nobody_can_read_is_held(remote: RemotePath, content: bytes) -> None:
    remote.write_bytes(content)
    with pytest.raises(StoreError, match="does not say who"), writer_lock(remote, 0.0):
        pass


def test_a_bucket_that_cannot_be_written(
    s3: Server, remote: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment("reader").items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(StoreError, match=r"test-\d+: cannot be written .*AccessDenied"),
        writer_lock(place(str(remote)), 0.0),
    ):
        pass

"""Files: compression by content, all or nothing, one-line messages."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chgdb.errors import InputError, StoreError
from chgdb.files import (
    COMPRESSIONS,
    PARTIAL_SUFFIX,
    compression_of,
    explained,
    one_line,
    read_content,
    read_head,
    reason,
    replace_file,
    replacing,
    shown,
)


@pytest.mark.parametrize(
    ("name", "compress"),
    [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)],
)
def test_compression_is_recognised_by_content(
    name: str, compress: Callable[[bytes], bytes]
) -> None:
    packed = compress(b"content")
    compression = compression_of(packed[:8])
    assert compression is not None
    assert compression.name == name
    assert compression.open(io.BytesIO(packed)).read() == b"content"


def test_the_head_of_a_file_is_read_and_no_more(tmp_path: Path) -> None:
    for name, pack in (("a", bytes), ("a.gz", gzip.compress), ("a.xz", lzma.compress)):
        (tmp_path / name).write_bytes(pack(b"0123456789"))
        assert read_head(tmp_path / name, 4) == b"0123"
        assert read_head(tmp_path / name) == b"0123456789"
        assert read_content(tmp_path / name, 10) == b"0123456789"
        with pytest.raises(InputError, match="holds more than 9 bytes"):
            read_content(tmp_path / name, 9)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError, match=r"cannot be read \(not a regular file\)"):
            read_head(path)
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / "missing", "nul\0byte"):
        with pytest.raises(InputError, match="cannot be read"):
            read_head(path)


@pytest.mark.parametrize("head", [b"", b"B", b"Si bulk", b"PK\x03\x04"])
def test_no_compression(head: bytes) -> None:
    assert compression_of(head) is None


def test_every_compression_has_its_own_suffix() -> None:
    assert [known.suffix for known in COMPRESSIONS] == [".gz", ".bz2", ".xz"]


@pytest.mark.parametrize("durable", [False, True])
def test_replacing(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with replacing(target, durable=durable) as partial:
        assert partial.parent == tmp_path
        assert partial.name.startswith(".")
        assert partial.name.endswith(PARTIAL_SUFFIX)
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("problem", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(tmp_path: Path, problem: BaseException) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def write() -> None:
        with replacing(target) as partial:
            partial.write_text("ne")
            raise problem

    with pytest.raises(type(problem)):
        write()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_refusal_of_the_system_becomes_the_error_asked_for(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match=r"file: cannot be written \(No space left on device\)"),
        replacing(tmp_path / "file", StoreError),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(InputError, match="No such file"), replacing(tmp_path / "no" / "file") as p:
        p.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a regular file"), replacing(tmp_path):
        pass
    with pytest.raises(InputError, match="cannot be written"), replacing("a\0b"):
        pass


def test_links_are_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as partial:
        partial.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_replace_file(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", b"one")
    replace_file(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two"
    with pytest.raises(StoreError, match="cannot be written"):
        replace_file(tmp_path / "no" / "file", b"")


def test_messages_are_one_printable_line() -> None:
    assert shown("a/b") == "a/b"
    assert "\n" not in shown("a\nb")
    assert one_line(" a\n  b ") == "a b"
    assert reason(OSError(2, "gone")) == "gone"
    assert reason(ValueError("a\nb")) == "a b"
    assert reason(EOFError()) == "EOFError"


def test_a_reason_is_short_and_printable() -> None:
    assert reason(ValueError("a\x1b[31m\udc80b\n c")) == r"a\x1b[31m\udc80b c"
    assert len(reason(ValueError("x" * 10**6))) < 400


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InputError("a line"), "a line"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (ZeroDivisionError("by zero"), "unexpected ZeroDivisionError: by zero"),
    ],
)
def test_every_error_is_explained(error: Exception, told: str) -> None:
    assert explained(error) == told

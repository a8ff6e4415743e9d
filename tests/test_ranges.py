from __future__ import annotations

import os

import pytest
from s3_server import Server

pytest.importorskip("fsspec")
from chgdb import ranges
from chgdb.places import RemotePath
from chgdb.ranges import RangeFiles


@pytest.fixture
def listed(bucket: str) -> RemotePath:
    folder = RemotePath.of(bucket)
    (folder / "file").write_bytes(b"0123456789")
    (path,) = folder.iterdir()
    return path


def test_a_read_is_one_request_for_its_range(s3: Server, listed: RemotePath) -> None:
    files = RangeFiles([listed])
    s3.clear()
    assert files.info(str(listed))["size"] == 10
    with files.open(str(listed)) as file:
        assert file.seekable()
        file.seek(-3, os.SEEK_END)
        assert file.read(2) == b"78"
        assert file.tell() == 9
        file.seek(-2, os.SEEK_CUR)
        assert file.read() == b"789"
        assert file.read(5) == b""
        file.seek(2)
        assert file.read(2) == b"23"
    assert [request.range for request in s3.requests] == ["bytes=7-8", "bytes=7-9", "bytes=2-3"]


def test_what_was_read_is_not_asked_for_again(
    s3: Server, listed: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(stop: int) -> int:
        """How many requests it takes."""
        s3.clear()
        assert RangeFiles([listed]).open(str(listed)).read(stop) == b"0123456789"[:stop]
        return len(s3.requests)

    monkeypatch.setattr(ranges, "CACHE_BYTES", 6)
    assert [read(4), read(4), read(2), read(4), read(3), read(2), read(4)] == [1, 0, 1, 0, 1, 1, 1]


def test_only_the_listed_versions_are_read(listed: RemotePath) -> None:
    files = RangeFiles([listed])
    with pytest.raises(PermissionError):
        files.open(str(listed), "wb")
    with pytest.raises(KeyError):
        files.open(str(listed.parent / "other"))
    assert files.glob(str(listed)) == [str(listed)]
    assert files.glob(str(listed.parent / "*")) == []
    assert files.exists(str(listed))
    (listed.parent / "file").write_bytes(b"x" * 10)
    with pytest.raises(FileExistsError):
        files.open(str(listed)).read(4)
    assert files.problem is not None
    assert files.problem[0] == listed

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from s3_server import BUCKET, Server

from chgdb.places import RemotePath, as_os_error

FREE = RemotePath("bucket", "a/b.c.d")


def test_paths_are_put_together_like_those_of_files() -> None:
    pytest.importorskip("obstore")
    path = RemotePath.of("s3://bucket//a/") / "b.c.d"
    assert path == FREE
    assert str(path) == "s3://bucket/a/b.c.d"
    assert (path.name, path.stem, path.parent.name) == ("b.c.d", "b.c", "a")
    assert str(path.parent.parent) == "s3://bucket"
    assert str(RemotePath.of("s3://bucket") / "x") == "s3://bucket/x"
    assert min([path, path.parent / "a"]).name == "a"
    assert pickle.loads(pickle.dumps(path)) == path


@pytest.mark.parametrize(
    "url", ["s3://", "s3://Upper/x", "s3://a", "s3://bucket/../x", "s3://bucket/./x", "s3://b\nc/x"]
)
def test_what_names_no_object_is_refused(url: str) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(ValueError, match="is not the name of"):
        RemotePath.of(url)


def test_objects_are_written_read_listed_and_deleted(bucket: str) -> None:
    folder = RemotePath.of(bucket)
    path = folder / "sub" / "file"
    assert not path.exists()
    assert list(folder.walk()) == list(folder.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="no such object"):
        path.read_bytes()
    etag = path.write_bytes(b"0123456789")
    assert path.exists()
    assert path.read_text() == "0123456789"
    assert path.read_bytes(2, 5) == b"234"
    assert path.read_bytes(7) == b"789"
    assert (path.stat().size, path.stat().etag) == (10, etag)
    (folder / "top").write_bytes(b"")
    assert list(folder.iterdir()) == [folder / "top"]
    assert sorted(folder.walk()) == [path, folder / "top"]
    assert [listed.version for listed in path.parent.iterdir()] == [path.stat()]
    path.replace(folder / "moved")
    assert {listed.name for listed in folder.walk()} == {"moved", "top"}
    for gone in folder.walk():
        gone.unlink()
    (folder / "top").unlink()
    assert not list(folder.walk())


def test_a_file_is_put_whole(bucket: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 2**15  # 8 MiB: several parts
    (tmp_path / "file").write_bytes(content)
    path = RemotePath.of(bucket) / "file"
    path.write_bytes(tmp_path / "file")
    assert path.read_bytes() == content


def test_a_put_may_have_a_condition(bucket: str) -> None:
    path = RemotePath.of(bucket) / "file"
    first = path.write_bytes(b"1", expected="")
    with pytest.raises(FileExistsError):
        path.write_bytes(b"2", expected="")
    second = path.write_bytes(b"2", expected=first)
    assert second != first
    with pytest.raises(FileExistsError):
        path.write_bytes(b"3", expected=first)
    assert path.read_bytes() == b"2"


def test_a_listed_object_that_changed_is_not_read(bucket: str) -> None:
    path = RemotePath.of(bucket) / "file"
    path.write_bytes(b"old")
    (listed,) = path.parent.iterdir()
    assert listed.read_bytes(0, 2) == b"ol"
    path.write_bytes(b"new")
    with pytest.raises(FileExistsError):
        listed.read_bytes()
    with pytest.raises(FileExistsError):
        listed.read_bytes(0, 2)


def test_a_listing_of_more_than_one_page(bucket: str) -> None:
    folder = RemotePath.of(bucket)
    names = {f"{i:04d}" for i in range(1003)}
    for name in names:
        (folder / name).write_bytes(b"")
    assert (
        {path.name for path in folder.iterdir()} == {path.name for path in folder.walk()} == names
    )


def test_paths_share_their_connections(s3: Server, bucket: str) -> None:
    folder = RemotePath.of(bucket)
    path = folder / "file"
    path.write_bytes(b"x")
    (listed,) = folder.iterdir()
    assert listed._client is path._client is folder._client


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "refuses the AWS_. credentials .SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "nobody", "refuses the AWS_. credentials .InvalidAccessKeyId"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "http://127.0.0.1:9 does not answer"),
    ],
)
def test_what_the_server_says(
    bucket: str, name: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match=problem) as caught:
        (RemotePath.of(bucket) / "file").read_bytes()
    assert "\n" not in str(caught.value)


def test_a_bucket_that_there_is_not(s3: Server) -> None:
    path = RemotePath.of("s3://no-such-bucket/x")
    for ask in (path.read_bytes, lambda: list(path.iterdir()), lambda: list(path.walk())):
        with pytest.raises(OSError, match="there is no bucket no-such-bucket"):
            ask()


def test_a_user_who_may_only_read(s3: Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (RemotePath.of(bucket) / "file").write_bytes(b"x")
    for name, value in s3.environment("reader").items():
        monkeypatch.setenv(name, value)
    path = RemotePath.of(bucket) / "file"
    assert path.read_bytes() == b"x"
    with pytest.raises(PermissionError, match="AccessDenied"):
        path.write_bytes(b"y")


def test_a_server_that_falls_silent(s3: Server, bucket: str) -> None:
    path = RemotePath.of(bucket) / "file"
    path.write_bytes(b"x")

    def silent(method: str, key: str) -> None:
        raise ConnectionError

    s3.before = silent
    with pytest.raises(ConnectionError, match="does not answer"):
        path.read_bytes()
    s3.before = lambda method, key: None
    assert path.read_bytes() == b"x"


def test_no_credentials_are_called_so() -> None:
    class GenericError(Exception):
        __module__ = "obstore.exceptions"

    error = GenericError("Error performing PUT http://169.254.169.254/latest/api/token\nmore")
    assert "AWS_ACCESS_KEY_ID" in str(as_os_error(error))
    assert as_os_error(ValueError("x")) is None
    assert as_os_error(FileNotFoundError(2, "of the system")) is None
    assert str(as_os_error(GenericError("one\ntwo"))) == "[Errno 5] one"
    assert BUCKET not in str(as_os_error(GenericError("<Code>NoSuchBucket</Code>"), "mine"))

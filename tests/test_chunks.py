"""Chunks and shards of Zarr: one changed byte is found and mended, more are left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec

from chgdb.chunks import restored_chunk, restored_shard

CHUNKS = 4


def flipped(content: bytes, place: int, change: int) -> bytes:
    return content[:place] + bytes([content[place] ^ change]) + content[place + 1 :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An array with a shard, one of whose chunks is empty, and one without shards."""
    path = tmp_path_factory.mktemp("zarr")
    values = np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint8)
    values[1000:2000] = 0
    packed = ZstdCodec(), Crc32cCodec()
    for name, shards in (("shard", (1000 * CHUNKS,)), ("chunk", None)):
        array = zarr.create_array(
            path / name,
            shape=4000,
            chunks=(1000,),
            shards=shards,
            dtype="u1",
            compressors=packed,
            config={"write_empty_chunks": False},
        )
        array[:] = values
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_one_byte_of_a_shard_is_mended(folder: Path, data: st.DataObject) -> None:
    content = (folder / "shard/c/0").read_bytes()
    assert restored_shard(content, CHUNKS) == content
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = flipped(content, place, data.draw(st.integers(1, 255)))
    assert restored_shard(damaged, CHUNKS) in (content, damaged)  # or another byte, too, would fit
    assert restored_shard(content[: data.draw(st.integers(0, 60))], CHUNKS) is None


def test_most_bytes_of_a_chunk_are_mended(folder: Path) -> None:
    content = (folder / "chunk/c/0").read_bytes()
    assert restored_chunk(content) == content
    for place in range(0, len(content), 3):
        assert restored_chunk(flipped(content, place, 16)) == content


def test_two_bytes_are_not(folder: Path) -> None:
    content = (folder / "chunk/c/0").read_bytes()
    for place in range(0, len(content) - 1, 7):
        assert restored_chunk(flipped(flipped(content, place, 1), place + 1, 3)) != content
    assert restored_chunk(b"") is None

"""Seals: any changed byte is told, one is mended, and nothing is mended wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chgdb.seals import NO_SUMS, UNSEALED, damaged_blocks, restored, seal, seal_holds, sealed

BODY = bytes(range(256)) * 20
PLAIN = sealed(b'{"a": 1, "seal": "' + UNSEALED.encode() + b'"}\n')
SEAL_FIRST = sealed(BODY + UNSEALED.encode() + b" " + NO_SUMS.encode() + BODY[:77])
WITH_SUMS = sealed(BODY + NO_SUMS.encode() + b" " + UNSEALED.encode() + BODY[:77])


def flipped(content: bytes, place: int, change: int) -> bytes:
    return content[:place] + bytes([content[place] ^ change]) + content[place + 1 :]


@pytest.mark.parametrize("content", [PLAIN, WITH_SUMS, SEAL_FIRST])
@given(data=st.data())
def test_any_byte_is_told_and_mended(content: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = flipped(content, place, data.draw(st.integers(1, 255)))
    assert seal_holds(damaged) is not True
    assert restored(damaged) == content


@pytest.mark.parametrize("content", [WITH_SUMS, SEAL_FIRST])
def test_every_byte_of_seal_and_sums_is_mended(content: bytes) -> None:
    for text in (b"chgdb:sha256:", b"chgdb:crc32:"):
        start = content.rfind(text)
        for place in range(start - 2, start + 90):
            assert restored(flipped(content, place, 64)) == content


@given(st.data())
def test_more_than_one_byte_is_told_and_not_mended_wrongly(data: st.DataObject) -> None:
    damaged = bytearray(WITH_SUMS)
    places = data.draw(st.sets(st.integers(0, len(BODY) - 1), min_size=2, max_size=9))
    for place in places:
        damaged[place] ^= data.draw(st.integers(1, 255))
    assert seal_holds(bytes(damaged)) is False
    assert restored(bytes(damaged)) is None
    assert restored(WITH_SUMS[: len(BODY) // 2]) is None


def test_the_blocks_that_changed_are_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(WITH_SUMS)
    assert damaged_blocks(path) == []
    path.write_bytes(flipped(flipped(WITH_SUMS, 5, 1), 3000, 128))
    found = damaged_blocks(path)
    assert found is not None
    assert len(found) == 2
    for (first, last), place in zip(found, (5, 3000), strict=True):
        assert first <= place < last
    path.write_bytes(PLAIN)
    assert damaged_blocks(path) is None


def test_a_file_is_sealed_as_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(BODY + UNSEALED.encode())
    seal(path)
    assert path.read_bytes() == sealed(BODY + UNSEALED.encode())
    assert seal_holds(path) is True


def test_what_has_no_seal(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert seal_holds(path) is None
    assert damaged_blocks(path) is None
    path.write_bytes(BODY)
    assert seal_holds(path) is None
    assert restored(BODY) is None
    with pytest.raises(ValueError, match="no place"):
        seal(path)

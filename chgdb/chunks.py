"""Files of Zarr arrays as bytes: chunks that end in a CRC-32C, and shards of them.

A shard is its chunks and, behind them, the offset and length of each (uint64, all ones for a chunk
that is not there) and the CRC-32C of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from chgdb.seals import one_byte

__all__ = ["restored_chunk", "restored_shard"]

_SUM = 4
"""Bytes of a CRC-32C."""

_PLACE = np.dtype("<u8")
_ABSENT = 2**64 - 1


def restored_chunk(content: bytes) -> bytes | None:
    """A chunk as it was if one byte of it has changed; as it is if none has; None if more have.

    Of more than one change that its checksum allows none is chosen.
    """
    if len(content) <= _SUM:
        return None
    difference = _crc32c(content[:-_SUM]) ^ int.from_bytes(content[-_SUM:], "little")
    if not difference:
        return content
    found = list(_changes(difference, len(content)))
    if len(found) != 1:
        return None
    ((place, change),) = found
    return content[:place] + bytes([content[place] ^ change]) + content[place + 1 :]


def restored_shard(content: bytes, n_chunks: int) -> bytes | None:
    """A shard as it was if one byte of each of its pieces has changed; None if that cannot be.

    Args:
        content: of the file.
        n_chunks: of a shard.
    """
    size = 2 * n_chunks * _PLACE.itemsize + _SUM
    if len(content) < size or (index := restored_chunk(content[-size:])) is None:
        return None
    mended = bytearray(content)
    mended[-size:] = index
    end = len(content) - size
    for offset, length in np.frombuffer(index[:-_SUM], _PLACE).reshape(-1, 2).tolist():
        if (offset, length) == (_ABSENT, _ABSENT):
            continue
        if offset + length > end:
            return None
        if (chunk := restored_chunk(bytes(mended[offset : offset + length]))) is not None:
            mended[offset : offset + length] = chunk
    return bytes(mended)


def _changes(difference: int, size: int) -> Iterator[tuple[int, int]]:
    """Each byte of a chunk, and its bits, whose change the checksums differ by."""
    yield from one_byte(difference, size - _SUM, _crc32c)
    of_sum = [(i, byte) for i, byte in enumerate(difference.to_bytes(_SUM, "little")) if byte]
    if len(of_sum) == 1:
        ((place, change),) = of_sum
        yield size - _SUM + place, change


def _crc32c(data: Any) -> int:
    import google_crc32c  # that of Zarr

    return int(google_crc32c.value(data))

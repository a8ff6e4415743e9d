"""Seals: what a file says of itself, by which a changed byte is told, and often mended.

A seal is the SHA-256 of a file, written into the file in a place of its own. Beside it a file may
hold the CRC-32 of each of 256 blocks, which say where a change is.
"""

from __future__ import annotations

import hashlib
import mmap
import operator
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from chgdb.places import Place, RemotePath

__all__ = [
    "NO_SUMS",
    "UNSEALED",
    "damaged_blocks",
    "one_byte",
    "restored",
    "seal",
    "seal_holds",
    "sealed",
]

_SEAL = b"chgdb:sha256:"
_SUMS = b"chgdb:crc32:"
_BLOCKS = 256
_SMALL = 2**11
"""Bytes of a file in which every change of a byte can be tried."""

UNSEALED = f"{_SEAL.decode()}{'0' * 64}"
"""Text in a file that `seal` replaces by the hash of the file as it was with it."""

NO_SUMS = f"{_SUMS.decode()}{'0' * 8 * _BLOCKS}"
"""Text in a file that `seal` replaces by the CRC-32 of 256 blocks of it; it needs no such place."""

_Content = bytes | bytearray | mmap.mmap
_T = TypeVar("_T")


def seal(path: str | Path) -> None:
    """Write into a file, in the place of `UNSEALED`, what tells later whether a byte has changed.

    Where it has a place for them, the checksums of its blocks tell which, and `restored` mends it.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it has no such place.
    """
    with Path(path).open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        _seal(content)


def sealed(content: bytes) -> bytes:
    """What `seal` makes of a file with this content.

    Raises:
        ValueError: it has no place for a seal.
    """
    changed = bytearray(content)
    _seal(changed)
    return bytes(changed)


def _seal(content: bytearray | mmap.mmap) -> None:
    start = content.rfind(UNSEALED.encode())
    if start < 0:
        raise ValueError("no place for a seal")
    if (sums := content.rfind(NO_SUMS.encode())) >= 0:
        content[sums : sums + len(NO_SUMS)] = _SUMS + _sums(content)
    content[start : start + len(UNSEALED)] = _SEAL + _digest(content, start)


def seal_holds(path: Place | bytes) -> bool | None:
    """Whether a sealed file is as it was when it was sealed; None if it has no seal.

    Args:
        path: of the file, or its content.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(path, bytes):
        return _holds(path)
    if isinstance(path, RemotePath):
        return _holds(path.read_bytes())
    return _of_content(path, _holds)


def damaged_blocks(path: Path) -> list[tuple[int, int]] | None:
    """First byte and last + 1 of the blocks of a file that have changed; None if it has no sums.

    It is four times as fast as `seal_holds`.

    Raises:
        OSError: the file cannot be read.
    """
    return _of_content(path, _damaged)


def _of_content(path: Path, tell: Callable[[mmap.mmap], _T | None]) -> _T | None:
    """What a function tells of the content of a file; None of an empty one."""
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return None
        with content:
            return tell(content)


def restored(content: bytes) -> bytes | None:
    """A sealed file of which one byte was changed, as it was; None if that cannot be.

    The checksum of a block tells the byte, and the seal that it is the right one.
    """
    fixed = bytearray(content)
    if _SUMS not in content and len(content) <= _SMALL:
        return _tried(fixed)
    for text in (_SEAL, _SUMS):
        place = _nearest(content, text)
        if place is None:
            return None
        fixed[place : place + len(text)] = text
    start, sums, damaged = fixed.rfind(_SEAL), fixed.rfind(_SUMS), _damaged(fixed) or []
    if not damaged:  # but the seal itself, perhaps
        fixed[start : start + len(UNSEALED)] = _SEAL + _digest(fixed, start)
        return bytes(fixed)
    if len(damaged) > 1:
        return None
    again = fixed.copy()
    again[sums : sums + len(NO_SUMS)] = _SUMS + _sums(fixed)
    if _holds(again):
        return bytes(again)
    ((first, last),) = damaged
    index = first // _block_size(fixed)
    digits = bytes(fixed[sums + len(_SUMS) + 8 * index :][:8])
    try:
        difference = int(digits, 16) ^ zlib.crc32(_block(fixed, first, last, _places(fixed)))
    except ValueError:
        return None
    for place, change in one_byte(difference, last - first):
        fixed[first + place] ^= change
        if _holds(fixed):
            return bytes(fixed)
        fixed[first + place] ^= change
    return None


def _tried(content: bytearray) -> bytes | None:
    """A small file with a seal, whichever byte of it was changed."""
    place = _nearest(bytes(content), _SEAL)
    if place is None:
        return None
    content[place : place + len(_SEAL)] = _SEAL
    for index, before in enumerate(content):
        for value in range(256):
            content[index] = value
            if _holds(content):
                return bytes(content)
        content[index] = before
    return None


def one_byte(
    difference: int, size: int, checksum: Callable[[bytes], int] = zlib.crc32
) -> Iterator[tuple[int, int]]:
    """Where one byte may have changed, and by which bits, for a CRC-32 to differ so.

    CRC-32 is linear: a change of the last byte by v differs by c(v), and of the byte before by the
    same after one more byte 0. So zeros are taken off the difference until it is that of one byte.

    Args:
        difference: exclusive or of the two checksums.
        size: bytes that they are of.
        checksum: CRC-32, or another of 32 reflected bits, such as CRC-32C.
    """
    of_byte = [checksum(bytes([v])) ^ checksum(b"\0") for v in range(256)]
    by_difference = {difference: v for v, difference in enumerate(of_byte) if v}
    by_high = {entry >> 24: v for v, entry in enumerate(of_byte)}
    for place in range(size - 1, -1, -1):
        if difference in by_difference:
            yield place, by_difference[difference]
        low = by_high[difference >> 24]
        difference = ((difference ^ of_byte[low]) << 8 | low) & 0xFFFFFFFF


def _nearest(content: bytes, text: bytes) -> int | None:
    """Where a text is last in a file, with at most one byte changed."""
    if (found := content.rfind(text)) >= 0:
        return found
    half = len(text) // 2
    for part, offset in ((text[:half], 0), (text[half:], half)):
        end = len(content)
        while (found := content.rfind(part, 0, end)) >= 0:
            place, end = found - offset, found + len(part) - 1
            there = content[place : place + len(text)] if place >= 0 else b""
            if len(there) == len(text) and sum(map(operator.ne, there, text)) == 1:
                return place
    return None


def _holds(content: _Content) -> bool | None:
    start = content.rfind(_SEAL)
    if start < 0:
        return None if (damaged := _damaged(content)) is None else not damaged
    return bytes(content[start : start + len(UNSEALED)]) == _SEAL + _digest(content, start)


def _digest(content: _Content, start: int) -> bytes:
    """The hash of a file whose seal, at `start`, is taken for `UNSEALED`."""
    digest = hashlib.sha256()
    with memoryview(content) as view:
        digest.update(view[:start])
        digest.update(UNSEALED.encode())
        digest.update(view[start + len(UNSEALED) :])
    return digest.hexdigest().encode()


def _damaged(content: _Content) -> list[tuple[int, int]] | None:
    start = content.rfind(_SUMS)
    if start < 0:
        return None
    stored, found = bytes(content[start + len(_SUMS) : start + len(NO_SUMS)]), _sums(content)
    size = _block_size(content)
    return [
        (first, min(first + size, len(content)))
        for index in range(_BLOCKS)
        if stored[8 * index : 8 * index + 8] != found[8 * index : 8 * index + 8]
        for first in [min(index * size, len(content) - 1)]
    ]


def _block_size(content: _Content) -> int:
    return -(-len(content) // _BLOCKS)


def _sums(content: _Content) -> bytes:
    """The CRC-32 of every block, where those of seal and sums are taken for zeros."""
    size, places = _block_size(content), _places(content)
    firsts = range(0, size * _BLOCKS, size)
    return b"".join(b"%08x" % zlib.crc32(_block(content, a, a + size, places)) for a in firsts)


def _places(content: _Content) -> list[tuple[int, int]]:
    """First byte and last + 1 of the digits of the seal and of the sums."""
    found = [(content.rfind(text), text, len(whole)) for text, whole in _TEXTS]
    return [(start + len(text), start + length) for start, text, length in found if start >= 0]


_TEXTS = ((_SEAL, UNSEALED), (_SUMS, NO_SUMS))


def _block(content: _Content, first: int, last: int, places: list[tuple[int, int]]) -> bytes:
    """Some bytes of a file, with zeros in some places."""
    block = content[first:last]
    for start, stop in places:
        low, high = max(start, first), min(stop, last)
        if low < high:
            block = block[: low - first] + bytes(high - low) + block[high - first :]
    return bytes(block)

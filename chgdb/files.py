"""Files, whatever they hold: compression, writing all or nothing, how messages name them.

What belongs to a store may be an object of a bucket instead (`chgdb.places`).
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import mmap
import os
import secrets
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from chgdb.errors import ChgdbError, InputError, MissingExtraError, StoreError
from chgdb.places import SCHEME, Place, RemotePath

__all__ = [
    "COMPRESSIONS",
    "HEAD",
    "PARTIAL_SUFFIX",
    "UNPACK_ERRORS",
    "NO_SUMS",
    "UNSEALED",
    "Compression",
    "brief",
    "compression_of",
    "decompressed",
    "make_folder",
    "most_unpacked",
    "one_line",
    "opened",
    "place",
    "printable",
    "read_content",
    "read_head",
    "reason",
    "refuse_links",
    "remove_partials",
    "damaged_blocks",
    "rename",
    "replace_file",
    "replacing",
    "restored",
    "seal",
    "seal_holds",
    "shown",
    "size_of",
    "sync_folder",
    "write_files",
]

PARTIAL_SUFFIX = ".partial"
"""End of the name of a file that is being written; the name begins with a dot."""


_BRIEF = 60


class Compression(NamedTuple):
    """A compressed format.

    Attributes:
        name: for messages.
        suffix: of the file name.
        magic: the first bytes of such a file.
        open: the content of an open file, decompressed while it is read.
    """

    name: str
    suffix: str
    magic: bytes
    open: Callable[[IO[bytes]], Any]


COMPRESSIONS = (
    Compression("gzip", ".gz", b"\x1f\x8b", gzip.open),
    Compression("bzip2", ".bz2", b"BZh", bz2.open),
    Compression("xz", ".xz", b"\xfd7zXZ\x00", lzma.open),
)


def compression_of(head: bytes) -> Compression | None:
    """How a file that begins with `head` (8 bytes will do) is compressed; None if it is not."""
    return next((known for known in COMPRESSIONS if head.startswith(known.magic)), None)


# --- reading --------------------------------------------------------------------------------

HEAD = 2**24
"""Bytes by which a file is recognised, more than the header of 200,000 atoms takes."""

UNPACK_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
"""What reading a damaged file raises, compressed or not."""

_UNPACKED_AT_LEAST = 2**28
_UNPACKED_RATIO = 200


def most_unpacked(packed: int) -> int:
    """Bytes that a compressed file of `packed` bytes may unpack to: 256 MiB + 200 times as many.

    CHGCARs unpack to some 3 to 6 times their size; gzip can reach a thousand times, and bzip2 and
    xz far more.
    """
    return _UNPACKED_AT_LEAST + _UNPACKED_RATIO * packed


@contextmanager
def opened(path: str | Path) -> Iterator[io.BufferedReader]:
    """A regular file as it is; what else has a name may never end, or can be read only once.

    Raises:
        InputError: it cannot be opened, or reading it inside the block fails.
    """
    try:
        # Opening a pipe would wait for someone who writes to it.
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError(f"{shown(path)}: cannot be read (not a regular file)")
        with Path(path).open("rb") as file:
            yield file
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(path)}: cannot be read ({reason(error)})") from error


def decompressed(file: IO[bytes]) -> IO[bytes]:
    """The content of a file at its beginning, decompressed while it is read; or `file` itself."""
    compression = compression_of(file.read(8))
    file.seek(0)
    content: IO[bytes] = file if compression is None else compression.open(file)
    return content


def read_head(path: str | Path, size: int = HEAD) -> bytes:
    """The first `size` bytes of what a file holds, decompressed; all of a shorter one.

    Raises:
        InputError: the file cannot be read that far.
    """
    with opened(path) as file:
        try:
            return decompressed(file).read(size)
        except UNPACK_ERRORS as error:
            raise InputError(f"{shown(path)}: cannot be read ({reason(error)})") from error


def read_content(path: str | Path, most: int) -> bytes:
    """What a file holds, decompressed.

    Raises:
        InputError: it cannot be read, or it is more than `most` bytes.
    """
    content = read_head(path, most + 1)
    if len(content) > most:
        raise InputError(f"{shown(path)}: holds more than {most} bytes; refused")
    return content


# --- places ---------------------------------------------------------------------------------


def place(path: str | Place) -> Place:
    """Where a store is: an absolute path, or a beginning of names in a bucket (`s3://...`).

    Raises:
        StoreError: it is neither.
        MissingExtraError: it is in a bucket, and obstore is not installed.
    """
    if isinstance(path, RemotePath):
        return path
    text = str(path)
    if not text.startswith(SCHEME):
        if isinstance(path, str) and "://" in text:
            raise StoreError(f"{shown(text)}: a store is a folder, or s3://BUCKET/PREFIX")
        return Path(path).absolute()
    try:
        return RemotePath.of(text)
    except ValueError as error:
        raise StoreError(f"{shown(text)}: {error}") from error
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"a store at {SCHEME}...", "s3") from error


# --- writing --------------------------------------------------------------------------------


def make_folder(folder: str | Path, error: type[ChgdbError] = InputError) -> Path:
    """The folder, made with those above it where it is not there.

    Raises:
        ChgdbError: `error`, if it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise error(f"{shown(folder)}: cannot be written ({reason(problem)})") from problem
    return Path(folder)


def write_files(
    folder: str | Path, contents: Mapping[str, bytes], error: type[ChgdbError] = InputError
) -> None:
    """Write files of a folder, which is made; each takes the place of its old content whole.

    Raises:
        ChgdbError: `error`, if one cannot be written.
    """
    folder = make_folder(folder, error)
    for name, content in contents.items():
        with replacing(folder / name, error) as partial:
            partial.write_bytes(content)


@contextmanager
def replacing(
    path: str | Place, error: type[ChgdbError] = InputError, *, durable: bool = False
) -> Iterator[Path]:
    """The name of a file to make; it takes the place of `path` once the block ends well.

    Whatever happens, the old or the new content is at `path`, and nothing else is left.

    Args:
        path: the file to replace or to create; a link is followed. An object of a bucket is made
            in a temporary folder first.
        error: what a refusal of the system, also inside the block, is raised as.
        durable: bring content and name to the disk, so that a power failure changes nothing.

    Raises:
        ChgdbError: `error`, if the file cannot be written.
    """
    if isinstance(path, RemotePath):
        with _uploading(path, error) as partial:
            yield partial
        return
    try:
        target = Path(os.path.realpath(path))
        occupied = target.exists() and not target.is_file()
    except (OSError, ValueError) as problem:
        raise error(f"{shown(path)}: cannot be written ({reason(problem)})") from problem
    if occupied:
        raise error(f"{shown(path)}: not a regular file; name a file to write")
    partial = target.with_name(f".chgdb-{secrets.token_hex(6)}{PARTIAL_SUFFIX}")
    try:
        yield partial
        if durable:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(target)
        if durable:
            sync_folder(target.parent)
    except BaseException as problem:
        partial.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            raise error(f"{shown(path)}: cannot be written ({reason(problem)})") from problem
        raise


@contextmanager
def _uploading(path: RemotePath, error: type[ChgdbError]) -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix="chgdb-") as folder:
            partial = Path(folder) / path.name
            yield partial
            path.write_bytes(partial)
    except OSError as problem:
        raise error(f"{path}: cannot be written ({reason(problem)})") from problem


def replace_file(path: Place, content: bytes) -> None:
    """Write a file of a store so that, whatever happens, its old or its new content is on the disk.

    Raises:
        StoreError: it cannot be written.
    """
    with replacing(path, StoreError, durable=True) as partial:
        partial.write_bytes(content)


def remove_partials(folder: Place, *, below: bool = False) -> None:
    """Remove what an interrupted writer left in a folder, or also `below` it.

    Raises:
        OSError: a file cannot be removed.
    """
    if isinstance(folder, RemotePath):
        return  # an object is there when it is whole
    pattern = f".*{PARTIAL_SUFFIX}"
    for leftover in folder.rglob(pattern) if below else folder.glob(pattern):
        leftover.unlink(missing_ok=True)


def size_of(path: Place) -> int:
    """Bytes of a file; 0 if it is not there.

    Raises:
        OSError: it cannot be looked at.
    """
    if isinstance(path, RemotePath):
        return path.version.size if path.version else 0
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def refuse_links(folder: Place) -> None:
    """Refuse a folder that holds a link: writing and deleting there would happen elsewhere.

    Raises:
        StoreError: it does, or it cannot be looked at.
    """
    if isinstance(folder, RemotePath):
        return

    def fail(problem: OSError) -> None:
        raise StoreError(f"{shown(folder)}: cannot be read ({reason(problem)})") from problem

    for parent, folders, names in os.walk(folder, onerror=fail):
        for name in (*folders, *names):
            path = Path(parent, name)
            if path.is_symlink():
                raise StoreError(
                    f"{shown(path)}: is a link, which a store that is written must not hold; put "
                    "there what it leads to"
                )


def rename(path: Place, name: str) -> None:
    """Give a file another name in its folder; an object is there with both for a moment.

    Raises:
        OSError: it cannot be renamed.
    """
    if isinstance(path, RemotePath):
        path.replace(path.parent / name)
    else:
        path.replace(path.with_name(name))


def sync_folder(folder: Place) -> None:
    """Bring renames in a folder to the disk, where the system can (Windows cannot)."""
    if os.name == "nt" or isinstance(folder, RemotePath):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- seals ----------------------------------------------------------------------------------

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


def seal(path: str | Path) -> None:
    """Write into a file, in the place of `UNSEALED`, what tells later whether a byte has changed.

    Where it has a place for them, the checksums of its blocks tell which, and `restored` mends it.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it has no such place.
    """
    with Path(path).open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
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
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return None
        with content:
            return _holds(content)


def damaged_blocks(path: Path) -> list[tuple[int, int]] | None:
    """First byte and last + 1 of the blocks of a file that have changed; None if it has no sums.

    It is four times as fast as `seal_holds`.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return None
        with content:
            return _damaged(content)


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
    for place, change in _one_byte(difference, last - first):
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


def _one_byte(difference: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a byte may have changed, and by which bits, for a CRC-32 to differ so.

    CRC-32 is linear: a change of the last byte by v differs by c(v), and of the byte before by the
    same after one more byte 0. So zeros are taken off the difference until it is that of one byte.
    """
    of_byte = [zlib.crc32(bytes([v])) ^ zlib.crc32(b"\0") for v in range(256)]
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
        place = content.rfind(part) - offset
        if place >= 0 and sum(a != b for a, b in zip(content[place:], text, strict=False)) == 1:
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


# --- messages -------------------------------------------------------------------------------


def shown(path: str | Place) -> str:
    """A path as one printable line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


_LONGEST_REASON = 300


def printable(text: str) -> str:
    """A text with every character that is not printed, such as ESC, written as in Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def brief(text: str) -> str:
    """A text of a user's in a message: printable, in quotes and short."""
    return repr(text if len(text) <= _BRIEF else f"{text[: _BRIEF - 3]}...")


def reason(error: BaseException) -> str:
    """What went wrong, as one short printable line without the path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = one_line(text) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."


def one_line(text: str) -> str:
    """The words of a text with single spaces between them; what cannot be printed is escaped."""
    return printable(" ".join(text.split()))

"""Files, whatever they hold: compression, writing all or nothing, how messages name them.

What belongs to a store may be an object of a bucket instead (`chgdb.places`).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
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
    "LARGEST_TABLE",
    "PARTIAL_SUFFIX",
    "UNPACK_ERRORS",
    "Compression",
    "brief",
    "compression_of",
    "decompressed",
    "explained",
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
    "rename",
    "replace_file",
    "replacing",
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

LARGEST_TABLE = 2**28
"""Bytes of a CSV file; a million materials take some 200 MB."""

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


def explained(error: BaseException) -> str:
    """What to tell people of any error: ours in its own words, others by their kind."""
    if isinstance(error, ChgdbError):
        return str(error)
    if isinstance(error, OSError | MemoryError):
        return reason(error)
    return f"unexpected {type(error).__name__}: {error}"


def one_line(text: str) -> str:
    """The words of a text with single spaces between them; what cannot be printed is escaped."""
    return printable(" ".join(text.split()))

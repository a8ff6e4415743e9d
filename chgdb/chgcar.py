"""CHGCAR, CHG, PARCHG and AECCAR files: the only place that knows what VASP stores.

VASP stores rho * V_cell with x fastest; chgdb holds e/A^3 indexed [x, y, z]. The inverse pair
`_density_from_stored` and `_stored_from_density` owns that convention.

A file is a POSCAR header, a blank line, and one, two (spin) or four (noncollinear) blocks: a grid
line, the values, and optionally augmentation occupancies and one magnetic moment per ion.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, cast

import numpy as np

from chgdb.density import ChargeDensity, Grid, Structure
from chgdb.elements import SYMBOLS
from chgdb.errors import ChgcarError, InputError
from chgdb.files import (
    HEAD,
    UNPACK_ERRORS,
    compression_of,
    most_unpacked,
    reason,
    replacing,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["Chgcar", "read_chgcar", "read_header", "write_chgcar"]

_SMALLEST_VOLUME = 1e-6
"""A^3; below it a cell counts as flat."""

_COMMENT_WIDTH = 80
_VALUES_PER_LINE = 5
_ROWS_PER_CHUNK = 8192
_BYTES_PER_CHUNK = 1 << 18

_IS_IT_A_POSCAR = "a POSCAR has no density; or copy the file again or rerun VASP"
_COPY_AGAIN = "copy the file again or rerun VASP"
_IS_IT_A_CHGCAR = "check that it is a CHGCAR or a POSCAR"


@dataclass(frozen=True, eq=False)
class Chgcar:
    """What a CHGCAR holds: the density, and the text around it for writing it back.

    Attributes:
        density: total density in e/A^3, magnetization in mu_B/A^3 if the file has one.
        header: the POSCAR lines up to the blank line; "" makes the writer print its own. It
            differs from the file only where `species` named what the file did not.
        augmentation: text of the augmentation occupancies after each block, "" where there are
            none.
        moments: text of the per-ion moments between each block (after its augmentation) and the
            next, "" where there are none.
    """

    density: ChargeDensity
    header: str = ""
    augmentation: tuple[str, ...] = ()
    moments: tuple[str, ...] = ()


def read_chgcar(path: str | Path, *, species: Sequence[str] | None = None) -> Chgcar:
    """Read a CHGCAR, CHG, PARCHG or AECCAR, plain or compressed with gzip, bzip2 or xz.

    Args:
        path: the file; the compression is recognised by content, not by name.
        species: one element symbol per group of atoms, for a header that does not name them.

    Raises:
        ChgcarError: the file cannot be read, is not a CHGCAR, is damaged, or does not name its
            species; or `species` contradicts it.
    """
    with _opened(path) as source:
        head = source.head()
        text = _Text(path, _with_lf(head), is_whole=source.is_whole)
        structure, header = _read_header(text, species)
        grid = _read_grid(text)
        most = _most_bytes(text, grid, len(structure.species))
        text.data = _with_lf(source.whole(head, most))
        text.is_whole = True
    blocks: list[NDArray[np.float64]] = []
    augmentation: list[str] = []
    moments: list[str] = []
    more = True
    while more:
        text.section = _block_name(len(blocks))
        if len(blocks) == 4:
            raise text.error("a fifth block of values", "a CHGCAR has 1, 2 or 4: keep one image")
        stored = _read_values(text, grid)
        blocks.append(_density_from_stored(stored, grid, structure.volume))
        gap = _read_gap(text, grid, len(structure.species))
        augmentation.append(gap.augmentation)
        moments.append(gap.moments)
        more = gap.another_block
    if len(blocks) == 3:
        raise text.error("the file ends after 3 blocks, a CHGCAR has 1, 2 or 4", _COPY_AGAIN)
    _check_last_number(text)
    density = ChargeDensity(
        values=blocks[0],
        structure=structure,
        magnetization=_read_only(np.stack(blocks[1:])) if blocks[1:] else None,
    )
    return Chgcar(density, header, tuple(augmentation), tuple(moments))


def read_header(
    path: str | Path, content: bytes, *, species: Sequence[str] | None = None
) -> tuple[Structure, bool]:
    """The structure at the head of a POSCAR, CONTCAR or CHGCAR, and whether a density follows.

    Args:
        path: the file, for messages.
        content: what it holds, or the beginning of it, decompressed.
        species: one element symbol per group of atoms, for a header that does not name them.

    Raises:
        ChgcarError: as `read_chgcar`, of the header.
    """
    text = _Text(path, _with_lf(memoryview(content)))
    structure, _ = _read_header(text, species)
    text.skip_blank_lines()
    fields = (text.next_line() or b"").split()  # of the velocities of a CONTCAR, or of the grid
    return structure, len(fields) == 3 and all(field.isdigit() for field in fields)


def write_chgcar(
    path: str | Path, chgcar: Chgcar | ChargeDensity, *, comment: str | None = None
) -> None:
    """Write a CHGCAR as VASP prints it; nothing is left at `path` if that fails.

    Args:
        path: the file; a suffix .gz, .bz2 or .xz compresses it.
        chgcar: what `read_chgcar` gave, or a bare density, which gets a header of its own and
            has no augmentation occupancies (its first line says so).
        comment: first line of the file; forced into one short line of ASCII.

    Raises:
        InputError: the file cannot be written, or density * volume overflows.
    """
    if isinstance(chgcar, ChargeDensity):
        chgcar = Chgcar(chgcar)
    with (
        replacing(path) as partial,
        partial.open("xb") as raw,
        _compressing(raw, Path(os.path.realpath(path)).suffix) as file,
    ):
        for piece in _pieces(chgcar, comment):
            file.write(piece)


# --- the convention: rho * V, x fastest -----------------------------------------------------


def _density_from_stored(
    stored: NDArray[np.float64], grid: Grid, volume: float
) -> NDArray[np.float64]:
    """Values in file order, shape (n1 * n2 * n3,), to e/A^3 of shape (n1, n2, n3), read-only."""
    density = np.empty(grid)
    np.divide(stored.reshape(grid[::-1]).T, volume, out=density)
    return _read_only(density)


def _stored_from_density(density: NDArray[np.float64], volume: float) -> NDArray[np.float64]:
    """Density in e/A^3, shape (n1, n2, n3), to values in file order, shape (n1 * n2 * n3,)."""
    stored = np.empty(density.shape[::-1])
    with np.errstate(over="ignore"):
        np.multiply(density.T, volume, out=stored)
    if not np.isfinite(stored).all():
        raise InputError("density * volume overflows: such a density cannot go into a CHGCAR")
    return stored.ravel()


def _read_only(array: NDArray[np.float64]) -> NDArray[np.float64]:
    array.setflags(write=False)
    return array


# --- bytes of a file ------------------------------------------------------------------------


_LARGEST_AT_ONCE = 2**28
"""Bytes of a plain file that are read before its grid is known."""
_BYTES_PER_VALUE = 32
_BYTES_PER_ION = 2**16
"""Most that one value takes in a file, and the augmentation of one ion: 4600 numbers."""
_LONGEST_LINE = 2**20
_MOST_OF_A_PIPE = 2**33
_BYTES_PER_PIECE = 2**17
"""Unpacked at a time; what stays in the cache of the processor is copied faster."""


class _Source:
    """An open file, decompressed while it is read.

    Attributes:
        is_whole: whether all of it has been read.
    """

    def __init__(self, path: str | Path, file: io.BufferedReader) -> None:
        self.is_whole = False
        self._path = path
        status = os.fstat(file.fileno())
        self._size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._compression = compression_of(file.peek(8))
        self._file = file if self._compression is None else self._compression.open(file)
        self._unpacked = bytearray()

    def head(self) -> memoryview:
        """The beginning of the file, or all of it."""
        if self._compression is None and self._size is not None:
            return self._load(self._size if self._size <= _LARGEST_AT_ONCE else HEAD)
        data = self._unpack(HEAD)
        # A view of what is still to grow would keep it from growing.
        return memoryview(data if self.is_whole else bytes(data))

    def whole(self, head: memoryview, most: int) -> memoryview:
        """All of the file.

        Args:
            head: what `head` gave.
            most: how many bytes it may have by what its head announces.

        Raises:
            ChgcarError: it has more, or it unpacks to more than such a file should.
        """
        if self._compression is None and self._size is not None:
            if self._size > most:
                raise self._too_large(most)
            return head if self.is_whole else self._load(self._size)
        limit = _MOST_OF_A_PIPE if self._size is None else most_unpacked(self._size)
        content = self._unpack(min(most, limit))
        if len(content) > most:
            raise self._too_large(most)
        if not self.is_whole:
            problem = f"unpacks to more than {limit // 2**20} MiB"
            raise ChgcarError(f"{shown(self._path)}: {problem}; unpack it first if that is right")
        return memoryview(content)

    def _too_large(self, most: int) -> ChgcarError:
        problem = f"holds more than the {most} bytes that its grid and its atoms need"
        return ChgcarError(f"{shown(self._path)}: {problem}; keep one density per file")

    def _load(self, size: int) -> memoryview:
        """The first `size` bytes of a plain file."""
        self._file.seek(0)
        # A NumPy buffer of this size costs a quarter of the page faults of `bytes`.
        data = np.fromfile(self._file, np.uint8, count=size)
        self.is_whole = size == self._size
        return data.data

    def _unpack(self, size: int) -> bytearray:
        """What has been read, after it has grown to more than `size` bytes or to all."""
        try:
            while not self.is_whole and len(self._unpacked) <= size:
                piece = self._file.read(min(_BYTES_PER_PIECE, size + 1 - len(self._unpacked)))
                self._unpacked += piece
                self.is_whole = not piece
        except UNPACK_ERRORS as error:
            if self._compression is None:
                raise
            problem = f"damaged {self._compression.name} data ({reason(error)})"
            raise ChgcarError(f"{shown(self._path)}: {problem}; {_COPY_AGAIN}") from error
        return self._unpacked


@contextmanager
def _opened(path: str | Path) -> Iterator[_Source]:
    """A file, which may be a pipe."""
    try:
        with Path(path).open("rb") as file:
            yield _Source(path, file)
    except IsADirectoryError:
        raise ChgcarError(f"{shown(path)}: is a directory; name the CHGCAR inside it") from None
    except (OSError, ValueError) as error:
        raise ChgcarError(f"{shown(path)}: cannot be read ({reason(error)})") from error


def _with_lf(data: memoryview) -> memoryview:
    """A text with its lines ended by LF alone."""
    if b"\r" in bytes(data[:4096]):
        return memoryview(bytes(data).replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    return data


def _most_bytes(text: _Text, grid: Grid, n_atoms: int) -> int:
    """What a file may take of which the header and the first grid line have been read."""
    return 2 * text.position + 4 * (_BYTES_PER_VALUE * prod(grid) + _most_in_gap(n_atoms))


def _most_in_gap(n_atoms: int) -> int:
    """Bytes that may stand after a block of values."""
    return _BYTES_PER_ION * (n_atoms + 1)


_LF = re.compile(rb"\n")
_BLANK_LINES = re.compile(rb"\s*\n")


class _Text:
    """The lines of a file, read forwards, and where in it the reader is.

    Attributes:
        data: the whole text, lines ended by LF.
        position: offset of the next line.
        line: number of the line that was read last; the first line is 1.
        section: the part of the file being read, for messages.
        is_whole: whether `data` is all of the text and not only its beginning.
    """

    def __init__(self, path: str | Path, data: memoryview, *, is_whole: bool = True) -> None:
        self.path = path
        self.data = data
        self.is_whole = is_whole
        self.position = 0
        self.line = 0
        self.section = "header"

    def next_line(self) -> bytes | None:
        """The next line without its LF, or None at the end of the file."""
        end = self.line_end(self.position)
        if end >= len(self.data) and not self.is_whole:
            problem = f"no grid in the first {len(self.data)} bytes"
            raise self.error(problem, _IS_IT_A_CHGCAR)
        if self.position >= len(self.data):
            return None
        line = self.span(self.position, end)
        self.position = end + 1
        self.line += 1
        return line

    def span(self, start: int, end: int) -> bytes:
        """The bytes from offset `start` to `end`."""
        return bytes(self.data[start:end])

    def line_end(self, start: int) -> int:
        """Offset of the first LF at or after `start`, or of the end of the file."""
        match = _LF.search(self.data, start, start + _LONGEST_LINE)
        if match is None and len(self.data) > start + _LONGEST_LINE:
            raise self.error(f"a line of more than {_LONGEST_LINE} bytes", _IS_IT_A_CHGCAR)
        return match.start() if match else len(self.data)

    def skip_blank_lines(self) -> None:
        """Go to the first line that is not blank."""
        match = _BLANK_LINES.match(self.data, self.position)
        if match:
            self.line += match[0].count(b"\n")
            self.position = match.end()

    def header_line(self, content: str, remedy: str = _COPY_AGAIN) -> bytes:
        """The next line; an error that says what should stand there at the end of the file."""
        line = self.next_line()
        if line is None:
            what = "the file is empty" if not self.data else f"the file ends before {content}"
            raise self.error(what, remedy)
        return line

    def error(self, problem: str, remedy: str) -> ChgcarError:
        """The error to raise about the line that was read last."""
        where = f"{shown(self.path)}: {self.section}, line {max(self.line, 1)}"
        return ChgcarError(f"{where}: {problem}; {remedy}")


def _block_name(index: int) -> str:
    return f"block {index + 1} ({'total' if index == 0 else 'magnetization'})"


# --- numbers ----------------------------------------------------------------------------------

_LONGEST_NUMBER = 400
"""Characters; a double has up to 17 digits, or 330 without an exponent."""

_FORTRAN_NUMBER = re.compile(
    rb"([+-]?(?:\d+\.?\d*|\.\d+))[eEdD]([+-]?\d+)|([+-]?(?:\d+\.\d*|\.\d+))([+-]\d{3})"
)


def _number(word: bytes) -> float:
    """One finite number, also as Fortran prints it: `0.5D+00`, `0.123-100`.

    Raises:
        ValueError: it is none.
    """
    if len(word) > _LONGEST_NUMBER:  # the pattern takes time that grows with its square
        raise ValueError(word)
    match = _FORTRAN_NUMBER.fullmatch(word)
    if match:
        mantissa, exponent = match.group(1, 2) if match[1] else match.group(3, 4)
        word = mantissa + b"e" + exponent
    value = float(word)
    if b"_" in word or not isfinite(value):
        raise ValueError(word)
    return value


def _quoted(word: bytes) -> str:
    """A piece of a file as short printable text."""
    text = word[:32].decode("latin-1")
    return ascii(text + "..." if len(word) > 32 else text)


def _why_no_number(word: bytes) -> str:
    if b"**" in word:
        return f"{_quoted(word)} is a number too large for its Fortran field"
    try:
        float(word[:_LONGEST_NUMBER])
    except ValueError:
        return f"{_quoted(word)} is not a number"
    return f"{_quoted(word)} is not a finite number"


def _numbers(text: _Text, words: Sequence[bytes]) -> list[float]:
    """All words of the line that was read last as numbers."""
    numbers = []
    for word in words:
        try:
            numbers.append(_number(word))
        except ValueError:
            raise text.error(_why_no_number(word), _COPY_AGAIN) from None
    return numbers


# --- header -----------------------------------------------------------------------------------

_SPECIES = re.compile(r"([A-Z][a-z]?)(?:[._/].*)?")


def _read_header(text: _Text, species: Sequence[str] | None) -> tuple[Structure, str]:
    """The structure, and the header as it is to be written back."""
    text.header_line("the comment line")
    scale = _read_scale(text)
    raw = np.array([_read_vector(text, "a lattice vector") for _ in range(3)])
    lattice, factor = _scaled_lattice(text, raw, scale)
    species_start = text.position
    words, counts_start, counts = _read_groups(text)
    symbols = _group_symbols(text, words, counts, species)
    cartesian = _read_cartesian(text)
    n_atoms = sum(counts)
    positions = [_read_vector(text, f"the position of atom {i + 1}") for i in range(n_atoms)]
    coords = np.array(positions)
    if cartesian:
        coords = (coords * factor) @ np.linalg.inv(lattice)
    structure = Structure(
        lattice=lattice,
        species=tuple(s for s, count in zip(symbols, counts, strict=True) for _ in range(count)),
        frac_coords=coords,
    )
    header = text.span(0, text.position)
    if [_element(word) for word in words] != symbols:
        names = _species_line(symbols).encode()
        header = header[:species_start] + names + header[counts_start:]
    return structure, _decoded(header)


def _decoded(header: bytes) -> str:
    try:
        return header.decode("utf-8")
    except UnicodeDecodeError:
        return header.decode("latin-1")


def _words(line: bytes) -> list[bytes]:
    """Words of a header line before any `!` or `#` comment."""
    return re.split(rb"[!#]", line, maxsplit=1)[0].split()


def _read_scale(text: _Text) -> list[float]:
    """One factor, which may be minus the target volume in A^3, or one per Cartesian axis."""
    line = text.header_line("the scale factor")
    factors: list[float] = []
    for word in _words(line):
        try:
            factors.append(_number(word))
        except ValueError:
            break
    if len(factors) not in (1, 3):
        problem = f"expected one or three scale factors, found {_quoted(line)}"
        raise text.error(problem, _IS_IT_A_CHGCAR)
    if 0.0 in factors or (len(factors) == 3 and min(factors) < 0.0):
        raise text.error(f"a scale factor of {min(factors)} has no meaning", "correct the header")
    return factors


def _read_vector(text: _Text, content: str) -> list[float]:
    line = text.header_line(content)
    words = _words(line)[:3]
    if len(words) < 3:
        problem = f"expected {content}, three numbers, found {_quoted(line)}"
        raise text.error(problem, _IS_IT_A_CHGCAR)
    return _numbers(text, words)


def _scaled_lattice(
    text: _Text, raw: NDArray[np.float64], scale: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lattice in A, and the factor per axis that Cartesian positions share."""
    with np.errstate(all="ignore"):
        factor = np.array(scale)
        if scale[0] < 0.0:
            factor = np.cbrt(-factor / abs(np.linalg.det(raw)))
        lattice = raw * factor
        volume = abs(float(np.linalg.det(lattice)))
    if not _SMALLEST_VOLUME <= volume < np.inf:
        raise text.error("the lattice vectors span no (finite) volume", "correct the lattice")
    return lattice, factor


def _read_groups(text: _Text) -> tuple[list[str], int, list[int]]:
    """Species words (none in a VASP 4 header), offset of the line of counts, atoms per group.

    VASP breaks both after 20 groups, so either may cover several lines.
    """
    words: list[str] = []
    while True:
        counts_start = text.position
        line = text.header_line("the number of atoms of each species")
        fields = _words(line)
        if not fields:
            raise text.error("expected species or numbers of atoms", _IS_IT_A_CHGCAR)
        if fields[0].isdigit():
            break
        words.extend(field.decode("latin-1") for field in fields)
    counts = _atom_counts(text, fields)
    while len(counts) < len(words):
        line = text.header_line("the number of atoms of each species")
        counts.extend(_atom_counts(text, _words(line)))
    if words and len(counts) != len(words):
        problem = f"{len(words)} species but {len(counts)} numbers of atoms"
        raise text.error(problem, "correct the header")
    return words, counts_start, counts


def _atom_counts(text: _Text, fields: Sequence[bytes]) -> list[int]:
    if not fields or not all(field.isdigit() and len(field) < 10 for field in fields):
        found = _quoted(b" ".join(fields))
        raise text.error(f"expected numbers of atoms, found {found}", _IS_IT_A_CHGCAR)
    counts = [int(field) for field in fields]
    if 0 in counts:
        raise text.error("a species has no atoms", "remove it from the header")
    return counts


def _element(word: str) -> str | None:
    """The element that `Fe`, `Fe/` or `Fe_pv/1a2b3c` names, None if it names none."""
    match = _SPECIES.fullmatch(word)
    return match[1] if match and match[1] in SYMBOLS else None


def _group_symbols(
    text: _Text, words: Sequence[str], counts: Sequence[int], species: Sequence[str] | None
) -> list[str]:
    """One element symbol per group, from the file or, where it names none, from `species`."""
    named = [_element(word) for word in words]
    if species is None:
        if not words:
            raise text.error(
                "a VASP 4 header, which does not name its species",
                f"pass --species with {len(counts)} symbols, one per group",
            )
        for word, symbol in zip(words, named, strict=True):
            if symbol is None:
                problem = f"{_quoted(word.encode('latin-1'))} is not a chemical element"
                raise text.error(problem, "pass --species with one symbol per group")
        return cast("list[str]", named)
    if isinstance(species, str) or len(species) != len(counts):
        problem = f"{len(counts)} groups of atoms but species={species!r}"
        raise text.error(problem, "pass one symbol per group")
    for i, symbol in enumerate(species):
        if symbol not in SYMBOLS:
            raise text.error(f"{symbol!r} is not a chemical element", "correct --species")
        if named and named[i] not in (None, symbol):
            problem = f"group {i + 1} is {named[i]} in the file but {symbol} in --species"
            raise text.error(problem, "leave --species away")
    return list(species)


def _read_cartesian(text: _Text) -> bool:
    """Whether the positions that follow are Cartesian; skips a selective-dynamics line."""
    line = text.header_line("'Direct' or 'Cartesian'")
    if line.lstrip()[:1].lower() == b"s":
        line = text.header_line("'Direct' or 'Cartesian'")
    initial = line.lstrip()[:1].lower()
    if initial not in (b"d", b"c", b"k"):
        problem = f"expected 'Direct' or 'Cartesian', found {_quoted(line)}"
        raise text.error(problem, _IS_IT_A_CHGCAR)
    return initial != b"d"


# --- blocks -----------------------------------------------------------------------------------


def _read_grid(text: _Text) -> Grid:
    """The first grid line, after the blank line."""
    text.skip_blank_lines()
    line = text.header_line("the grid", _IS_IT_A_POSCAR)
    fields = line.split()
    if len(fields) != 3 or not all(field.isdigit() and len(field) < 10 for field in fields):
        problem = f"expected the grid, three whole numbers, found {_quoted(line)}"
        raise text.error(problem, _IS_IT_A_CHGCAR)
    n1, n2, n3 = (int(field) for field in fields)
    if 0 in (n1, n2, n3):
        raise text.error(f"the grid {n1} {n2} {n3} has no points", _COPY_AGAIN)
    return n1, n2, n3


def _read_values(text: _Text, grid: Grid) -> NDArray[np.float64]:
    """The values of one block in file order."""
    count = prod(grid)
    left = len(text.data) - text.position
    if 2 * count - 1 > left:
        problem = (
            f"the grid {grid[0]} {grid[1]} {grid[2]} needs {count} values, "
            f"the file ends {max(left, 0)} bytes further on"
        )
        raise text.error(problem, _COPY_AGAIN)
    values = np.empty(count)
    done = _read_fixed_rows(text, values)
    while done < count:
        done = _read_free_chunk(text, values, done)
    return values


def _read_free_chunk(text: _Text, values: NDArray[np.float64], done: int) -> int:
    """Fill values[done:] from the next lines in any number format; the new `done`."""
    end = min(text.line_end(text.position + _BYTES_PER_CHUNK) + 1, len(text.data))
    chunk = text.span(text.position, end)
    words = chunk.split()
    new = done + len(words)
    if chunk and new <= len(values) and b"_" not in chunk:
        try:
            values[done:new] = list(map(float, words))
        except ValueError:
            pass
        else:
            if np.isfinite(values[done:new]).all():
                text.line += chunk.count(b"\n") + (not chunk.endswith(b"\n"))
                text.position = end
                return new
    return _read_free_lines(text, values, done, end)


def _read_free_lines(text: _Text, values: NDArray[np.float64], done: int, end: int) -> int:
    """`_read_free_chunk` line by line: finds the end of a block and what is wrong in it."""
    while done < len(values) and text.position < end:
        words = (text.next_line() or b"").split()
        progress = f"after {done} of {len(values)} values"
        if words[:1] == [b"augmentation"]:
            raise text.error(f"augmentation occupancies {progress}", _COPY_AGAIN)
        numbers = _numbers(text, words)
        if done + len(words) > len(values):
            problem = f"{len(words)} more values {progress}"
            raise text.error(problem, "the grid line and the values do not fit: " + _COPY_AGAIN)
        values[done : done + len(words)] = numbers
        done += len(words)
    if done < len(values) and text.position >= len(text.data):
        raise text.error(f"the file ends after {done} of {len(values)} values", _COPY_AGAIN)
    return done


_EXPONENT = re.compile(rb".+[\d.][eEdD]?[+-]\d\d+")


def _check_last_number(text: _Text) -> None:
    """A file cut inside its last number still counts right: `0.5E-0` for `0.5E-01`."""
    last = text.span(max(0, len(text.data) - 256), len(text.data))
    words = last.split()
    if len(words) < 3 or last[-1:].isspace():
        return
    if _EXPONENT.fullmatch(words[-2]) and not _EXPONENT.fullmatch(words[-1]):
        raise text.error(f"the file ends inside the number {_quoted(words[-1])}", _COPY_AGAIN)


# --- between blocks ---------------------------------------------------------------------------

_STARTS_A_NUMBER = re.compile(rb"[+-]?[.*\d]")
_AUGMENTATION = b"augmentation occupancies"
_AUGMENTATION_SIZE = re.compile(
    rb"augmentation occupancies\s*(?:\(imaginary part\))?\s*(\d+|\*+)\s+(\d+)"
)


class _Gap(NamedTuple):
    """What stands after a block of values."""

    augmentation: str
    moments: str
    another_block: bool


@dataclass
class _Augmentation:
    """One section of augmentation occupancies while it is read.

    Attributes:
        ion: number of its ion, None if the file does not say.
        size: how many numbers it has, None if the file does not say.
        found: how many were read.
    """

    ion: int | None
    size: int | None
    found: int = 0

    @classmethod
    def announced_by(cls, line: bytes) -> _Augmentation:
        """The section that starts with `line`."""
        match = _AUGMENTATION_SIZE.fullmatch(line.strip())
        if match is None:
            return cls(None, None)
        return cls(int(match[1]) if match[1].isdigit() else None, int(match[2]))

    @property
    def takes_more(self) -> bool:
        return self.size is None or self.found < self.size

    @property
    def is_complete(self) -> bool:
        return self.found > 0 if self.size is None else self.found >= self.size

    def read(self, text: _Text, words: Sequence[bytes]) -> None:
        """Count the numbers of a line."""
        self.found += len(_numbers(text, words))
        if self.size is not None and self.found > self.size:
            raise text.error("more augmentation occupancies than announced", _COPY_AGAIN)

    def check_complete(self, text: _Text) -> None:
        """Raise where the next section, the next block or the end comes too early."""
        if not self.is_complete:
            size = "some" if self.size is None else self.size
            problem = f"{self.found} of {size} augmentation occupancies"
            raise text.error(problem, _COPY_AGAIN)


def _read_gap(text: _Text, grid: Grid, n_atoms: int) -> _Gap:
    """The text after a block, up to and including the grid line of the next one."""
    start = split = text.position
    block = text.section
    grid_line = [str(n).encode() for n in grid]
    section = _Augmentation(ion=None, size=0)
    n_moments = 0
    while True:
        end = text.position
        line = text.next_line()
        words = [] if line is None else line.split()
        if end - start > _most_in_gap(n_atoms):
            raise text.error(f"more text than {n_atoms} ions need", "keep one density per file")
        if line is None or (words == grid_line and section.is_complete):
            break
        if line.lstrip().startswith(_AUGMENTATION):
            section.check_complete(text)
            text.section = f"augmentation of {block}"
            section = _Augmentation.announced_by(line)
            split, n_moments = text.position, 0
        elif section.takes_more:
            section.read(text, words)
            split = text.position
        elif words:
            text.section = f"after {block}"
            n_moments += _count_moments(text, words, n_moments, n_atoms)
    section.check_complete(text)
    if section.ion not in (None, n_atoms):
        raise text.error(f"augmentation of {section.ion} of {n_atoms} ions", _COPY_AGAIN)
    if n_moments and line is None:
        raise text.error("magnetic moments but no magnetization follows them", _COPY_AGAIN)
    return _Gap(
        text.span(start, split).decode("latin-1"),
        text.span(split, end).decode("latin-1") if n_moments else "",
        line is not None,
    )


def _count_moments(text: _Text, words: Sequence[bytes], seen: int, n_atoms: int) -> int:
    """Words on a line that should hold per-ion moments."""
    if len(words) == 3 and all(word.isdigit() for word in words):
        found = _quoted(b" ".join(words))
        raise text.error(f"a block with another grid, {found}", "keep one density per file")
    if not _STARTS_A_NUMBER.match(words[0]):
        problem = f"unexpected text {_quoted(b' '.join(words))}"
        raise text.error(problem, "keep one density per file")
    _numbers(text, words)
    if seen + len(words) > 3 * n_atoms:
        raise text.error("more values than the grid line announces", _COPY_AGAIN)
    return len(words)


# --- fixed-width rows: fast reading and writing -------------------------------------------------

# One value is 18 bytes: a sign " 0" or " -", ".ddddddd" in front, "ddddE+dd" at the back; ASE puts
# "  " or " -" and "d.dddddd" in front. Words are little-endian: the first character is the lowest
# byte.
_VALUE = np.dtype([("sign", "<u2"), ("front", "<u8"), ("back", "<u8")])
_ROW = np.dtype([("values", _VALUE, (_VALUES_PER_LINE,)), ("newline", "u1")])
_DIGITS = 11
_U8 = np.uint64
_BYTE = _U8(0xFF)


def _word(characters: str) -> int:
    """Latin-1 characters as the little-endian integer that holds them."""
    return int.from_bytes(characters.encode("latin-1"), "little")


_POSITIVE, _NEGATIVE, _BLANK = _word(" 0"), _word(" -"), _word("  ")
_FRONT_ZERO, _BACK_ZERO = _U8(_word(".0000000")), _U8(_word("0000E+00"))
_FRONT_SPILL = _U8(_word("\x7f" + 7 * "\x76"))
_BACK_SPILL = _U8(_word(4 * "\x76" + "\x7f" + 3 * "\x76"))


def _divisors() -> NDArray[np.float64]:
    """What to divide an 11-digit mantissa by, for the four digits that "E+dd" turns into.

    Against "E+00", "+" counts as 0 and "-" as 6. NaN where the division would round twice (the
    power of ten is no exact double) or the four digits are no exponent.
    """
    divisors = np.full(10**4, np.nan)
    for exponent in range(_DIGITS - 22, _DIGITS):
        divisors[exponent if exponent >= 0 else 600 - exponent] = 10.0 ** (_DIGITS - exponent)
    return divisors


_DIVISORS = _divisors()


def _read_fixed_rows(text: _Text, values: NDArray[np.float64]) -> int:
    """Fill `values` from full rows as VASP or ASE print them; how many, 0 for other formats."""
    n_rows = min(len(values) // _VALUES_PER_LINE, (len(text.data) - text.position) // _ROW.itemsize)
    rows = np.frombuffer(text.data, _ROW, count=n_rows, offset=text.position)
    done = 0
    for start in range(0, n_rows, _ROWS_PER_CHUNK):
        chunk = rows[start : start + _ROWS_PER_CHUNK]
        decoded = _decoded_rows(chunk)
        if decoded is None:
            break
        values[done : done + decoded.size].reshape(decoded.shape)[...] = decoded
        done += decoded.size
    text.line += done // _VALUES_PER_LINE
    text.position += done // _VALUES_PER_LINE * _ROW.itemsize
    return done


def _decoded_rows(rows: NDArray[np.void]) -> NDArray[np.float64] | None:
    """Numbers of fixed-width rows, correctly rounded; None if a byte is not where it should be."""
    shape = (_VALUES_PER_LINE, len(rows))
    sign, front, back = np.empty(shape, np.uint16), np.empty(shape, _U8), np.empty(shape, _U8)
    for i in range(_VALUES_PER_LINE):
        value = rows["values"][:, i]
        sign[i], front[i], back[i] = value["sign"], value["front"], value["back"]
    point_first = bool(front[0, 0] & _BYTE == ord("."))
    if not point_first:
        front = (front & ~_U8(0xFFFF)) | (front & _BYTE) << _U8(8) | (front >> _U8(8)) & _BYTE
    negative = sign == _NEGATIVE
    valid = (
        (negative | (sign == (_POSITIVE if point_first else _BLANK))).all()
        and (rows["newline"] == ord("\n")).all()
        and _take_digits(front, _FRONT_ZERO, _FRONT_SPILL)
        and _take_digits(back, _BACK_ZERO, _BACK_SPILL)
    )
    if not valid:
        return None
    front *= _U8(1 + (10**4 << 32))
    front >>= _U8(32)
    front *= _U8(10**4)
    front += back & _U8(0xFFFFFFFF)
    back >>= _U8(32)
    divisor = _DIVISORS[back.view(np.int64)]
    numbers = front.astype(np.float64)
    numbers /= divisor if point_first else divisor / 10.0
    np.negative(numbers, out=numbers, where=negative)
    hard = np.isnan(numbers)
    try:
        numbers[hard] = rows["values"].T[hard].view(f"S{_VALUE.itemsize}").astype(np.float64)
    except ValueError:
        return None
    return numbers.T


def _take_digits(words: NDArray[np.uint64], zero: np.uint64, spill: np.uint64) -> bool:
    """Replace eight characters per word by two numbers of four digits, the first one lowest.

    `zero` holds what each character is compared with, `spill` what brings a byte above 127 if it
    is too large after that. Returns whether none is.
    """
    words ^= zero
    if np.bitwise_or.reduce((words + spill) | words, axis=None) & _U8(0x8080808080808080):
        return False
    words *= _U8(1 + (10 << 8))
    words >>= _U8(8)
    words &= _U8(0x00FF00FF00FF00FF)
    words *= _U8(1 + (100 << 16))
    words >>= _U8(16)
    words &= _U8(0x0000FFFF0000FFFF)
    return True


_SCALE_LIMIT = 300
_SCALES = np.array([float(f"1e{k}") for k in range(-_SCALE_LIMIT, _SCALE_LIMIT + 1)])
_HALF_MARGIN = 1e-4
"""In units of the last digit; scaling a double by one rounded power errs by less than 3e-5."""

_POINT_DIGITS = np.array([_word(f".{i:03d}") for i in range(1000)], _U8)
_FOUR_DIGITS = np.array([_word(f"{i:04d}") for i in range(10000)], _U8)
_EXPONENT_MIN, _EXPONENT_MAX = -330, 310
_EXPONENT_WORDS = np.array(
    [
        _word(f"E{e:+03d}" if abs(e) < 100 else f"{e:+04d}")
        for e in range(_EXPONENT_MIN, _EXPONENT_MAX + 1)
    ],
    _U8,
)
_MISSING_LETTER = re.compile(rb"(?<=\d)(?=[+-]\d{3})")


def _decimal(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole mantissa of 11 digits and exponent e with |value| = 0.mantissa * 10^e.

    Rounded as Python and Fortran do, exactly: where scaling in doubles cannot tell which way a
    value rounds, it is formatted on its own.
    """
    size = np.abs(values)
    zero = size == 0.0
    size[zero] = 1.0
    exponent = np.floor(np.log10(size)).astype(np.int64) + 1
    scaled = _scaled(size, exponent)
    exponent += (scaled >= 10.0**_DIGITS).astype(np.int64)
    exponent -= (scaled < 10.0 ** (_DIGITS - 1)).astype(np.int64)
    scaled = _scaled(size, exponent)
    whole = np.floor(scaled)
    doubtful = np.abs(scaled - whole - 0.5) < _HALF_MARGIN
    doubtful |= np.abs(_DIGITS - exponent) > _SCALE_LIMIT
    mantissa = np.rint(scaled).astype(np.int64)
    for i in np.flatnonzero(doubtful):
        text = f"{size[i]:.{_DIGITS - 1}e}"
        mantissa[i] = int(text[0] + text[2 : _DIGITS + 1])
        exponent[i] = int(text[_DIGITS + 2 :]) + 1
    carried = mantissa == 10**_DIGITS
    mantissa[carried] = 10 ** (_DIGITS - 1)
    exponent[carried] += 1
    mantissa[zero] = exponent[zero] = 0
    return mantissa, exponent


def _scaled(size: NDArray[np.float64], exponent: NDArray[np.int64]) -> NDArray[np.float64]:
    shift = np.clip(_DIGITS - exponent, -_SCALE_LIMIT, _SCALE_LIMIT)
    scaled: NDArray[np.float64] = size * _SCALES[shift + _SCALE_LIMIT]
    return scaled


def _formatted(stored: NDArray[np.float64]) -> Iterator[bytes]:
    """Lines of a block of values, E17.11 each, as VASP prints them."""
    step = _ROWS_PER_CHUNK * _VALUES_PER_LINE
    for start in range(0, len(stored), step):
        yield _formatted_chunk(stored[start : start + step])


def _formatted_chunk(stored: NDArray[np.float64]) -> bytes:
    n_rows = -(-len(stored) // _VALUES_PER_LINE)
    padded = np.zeros(n_rows * _VALUES_PER_LINE)
    padded[: len(stored)] = stored
    mantissa, exponent = _decimal(padded)
    rest, low = np.divmod(mantissa, 10**4)
    high, middle = np.divmod(rest, 10**4)
    front = _POINT_DIGITS[high] | _FOUR_DIGITS[middle] << _U8(32)
    back = _FOUR_DIGITS[low] | _EXPONENT_WORDS[exponent - _EXPONENT_MIN] << _U8(32)
    rows = np.empty(n_rows, _ROW)
    shape = (n_rows, _VALUES_PER_LINE)
    records = rows["values"]
    records["sign"] = np.where(padded < 0.0, _NEGATIVE, _POSITIVE).reshape(shape)
    records["front"] = front.reshape(shape)
    records["back"] = back.reshape(shape)
    rows["newline"] = ord("\n")
    text = rows.tobytes()
    surplus = len(padded) - len(stored)
    if surplus:
        text = text[: -surplus * _VALUE.itemsize - 1] + b"  \n"
    if np.abs(exponent).max() > 99:
        text = _MISSING_LETTER.sub(b"E", text)
    return text


# --- writing ------------------------------------------------------------------------------------


def _pieces(chgcar: Chgcar, comment: str | None) -> Iterator[bytes]:
    """The bytes of a CHGCAR, in order."""
    density = chgcar.density
    blocks = [density.values]
    if density.magnetization is not None:
        blocks.extend(density.magnetization)
    yield _header_text(chgcar, comment).encode("utf-8")
    yield b" \n"
    for i, block in enumerate(blocks):
        yield "{:5d}{:5d}{:5d}\n".format(*density.grid).encode()
        yield from _formatted(_stored_from_density(block, density.structure.volume))
        for texts in (chgcar.augmentation, chgcar.moments):
            yield _whole_lines(texts[i] if i < len(texts) else "").encode("latin-1")


def _whole_lines(text: str) -> str:
    return text + "\n" if text and not text.endswith("\n") else text


def _header_text(chgcar: Chgcar, comment: str | None) -> str:
    if not chgcar.header:
        structure = chgcar.density.structure
        if comment is None:
            comment = f"{structure.formula[:40]} chgdb: no augmentation occupancies"
        return _fresh_header(structure, _safe_comment(comment))
    header = _whole_lines(chgcar.header)
    if comment is None:
        return header
    return _safe_comment(comment) + header[header.index("\n") :]


def _safe_comment(comment: str) -> str:
    """One line of printable ASCII."""
    line = " ".join(comment.split()).encode("ascii", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in line)[:_COMMENT_WIDTH]


def _fresh_header(structure: Structure, comment: str) -> str:
    groups = [(symbol, len(list(run))) for symbol, run in groupby(structure.species)]
    lines = [comment, "   1.00000000000000"]
    lines += ["".join(f"{x:22.16f}" for x in vector) for vector in structure.lattice]
    lines += [_species_line([symbol for symbol, _ in groups]).rstrip("\n")]
    lines += ["".join(f"{count:6d}" for _, count in groups), "Direct"]
    lines += ["".join(f"{x:20.16f}" for x in position) for position in structure.frac_coords]
    return "\n".join(lines) + "\n"


def _species_line(symbols: Sequence[str]) -> str:
    return "".join(f"   {symbol:2s}" for symbol in symbols) + "\n"


@contextmanager
def _compressing(raw: BinaryIO, suffix: str) -> Iterator[BinaryIO]:
    """`raw`, or a compressor in front of it."""
    mode: Literal["wb"] = "wb"
    if suffix == ".gz":
        with gzip.GzipFile("", mode, compresslevel=6, fileobj=raw, mtime=0) as packed:
            yield cast("BinaryIO", packed)
    elif suffix == ".bz2":
        with bz2.BZ2File(raw, mode) as packed_bz2:
            yield cast("BinaryIO", packed_bz2)
    elif suffix == ".xz":
        with lzma.LZMAFile(raw, mode) as packed_xz:
            yield cast("BinaryIO", packed_xz)
    else:
        yield raw

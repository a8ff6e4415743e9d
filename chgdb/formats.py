"""Density files: which there are, what format they have, reading and writing them.

An npz archive holds `density` (n1, n2, n3) in e/A^3, `cell` (3, 3) rows in A, `scaled_positions`
(n_atoms, 3), `numbers` (n_atoms,) and optionally `magnetization` (1 or 3, n1, n2, n3) in mu_B/A^3;
any other array is ignored.
"""

from __future__ import annotations

import glob
import hashlib
import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import ArrayLike, NDArray

from chgdb.chgcar import read_chgcar, write_chgcar
from chgdb.density import ChargeDensity, Structure
from chgdb.elements import SYMBOLS
from chgdb.errors import InputError
from chgdb.files import (
    COMPRESSIONS,
    UNPACK_ERRORS,
    decompressed,
    most_unpacked,
    one_line,
    opened,
    reason,
    replacing,
    shown,
)
from chgdb.units import BOHR

__all__ = [
    "default_id",
    "densities_by_sha256",
    "file_sha256",
    "find_densities",
    "read_density",
    "write_density",
]

_COMPRESSED = tuple(compression.suffix for compression in COMPRESSIONS)


# --- reading --------------------------------------------------------------------------------


def read_density(
    path: str | Path, *, species: Sequence[str] | None = None
) -> tuple[ChargeDensity, str]:
    """Read a density file; its content, not its name, tells the format.

    Args:
        path: a CHGCAR, CHG, PARCHG or AECCAR, or an npz archive; plain or compressed with gzip,
            bzip2 or xz.
        species: element symbols for a CHGCAR header that does not name them.

    Returns:
        The density, and its format: "chgcar" or "npz".

    Raises:
        InputError: the file cannot be read, is damaged, or is neither.
    """
    if _is_zip(path):
        return _read_npz(path), "npz"
    return read_chgcar(path, species=species).density, "chgcar"


def _is_zip(path: str | Path) -> bool:
    """Whether the content is a zip archive; of damaged compression it cannot be told."""
    with opened(path) as file:
        try:
            return decompressed(file).read(4) in (b"PK\x03\x04", b"PK\x05\x06")
        except UNPACK_ERRORS:
            return False


def _read_npz(path: str | Path) -> ChargeDensity:
    try:
        return _density_from_arrays(_load_arrays(path))
    except InputError as error:
        raise InputError(f"{shown(path)}: {error}") from error


def _density_from_arrays(arrays: dict[str, NDArray[Any]]) -> ChargeDensity:
    structure = Structure(
        lattice=arrays["cell"],
        species=_symbols(arrays["numbers"]),
        frac_coords=arrays["scaled_positions"],
    )
    return ChargeDensity(arrays["density"], structure, arrays.get("magnetization"))


_MEMBERS = {
    "density": (3, "fiu"),
    "cell": (2, "fiu"),
    "scaled_positions": (2, "fiu"),
    "numbers": (1, "iu"),
    "magnetization": (4, "fiu"),
}
"""Dimensions and kinds of numbers of each array that is read."""
_OPTIONAL = ("magnetization",)


def _load_arrays(path: str | Path) -> dict[str, NDArray[Any]]:
    """The known arrays of an npz archive, none of them larger than its file says."""
    with opened(path) as file:
        try:
            most = most_unpacked(os.fstat(file.fileno()).st_size)
            content = decompressed(file)
            if content is not file:
                content = io.BytesIO(content.read(most + 1))
                if content.getbuffer().nbytes > most:
                    raise _too_large(most)
            with zipfile.ZipFile(content) as archive:
                members = _members(archive)
                if sum(info.file_size for info in members.values()) > most:
                    raise _too_large(most)
                return {name: _load_array(archive, name, info) for name, info in members.items()}
        except InputError:
            raise
        except Exception as error:
            # zipfile and numpy raise a dozen types, from struct.error to TokenError, on bad bytes.
            raise InputError(f"damaged npz archive ({reason(error)})") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The known arrays, packed as NumPy packs them: what else zip knows unpacks without a bound."""
    members = {}
    for name in _MEMBERS:
        try:
            members[name] = info = archive.getinfo(f"{name}.npy")
        except KeyError:
            if name not in _OPTIONAL:
                raise InputError(f"the npz archive has no array {name!r}") from None
            continue
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{name} is packed as NumPy does not; save it with savez_compressed")
    return members


def _load_array(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One array, after its header has been held against what is allowed and what is there."""
    with archive.open(info) as member:
        shape, dtype = _array_header(member)
        announced = member.tell() + math.prod(shape) * dtype.itemsize
    n_dimensions, kinds = _MEMBERS[name]
    if dtype.kind not in kinds:
        expected = "integers" if kinds == "iu" else "real numbers"
        raise InputError(f"{name} must hold {expected}, not {dtype.name}")
    if len(shape) != n_dimensions:
        raise InputError(f"{name} must have {n_dimensions} dimensions, not the shape {shape}")
    if announced != info.file_size:
        raise InputError(f"damaged npz archive ({name} is shorter or longer than its header says)")
    with archive.open(info) as member:
        array: NDArray[Any] = npy.read_array(member, allow_pickle=False)
    return array


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array in npy format; the stream stands behind them."""
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype


def _too_large(most: int) -> InputError:
    problem = f"the npz archive unpacks to more than {most // 2**20} MiB"
    return InputError(f"{problem}; save it with savez, not compressed, if that is right")


def _symbols(numbers: NDArray[Any]) -> tuple[str, ...]:
    bad = numbers[(numbers < 1) | (numbers > len(SYMBOLS))]
    if bad.size:
        raise InputError(f"numbers holds {bad[0]}, which is not an atomic number")
    return tuple(SYMBOLS[number - 1] for number in numbers)


# --- writing --------------------------------------------------------------------------------


def write_density(
    path: str | Path,
    density: ChargeDensity,
    format: str,  # noqa: A002
    *,
    comment: str | None = None,
) -> None:
    """Write a density file; nothing is left at `path` if that fails.

    Args:
        path: the file; for a CHGCAR a suffix .gz, .bz2 or .xz compresses it.
        density: what to write. A cube file has no place for the magnetization.
        format: "chgcar"; "npz", float32; or "cube", a Gaussian cube file for the viewers. By
            their convention its lengths are in Bohr and its density in e/Bohr^3 (ASE's writer
            converts the lengths only, so ASE's reader gives e/Bohr^3 back).
        comment: one line about the density, kept in the file.

    Raises:
        InputError: an unknown format, or the file cannot be written.
    """
    if format == "chgcar":
        write_chgcar(path, density, comment=comment)
        return
    if format not in _WRITERS:
        known = ", ".join(["chgcar", *_WRITERS])
        raise InputError(f"unknown format {format!r}; known are {known}")
    if Path(path).suffix in _COMPRESSED:
        raise InputError(
            f"{shown(path)}: {format} files are not compressed; drop {Path(path).suffix}"
        )
    with replacing(path) as temporary:
        _WRITERS[format](temporary, density, None if comment is None else one_line(comment))


def _write_npz(path: Path, density: ChargeDensity, comment: str | None) -> None:
    arrays: dict[str, ArrayLike] = {
        "density": _single(density.values),
        "cell": density.structure.lattice,
        "scaled_positions": density.structure.frac_coords,
        "numbers": _numbers(density.structure.species),
        "n_electrons": density.n_electrons,
    }
    if density.magnetization is not None:
        arrays["magnetization"] = _single(density.magnetization)
    if comment is not None:
        arrays["comment"] = comment
    with path.open("xb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _numbers(species: Sequence[str]) -> NDArray[np.int64]:
    if unknown := sorted(set(species) - set(SYMBOLS)):
        raise InputError(f"{unknown[0]!r} is not an element")
    return np.array([SYMBOLS.index(symbol) + 1 for symbol in species], dtype=np.int64)


def _single(values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        raise InputError("a value of the density is too large for float32")
    return single


def _write_cube(path: Path, density: ChargeDensity, comment: str | None) -> None:
    from ase.io.cube import write_cube

    _numbers(density.structure.species)
    comment = comment or f"charge density of {density.structure.formula} from chgdb"
    with path.open("x", encoding="ascii", errors="replace") as file:
        write_cube(
            file, density.atoms, data=density.values * BOHR**3, comment=f"{comment}, e/Bohr^3"
        )


_WRITERS: dict[str, Callable[[Path, ChargeDensity, str | None], None]] = {
    "cube": _write_cube,
    "npz": _write_npz,
}


# --- finding --------------------------------------------------------------------------------

_PATTERNS = (
    *("CHGCAR*", "*.CHGCAR*"),
    *(f"*.npz{suffix}" for suffix in ("", *_COMPRESSED)),
)
"""Names by which a density is recognised in a directory.

A VASP run also leaves CHG, AECCAR and PARCHG: the same density again, or one that is not the
valence density. They are read where they are named.
"""


def find_densities(
    paths: Iterable[str | Path], missing: list[tuple[Path, str]] | None = None
) -> list[Path]:
    """The density files that arguments of a command mean.

    Args:
        paths: files of any name; directories, searched with all below them for CHGCAR*,
            *.CHGCAR* and *.npz, hidden ones left out; and patterns such as "*.npz" that no shell
            has expanded.
        missing: gets what is not there, and why, instead of an error.

    Returns:
        Each file once, in the order of the arguments and in natural order within each.

    Raises:
        InputError: there is no such file, or a directory cannot be read.
    """
    found: dict[str, Path] = {}
    for path in paths:
        try:
            files = _expanded(path)
        except InputError as error:
            if missing is None:
                raise
            missing.append((Path(path), str(error)))
            continue
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _expanded(path: str | Path) -> list[Path]:
    """The files one argument means."""
    matches = [path] if _exists(path) else glob.glob(str(path), recursive=True)  # noqa: PTH207
    if not matches:
        raise InputError(f"{shown(path)}: no such file or directory")
    files: list[Path] = []
    for match in map(Path, matches):
        files.extend(_below(match) if match.is_dir() else [match])
    return sorted(files, key=_natural)


def _exists(path: str | Path) -> bool:
    try:
        return Path(path).exists()
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be read ({reason(error)})") from error


def _below(directory: Path) -> Iterator[Path]:
    """The densities in a directory and all below it."""

    def fail(error: OSError) -> None:
        raise InputError(f"{shown(error.filename)}: cannot be read ({reason(error)})") from error

    for parent, directories, names in os.walk(directory, onerror=fail):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            if _names_a_density(name) and file.is_file():
                yield file


def _names_a_density(name: str) -> bool:
    return name[0] != "." and any(fnmatchcase(name, pattern) for pattern in _PATTERNS)


def _natural(path: Path) -> tuple[list[list[str | int]], str]:
    """A sorting key by which mp-9 comes before mp-10."""
    parts = [re.split(r"([0-9]+)", part) for part in path.parts]
    return [[int(word) if i % 2 else word for i, word in enumerate(words)] for words in parts], str(
        path
    )


# --- names ----------------------------------------------------------------------------------

_GENERIC = re.compile(r"(CHG|CHGCAR|AECCAR[0-9]*|PARCHG|POSCAR|CONTCAR)(\.([0-9]+|ALL[BK]))*")
"""Names that VASP gives, whatever the material."""
_DROPPED = (*_COMPRESSED, ".npz", ".vasp", ".CHGCAR", ".CHG", ".POSCAR", ".CONTCAR", ".cif")
_LONGEST_ID = 64


def default_id(path: str | Path, structure: Structure) -> str:
    """An id for the material in a file, made from its name.

    "mp-149" for mp-149.npz, mp-149.CHGCAR.gz and mp-149.vasp. Where the name says nothing, as
    CHGCAR does, the formula and the beginning of the file's SHA-256: "Si-1f0c22ab".

    Returns:
        1 to 64 of the characters A-Z a-z 0-9 . _ - +, the first of them a letter or a digit;
        others become "-", and what is longer ends in the beginning of the SHA-256.

    Raises:
        InputError: the file has to be read for its SHA-256 and cannot be.
    """
    name = Path(path).name
    while name.endswith(_DROPPED):
        name = name[: name.rindex(".")]
    name = "" if _GENERIC.fullmatch(name) else _clean(name)
    if 0 < len(name) <= _LONGEST_ID:
        return name
    digest = file_sha256(path)[:8]
    name = name or _clean(structure.formula) or "density"
    return f"{name[: _LONGEST_ID - len(digest) - 1]}-{digest}"


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name).lstrip("._+-")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file as it is, compressed or not, in hexadecimal.

    Raises:
        InputError: the file cannot be read.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def densities_by_sha256(
    folder: str | Path, progress: Callable[[int, int], None] | None = None
) -> dict[str, Path]:
    """The density files in a folder by their SHA-256, by which a record names its source.

    Args:
        folder: it, or one file.
        progress: called with the number of files read and of all.

    Raises:
        InputError: there are none, or one cannot be read.
    """
    paths = find_densities([folder])
    if not paths:
        raise InputError(f"{folder}: no density files in it")
    found = {}
    for i, path in enumerate(paths, 1):
        found[file_sha256(path)] = path
        if progress:
            progress(i, len(paths))
    return found

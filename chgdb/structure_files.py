"""Structures without a density: POSCAR and CONTCAR, CIF, and JSON lists of primitive cells.

A JSON list, plain or compressed, holds objects with `id`, `cell` (3, 3) rows in A,
`scaled_positions` (n_atoms, 3) and `numbers` (n_atoms,); other keys are ignored.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chgdb.chgcar import read_header
from chgdb.density import Structure
from chgdb.elements import SYMBOLS
from chgdb.errors import InputError
from chgdb.files import HEAD, read_content, read_head, reason, shown
from chgdb.formats import default_id, file_sha256
from chgdb.schema import check_id

if TYPE_CHECKING:
    from ase.io.cif import CIFBlock

__all__ = ["StructureEntry", "holds_structures", "read_structures", "structures_by_id"]

_CLOSEST = 0.5
"""A between two atoms, below which they are one atom written twice; the bond of H2 has 0.74."""

_LONGEST = 1e4
"""A of a lattice vector."""

_KIND = 2**16
"""Bytes by which a CIF or a list is recognised."""

_LIST_RATIO = 20
"""Bytes to which one byte of a compressed list may unpack; lists of structures have 5."""

_DENSITY = re.compile(r"(.*\.)?(CHG|CHGCAR|AECCAR[0-9]*|PARCHG)([^a-zA-Z].*)?|.*\.npz(\..*)?")
"""Names of files that hold a density, or the beginning of one that was cut."""

_JSON = re.compile(rb"\s*\[\s*(\{|\])")
_CIF_BLOCK = re.compile(rb"^[ \t]*data_\S", re.MULTILINE | re.IGNORECASE)
_CIF_TAG = re.compile(rb"^[ \t]*_[A-Za-z]+[._]\S", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class StructureEntry:
    """A structure of a file.

    Attributes:
        id: that of the entry, or made from the name of the file (`formats.default_id`).
        structure: the crystal.
        sha256: of the file, or of the entry where a file may hold several.
    """

    id: str
    structure: Structure
    sha256: str


def holds_structures(path: str | Path, *, species: Sequence[str] | None = None) -> bool:
    """Whether a file is one that `read_structures` reads, and holds no density.

    The content tells. A POSCAR is also the header of a CHGCAR, so it counts as one only if no grid
    follows, and if it is not called CHGCAR, CHG, AECCAR or PARCHG.

    Args:
        path: a file.
        species: element symbols for a header that does not name them.
    """
    path = Path(path)
    if _DENSITY.fullmatch(path.name) or not path.is_file():
        return False
    if path.name.startswith(("POSCAR", "CONTCAR")):
        return True
    try:
        head = read_head(path)
        return _kind(head) != "poscar" or not read_header(path, head, species=species)[1]
    except InputError:
        return False  # whoever reads it says what is wrong


def read_structures(
    path: str | Path, *, species: Sequence[str] | None = None
) -> list[StructureEntry | InputError]:
    """The structures of a file; an entry that is bad is there as its error.

    Args:
        path: a POSCAR, a CIF or a JSON list, plain or compressed with gzip, bzip2 or xz.
        species: element symbols for a POSCAR that does not name them.

    Raises:
        InputError: the file cannot be read, or is none of these.
    """
    kind = _kind(read_head(path, _KIND))
    if kind == "json":
        return _read_json(path, read_content(path, HEAD + _LIST_RATIO * Path(path).stat().st_size))
    content = read_content(path, HEAD)
    if kind == "cif":
        structure = _read_cif(path, content)
    else:
        structure, density_follows = read_header(path, content, species=species)
        if density_follows:
            raise InputError(f"{shown(path)}: holds a density, not only a structure")
    try:
        _check(structure)
    except InputError as error:
        raise InputError(f"{shown(path)}: {error}") from error
    return [StructureEntry(default_id(path, structure), structure, file_sha256(path))]


def structures_by_id(path: str | Path) -> tuple[dict[str, Structure], list[InputError]]:
    """The structures of a file by id, and the errors of its bad entries.

    Raises:
        InputError: as `read_structures`.
    """
    found: dict[str, Structure] = {}
    bad: list[InputError] = []
    for entry in read_structures(path):
        if isinstance(entry, StructureEntry):
            found[entry.id] = entry.structure
        else:
            bad.append(entry)
    return found, bad


def _kind(head: bytes) -> str:
    head = head[:_KIND]
    if _JSON.match(head):
        return "json"
    return "cif" if _CIF_BLOCK.search(head) and _CIF_TAG.search(head) else "poscar"


def _check(structure: Structure) -> None:
    """Refuse what is no crystal.

    Raises:
        InputError: there are no atoms, or two in one place, or the cell is none.
    """
    from ase import Atoms
    from ase.geometry import minkowski_reduce
    from ase.neighborlist import neighbor_list

    if not structure.species:
        raise InputError("holds no atoms")
    longest = float(np.abs(structure.lattice).max())
    if longest > _LONGEST:
        raise InputError(f"a lattice vector of {longest:.4g} A; at most {_LONGEST:g} A are read")
    try:
        cell, _ = minkowski_reduce(structure.lattice)
    except RuntimeError as error:
        raise InputError("the lattice vectors are too skewed; reduce the cell") from error
    shortest = float(np.linalg.norm(cell, axis=1).min())
    if shortest < _CLOSEST:  # which also bounds how many images of an atom have to be looked at
        raise InputError(f"the crystal repeats after {shortest:.4g} A, less than {_CLOSEST} A")
    atoms = Atoms(
        [0] * len(structure.species),
        positions=structure.frac_coords % 1.0 @ structure.lattice,
        cell=cell,
        pbc=True,
    )
    pairs = neighbor_list("ij", atoms, _CLOSEST)
    if len(pairs[0]):
        i, j = int(pairs[0][0]), int(pairs[1][0])
        one, other = structure.species[i], structure.species[j]
        where = f"atoms {i + 1} ({one}) and {j + 1} ({other})"
        raise InputError(f"{where} are less than {_CLOSEST} A apart; remove one of them")


# --- JSON -----------------------------------------------------------------------------------


def _read_json(path: str | Path, content: bytes) -> list[StructureEntry | InputError]:
    try:
        items = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown(path)}: not a readable JSON list ({reason(error)})") from error
    entries: list[StructureEntry | InputError] = []
    met: set[str] = set()
    for number, item in enumerate(items, start=1):
        name = item.get("id") if isinstance(item, dict) else None
        try:
            entry = _entry(item)
            if entry.id in met:
                raise InputError("an id that is there twice")
        except InputError as error:
            where = f"entry {number}" + (f" ({str(name)[:64]!r})" if name is not None else "")
            entries.append(InputError(f"{shown(path)}: {where}: {error}"))
        else:
            met.add(entry.id)
            entries.append(entry)
    return entries


def _entry(item: Any) -> StructureEntry:
    """One object of a list.

    Raises:
        InputError: something is missing or has no meaning.
    """
    keys = ("id", "cell", "scaled_positions", "numbers")
    if not isinstance(item, dict):
        raise InputError(f"not an object with {', '.join(keys)}")
    if missing := [key for key in keys if key not in item]:
        raise InputError(f"has no {missing[0]}")
    if not isinstance(item["id"], str):
        raise InputError("an id is a text")
    numbers = item["numbers"]
    known = range(1, len(SYMBOLS) + 1)
    if not isinstance(numbers, list) or not all(type(n) is int and n in known for n in numbers):
        raise InputError(f"numbers must be a list of atomic numbers, 1 to {len(SYMBOLS)}")
    structure = Structure(
        item["cell"], tuple(SYMBOLS[n - 1] for n in numbers), item["scaled_positions"]
    )
    _check(structure)
    told = json.dumps([item[key] for key in keys], sort_keys=True)
    return StructureEntry(
        check_id(item["id"]), structure, hashlib.sha256(told.encode()).hexdigest()
    )


# --- CIF ------------------------------------------------------------------------------------


def _read_cif(path: str | Path, content: bytes) -> Structure:
    """The one structure of a CIF, in the cell of the file."""
    try:
        with warnings.catch_warnings():
            # ASE warns of tags that it does not need.
            warnings.simplefilter("ignore")
            return _from_cif(content)
    except InputError as error:
        raise InputError(f"{shown(path)}: {error}") from error
    except Exception as error:  # ASE raises a dozen types
        problem = reason(error)
        raise InputError(f"{shown(path)}: not a readable CIF ({problem})") from error


def _from_cif(content: bytes) -> Structure:
    from ase.io.cif import parse_cif

    blocks = [block for block in parse_cif(io.BytesIO(content)) if block.has_structure()]
    if len(blocks) != 1:
        raise InputError(
            f"a CIF with {len(blocks)} structures; write one per file"
            if blocks
            else "a CIF without a structure: it needs a cell, positions and symbols"
        )
    (block,) = blocks
    if block.get_cellpar() is None:
        raise InputError("a CIF without a cell")
    _check_sites(block)
    return Structure.from_ase(block.get_atoms())


def _check_sites(block: CIFBlock) -> None:
    """Refuse sites that are not wholly of one element."""
    labels = block.get("_atom_site_label") or block.get("_atom_site_type_symbol") or []
    occupancies = block.get("_atom_site_occupancy") or [1.0] * len(labels)
    for label, occupancy in zip(labels, occupancies, strict=True):
        if isinstance(occupancy, int | float) and abs(occupancy - 1.0) > 1e-3:
            raise InputError(
                f"site {shown(str(label)[:32])} has the occupancy {occupancy:g}; a density needs a "
                "crystal whose sites are full: order it first"
            )
    for symbol in block.get_symbols():
        if symbol not in SYMBOLS:
            raise InputError(f"{symbol!r} is not an element")

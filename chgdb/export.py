"""Rows of the table as objects, and as files that other programs read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chgdb.errors import InputError, NotKnownError, StoreError
from chgdb.files import one_line, reason, replacing, shown
from chgdb.schema import PROPERTIES

if TYPE_CHECKING:
    from chgdb.density import Structure
    from chgdb.table import Selection

__all__ = [
    "DENSITY_SUFFIXES",
    "STRUCTURE_COLUMNS",
    "STRUCTURE_SUFFIXES",
    "check_target",
    "json_ready",
    "known_properties",
    "structure_of",
    "write_selection",
    "write_structure",
]

DENSITY_SUFFIXES = {"chgcar": ".CHGCAR.vasp", "cube": ".cube", "npz": ".npz"}
STRUCTURE_SUFFIXES = {"cif": ".cif", "poscar": ".POSCAR.vasp"}
"""How files of a record are called, by their format: the id, then this."""

STRUCTURE_COLUMNS = ("lattice", "species", "frac_coords")
"""The columns whose text is JSON."""


def check_target(path: Path) -> bool:
    """Whether a target of `Database.export` is a file, by its suffix; else it is a new store.

    Raises:
        InputError: an unknown suffix, or the target exists.
    """
    is_file = path.suffix.lower() in _WRITERS
    if path.suffix and not is_file:
        raise InputError(
            f"{shown(path)}: unknown suffix; use .csv, .json, .parquet or .extxyz, or none for a "
            "store"
        )
    if path.exists() and (is_file or not path.is_dir()):
        raise InputError(f"{shown(path)}: exists already; remove it or choose another name")
    return is_file


def write_selection(path: Path, selection: Selection) -> None:
    """Write records as a table or as structures, all or nothing; the suffix says how.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as partial:
        _WRITERS[path.suffix.lower()](selection, partial)


def json_ready(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose columns that hold JSON text, such as the lattice, are unpacked."""
    return {
        name: json.loads(value) if name in STRUCTURE_COLUMNS and value is not None else value
        for name, value in row.items()
    }


def structure_of(row: Mapping[str, Any]) -> Structure:
    """The crystal structure in a row of the table.

    Raises:
        NotKnownError: it is not known.
        StoreError: it is damaged.
    """
    from chgdb.density import Structure

    if row["lattice"] is None:
        raise NotKnownError(
            f'{row["id"]}: its structure is not known; --where "n_atoms > 0" finds those that are'
        )
    try:
        lattice, species, frac_coords = (json.loads(row[name]) for name in STRUCTURE_COLUMNS)
        if not (isinstance(species, list) and all(isinstance(s, str) for s in species)):
            raise InputError("the species are no texts")
        return Structure(lattice, tuple(species), frac_coords)
    except (ValueError, TypeError, RecursionError, InputError) as error:
        raise StoreError(f"{row['id']}: its structure is damaged ({reason(error)})") from error


def known_properties(row: Mapping[str, Any]) -> dict[str, Any]:
    """The reference properties in a row of the table that are there."""
    names = (column.name for column in PROPERTIES)
    return {name: row[name] for name in names if row[name] is not None}


def write_structure(
    path: str | Path,
    structure: Structure,
    format: str,  # noqa: A002
    *,
    comment: str = "",
) -> None:
    """Write a structure as "cif" or "poscar"; a file that is there is replaced.

    Args:
        path: the file.
        structure: what to write.
        format: "cif" or "poscar".
        comment: first line of a POSCAR.

    Raises:
        InputError: an unknown format, or the file cannot be written.
    """
    from ase.io import write

    if format not in ("cif", "poscar"):
        raise InputError(f"unknown format {format!r}; known are cif and poscar")
    with replacing(path) as partial:
        if format == "cif":
            write(partial, structure.to_ase(), format="cif")
            return
        text = io.StringIO()
        write(text, structure.to_ase(), format="vasp", direct=True)
        first, rest = text.getvalue().split("\n", 1)
        partial.write_text(f"{one_line(comment) or first}\n{rest}", encoding="utf-8")


def _write_csv(selection: Selection, path: Path) -> None:
    selection.frame.to_csv(path, index=False)


def _write_json(selection: Selection, path: Path) -> None:
    rows = [json_ready(row) for row in selection]
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_parquet(selection: Selection, path: Path) -> None:
    import fastparquet

    try:
        fastparquet.write(
            str(path),
            selection.frame,
            compression="ZSTD",
            write_index=False,
            object_encoding="utf8",
        )
    except OSError:
        raise
    except Exception as error:  # fastparquet raises whatever comes up
        raise InputError(f"the records cannot be written as Parquet ({reason(error)})") from error


def _write_extxyz(selection: Selection, path: Path) -> None:
    from ase.io import write

    images = []
    for row in selection:
        atoms = structure_of(row).to_ase()
        atoms.info = {"material_id": row["id"], **known_properties(row)}
        images.append(atoms)
    write(path, images, format="extxyz")


_WRITERS: dict[str, Callable[[Selection, Path], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".parquet": _write_parquet,
    ".extxyz": _write_extxyz,
}

"""Records as files that other programs read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chgdb.errors import InputError

if TYPE_CHECKING:
    from chgdb.database import Database
    from chgdb.density import Structure
    from chgdb.table import Selection

__all__ = ["export_records", "write_structure"]


def export_records(database: Database, target: str | Path, **filters: Any) -> int:
    """Write the records that fit; the suffix of the target says how.

    Args:
        database: where they are.
        target: `.csv`, `.json` and `.parquet` are tables of every column, `.extxyz` has structures
            with their properties (ASE), and a name without suffix becomes a new store.
        **filters: as of `Database.select`.

    Returns:
        The number of records written.

    Raises:
        InputError: an unknown suffix, or a target that exists or cannot be written.
    """
    path = Path(target)
    writers: dict[str, Callable[[Database, Selection, Path], None]] = {
        ".csv": _write_csv,
        ".json": _write_json,
        ".parquet": _write_parquet,
        ".extxyz": _write_extxyz,
        "": _write_store,
    }
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise InputError(
            f"{path}: unknown suffix; use .csv, .json, .parquet or .extxyz, or none for a store"
        )
    selection = database.select(**filters)
    if path.exists() and writer is not _write_store:
        raise InputError(f"{path}: exists already; remove it or choose another name")
    try:
        writer(database, selection, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    return len(selection)


def _write_csv(_: Database, selection: Selection, path: Path) -> None:
    selection.frame.to_csv(path, index=False)


def _write_json(_: Database, selection: Selection, path: Path) -> None:
    path.write_text(json.dumps(selection.rows(), indent=1) + "\n", encoding="utf-8")


def _write_parquet(_: Database, selection: Selection, path: Path) -> None:
    selection.frame.to_parquet(path, engine="fastparquet", index=False)


def _write_extxyz(database: Database, selection: Selection, path: Path) -> None:
    from ase.io import write

    from chgdb.database import Record

    images = []
    for row in selection:
        record = Record(database, row)
        atoms = record.atoms
        atoms.info = {"id": record.id, **record.properties}
        images.append(atoms)
    write(path, images, format="extxyz")


def _write_store(database: Database, selection: Selection, path: Path) -> None:
    database.copy(path, [row["id"] for row in selection])


def write_structure(
    path: str | Path,
    structure: Structure,
    format: str,  # noqa: A002
    *,
    comment: str = "",
) -> None:
    """Write a structure as "cif" or "poscar".

    Raises:
        InputError: the file cannot be written.
    """
    from ase.io import write

    options: dict[str, Any] = {"format": "cif"}
    if format == "poscar":
        options = {"format": "vasp", "direct": True, "label": comment or structure.formula}
    try:
        write(path, structure.to_ase(), **options)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error

"""What a row of the table says: of a material, of the source of its density, of its payload."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from chgdb import __version__
from chgdb.elements import reduced_formula
from chgdb.errors import InputError
from chgdb.query import canonical_formula, count_atoms
from chgdb.symmetry import find_symmetry

if TYPE_CHECKING:
    from chgdb.archive import Payload
    from chgdb.density import Structure
    from chgdb.intake import Intake
    from chgdb.symmetry import Symmetry

__all__ = [
    "describe_intake",
    "describe_material",
    "describe_payload",
    "describe_structure",
    "is_same_material",
]


def describe_material(
    material_id: str, formula: str, structure: Structure | None = None
) -> dict[str, Any]:
    """A row of a material without a density.

    Args:
        material_id: its id.
        formula: however it is written.
        structure: if it is known.

    Raises:
        QueryError: the formula is none.
        InputError: the structure is of other elements than the formula.
    """
    row = {"id": material_id, **_describe_formula(formula), **_now()}
    if structure is None:
        return row
    if not is_same_material(row, structure.formula):
        raise InputError(f"{formula}, but its structure is of {structure.formula}")
    return {**row, **describe_structure(structure, find_symmetry(structure))}


def describe_structure(structure: Structure, symmetry: Symmetry | None) -> dict[str, Any]:
    """The columns of a crystal structure and of its composition."""
    return {
        **_describe_formula(structure.formula),
        "n_atoms": len(structure.species),
        "volume": structure.volume,
        "mass_density": structure.mass_density,
        "lattice": json.dumps(structure.lattice.tolist()),
        "species": json.dumps(list(structure.species)),
        "frac_coords": json.dumps(structure.frac_coords.tolist()),
        "spacegroup": symmetry.number if symmetry else None,
        "spacegroup_symbol": symmetry.symbol if symmetry else None,
        "crystal_system": symmetry.crystal_system if symmetry else None,
    }


def describe_intake(intake: Intake) -> dict[str, Any]:
    """The columns of a density and of its source."""
    density = intake.density
    return {
        "id": intake.id,
        **describe_structure(density.structure, intake.symmetry),
        "n_electrons": density.n_electrons,
        "magnetization": density.magnetic_moment,
        "grid_a": density.grid[0],
        "grid_b": density.grid[1],
        "grid_c": density.grid[2],
        "source": intake.source,
        "source_format": intake.format,
        "source_file": os.fsencode(intake.path.name).decode("utf-8", "replace"),
        "source_sha256": intake.sha256,
        "source_nmae": intake.source_nmae,
        **_now(),
    }


def describe_payload(payload: Payload | None) -> dict[str, Any]:
    """The columns of a payload."""
    if payload is None:
        return {}
    return {
        "payload_bytes": len(payload.data),
        "payload_method": payload.method,
        "payload_nmae": payload.error.nmae,
        "payload_max_error": payload.error.max_error,
        "payload_electron_error": payload.error.electron_error,
        "payload_magnetization_nmae": payload.magnetization_nmae,
    }


def is_same_material(row: Mapping[str, Any], formula: str) -> bool:
    """Whether a row can be of a material with this formula, however that is written."""
    return bool(row["reduced_formula"] == canonical_formula(formula))


def _describe_formula(formula: str) -> dict[str, Any]:
    counts = count_atoms(formula, int)
    elements = sorted(counts)
    return {
        "formula": reduced_formula(counts),
        "reduced_formula": canonical_formula(formula),
        "chemsys": "-".join(elements),
        "elements": ",".join(elements),
        "n_elements": len(elements),
    }


def _now() -> dict[str, str]:
    return {
        "added": datetime.now(UTC).isoformat(timespec="seconds"),
        "chgdb_version": __version__,
    }

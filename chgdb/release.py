"""The files of the authors' release: a table of materials and one latent per material.

A latent is `{formula}_{spacegroup}_latent.npy`, float32 (16, 16, 16, 16), channels last; the column
`formula_sp` of the table names it. Nothing here is trusted: what a file or a cell of the table
should not hold becomes a `Finding`, and the rest is read.

A value is taken if it can be one of a solid:

- moduli are positive;
- Poisson's ratio lies in (-1, 0.5) and E = 9KG/(3K + G) holds to 1 %, Poisson's ratio of K and G to
  0.01: the table made E from G and Poisson's ratio, so that both go where they contradict K and G;
- the Debye temperature is at most 3000 K (diamond has 2230 K);
- the energy is between -12 and 0 eV/atom. The table calls it a formation energy, but it is
  relative to free atoms: chgdb's `cohesive_energy`.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chgdb.elasticity import poisson_ratio, youngs_modulus
from chgdb.errors import InputError
from chgdb.files import LARGEST_TABLE, read_content, reason, shown
from chgdb.query import canonical_formula
from chgdb.schema import check_id
from chgdb.symmetry import Symmetry, space_group

__all__ = [
    "LATENT_SHAPE",
    "LATENT_SUFFIX",
    "Finding",
    "Material",
    "ReleaseTable",
    "find_latents",
    "read_latent",
    "read_table",
]

LATENT_SUFFIX = "_latent.npy"
LATENT_SHAPE = (16, 16, 16, 16)
"""(channel, a, b, c) as chgdb has it; in the files the channel is the last axis."""

_COLUMNS = {
    "bulk_hill": "bulk_modulus",
    "shear_hill": "shear_modulus",
    "youngs_modulus": "youngs_modulus",
    "poisson_ratio": "poisson_ratio",
    "debye_temperature": "debye_temperature",
    "formation_energy_per_atom": "cohesive_energy",
}
"""Column of the table -> property of chgdb, in the same unit."""

_NEEDED = (
    "material_id",
    "formula_pretty",
    "space_group_number",
    "formula_sp",
    "crystal_system",
    "crystal_symbol",
    *_COLUMNS,
)

_HIGHEST_DEBYE = 3000.0
_STRONGEST_BOND = -12.0
_MODULUS_TOLERANCE = 0.01
_POISSON_TOLERANCE = 0.01


@dataclass(frozen=True)
class Finding:
    """Something of the release that was not taken as it is.

    Attributes:
        kind: such as "missing latent", "wrong shape" or "no debye_temperature".
        subject: the material id, or the name of the file.
        detail: what was found, and what became of it.
    """

    kind: str
    subject: str
    detail: str


@dataclass(frozen=True)
class Material:
    """A row of the table.

    Attributes:
        id: the material id.
        formula: as in the table.
        key: formula and space group as file names have them.
        symmetry: that of the number of its space group.
        properties: those that are there and plausible, in the units of the schema.
    """

    id: str
    formula: str
    key: str
    symmetry: Symmetry
    properties: dict[str, float]


@dataclass(frozen=True)
class ReleaseTable:
    """What `read_table` took.

    Attributes:
        materials: in the order of the table.
        findings: about the rest.
        n_rows: of the table.
    """

    materials: list[Material] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    n_rows: int = 0


# --- the table --------------------------------------------------------------------------------


def read_table(path: str | Path) -> ReleaseTable:
    """The table of the release, a CSV file.

    Two rows of one formula and space group share the name of their latent, so that neither is
    taken.

    Raises:
        InputError: the file cannot be read, or lacks a column.
    """
    content = read_content(path, LARGEST_TABLE)
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{shown(path)}: no table of the release; it lacks {missing[0]}")
        return _read_rows((reader.line_num, row) for row in reader)
    except (csv.Error, ValueError) as error:
        raise InputError(f"{shown(path)}: not a readable table ({reason(error)})") from error


def _read_rows(rows: Iterable[tuple[int, Mapping[str, str]]]) -> ReleaseTable:
    table = ReleaseTable()
    n_rows, taken = 0, set()
    materials = []
    for line, row in rows:
        n_rows += 1
        try:
            material = _material(row, table.findings.append)
            if material.id in taken:
                raise InputError(f"{material.id} is there twice; the first row is taken")
        except InputError as error:
            table.findings.append(Finding("bad row", f"line {line}", str(error)))
            continue
        taken.add(material.id)
        materials.append(material)
    shared = Counter(material.key for material in materials)
    for material in materials:
        if shared[material.key] == 1:
            table.materials.append(material)
        else:
            text = (
                f"{shared[material.key]} materials of the table are {material.key}; none is taken"
            )
            table.findings.append(Finding("ambiguous", material.id, text))
    return ReleaseTable(table.materials, table.findings, n_rows)


def _material(row: Mapping[str, str], report: Callable[[Finding], None]) -> Material:
    """One row.

    Raises:
        InputError: it does not name a material.
    """
    if None in row or None in row.values():
        raise InputError("another number of columns than in the first line")
    cells = {name: row[name].strip() for name in _NEEDED}
    material_id, formula = check_id(cells["material_id"]), cells["formula_pretty"]
    canonical_formula(formula)
    number = cells["space_group_number"]
    if not (number.isascii() and number.isdecimal() and 1 <= int(number[:9]) <= 230):
        raise InputError(f"{material_id}: no space group {number!r}; their numbers are 1 to 230")
    if cells["formula_sp"] != f"{formula}_{int(number)}":
        raise InputError(
            f"{material_id}: formula_sp is {cells['formula_sp']!r}, not that of {formula} in space "
            f"group {number}"
        )

    def tell(kind: str, detail: str) -> None:
        report(Finding(kind, material_id, detail))

    symmetry = space_group(int(number))
    for column, known in (
        ("crystal_system", symmetry.crystal_system),
        ("crystal_symbol", symmetry.symbol),
    ):
        if not cells[column]:
            tell(f"no {column}", f"{known}, from the number of the space group")
        elif cells[column].lower() != known.lower():
            tell(
                f"implausible {column}",
                f"{cells[column]!r}, but space group {number} is {known}, which is taken",
            )
    return Material(material_id, formula, cells["formula_sp"], symmetry, _properties(cells, tell))


def _properties(cells: Mapping[str, str], tell: Callable[[str, str], None]) -> dict[str, float]:
    """The values that are there and can be true; the others are told of."""
    values: dict[str, float] = {}
    for column, name in _COLUMNS.items():
        if not cells[column] or cells[column].lower() == "nan":
            tell(f"no {name}", "left empty")
            continue
        try:
            values[name] = float(cells[column])
        except ValueError:
            tell(f"implausible {name}", f"{cells[column]!r} is no number; left empty")
    for name, why in _implausible(values):
        tell(f"implausible {name}", f"{values[name]:g} {why}; left empty")
        values[name] = math.nan
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _implausible(values: Mapping[str, float]) -> list[tuple[str, str]]:
    """Property and reason of every value that cannot be that of a solid."""
    nan = math.nan
    k, g = values.get("bulk_modulus", nan), values.get("shear_modulus", nan)
    e_of_kg, nu_of_kg = youngs_modulus(k, g), poisson_ratio(k, g)
    e, nu = values.get("youngs_modulus", nan), values.get("poisson_ratio", nan)
    theta, energy = values.get("debye_temperature", nan), values.get("cohesive_energy", nan)
    checks = (
        ("bulk_modulus", 0 < k < math.inf, "GPa is not positive"),
        ("shear_modulus", 0 < g < math.inf, "GPa is not positive"),
        ("youngs_modulus", 0 < e < math.inf, "GPa is not positive"),
        (
            "youngs_modulus",
            not abs(e - e_of_kg) > _MODULUS_TOLERANCE * e_of_kg,
            f"GPa, but 9KG/(3K + G) is {e_of_kg:g}",
        ),
        ("poisson_ratio", -1 < nu < 0.5, "is not within -1 and 0.5"),
        (
            "poisson_ratio",
            not abs(nu - nu_of_kg) > _POISSON_TOLERANCE,
            f"is not the {nu_of_kg:.3f} of K and G",
        ),
        ("debye_temperature", 0 < theta <= _HIGHEST_DEBYE, "K is not within 0 and 3000"),
        ("cohesive_energy", _STRONGEST_BOND <= energy <= 0, "eV/atom is not within -12 and 0"),
    )
    failed = {name: why for name, good, why in reversed(checks) if name in values and not good}
    return [(name, failed[name]) for name in _COLUMNS.values() if name in failed]


# --- the latents ------------------------------------------------------------------------------


def find_latents(
    folder: str | Path, materials: Iterable[Material], besides: Sequence[Path] = ()
) -> tuple[dict[str, Path], list[Finding]]:
    """The latent of every material by its id, and what is missing or not of the table.

    Args:
        folder: of the release; folders in it are not looked into.
        materials: of the table.
        besides: other files of the release, which may lie in the folder too.

    Raises:
        InputError: the folder cannot be read.
    """
    known = {path.resolve() for path in besides}
    try:
        files = {
            path.name: path
            for path in sorted(Path(folder).iterdir())
            if path.is_file() and not path.name.startswith(".") and path.resolve() not in known
        }
    except OSError as error:
        raise InputError(
            f"{shown(folder)}: not a readable folder of latents ({reason(error)})"
        ) from error
    latents, findings = {}, []
    for material in materials:
        path = files.pop(f"{material.key}{LATENT_SUFFIX}", None)
        if path is None:
            name = f"{material.key}{LATENT_SUFFIX}"
            findings.append(Finding("missing latent", material.id, f"there is no {name}"))
        else:
            latents[material.id] = path
    return latents, [
        *findings,
        *(Finding("extra file", shown(name), "no row of the table takes it") for name in files),
    ]


def read_latent(path: Path) -> NDArray[np.float32] | Finding:
    """A latent, shape `LATENT_SHAPE`, channels first, or why the file holds none.

    Shape and dtype are looked at before anything is read, and nothing is unpickled.
    """

    def finding(kind: str, detail: str) -> Finding:
        return Finding(kind, shown(path.name), detail)

    try:
        stored: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
        if stored.dtype.newbyteorder("=") != np.float32:
            return finding("wrong dtype", f"{stored.dtype}, not float32")
        last = (*LATENT_SHAPE[1:], LATENT_SHAPE[0])
        if stored.shape != last:
            return finding("wrong shape", f"{stored.shape}, not {last}")
        values = np.ascontiguousarray(np.moveaxis(stored, -1, 0), dtype=np.float32)
    except Exception as error:  # noqa: BLE001 (NumPy parses headers, and fails in many ways)
        return finding("unreadable file", reason(error))
    if not np.isfinite(values).all():
        count = int(np.count_nonzero(~np.isfinite(values)))
        return finding("not finite", f"{count} of {values.size} numbers are NaN or infinite")
    if not values.any():
        return finding("all zero", "a latent of zeros stands for no density")
    return values

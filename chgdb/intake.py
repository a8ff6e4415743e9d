"""What is known of a file before an encoder sees it; parsing in parallel."""

from __future__ import annotations

import csv
import gzip
import multiprocessing
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chgdb.density import ChargeDensity
from chgdb.errors import ChgdbError, InputError
from chgdb.formats import default_id, file_sha256, read_density
from chgdb.schema import PROPERTIES, check_id
from chgdb.symmetry import Symmetry, find_symmetry

__all__ = ["Intake", "Known", "read_properties", "take_in", "take_in_all"]


@dataclass(frozen=True, eq=False)
class Intake:
    """A density file, read and described.

    Attributes:
        id: the material id it gets.
        path: where it was read.
        format: "chgcar" or "npz".
        sha256: of the file.
        density: what it holds.
        symmetry: of the structure.
    """

    id: str
    path: Path
    format: str
    sha256: str
    density: ChargeDensity
    symmetry: Symmetry | None


@dataclass(frozen=True)
class Known:
    """A file that the store holds already, under this id."""

    id: str
    path: Path


Result = Intake | Known | ChgdbError


def take_in(
    path: Path,
    *,
    material_id: str | None = None,
    species: Sequence[str] | None = None,
    known: Mapping[str, str] | None = None,
) -> Intake | Known:
    """Read one file.

    Args:
        path: a density file.
        material_id: the id to give it; by default one is made from the name of the file.
        species: element symbols for a CHGCAR that does not name them.
        known: sha256 -> id of what is stored; such a file is not parsed again.

    Raises:
        ChgdbError: it cannot be read.
    """
    sha256 = file_sha256(path)
    stored = (known or {}).get(sha256)
    if stored is not None and material_id in (None, stored):
        return Known(stored, path)
    density, file_format = read_density(path, species=species)
    identity = check_id(material_id if material_id is not None else default_id(path, density))
    symmetry = find_symmetry(density.structure)
    return Intake(identity, path, file_format, sha256, density, symmetry)


def take_in_all(
    paths: Sequence[Path],
    *,
    ids: Sequence[str] | None = None,
    species: Sequence[str] | None = None,
    known: Mapping[str, str] | None = None,
    processes: int = 1,
) -> Iterator[tuple[Path, Result]]:
    """Read files in their order, a few ahead of the consumer; a bad one becomes its error."""
    jobs = [
        (path, {"material_id": ids[i] if ids else None, "species": species, "known": known})
        for i, path in enumerate(paths)
    ]
    if processes == 1 or len(jobs) < 4:
        for path, options in jobs:
            yield path, _attempt(path, options)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = deque(jobs)
        running: deque[Any] = deque()
        try:
            while waiting or running:
                while waiting and len(running) < 2 * processes:
                    path, options = waiting.popleft()
                    running.append((path, pool.submit(_attempt, path, options)))
                path, future = running.popleft()
                yield path, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _attempt(path: Path, options: Mapping[str, Any]) -> Result:
    """`take_in`, with what goes wrong as a value that travels between processes."""
    try:
        return take_in(path, **options)
    except ChgdbError as error:
        return InputError(str(error))
    except MemoryError:
        return InputError(f"{path}: not enough memory to read it")


def read_properties(path: str | Path) -> dict[str, dict[str, Any]]:
    """Properties by material id, from a CSV file (.gz too) in the units of the schema.

    The column `material_id` or `id` names the material; `formula` is ignored.

    Raises:
        InputError: the file cannot be read, or has no id or an unknown column.
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            key = next((name for name in ("material_id", "id") if name in columns), None)
            if key is None:
                raise InputError(f"{path}: a table of properties needs a column material_id")
            types = {column.name: column.type for column in PROPERTIES}
            unknown = set(columns) - {key, "formula"} - set(types)
            if unknown:
                names = ", ".join(sorted(unknown))
                raise InputError(f"{path}: unknown property {names}; docs/format.md lists them")
            return {
                row[key]: {name: _value(row[name], types[name]) for name in types if row.get(name)}
                for row in reader
            }
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise InputError(f"{path}: not a readable table of properties ({error})") from error


def _value(text: str, column_type: str) -> str | float | bool:
    if column_type == "text":
        return text
    if column_type == "boolean":
        words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
        if text.lower() not in words:
            raise ValueError(f"{text!r} is neither true nor false")
        return words[text.lower()]
    return float(text)

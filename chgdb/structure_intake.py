"""What is known of a structure file before an encoder sees it: its density, predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from chgdb.charge3net import SOURCE, Charge3Net
from chgdb.errors import ChgdbError, InputError
from chgdb.files import reason, shown
from chgdb.intake import Encode, Intake, Known, Result
from chgdb.schema import check_id
from chgdb.structure_files import StructureEntry, read_structures
from chgdb.symmetry import find_symmetry

__all__ = ["Entry", "read_entries", "take_in_structures"]

Entry = tuple[Path, StructureEntry | ChgdbError]
"""A file, and a structure of it or why there is none."""


def read_entries(
    paths: Sequence[Path],
    *,
    ids: Mapping[Path, str] | None = None,
    species: Sequence[str] | None = None,
) -> list[Entry]:
    """The structures of files, in the order of the files and in each the smallest cell first.

    Args:
        paths: structure files.
        ids: to give to files of one structure; by default they have their own.
        species: element symbols for POSCARs that do not name them.
    """
    entries: list[Entry] = []
    for path in paths:
        try:
            found = read_structures(path, species=species)
            if ids and path in ids:
                found = [_renamed(path, found, ids[path])]
        except ChgdbError as error:
            entries.append((path, error))
            continue
        entries += [(path, entry) for entry in sorted(found, key=_size)]
    return entries


def _size(entry: StructureEntry | InputError) -> float:
    """Volume of the cell; errors come first."""
    return entry.structure.volume if isinstance(entry, StructureEntry) else 0.0


def _renamed(
    path: Path, found: Sequence[StructureEntry | InputError], material_id: str
) -> StructureEntry:
    if len(found) != 1 or not isinstance(found[0], StructureEntry):
        raise InputError(f"{shown(path)}: a list of structures, which have ids of their own")
    return StructureEntry(check_id(material_id), found[0].structure, found[0].sha256)


def take_in_structures(
    entries: Sequence[Entry],
    network: Charge3Net,
    *,
    unneeded: Callable[[Path, StructureEntry], Known | None],
    encode: Encode | None = None,
    progress: Callable[..., None] | None = None,
) -> Iterator[tuple[Path, Result]]:
    """Predict the densities of structures in their order; a bad one becomes its error.

    Args:
        entries: from `read_entries`.
        network: what predicts.
        unneeded: tells, just before a density would be predicted, why it need not be.
        encode: makes the payload of a density.
        progress: called with the number of points done and of all, of each structure.
    """
    for path, entry in entries:
        if not isinstance(entry, StructureEntry):
            yield path, entry
        elif stored := unneeded(path, entry):
            yield path, stored
        else:
            yield path, _taken_in(path, entry, network, encode, progress)


def _taken_in(
    path: Path,
    entry: StructureEntry,
    network: Charge3Net,
    encode: Encode | None,
    progress: Callable[..., None] | None,
) -> Result:
    where = f"{shown(path)}: {entry.id}"
    try:
        density = network.predict(entry.structure, progress=progress)
        return Intake(
            id=entry.id,
            path=path,
            format=f"{SOURCE} {network.weights_sha256[:12]}",
            sha256=entry.sha256,
            density=density,
            symmetry=find_symmetry(entry.structure),
            payload=encode(density) if encode else None,
            source=SOURCE,
            source_nmae=network.nmae,
        )
    except InputError as error:
        return InputError(f"{where}: {error}")
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError
        return InputError(f"{where}: cannot be predicted ({reason(error)})")

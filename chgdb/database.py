"""The facade: open a store, search it, decode records, add and remove them.

The CLI and every other front end only call this module. torch, ASE and Zarr are loaded by the
methods that need them, so opening and searching a store stays instant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chgdb import __version__
from chgdb.errors import (
    ChgdbError,
    InputError,
    MissingExtraError,
    ModelError,
    StoreError,
    UnknownIdError,
)
from chgdb.query import (
    Condition,
    chemsys_condition,
    elements_condition,
    formula_condition,
    parse_range,
    parse_where,
)
from chgdb.resources import find_model, find_store, is_shipped
from chgdb.schema import (
    ARRAYS_FOLDER,
    COLUMNS,
    PROPERTIES,
    TABLE_FOLDER,
    EncoderInfo,
    StoreInfo,
)
from chgdb.table import Selection, Table

if TYPE_CHECKING:
    import pandas as pd
    from ase import Atoms

    from chgdb.arrays import LatentArrays
    from chgdb.codec import Codec
    from chgdb.decoded import DecodedDensity
    from chgdb.density import Grid, Latent, Structure
    from chgdb.intake import Intake

__all__ = ["AddReport", "Database", "OnConflict", "Record"]

OnConflict = Literal["error", "skip", "replace"]
"""What `add` does with a file whose id is taken by a record of another file."""

DEFAULT_ENCODER = "periodic-16"
LOCK_FILE = ".lock"
LOCK_TIMEOUT = 30.0
"""Seconds to wait for another writer."""

BATCH = 32
"""Densities that are encoded and committed together."""


@dataclass
class AddReport:
    """What `Database.add` did.

    Attributes:
        added: one row of the table per new record.
        skipped: ids of files that are stored already, or whose id is taken and to be skipped.
        failed: (file, why) of those that could not be added.
    """

    added: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.added) + len(self.skipped) + len(self.failed)


class Record:
    """One material of a store."""

    def __init__(self, database: Database, row: Mapping[str, Any]) -> None:
        self._database = database
        self.row = dict(row)
        """Every column of the table (docs/format.md), None where a property is absent."""

    def __repr__(self) -> str:
        return f"<Record {self.id}: {self.row['formula']}>"

    @property
    def id(self) -> str:
        """The material id."""
        return str(self.row["id"])

    @property
    def properties(self) -> dict[str, Any]:
        """The reference properties that are known, in the units of the schema."""
        names = (column.name for column in PROPERTIES)
        return {name: self.row[name] for name in names if self.row[name] is not None}

    @property
    def grid(self) -> Grid:
        """The grid of the source density."""
        return self.row["grid_a"], self.row["grid_b"], self.row["grid_c"]

    @cached_property
    def structure(self) -> Structure:
        """The crystal structure."""
        from chgdb.density import Structure

        columns = ("lattice", "species", "frac_coords")
        lattice, species, frac_coords = (json.loads(self.row[name]) for name in columns)
        return Structure(lattice, tuple(species), frac_coords)

    @property
    def atoms(self) -> Atoms:
        """The crystal structure as ASE Atoms."""
        return self.structure.to_ase()

    def latent(self) -> Latent:
        """The stored latent, as the decoder sees it.

        Raises:
            StoreError: the arrays of the store are damaged.
        """
        return self._database._latent(self.row)

    def density(self, grid: Grid | None = None) -> DecodedDensity:
        """The decoded density, on the grid of its source or on another one.

        Raises:
            MissingExtraError: torch is not installed.
            StoreError: the arrays of the store are damaged.
        """
        (density,) = self._database.decode([self.id], grid=grid)
        return density


class Database:
    """A store of charge densities.

    Any number of processes may read while one writes; writers wait for each other.

    Args:
        path: folder of the store; None looks for one as `chgdb.resources` says.
        device: where the encoder runs: "auto", "cpu" or "cuda".

    Raises:
        StoreError: there is no store, or its own file is damaged.
        FormatVersionError: a newer chgdb made the store.
    """

    def __init__(self, path: str | Path | None = None, *, device: str = "auto") -> None:
        self.path = find_store(path)
        self.device = device
        self.info = StoreInfo.load(self.path)
        self._table = Table(self.path / TABLE_FOLDER)

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        encoder: str = DEFAULT_ENCODER,
        attribution: str = "",
        device: str = "auto",
    ) -> Database:
        """A new, empty store for the latents of one encoder.

        Args:
            path: a folder that does not exist or is empty.
            encoder: id of the encoder.
            attribution: who made the data that will be in it, under which licence.
            device: where the encoder runs.

        Raises:
            StoreError: the folder is not empty or cannot be written.
            ModelError: there is no such encoder.
        """
        from chgdb.codec import load_codec

        codec = load_codec(find_model(encoder), device)
        info = StoreInfo(
            encoder=EncoderInfo(codec.config.id, codec.config.kind, codec.config.weights_sha256),
            latent=codec.latent_storage,
            attribution=attribution,
            created_by=f"chgdb {__version__}",
        )
        return cls._create(Path(path), info, device)

    @classmethod
    def _create(cls, path: Path, info: StoreInfo, device: str) -> Database:
        from chgdb.arrays import LatentArrays

        try:
            if path.exists() and any(path.iterdir()):
                raise StoreError(f"{path}: not empty; a new store needs a folder of its own")
            (path / TABLE_FOLDER).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: cannot make a store here ({error.strerror})") from error
        attrs = {"encoder": info.encoder.id, "attribution": info.attribution}
        LatentArrays.create(path / ARRAYS_FOLDER, info.latent, attrs)
        info.save(path)
        return cls(path, device=device)

    # ------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return self._table.count()

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.ids())

    def __contains__(self, material_id: object) -> bool:
        return bool(self._table.select("id = ?", [material_id], columns=["id"], limit=1))

    def __getitem__(self, material_id: str) -> Record:
        (record,) = self.get([material_id])
        return record

    def get(self, ids: Sequence[str]) -> list[Record]:
        """Records by id, in the order asked.

        Raises:
            UnknownIdError: one is not there; the text suggests the nearest ids.
        """
        try:
            return [Record(self, row) for row in self._table.get(ids)]
        except UnknownIdError:
            known = self._table.ids()
            missing = next(id_ for id_ in ids if id_ not in set(known))
            near = get_close_matches(missing, known, n=3, cutoff=0.6)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise UnknownIdError(f"no record {missing!r} in {self.path}{hint}") from None

    def summary(self) -> dict[str, Any]:
        """What the store holds, for people: "records", "encoder", "size on disk (MB)", ..."""
        errors = sorted(nmae for (nmae,) in self._table.select(columns=["latent_nmae"]).values)
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        return {
            "store": str(self.path),
            "records": len(errors),
            "encoder": f"{self.info.encoder.id} ({self.info.encoder.weights_sha256[:12]})",
            "latent": f"{self.info.latent.shape}, {self.info.latent.dtype}",
            "latent NMAE, median (%)": errors[len(errors) // 2] if errors else None,
            "latent NMAE, largest (%)": errors[-1] if errors else None,
            "size on disk (MB)": size / 1e6,
            "attribution": self.info.attribution or None,
            "created by": self.info.created_by,
        }

    def search(self, **filters: Any) -> pd.DataFrame:
        """The records that fit, as a DataFrame; `select` says which filters there are."""
        return self.select(**filters).frame

    def select(
        self,
        *,
        formula: str | None = None,
        elements: Sequence[str] = (),
        exclude: Sequence[str] = (),
        chemsys: str | None = None,
        nelements: str | int | None = None,
        spacegroup: str | int | None = None,
        crystal_system: str | None = None,
        ranges: Mapping[str, str] | None = None,
        where: str | None = None,
        columns: Sequence[str] | None = None,
        sort: str | None = None,
        descending: bool = False,
        limit: int | None = None,
    ) -> Selection:
        """The records that fit every filter given.

        Args:
            formula: such as "TiO2"; the order of the elements does not matter.
            elements: symbols that must all be there.
            exclude: symbols that must not be there.
            chemsys: exactly these elements, such as "Ti-O".
            nelements: number of elements, or a range such as "2:3".
            spacegroup: its number, or its Hermann-Mauguin symbol.
            crystal_system: "cubic", "hexagonal", ...
            ranges: column -> "low:high", either end open.
            where: an expression over the columns (docs/cli.md).
            columns: what to return; by default everything.
            sort: column to order by; by default the order of adding.
            descending: largest first.
            limit: most records to return.

        Raises:
            QueryError: a filter that cannot be understood, or an unknown column.
        """
        conditions = [
            formula_condition(formula) if formula else Condition("", ()),
            elements_condition(elements, exclude),
            chemsys_condition(chemsys) if chemsys else Condition("", ()),
            *(parse_range(column, text) for column, text in (ranges or {}).items()),
        ]
        if nelements is not None:
            conditions.append(parse_range("n_elements", str(nelements)))
        if spacegroup is not None:
            conditions.append(_spacegroup_condition(str(spacegroup)))
        if crystal_system:
            conditions.append(Condition("crystal_system = ?", (crystal_system.lower(),)))
        if where:
            conditions.append(parse_where(where, _column_kinds()))
        condition = Condition("", ())
        for part in conditions:
            condition &= part
        return self._table.select(
            condition.sql,
            condition.parameters,
            columns=columns,
            order_by=sort,
            descending=descending,
            limit=limit,
        )

    def decode(self, ids: Sequence[str], *, grid: Grid | None = None) -> list[DecodedDensity]:
        """Densities from latents; None for the grid of each source.

        Raises:
            UnknownIdError: an id is not there.
            MissingExtraError: torch is not installed.
            StoreError: the arrays of the store are damaged.
        """
        from chgdb.decoded import DecodedDensity

        records = self.get(ids)
        decoded = self._codec.decode(
            [record.latent() for record in records],
            [record.structure for record in records],
            [grid or record.grid for record in records],
        )
        origin = f"latent of {self.info.encoder.id}"
        return [
            DecodedDensity(
                density.values,
                density.structure,
                id=record.id,
                origin=origin,
                nmae=record.row["latent_nmae"],
            )
            for record, density in zip(records, decoded, strict=True)
        ]

    def _latent(self, row: Mapping[str, Any]) -> Latent:
        from chgdb.density import Latent

        stored = self._arrays().read(row["row"], row["id"])
        return Latent(stored.values, stored.work_grid, stored.n_electrons)

    def _arrays(self, *, writable: bool = False) -> LatentArrays:
        from chgdb.arrays import LatentArrays

        return LatentArrays.open(self.path / ARRAYS_FOLDER, writable=writable)

    @cached_property
    def _codec(self) -> Codec:
        """The encoder of this store, checked against the hash the store names."""
        try:
            from chgdb.codec import load_codec
        except ModuleNotFoundError as error:
            raise MissingExtraError("encoding and decoding densities", "ml") from error
        encoder = self.info.encoder
        folder = find_model(encoder.id)
        codec = load_codec(folder, self.device)
        if codec.config.weights_sha256 != encoder.weights_sha256:
            raise ModelError(
                f"{folder}: other weights than those that made {self.path} (sha256); "
                "a store belongs to one encoder"
            )
        return codec

    # ------------------------------------------------------------------ writing

    def add(
        self,
        paths: Sequence[str | Path],
        *,
        ids: Sequence[str] | None = None,
        on_conflict: OnConflict = "error",
        species: Sequence[str] | None = None,
        properties: str | Path | None = None,
        processes: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> AddReport:
        """Encode density files and store them.

        A file that is stored already (same SHA-256) is skipped, so a run that was interrupted is
        resumed by repeating it. A bad file is reported and stops nothing.

        Args:
            paths: files, folders and globs.
            ids: one id per file; by default made from the names of the files.
            on_conflict: what to do when the id is taken by a record of another file.
            species: element symbols for CHGCARs that do not name them.
            properties: CSV of reference properties by material id.
            processes: how many processes parse files.
            progress: called with the number of files done and the number of all.

        Raises:
            InputError: there is nothing to add, or ids and files do not match.
            MissingExtraError: torch is not installed.
            StoreError: the store cannot be written.
        """
        from chgdb.formats import find_densities
        from chgdb.intake import Intake, Known, read_properties, take_in_all

        files = find_densities(paths)
        if not files:
            raise InputError(f"no density files in {', '.join(map(str, paths))}")
        if ids is not None and len(ids) != len(files):
            raise InputError(f"{len(ids)} ids for {len(files)} files: give one id per file")
        if on_conflict not in ("error", "skip", "replace"):
            raise InputError(f"--on-conflict {on_conflict}: use error, skip or replace")
        if is_shipped(self.path):
            raise StoreError(
                f"{self.path}: the store inside the package is read-only; "
                "make your own with: chgdb init store, or: chgdb export store"
            )
        table = read_properties(properties) if properties else {}
        stored = self._table.select(columns=["source_sha256", "id"]).values
        known = {sha256: material_id for sha256, material_id in stored if sha256}
        self._codec  # noqa: B018 (fail before parsing)
        report = AddReport()
        batch: list[Intake] = []
        results = take_in_all(files, ids=ids, species=species, known=known, processes=processes)
        for path, result in results:
            if isinstance(result, Known):
                report.skipped.append(result.id)
            elif isinstance(result, Intake):
                batch.append(result)
            else:
                report.failed.append((path, str(result)))
            if len(batch) == BATCH:
                self._add_batch(batch, table, on_conflict, report)
                batch = []
            if progress:
                progress(len(report), len(files))
        self._add_batch(batch, table, on_conflict, report)
        if progress:
            progress(len(files), len(files))
        return report

    def remove(self, ids: Sequence[str]) -> None:
        """Remove records, all or none.

        Raises:
            UnknownIdError: one is not there.
            StoreError: the store cannot be written.
        """
        with self._writing():
            rows = [record.row["row"] for record in self.get(ids)]
            self._table.remove(ids)
            self._arrays(writable=True).erase(rows)

    def copy(self, path: str | Path, ids: Sequence[str] | None = None) -> Database:
        """A new store with some of the records (None: all), bit for bit.

        Raises:
            UnknownIdError: an id is not there.
            StoreError: the folder is not empty or cannot be written.
        """
        records = self.get(self._table.ids() if ids is None else ids)
        target = Database._create(Path(path), self.info, self.device)
        source = self._arrays()
        for start in range(0, len(records), 8 * BATCH):
            part = records[start : start + 8 * BATCH]
            stored = [source.read(record.row["row"], record.id) for record in part]
            target._commit(
                [record.row for record in part],
                [latent.values for latent in stored],
                replacing=False,
            )
        return target

    def _add_batch(
        self,
        batch: Sequence[Intake],
        table: Mapping[str, Mapping[str, Any]],
        on_conflict: OnConflict,
        report: AddReport,
    ) -> None:
        """Encode and commit what does not conflict."""
        chosen = self._without_conflicts(batch, on_conflict, report)
        encoded = []
        for intake in chosen:
            try:
                encoded.append((intake, *self._encode(intake)))
            except ChgdbError as error:
                report.failed.append((intake.path, f"{intake.path}: {error}"))
        if not encoded:
            return
        rows = [{**row, **table.get(intake.id, {})} for intake, row, _ in encoded]
        with self._writing():
            self._commit(
                rows, [values for *_, values in encoded], replacing=on_conflict == "replace"
            )
        report.added += rows

    def _without_conflicts(
        self, batch: Sequence[Intake], on_conflict: OnConflict, report: AddReport
    ) -> list[Intake]:
        taken = dict(
            self._table.select(
                "list_contains(?, id)",
                [[intake.id for intake in batch]],
                columns=["id", "source_sha256"],
            ).values
        )
        chosen: dict[str, Intake] = {}
        for intake in batch:
            if intake.id in chosen:
                report.failed.append(
                    (intake.path, f"{intake.path}: same id {intake.id} as {chosen[intake.id].path}")
                )
            elif intake.id not in taken or on_conflict == "replace":
                chosen[intake.id] = intake
            elif on_conflict == "skip" or taken[intake.id] == intake.sha256:
                report.skipped.append(intake.id)
            else:
                report.failed.append(
                    (
                        intake.path,
                        _taken(intake),
                    )
                )
        return list(chosen.values())

    def _encode(self, intake: Intake) -> tuple[dict[str, Any], Any]:
        """The row and the latent of one density; errors are those of the stored bytes."""
        from chgdb.arrays import pack, unpack
        from chgdb.metrics import compare

        density, storage = intake.density, self.info.latent
        (latent,) = self._codec.encode([density])
        packed = pack(latent.values, storage.dtype, storage.scale_factor)
        values = unpack(packed, storage.dtype, storage.scale_factor)
        (decoded,) = self._codec.decode(
            [replace(latent, values=values)], [density.structure], [density.grid]
        )
        error = compare(decoded, density)
        row = {
            **_describe(intake),
            "work_grid_a": latent.work_grid[0],
            "work_grid_b": latent.work_grid[1],
            "work_grid_c": latent.work_grid[2],
            "latent_nmae": error.nmae,
            "latent_max_error": error.max_error,
            "latent_electron_error": error.electron_error,
            "latent_coarse": self._codec.is_coarse(density.structure.lattice),
        }
        return row, values

    def _commit(
        self, rows: Sequence[Mapping[str, Any]], latents: Sequence[Any], *, replacing: bool
    ) -> None:
        """Arrays first, then the Parquet part that makes the records exist."""
        import numpy as np

        ids = [row["id"] for row in rows]
        old = self._table.select("list_contains(?, id)", [ids], columns=["row"]).values
        start = self._table.next_row
        arrays = self._arrays(writable=True)
        arrays.write(
            start,
            ids,
            np.stack(latents),
            [[row[f"grid_{axis}"] for axis in "abc"] for row in rows],
            [[row[f"work_grid_{axis}"] for axis in "abc"] for row in rows],
            [row["n_electrons"] for row in rows],
        )
        self._table.append(rows, start, replaces=replacing and bool(old))
        if old:
            arrays.erase([row for (row,) in old])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The lock of the store's one writer."""
        from filelock import FileLock, Timeout

        path = self.path / LOCK_FILE
        try:
            with FileLock(path, timeout=LOCK_TIMEOUT):
                yield
        except Timeout as error:
            raise StoreError(f"{self.path}: another process is writing; try again") from error
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error.strerror})") from error


def _taken(intake: Intake) -> str:
    return (
        f"{intake.path}: id {intake.id} is taken by another density; "
        "give --id, or --on-conflict skip or replace"
    )


def _column_kinds() -> dict[str, str]:
    """Column name -> what the query language calls its type."""
    kinds = {"integer": "number", "real": "number"}
    return {column.name: kinds.get(column.type, column.type) for column in COLUMNS.values()}


def _spacegroup_condition(text: str) -> Condition:
    """By number, range of numbers or symbol."""
    if text[:1].isdigit():
        return parse_range("spacegroup", text)
    symbol = text.replace(" ", "").lower()
    return Condition("lower(spacegroup_symbol) = ?", (symbol,))


def _describe(intake: Intake) -> dict[str, Any]:
    """What a row says of the material and of its source."""
    from chgdb.query import canonical_formula

    density, structure, symmetry = intake.density, intake.density.structure, intake.symmetry
    moment = density.magnetic_moment
    return {
        "id": intake.id,
        "formula": structure.formula,
        "reduced_formula": canonical_formula(structure.formula),
        "chemsys": "-".join(structure.elements),
        "elements": ",".join(structure.elements),
        "n_elements": len(structure.elements),
        "n_atoms": len(structure.species),
        "volume": structure.volume,
        "mass_density": structure.mass_density,
        "lattice": json.dumps(structure.lattice.tolist()),
        "species": json.dumps(list(structure.species)),
        "frac_coords": json.dumps(structure.frac_coords.tolist()),
        "spacegroup": symmetry.number if symmetry else None,
        "spacegroup_symbol": symmetry.symbol if symmetry else None,
        "crystal_system": symmetry.crystal_system if symmetry else None,
        "n_electrons": density.n_electrons,
        "magnetization": moment,
        "grid_a": density.grid[0],
        "grid_b": density.grid[1],
        "grid_c": density.grid[2],
        "source": "dft",
        "source_format": intake.format,
        "source_file": intake.path.name,
        "source_sha256": intake.sha256,
        "added": datetime.now(UTC).isoformat(timespec="seconds"),
        "chgdb_version": __version__,
    }

"""The facade: open a store, search it, decode records, add and remove them.

The CLI and every other front end only call this module. torch, ASE and Zarr are loaded by the
methods that need them, so opening and searching a store stays instant.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from chgdb import __version__
from chgdb.derived import Derived
from chgdb.errors import (
    ChgdbError,
    InputError,
    MissingExtraError,
    QueryError,
    StoreError,
    UnknownIdError,
)
from chgdb.export import known_properties, structure_of
from chgdb.files import PARTIAL_SUFFIX, reason, replace_file, seal_holds, shown
from chgdb.filters import Filters, Range, column_named, columns_named, condition_of
from chgdb.parquet import any_of
from chgdb.predicting import Predictor, PredictReport
from chgdb.resources import DEFAULT_ENCODER, find_model, find_store, is_shipped
from chgdb.schema import (
    ARRAYS_FOLDER,
    FORMAT_VERSION,
    INFO_FILE,
    PREDICTED,
    PREDICTION_COLUMNS,
    SOURCES,
    TABLE_FOLDER,
    EncoderInfo,
    StoreInfo,
    check_id,
)
from chgdb.table import Selection, Table

if TYPE_CHECKING:
    from typing import Unpack

    import numpy as np
    import pandas as pd
    from ase import Atoms
    from numpy.typing import NDArray

    from chgdb.archive import Tolerance
    from chgdb.arrays import LatentArrays
    from chgdb.codec import Codec
    from chgdb.decoded import DecodedDensity
    from chgdb.density import Grid, Latent, Structure
    from chgdb.intake import Intake
    from chgdb.verification import Finding

__all__ = [
    "AddReport",
    "Database",
    "Filters",
    "ImportReport",
    "OnConflict",
    "PredictReport",
    "Range",
    "Record",
    "Source",
]

OnConflict = Literal["error", "skip", "replace"]
"""What `add` does with a file whose id is taken by a record of another file."""

Source = Literal["payload", "latent"]
"""What `decode` makes a density from."""

LOCK_FILE = ".lock"
LOCK_TIMEOUT = 30.0
"""Seconds to wait for another writer."""

BATCH = 128
"""Densities that are encoded and committed together, at most."""

_MATERIALS = 4096
"""Materials without a density that are committed together."""

BATCH_POINTS = 2**23
"""Grid points beyond which a batch is complete, such as four of 128^3: bounds the memory."""

_PREDICTED_VALUES = [f"{name}{end}" for name in PREDICTED for end in ("", "_low", "_high")]

_SOURCE_COUNTS = {
    **{f"densities, {source}": f"count(*) FILTER (source = '{source}')" for source in SOURCES},
    "without a density": "count(*) FILTER (source IS NULL)",
}
_SUMMARY = {
    "records": "count(*)",
    **_SOURCE_COUNTS,
    "latent NMAE, median (%)": "median(latent_nmae)",
    "latent NMAE, largest (%)": "max(latent_nmae)",
    "payloads": "count(payload_bytes)",
    "payload NMAE, median (%)": "median(payload_nmae)",
    "payload NMAE, largest (%)": "max(payload_nmae)",
    "payload, mean (bytes)": "avg(payload_bytes)",
}
"""What `Database.summary` tells of all records, in SQL."""

_OF_ANSWERS = ("columns", "sort", "descending", "limit")
"""The filters that say how an answer looks, not which records it has."""

LARGEST_GRID = 2**27
"""Points of a grid to decode on: 512^3, 1 GB as an array and 3 GB while it is made."""


@dataclass
class AddReport:
    """What `Database.add` did with every file.

    Attributes:
        added: one row of the table per new record.
        skipped: (file, why) of those that are stored already, or whose id is taken.
        failed: (file, why) of those that could not be added; the reason names the file.
    """

    added: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.added) + len(self.skipped) + len(self.failed)


@dataclass
class ImportReport:
    """What `Database.import_materials` did with every material.

    Attributes:
        added: ids of new records.
        updated: ids of records that got properties, or a structure.
        failed: (id, why) of those that could not be taken.
    """

    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A density on its way into the store: the file, the row and the latent."""

    intake: Intake
    row: dict[str, Any]
    values: NDArray[np.float32]


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
        return known_properties(self.row)

    @cached_property
    def predicted(self) -> dict[str, Any]:
        """What the default model predicted, as of `Database.predicted`; empty if nothing.

        Raises:
            StoreError: the predictions are damaged.
        """
        return self._database.predicted([self.id]).get(self.id, {})

    @property
    def source(self) -> str | None:
        """Where the density comes from: "dft", "charge3net", or None if there is no density."""
        source: str | None = self.row["source"]
        return source

    @property
    def grid(self) -> Grid:
        """The grid of the source density.

        Raises:
            StoreError: there is no density, or its grid is not known.
        """
        grid = self.row["grid_a"], self.row["grid_b"], self.row["grid_c"]
        if None in grid:
            raise self._without_density()
        return grid

    @cached_property
    def structure(self) -> Structure:
        """The crystal structure.

        Raises:
            StoreError: it is not known.
        """
        return structure_of(self.row)

    @property
    def atoms(self) -> Atoms:
        """The crystal structure as ASE Atoms."""
        return self.structure.to_ase()

    def latent(self) -> Latent:
        """The stored latent, as the decoder sees it.

        Raises:
            StoreError: there is no density, or the arrays of the store are damaged.
        """
        if self.row["work_grid_a"] is None:
            raise self._without_density()
        return self._database._latent(self.row)

    def _without_density(self) -> StoreError:
        return StoreError(
            f"{self.id}: the store holds no density of it; add one with: "
            f"chgdb add CHGCAR --id {self.id}"
        )

    def payload(self) -> bytes | None:
        """The stored payload, which `chgdb.archive.decode` decodes; None if there is none.

        Raises:
            StoreError: the arrays of the store are damaged.
        """
        try:
            return self._database._payload(self.row)
        except StoreError as error:
            raise StoreError(f"{self.id}: its payload cannot be read ({error})") from error

    def density(self, grid: Grid | None = None, source: Source = "payload") -> DecodedDensity:
        """The decoded density, as `Database.decode` gives it.

        Raises:
            InputError: the grid or the source cannot be used.
            MissingExtraError: a latent is to be decoded and torch is not installed.
            StoreError: the arrays of the store are damaged.
        """
        (density,) = self._database.decode([self.id], grid=grid, source=source)
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
        self._derived = Derived(self.path, self._table)
        self._predictor = Predictor(
            self.path,
            self._table,
            self._derived,
            decode=lambda row: self._from_payload(Record(self, row), None),
            writing=lambda wait: self._writing(wait=wait),
        )

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
        codec = _load_codec(find_model(encoder), device)
        info = StoreInfo(
            encoder=EncoderInfo(codec.config.id, codec.config.kind, codec.config.weights_sha256),
            latent=codec.latent_storage,
            attribution=attribution,
            created_by=f"chgdb {__version__}",
        )
        with _new_folder(path) as partial:
            cls._create(partial, info)
        return cls(path, device=device)

    @classmethod
    def _create(cls, path: Path, info: StoreInfo) -> Database:
        from chgdb.arrays import LatentArrays

        Table.create(path / TABLE_FOLDER)
        attrs = {"encoder": info.encoder.id, "attribution": info.attribution}
        LatentArrays.create(path / ARRAYS_FOLDER, info.latent, attrs)
        _keep_library(path)
        info.save(path)
        return cls(path)

    # ------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return self._table.count()

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.ids())

    def __contains__(self, material_id: object) -> bool:
        if not isinstance(material_id, str):
            return False
        return bool(self._table.select("id = ?", [material_id], columns=["id"], limit=1))

    def __getitem__(self, material_id: str) -> Record:
        (record,) = self.get([material_id])
        return record

    def get(self, ids: str | Sequence[str]) -> list[Record]:
        """Records by id, in the order asked.

        Raises:
            UnknownIdError: one is not there; the text suggests the nearest ids.
        """
        ids = _ids(ids)
        try:
            return [Record(self, row) for row in self._table.get(ids)]
        except UnknownIdError:
            found = self._table.select(any_of("id", ids), ids, columns=["id"])
            known = {id_ for (id_,) in found.values}
            missing = next(id_ for id_ in ids if id_ not in known)
            near = get_close_matches(missing, self._table.near(missing, 64), n=3)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise UnknownIdError(f"no record {missing!r} in {shown(self.path)}{hint}") from None

    def summary(self) -> dict[str, Any]:
        """What the store holds, for people: "records", "encoder", "size on disk (MB)", ..."""
        found = self._table.summary(_SUMMARY)
        sources = {name: found.pop(name) for name in _SOURCE_COUNTS}
        return {
            "store": str(self.path),
            "format version": self.info.format_version,
            "records": found.pop("records"),
            **{name: count for name, count in sources.items() if count or name == "densities, dft"},
            "encoder": f"{self.info.encoder.id} ({self.info.encoder.weights_sha256[:12]})",
            "latent": f"{self.info.latent.shape}, {self.info.latent.dtype}",
            **found,
            **self._derived_summary(),
            "size on disk (MB)": _size(self.path) / 1e6,
            "attribution": self.info.attribution or None,
            "created by": self.info.created_by,
        }

    def _derived_summary(self) -> dict[str, Any]:
        """What the store holds of features and predictions, if anything."""
        if not self._derived.exists:
            return {}
        features, *models = self._derived.count().items()
        counts = {f"predictions of {model}": count for model, count in models}
        return {"materials with features": features[1], **counts}

    def search(self, **filters: Unpack[Filters]) -> pd.DataFrame:
        """The records that fit, as a DataFrame; `select` says which filters there are.

        Raises:
            QueryError: a filter that cannot be understood, or an unknown column.
        """
        return self.select(**filters).frame

    def select(
        self,
        *,
        formula: str | None = None,
        elements: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        chemsys: str | None = None,
        nelements: Range | int | None = None,
        spacegroup: str | int | None = None,
        crystal_system: str | None = None,
        source: str | None = None,
        ranges: Mapping[str, Range] | None = None,
        where: str | None = None,
        columns: str | Sequence[str] | None = None,
        sort: str | None = None,
        descending: bool = False,
        limit: int | None = None,
    ) -> Selection:
        """The records that fit every filter given, as plain tuples.

        Filters, `sort` and `columns` may also name what the default model predicted, such as
        `predicted_bulk_modulus` (docs/cli.md); "everything" leaves it out. Lists may be written as
        text: "Ti,O".

        Args:
            formula: such as "TiO2", "O2Ti" or "Ti2O4", which ask for the same.
            elements: symbols that must all be there.
            exclude: symbols that must not be there.
            chemsys: exactly these elements, such as "Ti-O".
            nelements: number of elements, or a range of it.
            spacegroup: its number or a range of it, or its Hermann-Mauguin symbol.
            crystal_system: "cubic", "hexagonal", ...
            source: "dft" or "charge3net", where the density comes from; "none" for materials
                without one.
            ranges: column -> its bounds.
            where: an expression over the columns (docs/cli.md).
            columns: what to return; by default everything.
            sort: column to order by; by default the order of adding.
            descending: largest first.
            limit: most records to return.

        Raises:
            QueryError: a filter that cannot be understood, or an unknown column.
        """
        condition = condition_of(
            formula=formula,
            elements=elements,
            exclude=exclude,
            chemsys=chemsys,
            nelements=nelements,
            spacegroup=spacegroup,
            crystal_system=crystal_system,
            source=source,
            ranges=ranges,
            where=where,
        )
        if limit is not None and limit < 0:
            raise QueryError(f"limit {limit}: give a number that is not negative")
        names = None if columns is None else columns_named(columns)
        order_by = None if sort is None else column_named(sort)
        named = not PREDICTION_COLUMNS.keys().isdisjoint({*(names or ()), order_by})
        return self._table.select(
            condition.sql,
            condition.parameters,
            columns=names,
            order_by=order_by,
            descending=descending,
            limit=limit,
            joined=self._derived.joined if named or condition.asks(PREDICTION_COLUMNS) else None,
        )

    def count(self, **filters: Unpack[Filters]) -> int:
        """The number of records that fit, whatever `columns`, `sort` and `limit` say.

        Raises:
            QueryError: a filter that cannot be understood, or an unknown column.
        """
        asked = {k: v for k, v in filters.items() if k not in _OF_ANSWERS}
        condition = condition_of(**asked)  # type: ignore[arg-type]
        joined = self._derived.joined if condition.asks(PREDICTION_COLUMNS) else None
        return self._table.count(condition.sql, condition.parameters, joined)

    def decode(
        self, ids: str | Sequence[str], *, grid: Grid | None = None, source: Source = "payload"
    ) -> list[DecodedDensity]:
        """Densities from the store, all held in memory.

        Args:
            ids: of the records.
            grid: of the result; None for that of each source.
            source: "payload", which holds the magnetization too and gives way to the latent where
                a record has none, or "latent". `DecodedDensity.origin` says which it was.

        Raises:
            UnknownIdError: an id is not there.
            InputError: the grid has no points or more than `LARGEST_GRID`, or an unknown source.
            MissingExtraError: a latent is to be decoded and torch is not installed.
            ModelError: a latent is to be decoded and the encoder of the store is not found.
            StoreError: the arrays of the store are damaged.
        """
        if source not in get_args(Source):
            raise InputError(f"source {source!r}: use {' or '.join(get_args(Source))}")
        if grid is not None:
            _check_grid(grid)
        records = self.get(ids)
        has = [source == "payload" and r.row["payload_bytes"] is not None for r in records]
        latents = [record for record, there in zip(records, has, strict=True) if not there]
        from_latents = iter(self._from_latents(latents, grid) if latents else ())
        return [
            self._from_payload(record, grid) if there else next(from_latents)
            for record, there in zip(records, has, strict=True)
        ]

    def _from_payload(self, record: Record, grid: Grid | None) -> DecodedDensity:
        from chgdb.archive import decode
        from chgdb.decoded import DecodedDensity

        try:
            density = decode(self._payload(record.row) or b"", record.structure, grid)
        except StoreError as error:
            raise StoreError(
                f"{record.id}: its payload cannot be decoded ({error}); --from latent may help"
            ) from error
        return DecodedDensity(
            density.values,
            density.structure,
            density.magnetization,
            id=record.id,
            origin="payload",
            nmae=record.row["payload_nmae"],
        )

    def _from_latents(self, records: Sequence[Record], grid: Grid | None) -> list[DecodedDensity]:
        from chgdb.decoded import DecodedDensity

        decoded = self._codec.decode(
            [record.latent() for record in records],
            [record.structure for record in records],
            [grid or record.grid for record in records],
        )
        return [
            DecodedDensity(
                density.values,
                density.structure,
                id=record.id,
                origin=f"latent of {self.info.encoder.id}",
                nmae=record.row["latent_nmae"],
            )
            for record, density in zip(records, decoded, strict=True)
        ]

    def _payload(self, row: Mapping[str, Any]) -> bytes | None:
        if row["payload_bytes"] is None:
            return None
        return self._arrays.read_payload(row["row"], row["id"])

    def _latent(self, row: Mapping[str, Any]) -> Latent:
        from chgdb.density import Latent

        stored = self._arrays.read(row["row"], row["id"])
        if not stored.values.any():
            raise StoreError(f"{shown(self.path)}: the latent of {row['id']} is missing")
        return Latent(stored.values, stored.work_grid, stored.n_electrons)

    @cached_property
    def _arrays(self) -> LatentArrays:
        """The arrays for reading; they look again at the disk when a row is not there."""
        from chgdb.arrays import LatentArrays

        return LatentArrays.open(self.path / ARRAYS_FOLDER)

    @cached_property
    def _codec(self) -> Codec:
        """The encoder of this store, with the weights the store names."""
        encoder = self.info.encoder
        return _load_codec(find_model(encoder.id, encoder.weights_sha256), self.device)

    # ------------------------------------------------------------------ predicting

    def predict(
        self,
        targets: str | Path | Sequence[str | Path],
        model: str | Path | None = None,
        *,
        species: Sequence[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> pd.DataFrame:
        """Properties of materials and of densities in files, predicted with their uncertainty.

        A material is predicted from the stored features: those that came with a data set, or else
        those of the density of its record, which are computed from the payload if they are not
        there, and stored if the store can be written.

        Args:
            targets: ids of the materials, and files. A text that names a file is that file.
            model: id or folder of the model; None for the default one.
            species: element symbols for CHGCARs that do not name them.
            progress: called with the number of targets done and of all.

        Returns:
            A row per target: `id` (or the name of the file), `formula`; of every property `NAME`
            the value `NAME`, the 90 % interval `NAME_low` to `NAME_high` and the value in the store
            `NAME_reference`, NaN where there is none; `in_training`, `outside_domain`, `foreign`
            (of other pseudopotentials than the training data), `neighbours` (JSON, the nearest
            materials in training and their distances), `features_from` ("density", "file" or the
            name of a data set), `model` and `model_version`.

        Raises:
            UnknownIdError: a target is neither a file nor a material; the text suggests ids.
            InputError: a file cannot be read.
            ModelError: the model is not found, or damaged.
            MissingExtraError: a package that the model needs is not installed.
            StoreError: a record has no payload, or the store is damaged.
        """
        asked = [targets] if isinstance(targets, str | Path) else list(targets)
        return self._predictor.predict(asked, model, progress, species)

    def predict_all(
        self,
        model: str | Path | None = None,
        *,
        force: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> PredictReport:
        """Predict every material with features and store what comes out.

        First the features of the records that have none are computed. Everything is committed in
        small parts, and what is up to date is not done again: a run that was interrupted is
        resumed by repeating it. Reference values are never touched. `select` finds the predictions
        of the default model.

        Args:
            model: id or folder of the model; None for the default one.
            force: predict also what is up to date.
            progress: called with the number of materials done and of all.

        Raises:
            ModelError: the model is not found, or damaged.
            MissingExtraError: a package that the model needs is not installed.
            StoreError: the store cannot be written.
        """
        return self._predictor.predict_all(model, progress, force=force)

    def features(self) -> pd.DataFrame:
        """The feature table (`chgdb.features`) of all materials that have features.

        Raises:
            StoreError: the features are damaged.
        """
        return self._predictor.all_features()

    def similar(self, target: str | Path, n: int = 10) -> pd.DataFrame:
        """The materials whose densities are most like that of a material or a file.

        The distance (`chgdb.similarity`) sees no origin, no orientation and no cell, and is the
        same in every store.

        Args:
            target: an id, or a file.
            n: how many, at most; the target itself is not among them.

        Returns:
            The nearest first: `id`, `formula`, `distance`, `spacegroup`, `volume_per_atom` (A^3),
            `density` (whether the store holds its density).

        Raises:
            InputError: `n` is not positive, or the file cannot be read.
            UnknownIdError: the target is neither a file nor a material; the text suggests ids.
            StoreError: the store has no features of materials, or is damaged.
        """
        return self.nearest(target, n).frame

    def nearest(
        self, target: str | Path, n: int = 10, *, species: Sequence[str] | None = None
    ) -> Selection:
        """What `similar` finds, as plain tuples; `species` as of `predict`."""
        return self._predictor.nearest(target, n, species)

    def add_features(self, table: pd.DataFrame, origin: str) -> None:
        """Store the features of the materials in a data set, with records or without.

        Args:
            table: a feature table (`chgdb.features`).
            origin: the name of the data set; features from it that are there already are replaced.

        Raises:
            InputError: a column is missing or unknown, or a value cannot be stored.
            StoreError: the store cannot be written.
        """
        with self._writing():
            self._derived.add_features(table, origin)

    def predicted(self, ids: str | Sequence[str]) -> dict[str, dict[str, Any]]:
        """What the default model predicted of some records, by id; some may not be there.

        Returns:
            Of every property `NAME` the value `NAME` and the 90 % interval `NAME_low` to
            `NAME_high`; `model`, `in_training` and `outside_domain`.

        Raises:
            StoreError: the predictions are damaged.
        """
        if not self._derived.exists:
            return {}
        found = self._table.select(
            f"{any_of('id', _ids(ids))} AND predicted_by IS NOT NULL",
            _ids(ids),
            columns=["id", *PREDICTION_COLUMNS],
            joined=self._derived.joined_of(_ids(ids)),
        )
        return {
            row["id"]: {
                **{name: row[f"predicted_{name}"] for name in _PREDICTED_VALUES},
                "model": row["predicted_by"],
                "in_training": row["prediction_in_training"],
                "outside_domain": row["prediction_outside_domain"],
            }
            for row in found
        }

    # ------------------------------------------------------------------ writing

    def add(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        ids: Sequence[str] | None = None,
        on_conflict: OnConflict = "error",
        species: Sequence[str] | None = None,
        properties: str | Path | None = None,
        tolerance: Tolerance | None = None,
        processes: int | None = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> AddReport:
        """Encode density files and store them.

        A file that is stored already (same SHA-256), with a payload that is as good as asked for,
        is skipped, so a run that was interrupted is resumed by repeating it. A bad file is reported
        and stops nothing.

        Args:
            paths: files, folders and globs.
            ids: one id per file; by default made from the names of the files.
            on_conflict: what to do when the id is taken by a record of another file, or of this
                one with a worse payload.
            species: element symbols for CHGCARs that do not name them.
            properties: CSV of reference properties by material id.
            tolerance: the largest error of the payloads; by default 0.1 % NMAE.
            processes: how many read files and make payloads; None for as many as pay for their
                start. With more than one, a script needs `if __name__ == "__main__":` around its
                work.
            progress: called with the number of files done and the number of all.

        Raises:
            InputError: there is nothing to add, or an argument cannot be used.
            MissingExtraError: torch is not installed.
            ModelError: the encoder of the store is not found.
            StoreError: the store cannot be written.
        """
        from chgdb.archive import Tolerance, encode
        from chgdb.formats import find_densities
        from chgdb.intake import Intake, Known, read_properties, take_in_all

        files = find_densities([paths] if isinstance(paths, str | Path) else paths)
        _check_add(files, paths, ids, on_conflict)
        table = read_properties(properties) if properties else {}
        with self._writing():
            pass  # a store that cannot be written is told from before anything is read
        self._codec  # noqa: B018 (and an encoder that is not there, too)
        tolerance = tolerance or Tolerance()
        stored: dict[str, Mapping[str, Any]] = {}

        def known(hashes: Sequence[str]) -> dict[str, str]:
            """The ids of the files that need not be read again, by their SHA-256."""
            found = self._table.select(
                any_of("source_sha256", hashes), hashes, columns=_STORED_COLUMNS
            )
            stored.update((row["id"], row) for row in found)
            return {
                row["source_sha256"]: row["id"]
                for row in found
                if on_conflict != "replace" or _holds(row, tolerance)
            }

        report = AddReport()
        met = _Met(named=ids is not None, on_conflict=on_conflict)
        batch: list[Intake] = []

        def tell() -> None:
            if progress:
                progress(len(report), len(files))

        results = take_in_all(
            files,
            ids=ids,
            species=species,
            known=known,
            encode=partial(encode, tolerance=tolerance),
            processes=processes,
        )
        for path, result in results:
            if isinstance(result, Known):
                _tell_stored(path, stored[result.id], tolerance, on_conflict, report)
            elif not isinstance(result, Intake):
                report.failed.append((path, str(result)))
            elif met.is_new(result, report):
                batch.append(result)
                points = sum(math.prod(intake.density.grid) for intake in batch)
                if len(batch) == BATCH or points >= BATCH_POINTS:
                    self._add_batch(batch, table, tolerance, on_conflict, report)
                    batch = []
            tell()
        self._add_batch(batch, table, tolerance, on_conflict, report)
        tell()
        return report

    def import_materials(
        self,
        materials: Mapping[str, Mapping[str, Any]],
        structures: Mapping[str, Structure] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImportReport:
        """Store what is known of materials, with a density in the store or without.

        A material that is not there becomes a record without a density, which `add` may give one
        later; one that is gets the properties, and the structure where it has none.

        Args:
            materials: by id, `formula` and properties in the units of the schema.
            structures: by id, as far as they are known.
            progress: called with the number of materials done and the number of all.

        Raises:
            StoreError: the store cannot be written.
        """
        report = ImportReport()
        for part in _batches(list(materials), _MATERIALS):
            with self._writing():
                known = {row["id"]: row for row in self._table.select(any_of("id", part), part)}
                fresh: list[dict[str, Any]] = []
                changes: dict[str, dict[str, Any]] = {}
                for id_ in part:
                    try:
                        row = _material(id_, materials[id_], (structures or {}).get(id_), known)
                    except InputError as error:
                        report.failed.append((id_, str(error)))
                        continue
                    if id_ not in known:
                        fresh.append(row)
                    elif row:
                        changes[id_] = row
                self._table.update(changes)
                if fresh:
                    self._commit(fresh, [None] * len(fresh), [b""] * len(fresh), replacing=False)
            report.added += [row["id"] for row in fresh]
            report.updated += changes
            if progress:
                progress(len(report.added) + len(report.updated), len(materials))
        return report

    def remove(self, ids: str | Sequence[str]) -> None:
        """Remove records, all or none.

        Raises:
            UnknownIdError: one is not there.
            StoreError: the store cannot be written.
        """
        ids = list(dict.fromkeys(_ids(ids)))
        with self._writing():
            rows = [record.row["row"] for record in self.get(ids)]
            self._derived.forget(ids)
            self._table.remove(ids)
            self._writable_arrays().erase(rows)

    def compact(self) -> tuple[int, int]:
        """Give back space: parts are joined, stale features dropped, leftovers erased.

        No record changes. Rows of the arrays keep their numbers; a removed one takes no place.

        Returns:
            The bytes of the store before and after.

        Raises:
            StoreError: the store is damaged, or cannot be written.
        """
        from chgdb.compaction import compact

        with self._writing():
            before = _size(self.path)
            compact(self._table, self._derived, self._writable_arrays())
            _keep_library(self.path)
            for leftover in self.path.glob(f".*{PARTIAL_SUFFIX}"):
                leftover.unlink(missing_ok=True)
            if seal_holds(self.path / INFO_FILE) is None:
                self.info.save(self.path)
        return before, _size(self.path)

    def verify(
        self,
        *,
        deep: bool = False,
        sources: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Finding]:
        """What is wrong with the store, as `chgdb.verification.verify` says; [] if nothing is.

        Raises:
            InputError: there are no density files in `sources`.
        """
        from chgdb.verification import verify

        folder = None if sources is None else Path(sources)
        return list(
            verify(self.path, deep=deep, sources=folder, device=self.device, progress=progress)
        )

    def copy(self, path: str | Path, ids: Sequence[str] | None = None) -> Database:
        """A new store with some of the records (None: all), bit for bit; whole or not at all.

        It has the newest format; a record without a payload stays without. Features and
        predictions go with the records; if these are all, with those of materials without one.

        Raises:
            UnknownIdError: an id is not there.
            StoreError: the folder is not empty or cannot be written.
        """
        records = self.get(list(self) if ids is None else ids)
        with _new_folder(path) as partial:
            info = replace(self.info, format_version=FORMAT_VERSION)
            target = Database._create(partial, info)
            for start in range(0, len(records), BATCH):
                part = records[start : start + BATCH]
                latents = [
                    None if record.row["work_grid_a"] is None else record.latent().values
                    for record in part
                ]
                payloads = [_whole_payload(record) for record in part]
                rows = [record.row for record in part]
                target._commit(rows, latents, payloads, replacing=False)
            copied = [record.id for record in records]
            self._derived.copy_to(target._derived, None if len(copied) == len(self) else copied)
        return Database(path, device=self.device)

    def export(self, target: str | Path, **filters: Unpack[Filters]) -> int:
        """Write the records that fit, all or nothing; the suffix of the target says how.

        Args:
            target: `.csv`, `.json` and `.parquet` are tables, `.extxyz` has structures with their
                properties (ASE), and a name without suffix becomes a new store.
            **filters: as of `select`; `columns` are those of a table.

        Returns:
            The number of records written.

        Raises:
            InputError: an unknown suffix, or a target that exists or cannot be written.
            QueryError: a filter that cannot be understood.
            StoreError: the new store cannot be written.
        """
        from chgdb.export import check_target, write_selection

        path = Path(target)
        is_file = check_target(path)
        if not is_file or path.suffix.lower() == ".extxyz":
            filters["columns"] = None
        selection = self.select(**filters)
        if is_file:
            write_selection(path, selection)
        else:
            self.copy(path, [row["id"] for row in selection])
        return len(selection)

    def _add_batch(
        self,
        batch: Sequence[Intake],
        table: Mapping[str, Mapping[str, Any]],
        tolerance: Tolerance,
        on_conflict: OnConflict,
        report: AddReport,
    ) -> None:
        """Encode and commit what does not conflict."""
        chosen = self._without_conflicts(batch, tolerance, on_conflict, report)
        encoded = {item.intake.id: item for item in self._encode_or_report(chosen, report)}
        if not encoded:
            return
        with self._writing():
            # Another process may have added the same id while this one was encoding.
            intakes = [intake for intake in chosen if intake.id in encoded]
            free = self._without_conflicts(intakes, tolerance, on_conflict, report)
            known = self._properties(free)
            rows = [
                {**encoded[id_].row, **known.get(id_, {}), **table.get(id_, {})}
                for id_ in (intake.id for intake in free)
            ]
            latents = [encoded[intake.id].values for intake in free]
            payloads = [intake.payload.data if intake.payload else b"" for intake in free]
            if rows:
                self._commit(rows, latents, payloads, replacing=True)
        report.added += rows

    def _without_conflicts(
        self,
        intakes: Sequence[Intake],
        tolerance: Tolerance,
        on_conflict: OnConflict,
        report: AddReport,
    ) -> list[Intake]:
        """The files whose ids are free, or to be replaced."""
        ids = [intake.id for intake in intakes]
        found = self._table.select(any_of("id", ids), ids, columns=_STORED_COLUMNS)
        taken = {row["id"]: row for row in found}
        free = []
        for intake in intakes:
            path, row = intake.path, taken.get(intake.id)
            same = row is not None and row["source_sha256"] == intake.sha256
            if (
                row is None
                or _gives_way(row, intake)
                or (on_conflict == "replace" and not (same and _holds(row, tolerance)))
            ):
                free.append(intake)
            elif same:
                _tell_stored(path, row, tolerance, on_conflict, report)
            elif on_conflict == "skip":
                report.skipped.append((path, f"id {intake.id} is taken"))
            else:
                report.failed.append((path, f"{shown(path)}: {_taken(row, intake)}"))
        return free

    def _properties(self, intakes: Sequence[Intake]) -> dict[str, dict[str, Any]]:
        """By id, the properties of records that are about to get another density."""
        by_id = {intake.id: intake for intake in intakes}
        found = self._table.select(any_of("id", list(by_id)), list(by_id))
        return {
            row["id"]: known_properties(row)
            for row in found
            if row["source_sha256"] == by_id[row["id"]].sha256 or _gives_way(row, by_id[row["id"]])
        }

    def _encode_or_report(self, intakes: Sequence[Intake], report: AddReport) -> list[_Encoded]:
        """Encode together; if that fails, in halves, so that a bad density stops no other."""
        if not intakes:
            return []
        try:
            return self._encode(intakes)
        except (ChgdbError, MemoryError, RuntimeError) as error:  # torch raises RuntimeError
            if len(intakes) == 1:
                path = intakes[0].path
                report.failed.append((path, f"{shown(path)}: cannot be encoded: {reason(error)}"))
                return []
        half = len(intakes) // 2
        parts = (intakes[:half], intakes[half:])
        return [item for part in parts for item in self._encode_or_report(part, report)]

    def _encode(self, intakes: Sequence[Intake]) -> list[_Encoded]:
        """Rows and latents of densities; the errors in the rows are those of the stored bytes."""
        from chgdb.metrics import compare
        from chgdb.rows import describe_intake, describe_payload

        densities = [intake.density for intake in intakes]
        latents = [self._codec.stored(latent) for latent in self._codec.encode(densities)]
        structures = [density.structure for density in densities]
        grids = [density.grid for density in densities]
        decoded = self._codec.decode(latents, structures, grids)
        encoded = []
        for intake, latent, back in zip(intakes, latents, decoded, strict=True):
            error = compare(back, intake.density)
            row = {
                **describe_intake(intake),
                "work_grid_a": latent.work_grid[0],
                "work_grid_b": latent.work_grid[1],
                "work_grid_c": latent.work_grid[2],
                "latent_nmae": error.nmae,
                "latent_max_error": error.max_error,
                "latent_electron_error": error.electron_error,
                "latent_coarse": self._codec.is_coarse(intake.density.structure.lattice),
                **describe_payload(intake.payload),
            }
            encoded.append(_Encoded(intake, row, latent.values))
        return encoded

    def _commit(
        self,
        rows: Sequence[Mapping[str, Any]],
        latents: Sequence[NDArray[np.float32] | None],
        payloads: Sequence[bytes],
        *,
        replacing: bool,
    ) -> None:
        """Arrays first, then the Parquet part that makes the records exist.

        Args:
            rows: of the table.
            latents: of each row; None for one without a density.
            payloads: of each row; empty where there is none.
            replacing: records of the same ids are superseded.
        """
        import numpy as np

        ids = [row["id"] for row in rows]
        old = self._table.select(any_of("id", ids), ids, columns=["row"]).values
        start = self._table.next_row
        if old:
            self._derived.forget(ids)
        _keep_library(self.path)
        arrays = self._writable_arrays()
        blank = np.zeros(self.info.latent.shape, np.float32)
        dense = any(latent is not None for latent in latents)
        arrays.write(
            start,
            ["" if latent is None else id_ for id_, latent in zip(ids, latents, strict=True)],
            np.stack([blank if values is None else values for values in latents])
            if dense
            else None,
            [[row.get(f"grid_{axis}") or 0 for axis in "abc"] for row in rows],
            [[row.get(f"work_grid_{axis}") or 0 for axis in "abc"] for row in rows],
            [row.get("n_electrons") or 0.0 for row in rows],
            payloads,
        )
        self._table.append(rows, start, replaces=replacing and bool(old))
        if old:
            arrays.erase([row for (row,) in old])

    def _writable_arrays(self) -> LatentArrays:
        from chgdb.arrays import LatentArrays

        return LatentArrays.open(self.path / ARRAYS_FOLDER, writable=True)

    @contextmanager
    def _writing(self, *, wait: bool = True) -> Iterator[None]:
        """The lock of the store's one writer."""
        from filelock import FileLock, Timeout

        if is_shipped(self.path):
            raise StoreError(
                f"{self.path}: the store inside the package is read-only; make your own with: "
                "chgdb init store, or: chgdb export store"
            )
        path = shown(self.path)
        if (version := self.info.format_version) != FORMAT_VERSION:
            raise StoreError(
                f"{path}: of format version {version}, which is only read; copy its records into a "
                f"store that can be written: chgdb export NEW --store {path}"
            )
        lock = FileLock(self.path / LOCK_FILE, timeout=LOCK_TIMEOUT if wait else 0.0)
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"{path}: another process has been writing for {LOCK_TIMEOUT:g} s; try again later"
            ) from error
        except (OSError, NotImplementedError) as error:
            raise StoreError(f"{path}: cannot be written ({reason(error)})") from error
        try:
            yield
        finally:
            lock.release()


class _Met:
    """The files of one call of `add`, so that none is stored twice and no id given twice."""

    def __init__(self, *, named: bool, on_conflict: OnConflict) -> None:
        self._named = named
        self._on_conflict = on_conflict
        self._by_sha256: dict[str, Path] = {}
        self._by_id: dict[str, Path] = {}

    def is_new(self, intake: Intake, report: AddReport) -> bool:
        """Whether to go on with a file; if not, the report says why."""
        path = intake.path
        first = self._by_sha256.setdefault(intake.sha256, path)
        if first != path and not self._named:
            report.skipped.append((path, f"the same content as {shown(first)}"))
            return False
        first = self._by_id.setdefault(intake.id, path)
        if first == path:
            return True
        why = f"id {intake.id} is also that of {shown(first)}"
        if self._on_conflict == "skip":
            report.skipped.append((path, why))
        else:
            report.failed.append((path, f"{shown(path)}: {why}; give --id for each file"))
        return False


def _check_add(
    files: Sequence[Path],
    paths: str | Path | Sequence[str | Path],
    ids: Sequence[str] | None,
    on_conflict: str,
) -> None:
    """Refuse arguments of `add` that do not fit together."""
    if not files:
        asked = [paths] if isinstance(paths, str | Path) else paths
        raise InputError(f"no density files in {', '.join(map(shown, asked))}")
    if ids is not None:
        if len(ids) != len(files):
            raise InputError(f"{len(ids)} ids for {len(files)} files: give one --id per file")
        for material_id in ids:
            check_id(material_id)
    if on_conflict not in get_args(OnConflict):
        raise InputError(f"on_conflict {on_conflict!r}: use {', '.join(get_args(OnConflict))}")


def _check_grid(grid: Sequence[int]) -> None:
    if not isinstance(grid, Sequence):
        raise InputError(f"grid {grid}: give three positive numbers of points")
    text = ",".join(map(str, grid))
    if len(grid) != 3 or min(grid) < 1:
        raise InputError(f"grid {text}: give three positive numbers of points")
    if math.prod(grid) > LARGEST_GRID:
        raise InputError(
            f"grid {text}: {math.prod(grid)} points; at most {LARGEST_GRID} (512 x 512 x 512) are "
            "decoded"
        )


def _whole_payload(record: Record) -> bytes:
    """The payload of a record, checked; empty if it has none.

    Raises:
        StoreError: it is damaged.
    """
    from chgdb.archive import check

    payload = record.payload()
    if payload is None:
        return b""
    try:
        check(payload, record.structure)
    except StoreError as error:
        raise StoreError(f"{record.id}: {error}") from error
    return payload


def _keep_library(store: Path) -> None:
    """Put the atom library of new payloads into a store: with it they can be read for ever.

    Raises:
        StoreError: it cannot be written.
    """
    from chgdb.library import LATEST, library_file, library_name

    path = store / library_name(LATEST)
    if not path.exists():
        replace_file(path, library_file(LATEST))
    elif path.read_bytes() != library_file(LATEST):
        raise StoreError(f"{shown(path)}: not the atom library of this name; remove it")


def _load_codec(folder: Path, device: str) -> Codec:
    """An encoder on a device."""
    try:
        from chgdb.codec import load_codec
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("encoding and decoding densities", "ml") from error
    return load_codec(folder, device)


@contextmanager
def _new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill; it gets its name when the block ends well, and goes away otherwise."""
    target = Path(path).absolute()
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise StoreError(f"{shown(path)}: exists and is not empty; name a new folder")
        partial.mkdir(parents=True)
        yield partial
        partial.replace(target)
    except OSError as error:
        raise StoreError(f"{shown(path)}: cannot make a store here ({reason(error)})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; a writer may take one away meanwhile."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return total


# ---------------------------------------------------------------------- rows

_STORED_COLUMNS = (
    "id",
    "formula",
    "reduced_formula",
    "source",
    "source_sha256",
    "payload_nmae",
    "payload_max_error",
    "payload_magnetization_nmae",
)
"""What says whether a file is stored, and how well."""


def _holds(row: Mapping[str, Any], tolerance: Tolerance) -> bool:
    """Whether the payload of a record is as good as asked for."""
    limits = (
        ("payload_nmae", tolerance.nmae),
        ("payload_max_error", tolerance.max_error),
        ("payload_magnetization_nmae", tolerance.nmae),
    )
    return row["payload_nmae"] is not None and all(
        limit is None or row[name] is None or row[name] <= limit for name, limit in limits
    )


def _gives_way(row: Mapping[str, Any], intake: Intake) -> bool:
    """Whether a record has no density of its own, or a predicted one, and the file is of it."""
    from chgdb.rows import is_same_material

    better = row["source"] is None or (row["source"] != "dft" and intake.source == "dft")
    return better and is_same_material(row, intake.density.structure.formula)


def _taken(row: Mapping[str, Any], intake: Intake) -> str:
    """Why a file cannot become the record of its id."""
    from chgdb.rows import is_same_material

    formula = intake.density.structure.formula
    if not is_same_material(row, formula):
        what = f"of {row['formula']}, and this file of {formula}"
    elif intake.source != "dft" and row["source"] == "dft":
        what = "with a density from DFT, which a predicted one does not replace"
    else:
        what = "of another file"
    return (
        f"id {intake.id} is taken by a record {what}; give --id, or --on-conflict skip or replace"
    )


def _tell_stored(
    path: Path,
    row: Mapping[str, Any],
    tolerance: Tolerance,
    on_conflict: OnConflict,
    report: AddReport,
) -> None:
    """Report a file that is stored already, and whether its payload is as good as asked for."""
    why = f"stored already as {row['id']}"
    if not _holds(row, tolerance):
        worse = "has no payload" if row["payload_nmae"] is None else "is less exact than asked for"
        why += f", which {worse}"
    if on_conflict == "skip" or _holds(row, tolerance):
        report.skipped.append((path, why))
    else:
        hint = "--on-conflict replace makes it anew"
        report.failed.append((path, f"{shown(path)}: {why}; {hint}"))


def _material(
    material_id: str,
    given: Mapping[str, Any],
    structure: Structure | None,
    known: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The row of a new material, or the columns of a known one that change.

    Raises:
        InputError: what is given of it cannot be used, or is of another material.
    """
    from chgdb.rows import describe_material, is_same_material

    check_id(material_id)
    properties = {name: value for name, value in given.items() if name != "formula"}
    formula = given.get("formula") or (structure.formula if structure else None)
    if material_id not in known:
        if not formula:
            raise InputError("has no formula")
        return {**describe_material(material_id, formula, structure), **properties}
    row = known[material_id]
    for name in filter(None, (formula, structure.formula if structure else None)):
        if not is_same_material(row, name):
            raise InputError(f"{name}, but the record of this id is {row['formula']}")
    if structure is not None and row["lattice"] is None:
        properties |= describe_material(material_id, row["formula"], structure)
    return {
        name: value
        for name, value in properties.items()
        if value is not None and value != row[name] and name not in ("id", "added")
    }


def _ids(ids: str | Sequence[str]) -> list[str]:
    """Ids as a list; text is one id, or several with commas."""
    return ids.split(",") if isinstance(ids, str) else list(ids)


def _batches(values: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (values[start : start + size] for start in range(0, len(values), size))

"""The facade: open a store, search it, decode records, add and remove them.

The CLI and every other front end only call this module. torch, ASE and Zarr are loaded by the
methods that need them, so opening and searching a store stays instant.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from chgdb import __version__
from chgdb.derived import Derived
from chgdb.errors import (
    InputError,
    MissingExtraError,
    ModelError,
    NotKnownError,
    QueryError,
    StoreError,
    UnknownIdError,
)
from chgdb.export import json_ready, known_properties, structure_of
from chgdb.files import (
    PARTIAL_SUFFIX,
    brief,
    make_folder,
    place,
    printable,
    reason,
    refuse_links,
    replace_file,
    shown,
)
from chgdb.filters import (
    Conditions,
    Filters,
    Range,
    column_named,
    columns_named,
    condition_of,
)
from chgdb.lock import writer_lock
from chgdb.parquet import any_of, plain_value
from chgdb.places import Place, RemotePath
from chgdb.predicting import Predictor, PredictReport
from chgdb.resources import DEFAULT_ENCODER, find_model, find_store, is_shipped
from chgdb.schema import (
    ARRAYS_FOLDER,
    COLUMNS,
    ENCODER_FOLDER,
    FORMAT_VERSION,
    INFO_FILE,
    LARGEST_GRID,
    PREDICTED_VALUES,
    PREDICTION_COLUMNS,
    PROPERTIES,
    SOURCES,
    TABLE_FOLDER,
    EncoderInfo,
    StoreInfo,
    check_id,
)
from chgdb.seals import seal_holds
from chgdb.table import Selection, Table
from chgdb.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    EncoderConfig,
    check_encodes,
    load_config,
    load_tensors,
    save_encoder,
)

if TYPE_CHECKING:
    from typing import Unpack

    import numpy as np
    import pandas as pd
    from ase import Atoms
    from numpy.typing import NDArray
    from torch import Tensor

    from chgdb.adding import AddReport, OnConflict
    from chgdb.archive import Payload, Tolerance
    from chgdb.arrays import LatentArrays
    from chgdb.cluster import Cluster
    from chgdb.codec import Codec
    from chgdb.decoded import DecodedDensity
    from chgdb.density import ChargeDensity, Grid, Latent, Structure
    from chgdb.intake import FindKnown, Result
    from chgdb.verification import Finding

__all__ = [
    "Database",
    "Filters",
    "ImportReport",
    "PredictReport",
    "Range",
    "Record",
    "Source",
]

Source = Literal["payload", "latent"]
"""What `decode` makes a density from."""

LOCK_FILE = ".lock"
LOCK_TIMEOUT = 30.0
"""Seconds to wait for another writer."""

_BATCH = 128
"""Records that are copied together."""

_MATERIALS = 4096
"""Materials without a density that are committed together."""

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

_OF_ANSWERS = ("columns", "sort", "descending", "limit", "offset")
"""The filters that say how an answer looks, not which records it has."""


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


class _Options(TypedDict):
    """How files are read, in whatever process."""

    ids: Sequence[str] | None
    species: Sequence[str] | None
    known: FindKnown
    encode: Callable[[ChargeDensity], Payload]


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

    def to_dict(self) -> dict[str, Any]:
        """Every column, the structure as lists, and under "predicted" what is predicted, if so."""
        content = json_ready(self.row)
        return {**content, "predicted": self.predicted} if self.predicted else content

    def nearest(self, n: int = 10) -> Selection:
        """The materials whose densities are most like this one's, as of `Database.nearest`."""
        return self._database._predictor.nearest(self.id, n, stored=True)

    @property
    def source(self) -> str | None:
        """Where the density comes from: "dft", "charge3net", or None if there is no density."""
        source: str | None = self.row["source"]
        return source

    @property
    def grid(self) -> Grid:
        """The grid of the source density.

        Raises:
            NotKnownError: there is no density, or its grid is not known.
        """
        grid = self.row["grid_a"], self.row["grid_b"], self.row["grid_c"]
        if None in grid:
            raise self._without_density()
        return grid

    @cached_property
    def structure(self) -> Structure:
        """The crystal structure.

        Raises:
            NotKnownError: it is not known.
            StoreError: it is damaged.
        """
        return structure_of(self.row)

    @property
    def atoms(self) -> Atoms:
        """The crystal structure as ASE Atoms."""
        return self.structure.to_ase()

    def latent(self) -> Latent:
        """The stored latent, as the decoder sees it.

        Raises:
            NotKnownError: there is no density.
            StoreError: the arrays of the store are damaged.
        """
        if self.row["work_grid_a"] is None:
            raise self._without_density()
        return self._database._latent(self.row)

    def _without_density(self) -> NotKnownError:
        return NotKnownError(
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
        path: folder of the store, or s3://BUCKET/PREFIX; None looks for one as `chgdb.resources`
            says.
        device: where the encoder runs: "auto", "cpu" or "cuda".

    Raises:
        StoreError: there is no store, or its own file is damaged.
        FormatVersionError: a newer chgdb made the store.
    """

    def __init__(self, path: str | Place | None = None, *, device: str = "auto") -> None:
        self.place = find_store(path)
        """Where the store is: an absolute path, or one in a bucket."""
        self.device = device
        self.info = StoreInfo.load(self.place)
        self._fetched: Path | None = None
        self._lender: Database | None = None
        self._is_free_of_links = False
        self._table = Table(self.place / TABLE_FOLDER)
        self._derived = Derived(self.place, self._table)
        self._predictor = Predictor(
            self.place,
            self._table,
            self._derived,
            decode=lambda row: self._from_payload(Record(self, row), None),
            decode_at=_decoded_at,
            writing=lambda wait: self._writing(wait=wait),
        )

    @property
    def path(self) -> Path:
        """The folder of the store.

        Raises:
            StoreError: it is in a bucket; `place` says where.
        """
        if isinstance(self.place, RemotePath):
            raise StoreError(f"{self.place}: is not a folder")
        return self.place

    @classmethod
    def create(
        cls,
        path: str | Place,
        *,
        encoder: str = DEFAULT_ENCODER,
        attribution: str = "",
        device: str = "auto",
    ) -> Database:
        """A new, empty store for the latents of one encoder.

        Args:
            path: a folder that does not exist or is empty, or s3://BUCKET/PREFIX.
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
        return cls.create_for(path, info, device=device)

    @classmethod
    def create_for(cls, path: str | Place, info: StoreInfo, *, device: str = "auto") -> Database:
        """A new, empty store that `info` describes.

        Args:
            path: a folder that does not exist or is empty.
            info: of an encoder whose weights need not be known.
            device: where the encoder runs.

        Raises:
            StoreError: the folder is not empty or cannot be written.
        """
        with _new_folder(path) as partial:
            cls._create(partial, info)
        return cls(path, device=device)

    def sibling(self, path: str | Path) -> Database:
        """A new, empty store whose latents are made by the encoder of this one, which it shares.

        Args:
            path: a folder that does not exist or is empty.

        Raises:
            StoreError: the folder is not empty or cannot be written.
        """
        made = Database.create_for(path, self.info, device=self.device)
        made._lender = self
        return made

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
            hint = f"; nearest: {', '.join(map(printable, near))}" if near else ""
            raise UnknownIdError(
                f"no record {brief(missing)} in {shown(self.place)}{hint}"
            ) from None

    def summary(self) -> dict[str, Any]:
        """What the store holds, for people: "records", "encoder", "size on disk (MB)", ..."""
        found = self._table.summary(_SUMMARY)
        sha256 = self.info.encoder.weights_sha256
        sources = {name: found.pop(name) for name in _SOURCE_COUNTS}
        return {
            "store": str(self.place),
            "format version": self.info.format_version,
            "records": found.pop("records"),
            **{name: count for name, count in sources.items() if count or name == "densities, dft"},
            "encoder": f"{self.info.encoder.id} ({sha256[:12] or 'weights not known'})",
            "latent": f"{self.info.latent.shape}, {self.info.latent.dtype}",
            **found,
            **self._derived_summary(),
            "size on disk (MB)": _size(self.place) / 1e6,
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
        columns: str | Sequence[str] | None = None,
        sort: str | None = None,
        descending: bool = False,
        limit: int | None = None,
        offset: int = 0,
        **conditions: Unpack[Conditions],
    ) -> Selection:
        """The records that fit every filter given, as plain tuples.

        Filters, `sort` and `columns` may also name what the default model predicted, such as
        `predicted_bulk_modulus` (docs/cli.md); "everything" leaves it out.

        Args:
            columns: what to return; by default everything.
            sort: column to order by; by default the order of adding.
            descending: largest first.
            limit: most records to return.
            offset: records to leave out before the first that is returned.
            **conditions: `formula`, `elements`, `exclude`, `chemsys`, `nelements`, `spacegroup`,
                `crystal_system`, `source`, `ranges`, `where` and `also`, as of
                `chgdb.filters.condition_of`.

        Raises:
            QueryError: a filter that cannot be understood, or an unknown column.
        """
        condition = condition_of(**conditions)
        if limit is not None and limit < 0:
            raise QueryError(f"limit {limit}: give a number that is not negative")
        if offset < 0:
            raise QueryError(f"offset {offset}: give a number that is not negative")
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
            offset=offset,
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
        while True:
            try:
                return self._decoded(records, grid, source)
            except StoreError:
                rows = [record.row["row"] for record in records]
                records = self.get(ids)
                if [record.row["row"] for record in records] == rows:
                    raise  # no writer has replaced one of them meanwhile

    def _decoded(
        self, records: Sequence[Record], grid: Grid | None, source: Source
    ) -> list[DecodedDensity]:
        has = [source == "payload" and r.row["payload_bytes"] is not None for r in records]
        latents = [record for record, there in zip(records, has, strict=True) if not there]
        from_latents = iter(self._from_latents(latents, grid) if latents else ())
        return [
            self._from_payload(record, grid) if there else next(from_latents)
            for record, there in zip(records, has, strict=True)
        ]

    def decode_box(self, ids: str | Sequence[str]) -> list[NDArray[np.float32]]:
        """What the decoder makes of latents: its raw output, neither cropped, scaled nor resampled.

        Of the `paper` network that is the density in e/A^3 in the corner of a box of zeros, shape
        (128, 128, 128). It needs neither a cell nor electrons, which nobody knows of a record that
        came with the authors' release.

        Args:
            ids: of the records; all boxes are held in memory, 8 MB each.

        Raises:
            UnknownIdError: an id is not there.
            MissingExtraError: torch is not installed.
            ModelError: the encoder of the store is not found, or its weights are not known.
            StoreError: a record has no latent, or the arrays of the store are damaged.
        """
        return self._codec.decode_box([record.latent() for record in self.get(ids)])

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

        for record in records:
            if record.row["work_grid_a"] is not None and record.row["n_electrons"] is None:
                raise NotKnownError(
                    f"{record.id}: came as a latent, without the grid and the electrons of its "
                    "density; --format npy (Database.decode_box) is what its decoder makes of it"
                )
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
        payload = self._arrays.read_payload(row["row"], row["id"])
        if len(payload) != row["payload_bytes"]:
            raise StoreError(f"it has {len(payload)} bytes, not {row['payload_bytes']}")
        return payload

    def _latent(self, row: Mapping[str, Any]) -> Latent:
        from chgdb.density import Latent

        stored = self._arrays.read(row["row"], row["id"])
        work_grid = tuple(row[f"work_grid_{axis}"] for axis in "abc")
        if (stored.work_grid, stored.n_electrons) != (work_grid, row["n_electrons"] or 0.0):
            raise StoreError(
                f"{shown(self.place)}: the arrays hold another density of {row['id']} than the "
                "table; chgdb verify says more"
            )
        if not stored.values.any():
            raise StoreError(f"{shown(self.place)}: the latent of {row['id']} is missing")
        return Latent(stored.values, stored.work_grid, stored.n_electrons)

    @cached_property
    def _arrays(self) -> LatentArrays:
        """The arrays for reading; they look again at the disk when a row is not there."""
        from chgdb.arrays import LatentArrays

        arrays = LatentArrays.open(self.place / ARRAYS_FOLDER)
        if arrays.storage != self.info.latent:
            raise StoreError(
                f"{shown(arrays.path)}: damaged, its latents are not stored as {INFO_FILE} says; "
                "chgdb verify says more"
            )
        return arrays

    @cached_property
    def _codec(self) -> Codec:
        """The encoder of this store, with the weights the store names."""
        if self._lender is not None:
            return self._lender._codec
        encoder = self.info.encoder
        if encoder.weights_sha256:
            own = self._own_encoder() or find_model(encoder.id, encoder.weights_sha256)
            return _load_codec(own, self.device)
        raise ModelError(
            f"{shown(self.place)}: the weights of {encoder.id} are not known: "
            "chgdb import-release DIR --table CSV --decoder WEIGHTS.h5 brings them"
        )

    def _own_encoder(self) -> Path | None:
        """The folder of the encoder that the store itself holds, if any.

        Raises:
            ModelError: it is damaged, or not the one that the store names.
        """
        folder = self._encoder_folder
        if folder is None:
            return None
        config, encoder = load_config(folder), self.info.encoder
        if (config.id, config.weights_sha256) != (encoder.id, encoder.weights_sha256):
            raise ModelError(
                f"{shown(folder)}: not the encoder that {INFO_FILE} names; import the release again"
            )
        return folder

    def encoder_tensors(self) -> dict[str, Tensor]:
        """The weights of the encoder that the store itself holds; empty if it holds none.

        Raises:
            ModelError: they are damaged.
            MissingExtraError: torch is not installed.
        """
        folder = self._encoder_folder
        return load_tensors(folder, load_config(folder)) if folder else {}

    @property
    def _encoder_folder(self) -> Path | None:
        """The folder of the encoder that the store holds, brought here from a bucket."""
        folder = self.place / ENCODER_FOLDER
        if not isinstance(folder, RemotePath):
            return folder if folder.exists() else None
        if self._fetched is None:
            fetched = Path(tempfile.mkdtemp(prefix="chgdb-"))
            weakref.finalize(self, shutil.rmtree, fetched, ignore_errors=True)
            try:
                for name in (CONFIG_FILE, WEIGHTS_FILE):
                    (fetched / name).write_bytes((folder / name).read_bytes())
            except FileNotFoundError:
                pass
            except OSError as error:
                raise StoreError(f"{folder}: cannot be read ({reason(error)})") from error
            self._fetched = fetched  # now that other threads find it whole
        return self._fetched if (self._fetched / WEIGHTS_FILE).exists() else None

    def keep_encoder(self, config: EncoderConfig, tensors: Mapping[str, Tensor]) -> None:
        """Put the encoder of the latents into the store itself, from where it is read first.

        Args:
            config: of the encoder that the store names; the hash is filled in.
            tensors: its weights. Those that the store holds must be among them.

        Raises:
            ModelError: it is another encoder than that of the store.
            StoreError: the store cannot be written.
        """
        folder, encoder = self.path / ENCODER_FOLDER, self.info.encoder
        with (
            self._writing(),
            tempfile.TemporaryDirectory(dir=self.path, prefix=f".{ENCODER_FOLDER}-") as made,
        ):
            config = save_encoder(made, config, dict(tensors))
            named = (config.id, config.kind) == (encoder.id, encoder.kind)
            # If chgdb.json names these weights, an import was interrupted here: it is finished.
            if not named or config.weights_sha256 != encoder.weights_sha256:
                self._check_completes(config.id, tensors, named=named)
                encoder = replace(encoder, weights_sha256=config.weights_sha256)
                self.info = replace(self.info, encoder=encoder)
                self.info.save(self.path)
            make_folder(folder, StoreError)
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                replace_file(folder / name, (Path(made) / name).read_bytes())
        self.__dict__.pop("_codec", None)

    def _check_completes(
        self, encoder_id: str, tensors: Mapping[str, Tensor], *, named: bool
    ) -> None:
        """Whether weights are those that the store holds, or more of the same.

        Raises:
            ModelError: they are of another encoder.
        """
        import torch

        encoder, known = self.info.encoder, self.encoder_tensors()
        same = named and all(
            name in tensors and torch.equal(tensors[name], tensor) for name, tensor in known.items()
        )
        if not same or (encoder.weights_sha256 and not known):
            raise ModelError(
                f"{shown(self.path)}: holds latents of {encoder.id} "
                f"({encoder.weights_sha256[:12] or 'weights not known'}), not of {encoder_id} "
                "with these weights; give them a store of their own"
            )

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
        scheduler: str | None = None,
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
            scheduler: of a dask cluster whose workers compute, as of `chgdb.cluster.connected`.
            progress: called with the number of materials done and of all.

        Raises:
            ModelError: the model is not found, or damaged.
            MissingExtraError: a package that the model needs is not installed.
            StoreError: the store cannot be written.
        """
        from chgdb.cluster import connected

        with connected(scheduler, self.path) if scheduler else nullcontext() as cluster:
            return self._predictor.predict_all(model, progress, force=force, cluster=cluster)

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
                **{name: row[f"predicted_{name}"] for name in PREDICTED_VALUES},
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
        scheduler: str | None = None,
        refine_steps: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> AddReport:
        """Encode densities and store them: those in files, and those predicted from structures.

        A POSCAR, a CIF or a JSON list of structures (`chgdb.structure_files`) gets the density that
        `chgdb.charge3net` predicts. It never takes the place of one from DFT.

        A file that is stored already (same SHA-256), with a payload that is as good as asked for,
        is skipped, so a run that was interrupted is resumed by repeating it. A bad file is reported
        and stops nothing.

        Args:
            paths: files, folders and globs; of folders only the densities are taken.
            ids: one id per file; by default made from the names of the files.
            on_conflict: what to do when the id is taken by a record of another file, or of this
                one with a worse payload.
            species: element symbols for CHGCARs that do not name them.
            properties: CSV of reference properties by material id.
            tolerance: the largest error of the payloads; by default 0.1 % NMAE.
            processes: how many read and encode files; None for as many as pay for their start. With
                more than one, a script needs `if __name__ == "__main__":` around its work.
            scheduler: of a dask cluster whose workers read and encode the files and write what is
                large, as of `chgdb.cluster.connected`; `processes` has no meaning then.
            refine_steps: steps that improve each latent through the decoder; None for those of the
                encoder. Fewer take less time and leave larger errors, which are stored.
            progress: called with the number of files done and the number of all.

        Raises:
            InputError: there is nothing to add, or an argument cannot be used.
            MissingExtraError: torch is not installed, or what predicts a density.
            ModelError: the encoder of the store is not found.
            StoreError: the store cannot be written.
        """
        from chgdb.adding import Adder, Encoder, encode_or_report, encoded_by
        from chgdb.archive import Tolerance, encode
        from chgdb.charge3net import Charge3Net
        from chgdb.cluster import connected
        from chgdb.formats import find_densities
        from chgdb.intake import read_properties, take_in_all, worthwhile_processes
        from chgdb.structure_files import holds_structures
        from chgdb.structure_intake import read_entries, take_in_structures

        asked = [paths] if isinstance(paths, str | Path) else paths
        missing: list[tuple[Path, str]] = []
        files = find_densities(asked, None if ids or len(asked) == 1 else missing)
        if missing and not files:
            raise InputError(missing[0][1])
        _check_add(files, paths, ids, on_conflict)
        if refine_steps is not None and refine_steps < 0:
            raise InputError(f"{refine_steps} steps of refinement: give 0 or more")
        table = read_properties(properties) if properties else {}
        with self._writing():
            pass  # a store that cannot be written is told from before anything is read
        codec = self._codec.refining(refine_steps)
        check_encodes(codec.config)  # and an encoder that is not there is told, too
        tolerance = tolerance or Tolerance()
        named = dict(zip(files, ids, strict=True)) if ids else {}
        structures = [file for file in files if holds_structures(file, species=species)]
        without_density = set(structures)
        densities = [file for file in files if file not in without_density]
        network = Charge3Net(self.device) if structures else None
        entries = read_entries(structures, ids=named, species=species)
        if processes is None:
            processes = worthwhile_processes(densities, encoding=True)
        info = self.info.encoder
        encoder = Encoder(
            info.id,
            info.weights_sha256,
            self._own_encoder(),
            self.info.latent,
            self.device,
            1 if scheduler else max(1, (os.cpu_count() or 1) // processes),
            refine_steps,
        )

        def tell(done: int) -> None:
            if progress:
                progress(done, len(densities) + len(entries) + len(missing))

        with connected(scheduler, self.path) if scheduler else nullcontext() as cluster:
            adder = Adder(
                self._table,
                self._writing,
                partial(self._commit_added, cluster),
                lambda intakes: encode_or_report(codec, intakes, self.info.latent),
                tolerance=tolerance,
                on_conflict=on_conflict,
                properties=table,
                named=ids is not None,
            )
            options: _Options = {
                "ids": [named[file] for file in densities] if ids else None,
                "species": species,
                "known": adder.known,
                "encode": partial(encode, tolerance=tolerance),
            }
            results: Iterator[tuple[Path, Result]]
            if cluster:
                results = encoded_by(
                    cluster, [f.absolute() for f in densities], finish=encoder, **options
                )
            else:
                finish = encoder if codec.device == "cpu" else None
                results = take_in_all(densities, finish=finish, processes=processes, **options)
            adder.report.failed += missing
            report = adder.add(results, tell)
            if network is not None:
                results = take_in_structures(
                    entries,
                    network,
                    unneeded=adder.unneeded,
                    encode=options["encode"],
                    progress=lambda *_: tell(len(report)),
                )
                adder.add(results, tell)
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
        done = 0
        for part in _batches(list(materials), _MATERIALS):
            with self._writing() as confirm:
                known = {row["id"]: row for row in self._table.select(any_of("id", part), part)}
                rows = _materials(part, materials, structures or {}, known, report)
                fresh = [row for id_, row in rows.items() if id_ not in known]
                changes = {id_: row for id_, row in rows.items() if id_ in known and row}
                confirm()
                self._table.update(changes)
                if fresh:
                    none = [None] * len(fresh)
                    self._commit(fresh, none, [b""] * len(fresh), confirm, replacing=False)
            report.added += [row["id"] for row in fresh]
            report.updated += changes
            done += len(part)
            if progress:
                progress(done, len(materials))
        return report

    def with_latent(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids whose records have a latent."""
        condition = f"{any_of('id', ids)} AND work_grid_a IS NOT NULL"
        return {id_ for (id_,) in self._table.select(condition, ids, columns=["id"]).values}

    def import_latents(
        self,
        materials: Mapping[str, Mapping[str, Any]],
        latents: Mapping[str, NDArray[np.float32]],
        sources: Mapping[str, Mapping[str, Any]],
        structures: Mapping[str, Structure] | None = None,
    ) -> ImportReport:
        """Store latents that came without their densities, all at once.

        A record without a density gets the latent and keeps what is known of it; one that has a
        latent is left alone.

        Args:
            materials: by id, `formula` and properties in the units of the schema.
            latents: by id, float32 of the shape that the store has.
            sources: by id, `source`, `work_grid_a` to `work_grid_c` and any other columns.
            structures: by id, as far as they are known.

        Raises:
            ModelError: a latent holds a value that the store cannot.
            StoreError: the store cannot be written.
        """
        report = ImportReport()
        ids = list(latents)
        with self._writing() as confirm:
            known = {row["id"]: row for row in self._table.select(any_of("id", ids), ids)}
            lacking = [id_ for id_ in ids if id_ not in known or known[id_]["work_grid_a"] is None]
            rows = {
                id_: {**known.get(id_, {}), **row, **sources[id_]}
                for id_, row in _materials(
                    lacking, materials, structures or {}, known, report
                ).items()
            }
            if rows:
                values = [latents[id_] for id_ in rows]
                payloads = [b""] * len(rows)
                self._commit(list(rows.values()), values, payloads, confirm, replacing=True)
        report.added += [id_ for id_ in rows if id_ not in known]
        report.updated += [id_ for id_ in rows if id_ in known]
        return report

    def remove(self, ids: str | Sequence[str]) -> None:
        """Remove records, all or none.

        Raises:
            UnknownIdError: one is not there.
            StoreError: the store cannot be written.
        """
        ids = list(dict.fromkeys(_ids(ids)))
        with self._writing() as confirm:
            rows = [record.row["row"] for record in self.get(ids)]
            confirm()
            self._table.remove(ids)
            self._clean(ids, rows)

    def compact(self) -> tuple[int, int]:
        """Give back space: parts are joined, stale features dropped, leftovers erased.

        No record changes. Rows of the arrays keep their numbers; a removed one takes no place.

        Returns:
            The bytes of the store before and after.

        Raises:
            StoreError: the store is damaged, or cannot be written.
        """
        from chgdb.compaction import compact

        if isinstance(self.place, RemotePath):
            raise StoreError(f"{self.place}: is not a folder; compact a copy of its files in one")
        before = _size(self.path)
        with self._writing():
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

    def copy(self, path: str | Place, ids: Sequence[str] | None = None) -> Database:
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
            if encoder := self._own_encoder():
                (partial / ENCODER_FOLDER).mkdir()
                for name in (CONFIG_FILE, WEIGHTS_FILE):  # and nothing else that may be there
                    shutil.copyfile(encoder / name, partial / ENCODER_FOLDER / name)
            for start in range(0, len(records), _BATCH):
                part = records[start : start + _BATCH]
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

    def export(self, target: str | Place, **filters: Unpack[Filters]) -> int:
        """Write the records that fit, all or nothing; the suffix of the target says how.

        Args:
            target: `.csv`, `.json` and `.parquet` are tables, `.extxyz` has structures with their
                properties (ASE), and a name without suffix, or s3://BUCKET/PREFIX, becomes a new
                store.
            **filters: as of `select`; `columns` are those of a table.

        Returns:
            The number of records written.

        Raises:
            InputError: an unknown suffix, or a target that exists or cannot be written.
            QueryError: a filter that cannot be understood.
            StoreError: the new store cannot be written.
        """
        from chgdb.export import check_target, write_selection

        path = place(target)
        is_file = isinstance(path, Path) and check_target(path)
        if not is_file or Path(path.name).suffix.lower() == ".extxyz":
            filters["columns"] = None
        selection = self.select(**filters)
        if is_file and isinstance(path, Path):
            write_selection(path, selection)
        else:
            self.copy(path, [row["id"] for row in selection])
        return len(selection)

    def _commit(
        self,
        rows: Sequence[Mapping[str, Any]],
        latents: Sequence[NDArray[np.float32] | None],
        payloads: Sequence[bytes],
        confirm: Callable[[], None] = lambda: None,
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

        ids = [
            "" if latent is None else row["id"] for row, latent in zip(rows, latents, strict=True)
        ]
        blank = np.zeros(self.info.latent.shape, np.float32)
        values = [blank if latent is None else latent for latent in latents]
        dense = np.stack(values) if any(ids) else None

        def write(arrays: LatentArrays, start: int) -> None:
            arrays.write(start, ids, dense, *_small_arrays(rows), payloads)

        self._append(rows, write, confirm, replacing=replacing)

    def _commit_added(
        self,
        cluster: Cluster | None,
        rows: Sequence[Mapping[str, Any]],
        bulks: Sequence[Any],
        confirm: Callable[[], None],
    ) -> None:
        """`_commit` of records with densities; workers of a cluster write what they keep."""
        from chgdb.adding import Kept, written

        if cluster is None or not isinstance(bulks[0], Kept):
            latents = [bulk.latent for bulk in bulks]
            payloads = [bulk.payload for bulk in bulks]
            self._commit(rows, latents, payloads, confirm, replacing=True)
            return
        lengths = [kept.payload_bytes for kept in bulks]

        def write(arrays: LatentArrays, start: int) -> None:
            parts = arrays.reserve(start, lengths)
            written(cluster, self.path / ARRAYS_FOLDER, parts, bulks)
            arrays.commit(parts, [row["id"] for row in rows], *_small_arrays(rows), lengths)

        self._append(rows, write, confirm, replacing=True)

    def _append(
        self,
        rows: Sequence[Mapping[str, Any]],
        write: Callable[[LatentArrays, int], None],
        confirm: Callable[[], None],
        *,
        replacing: bool,
    ) -> None:
        """Put records behind the others: `write` their arrays from a row on, then the table."""
        confirm()
        ids = [row["id"] for row in rows]
        old = self._superseded(ids)
        start = self._table.next_row
        arrays = self._writable_arrays()
        write(arrays, start)
        confirm()
        self._table.append(rows, start, replaces=replacing and bool(old))
        with suppress(StoreError):
            arrays.record(start + len(rows))
        if old:
            self._clean(ids, old)

    def _clean(self, ids: Sequence[str], rows: Sequence[int]) -> None:
        """Erase what is left of rows that are no records any more.

        They are gone whether that succeeds or not, as it does not on a full disk; `compact` erases
        what was left.
        """
        with suppress(StoreError):
            self._derived.forget(ids)
        with suppress(StoreError):
            self._writable_arrays().erase(rows)

    def _superseded(self, ids: Sequence[str]) -> list[int]:
        """The rows of the records with these ids, which are about to get others."""
        old = [row for (row,) in self._table.select(any_of("id", ids), ids, columns=["row"]).values]
        _keep_library(self.place)
        return old

    def _writable_arrays(self) -> LatentArrays:
        from chgdb.arrays import LatentArrays

        return LatentArrays.open(self.place / ARRAYS_FOLDER, writable=True)

    @property
    def is_writable(self) -> bool:
        """Whether records can be added, as far as can be told without trying."""
        is_old = self.info.format_version != FORMAT_VERSION
        if is_old or is_shipped(self.place):
            return False
        return isinstance(self.place, RemotePath) or os.access(self.place, os.W_OK)

    @contextmanager
    def _writing(self, *, wait: bool = True) -> Iterator[Callable[[], None]]:
        """The lock of the store's one writer, as of `writer_lock`."""
        if is_shipped(self.place):
            raise StoreError(
                f"{self.place}: the store inside the package is read-only; make your own with: "
                "chgdb init store, or: chgdb export store"
            )
        path = shown(self.place)
        if (version := self.info.format_version) != FORMAT_VERSION:
            raise StoreError(
                f"{path}: of format version {version}, which is only read; copy its records into a "
                f"store that can be written: chgdb export NEW --store {path}"
            )
        if not self._is_free_of_links:
            refuse_links(self.place)
            self._is_free_of_links = True
        with writer_lock(self.place / LOCK_FILE, LOCK_TIMEOUT if wait else 0.0) as confirm:
            yield confirm


def _check_add(
    files: Sequence[Path],
    paths: str | Path | Sequence[str | Path],
    ids: Sequence[str] | None,
    on_conflict: str,
) -> None:
    """Refuse arguments of `add` that do not fit together."""
    from chgdb.adding import OnConflict

    if not files:
        asked = [paths] if isinstance(paths, str | Path) else paths
        raise InputError(f"no density files in {', '.join(map(shown, asked)) or 'the list'}")
    if ids is not None:
        if len(ids) != len(files):
            raise InputError(f"{len(ids)} ids for {len(files)} files: give one --id per file")
        for material_id in ids:
            check_id(material_id)
    if on_conflict not in get_args(OnConflict):
        raise InputError(f"on_conflict {on_conflict!r}: use {', '.join(get_args(OnConflict))}")


def _small_arrays(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any], list[Any]]:
    """Of rows of the table: grids, work grids and electrons, as of `LatentArrays.write`."""
    return (
        [[row.get(f"grid_{axis}") or 0 for axis in "abc"] for row in rows],
        [[row.get(f"work_grid_{axis}") or 0 for axis in "abc"] for row in rows],
        [row.get("n_electrons") or 0.0 for row in rows],
    )


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


def _keep_library(store: Place) -> None:
    """Put the atom library of new payloads into a store: with it they can be read for ever.

    Raises:
        StoreError: it cannot be written.
    """
    from chgdb.library import LATEST, library_file, library_name

    path = store / library_name(LATEST)
    try:
        known = path.read_bytes()
    except FileNotFoundError:
        replace_file(path, library_file(LATEST))
        return
    except OSError as error:
        raise StoreError(f"{shown(path)}: cannot be read ({reason(error)})") from error
    if known != library_file(LATEST):
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
def _new_folder(path: str | Place) -> Iterator[Path]:
    """A folder to fill; it gets its name when the block ends well, and goes away otherwise.

    What goes into a bucket is made in a temporary folder; `chgdb.json`, which makes it a store, is
    put there last.
    """
    target = place(path)
    try:
        if isinstance(target, RemotePath):
            with tempfile.TemporaryDirectory(prefix="chgdb-") as folder:
                _check_empty(any(target.walk()), path)
                yield Path(folder)
                _upload(Path(folder), target)
            return
        _check_empty(target.exists() and (not target.is_dir() or any(target.iterdir())), path)
        partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL_SUFFIX}")
        try:
            partial.mkdir(parents=True)
            yield partial
            partial.replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"{shown(path)}: cannot make a store here ({reason(error)})") from error


def _check_empty(occupied: bool, path: str | Place) -> None:
    if occupied:
        raise StoreError(f"{shown(path)}: exists and is not empty; name a new folder")


def _upload(folder: Path, target: RemotePath) -> None:
    """Put the files of a store into a bucket, the one that makes it a store last."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file == folder / INFO_FILE):
        is_last = file == folder / INFO_FILE
        path = target / file.relative_to(folder).as_posix()
        path.write_bytes(file, expected="" if is_last else None)


def _size(store: Place) -> int:
    """Bytes of the files of a store; a writer may take one away meanwhile."""
    if isinstance(store, RemotePath):
        return sum(path.version.size for path in store.walk() if path.version)
    total = 0
    for file in store.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return total


# ---------------------------------------------------------------------- rows


def _materials(
    ids: Sequence[str],
    materials: Mapping[str, Mapping[str, Any]],
    structures: Mapping[str, Structure],
    known: Mapping[str, Mapping[str, Any]],
    report: ImportReport,
) -> dict[str, dict[str, Any]]:
    """By id what `_material` says; those that cannot be taken go into the report."""
    rows = {}
    for id_ in ids:
        try:
            rows[id_] = _material(id_, materials[id_], structures.get(id_), known)
        except InputError as error:
            report.failed.append((id_, str(error)))
    return rows


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
    if unknown := properties.keys() - {column.name for column in PROPERTIES}:
        raise InputError(f"{min(unknown)} is no property; docs/format.md lists them")
    for name, value in properties.items():
        try:
            plain_value(COLUMNS[name].type, value)
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} is {value!r}, not {COLUMNS[name].type}") from error
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


def _decoded_at(store: Place, row: Mapping[str, Any]) -> DecodedDensity:
    """The density of a record, in a process of a cluster."""
    database = _opened(store)
    return database._from_payload(Record(database, row), None)


@lru_cache(maxsize=1)
def _opened(store: Place) -> Database:
    return Database(store)


def _ids(ids: str | Sequence[str]) -> list[str]:
    """Ids as a list; text is one id, or several with commas."""
    return ids.split(",") if isinstance(ids, str) else list(ids)


def _batches(values: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (values[start : start + size] for start in range(0, len(values), size))

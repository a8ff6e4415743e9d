"""Walk a store and tell what is wrong with it: every file, every record, every payload.

Nothing is changed and no lock is taken. Memory is bounded, except for the ids of the records, which
DuckDB counts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from chgdb.archive import check, decode
from chgdb.arrays import RECORDED, SEAL, LatentArrays
from chgdb.derived import Derived, feature_columns, features_sha256
from chgdb.errors import ChgdbError, FormatVersionError, InputError, QueryError, StoreError
from chgdb.export import structure_of
from chgdb.features import FEATURES_VERSION
from chgdb.files import PARTIAL_SUFFIX, one_line, reason
from chgdb.formats import densities_by_sha256, read_density
from chgdb.library import LATEST, library_file, library_name
from chgdb.metrics import compare
from chgdb.parquet import (
    Relation,
    all_rows,
    file_metadata,
    files_of,
    metadata_of,
    plain_value,
    quoted,
    relation_of,
    run,
)
from chgdb.places import Place, RemotePath
from chgdb.resources import find_model
from chgdb.rows import describe_material
from chgdb.schema import (
    ARRAYS_FOLDER,
    COLUMNS,
    CRYSTAL_SYSTEMS,
    ENCODER_FOLDER,
    FEATURES_FOLDER,
    FORMAT_VERSION,
    INFO_FILE,
    PREDICTED,
    PREDICTIONS,
    PREDICTIONS_FOLDER,
    SOURCES,
    TABLE_FOLDER,
    Column,
    StoreInfo,
    check_id,
)
from chgdb.seals import seal_holds
from chgdb.table import Table
from chgdb.weights import WEIGHTS_FILE, load_config

if TYPE_CHECKING:
    import duckdb

    from chgdb.codec import Codec
    from chgdb.density import ChargeDensity

__all__ = ["Finding", "verify"]

_ROWS = 16_384
"""Rows of the table that are read together."""

_LATENTS = 128
"""Latents that are read together."""

_BYTES = 2**20
"""Bytes of payloads that are read together."""

_MOST_LEFT = 2**20
"""Rows beyond those of the table that a crash may have left; a commit has far fewer."""

_ROUNDING = 1e-9
"""Part by which numbers may differ that were computed anew, perhaps on another machine."""

_DECODER_ROUNDING = 1e-3
"""% of NMAE by which a latent may decode otherwise on another device."""

_UNREADABLE = "cannot be read"
_CHANGED = "changed since it was written (seal)"
_MARK = ".replaces.parquet"
_BAD_JSON = (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError, RecursionError)

_GROUP = {
    "zarr_format": 3,
    "node_type": "group",
    "consolidated_metadata": {"kind": "inline", "must_understand": False},
}
"""What the group's `zarr.json` holds besides attributes and the metadata of the arrays."""

_ADD = (
    "chgdb verify --repair restores what it can; or: chgdb add FILE --id ID --on-conflict replace"
)
_ANEW = "chgdb verify --repair, then: chgdb predict --all"
_RESTORE = "chgdb verify --repair restores what it can; a copy of the store has the rest"
_COMPACT = "chgdb compact clears it away"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or left over, in a store.

    Attributes:
        level: "error", or "note" of what harms nothing.
        where: the file, relative to the store, or the record.
        what: is wrong.
        advice: what to do.
    """

    level: Literal["error", "note"]
    where: str
    what: str
    advice: str

    def __str__(self) -> str:
        return one_line(f"{self.level}: {self.where}: {self.what}; {self.advice}")


def verify(
    store: Place,
    *,
    deep: bool = False,
    sources: Path | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Finding]:
    """Everything that is wrong with a store, while it is found; one damaged thing stops nothing.

    A store of any format version is read as it is. What a writer changes meanwhile may be found.

    Args:
        store: its folder.
        deep: also decode the latents, and hold both stored errors of a record against each other.
        sources: a folder with the files that densities came from, known by their SHA-256: both
            errors of their records are computed anew.
        device: where the latents are decoded.
        progress: called with the number of records done and of all.

    Raises:
        StoreError: the folder is not a store, or it is in a bucket.
        InputError: there are no density files in `sources`.
    """
    if isinstance(store, RemotePath):
        raise StoreError(
            f"{store}: a store in a bucket is not verified; copy its files to a folder"
        )
    if not any((store / name).exists() for name in (INFO_FILE, ARRAYS_FOLDER, TABLE_FOLDER)):
        raise StoreError(f"{store}: not a chgdb store, it holds no {INFO_FILE}")
    files = densities_by_sha256(sources) if sources else {}
    return _Walk(store, deep, files, device, progress).findings()


class _Walk:
    """One walk over a store."""

    def __init__(
        self,
        store: Path,
        deep: bool,
        files: Mapping[str, Path],
        device: str,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.store = store
        self.deep = deep
        self.files = files
        self.device = device
        self.progress = progress
        self.table = Table(store / TABLE_FOLDER)
        self.derived = Derived(store, self.table)
        self.info: StoreInfo | None = None
        self.codec: Codec | None = None
        self.arrays: LatentArrays | None = None
        self._position, self._known = 0, True
        """Where the payload of the next row should begin, if that is known."""
        self._window: tuple[int, bytes] = (0, b"")
        """Bytes of payloads that were read, and where they begin."""

    def findings(self) -> Iterator[Finding]:
        before = self._state()
        count = 0
        for finding in self._all():
            count += 1
            yield finding
        if count and self._state() != before:
            yield self._note(".", "a writer changed the store meanwhile", "repeat chgdb verify")

    def _all(self) -> Iterator[Finding]:
        try:
            yield from self._check_info()
        except FormatVersionError as error:
            yield self._error(INFO_FILE, self._short(error), "upgrade chgdb, or restore the file")
            return
        yield from self._check_library()
        yield from self._check_encoder()
        yield from self._check_arrays()
        try:
            parts = [part for part in self.table.parts if isinstance(part, Path)]
        except StoreError as error:
            yield self._error(TABLE_FOLDER, self._short(error), _RESTORE)
            parts = []
        else:
            yield from self._check_leftovers(self.store / TABLE_FOLDER, parts)
        whole = []
        for part in parts:
            damage = list(self._check_part(part, COLUMNS))
            yield from damage
            if not any(map(_hides, damage)):
                whole.append(part)
        for start, stop in self.table.gaps() if parts else ():
            what = f"rows {start} to {stop - 1} are of no part: a file is missing"
            yield self._error(TABLE_FOLDER, what, _RESTORE)
        if self.arrays and self.arrays.recorded > (last := self.table.next_row if parts else 0):
            what = f"rows {last} to {self.arrays.recorded - 1} are of no part: a file is missing"
            yield self._error(TABLE_FOLDER, what, _RESTORE)
        elif self.arrays and 0 < self.arrays.recorded < last:
            what = f"{RECORDED} is {self.arrays.recorded}, and the table has {last} rows"
            yield self._note(ARRAYS_FOLDER, what, "the next writer corrects it")
        yield from self._check_table(whole)
        yield from self._check_records(whole, parts)
        yield from self._check_derived(complete=whole == parts)

    # ------------------------------------------------------------------ files

    def _check_info(self) -> Iterator[Finding]:
        path = self.store / INFO_FILE
        try:
            self.info = StoreInfo.load(self.store)
        except FormatVersionError:
            raise
        except StoreError as error:
            yield self._error(INFO_FILE, self._short(error), _RESTORE)
            return
        yield from self._check_seal(path)

    def _check_seal(self, path: Path) -> Iterator[Finding]:
        """Whether a file is as it was written, if this store's version has seals."""
        try:
            holds = seal_holds(path)
        except OSError as error:
            yield self._error(self._name(path), f"{_UNREADABLE} ({reason(error)})", _RESTORE)
            return
        if holds is False:
            yield self._error(self._name(path), _CHANGED, _RESTORE)
        elif holds is None and (self.info is None or self.info.format_version == FORMAT_VERSION):
            yield self._note(
                self._name(path), "has no seal that tells of changes", "chgdb compact adds it"
            )

    def _check_library(self) -> Iterator[Finding]:
        if self.info is not None and self.info.format_version < 2:
            return
        name = library_name(LATEST)
        try:
            if (self.store / name).read_bytes() != library_file(LATEST):
                yield self._error(name, "not the atom library of this name", "remove it")
        except OSError as error:
            yield self._error(
                name, f"cannot be read ({reason(error)})", "chgdb compact restores it"
            )

    def _check_encoder(self) -> Iterator[Finding]:
        if self.info is None:
            return
        encoder = self.info.encoder
        own = self.store / ENCODER_FOLDER
        if not encoder.weights_sha256:
            what = f"the weights of its encoder, {encoder.id}, are not known"
            yield self._note(INFO_FILE, what, "chgdb import-release --decoder brings them")
            return
        try:
            folder = own if own.exists() else find_model(encoder.id, encoder.weights_sha256)
            content = (folder / WEIGHTS_FILE).read_bytes()
            if hashlib.sha256(content).hexdigest() != encoder.weights_sha256:
                raise StoreError(f"{folder / WEIGHTS_FILE}: damaged (sha256)")
            if load_config(folder).kind != encoder.kind:
                raise StoreError(f"{folder}: not of kind {encoder.kind}, as {INFO_FILE} says")
            if self.deep or self.files:
                from chgdb.codec import load_codec

                self.codec = load_codec(folder, self.device)
        except (ChgdbError, OSError) as error:
            what = f"its encoder cannot be used ({self._short(error)})"
            tell = self._error if find_spec("torch") else self._note
            yield tell(INFO_FILE, what, "latents cannot be decoded until it is there")
        except ModuleNotFoundError as error:
            what = f"latents are not decoded: {error.name} is not installed"
            yield self._note(INFO_FILE, what, "pip install 'chgdb[ml]'")

    def _check_leftovers(self, folder: Path, parts: Iterable[Path]) -> Iterator[Finding]:
        """Files that an interrupted writer left among the Parquet parts."""
        kept = set(parts)
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") and path.name.endswith(PARTIAL_SUFFIX):
                yield self._note(self._name(path), "an unfinished file", _COMPACT)
            elif path.suffix == ".parquet" and path not in kept:
                yield self._note(self._name(path), "a part that another has taken over", _COMPACT)
            elif path.name.endswith(_MARK):
                what = "an unfinished replacement, which readers see finished"
                yield self._note(self._name(path), what, "chgdb compact finishes it")

    def _check_part(self, path: Path, columns: Mapping[str, Column]) -> Iterator[Finding]:
        """One Parquet file: its seal, its version, every column readable, no value missing."""
        name = self._name(path)
        for finding in self._check_seal(path):
            yield finding
            if finding.level == "error":
                return
        rows = {"rows": relation_of(columns.values(), [path])}
        required = [column.name for column in columns.values() if not column.nullable]
        missing = ", ".join(f"count(*) - count({quoted(column)})" for column in required)
        try:
            known = metadata_of(path)
            run({"rows": _everything(path)}, "SELECT bit_xor(hash(rows)) FROM rows", (), all_rows)
            ((n, *nulls),) = run(rows, f"SELECT count(*), {missing} FROM rows", (), all_rows)  # noqa: S608 (constants)
        except ChgdbError as error:
            yield self._error(name, f"{_UNREADABLE} ({self._short(error)})", _RESTORE)
            return
        version = self.info.format_version if self.info else FORMAT_VERSION
        written = known.get("chgdb.format_version", "")
        if not written.isdecimal() or int(written) > version:
            what = f"of format version {written or 'unknown'} in a store of version {version}"
            yield self._error(name, what, _RESTORE)
        units = file_metadata({c.name: c.unit for c in columns.values()}, version)["chgdb.units"]
        stated = json.loads(known.get("chgdb.units", "{}"))
        wrong = [key for key, unit in stated.items() if json.loads(units).get(key, unit) != unit]
        if wrong:
            yield self._error(name, f"states another unit of {wrong[0]}", _RESTORE)
        for column, count in zip(required, nulls, strict=True):
            if count:
                yield self._error(name, f"{count} of {n} rows have no {column}", _RESTORE)

    # ------------------------------------------------------------------ arrays

    def _check_arrays(self) -> Iterator[Finding]:
        path = self.store / ARRAYS_FOLDER
        try:
            self.arrays = arrays = LatentArrays.open(path)
        except StoreError as error:
            yield self._error(ARRAYS_FOLDER, self._short(error), _RESTORE)
            return
        yield from self._check_metadata(path)
        if self.info is not None:
            if arrays.storage != self.info.latent:
                what = f"latents are stored as {arrays.storage}, not as {INFO_FILE} says"
                yield self._error(f"{ARRAYS_FOLDER}/latent", what, _RESTORE)
            if (arrays.n_bytes is None) != (self.info.format_version < 2):
                what = f"not the arrays of format version {self.info.format_version}"
                yield self._error(ARRAYS_FOLDER, what, _RESTORE)
        for leftover in arrays.leftovers():
            what = "unfinished, or beyond the committed rows"
            yield self._note(self._name(leftover), what, _COMPACT)

    def _check_metadata(self, path: Path) -> Iterator[Finding]:
        """What readers go by, the group's `zarr.json`, against those of the arrays."""
        try:
            root = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
            known = root["consolidated_metadata"].pop("metadata")
        except _BAD_JSON as error:
            yield self._error(f"{ARRAYS_FOLDER}/zarr.json", f"damaged ({reason(error)})", _RESTORE)
            return
        attributes = root.pop("attributes", None)
        info = self.info
        recorded = attributes.pop(RECORDED, 0) if isinstance(attributes, dict) else 0
        if isinstance(attributes, dict):
            attributes.pop(SEAL, None)
        if type(recorded) is not int or recorded < 0:
            what = f"its attribute {RECORDED} is {recorded!r}"
            yield self._error(f"{ARRAYS_FOLDER}/zarr.json", what, _RESTORE)
        if info and attributes != {"encoder": info.encoder.id, "attribution": info.attribution}:
            what = f"its attributes are not those of {INFO_FILE}"
            yield self._error(f"{ARRAYS_FOLDER}/zarr.json", what, _RESTORE)
        if root != _GROUP:
            what = f"not the group that it should be: {json.dumps(root)}"
            yield self._error(f"{ARRAYS_FOLDER}/zarr.json", what, _RESTORE)
        for name, metadata in known.items():
            where = f"{ARRAYS_FOLDER}/{name}/zarr.json"
            try:
                own = json.loads((path / name / "zarr.json").read_text(encoding="utf-8"))
                committed, (length, *shape) = metadata.pop("shape"), own.pop("shape")
                ahead = length - committed[0]
            except _BAD_JSON as error:
                yield self._error(where, f"damaged ({reason(error)})", _RESTORE)
                continue
            if own != metadata or shape != committed[1:] or ahead < 0:
                what = f"differs from what {ARRAYS_FOLDER}/zarr.json says of it"
                yield self._error(where, what, _RESTORE)
            elif ahead:
                yield self._note(where, f"{ahead} rows beyond the committed ones", _COMPACT)

    # ------------------------------------------------------------------ records

    def _check_table(self, parts: Sequence[Path]) -> Iterator[Finding]:
        """What whole parts show: ids and rows twice, rows of others, parts that overlap."""
        spans = sorted((*_span(part), part) for part in parts)
        for (_, stop, _), (start, _, part) in pairwise(spans):
            if start < stop:
                what = f"overlaps the part that ends before row {stop}"
                yield self._error(self._name(part), what, _RESTORE)
        for start, stop, part in spans:
            rows = {"rows": relation_of([COLUMNS["id"], COLUMNS["row"]], [part])}
            query = "SELECT id, row FROM rows WHERE row NOT BETWEEN ? AND ? ORDER BY id"
            for id_, row in run(rows, query, (start, stop - 1), all_rows):
                what = f"its row {row} is not of its part, {part.name}"
                yield self._error(f"record {id_}", what, _RESTORE)
        # while a replacement is unfinished, its records are in older parts too
        settled = [part for part in parts if not part.name.endswith(_MARK)]
        for name in ("id", "row"):
            rows = {"rows": relation_of([COLUMNS[name]], settled)}
            query = f"SELECT {name}, count(*) FROM rows GROUP BY 1 HAVING count(*) > 1 ORDER BY 1"  # noqa: S608 (constants)
            for value, count in run(rows, query, (), all_rows):
                what = f"the {name} is there {count} times"
                yield self._error(
                    f"record {value}" if name == "id" else TABLE_FOLDER, what, _RESTORE
                )

    def _check_records(self, whole: Sequence[Path], parts: Sequence[Path]) -> Iterator[Finding]:
        """Every record, and the arrays row by row."""
        total = sum(_count(part) for part in whole)
        rows = self.arrays.n_rows if self.arrays else 0
        last = max([0, *(_span(part)[1] for part in parts)])
        if rows > last + _MOST_LEFT:
            what = f"{rows} rows, and the table has {last}"
            yield self._error(f"{ARRAYS_FOLDER}/zarr.json", what, _RESTORE)
        last = max(last, min(rows, last + _MOST_LEFT))
        done = 0
        for start in range(0, last, _ROWS):
            stop = min(start + _ROWS, last)
            records: dict[int, dict[str, Any]] = {}
            unknown = np.zeros(stop - start, bool)
            for part in parts:
                first, after = _span(part)
                if after <= start or stop <= first:
                    continue
                if part in whole:
                    records |= {row["row"]: row for row in _rows_of(part, start, stop)}
                else:
                    unknown[max(first - start, 0) : after - start] = True
            for record in records.values():
                for what in _contradictions(record):
                    yield self._error(f"record {record['id']}", what, _RESTORE)
            if self.arrays:
                yield from self._check_rows(self.arrays, start, records, unknown)
                for record in records.values():
                    yield from self._check_density(self.arrays, record)
                    done += 1
                    if self.progress:
                        self.progress(done, total)
        if self.arrays and (self.arrays.n_bytes or 0) > self._position:
            yield from self._check_hole(self.arrays, self._position, self.arrays.n_bytes or 0)

    def _check_rows(
        self,
        arrays: LatentArrays,
        start: int,
        records: Mapping[int, Mapping[str, Any]],
        unknown: NDArray[np.bool_],
    ) -> Iterator[Finding]:
        """The arrays from row `start` on against the records that name them.

        Args:
            arrays: those of the store.
            start: first row.
            records: by row.
            unknown: of each row, whether its records cannot be read.
        """
        n = min(len(unknown), arrays.n_rows - start)
        for row, record in records.items():
            if row >= start + n:
                what = f"its row {row} is not in {ARRAYS_FOLDER}, which has {arrays.n_rows}"
                yield self._error(f"record {record['id']}", what, _RESTORE)
        held: dict[str, NDArray[Any]] = {}
        readable: dict[str, NDArray[np.bool_]] = {}
        for name in (name for name in arrays.names if name not in ("latent", "payload")):
            values, whole = [], np.zeros(max(n, 0), bool)
            step = arrays.per_file(name)
            for first in range(start, start + n, step):
                last = min(first + step, start + n)
                try:
                    values.append(arrays.block(name, first, last))
                    whole[first - start : last - start] = True
                except StoreError as error:
                    shape = (last - first, *((3,) if "grid" in name else ()))
                    values.append(np.zeros(shape, object if name == "material_id" else np.int64))
                    where = f"{ARRAYS_FOLDER}/{name}"
                    what = f"rows {first} to {last - 1} cannot be read ({self._short(error)})"
                    yield self._error(where, what, _RESTORE)
            if values:
                held[name], readable[name] = np.concatenate(values), whole
        if n <= 0:
            return
        filled = np.zeros(n, bool)
        for first in range(0, n, _LATENTS):
            last = min(first + _LATENTS, n)
            yield from self._check_latents(arrays, start, first, last, records, filled)
        for name, column in held.items():
            if name != "payload_offset":
                content = column.reshape(n, -1) != ("" if name == "material_id" else 0)
                filled |= content.any(axis=1) & readable[name]
        for row, record in records.items():
            if row < start + n:
                expected = _expected(record)
                filled[row - start] &= (
                    record["work_grid_a"] is None and not expected["payload_length"]
                )
                for name, value in expected.items():
                    if name in held and readable[name][row - start]:
                        found = held[name][row - start : row - start + 1].tolist()[0]
                        if found != value:
                            what = f"{name} of its row {row} is {found!r}, not {value!r}"
                            yield self._error(f"record {record['id']}", what, _RESTORE)
        filled &= ~unknown[:n]
        for first, last in _runs(filled):
            where = f"{ARRAYS_FOLDER}, rows {start + first} to {start + last - 1}"
            yield self._note(where, "hold what no record names", _COMPACT)
        if "payload_offset" in held:
            whole = readable["payload_offset"] & readable["payload_length"]
            extents = held["payload_offset"], held["payload_length"]
            yield from self._check_extents(arrays, start, records, *extents, whole, unknown[:n])

    def _check_latents(
        self,
        arrays: LatentArrays,
        start: int,
        first: int,
        last: int,
        records: Mapping[int, Mapping[str, Any]],
        filled: NDArray[np.bool_],
    ) -> Iterator[Finding]:
        """Latents of the rows start + first to start + last - 1: readable, there, in the cell."""
        periodic = self.info is None or self.info.encoder.kind == "periodic"
        try:
            block = arrays.block("latent", start + first, start + last)
        except StoreError:
            block = None
        for index in range(first, last):
            row = start + index
            record = records.get(row)
            where = f"record {record['id']}" if record else f"{ARRAYS_FOLDER}/latent, row {row}"
            try:
                if block is None:
                    (latent,) = arrays.block("latent", row, row + 1)
                else:
                    latent = block[index - first]
            except StoreError as error:
                what = f"its latent cannot be read ({self._short(error)})"
                yield self._error(where, what, _ADD)
                continue
            filled[index] = latent.any()
            if record is None or record["work_grid_a"] is None:
                continue
            if not filled[index]:
                yield self._error(where, "its latent is missing", _ADD)
            elif periodic:
                a, b, c = arrays.storage.extent([record[f"work_grid_{axis}"] for axis in "abc"])
                if latent[:, a:].any() or latent[:, :, b:].any() or latent[:, :, :, c:].any():
                    yield self._error(where, "its latent is not zero beyond the cell", _ADD)

    def _check_extents(
        self,
        arrays: LatentArrays,
        start: int,
        records: Mapping[int, Mapping[str, Any]],
        offsets: NDArray[Any],
        lengths: NDArray[Any],
        whole: NDArray[np.bool_],
        unknown: NDArray[np.bool_],
    ) -> Iterator[Finding]:
        """Where the payloads lie: within the array, none over another, nothing between them."""
        for index in np.flatnonzero((lengths != 0) | ~whole):
            row, first = start + int(index), int(offsets[index])
            stop = first + int(lengths[index])
            record = records.get(row)
            where = f"record {record['id']}" if record else f"{ARRAYS_FOLDER}, row {row}"
            if record is None and whole[index] and not unknown[index]:
                continue  # what an erasure left, told of by `_check_latents`; it takes no place
            if not whole[index]:
                self._known = False  # what lies between is of this row, or of none
            elif not 0 <= first <= stop <= (arrays.n_bytes or 0):
                what = f"its payload, bytes {first} to {stop - 1}, is not within {arrays.n_bytes}"
                yield self._error(where, what, _ADD)
                self._known = False
            else:
                if first < self._position:
                    yield self._error(where, "its payload overlaps that of an earlier row", _ADD)
                elif self._known:
                    yield from self._check_hole(arrays, self._position, first)
                self._position, self._known = max(self._position, stop), True

    def _check_hole(self, arrays: LatentArrays, start: int, stop: int) -> Iterator[Finding]:
        """Bytes that no row names: they are zero."""
        for first in range(start, stop, _BYTES):
            last = min(first + _BYTES, stop)
            where = f"{ARRAYS_FOLDER}/payload, bytes {first} to {last - 1}"
            try:
                if arrays.block("payload", first, last).any():
                    yield self._note(where, "belong to no row and are not erased", _COMPACT)
            except StoreError as error:
                what = f"belong to no row and cannot be read ({self._short(error)})"
                yield self._error(where, what, "chgdb export makes a store without them")

    # ------------------------------------------------------------------ densities

    def _check_density(self, arrays: LatentArrays, record: Mapping[str, Any]) -> Iterator[Finding]:
        """The payload of a record, decoded, against what the record says of it; and the latent."""
        where = f"record {record['id']}"
        path = self.files.get(record["source_sha256"] or "")
        exact = None
        if path is not None:
            try:
                exact, _ = read_density(path, species=_species(record))
            except ChgdbError as error:
                yield self._note(where, f"its source cannot be used ({self._short(error)})", "-")
        density = None
        if record["payload_bytes"] is not None:
            try:
                content = self._payload(arrays, record)
                structure = structure_of(record)
                check(content, structure)
                density = decode(content, structure)
            except (ChgdbError, ValueError, TypeError, KeyError) as error:
                yield self._error(where, f"its payload is lost ({self._short(error)})", _ADD)
            else:
                for what in _differences(density, record):
                    yield self._error(where, what, _ADD)
                if exact is not None:
                    yield from self._check_error(where, "payload", density, exact, record)
        if self.codec is None or record["work_grid_a"] is None:
            return
        if record["grid_a"] is None:  # a latent that came without its density
            return
        try:
            latent = _decoded(self.codec, arrays, record)
        except (ChgdbError, ValueError, TypeError, KeyError) as error:
            yield self._error(where, f"its latent cannot be decoded ({self._short(error)})", _ADD)
            return
        if record["latent_nmae"] is None:  # lost, and not known any more
            return
        if exact is not None:
            yield from self._check_error(where, "latent", latent, exact, record)
        if self.deep and density is not None and density.grid == latent.grid:
            yield from self._check_triangle(where, latent, density, record)

    def _payload(self, arrays: LatentArrays, record: Mapping[str, Any]) -> bytes:
        """The bytes of a payload; neighbours are read with it."""
        row = record["row"]
        if row >= arrays.n_rows or arrays.n_bytes is None:
            raise StoreError("it is not in the arrays")
        start = int(arrays.block("payload_offset", row, row + 1)[0])
        stop = start + record["payload_bytes"]
        if not 0 <= start <= stop <= arrays.n_bytes:
            raise StoreError("it is not in the arrays")
        first, window = self._window
        if not first <= start <= stop <= first + len(window):
            try:
                last = min(max(start + _BYTES, stop), arrays.n_bytes)
                first, window = start, arrays.block("payload", start, last).tobytes()
            except StoreError:
                first, window = start, arrays.block("payload", start, stop).tobytes()
            self._window = first, window
        return window[start - first : stop - first]

    def _check_error(
        self,
        where: str,
        what: str,
        density: ChargeDensity,
        exact: ChargeDensity,
        record: Mapping[str, Any],
    ) -> Iterator[Finding]:
        """The stored error of what was decoded, computed anew from the source.

        That of a latent may be larger by twice the error of the payload, as `repair` stores it that
        made the latent from the payload.
        """
        if density.grid != exact.grid:
            yield self._error(where, f"its source has the grid {exact.grid}", _ADD)
            return
        nmae, stored = compare(density, exact).nmae, record[f"{what}_nmae"]
        slack = _DECODER_ROUNDING if what == "latent" else _ROUNDING * 100
        beyond = 2 * (record["payload_nmae"] or 0.0) if what == "latent" else 0.0
        if not -slack <= stored - nmae <= slack + beyond:
            yield self._error(
                where, f"{what}_nmae is {stored:g} %, but {nmae:g} % from its source", _ADD
            )

    def _check_triangle(
        self,
        where: str,
        latent: ChargeDensity,
        density: ChargeDensity,
        record: Mapping[str, Any],
    ) -> Iterator[Finding]:
        """Both stored errors against the distance of the two decoded densities.

        With d = 100 sum|latent - payload| / sum|source|, the triangle inequality says that
        |latent_nmae - payload_nmae| <= d <= latent_nmae + payload_nmae; sum|source| is at least the
        sum of its electrons, and at most payload_nmae more than that of the payload.
        """
        wide, narrow = record["latent_nmae"], record["payload_nmae"]
        distance = compare(latent, density).nmae
        norm = float(np.abs(density.values).mean()) * density.structure.volume
        low, high = distance * (1 - narrow / 100), distance * norm / record["n_electrons"]
        slack = _DECODER_ROUNDING
        if high < abs(wide - narrow) - slack or low > wide + narrow + slack:
            what = (
                f"latent_nmae {wide:g} % and payload_nmae {narrow:g} % cannot both be true: what "
                f"they decode to differs by {distance:g} %"
            )
            yield self._error(where, what, _ADD)

    # ------------------------------------------------------------------ features, predictions

    def _check_derived(self, *, complete: bool) -> Iterator[Finding]:
        """Features and predictions; `complete` says whether all records could be read."""
        columns = {FEATURES_FOLDER: feature_columns(), PREDICTIONS_FOLDER: PREDICTIONS}
        check = {FEATURES_FOLDER: _wrong_features, PREDICTIONS_FOLDER: _wrong_predictions}
        try:
            parts = self.derived.parts
        except StoreError as error:
            yield self._error(".", self._short(error), _RESTORE)
            return
        for name, places in parts.items():
            paths = [path for path in places if isinstance(path, Path)]
            if (self.store / name).is_dir():
                yield from self._check_leftovers(self.store / name, paths)
            for path in paths:
                damage = list(self._check_part(path, columns[name]))
                yield from damage
                if any(map(_hides, damage)):
                    complete = False
                    continue
                for what in check[name](path):
                    yield self._error(self._name(path), what, _ANEW)
        if not complete:
            return
        why = {
            FEATURES_FOLDER: "features of a density that is not there any more",
            PREDICTIONS_FOLDER: "predicted from features that are not there any more",
        }
        try:
            stale = self.derived.stale()
        except ChgdbError as error:
            yield self._error(TABLE_FOLDER, self._short(error), _RESTORE)
            return
        for name, ids in stale.items():
            if ids:
                shown = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
                what = f"{len(ids)} rows are {why[name]} ({shown})"
                yield self._note(name, what, "chgdb compact drops them")

    # ------------------------------------------------------------------ inside

    def _error(self, where: str, what: str, advice: str) -> Finding:
        return Finding("error", where, what, advice)

    def _note(self, where: str, what: str, advice: str) -> Finding:
        return Finding("note", where, what, advice)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.store).as_posix()

    def _short(self, error: BaseException) -> str:
        """What went wrong, without the path of the store."""
        return reason(error).replace(f"{self.store}/", "").replace(f"{self.store}", "the store")

    def _state(self) -> list[tuple[str, int]]:
        """What changes when a writer commits."""
        files = (self.store / ARRAYS_FOLDER / "zarr.json", *self.store.glob("*/*.parquet"))
        return sorted((str(file), file.stat().st_mtime_ns) for file in files if file.exists())


def _hides(finding: Finding) -> bool:
    """Whether it keeps what a file holds from being read."""
    return finding.what.startswith((_UNREADABLE, _CHANGED))


# ---------------------------------------------------------------------- rows


def _contradictions(row: Mapping[str, Any]) -> Iterator[str]:
    """What in a record cannot be, or does not fit together."""
    for name, column in COLUMNS.items():
        try:
            plain_value(column.type, row[name])
        except (TypeError, ValueError):
            yield f"{name} is {row[name]!r}, not {column.type}"
            return
        if row[name] is None and not column.nullable:
            return  # told of the whole part
    try:
        check_id(row["id"])
        known = describe_material(row["id"], row["formula"])
    except (InputError, QueryError, TypeError) as error:
        yield str(error)
        return
    for name in ("formula", "reduced_formula", "chemsys", "elements", "n_elements"):
        if row[name] != known[name]:
            yield f"{name} is {row[name]!r}, not {known[name]!r}, as of {row['formula']}"
    yield from _structure_contradictions(row)
    number, system = row["spacegroup"], row["crystal_system"]
    if number is not None or system is not None:
        ranges = dict(zip(CRYSTAL_SYSTEMS, [0, *CRYSTAL_SYSTEMS.values()], strict=False))
        if number is None or not ranges.get(system, 230) < number <= CRYSTAL_SYSTEMS[system]:
            yield f"crystal_system is {system}, and spacegroup {number}"
    for names in _TOGETHER:
        if len({row[name] is None for name in names}) > 1:
            there = [name for name in names if row[name] is not None]
            yield f"of {', '.join(names)} only {', '.join(there)} is there"
    if row["source"] is None:
        if there := [name for name in _OF_DENSITIES if row[name] is not None]:
            yield f"it has {there[0]}, but no source of a density"
    elif row["source"] not in SOURCES:
        yield f"source is {row['source']!r}"
    elif row["payload_bytes"] is not None and None in (row["n_electrons"], row["grid_a"]):
        yield "it has a density without grid or n_electrons"
    elif row["work_grid_a"] is None and row["payload_bytes"] is None:
        yield "it has a source of a density, but neither latent nor payload"
    for name in _POSITIVE:
        if row[name] is not None and not row[name] > 0:
            yield f"{name} is {row[name]}"
    for name in ("latent_nmae", "payload_nmae", "payload_magnetization_nmae", "source_nmae"):
        if row[name] is not None and row[name] < 0:
            yield f"{name} is {row[name]}"
    try:
        datetime.fromisoformat(row["added"])
    except ValueError:
        yield f"added is {row['added']!r}, not a time"


_OF_STRUCTURES = ("n_atoms", "volume", "mass_density", "lattice", "species", "frac_coords")
_OF_PAYLOADS = ("payload_bytes", "payload_method", "payload_nmae", "payload_max_error")
_OF_LATENTS = ("latent_nmae", "latent_max_error", "latent_electron_error", "latent_coarse")
_TOGETHER = (
    _OF_STRUCTURES,
    ("spacegroup", "spacegroup_symbol", "crystal_system"),
    ("grid_a", "grid_b", "grid_c"),
    ("work_grid_a", "work_grid_b", "work_grid_c"),
    _OF_LATENTS,
    (*_OF_PAYLOADS, "payload_electron_error"),
)
"""Columns that are null together."""

_OF_DENSITIES = ("n_electrons", "grid_a", "work_grid_a", "payload_bytes")
_POSITIVE = ("n_atoms", "volume", "mass_density", "n_electrons", *(f"grid_{a}" for a in "abc"))


def _structure_contradictions(row: Mapping[str, Any]) -> Iterator[str]:
    if any(row[name] is None for name in _OF_STRUCTURES):
        return
    try:
        structure = structure_of(row)
    except (ChgdbError, ValueError, TypeError, KeyError) as error:
        yield f"its structure is damaged ({reason(error)})"
        return
    if len(structure.species) != row["n_atoms"]:
        yield f"n_atoms is {row['n_atoms']}, but {len(structure.species)} species are there"
    found = {"volume": structure.volume, "mass_density": structure.mass_density}
    for name, value in found.items():
        if not math.isclose(value, row[name], rel_tol=_ROUNDING):
            yield f"{name} is {row[name]:g}, but {value:g} of its structure"
    if describe_material("x", structure.formula)["formula"] != row["formula"]:
        yield f"formula is {row['formula']}, but its structure is of {structure.formula}"


def _expected(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the row of a record holds in the arrays."""
    dense = record["work_grid_a"] is not None
    return {
        "material_id": record["id"] if dense else "",
        "grid": [record[f"grid_{axis}"] or 0 for axis in "abc"],
        "work_grid": [record[f"work_grid_{axis}"] or 0 for axis in "abc"],
        "n_electrons": record["n_electrons"] or 0.0,
        "payload_length": record["payload_bytes"] or 0,
    }


def _differences(density: ChargeDensity, record: Mapping[str, Any]) -> Iterator[str]:
    """What a decoded payload has otherwise than its record says."""
    grid = tuple(record[f"grid_{axis}"] for axis in "abc")
    if density.grid != grid:
        yield f"its payload is of the grid {density.grid}, not {grid}"
    n_electrons, error = record["n_electrons"], record["payload_electron_error"]
    if n_electrons is not None and error is not None:
        found = density.n_electrons
        if not abs(found - n_electrons - error) <= _ROUNDING * max(1.0, abs(n_electrons)):
            yield f"its payload holds {found:.9f} electrons, not {n_electrons + error:.9f}"
    if (density.magnetization is None) != (record["magnetization"] is None):
        has = "no" if density.magnetization is None else "a"
        yield f"its payload has {has} magnetization, otherwise than the record"


def _decoded(codec: Codec, arrays: LatentArrays, record: Mapping[str, Any]) -> ChargeDensity:
    """What the latent of a record decodes to, on the grid of its source."""
    from chgdb.density import Latent

    stored = arrays.read(record["row"], record["id"])
    latent = Latent(stored.values, stored.work_grid, stored.n_electrons)
    grid = record["grid_a"], record["grid_b"], record["grid_c"]
    (density,) = codec.decode([latent], [structure_of(record)], [grid])
    return density


def _species(record: Mapping[str, Any]) -> list[str] | None:
    """The elements in the order of the file, for a CHGCAR that does not name them."""
    try:
        return list(dict.fromkeys(json.loads(record["species"])))
    except (TypeError, ValueError):
        return None


# ---------------------------------------------------------------------- Parquet


def _span(part: Path) -> tuple[int, int]:
    """The rows that a part is named after: first and last + 1."""
    start, stop = part.name.split(".")[0].split("-")
    return int(start), int(stop)


def _count(part: Path) -> int:
    ((count,),) = run({"rows": _everything(part)}, "SELECT count(*) FROM rows", (), all_rows)
    return int(count)


def _everything(path: Path) -> Relation:
    return Relation(f"SELECT * FROM {files_of([path])}", (path,))  # noqa: S608 (quoted)


def _rows_of(part: Path, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """The records of a part in some rows."""
    names = ", ".join(map(quoted, COLUMNS))
    query = f"SELECT {names} FROM rows WHERE row >= ? AND row < ? ORDER BY row"  # noqa: S608 (constants)
    rows = {"rows": relation_of(COLUMNS.values(), [part])}
    for values in run(rows, query, (start, stop), all_rows):
        yield dict(zip(COLUMNS, values, strict=True))


def _wrong_features(path: Path) -> list[str]:
    """Rows of features whose hash is not that of what they hold."""
    found: list[str] = []

    def look(connection: duckdb.DuckDBPyConnection) -> None:
        while len(frame := connection.fetch_df_chunk(8)):
            current = frame[frame["features_version"] == FEATURES_VERSION]
            wrong = current["sha256"].to_numpy() != np.array(features_sha256(current), object)
            found.extend(
                f"the features of {id_} are not those of their hash" for id_ in current["id"][wrong]
            )

    rows = {"rows": relation_of(feature_columns().values(), [path])}
    run(rows, "SELECT * FROM rows", (), look)
    return found


def _wrong_predictions(path: Path) -> list[str]:
    """Predictions outside their own interval."""
    outside = " OR ".join(
        f"NOT ({quoted(name)} BETWEEN {quoted(f'{name}_low')} AND {quoted(f'{name}_high')})"
        for name in PREDICTED
    )
    rows = {"rows": relation_of(PREDICTIONS.values(), [path])}
    query = f"SELECT id FROM rows WHERE {outside} OR NOT json_valid(neighbours) ORDER BY id"  # noqa: S608 (constants)
    return [
        f"the prediction of {id_} is not within its interval, or its neighbours are not JSON"
        for (id_,) in run(rows, query, (), all_rows)
    ]


def _runs(marks: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and last + 1 of every run of marks that are set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)

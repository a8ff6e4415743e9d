"""Bring a damaged store back to what its redundancy tells, and list what is lost.

What is whole is not touched. A file is kept in the folder `damaged` of the store before it is
changed. Every step is atomic and leaves less to repair, so a repair that was killed is repeated.
docs/format.md says what is restored from what.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chgdb import __version__
from chgdb.archive import check, decode
from chgdb.arrays import LatentArrays, pack, restore_metadata, unpack
from chgdb.chunks import restored_chunk, restored_shard
from chgdb.compaction import erase_unnamed_bytes
from chgdb.database import LOCK_FILE, LOCK_TIMEOUT, Database
from chgdb.density import ChargeDensity, Latent
from chgdb.derived import Derived, feature_columns
from chgdb.errors import ChgdbError, FormatVersionError, StoreError
from chgdb.export import structure_of
from chgdb.files import one_line, reason, refuse_links, replace_file, shown
from chgdb.formats import densities_by_sha256
from chgdb.library import LATEST, library_file, library_name
from chgdb.lock import writer_lock
from chgdb.metrics import compare
from chgdb.parquet import all_rows, quoted, readable_rows, relation_of, run
from chgdb.places import Place
from chgdb.resources import find_model, is_shipped
from chgdb.rows import describe_material
from chgdb.schema import (
    ARRAYS_FOLDER,
    COLUMNS,
    ENCODER_FOLDER,
    FEATURES_FOLDER,
    FORMAT_VERSION,
    INFO_FILE,
    PREDICTIONS,
    PROPERTIES,
    TABLE_FOLDER,
    Column,
    EncoderInfo,
    StoreInfo,
)
from chgdb.seals import restored, seal_holds
from chgdb.table import Table
from chgdb.verification import Finding, verify
from chgdb.weights import CONFIG_FILE, load_config

__all__ = ["Repair", "repair"]

DAMAGED = "damaged"
"""Folder of the files as they were before they were changed."""

UNFINISHED = "unfinished.jsonl"
"""In that folder, what a repair has lost until it has told."""

LOST = "lost.txt"
"""In that folder, what repairs have lost."""

_NAMES = tuple(COLUMNS)
_OF_DENSITIES = _NAMES[_NAMES.index("source") : _NAMES.index("added")]
_OF_PAYLOADS = tuple(name for name in _NAMES if name.startswith("payload_"))
_OF_LATENTS = ("latent_nmae", "latent_max_error", "latent_electron_error", "latent_coarse")
_IN_ARRAYS = (
    ("grid_a", "grid_b", "grid_c"),
    ("work_grid_a", "work_grid_b", "work_grid_c"),
    ("n_electrons",),
)
"""Columns that follow from an array, which is called as they are."""

_OF_STRUCTURES = ("lattice", "species", "frac_coords")
_REMADE = _NAMES[_NAMES.index("formula") : _NAMES.index("source")]
"""Columns that follow from the structure, and itself."""

_FREE = {*(column.name for column in PROPERTIES), "source_file", "source_sha256", "source_nmae"}
"""Columns that a record may lack whatever else it has."""

_BLOCK = 2**14
_LATENTS = 128


@dataclass
class Repair:
    """What a repair did.

    Attributes:
        done: what was restored, a line each.
        lost: what could not be restored, a line each.
        lost_ids: the records of `lost` that are still there, without their density.
        left: what `verify` finds afterwards.
    """

    done: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    lost_ids: dict[str, str] = field(default_factory=dict)
    left: list[Finding] = field(default_factory=list)


def repair(store: Place, *, sources: Path | None = None, device: str = "auto") -> Repair:
    """Restore what can be restored, drop what is lost, and look at the store again.

    Args:
        store: its folder.
        sources: a folder with the files that densities came from, known by their SHA-256: what was
            lost of a record that is still there is made anew from its file.
        device: where the encoder runs.

    Raises:
        StoreError: it cannot be written, is of an older format, or `chgdb.json` is lost with what
            it could be restored from.
        InputError: there are no density files in `sources`.
    """
    found = list(verify(store))
    unfinished = isinstance(store, Path) and (store / DAMAGED / UNFINISHED).exists()
    if not unfinished and not any(finding.level == "error" for finding in found):
        return Repair(left=found)
    if not isinstance(store, Path) or is_shipped(store):
        raise StoreError(f"{store}: cannot be written; repair a copy of it")
    refuse_links(store)
    files = densities_by_sha256(sources) if sources else {}
    with writer_lock(store / LOCK_FILE, LOCK_TIMEOUT):
        work = _Work(store, device)
        try:
            work.run()
        except OSError as error:
            raise StoreError(f"{shown(store)}: cannot be repaired ({reason(error)})") from error
    report = work.report
    for id_, sha256 in report.lost_ids.items():
        if sha256 in files:
            try:
                database = Database(store, device=device)
                added = database.add(files[sha256], ids=[id_], on_conflict="replace")
            except ChgdbError as error:
                report.lost.append(f"record {id_}: {files[sha256]} cannot be added ({error})")
                continue
            report.done += [f"record {id_}: encoded from {files[sha256]}"] * len(added.added)
            report.lost += [f"record {id_}: {path}: {why}" for path, why in added.failed]
    work.finish()
    report.left = list(verify(store))
    return report


class _Work:
    """One repair, with the lock held."""

    def __init__(self, store: Path, device: str) -> None:
        self.store = store
        self.device = device
        self.report = Repair()
        self.table = Table(store / TABLE_FOLDER)
        self.derived = Derived(store, self.table)
        self._resume()

    def run(self) -> None:
        """Everything, what other things are restored from first."""
        self._encoder()
        self.info = self._info()
        if self.info.format_version != FORMAT_VERSION:
            raise StoreError(
                f"{self.store}: of format version {self.info.format_version}, which is only read"
            )
        self._library()
        encoder = self.info.encoder.id
        attributes = {"encoder": encoder, "attribution": self.info.attribution}
        for path in restore_metadata(
            self.store / ARRAYS_FOLDER, self.info.latent, attributes, self._keep
        ):
            self._tell(path, "restored from the other metadata")
        self._chunks(LatentArrays.open(self.store / ARRAYS_FOLDER))
        self._parts()
        self._derived_parts()
        self.arrays = LatentArrays.open(self.store / ARRAYS_FOLDER, writable=True)
        self._missing_parts()
        self._rows()
        self._densities()

    # ------------------------------------------------------------------ what is lost

    def _resume(self) -> None:
        """Take up what a repair that did not end has lost."""
        try:
            lines = (self.store / DAMAGED / UNFINISHED).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            with suppress(ValueError, KeyError):  # a line that was being written
                told = json.loads(line)
                self.report.lost.append(told["lost"])
                if told["id"]:
                    self.report.lost_ids[told["id"]] = told["sha256"]

    def _lose(self, what: str, id_: str = "", sha256: str | None = None) -> None:
        """Tell what is lost, on the disk before it is dropped.

        Args:
            what: a line for people.
            id_: of a record that is still there, but without its density.
            sha256: of the file that it came from.
        """
        if what in self.report.lost:
            return  # by the repair that did not end
        self.report.lost.append(what)
        if id_:
            self.report.lost_ids[id_] = sha256 or ""
        path = self.store / DAMAGED / UNFINISHED
        path.parent.mkdir(exist_ok=True)
        told = json.dumps({"lost": what, "id": id_, "sha256": sha256 or ""})
        with path.open("a", encoding="utf-8") as file:
            file.write(told + "\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Keep the list of what is lost for later, when all is done."""
        path = self.store / DAMAGED / UNFINISHED
        if path.exists():
            with (path.parent / LOST).open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in self.report.lost)
            path.unlink()

    # ------------------------------------------------------------------ files

    def _keep(self, path: Path) -> None:
        """Put a copy of a damaged file aside, named after what it holds."""
        if path.exists():
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:12]
            kept = self.store / DAMAGED / path.relative_to(self.store)
            kept.parent.mkdir(parents=True, exist_ok=True)
            replace_file(kept.with_name(f"{kept.name}.{digest}"), content)

    def _tell(self, path: Path, what: str) -> None:
        self.report.done.append(f"{path.relative_to(self.store).as_posix()}: {what}")

    def _info(self) -> StoreInfo:
        path = self.store / INFO_FILE
        try:
            return StoreInfo.load(self.store)
        except FormatVersionError:
            raise
        except StoreError as error:
            if path.exists():
                self._keep(path)
                whole = seal_holds(path)
                if not whole and (content := restored(path.read_bytes())) is not None:
                    replace_file(path, content)
                    self._tell(path, "restored, one byte had changed")
                    return StoreInfo.load(self.store)
            try:
                arrays = LatentArrays.open(self.store / ARRAYS_FOLDER)
                root = json.loads((arrays.path / "zarr.json").read_text(encoding="utf-8"))
                name, attribution = (root["attributes"][key] for key in ("encoder", "attribution"))
                own = self.store / ENCODER_FOLDER
                config = load_config(own if own.exists() else find_model(name))
            except (ChgdbError, OSError, ValueError, KeyError, TypeError) as other:
                raise StoreError(
                    f"{reason(error)}; it cannot be restored from {ARRAYS_FOLDER} and the encoder "
                    f"({reason(other)}): restore it from a copy of the store"
                ) from error
            encoder = EncoderInfo(config.id, config.kind, config.weights_sha256)
            info = StoreInfo(encoder, arrays.storage, attribution, f"chgdb {__version__}")
            info.save(self.store)
            self._tell(path, f"restored from {ARRAYS_FOLDER} and the encoder {config.id}")
            return info

    def _encoder(self) -> None:
        """The configuration of the encoder in the store."""
        path = self.store / ENCODER_FOLDER / CONFIG_FILE
        if path.exists() and seal_holds(path) is not True:
            content = path.read_bytes()
            if (whole := restored(content)) is not None and whole != content:
                self._keep(path)
                replace_file(path, whole)
                self._tell(path, "restored, one byte had changed")

    def _library(self) -> None:
        path, content = self.store / library_name(LATEST), library_file(LATEST)
        if not path.exists() or path.read_bytes() != content:
            self._keep(path)
            replace_file(path, content)
            self._tell(path, "restored from the package")

    def _chunks(self, arrays: LatentArrays) -> None:
        """Files of arrays of which one byte has changed."""
        for name in arrays.names:
            n_chunks = arrays.chunks_per_file(name)
            for path in sorted((self.store / ARRAYS_FOLDER / name / "c").rglob("*")):
                if not path.is_file() or not path.name.isdecimal():
                    continue
                content = path.read_bytes()
                made = restored_shard(content, n_chunks) if n_chunks else restored_chunk(content)
                if made is not None and made != content:
                    self._keep(path)
                    replace_file(path, made)
                    self._tell(path, "restored, one byte had changed")

    def _whole(self, path: Path, columns: Mapping[str, Column]) -> bool:
        """Whether a Parquet file is whole; after this, if one byte of it had changed."""
        sealed = seal_holds(path)
        if sealed is not False:
            required = [column.name for column in columns.values() if not column.nullable]
            there = " AND ".join(f"count({quoted(name)}) = count(*)" for name in required)
            try:
                rows = {"rows": relation_of(columns.values(), [path])}
                run(rows, "SELECT bit_xor(hash(rows)) FROM rows", (), all_rows)
                if run(rows, f"SELECT {there} FROM rows", (), all_rows) == [(True,)]:  # noqa: S608 (constants)
                    return True
            except ChgdbError:
                pass
        self._keep(path)
        if sealed:  # another file in its place
            return False
        if (content := restored(path.read_bytes())) is None:
            return False
        replace_file(path, content)
        self._tell(path, "restored, one byte had changed")
        return True

    # ------------------------------------------------------------------ tables

    def _parts(self) -> None:
        """Damaged parts of the table: the records whose columns are still there."""
        for path in [path for path in self.table.parts if isinstance(path, Path)]:
            if self._whole(path, COLUMNS):
                continue
            start, stop = (int(number) for number in path.name.split(".")[0].split("-"))
            ids = self._ids(start, stop)
            rows = []
            damaged = () if seal_holds(path) else readable_rows(path, COLUMNS)
            for values, absent in damaged:
                row = self._mended(values, absent, ids)
                if row is not None:
                    rows.append(row)
                    ids.pop(row["row"], None)
            self._lose_rows(start, stop, ids, {row["row"] for row in rows})
            self.table.replace_part(path, rows)
            self._tell(path, f"{len(rows)} records restored")

    def _missing_parts(self) -> None:
        """Rows of files that are missing: empty parts, so that others can follow."""
        last = self.table.next_row
        beyond = [(last, self.arrays.recorded)] if self.arrays.recorded > last else []
        for start, stop in [*self.table.gaps(), *beyond]:
            path = self.table.folder / f"{start:09d}-{stop:09d}.parquet"
            if isinstance(path, Path):
                self._lose_rows(start, stop, self._ids(start, stop), set())
                self.table.replace_part(path, [])

    def _ids(self, start: int, stop: int) -> dict[int, str]:
        """The ids that the arrays hold, by row; none where they cannot be read."""
        try:
            arrays = LatentArrays.open(self.store / ARRAYS_FOLDER)
            found = arrays.block("material_id", start, min(stop, arrays.n_rows)).tolist()
        except StoreError:
            return {}
        return {start + i: one_line(str(id_)) for i, id_ in enumerate(found) if id_}

    def _lose_rows(self, start: int, stop: int, ids: Mapping[int, str], kept: set[int]) -> None:
        for row in sorted(ids):
            self._lose(f"record {ids[row]}: all of it; add its file again")
        n = stop - start - len(ids) - len(kept)
        if n:
            what = "records without a density, or none at all: their ids are not known"
            self._lose(f"{TABLE_FOLDER}: of rows {start} to {stop - 1}, {n} {what}")

    def _mended(
        self, values: dict[str, Any], absent: set[str], ids: Mapping[int, str]
    ) -> dict[str, Any] | None:
        """A record some of whose columns cannot be read; None if it is lost."""
        row, gone = dict(values), absent - _FREE
        if "row" in gone:
            return None
        if "id" in gone:
            row["id"] = ids.get(row["row"])
            gone.discard("id")
        if row["id"] is None:
            return None
        for name in sorted(absent & _FREE):
            self._lose(f"record {row['id']}: {name}, if it was known")
        gone -= self._from_arrays(row, gone)
        if gone & {*_OF_LATENTS}:
            row |= dict.fromkeys(_OF_LATENTS)
            gone -= {*_OF_LATENTS}
            self._lose(f"record {row['id']}: the errors of its latent, if it has one")
        if gone & {*_OF_PAYLOADS} and "work_grid_a" not in gone and row["work_grid_a"] is not None:
            row |= dict.fromkeys(_OF_PAYLOADS)
            gone -= {*_OF_PAYLOADS}
            what = "its payload (its description is damaged); the latent is left"
            self._lose(f"record {row['id']}: {what}", row["id"], row["source_sha256"])
        if not gone:
            return row
        try:
            structure = None if gone & {*_OF_STRUCTURES} else structure_of(row)
        except StoreError:
            structure = None
        formula = row["formula"] or (structure.formula if structure else None)
        if formula is None:
            return None
        made = describe_material(row["id"], formula, structure)
        if gone - {*_REMADE, "added", "chgdb_version"} or gone & {*_OF_STRUCTURES}:
            if row["source"] is not None or "source" in gone:
                self._lose_density(row, "its description")
            row |= dict.fromkeys(_OF_DENSITIES)
        if gone & {*_OF_STRUCTURES}:
            row |= dict.fromkeys(_REMADE)
            self._lose(f"record {row['id']}: its structure, if it was known")
        return {**row, **{name: made.get(name) for name in gone if name in made}, **_base(made)}

    def _from_arrays(self, row: dict[str, Any], gone: set[str]) -> set[str]:
        """Fill in the columns of a density that the arrays hold, too; which these are."""
        found = set()
        with suppress(StoreError):
            arrays = LatentArrays.open(self.store / ARRAYS_FOLDER)
            for names in _IN_ARRAYS:
                if gone & {*names}:
                    array = names[0].removesuffix("_a")
                    held = arrays.block(array, row["row"], row["row"] + 1).reshape(-1).tolist()
                    row |= {name: value or None for name, value in zip(names, held, strict=True)}
                    found |= {*names}
        return found

    def _lose_density(self, row: Mapping[str, Any], what: str) -> None:
        what = f"record {row['id']}: its density ({what} is damaged)"
        self._lose(what, row["id"], row["source_sha256"])

    def _derived_parts(self) -> None:
        """Damaged features and predictions are dropped, but for features that hold their hash."""
        for name, paths in self.derived.parts.items():
            columns = feature_columns() if name == FEATURES_FOLDER else PREDICTIONS
            for path in [path for path in paths if isinstance(path, Path)]:
                if not self._whole(path, columns):
                    what = f"{name}/{path.name}: dropped; chgdb predict --all makes anew what is "
                    self._lose(f"{what}of densities, a data set brings its own")
                    path.unlink()

    # ------------------------------------------------------------------ small arrays

    def _rows(self) -> None:
        """The arrays of numbers from the table, where they cannot be read or say otherwise."""
        arrays = self.arrays
        names = ("material_id", "grid", "work_grid", "n_electrons", "payload_length")
        for name in (*names, "payload_offset"):
            step = arrays.per_file(name)
            for start in range(0, arrays.n_rows, step):
                stop = min(start + step, arrays.n_rows)
                held = self._block(name, start, stop)
                if name == "payload_offset":
                    wanted = self._offsets(start, stop) if held is None else held
                else:
                    wanted = self._expected(name, start, stop, held)
                if held is None or (wanted != held).any():
                    chunk = (0,) * (1 + name.endswith("grid"))
                    file = "/".join(map(str, (start // step, *chunk[1:])))
                    path = self.store / ARRAYS_FOLDER / name / "c" / file
                    self._keep(path)
                    if held is None:
                        path.unlink(missing_ok=True)
                    arrays.overwrite(name, start, wanted)
                    self._tell(path, "restored from the table")

    def _block(self, name: str, start: int, stop: int) -> NDArray[Any] | None:
        try:
            return self.arrays.block(name, start, stop)
        except StoreError:
            return None

    def _records(self, start: int, stop: int) -> list[dict[str, Any]]:
        return self.table.select("row >= ? AND row < ?", [start, stop]).rows()

    def _expected(
        self, name: str, start: int, stop: int, held: NDArray[Any] | None
    ) -> NDArray[Any]:
        """What an array holds of some rows by the table; of rows without a record as it is."""
        if held is None:
            shape = (stop - start, *((3,) if "grid" in name else ()))
            kinds = {"material_id": object, "n_electrons": np.float64}
            wanted = np.zeros(shape, kinds.get(name, np.int64))
            if name == "material_id":
                wanted[:] = ""
        else:
            wanted = held.astype(object) if name == "material_id" else held.copy()
        for record in self._records(start, stop):
            dense = record["work_grid_a"] is not None
            wanted[record["row"] - start] = {
                "material_id": record["id"] if dense else "",
                "grid": [record[f"grid_{axis}"] or 0 for axis in "abc"],
                "work_grid": [record[f"work_grid_{axis}"] or 0 for axis in "abc"],
                "n_electrons": record["n_electrons"] or 0.0,
                "payload_length": record["payload_bytes"] or 0,
            }[name]
        return wanted

    def _offsets(self, start: int, stop: int) -> NDArray[Any]:
        """Where payloads begin, found by their checksums: after each other, or a hole later."""
        arrays = self.arrays
        position = 0
        if start:
            (before,) = arrays.block("payload_offset", start - 1, start)
            position = int(before) + int(arrays.block("payload_length", start - 1, start)[0])
        offsets = np.zeros(stop - start, np.int64)
        records = {record["row"]: record for record in self._records(start, stop)}
        for row in range(start, stop):
            record = records.get(row)
            if record is not None and record["payload_bytes"]:
                position = self._place_of(record, position)
            offsets[row - start] = position
            position += (record["payload_bytes"] or 0) if record is not None else 0
        return offsets

    def _place_of(self, record: Mapping[str, Any], position: int) -> int:
        """The first place from a position on where the payload of a record is whole."""
        length, end = record["payload_bytes"], self.arrays.n_bytes or 0
        try:
            structure = structure_of(record)
        except StoreError:
            return position
        for first in range(position, end - length + 1, _BLOCK):
            content = self._block("payload", first, min(first + _BLOCK + length, end))
            if content is None:
                return position
            data = content.tobytes()
            place = -1
            while 0 <= (place := data.find(b"\x01", place + 1)) < _BLOCK:
                try:
                    check(data[place : place + length], structure)
                except StoreError:
                    continue
                return first + place
        return position

    # ------------------------------------------------------------------ densities

    def _densities(self) -> None:
        """Latents and payloads: what cannot be read is erased, and made anew if it can be."""
        arrays = self.arrays
        for row in self._unreadable("latent", arrays.n_rows, _LATENTS, 1):
            self._erase("latent", row, row + 1)
        for first in self._unreadable("payload", arrays.n_bytes or 0, 2**20, _BLOCK):
            self._erase("payload", first, min(first + _BLOCK, arrays.n_bytes or 0))
        self.arrays = LatentArrays.open(arrays.path, writable=True)
        for record in self._broken():
            self._rewrite(*record)
        erase_unnamed_bytes(LatentArrays.open(arrays.path, writable=True))

    def _unreadable(self, name: str, size: int, many: int, few: int) -> Iterator[int]:
        for start in range(0, size, many):
            if self._block(name, start, min(start + many, size)) is None:
                for first in range(start, min(start + many, size), few):
                    if self._block(name, first, min(first + few, size)) is None:
                        yield first

    def _erase(self, name: str, start: int, stop: int) -> None:
        """Fill what cannot be read; where the index of its shard is damaged, the whole shard."""
        index = start // self.arrays.per_file(name)
        rest = ("0",) * (4 if name == "latent" else 0)
        path = (self.store / ARRAYS_FOLDER / name / "c").joinpath(str(index), *rest)
        self._keep(path)
        try:
            self.arrays.overwrite(name, start, None, stop)
            self.arrays.block(name, start, stop)
        except StoreError:
            path.unlink()
        self._tell(path, "what could not be read is erased")

    def _broken(self) -> Iterator[tuple[dict[str, Any], NDArray[Any] | None, bytes | None]]:
        """Records with what is left of them: the stored latent, the payload."""
        named = {
            finding.where.removeprefix("record ")
            for finding in verify(self.store)
            if finding.level == "error" and finding.where.startswith("record ")
        }
        for id_ in sorted(named):
            (record,) = self.table.get([id_])
            if record["source"] is None:
                continue
            latent = payload = None
            if record["work_grid_a"] is not None:
                block = self._block("latent", record["row"], record["row"] + 1)
                inside = block is not None and block.any() and self._in_cell(block[0], record)
                latent = block[0] if inside and block is not None else None
            if record["payload_bytes"] is not None:
                payload = self._payload(record)
            lacks_latent = record["work_grid_a"] is not None and latent is None
            if lacks_latent or (record["payload_bytes"] is not None and payload is None):
                yield record, latent, payload

    def _in_cell(self, latent: NDArray[Any], record: Mapping[str, Any]) -> bool:
        if self.info.encoder.kind != "periodic":
            return True
        a, b, c = self.info.latent.extent([record[f"work_grid_{axis}"] for axis in "abc"])
        return not (latent[:, a:].any() or latent[:, :, b:].any() or latent[:, :, :, c:].any())

    def _payload(self, record: Mapping[str, Any]) -> bytes | None:
        try:
            (start,) = self.arrays.block("payload_offset", record["row"], record["row"] + 1)
            stop = int(start) + record["payload_bytes"]
            data = self.arrays.block("payload", int(start), stop).tobytes()
            structure = structure_of(record)
            check(data, structure)
        except (ChgdbError, ValueError):
            return None
        try:
            density = decode(data, structure)
        except ChgdbError:
            return data  # whole, but not for this chgdb
        return data if density.grid == tuple(record[f"grid_{axis}"] for axis in "abc") else None

    def _rewrite(
        self, record: dict[str, Any], latent: NDArray[Any] | None, payload: bytes | None
    ) -> None:
        """Replace a record by what is left of it."""
        row = dict(record)
        if latent is None and payload is not None:
            remade = self._encoded(decode(payload, structure_of(record)), record)
            if remade is None:
                return  # told by what verify finds afterwards
            latent, changes = remade
            row |= changes
            self.report.done.append(f"record {row['id']}: its latent is made from the payload")
        elif payload is None and latent is not None:
            row |= dict.fromkeys(_OF_PAYLOADS)
            what = f"record {row['id']}: its payload; the latent is left"
            self._lose(what, row["id"], row["source_sha256"])
        else:
            self._lose_density(row, "what holds it")
            row |= dict.fromkeys(_OF_DENSITIES)
        start = self.table.next_row
        self.derived.forget([row["id"]])
        arrays = LatentArrays.open(self.arrays.path, writable=True)
        arrays.write(
            start,
            [row["id"] if latent is not None else ""],
            None if latent is None else latent[None],
            [[row[f"grid_{axis}"] or 0 for axis in "abc"]],
            [[row[f"work_grid_{axis}"] or 0 for axis in "abc"]],
            [row["n_electrons"] or 0.0],
            [payload or b""],
        )
        self.table.append([row], start, replaces=True)
        arrays.record(start + 1)
        arrays.erase_rows([record["row"]])  # what it says of bytes is not to be believed

    def _encoded(
        self, density: ChargeDensity, record: Mapping[str, Any]
    ) -> tuple[NDArray[Any], dict[str, Any]] | None:
        """A latent, as it is stored, of a density from a payload; None without an encoder.

        Its NMAE against the source is at most that against the payload and that of the payload.
        """
        encoder, storage = self.info.encoder, self.info.latent
        try:
            from chgdb.codec import load_codec

            own = self.store / ENCODER_FOLDER
            folder = own if own.exists() else find_model(encoder.id, encoder.weights_sha256)
            codec = load_codec(folder, self.device)
            (made,) = codec.encode([density])
        except (ChgdbError, ModuleNotFoundError):
            return None
        packed = pack(made.values, storage.dtype, storage.scale_factor)
        values = unpack(packed, storage.dtype, storage.scale_factor)
        latent = Latent(values, made.work_grid, made.n_electrons)
        (back,) = codec.decode([latent], [density.structure], [density.grid])
        error = compare(back, density)
        return packed, {
            **{f"work_grid_{axis}": n for axis, n in zip("abc", made.work_grid, strict=True)},
            "latent_nmae": error.nmae + record["payload_nmae"],
            "latent_max_error": error.max_error + record["payload_max_error"],
            "latent_electron_error": error.electron_error + record["payload_electron_error"],
        }


def _base(made: Mapping[str, Any]) -> dict[str, Any]:
    """What of a described material is not of its structure."""
    names: Sequence[str] = ("formula", "reduced_formula", "chemsys", "elements", "n_elements")
    return {name: made[name] for name in names}

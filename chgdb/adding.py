"""How density files become records: conflicts, encoding, batches that are committed as they fill.

`Adder` takes whatever gives it densities: files that this process or others have read
(`intake.take_in_all`), files that workers of a cluster have encoded (`encoded_by`), or anything
else that makes an `Intake`, such as a network that predicts densities.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from chgdb.charge3net import SOURCE
from chgdb.errors import ChgdbError, InputError, StoreError
from chgdb.export import known_properties
from chgdb.files import reason, shown
from chgdb.intake import (
    Encoded,
    Finish,
    Intake,
    Known,
    Result,
    find_jobs,
    take_in_jobs,
    tasks_of,
)
from chgdb.metrics import compare
from chgdb.parquet import any_of
from chgdb.resources import find_model
from chgdb.rows import describe_intake, describe_payload, is_same_material

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from chgdb.archive import Tolerance
    from chgdb.arrays import Part
    from chgdb.cluster import Cluster
    from chgdb.codec import Codec
    from chgdb.schema import LatentStorage
    from chgdb.structure_files import StructureEntry
    from chgdb.table import Table

__all__ = [
    "AddReport",
    "Adder",
    "Bulk",
    "Encoder",
    "Kept",
    "OnConflict",
    "encode",
    "encode_or_report",
    "encoded_by",
    "write_kept",
    "written",
]

OnConflict = Literal["error", "skip", "replace"]
"""What `add` does with a file whose id is taken by a record of another file."""

BATCH = 128
"""Densities that are encoded and committed together, at most."""

BATCH_POINTS = 2**23
"""Grid points beyond which a batch is complete, such as four of 128^3: bounds the memory."""

PATIENCE = 15.0
"""Seconds that an encoded density waits for others to be committed with."""

_Read = tuple[Path, Result]
_T = TypeVar("_T", bound=Intake | Encoded)


class Bulk(NamedTuple):
    """What of a density goes into the arrays: the latent, packed as it is stored, the payload."""

    latent: NDArray[np.generic]
    payload: bytes


class Kept(NamedTuple):
    """A `Bulk` that a worker keeps: the future of its list, its place there, what it must be."""

    future: Any
    position: int
    payload_bytes: int
    checksum: int


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


class Adder:
    """Stores densities as they come, in batches.

    Args:
        table: the records of the store.
        writing: holds the lock of the store's one writer, or raises a StoreError.
        commit: stores rows with the `Bulk` (or `Kept`) of each; records of the same ids are
            superseded. Called with the lock held, and with what confirms that it still is.
        encode: encodes densities that come without being encoded.
        tolerance: the largest error of the payloads.
        on_conflict: as of `Database.add`.
        properties: reference properties by material id.
        named: the files were given ids by the user, so that one file may come twice.
    """

    def __init__(
        self,
        table: Table,
        writing: Callable[[], AbstractContextManager[Callable[[], None]]],
        commit: Callable[[Sequence[Mapping[str, Any]], Sequence[Any], Callable[[], None]], None],
        encode: Finish,
        *,
        tolerance: Tolerance,
        on_conflict: OnConflict,
        properties: Mapping[str, Mapping[str, Any]],
        named: bool,
    ) -> None:
        self.report = AddReport()
        self._table = table
        self._writing = writing
        self._commit = commit
        self._encode = encode
        self._tolerance = tolerance
        self._on_conflict = on_conflict
        self._properties = properties
        self._named = named
        self._met = _Met(named=named, on_conflict=on_conflict)
        self._stored: dict[str, Mapping[str, Any]] = {}

    def known(self, hashes: Sequence[str]) -> dict[str, str]:
        """The ids of the files that need not be read again, by their SHA-256."""
        found = self._table.select(any_of("source_sha256", hashes), hashes, columns=_STORED_COLUMNS)
        self._stored.update((row["id"], row) for row in found)
        return {
            row["source_sha256"]: row["id"]
            for row in found
            if self._on_conflict != "replace" or _holds(row, self._tolerance)
        }

    def unneeded(self, path: Path, entry: StructureEntry) -> Known | None:
        """Why the density of a structure need not be predicted, if that is so."""
        id_ = self.known([entry.sha256]).get(entry.sha256)
        if id_ is not None and (id_ == entry.id or not self._named):
            return Known(id_, path)
        found = self._table.select(any_of("id", [entry.id]), [entry.id], columns=_STORED_COLUMNS)
        row = next(iter(found), None)
        if row is not None and _is_better(row, SOURCE, entry.structure.formula):
            return Known(entry.id, path, _better(row))
        return None

    def add(self, results: Iterable[_Read], progress: Callable[[int], None]) -> AddReport:
        """Store what comes, and tell what became of each.

        Args:
            results: each file with what became of it: an `Intake`, or an `Encoded` one, is stored;
                a `Known` one is stored already (`known` has been asked of it); an error is
                reported.
            progress: called with the number of files done.

        Raises:
            StoreError: the store cannot be written.
        """
        batch: list[Intake | Encoded] = []
        since = 0.0
        for path, result in results:
            if isinstance(result, Known) and result.why:
                self.report.skipped.append((path, result.why))
            elif isinstance(result, Known):
                row = self._stored[result.id]
                _tell_stored(path, row, self._tolerance, self._on_conflict, self.report)
            elif isinstance(result, ChgdbError):
                self.report.failed.append((path, str(result)))
            elif self._met.is_new(result, self.report):
                since = since if batch else time.monotonic()
                batch.append(result)
            if batch and (_is_full(batch) or time.monotonic() - since > PATIENCE):
                self._store(batch)
                batch = []
            progress(len(self.report))
        self._store(batch)
        progress(len(self.report))
        return self.report

    def _store(self, batch: Sequence[Intake | Encoded]) -> None:
        """Encode and commit what does not conflict."""
        encoded = self._encoded(self._without_conflicts(batch))
        if not encoded:
            return
        with self._writing() as confirm:
            # Another process may have added the same id while this one was encoding.
            free = self._without_conflicts(encoded)
            known = self._known_properties(free)
            rows = [
                {**item.row, **known.get(item.id, {}), **self._properties.get(item.id, {})}
                for item in free
            ]
            if rows:
                self._commit(rows, [item.bulk for item in free], confirm)
        self.report.added += rows

    def _encoded(self, chosen: Sequence[Intake | Encoded]) -> list[Encoded]:
        """All of them encoded, in their order, less those that cannot be."""
        intakes = [item for item in chosen if isinstance(item, Intake)]
        if not intakes:
            return [item for item in chosen if isinstance(item, Encoded)]
        results = self._encode(intakes)
        made = dict(zip((intake.id for intake in intakes), results, strict=True))
        encoded = []
        for item in chosen:
            result = made.get(item.id, item)
            if isinstance(result, Encoded):
                encoded.append(result)
            else:
                self.report.failed.append((item.path, str(result)))
        return encoded

    def _without_conflicts(self, items: Sequence[_T]) -> list[_T]:
        """The densities whose ids are free, or to be replaced."""
        report, on_conflict, tolerance = self.report, self._on_conflict, self._tolerance
        ids = [item.id for item in items]
        found = self._table.select(any_of("id", ids), ids, columns=_STORED_COLUMNS)
        taken = {row["id"]: row for row in found}
        free = []
        for item in items:
            path, row = item.path, taken.get(item.id)
            same = row is not None and row["source_sha256"] == item.sha256
            if row is not None and _is_better(row, item.source, item.formula):
                report.skipped.append((path, _better(row)))
            elif (
                row is None
                or _gives_way(row, item)
                or (
                    on_conflict == "replace"
                    and not (same and _holds(row, tolerance))
                    and (item.source == "dft" or row["source"] != "dft")
                )
            ):
                free.append(item)
            elif same:
                _tell_stored(path, row, tolerance, on_conflict, report)
            elif on_conflict == "skip":
                report.skipped.append((path, f"id {item.id} is taken"))
            else:
                report.failed.append((path, f"{shown(path)}: {_taken(row, item)}"))
        return free

    def _known_properties(self, items: Sequence[Encoded]) -> dict[str, dict[str, Any]]:
        """By id, the properties of records that are about to get another density."""
        by_id = {item.id: item for item in items}
        found = self._table.select(any_of("id", list(by_id)), list(by_id))
        return {
            row["id"]: known_properties(row)
            for row in found
            if row["source_sha256"] == by_id[row["id"]].sha256 or _gives_way(row, by_id[row["id"]])
        }


class _Met:
    """The files of one call of `add`, so that none is stored twice and no id given twice."""

    def __init__(self, *, named: bool, on_conflict: OnConflict) -> None:
        self._named = named
        self._on_conflict = on_conflict
        self._by_sha256: dict[str, Path] = {}
        self._by_id: dict[str, Path] = {}

    def is_new(self, item: Intake | Encoded, report: AddReport) -> bool:
        """Whether to go on with a file; if not, the report says why."""
        path = item.path
        first = self._by_sha256.setdefault(item.sha256, path)
        if first != path and not self._named:
            report.skipped.append((path, f"the same content as {shown(first)}"))
            return False
        first = self._by_id.setdefault(item.id, path)
        if first == path:
            return True
        why = f"id {item.id} is also that of {shown(first)}"
        if self._on_conflict == "skip":
            report.skipped.append((path, why))
        else:
            report.failed.append((path, f"{shown(path)}: {why}; give --id for each file"))
        return False


def _is_full(batch: Sequence[Intake | Encoded]) -> bool:
    """Whether a batch has the most densities, or the most that the memory bears."""
    points = sum(math.prod(item.density.grid) for item in batch if isinstance(item, Intake))
    return len(batch) >= BATCH or points >= BATCH_POINTS


# ---------------------------------------------------------------------- encoding


def encode(codec: Codec, intakes: Sequence[Intake], storage: LatentStorage) -> list[Encoded]:
    """Rows and latents of densities; the errors in the rows are those of the stored bytes.

    Args:
        codec: the encoder.
        intakes: what to encode.
        storage: how the store keeps latents.

    Raises:
        ChgdbError: one of them cannot be encoded.
        RuntimeError: the network failed, for lack of memory perhaps.
    """
    from chgdb.arrays import pack, unpack

    densities = [intake.density for intake in intakes]
    made = codec.encode(densities)
    how = (storage.dtype, storage.scale_factor)
    packed = [pack(latent.values, *how) for latent in made]
    latents = [
        replace(latent, values=unpack(values, *how))
        for latent, values in zip(made, packed, strict=True)
    ]
    structures = [density.structure for density in densities]
    decoded = codec.decode(latents, structures, [density.grid for density in densities])
    encoded = []
    for intake, latent, values, back in zip(intakes, latents, packed, decoded, strict=True):
        error = compare(back, intake.density)
        row = {
            **describe_intake(intake),
            "work_grid_a": latent.work_grid[0],
            "work_grid_b": latent.work_grid[1],
            "work_grid_c": latent.work_grid[2],
            "latent_nmae": error.nmae,
            "latent_max_error": error.max_error,
            "latent_electron_error": error.electron_error,
            "latent_coarse": codec.is_coarse(intake.density.structure.lattice),
            **describe_payload(intake.payload),
        }
        bulk = Bulk(values, intake.payload.data if intake.payload else b"")
        encoded.append(
            Encoded(intake.id, intake.path, intake.sha256, intake.formula, intake.source, row, bulk)
        )
    return encoded


def encode_or_report(
    codec: Codec, intakes: Sequence[Intake], storage: LatentStorage
) -> list[Encoded | ChgdbError]:
    """Encode together; if that fails, in halves, so that a bad density stops no other."""
    try:
        return list(encode(codec, intakes, storage))
    except (ChgdbError, MemoryError, RuntimeError) as error:  # torch raises RuntimeError
        if len(intakes) == 1:
            what = f"{shown(intakes[0].path)}: cannot be encoded: {reason(error)}"
            return [InputError(what)]
    half = len(intakes) // 2
    parts = (intakes[:half], intakes[half:])
    return [item for part in parts for item in encode_or_report(codec, part, storage)]


@dataclass(frozen=True)
class Encoder:
    """`encode_or_report` for a process that has no codec yet; it is loaded once in each.

    Attributes:
        id: of the encoder.
        weights_sha256: hash of its weights.
        folder: where it is; None to look for it.
        storage: how the store keeps latents.
        device: where it runs.
        threads: of each process.
        refine_steps: as of `Database.add`.
    """

    id: str
    weights_sha256: str
    folder: Path | None
    storage: LatentStorage
    device: str = "auto"
    threads: int = 1
    refine_steps: int | None = None

    def __call__(self, intakes: Sequence[Intake]) -> list[Encoded | ChgdbError]:
        return encode_or_report(self.codec, intakes, self.storage)

    @property
    def codec(self) -> Codec:
        """The codec of this process.

        Raises:
            ModelError: the encoder is not found.
        """
        return _codec(self)


@lru_cache(maxsize=1)
def _codec(encoder: Encoder) -> Codec:
    import torch

    from chgdb.codec import load_codec

    torch.set_num_threads(encoder.threads)
    folder = encoder.folder or find_model(encoder.id, encoder.weights_sha256)
    codec = load_codec(folder, encoder.device)
    return codec.refining(encoder.refine_steps)


# ---------------------------------------------------------------------- on a cluster


def encoded_by(
    cluster: Cluster,
    paths: Sequence[Path],
    *,
    ids: Sequence[str] | None,
    species: Sequence[str] | None,
    known: Callable[[Sequence[str]], Mapping[str, str]],
    encode: Callable[[Any], Any],
    finish: Encoder,
) -> Iterator[_Read]:
    """What the workers of a cluster make of files, in any order.

    A worker keeps the latents and payloads of the files it read until they are written, and tells
    the rest. What a worker kept that died is made again by another.

    Args:
        cluster: the workers.
        paths: density files, as the workers see them.
        ids: as of `intake.take_in_all`, like `species`, `known`, `encode` and `finish`.
        species: element symbols for CHGCARs that do not name them.
        known: says which files are stored.
        encode: makes the payload of a density.
        finish: encodes.
    """
    work = partial(take_in_jobs, species=species, encode=encode, finish=finish)
    tasks = tasks_of(find_jobs(paths, ids, known), len(paths), cluster.threads)
    for task, future, told in cluster.kept(work, _told, tasks):
        if isinstance(told, ChgdbError):
            yield from ((job.path, InputError(f"{shown(job.path)}: {told}")) for job in task)
            continue
        for index, (job, result) in enumerate(zip(task, told, strict=True)):
            if isinstance(result, Encoded):
                kept = Kept(future, index, *result.bulk)
                yield job.path, replace(result, bulk=kept)
            else:
                yield job.path, result


def _told(results: Sequence[Result]) -> list[Result]:
    """What a worker tells of the files it took in: of a bulk only the bytes and the checksum."""
    return [
        replace(result, bulk=(len(result.bulk.payload), _checksum(result.bulk)))
        if isinstance(result, Encoded)
        else result
        for result in results
    ]


def _checksum(bulk: Bulk) -> int:
    return zlib.crc32(bulk.payload, zlib.crc32(bulk.latent.tobytes()))


def written(cluster: Cluster, arrays: Path, parts: Sequence[Part], kept: Sequence[Kept]) -> None:
    """Let workers write what they keep, each part by one of them.

    Args:
        cluster: the workers.
        arrays: the group in the store.
        parts: where, as reserved for these rows.
        kept: of each row.

    Raises:
        StoreError: as `write_kept`.
    """

    def calls() -> Iterator[tuple[Any, ...]]:
        for part in parts:
            mine = kept[part.start - parts[0].start : part.stop - parts[0].start]
            futures = {one.future.key: one.future for one in mine}
            place = {key: which for which, key in enumerate(futures)}
            items = [(place[one.future.key], one.position, one.checksum) for one in mine]
            yield arrays, part, items, *futures.values()

    cluster.run(write_kept, calls())


def write_kept(
    arrays: Path, part: Part, items: Sequence[tuple[int, int, int]], *kept: Sequence[Encoded]
) -> None:
    """Write latents and payloads that workers kept; runs on one of them.

    Args:
        arrays: the group in the store.
        part: where in it; no other worker writes there.
        items: of each row, which of `kept` it is in, its place there, and its checksum.
        *kept: what workers made of files.

    Raises:
        StoreError: the arrays cannot be written, or a density came out differently when it was
            made again, since a worker had died.
    """
    from chgdb.arrays import write_part

    bulks = [kept[which][index].bulk for which, index, _ in items]
    for bulk, (which, index, checksum) in zip(bulks, items, strict=True):
        if _checksum(bulk) != checksum:
            raise StoreError(
                f"{kept[which][index].path}: encoded again after a worker had died, it came out "
                "otherwise; repeat the command"
            )
    write_part(arrays, part, [bulk.latent for bulk in bulks], [bulk.payload for bulk in bulks])


# ---------------------------------------------------------------------- what is stored

_STORED_COLUMNS = (
    "id",
    "formula",
    "reduced_formula",
    "source",
    "source_sha256",
    "n_electrons",
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


def _gives_way(row: Mapping[str, Any], item: Intake | Encoded) -> bool:
    """Whether a record has no density of its own, or a predicted one, and the file is of it.

    A latent that came without its density gives way to one from DFT.
    """
    own = row["source"] == "dft" and row["n_electrons"] is not None
    better = row["source"] is None or (not own and item.source == "dft")
    return better and is_same_material(row, item.formula)


def _is_better(row: Mapping[str, Any], source: str, formula: str) -> bool:
    """Whether a record has a density from DFT, which a predicted one of it never replaces."""
    return row["source"] == "dft" and source != "dft" and is_same_material(row, formula)


def _better(row: Mapping[str, Any]) -> str:
    return f"{row['id']} has a density from DFT, which a predicted one does not replace"


def _taken(row: Mapping[str, Any], item: Intake | Encoded) -> str:
    """Why a file cannot become the record of its id."""
    what = "of another file"
    if not is_same_material(row, item.formula):
        what = f"of {row['formula']}, and this file of {item.formula}"
    return f"id {item.id} is taken by a record {what}; give --id, or --on-conflict skip or replace"


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

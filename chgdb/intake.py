"""What is known of a file before an encoder sees it; parsing and archiving in parallel."""

from __future__ import annotations

import csv
import io
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chgdb.density import ChargeDensity
from chgdb.errors import ChgdbError, InputError
from chgdb.files import LARGEST_TABLE, read_content, reason, shown
from chgdb.formats import default_id, file_sha256, read_density
from chgdb.schema import PROPERTIES, check_id
from chgdb.symmetry import Symmetry, find_symmetry

if TYPE_CHECKING:
    from chgdb.archive import Payload

__all__ = [
    "Encode",
    "Encoded",
    "FindKnown",
    "Finish",
    "Intake",
    "Job",
    "Known",
    "Result",
    "find_jobs",
    "read_materials",
    "read_properties",
    "take_in",
    "take_in_all",
    "take_in_jobs",
    "tasks_of",
    "worthwhile_processes",
]

_SECONDS_READING = (0.005, 1.5e-8)
_SECONDS_ENCODING = (0.5, 1e-7)
"""Per file and per byte of it, what one process takes to read a file, and to encode it too."""

_WORTHWHILE_SECONDS = 5.0
"""Of work; below it, starting more processes (3 s with torch) saves nothing worth their memory."""

_BYTES_AHEAD = 2**29
_FILES_AHEAD = 32
"""That are read before they are asked for."""

_FILES_PER_TASK = 8
_BYTES_PER_TASK = 2**23
"""That one process takes in together, at most: what it encodes together costs less."""

_LOOKED_UP = 256
"""Files about which a store is asked together."""

_PROPERTIES = {column.name: column.type for column in PROPERTIES}


@dataclass(frozen=True, eq=False)
class Intake:
    """A density file, read and described.

    Attributes:
        id: the material id it gets.
        path: where it was read.
        format: "chgcar" or "npz"; of a predicted density the network and its weights.
        sha256: of the file, or of the entry of a list of structures.
        density: what it holds.
        symmetry: of the structure.
        payload: of the density; None if none was asked for.
        source: where the density comes from, one of `chgdb.schema.SOURCES`.
        source_nmae: of a predicted density, the NMAE to expect against DFT, in %.
    """

    id: str
    path: Path
    format: str
    sha256: str
    density: ChargeDensity
    symmetry: Symmetry | None
    payload: Payload | None = None
    source: str = "dft"
    source_nmae: float | None = None

    @property
    def formula(self) -> str:
        """Of the structure, as it stands there."""
        return self.density.structure.formula


@dataclass(frozen=True, eq=False)
class Encoded:
    """A density that is ready to be stored.

    Attributes:
        id: as of `Intake`, like `path`, `sha256`, `formula` and `source`.
        path: where it was read.
        sha256: of the file.
        formula: of the structure, as it stands there.
        source: where the density comes from.
        row: of the table.
        bulk: the packed latent and the payload; or, if a worker of a cluster keeps them, where.
    """

    id: str
    path: Path
    sha256: str
    formula: str
    source: str
    row: dict[str, Any]
    bulk: Any


@dataclass(frozen=True)
class Known:
    """A file that the store holds already, under this id, or does not need.

    Attributes:
        id: of the record.
        path: of the file.
        why: the file is not needed; "" if it is stored.
    """

    id: str
    path: Path
    why: str = ""


Result = Intake | Encoded | Known | ChgdbError

Finish = Callable[[Sequence[Intake]], Sequence[Encoded | ChgdbError]]
"""Encodes densities where they were read; an object that processes can be sent."""

FindKnown = Callable[[Sequence[str]], Mapping[str, str]]
"""Gives the ids of the files that are stored already, by SHA-256, of those asked for."""

Encode = Callable[[ChargeDensity], "Payload"]
"""What makes a payload of a density; a function of a module, so that processes can be sent it."""


def take_in(
    path: Path,
    *,
    material_id: str | None = None,
    species: Sequence[str] | None = None,
    sha256: str | None = None,
    encode: Encode | None = None,
) -> Intake:
    """Read one file.

    Args:
        path: a density file.
        material_id: the id to give it; by default one is made from the name of the file.
        species: element symbols for a CHGCAR that does not name them.
        sha256: of the file, if it is known.
        encode: makes the payload of the density.

    Raises:
        ChgdbError: it cannot be read or encoded.
    """
    sha256 = sha256 or file_sha256(path)
    density, file_format = read_density(path, species=species)
    identity = check_id(
        material_id if material_id is not None else default_id(path, density.structure)
    )
    symmetry = find_symmetry(density.structure)
    try:
        payload = encode(density) if encode else None
    except ChgdbError as error:
        raise InputError(f"{shown(path)}: cannot be encoded: {error}") from error
    return Intake(identity, path, file_format, sha256, density, symmetry, payload)


def take_in_all(
    paths: Sequence[Path],
    *,
    ids: Sequence[str] | None = None,
    species: Sequence[str] | None = None,
    known: FindKnown | None = None,
    encode: Encode | None = None,
    finish: Finish | None = None,
    processes: int | None = 1,
) -> Iterator[tuple[Path, Result]]:
    """Read files in their order, a few ahead of the consumer; a bad one becomes its error.

    Args:
        paths: density files.
        ids: one id per file; by default made from the names of the files.
        species: element symbols for CHGCARs that do not name them.
        known: says which files are stored, and are not parsed again.
        encode: makes the payload of a density.
        finish: encodes in the processes that read, where there are several; without it, or in one
            process, densities are given as they were read.
        processes: that read; None for as many as pay for their start.

    Raises:
        InputError: a process was killed.
    """
    jobs = find_jobs(paths, ids, known)
    if processes is None:
        processes = worthwhile_processes(paths, encoding=encode is not None)
    if processes == 1:
        for job in jobs:
            yield job.path, job.stored or _attempt(job, species, encode)
        return
    context = multiprocessing.get_context("spawn")
    sent = (species, encode, finish)
    with ProcessPoolExecutor(processes, context, _start_worker, sent) as pool:
        running: deque[tuple[list[Job], Future[list[Result]]]] = deque()
        try:
            tasks = tasks_of(jobs, len(paths), processes)
            while True:
                while (
                    _files(running) < _FILES_AHEAD * processes and _bytes(running) <= _BYTES_AHEAD
                ):
                    following = next(tasks, None)
                    if following is None:
                        break
                    running.append((following, pool.submit(_work, following)))
                if not running:
                    return
                oldest, future = running.popleft()
                for job, result in zip(oldest, future.result(), strict=True):
                    yield job.path, result
        except BrokenProcessPool as error:
            raise InputError(
                f"{oldest[0].path}: a process that read this file or the next ones was killed, "
                "perhaps for lack of memory; try --processes 1"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def take_in_jobs(
    jobs: Sequence[Job],
    species: Sequence[str] | None = None,
    encode: Encode | None = None,
    finish: Finish | None = None,
) -> list[Result]:
    """Read some files, and encode them together; what goes wrong with one is its result.

    Args:
        jobs: the files.
        species: as of `take_in_all`, like the others.
        encode: makes the payload of a density.
        finish: encodes; without it densities are given as they were read.
    """
    results: list[Result] = [job.stored or _attempt(job, species, encode) for job in jobs]
    read = [i for i, result in enumerate(results) if isinstance(result, Intake)]
    if finish and read:
        finished = finish([result for result in results if isinstance(result, Intake)])
        for i, result in zip(read, finished, strict=True):
            results[i] = result
    return results


def _files(running: Iterable[tuple[Sequence[Job], object]]) -> int:
    return sum(len(jobs) for jobs, _ in running)


def _bytes(running: Iterable[tuple[Sequence[Job], object]]) -> int:
    return sum(job.size for jobs, _ in running for job in jobs)


@dataclass(frozen=True)
class Job:
    """A file to read: the id it is given, its hash if it could be read, what is stored of it."""

    path: Path
    material_id: str | None
    sha256: str | None
    stored: Known | None

    @property
    def size(self) -> int:
        """Bytes that it takes while it is read."""
        return 0 if self.stored else _size(self.path)


def find_jobs(
    paths: Sequence[Path], ids: Sequence[str] | None, known: FindKnown | None
) -> Iterator[Job]:
    """The files in their order; many are looked up together."""
    for start in range(0, len(paths), _LOOKED_UP):
        part = paths[start : start + _LOOKED_UP]
        hashes = [_hash(path) if known else None for path in part]
        asked = list(dict.fromkeys(sha256 for sha256 in hashes if sha256))
        stored = known(asked) if known and asked else {}
        for i, (path, sha256) in enumerate(zip(part, hashes, strict=True), start):
            material_id = ids[i] if ids else None
            found = stored.get(sha256 or "")
            same = found is not None and material_id in (None, found)
            yield Job(path, material_id, sha256, Known(found, path) if found and same else None)


def tasks_of(jobs: Iterable[Job], files: int, processes: int) -> Iterator[list[Job]]:
    """Files in groups that one process takes in together.

    Every process gets several groups; a large file ends its group, so that none waits for several.

    Args:
        jobs: the files.
        files: how many they are.
        processes: that take them in.
    """
    most = max(1, min(_FILES_PER_TASK, files // (4 * processes)))
    task: list[Job] = []
    for job in jobs:
        task.append(job)
        if len(task) == most or sum(one.size for one in task) >= _BYTES_PER_TASK:
            yield task
            task = []
    if task:
        yield task


def _hash(path: Path) -> str | None:
    """The SHA-256 of a file; None where reading it will tell what is wrong."""
    try:
        return file_sha256(path)
    except ChgdbError:
        return None


def worthwhile_processes(paths: Sequence[Path], *, encoding: bool) -> int:
    """As many processes as there are cores, or 1 where one is done before the others start."""
    per_file, per_byte = _SECONDS_ENCODING if encoding else _SECONDS_READING
    seconds = sum(per_file + _size(path) * per_byte for path in paths)
    return (os.cpu_count() or 1) if seconds > _WORTHWHILE_SECONDS else 1


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


_sent_to_worker: tuple[Sequence[str] | None, Encode | None, Finish | None] = (None, None, None)
"""The species and what encodes, in a process that reads: sent once, not with every file."""


def _start_worker(
    species: Sequence[str] | None, encode: Encode | None, finish: Finish | None
) -> None:
    global _sent_to_worker
    _sent_to_worker = species, encode, finish
    # Ctrl-C reaches every process of a terminal; only the main one answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _work(jobs: Sequence[Job]) -> list[Result]:
    return take_in_jobs(jobs, *_sent_to_worker)


def _attempt(job: Job, species: Sequence[str] | None, encode: Encode | None) -> Intake | ChgdbError:
    """`take_in`, with what goes wrong as a value that travels between processes."""
    try:
        return take_in(
            job.path,
            material_id=job.material_id,
            species=species,
            sha256=job.sha256,
            encode=encode,
        )
    except ChgdbError as error:
        return InputError(str(error))
    except MemoryError:
        return InputError(f"{shown(job.path)}: not enough memory for it")
    except Exception as error:  # noqa: BLE001 (a defect that one file meets stops no other file)
        return InputError(f"{shown(job.path)}: unexpected {type(error).__name__}: {reason(error)}")


def read_properties(path: str | Path) -> dict[str, dict[str, Any]]:
    """Properties by material id, from a table as of `read_materials`, the formulas left out.

    Raises:
        InputError: as `read_materials`.
    """
    materials = read_materials(path)
    for row in materials.values():
        row.pop("formula", None)
    return materials


def read_materials(path: str | Path) -> dict[str, dict[str, Any]]:
    """Formula and properties by material id, from a CSV file, units as in the schema.

    The column `material_id` or `id` names the material; empty cells and "nan" are left out. The
    file may be compressed.

    Raises:
        InputError: the file cannot be read, or has no id or an unknown column, names a material
            twice, or holds a value that is none.
    """
    content = read_content(path, LARGEST_TABLE)
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        key, names = _property_columns(reader.fieldnames or [])
        table: dict[str, dict[str, Any]] = {}
        for row in reader:
            try:
                material_id = check_id(row[key] or "")
                if material_id in table:
                    raise InputError(f"{material_id} is there twice")
                table[material_id] = _properties(row, names)
                if formula := (row.get("formula") or "").strip():
                    table[material_id]["formula"] = formula
            except InputError as error:
                raise InputError(f"line {reader.line_num}: {error}") from error
        return table
    except InputError as error:
        raise InputError(f"{shown(path)}: {error}") from error
    except (csv.Error, ValueError) as error:
        raise InputError(
            f"{shown(path)}: not a readable table of properties ({reason(error)})"
        ) from error


def _property_columns(columns: Sequence[str]) -> tuple[str, list[str]]:
    """The column of the ids and those of the properties."""
    key = next((name for name in ("material_id", "id") if name in columns), None)
    if key is None:
        raise InputError("a table of properties needs a column material_id")
    names = [name for name in columns if name not in (key, "formula")]
    for name in names:
        if name not in _PROPERTIES:
            near = get_close_matches(name.lower(), _PROPERTIES, n=1)
            hint = f"did you mean {near[0]}?" if near else "docs/format.md lists them"
            raise InputError(f"unknown property {name!r}; {hint}")
    return key, names


def _properties(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values of a row that are there."""
    if None in row or None in row.values():
        raise InputError("another number of columns than in the first line")
    values = {name: _value(name, row[name].strip()) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _value(name: str, text: str) -> str | float | bool | None:
    if text.lower() in ("", "nan"):
        return None
    kind = _PROPERTIES[name]
    if kind == "text":
        return text
    if kind == "boolean":
        words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
        if text.lower() not in words:
            raise InputError(f"{name} is {text!r}, neither true nor false")
        return words[text.lower()]
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{name} is {text!r}, not a finite number")
    return number

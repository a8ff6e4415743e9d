"""Parquet files as DuckDB reads and fastparquet writes them; nothing of what they mean.

Readers take no lock. They get one consistent state of files that a writer may be adding, replacing
by a rename, or deleting: a query is repeated until its files were the same before and after it.
"""

from __future__ import annotations

import io
import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb

from chgdb.errors import QueryError, StoreError
from chgdb.files import brief, reason, replacing
from chgdb.places import Place, RemotePath
from chgdb.schema import Column, ColumnType
from chgdb.seals import NO_SUMS, UNSEALED, damaged_blocks, seal, seal_holds

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ROW_GROUP",
    "SQL_TYPES",
    "Relation",
    "all_rows",
    "any_of",
    "check_whole",
    "copy_rows",
    "file_metadata",
    "files_of",
    "frame_of",
    "literal",
    "metadata_of",
    "has_sums",
    "near_query",
    "plain_value",
    "quoted",
    "read",
    "readable_rows",
    "relation_of",
    "run",
    "write_frame",
]

T = TypeVar("T")

SQL_TYPES = {"text": "VARCHAR", "integer": "BIGINT", "real": "DOUBLE", "boolean": "BOOLEAN"}
"""What DuckDB calls the types of columns."""

_FRAME_TYPES = {"text": "str", "integer": "Int64", "real": "float64", "boolean": "boolean"}

ROW_GROUP = 4096
"""Rows that a reader of a joined file reads together."""

_ATTEMPTS = 10
"""How often a query is repeated because a writer changed the files under it."""


@dataclass(frozen=True)
class Relation:
    """A SELECT over some files, or over relations that stand before it in a query.

    Attributes:
        sql: the SELECT; made of constants and of quoted names and paths.
        paths: the files it reads.
    """

    sql: str
    paths: tuple[Place, ...] = ()


# ---------------------------------------------------------------------- reading


def any_of(column: str, values: Sequence[Any]) -> str:
    """SQL of whether a column is one of some values, given as parameters.

    DuckDB leaves out the row groups that can hold none of them, as it does not for a list.
    """
    return f"{quoted(column)} IN ({', '.join('?' * len(values))})" if values else "false"


def near_query(relation: str, tie: str) -> str:
    """SQL of the ids in a relation most like a text; its parameters: the text twice, how many.

    Args:
        relation: its name.
        tie: column that orders what is equally near.
    """
    return (
        f"SELECT id FROM {relation} WHERE jaro_winkler_similarity(id, ?) > 0.8 "  # noqa: S608 (constants)
        f"ORDER BY jaro_winkler_similarity(id, ?) DESC, {tie} LIMIT ?"
    )


def quoted(name: str) -> str:
    """A name of a column in SQL."""
    return f'"{name}"'


def literal(value: str) -> str:
    """A text in SQL."""
    return "'" + value.replace("'", "''") + "'"


def files_of(paths: Sequence[Place], options: str = "") -> str:
    """SQL of all rows of some files, columns matched by name.

    A folder on their way that is called `id=x` is no column, as DuckDB would take it.
    """
    files = ", ".join(literal(str(path)) for path in paths)
    return f"read_parquet([{files}], union_by_name = true, hive_partitioning = false{options})"


def relation_of(
    columns: Iterable[Column], paths: Sequence[Place], options: str = "", keep: Sequence[str] = ()
) -> Relation:
    """The rows of some files: every column with its type, absent ones null, others left out.

    Args:
        columns: what the relation has.
        paths: the files; there may be none.
        options: more of `read_parquet`, such as ", filename = true".
        keep: names of columns that the options add.
    """
    known = list(columns)
    typed = [f"NULL::{SQL_TYPES[c.type]} AS {quoted(c.name)}" for c in known]
    typed += [f"NULL::VARCHAR AS {quoted(name)}" for name in keep]
    sql = f"SELECT {', '.join(typed)} WHERE false"
    if paths:
        sql += f" UNION ALL BY NAME SELECT * FROM {files_of(paths, options)}"  # noqa: S608 (quoted)
    names = ", ".join(quoted(name) for name in (*(c.name for c in known), *keep))
    return Relation(f"SELECT {names} FROM ({sql})", tuple(paths))  # noqa: S608 (constant)


def all_rows(connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    """The answer as plain tuples."""
    return connection.fetchall()


def read(
    relations: Callable[[], Mapping[str, Relation]],
    query: str,
    parameters: Sequence[Any],
    fetch: Callable[[duckdb.DuckDBPyConnection], T],
    where: Place,
) -> T:
    """Run a query over one consistent state of the files.

    Args:
        relations: makes those that the query names, each from the ones before it; it is called
            again when the files changed.
        query: one SELECT.
        parameters: one value for each `?`.
        fetch: takes the answer from the connection, such as `all_rows`.
        where: for messages.

    Raises:
        QueryError: DuckDB cannot evaluate the query.
        StoreError: a file is missing or damaged.
    """
    for _ in range(_ATTEMPTS):
        known = relations()
        before = _state(known)
        try:
            answer = run(known, query, parameters, fetch)
        except StoreError:
            if _state(relations()) == before:
                raise
            continue
        if _state(relations()) == before:
            return answer
    raise StoreError(f"{where}: the table keeps changing; try again")


def run(
    relations: Mapping[str, Relation],
    query: str,
    parameters: Sequence[Any],
    fetch: Callable[[duckdb.DuckDBPyConnection], T],
) -> T:
    """Run one SELECT over files that do not change meanwhile.

    Raises:
        QueryError: DuckDB cannot evaluate it.
        StoreError: a file is missing or damaged.
    """
    for value in parameters:
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise QueryError(f"{brief(value)} is not valid Unicode text")
    statement, paths = _over(relations, query)
    check_whole(paths)
    with _connected(paths) as connection:
        try:
            statements = connection.extract_statements(statement)
            if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
                raise QueryError("a condition is one expression")
            return fetch(connection.execute(statements[0], list(parameters)))
        except (
            duckdb.BinderException,
            duckdb.ConversionException,
            duckdb.OutOfRangeException,
            duckdb.ParserException,
        ) as error:
            raise QueryError(f"the condition cannot be evaluated: {reason(error)}") from error
        except duckdb.Error as error:
            raise StoreError(_blame(connection, paths, error)) from error


def copy_rows(
    relations: Mapping[str, Relation],
    query: str,
    parameters: Sequence[Any],
    path: Place,
    metadata: Mapping[str, str],
) -> None:
    """Write what a SELECT finds to a file, without bringing the rows into Python.

    Args:
        relations: those that the query names, each from the ones before it.
        query: one SELECT.
        parameters: one value for each `?`.
        path: the file; it gets its name when it is complete, sealed and on the disk.
        metadata: keys and values of the file, as of `file_metadata`.

    Raises:
        StoreError: a file is missing or damaged, or cannot be written.
    """
    statement, sources = _over(relations, query)
    pairs = ", ".join(f"{quoted(key)}: {literal(value)}" for key, value in metadata.items())
    options = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP}"
    check_whole(sources)
    with (
        replacing(path, StoreError, durable=True) as partial,
        _connected([*sources, partial]) as db,
    ):
        try:
            db.execute(
                f"COPY ({statement}) TO {literal(str(partial))} "
                f"({options}, KV_METADATA {{{pairs}}})",
                list(parameters),
            )
        except duckdb.Error as error:
            if blamed := _blamed(db, sources):
                raise StoreError(blamed) from error
            raise StoreError(f"{path}: cannot be written ({_plain(error)})") from error
        seal(partial)


def _over(relations: Mapping[str, Relation], query: str) -> tuple[str, list[Place]]:
    """A SELECT over relations as one statement, and the files that it reads."""
    parts = ", ".join(f"{name} AS ({relation.sql})" for name, relation in relations.items())
    paths = [path for relation in relations.values() for path in relation.paths]
    return f"WITH {parts} {query}", paths


@contextmanager
def _connected(paths: Sequence[Place]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that can reach the given files and nothing else.

    Raises:
        StoreError: a file in a bucket cannot be read.
    """
    connection = duckdb.connect(":memory:", config={"threads": 1})
    remote = [path for path in paths if isinstance(path, RemotePath)]
    with connection, _registered(connection, remote):
        connection.execute("SET enable_progress_bar = false")  # it would be in what is printed
        connection.execute("SET autoinstall_known_extensions = false")
        connection.execute("SET autoload_known_extensions = false")
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET allowed_paths = ?", [[str(path) for path in paths]])
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection


@contextmanager
def _registered(
    connection: duckdb.DuckDBPyConnection, paths: Sequence[RemotePath]
) -> Iterator[None]:
    """Let DuckDB read some objects; what kept it from one is told in the words of the server."""
    if not paths:
        yield
        return
    from chgdb.ranges import RangeFiles

    files = RangeFiles(paths)
    connection.register_filesystem(files)
    try:
        yield
    except (StoreError, OSError) as error:
        if files.problem is None:
            raise
        path, problem = files.problem
        raise StoreError(f"{path}: cannot be read ({reason(problem)})") from error
    finally:
        connection.unregister_filesystem(RangeFiles.protocol)


def _blame(
    connection: duckdb.DuckDBPyConnection, paths: Sequence[Place], error: duckdb.Error
) -> str:
    """One line that names the file that cannot be read."""
    return _blamed(connection, paths) or f"the table cannot be read: {_plain(error)}"


def _blamed(connection: duckdb.DuckDBPyConnection, paths: Sequence[Place]) -> str | None:
    """What is wrong with the first file that cannot be read, if there is one."""
    for path in paths:
        try:
            connection.execute(f"SELECT * FROM {files_of([path])}").fetchall()  # noqa: S608 (quoted)
        except duckdb.Error as cause:
            if isinstance(path, Path) and not path.exists():
                return f"{path}: missing"
            if isinstance(cause, duckdb.PermissionException):
                return f"{path}: DuckDB takes its path for a pattern; rename the folder"
            return f"{path}: damaged ({_plain(cause)})"
    return None


def _plain(error: duckdb.Error) -> str:
    """What DuckDB says, without the piece of SQL that it points at."""
    return reason(error).partition(" LINE ")[0]


def _state(relations: Mapping[str, Relation]) -> list[tuple[str | int, ...] | None]:
    """What changes when a writer changes a file: name, inode and time; None if it is gone.

    Of an object it is the name and the version, which came with the listing of its folder.
    """
    return [_file_state(path) for relation in relations.values() for path in relation.paths]


def _file_state(path: Place) -> tuple[str | int, ...] | None:
    if isinstance(path, RemotePath):
        return str(path), path.version.etag if path.version else ""
    try:
        stat = path.stat()
    except OSError:
        return None
    return str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size


def check_whole(paths: Iterable[Place]) -> None:
    """Refuse files that have changed since they were written; each is looked at once.

    DuckDB may read a changed byte as another number. What a server of a bucket gives is taken as
    it comes, because reading all of an object is what ranges are there to avoid.

    Raises:
        StoreError: the checksums of a file, or its seal where it has none, do not hold.
    """
    for path in paths:
        if isinstance(path, Path) and (state := _file_state(path)) and not _is_whole(path, state):
            raise StoreError(
                f"{path}: damaged, it has changed since it was written; "
                "chgdb verify --repair restores what can be"
            )


def has_sums(path: Place) -> bool:
    """Whether a file has checksums of its blocks, which tell what of it is damaged."""
    return isinstance(path, RemotePath) or damaged_blocks(path) is not None


def readable_rows(
    path: Path, columns: Mapping[str, Column]
) -> Iterator[tuple[dict[str, Any], set[str]]]:
    """The rows of a damaged file, each with the columns whose bytes have changed, which are None.

    The checksums of its blocks tell which. None where it has none, or what describes it is damaged.
    """
    import fastparquet

    try:
        damaged = damaged_blocks(path)
        if damaged is None:
            return
        content = path.read_bytes()  # fastparquet would leave the file open
        file = fastparquet.ParquetFile(str(path), open_with=lambda *_: io.BytesIO(content))
        groups = [_chunks(group) for group in file.row_groups]
        end = max((stop for chunks in groups for _, _, stop in chunks), default=0)
        if any(last > end for _, last in damaged):
            return
        for index, chunks in enumerate(groups):
            bad = {
                n for n, a, b in chunks if any(a < last and first < b for first, last in damaged)
            }
            there = {name for name, _, _ in chunks}
            good = [name for name in columns if name in there - bad]
            if not good:
                continue
            frame = file[index].to_pandas(columns=good, index=False)
            absent = bad & set(columns)
            for values in frame.itertuples(index=False, name=None):
                row = dict.fromkeys(columns)
                for name, value in zip(good, values, strict=True):
                    row[name] = plain_value(columns[name].type, _plain_number(value))
                yield row, absent
    except Exception:  # fastparquet raises whatever comes up  # noqa: BLE001
        return


def _plain_number(value: Any) -> Any:
    """A number of NumPy as one of Python."""
    return value.item() if hasattr(value, "item") else value


def _chunks(group: Any) -> list[tuple[str, int, int]]:
    """Columns of a row group: name, first byte, last + 1."""
    found = []
    for column in group.columns:
        data = column.meta_data
        first = min(
            p for p in (data.dictionary_page_offset, data.data_page_offset) if p is not None
        )
        name = ".".join(n.decode() if isinstance(n, bytes) else n for n in data.path_in_schema)
        found.append((name, first, first + data.total_compressed_size))
    return found


@lru_cache(maxsize=4096)
def _is_whole(path: Path, _state: tuple[str | int, ...]) -> bool:
    """Whether a file, as it is now, is as it was written, as far as it says."""
    try:
        damaged = damaged_blocks(path)
        return not damaged if damaged is not None else seal_holds(path) is not False
    except OSError:
        return True  # told by whoever reads it


# ---------------------------------------------------------------------- writing


def file_metadata(units: Mapping[str, str], format_version: int) -> dict[str, str]:
    """What a file says of itself; with places for its seal and the sums of its blocks.

    Args:
        units: by column; "" where there is none.
        format_version: of the store.
    """
    return {
        "chgdb.format_version": str(format_version),
        "chgdb.seal": UNSEALED,
        "chgdb.sums": NO_SUMS,
        "chgdb.units": json.dumps({name: unit for name, unit in units.items() if unit}),
    }


def metadata_of(path: Path) -> dict[str, str]:
    """The keys and values of a file.

    Raises:
        StoreError: it is missing or damaged.
    """
    query = "SELECT decode(key), decode(value) FROM parquet_kv_metadata(?)"
    with _connected([path]) as connection:
        try:
            return dict(connection.execute(query, [str(path)]).fetchall())
        except duckdb.Error as error:
            raise StoreError(_blame(connection, [path], error)) from error


def plain_value(kind: ColumnType, value: Any) -> Any:
    """A value as plain Python; None for None, NaN and pandas' NA.

    Raises:
        TypeError, ValueError: it is of another type, or not finite.
    """
    if _is_absent(value):
        return None
    if kind == "text":
        if not isinstance(value, str):
            raise TypeError
        return value.encode().decode()
    if kind == "boolean":
        if value not in (False, True):
            raise TypeError
        return bool(value)
    if kind == "integer":
        return operator.index(value)
    number = float(value)
    if isinstance(value, str) or not math.isfinite(number):
        raise ValueError
    return number


def _is_absent(value: Any) -> bool:
    """Whether a value is None, NaN or pandas' NA, which cannot be compared at all."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


def frame_of(
    names: Sequence[str], kinds: Sequence[ColumnType], values: Sequence[tuple[Any, ...]]
) -> pd.DataFrame:
    """Tuples as a DataFrame with nullable columns, whose types do not depend on what is null."""
    import pandas as pd

    columns = zip(*values, strict=True) if values else (() for _ in names)
    return pd.DataFrame(
        {
            name: pd.Series(list(column), dtype=_FRAME_TYPES[kind])
            for name, kind, column in zip(names, kinds, columns, strict=True)
        }
    )


def write_frame(
    path: Place, frame: pd.DataFrame, units: Mapping[str, str], format_version: int
) -> None:
    """Write a file and bring it to its name when it is complete and on the disk.

    Raises:
        StoreError: it cannot be written.
    """
    import fastparquet

    metadata = file_metadata(units, format_version)
    with replacing(path, StoreError, durable=True) as partial:
        try:
            fastparquet.write(
                str(partial),
                frame,
                compression="ZSTD",
                write_index=False,
                object_encoding="utf8",
                custom_metadata=metadata,
            )
        except Exception as error:  # fastparquet raises whatever comes up
            raise StoreError(f"{path}: cannot be written ({reason(error)})") from error
        seal(partial)

"""The table of materials: Parquet parts, written by fastparquet and searched by DuckDB.

A part holds the records of the rows first...stop-1 and is named after them. Every change is one
rename of one finished file, so that readers, who take no lock, see each record once, before and
after. Writers are serialised by the caller. docs/format.md states the protocols.
"""

from __future__ import annotations

import operator
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chgdb.errors import (
    DuplicateIdError,
    InputError,
    QueryError,
    StoreError,
    UnknownIdError,
)
from chgdb.files import brief, place, reason, remove_partials, rename, sync_folder
from chgdb.parquet import (
    SQL_TYPES,
    Relation,
    all_rows,
    any_of,
    copy_rows,
    file_metadata,
    frame_of,
    has_sums,
    near_query,
    plain_value,
    quoted,
    read,
    relation_of,
    run,
    write_frame,
)
from chgdb.places import Place
from chgdb.schema import (
    COLUMNS,
    FORMAT_VERSION,
    SEARCHABLE,
    Column,
    ColumnType,
    check_id,
)
from chgdb.seals import seal_holds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Joined", "Selection", "Table"]

_PART_NAME = re.compile(r"(\d{9,})-(\d{9,})(\.replaces)?\.parquet", re.ASCII)

_TIERS = (2**8, 2**12, 2**16, 2**20)
"""Rows up to which neighbouring parts are joined, the smallest first."""

_MANY = 2**62
"""More records than there are: DuckDB's LIMIT has 64 bits."""

_MANY_PARTS = 16
"""More parts than this with fewer rows than a tier are joined by the next writer: the number of
parts grows with the logarithm of the number of records, and each is rewritten once a tier."""


class _Part(NamedTuple):
    """A part by its name; parts sort by their rows."""

    start: int
    stop: int
    replaces: bool
    path: Place

    @classmethod
    def named(cls, folder: Place, start: int, stop: int, *, replaces: bool) -> _Part:
        mark = ".replaces" if replaces else ""
        return cls(start, stop, replaces, folder / f"{start:09d}-{stop:09d}{mark}.parquet")

    def contains(self, other: _Part) -> bool:
        """Whether this part has taken over the rows of a smaller one, or is yet to lose its mark.

        Where names cannot be changed, a part is there for a moment with its mark and without.
        """
        if (self.start, self.stop) == (other.start, other.stop):
            return self.replaces and not other.replaces
        return self.start <= other.start and other.stop <= self.stop


@dataclass(frozen=True)
class Selection:
    """The answer to a query, in memory.

    Attributes:
        columns: their names.
        values: one tuple per record, None where a property is absent.
        types: of columns that are none of `SEARCHABLE`.
    """

    columns: tuple[str, ...]
    values: list[tuple[Any, ...]]
    types: Mapping[str, ColumnType] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.columns, row, strict=True)) for row in self.values)

    def rows(self) -> list[dict[str, Any]]:
        """One mapping of column to value per record."""
        return list(self)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A DataFrame whose column types do not depend on what is null; made when asked for."""
        kinds = [self.types.get(name) or SEARCHABLE[name].type for name in self.columns]
        return frame_of(self.columns, kinds, self.values)


@dataclass(frozen=True)
class Joined:
    """Columns that other tables of a store have for a record.

    Attributes:
        columns: by name.
        relations: makes `joined`, which has the `columns`, `id` and `row`: NULL, or the only row of
            a record that its values are true for; and whatever `joined` is made from, before it.
    """

    columns: Mapping[str, Column]
    relations: Callable[[], Mapping[str, Relation]]


class Table:
    """The Parquet parts in one folder.

    Reading needs no lock; of the methods that write, one may run at a time.
    """

    def __init__(self, folder: str | Place) -> None:
        self.folder = place(folder)

    @classmethod
    def create(cls, folder: str | Path) -> Table:
        """An empty table in a new folder.

        Raises:
            StoreError: the folder is there already, or cannot be made.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True)
            sync_folder(folder.parent)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be made ({reason(error)})") from error
        return cls(folder)

    @property
    def columns(self) -> dict[str, str]:
        """SQL type of every column by name."""
        return {column.name: SQL_TYPES[column.type] for column in COLUMNS.values()}

    @property
    def parts(self) -> list[Place]:
        """The files that hold records, in the order of their rows."""
        return [part.path for part in self._parts()]

    @property
    def next_row(self) -> int:
        """The first row that was never used."""
        return max((part.stop for part in self._all_parts()), default=0)

    def gaps(self) -> list[tuple[int, int]]:
        """First row and last + 1 of what lies between parts: those of a file that is missing."""
        end, found = 0, []
        for part in self._parts():
            if part.start > end:
                found.append((end, part.start))
            end = max(end, part.stop)
        return found

    # ------------------------------------------------------------------ reading

    def relation(self) -> Relation:
        """The records, for a query over several tables."""
        return _records(self._parts())

    def select(
        self,
        where: str = "",
        parameters: Sequence[Any] = (),
        *,
        columns: Sequence[str] | None = None,
        order_by: str | None = None,
        descending: bool = False,
        limit: int | None = None,
        offset: int = 0,
        joined: Joined | None = None,
    ) -> Selection:
        """The records for which an SQL condition holds.

        Args:
            where: a condition over the columns, with `?` for the parameters; not text of a user,
                but what a parser that knows every name and operator made of it.
            parameters: one value per `?`.
            columns: what to return; all by default.
            order_by: a column; nulls come last, ties in the order of adding.
            descending: largest first.
            limit: most records to return.
            offset: records to leave out first.
            joined: more columns, null where they have no value; they are not among "all".

        Raises:
            QueryError: an unknown column, or a condition that DuckDB cannot evaluate.
            StoreError: a part is missing or damaged.
        """
        names = tuple(columns) if columns is not None else tuple(COLUMNS)
        known = {*COLUMNS, *(joined.columns if joined else ())}
        unknown = [name for name in (*names, order_by or "row") if name not in known]
        if unknown:
            raise QueryError(f"unknown column: {', '.join(unknown)}")
        query = f"SELECT {', '.join(map(quoted, names))} FROM records"  # noqa: S608 (checked)
        if where:
            query += f" WHERE ({where})"
        direction = "DESC" if descending else "ASC"
        query += f" ORDER BY {quoted(order_by or 'row')} {direction} NULLS LAST, row"
        if limit is not None:
            query += f" LIMIT {min(operator.index(limit), _MANY)}"
        if offset:
            query += f" OFFSET {min(operator.index(offset), _MANY)}"
        return Selection(names, self._run(query, parameters, joined))

    def get(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The records with these ids, in this order.

        Raises:
            UnknownIdError: one of them is not there.
        """
        # with a limit DuckDB finds the rows first, and then reads the other columns of these alone
        few = self.select(any_of("id", ids), ids, limit=len(ids))
        found = {row["id"]: row for row in few}
        missing = [id_ for id_ in ids if id_ not in found]
        if missing:
            raise UnknownIdError(f"no record {brief(', '.join(missing))} in {self.folder.parent}")
        return [found[id_] for id_ in ids]

    def ids(self) -> list[str]:
        """Every id, in the order of adding."""
        return [id_ for (id_,) in self.select(columns=["id"]).values]

    def count(
        self, where: str = "", parameters: Sequence[Any] = (), joined: Joined | None = None
    ) -> int:
        """The number of records, of those for which a condition holds; arguments as of `select`."""
        query = "SELECT count(*) FROM records" + (f" WHERE ({where})" if where else "")  # noqa: S608 (as of select)
        ((count,),) = self._run(query, parameters, joined)
        return int(count)

    def summary(self, expressions: Mapping[str, str]) -> dict[str, Any]:
        """Numbers about all records.

        Args:
            expressions: an SQL aggregate by name, such as "median(payload_nmae)"; no text of a
                user.
        """
        sql = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in expressions.items())
        (values,) = self._run(f"SELECT {sql} FROM records", [])  # noqa: S608 (constants)
        return dict(zip(expressions, values, strict=True))

    def near(self, material_id: str, n: int) -> list[str]:
        """The ids that are most like a text, the nearest first."""
        query = near_query("records", "row")
        return [id_ for (id_,) in self._run(query, [material_id, material_id, n])]

    # ------------------------------------------------------------------ writing

    def append(
        self, rows: Sequence[Mapping[str, Any]], start: int, *, replaces: bool = False
    ) -> None:
        """Add records as one part; they exist, all at once, when this returns.

        Args:
            rows: column to value; None, NaN or absence is null. `row` is filled in.
            start: row in the arrays of the first record.
            replaces: records of the same ids are superseded by these instead of being an error.

        Raises:
            InputError: a column that is unknown, or lacks its value, or has one of another type.
            DuplicateIdError: an id is there twice, or already in the table.
            StoreError: the rows have been used before, or the part cannot be written.
        """
        self.recover()
        if start < self.next_row:
            raise StoreError(f"{self.folder}: row {start} has been used before")
        if not rows:
            return
        values = [_checked({**row, "row": start + i}) for i, row in enumerate(rows)]
        ids = [str(value[0]) for value in values]
        self._check_new(ids, replaces=replaces)
        part = _Part.named(self.folder, start, start + len(rows), replaces=replaces)
        _write(part.path, values)
        if replaces:
            self.recover()

    def remove(self, ids: Sequence[str]) -> None:
        """Remove records; their rows are not used again.

        Raises:
            UnknownIdError: one of them is not there; nothing is removed then.
            StoreError: a part cannot be read or written.
        """
        self.recover()
        self.get(ids)
        for part in self._parts():
            self._drop(part, ids)

    def update(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Set columns of records; parts are changed one by one, each all at once.

        Args:
            changes: of an id, column to value; what is null stays as it is.

        Raises:
            InputError: a column that is unknown, or a value of another type.
            StoreError: a part cannot be read or written.
        """
        self.recover()
        names = sorted({name for values in changes.values() for name in values} - {"id"})
        if not names:
            return
        columns = [COLUMNS["id"], *(_known_column(name) for name in names)]
        values = [
            tuple(_cell(id_, column, {**row, "id": id_}.get(column.name)) for column in columns)
            for id_, row in changes.items()
        ]
        kinds = [column.type for column in columns]
        mixed = ", ".join(
            f"coalesce(changed.{quoted(name)}, records.{quoted(name)}) AS {quoted(name)}"
            if name in names
            else f"records.{quoted(name)}"
            for name in COLUMNS
        )
        both = "records LEFT JOIN changed ON records.id = changed.id ORDER BY records.id"
        query = f"SELECT {mixed} FROM {both}"  # noqa: S608 (constants)
        with tempfile.TemporaryDirectory(prefix="chgdb-") as folder:
            file = Path(folder) / "changes.parquet"
            write_frame(file, frame_of(["id", *names], kinds, values), {}, FORMAT_VERSION)
            changed = relation_of(columns, [file])
            for part in self._parts():
                if self._holds(part, list(changes)):
                    _copy(part.path, query, [], [part], {"changed": changed})

    def replace_part(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a part anew with some records, in whatever state it is, or where it is missing.

        Args:
            path: of the part.
            rows: column to value, with their `row`.

        Raises:
            StoreError: it cannot be written.
        """
        _write(path, [_checked(row) for row in sorted(rows, key=operator.itemgetter("id"))])

    def recover(self) -> None:
        """Finish what an interrupted writer left: replacements, superseded and partial files.

        Every writing method begins with it.

        Raises:
            StoreError: a part cannot be read or written.
        """
        remove_partials(self.folder)
        kept = self._parts()
        for part in self._all_parts():
            if part not in kept:
                part.path.unlink(missing_ok=True)
        for part in kept:
            if part.replaces:
                self._finish_replacing(part, [older for older in kept if older < part])
        for tier in _TIERS:
            if sum(part.stop - part.start < tier for part in self._parts()) > _MANY_PARTS:
                self._join(tier)

    def compact(self) -> None:
        """Join parts as far as they may be, which makes searching faster and changes no record.

        Raises:
            StoreError: a part cannot be read or written.
        """
        self.recover()
        self._join(_TIERS[-1])
        for part in self._parts():
            if not seal_holds(part.path) or not has_sums(part.path):
                _copy(part.path, "SELECT * FROM records ORDER BY id", [], [part])

    # ------------------------------------------------------------------ inside

    def _join(self, most: int) -> None:
        """Join neighbouring parts that have no more rows than this together."""
        parts = [part for part in self._parts() if not part.replaces]
        for group in _neighbours(parts, most):
            joined = _Part.named(self.folder, group[0].start, group[-1].stop, replaces=False)
            _copy(joined.path, "SELECT * FROM records ORDER BY id", [], group)
            for part in group:
                part.path.unlink(missing_ok=True)

    def _all_parts(self) -> list[_Part]:
        """Every part file, also those whose rows a wider part has taken over."""
        parts = []
        try:
            found: Iterable[Place] = self.folder.iterdir()
            for path in found:
                if match := _PART_NAME.fullmatch(path.name):
                    start, stop, mark = match.groups()
                    parts.append(_Part(int(start), int(stop), mark is not None, path))
        except FileNotFoundError as error:
            raise StoreError(f"{self.folder}: the folder of the table is missing") from error
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be read ({reason(error)})") from error
        return sorted(parts)

    def _parts(self) -> list[_Part]:
        """The parts whose records count, in the order of their rows."""
        parts = self._all_parts()
        kept: list[_Part] = []
        for part in sorted(parts, key=lambda part: (part.start, -part.stop, not part.replaces)):
            if not (kept and kept[-1].contains(part)):
                kept.append(part)
        return kept

    def _run(
        self, query: str, parameters: Sequence[Any], joined: Joined | None = None
    ) -> list[tuple[Any, ...]]:
        """Run a query over one consistent set of parts."""

        def relations() -> Mapping[str, Relation]:
            records = self.relation()
            return _joined(records, joined) if joined else {"records": records}

        return read(relations, query, parameters, all_rows, self.folder)

    def _check_new(self, ids: Sequence[str], *, replaces: bool) -> None:
        twice = [id_ for id_, count in Counter(ids).items() if count > 1]
        if twice:
            raise DuplicateIdError(f"{twice[0]} is there twice among the records to add")
        if not replaces:
            known = self.select(any_of("id", ids), ids, columns=["id"], limit=1)
            if known:
                raise DuplicateIdError(f"{known.values[0][0]} is in {self.folder.parent} already")

    def _finish_replacing(self, part: _Part, older: Sequence[_Part]) -> None:
        """Remove the superseded records, then the mark that made readers look for the newest."""
        ids = [id_ for (id_,) in _query("SELECT id FROM records", [], [part])]
        for other in older:
            self._drop(other, ids)
        final = _Part.named(self.folder, part.start, part.stop, replaces=False)
        try:
            rename(part.path, final.path.name)
            sync_folder(self.folder)
        except OSError as error:
            raise StoreError(f"{final.path}: cannot be written ({reason(error)})") from error

    def _drop(self, part: _Part, ids: Sequence[str]) -> None:
        """Rewrite one part without some of its records, if it has them."""
        if self._holds(part, ids):
            kept = f"SELECT * FROM records WHERE NOT ({any_of('id', ids)})"  # noqa: S608 (quoted)
            _copy(part.path, kept, ids, [part])

    @staticmethod
    def _holds(part: _Part, ids: Sequence[str]) -> bool:
        """Whether a part has some of these records."""
        held = f"SELECT count(*) FROM records WHERE {any_of('id', ids)}"  # noqa: S608 (quoted)
        return _query(held, list(ids), [part]) != [(0,)]


def _neighbours(parts: Sequence[_Part], most: int) -> list[list[_Part]]:
    """Runs of two or more adjacent parts that fit into one of so many rows.

    Not across rows that are of no part: those are of a part that is missing, and may come back.
    """
    groups: list[list[_Part]] = []
    for part in parts:
        group = groups[-1] if groups else []
        if group and group[-1].stop == part.start and part.stop - group[0].start <= most:
            group.append(part)
        else:
            groups.append([part])
    return [group for group in groups if len(group) > 1]


# ---------------------------------------------------------------------- DuckDB


def _records(parts: Sequence[_Part]) -> Relation:
    """The records in some parts: every column, absent ones null, the newest per id."""
    relation = relation_of(COLUMNS.values(), [part.path for part in parts])
    if not any(part.replaces for part in parts):
        return relation
    newest = "row_number() OVER (PARTITION BY id ORDER BY row DESC) = 1"
    sql = f"SELECT * FROM ({relation.sql}) QUALIFY {newest}"  # noqa: S608 (constant)
    return Relation(sql, relation.paths)


def _joined(records: Relation, joined: Joined) -> dict[str, Relation]:
    """The records with the columns of other tables."""
    names = ", ".join(f"joined.{quoted(name)}" for name in joined.columns)
    both = "joined.id = materials.id AND (joined.row IS NULL OR joined.row = materials.row)"
    sql = f"SELECT materials.*, {names} FROM materials LEFT JOIN joined ON {both}"  # noqa: S608 (constant)
    return {"materials": records, **joined.relations(), "records": Relation(sql)}


def _query(query: str, parameters: list[Any], parts: Sequence[_Part]) -> list[tuple[Any, ...]]:
    """Run one SELECT over `records`, which are those of the given parts."""
    return run({"records": _records(parts)}, query, parameters, all_rows)


# ---------------------------------------------------------------------- Parquet


def _checked(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of a record in the order of the columns.

    Raises:
        InputError: a column that is unknown, or lacks its value, or has one of another type.
    """
    material_id = check_id(row.get("id", ""))
    unknown = [name for name in row if name not in COLUMNS]
    if unknown:
        raise InputError(f"{material_id}: the table has no column {', '.join(unknown)}")
    return tuple(_cell(material_id, column, row.get(column.name)) for column in COLUMNS.values())


def _known_column(name: str) -> Column:
    if name not in COLUMNS:
        raise InputError(f"the table has no column {name}")
    return COLUMNS[name]


def _cell(material_id: str, column: Column, value: Any) -> Any:
    """One value as plain Python."""
    try:
        plain = plain_value(column.type, value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{material_id}: {column.name} is {value!r}, not {column.type}") from error
    if plain is None and not column.nullable:
        raise InputError(f"{material_id}: {column.name} has no value")
    return plain


_UNITS = {column.name: column.unit for column in COLUMNS.values()}


def _write(path: Place, values: Sequence[tuple[Any, ...]]) -> None:
    """Write a part, every column in order, and bring it to its name when it is complete."""
    kinds = [column.type for column in COLUMNS.values()]
    write_frame(path, frame_of(tuple(COLUMNS), kinds, values), _UNITS, FORMAT_VERSION)


def _copy(
    path: Place,
    query: str,
    parameters: Sequence[Any],
    parts: Sequence[_Part],
    others: Mapping[str, Relation] | None = None,
) -> None:
    """Write a part from what a SELECT over `records`, those of some parts, finds."""
    relations = {"records": _records(parts), **(others or {})}
    copy_rows(relations, query, parameters, path, file_metadata(_UNITS, FORMAT_VERSION))

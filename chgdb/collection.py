"""A table of what was made from the materials: Parquet parts of which the newest row counts.

Parts are numbered. A row has a key; where several parts hold the key, the row of the part with the
largest number counts, so that replacing rows is one rename of one finished file, like adding them.
Readers take no lock; writers are serialised by the caller. docs/format.md states the protocols.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chgdb.errors import InputError, StoreError
from chgdb.files import place, reason, remove_partials, size_of, sync_folder
from chgdb.parquet import (
    Relation,
    all_rows,
    copy_rows,
    file_metadata,
    has_sums,
    quoted,
    relation_of,
    run,
    write_frame,
)
from chgdb.places import Place
from chgdb.schema import FORMAT_VERSION, Column
from chgdb.seals import seal_holds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Collection"]

_PART_NAME = re.compile(r"(\d{9})\.parquet", re.ASCII)

_MANY_PARTS = 16
"""In a table with more parts than this the next writer joins the newest."""


class Collection:
    """The numbered Parquet parts in one folder, which need not exist.

    Args:
        folder: where the parts are.
        key: columns of which no two rows have the same values.
        columns: gives every column by name, in order; called before something is written.
    """

    def __init__(
        self,
        folder: str | Place,
        key: Sequence[str],
        columns: Callable[[], Mapping[str, Column]],
    ) -> None:
        self.folder = place(folder)
        self._key = tuple(key)
        self._columns = columns

    @property
    def parts(self) -> list[Place]:
        """The files that hold rows, the oldest first; none where there is no folder.

        Raises:
            StoreError: the folder cannot be read.
        """
        try:
            found: Iterable[Place] = self.folder.iterdir()
            parts = [path for path in found if _PART_NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be read ({reason(error)})") from error
        return sorted(parts, key=lambda path: path.name)

    def relation(self, columns: Iterable[Column]) -> Relation:
        """The newest row of every key with some columns, among which is the key."""
        return self._newest(columns, self.parts)

    # ------------------------------------------------------------------ writing

    def append(self, frame: pd.DataFrame) -> None:
        """Add rows as one part; they take the place of older rows of the same keys, all at once.

        Args:
            frame: has every column; NaN, None and NA are null.

        Raises:
            InputError: a column is missing or unknown, lacks a value or has one of another type, or
                a key is there twice.
            StoreError: the part cannot be written.
        """
        self.recover()
        if not len(frame):
            return
        checked = _checked(frame, self._columns())
        twice = checked[checked.duplicated(list(self._key))]
        if len(twice):
            key = ", ".join(str(twice.iloc[0][name]) for name in self._key)
            raise InputError(f"{self.folder.name}: {key} is there twice")
        self._write(self._next(), checked)

    def drop(self, condition: str, parameters: Sequence[Any]) -> None:
        """Remove rows, also those that newer ones have superseded.

        Parts are changed one by one, the oldest first: a crash leaves some of the rows, but brings
        no superseded one back.

        Args:
            condition: SQL over the columns, with `?` for the parameters; not text of a user.
            parameters: one value for each `?`.

        Raises:
            StoreError: a part cannot be read or written.
        """
        self.recover()
        for part in self.parts:
            rows = {"rows": relation_of(self._columns().values(), [part])}
            count = f"SELECT count(*), count(*) FILTER ({condition}) FROM rows"  # noqa: S608 (constants)
            ((before, dropped),) = run(rows, count, parameters, all_rows)
            kept = f"SELECT * FROM rows WHERE ({condition}) IS NOT TRUE"  # noqa: S608 (constants)
            if dropped == before:
                self._unlink([part])
            elif dropped:
                self._copy(part, rows, kept, parameters)

    def recover(self) -> None:
        """Remove what an interrupted writer left; every method that writes begins with it.

        Raises:
            StoreError: a part cannot be read or written.
        """
        try:
            remove_partials(self.folder)
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be written ({reason(error)})") from error
        parts = self.parts
        if len(parts) > _MANY_PARTS:
            self._join(_newest_run(parts))

    def _join(self, parts: Sequence[Place]) -> None:
        """Join the newest parts, whose rows come before those of all others."""
        rows = {"rows": self._newest(self._columns().values(), parts)}
        order = ", ".join(map(quoted, self._key))
        self._copy(self._next(), rows, f"SELECT * FROM rows ORDER BY {order}")  # noqa: S608 (constants)
        self._unlink(parts)

    def compact(
        self, stale: str = "false", relations: Mapping[str, Relation] | None = None
    ) -> None:
        """Join all parts into one, which makes reading faster, and drop rows that do not count.

        Args:
            stale: SQL over the columns and the relations, of which rows to drop besides those that
                newer ones have superseded; a constant.
            relations: what it names beside the columns.

        Raises:
            StoreError: a part cannot be read or written.
        """
        parts = self.parts
        rows = {**(relations or {}), "rows": self._newest(self._columns().values(), parts)}
        count = f"SELECT count(*), count(*) FILTER ({stale}) FROM rows"  # noqa: S608 (constants)
        ((before, dropped),) = run(rows, count, (), all_rows) if parts else ((0, 0),)
        if (
            len(parts) < 2
            and not dropped
            and all(seal_holds(part) and has_sums(part) for part in parts)
        ):
            return
        order = ", ".join(map(quoted, self._key))
        kept = f"SELECT * FROM rows WHERE ({stale}) IS NOT TRUE ORDER BY {order}"  # noqa: S608 (constants)
        if dropped < before:
            self._copy(self._next(), rows, kept)
        self._unlink(parts)

    # ------------------------------------------------------------------ inside

    def _next(self) -> Place:
        """A part after all that are there."""
        parts = self.parts
        return self.folder / f"{int(parts[-1].stem) + 1 if parts else 0:09d}.parquet"

    def _newest(self, columns: Iterable[Column], parts: Sequence[Place]) -> Relation:
        columns = list(columns)
        if len(parts) < 2:
            return relation_of(columns, parts)
        relation = relation_of(columns, parts, ", filename = true", ["filename"])
        key = ", ".join(map(quoted, self._key))
        newest = f"row_number() OVER (PARTITION BY {key} ORDER BY filename DESC) = 1"
        names = ", ".join(quoted(column.name) for column in columns)
        sql = f"SELECT {names} FROM ({relation.sql}) QUALIFY {newest}"  # noqa: S608 (constants)
        return Relation(sql, relation.paths)

    def _copy(
        self,
        path: Place,
        relations: Mapping[str, Relation],
        query: str,
        parameters: Sequence[Any] = (),
    ) -> None:
        copy_rows(relations, query, parameters, path, file_metadata(self._units(), FORMAT_VERSION))

    def _units(self) -> dict[str, str]:
        return {column.name: column.unit for column in self._columns().values()}

    def _write(self, path: Place, frame: pd.DataFrame) -> None:
        try:
            if isinstance(self.folder, Path) and not self.folder.exists():
                self.folder.mkdir()
                sync_folder(self.folder.parent)
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be made ({reason(error)})") from error
        write_frame(path, frame, self._units(), FORMAT_VERSION)

    def _unlink(self, paths: Iterable[Place]) -> None:
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be written ({reason(error)})") from error


def _newest_run(parts: Sequence[Place]) -> Sequence[Place]:
    """The newest parts, back to the first that is larger than all after it together.

    So each row is rewritten as often as the table has doubled, however many parts are added.
    """
    sizes = [size_of(path) for path in parts]
    first = len(parts) - 2
    while first > 0 and sizes[first - 1] <= sum(sizes[first:]):
        first -= 1
    return parts[first:]


def _checked(frame: pd.DataFrame, columns: Mapping[str, Column]) -> pd.DataFrame:
    """The rows with the types of the columns, in their order."""
    import pandas as pd

    wrong = sorted({*frame.columns} ^ {*columns})
    if wrong:
        what = "lacks the" if wrong[0] in columns else "has no"
        raise InputError(f"the table {what} column {wrong[0]}")
    typed = {}
    for name, column in columns.items():
        try:
            typed[name] = _typed(frame[name], column)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"a value of {name} is not {column.type}") from error
        absent = typed[name].isna()
        if absent.any() and not column.nullable:
            raise InputError(f"{name} has no value in row {int(absent.to_numpy().argmax())}")
    return pd.DataFrame(typed).reset_index(drop=True)


def _typed(values: pd.Series[Any], column: Column) -> pd.Series[Any]:
    import numpy as np
    import pandas as pd

    if column.type == "text":
        texts = [
            None if absent else value for value, absent in zip(values, values.isna(), strict=True)
        ]
        if not all(text is None or isinstance(text, str) for text in texts):
            raise TypeError
        return pd.Series(texts, values.index, dtype="str")
    if column.type == "integer":
        return values.astype("Int64")
    if column.type == "boolean":
        return values.astype("boolean")
    numbers = values.astype("float64")
    if np.isinf(numbers.to_numpy()).any():
        raise ValueError
    return numbers

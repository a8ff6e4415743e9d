"""What a search asks for, as a condition over the columns of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TypedDict

from chgdb.errors import QueryError
from chgdb.files import brief
from chgdb.query import (
    Condition,
    chemsys_condition,
    elements_condition,
    formula_condition,
    parse_range,
    parse_where,
)
from chgdb.schema import COLUMNS, CRYSTAL_SYSTEMS, PREDICTED, SEARCHABLE, SOURCES

__all__ = [
    "NO_SOURCE",
    "RANGES",
    "Conditions",
    "Filters",
    "Range",
    "column_named",
    "columns_named",
    "condition_of",
    "listed",
]

Range = str | tuple[float | None, float | None]
"""Bounds, both included: "100:200", "100:" or (100, None); "227" is that number alone."""

_LISTED = 800
"""Characters of the names of columns that a message lists."""

NO_SOURCE = "none"
"""What `source` says of materials without a density."""

RANGES = (*PREDICTED, "band_gap", "n_atoms", "volume")
"""The columns of numbers that people ask for ranges of; `ranges` and `where` reach all."""


class Conditions(TypedDict, total=False):
    """The arguments of `condition_of`, which describes them."""

    formula: str | None
    elements: str | Sequence[str]
    exclude: str | Sequence[str]
    chemsys: str | None
    nelements: Range | int | None
    spacegroup: str | int | None
    crystal_system: str | None
    source: str | None
    ranges: Mapping[str, Range] | None
    where: str | None
    also: Condition | None


class Filters(Conditions, total=False):
    """The arguments of `Database.select`, which describes what was added."""

    columns: str | Sequence[str] | None
    sort: str | None
    descending: bool
    limit: int | None
    offset: int


def condition_of(
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
    also: Condition | None = None,
) -> Condition:
    """The condition that records fit every filter given; lists may be written as text: "Ti,O".

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
        also: a condition that another parser than that of `where` made of a user's text.

    Raises:
        QueryError: a filter that cannot be understood, or an unknown column.
    """
    condition = elements_condition(listed(elements), listed(exclude))
    if formula is not None:
        condition &= formula_condition(formula)
    if chemsys is not None:
        condition &= chemsys_condition(chemsys)
    for name, bounds in {"n_elements": nelements, **(ranges or {})}.items():
        if bounds is not None:
            condition &= _range_condition(name, bounds)
    if spacegroup is not None:
        condition &= _spacegroup_condition(str(spacegroup))
    if crystal_system is not None:
        condition &= _crystal_system_condition(crystal_system)
    if source is not None:
        condition &= _source_condition(source)
    if where is not None:
        condition &= parse_where(where, _column_kinds())
    if also is not None:
        condition &= also
    return condition


def listed(values: str | Sequence[str]) -> list[str]:
    """A list, which may be written as text with commas; nothing twice."""
    parts = values.split(",") if isinstance(values, str) else values
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def column_named(name: str) -> str:
    """The column that a user means; "-" stands for "_" and upper for lower case.

    Raises:
        QueryError: there is none; the text suggests the nearest.
    """
    if name in SEARCHABLE:
        return name
    by_lower = {column.lower(): column for column in SEARCHABLE}
    asked = name.lower().replace("-", "_")
    if asked in by_lower:
        return by_lower[asked]
    near = [by_lower[column] for column in get_close_matches(asked, by_lower, n=3)]
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"there are {', '.join(COLUMNS)[:_LISTED]} ..."
    )
    raise QueryError(f"no column {brief(name)}; {hint}")


def columns_named(names: str | Sequence[str]) -> list[str]:
    """The columns that a user means, each once.

    Raises:
        QueryError: one is not there, or there are none.
    """
    columns = list(dict.fromkeys(column_named(name) for name in listed(names)))
    if not columns:
        raise QueryError("no columns to show: name one, or leave them away")
    return columns


def _column_kinds() -> dict[str, str]:
    """Column name -> what the query language calls its type."""
    kinds = {"integer": "number", "real": "number"}
    return {column.name: kinds.get(column.type, column.type) for column in SEARCHABLE.values()}


def _range_condition(name: str, bounds: Range | int) -> Condition:
    column = column_named(name)
    if _column_kinds()[column] != "number":
        raise QueryError(
            f"{column} is {SEARCHABLE[column].type}: a range needs a column of numbers"
        )
    if isinstance(bounds, tuple):
        bounds = ":".join("" if bound is None else str(bound) for bound in bounds)
    return parse_range(column, str(bounds))


def _spacegroup_condition(text: str) -> Condition:
    """By number, range of numbers or symbol, its spaces, underscores and case not regarded."""
    if text[:1].isdigit() or ":" in text:
        number = text.lstrip("0") or "0"
        if text.isdecimal() and (len(number) > 3 or not 1 <= int(number) <= 230):
            raise QueryError(f"no space group {brief(text)}; their numbers are 1 to 230")
        return parse_range("spacegroup", text)
    symbol = text.replace(" ", "").replace("_", "").lower()
    return Condition("replace(lower(spacegroup_symbol), '_', '') = ?", (symbol,))


def _crystal_system_condition(text: str) -> Condition:
    if text.lower() not in CRYSTAL_SYSTEMS:
        raise QueryError(f"no crystal system {brief(text)}; there are {', '.join(CRYSTAL_SYSTEMS)}")
    return Condition("crystal_system = ?", (text.lower(),))


def _source_condition(text: str) -> Condition:
    """Where the density comes from; "none" asks for materials without one."""
    if text.lower() == NO_SOURCE:
        return Condition("source IS NULL")
    if text.lower() not in SOURCES:
        raise QueryError(f"no source {brief(text)}; use {', '.join(SOURCES)} or {NO_SOURCE}")
    return Condition("source = ?", (text.lower(),))

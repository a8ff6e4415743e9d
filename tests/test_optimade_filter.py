"""Filters are run in duckdb and held against plain Python over the same rows."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import duckdb
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chgdb.errors import MissingExtraError, QueryError
from chgdb.optimade_filter import (
    FIELDS,
    PREFIX,
    UnsupportedFilterError,
    _grammar,
    is_foreign,
    known_field,
    parse_filter,
)
from chgdb.parquet import SQL_TYPES
from chgdb.schema import SEARCHABLE

pytest.importorskip("optimade")

Row = dict[str, Any]
Test = Callable[[Row], bool | None]

NAMES = (
    "id",
    "reduced_formula",
    "elements",
    "n_elements",
    "n_atoms",
    "bulk_modulus",
    "is_metal",
    "crystal_system",
    "spacegroup_symbol",
    "added",
)
NAN = float("nan")
# fmt: off
ROWS: list[Row] = [
    dict(zip(NAMES, values, strict=True)) for values in [
        ("mp-1", "O2Ti", "O,Ti", 2, 6, 210.0, False, None, "P4_2/mnm", "2026-01-01T00:00:00+00:00"),
        ("mp-2", "Si", "Si", 1, 2, 88.9, False, "cubic", "Fd-3m", "2026-01-01T12:00:00+00:00"),
        ("mp-3", "ClNa", "Cl,Na", 2, 2, None, None, "cubic", "Fm-3m", "2026-01-02T00:00:00+00:00"),
        ("mp-4", "NaO2Ti", "Na,O,Ti", 3, 4, NAN, True, "cubic", "R3m", "2026-01-02T00:00:01+00:00"),
        ("a\"\\b", "Al12O3Si", "Al,O,Si", 3, 16, -1.5, True, None, None, "not a time"),
        ("it's %_", "Fe", "Fe", 1, 1, 0.0, True, "cubic", "Im-3m", "2027-01-02T00:00:01+00:00"),
    ]
]
# fmt: on


@pytest.fixture(scope="module")
def records() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as connection:
        columns = [f'"{c.name}" {SQL_TYPES[c.type]}' for c in SEARCHABLE.values()]
        connection.execute(f"CREATE TABLE records ({', '.join(columns)})")
        for row in ROWS:
            names = ", ".join(f'"{name}"' for name in row)
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO records ({names}) VALUES ({marks})", [*row.values()])
        yield connection


def found(connection: duckdb.DuckDBPyConnection, text: str) -> list[str]:
    """The ids that fit a filter."""
    condition = parse_filter(text).condition
    query = f"SELECT id FROM records WHERE {condition.sql or 'true'}"
    rows = connection.execute(query, list(condition.parameters)).fetchall()
    return sorted(id_ for (id_,) in rows)


# --- random filters beside their meaning ------------------------------------------------------

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}
REVERSED = {"=": "=", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
WORDS: dict[str, Callable[[str, str], bool]] = {
    "CONTAINS": lambda a, b: b in a,
    "STARTS": str.startswith,
    "STARTS WITH": str.startswith,
    "ENDS": str.endswith,
    "ENDS WITH": str.endswith,
}
NUMBERS = {"nelements": "n_elements", "nsites": "n_atoms", f"{PREFIX}bulk_modulus": "bulk_modulus"}
TEXTS = {
    "id": "id",
    "chemical_formula_reduced": "reduced_formula",
    f"{PREFIX}crystal_system": "crystal_system",
}


def known(value: Any) -> Any:
    return None if value is None or value != value else value


def written(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@st.composite
def number_tests(draw: st.DrawFn) -> tuple[str, Test]:
    name, operator = draw(st.sampled_from(list(NUMBERS))), draw(st.sampled_from(list(OPERATORS)))
    value = draw(st.sampled_from([0, 1, 2, 3, 6, 16, -1.5, 88.9, 210.0]) | st.floats(-1e3, 1e3))

    def test(row: Row) -> bool | None:
        left = known(row[NUMBERS[name]])
        return None if left is None else OPERATORS[operator](left, value)

    if draw(st.booleans()):
        return f"{name} {operator} {value!r}", test
    return f"{value!r} {REVERSED[operator]} {name}", test


@st.composite
def text_tests(draw: st.DrawFn) -> tuple[str, Test]:
    name = draw(st.sampled_from(list(TEXTS)))
    word = draw(st.sampled_from(["=", "!=", *WORDS]))
    values = [str(row[TEXTS[name]]) for row in ROWS]
    part = st.sampled_from(values).flatmap(lambda v: st.sampled_from([v, v[:2], v[-2:], v[1:]]))
    value = draw(part | st.text(st.characters(codec="utf-8"), max_size=4))
    test = {**OPERATORS, **WORDS}[word]

    def run(row: Row) -> bool | None:
        left = row[TEXTS[name]]
        return None if left is None else test(left, value)

    return f"{name} {word} {written(value)}", run


@st.composite
def list_tests(draw: st.DrawFn) -> tuple[str, Test]:
    symbols = ["Ti", "O", "Si", "Na", "Cl", "Fe", "Al", "Xx"]
    wanted = draw(st.lists(st.sampled_from(symbols), min_size=1, max_size=4))
    word = draw(st.sampled_from(["", "ALL", "ANY", "ONLY"]))
    if not word:
        wanted = wanted[:1]

    def test(row: Row) -> bool:
        elements = set(row["elements"].split(","))
        if word == "ANY":
            return not elements.isdisjoint(wanted)
        return elements <= set(wanted) if word == "ONLY" else elements >= set(wanted)

    return f"elements HAS {word} {', '.join(map(written, wanted))}", test


@st.composite
def length_tests(draw: st.DrawFn) -> tuple[str, Test]:
    operator, value = draw(st.sampled_from(list(OPERATORS))), draw(st.integers(-1, 4))
    word = "" if operator == "=" and draw(st.booleans()) else operator
    return (
        f"elements LENGTH {word} {value}",
        lambda row: OPERATORS[operator](row["n_elements"], value),
    )


@st.composite
def other_tests(draw: st.DrawFn) -> tuple[str, Test]:
    metal, system = f"{PREFIX}is_metal", f"{PREFIX}crystal_system"
    tests: list[tuple[str, Test]] = [
        (f"{metal} = TRUE", lambda row: row["is_metal"]),
        (
            f"{metal} != TRUE",
            lambda r: None if r["is_metal"] is None else not r["is_metal"],
        ),
        (f"{metal} IS KNOWN", lambda row: row["is_metal"] is not None),
        (f"{system} IS UNKNOWN", lambda row: row["crystal_system"] is None),
        (f"{PREFIX}bulk_modulus IS KNOWN", lambda r: known(r["bulk_modulus"]) is not None),
        ("_exmpl_x = 1", lambda row: None),
        ("_exmpl_x IS UNKNOWN", lambda row: True),
        ('immutable_id = "a"', lambda row: None),
        ('type = "structures"', lambda row: True),
        ("nelements = nsites", lambda row: row["n_elements"] == row["n_atoms"]),
    ]
    return draw(st.sampled_from(tests))


def joined(word: str, parts: list[tuple[str, Test]]) -> tuple[str, Test]:
    def test(row: Row) -> bool | None:
        """Kleene's three-valued logic."""
        values = [part(row) for _, part in parts]
        if (word == "OR") in values:
            return word == "OR"
        return None if None in values else word == "AND"

    return f" {word} ".join(f"({text})" for text, _ in parts), test


def negated(part: tuple[str, Test]) -> tuple[str, Test]:
    def test(row: Row) -> bool | None:
        value = part[1](row)
        return None if value is None else not value

    return f"NOT ({part[0]})", test


FILTERS = st.recursive(
    st.one_of(number_tests(), text_tests(), list_tests(), length_tests(), other_tests()),
    lambda inner: st.one_of(
        inner.map(negated),
        st.tuples(st.sampled_from(["AND", "OR"]), st.lists(inner, min_size=1, max_size=3)).map(
            lambda pair: joined(*pair)
        ),
    ),
    max_leaves=6,
)


@given(filter_=FILTERS)
def test_filters_mean_what_python_says(
    records: duckdb.DuckDBPyConnection, filter_: tuple[str, Test]
) -> None:
    text, test = filter_
    assert found(records, text) == sorted(row["id"] for row in ROWS if test(row))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('nelements=1 OR nelements=3 AND NOT elements HAS "Al"', ["it's %_", "mp-2", "mp-4"]),
        ('NOT nelements=1 AND elements HAS "Na"', ["mp-3", "mp-4"]),
        ('chemical_formula_anonymous = "A12B3C"', ['a"\\b']),
        ('chemical_formula_anonymous = "A2B"', ["mp-1"]),
        ("elements_ratios HAS ALL 0.5, 0.25", ["mp-4"]),
        ('space_group_symbol_hermann_mauguin = "P 42/m n m"', ["mp-1"]),
        ("dimension_types HAS 1 AND dimension_types LENGTH 3 AND nsites = 1", ["it's %_"]),
        ('structure_features HAS "disorder"', []),
        ("species_at_sites LENGTH 16", ['a"\\b']),
        ("nperiodic_dimensions = 3 AND nelements = 1", ["it's %_", "mp-2"]),
        ('id = "mp-1"\n\tOR\r id = "mp-2"', ["mp-1", "mp-2"]),
        ("nsites > 15.9999 AND nsites < 1.6e1", []),
        ("nsites = 16.0", ['a"\\b']),
    ],
)
def test_filters(records: duckdb.DuckDBPyConnection, text: str, ids: list[str]) -> None:
    assert found(records, text) == ids


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_blank_asks_for_nothing(records: duckdb.DuckDBPyConnection, text: str) -> None:
    assert parse_filter(text).condition.sql == ""
    assert len(found(records, text)) == len(ROWS)


@pytest.mark.parametrize(
    ("time", "ids"),
    [
        ("2026-01-02T00:00:00Z", ["it's %_", "mp-4"]),
        ("2026-01-01T23:59:59.5Z", ["it's %_", "mp-3", "mp-4"]),
        ("2026-01-02T02:00:00+02:00", ["it's %_", "mp-4"]),
        ("2026-01-01t19:00:00-05:00", ["it's %_", "mp-4"]),
    ],
)
def test_times_are_compared_as_times(
    records: duckdb.DuckDBPyConnection, time: str, ids: list[str]
) -> None:
    assert found(records, f'last_modified > "{time}"') == ids
    assert found(records, f'"{time}" < last_modified') == ids


@pytest.mark.parametrize(
    "time", ["yesterday", "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z"]
)
def test_what_is_no_time(time: str) -> None:
    with pytest.raises(QueryError, match="is not a time; write it as in") as caught:
        parse_filter(f'last_modified = "{time}"')
    assert not isinstance(caught.value, UnsupportedFilterError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crazyfield = 2", 'no field "crazyfield"'),
        ("_chgdb_crazyfield = 2", 'no field "_chgdb_crazyfield"'),
        ("nelements", "cannot be read"),
        ("nelements =", "cannot be read"),
        ("nelements = 2 nsites = 3", "one expression"),
        ("((nelements = 2)", "cannot be read"),
        ("nelements == 2", "cannot be read at character 12"),
        ("nelements = 2; DROP TABLE records", "cannot be read at character 14"),
        ("nelements = 2 -- x", "cannot be read"),
        ("nelements = (SELECT 1)", "cannot be read"),
        ("nelements = 1e400", "too large a number"),
        ('id = "a', "never closed"),
        ('id = "a\\"', "never closed"),
        ("Nelements = 2", "cannot be read at character 1"),
        ("nelements = 2 AND " * 2000 + "nsites = 1", "more than 20000 characters"),
        ("(" * 33 + "nelements = 2" + ")" * 33, "nested more than 32 deep"),
        ('id = "\ud800"', "not valid Unicode"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(QueryError, match=re.escape(message)) as caught:
        parse_filter(text)
    assert not isinstance(caught.value, UnsupportedFilterError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('nelements = "2"', "cannot compare nelements, a number, with"),
        ("id = 2", "cannot compare id, text, with the number 2"),
        (f"{PREFIX}is_metal < TRUE", "compare it with = or !="),
        (f'{PREFIX}is_metal = "TRUE"', "true or false, with"),
        ("last_modified = 3", "a time"),
        ('nelements CONTAINS "2"', "CONTAINS needs text"),
        ("id STARTS WITH 2", "STARTS needs text"),
        ("elements HAS 2", "elements has no the number 2"),
        ('nelements HAS "2"', "HAS needs a list"),
        ("id LENGTH 2", "LENGTH needs a list"),
        ('elements = "Si"', "elements, a list"),
        ("elements = species_at_sites", "comparing two lists"),
        ('"a" = "b"', "two constants"),
        ("1 < 2", "two constants"),
        ('elements HAS < "C"', "operators after HAS"),
        ('elements HAS ANY "C", > "D"', "operators after HAS"),
        ("elements HAS id", "properties after HAS"),
        ('species HAS "Si"', "HAS is not supported for species"),
        ('elements:elements_ratios HAS "Ti":0.5', "lists asked together"),
        ('species.name HAS "Si"', "no nested fields"),
    ],
)
def test_what_is_not_supported(text: str, message: str) -> None:
    with pytest.raises(UnsupportedFilterError, match=re.escape(message)):
        parse_filter(text)


def test_a_property_of_another_provider_is_unknown_and_told_once() -> None:
    filter_ = parse_filter('_other_a = 2 OR NOT _other_a HAS "x" OR _other_b.c LENGTH 2')
    assert [warning.split()[2] for warning in filter_.warnings] == ['"_other_a"', '"_other_b"']
    assert parse_filter("nelements = 2").warnings == ()


@pytest.mark.parametrize("name", ["_exmpl_x", "_chgdbx", "_x"])
def test_names_of_others(name: str) -> None:
    assert is_foreign(name)
    assert not is_foreign(PREFIX + "x")
    assert not is_foreign("nelements")


@given(
    text=st.text(alphabet=st.sampled_from("abnelmts \"'\\\t\n()=<>!1.,:;-_%?AHSNOTRD"), max_size=60)
)
@example("id = '' OR 1=1 --")
@example('id = "\\" OR 1=1 --"')
@example('id = "x\'); DROP TABLE records; --"')
@example('id = "' + "\t" * 40)
def test_no_text_reaches_the_query(records: duckdb.DuckDBPyConnection, text: str) -> None:
    """Whatever is written is refused, or runs with every literal as a parameter."""
    for filter_ in (text, f"id = {written(text)}"):
        with suppress(QueryError):
            found(records, filter_)
    assert found(records, "") == sorted(row["id"] for row in ROWS)


def test_a_literal_is_never_in_the_sql() -> None:
    text = 'id = "secret" OR elements HAS ANY "secret" OR 4711 < nsites OR id CONTAINS "secret"'
    condition = parse_filter(text).condition
    assert "secret" not in condition.sql
    assert "4711" not in condition.sql
    assert condition.parameters == ("secret", "secret", 4711.0, "secret")


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lark", None)
    monkeypatch.setattr("chgdb.optimade_filter._grammar", _grammar.__wrapped__)
    with pytest.raises(MissingExtraError, match=re.escape("chgdb[web]")):
        parse_filter("nelements = 2")


def test_every_field_can_be_asked_for(records: duckdb.DuckDBPyConnection) -> None:
    for name, field in FIELDS.items():
        assert known_field(name) is field
        both = found(records, f"{name} IS KNOWN") + found(records, f"{name} IS UNKNOWN")
        assert len(both) == len(ROWS), name
        if field.sort_column is not None:
            assert field.sort_column in SEARCHABLE


def test_fields_are_described_in_the_words_and_units_of_the_schema() -> None:
    field = FIELDS[f"{PREFIX}predicted_formation_energy_low"]
    assert field.type == "float"
    assert field.unit == "eV/{atom}"
    assert field.description == "formation_energy, lower end of the 90 % interval, in eV/atom"
    assert FIELDS[f"{PREFIX}c11"].columns == ("C11",)
    without = {
        column.unit
        for column in SEARCHABLE.values()
        if f"{PREFIX}{column.name.lower()}" in FIELDS
        and column.unit
        and FIELDS[f"{PREFIX}{column.name.lower()}"].unit is None
    }
    assert without == {"mu_B"}
    assert all(re.fullmatch("[a-z_][a-z_0-9]+", name) for name in FIELDS)


def test_every_column_is_served_somewhere() -> None:
    served = {column for field in FIELDS.values() for column in field.columns}
    lengths = {"n_elements", "n_atoms"}
    assert set(SEARCHABLE) - served - lengths == {"row"}

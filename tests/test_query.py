"""The conditions are run in duckdb and held against plain Python filters over the same rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import duckdb
import pytest
from ase.data import chemical_symbols
from hypothesis import example, given
from hypothesis import strategies as st

from chgdb.errors import QueryError
from chgdb.query import (
    Condition,
    canonical_formula,
    chemsys_condition,
    elements_condition,
    formula_condition,
    parse_range,
    parse_where,
)

Row = dict[str, Any]
Filter = Callable[[Row], bool | None]

COLUMNS = {
    "id": "text",
    "reduced_formula": "text",
    "chemsys": "text",
    "elements": "text",
    "crystal_system": "text",
    "spacegroup": "number",
    "n_elements": "number",
    "n_atoms": "number",
    "volume": "number",
    "bulk_modulus": "number",
    "shear_modulus": "number",
    "is_metal": "boolean",
}
NAN = float("nan")
# fmt: off
ROWS: list[Row] = [
    dict(zip(COLUMNS, values, strict=True)) for values in [
        ("mp-149", "Si", "Si", "Si", "cubic", 227, 1, 2, 40.9, 88.0, 62.0, False),
        ("mp-66", "C", "C", "C", "cubic", 227, 1, 2, 11.4, 436.0, 521.0, False),
        ("mp-2657", "O2Ti", "O-Ti", "O,Ti", "tetragonal", 136, 2, 6, 64.2, 210.0, 110.0, False),
        ("mp-390", "O2Ti", "O-Ti", "O,Ti", "tetragonal", 141, 2, 6, 69.7, None, 55.0, False),
        ("mp-1", "Ti", "Ti", "Ti", "hexagonal", 194, 1, 2, 34.7, 112.0, 0.0, True),
        ("mp-2", "NaTiO2", "Na-O-Ti", "Na,O,Ti", "trigonal", 166, 3, 4, 50.0, NAN, NAN, True),
        ("mp-3", "NaCl", "Cl-Na", "Cl,Na", "cubic", 225, 2, 2, 45.0, 24.0, 14.0, None),
        ("mp-4%_x", "Fe", "Fe", "Fe", None, None, 1, 1, 11.3, 0.0, 0.0, True),
        ("MP-5", "it's \"x\"", "Cu", "Cu", "cubic", 225, 1, 1, 1e300, -1.5, 1e300, True),
    ]
]
# fmt: on


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    types = {"text": "VARCHAR", "number": "DOUBLE", "boolean": "BOOLEAN"}
    integers = {"spacegroup", "n_elements", "n_atoms"}
    definitions = ", ".join(
        f"{name} {'BIGINT' if name in integers else types[kind]}" for name, kind in COLUMNS.items()
    )
    connection = duckdb.connect(config={"enable_external_access": "false", "threads": "1"})
    connection.execute(f"CREATE TABLE materials ({definitions})")
    marks = ", ".join("?" * len(COLUMNS))
    for row in ROWS:
        connection.execute(f"INSERT INTO materials VALUES ({marks})", list(row.values()))
    yield connection
    connection.close()


def found(database: duckdb.DuckDBPyConnection, condition: Condition) -> list[str]:
    sql = "SELECT id FROM materials"
    if condition.sql:
        sql += f" WHERE {condition.sql}"
    return [row[0] for row in database.execute(sql, list(condition.parameters)).fetchall()]


def filtered(keep: Filter) -> list[str]:
    return [row["id"] for row in ROWS if keep(row)]


def known(row: Row, name: str) -> Any:
    """The value, None for NULL and NaN."""
    value = row[name]
    return None if value != value else value


def holds(name: str, test: Callable[[Any], bool]) -> Filter:
    return lambda row: known(row, name) is not None and test(known(row, name))


def elements(row: Row) -> set[str]:
    return set(row["elements"].split(","))


# --- WHERE expressions ----------------------------------------------------------------------

EXAMPLES: list[tuple[str, Filter]] = [
    ("bulk_modulus > 100", holds("bulk_modulus", lambda x: x > 100)),
    ("100 < bulk_modulus", holds("bulk_modulus", lambda x: x > 100)),
    ("NOT bulk_modulus > 100", holds("bulk_modulus", lambda x: x <= 100)),
    ("bulk_modulus = -1.5", holds("bulk_modulus", lambda x: x == -1.5)),
    ("bulk_modulus == 2.4e1", holds("bulk_modulus", lambda x: x == 24)),
    ("bulk_modulus = .24E+2", holds("bulk_modulus", lambda x: x == 24)),
    (
        "bulk_modulus BETWEEN 88 AND 210 AND NOT is_metal",
        lambda r: holds("bulk_modulus", lambda x: 88 <= x <= 210)(r) and r["is_metal"] is False,
    ),
    ("bulk_modulus not between 88 and 210", holds("bulk_modulus", lambda x: not 88 <= x <= 210)),
    ("is_metal", lambda r: r["is_metal"]),
    ("is_metal = false", lambda r: r["is_metal"] is False),
    ("is_metal IS NOT TRUE", lambda r: r["is_metal"] is not True),
    ("is_metal is false", lambda r: r["is_metal"] is False),
    ("is_metal = (volume > 40)", lambda r: r["is_metal"] == (r["volume"] > 40)),
    ('crystal_system = "cubic"', lambda r: r["crystal_system"] == "cubic"),
    ("crystal_system != 'cubic'", holds("crystal_system", lambda x: x != "cubic")),
    ("crystal_system <> 'cubic'", holds("crystal_system", lambda x: x != "cubic")),
    ('"crystal_system" = "cubic"', lambda r: r["crystal_system"] == "cubic"),
    ("CRYSTAL_SYSTEM = 'cubic'", lambda r: r["crystal_system"] == "cubic"),
    ("id = chemsys OR reduced_formula = chemsys", lambda r: r["reduced_formula"] == r["chemsys"]),
    ("reduced_formula = 'it''s \"x\"'", lambda r: r["id"] == "MP-5"),
    ('reduced_formula = "it\'s \\"x\\""', lambda r: r["id"] == "MP-5"),
    ('reduced_formula = "it\'s ""x"""', lambda r: r["id"] == "MP-5"),
    ('chemical_formula_reduced = "O2Ti"', lambda r: r["reduced_formula"] == "O2Ti"),
    ("nelements >= 2 AND nsites < 6", lambda r: r["n_elements"] >= 2 and r["n_atoms"] < 6),
    ("crystal_system IS NULL", lambda r: r["crystal_system"] is None),
    ("crystal_system IS NOT NULL", lambda r: r["crystal_system"] is not None),
    ("bulk_modulus IS UNKNOWN", lambda r: known(r, "bulk_modulus") is None),
    ("bulk_modulus IS KNOWN", lambda r: known(r, "bulk_modulus") is not None),
    ("bulk_modulus is not known", lambda r: known(r, "bulk_modulus") is None),
    ("spacegroup IN (225, 227)", lambda r: r["spacegroup"] in (225, 227)),
    ("spacegroup NOT IN (225,227)", holds("spacegroup", lambda x: x not in (225, 227))),
    ("id IN (\"mp-1\", 'mp-66')", lambda r: r["id"] in ("mp-1", "mp-66")),
    ('id LIKE "mp-%"', lambda r: r["id"].startswith("mp-")),
    ('id ILIKE "mp-_"', lambda r: r["id"].lower().startswith("mp-") and len(r["id"]) == 4),
    ('id NOT LIKE "mp-%"', lambda r: not r["id"].startswith("mp-")),
    ('id CONTAINS "%_"', lambda r: "%_" in r["id"]),
    ('id STARTS WITH "mp-2"', lambda r: r["id"].startswith("mp-2")),
    ('id STARTS "mp-2"', lambda r: r["id"].startswith("mp-2")),
    ('id ENDS WITH "9"', lambda r: r["id"].endswith("9")),
    (
        "shear_modulus / bulk_modulus < 0.5",
        lambda r: bool(known(r, "bulk_modulus")) and r["shear_modulus"] / r["bulk_modulus"] < 0.5,
    ),
    ("volume / 0 > 1 OR volume / 0 <= 1", lambda r: False),
    ("volume * volume * 0 = 0", lambda r: r["volume"] < 1e200),
    ("10 - 4 - 3 = 3 AND 2 + 3 * 4 = 14 AND 12 / 2 / 3 = 2", lambda r: True),
    ("-(volume - 50) * 2 >= +10 - -1", lambda r: -(r["volume"] - 50) * 2 >= 11),
    (
        "n_atoms = 1 OR n_atoms = 2 AND n_elements = 2",
        lambda r: r["n_atoms"] == 1 or (r["n_atoms"] == 2 and r["n_elements"] == 2),
    ),
    (
        "(n_atoms = 1 OR n_atoms = 2) AND n_elements = 2",
        lambda r: r["n_atoms"] == 2 and r["n_elements"] == 2,
    ),
    ("spacegroup" + " * spacegroup" * 12 + " > 1", holds("spacegroup", lambda x: x**13 > 1)),
    ('elements HAS "Ti"', lambda r: "Ti" in elements(r)),
    ('elements HAS "C"', lambda r: "C" in elements(r)),
    ('NOT elements HAS "Ti"', lambda r: "Ti" not in elements(r)),
    ('elements HAS ALL "Ti", "O"', lambda r: {"Ti", "O"} <= elements(r)),
    ('elements HAS ANY "Si","Na"', lambda r: bool({"Si", "Na"} & elements(r))),
    ('elements HAS ONLY "Ti","O","Fe"', lambda r: elements(r) <= {"Ti", "O", "Fe"}),
    ("elements LENGTH 2", lambda r: len(elements(r)) == 2),
    ("elements LENGTH >= 2", lambda r: len(elements(r)) >= 2),
    ("  ", lambda r: True),
]


@pytest.mark.parametrize(("expression", "keep"), EXAMPLES, ids=[text for text, _ in EXAMPLES])
def test_where_finds_what_python_finds(
    database: duckdb.DuckDBPyConnection, expression: str, keep: Filter
) -> None:
    assert found(database, parse_where(expression, COLUMNS)) == filtered(keep)


def test_the_examples_tell_rows_apart() -> None:
    trivial = [text for text, keep in EXAMPLES if len(filtered(keep)) in (0, len(ROWS))]
    assert len(trivial) <= 5


REFUSED = {
    "bulk_modulos > 5": 'no column "bulk_modulos"; did you mean bulk_modulus',
    "crystal_system = cubic": "text goes in quotes",
    "is_metal = 1": r"cannot compare is_metal \(boolean\) with the number 1 \(number\)",
    "id > 1": r"cannot compare id \(text\)",
    "id IN (1, 2)": "cannot compare id",
    "volume BETWEEN 'a' AND 'b'": "cannot compare volume",
    "is_metal BETWEEN true AND false": "BETWEEN needs numbers or text",
    "is_metal > false": "compare it with = or !=",
    "volume + id > 1": '"\\+" needs a number, and id is text',
    "volume LIKE 'a'": "LIKE needs text",
    "volume CONTAINS 'a'": "CONTAINS needs text",
    "volume IS TRUE": "IS TRUE needs a condition",
    "NOT volume": "NOT needs a condition",
    "is_metal AND volume": "AND needs a condition",
    "volume": "the expression needs a condition",
    "'text'": "the expression needs a condition",
    "volume = NULL": "write IS NULL",
    "volume > ": "ends too early",
    "volume > 3 is_metal": 'unexpected "is_metal", at character 12',
    "volume > 3)": 'unexpected "\\)"',
    "(volume > 3": 'expected "\\)" before the end',
    "volume NOT 5": 'unexpected "5"',
    "1 < volume < 5": "cannot be chained",
    "volume IS 5": "after IS comes",
    "volume > 1e999": "too large",
    "id = 'abc": "quote at character 6 is never closed",
    'elements HAS "Xx"': '"Xx" is not an element',
    'elements HAS "ti"': "did you mean Ti",
    "elements HAS Ti": "elements in quotes",
    'elements HAS "Ti", "O"': "HAS ALL, HAS ANY or HAS ONLY",
    'id HAS "Ti"': "HAS asks about elements",
    "id LENGTH 2": "LENGTH asks about elements",
    "read_csv('/etc/passwd') = 'x'": "functions",
    "getenv('HOME') = 'x'": "functions",
    "CAST(id AS INTEGER) = 1": "functions",
    "id IN (SELECT id)": "SELECT has no place",
    "(SELECT 1) = 1": "SELECT has no place",
    "is_metal; DROP TABLE materials": 'unexpected ";"',
    "is_metal -- comment": "comment",
    "is_metal /* comment */": "comment",
    "volume > ?": 'unexpected "\\?"',
    "volume > $1": 'unexpected "\\$"',
    "volume::text = 'x'": 'unexpected ":"',
    "materials.volume > 1": 'unexpected "\\."',
    "[1] = 1": 'unexpected "\\["',
    "* = 1": 'unexpected "\\*"',
    "é = 1": "unexpected",
    "id = '\ud800'": "Unicode",
    "volume > 1 AND" * 2000: "characters",
    "1 + " * 2000 + "1 > 0": r"more than 200 of \+ - \* /",
    "(" * 400 + "is_metal" + ")" * 400: "nested",
    "NOT " * 400 + "is_metal": "nested",
    "- " * 100 + "volume > 1": "nested",
}


@pytest.mark.parametrize("expression", REFUSED, ids=lambda text: ascii(text[:40]))
def test_refusals_are_one_clear_line(expression: str) -> None:
    with pytest.raises(QueryError, match=REFUSED[expression]) as raised:
        parse_where(expression, COLUMNS)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


def test_a_missing_column_is_not_reached_through_an_alias_or_length() -> None:
    for expression in ("nsites = 1", "elements LENGTH 2"):
        with pytest.raises(QueryError, match="no column"):
            parse_where(expression, {"elements": "text"})


@pytest.mark.parametrize(
    "expression",
    [
        "(" * 32 + "volume" + ")" * 32 + " > 1",
        "volume > 1" + " + 1" * 200,
        "volume > 1" + " / volume" * 200,
        "volume > 1" + " AND volume > 1" * 1200,
        "NOT (" * 16 + "is_metal" + ")" * 16,
        "id IN (" + ", ".join(["'mp-1'"] * 2400) + ")",
    ],
    ids=["parentheses", "sum", "quotient", "conjunction", "negation", "list"],
)
def test_the_largest_expressions_run(database: duckdb.DuckDBPyConnection, expression: str) -> None:
    found(database, parse_where(expression, COLUMNS))


def test_no_text_of_the_user_reaches_the_sql() -> None:
    condition = parse_where("id = 'secret' OR volume > 98765 OR id LIKE \"secret%\"", COLUMNS)
    assert condition.parameters == ("secret", 98765.0, "secret%")
    assert "secret" not in condition.sql
    assert "98765" not in condition.sql


def test_column_names_are_quoted(database: duckdb.DuckDBPyConnection) -> None:
    name = 'od"d name'
    database.execute('CREATE OR REPLACE TEMP TABLE odd AS SELECT 2 AS "od""d name"')
    for condition in (
        parse_range(name, "1:3"),
        parse_where('"od\\"d name" = 2', {name: "number"}),
    ):
        sql = f"SELECT * FROM odd WHERE {condition.sql}"
        assert database.execute(sql, list(condition.parameters)).fetchall() == [(2,)]


# --- generated expressions ------------------------------------------------------------------


class Generated(NamedTuple):
    """An expression and what it is worth for a row; None is unknown."""

    text: str
    value: Callable[[Row], Any]


def lift(function: Callable[..., Any], *parts: Generated) -> Callable[[Row], Any]:
    """The function of the parts' values, unknown where one of them or the result is."""

    def value(row: Row) -> Any:
        values = [part.value(row) for part in parts]
        if any(x is None for x in values):
            return None
        result = function(*values)
        return None if result != result else result

    return value


def column(name: str) -> Generated:
    return Generated(name, lambda row: known(row, name))


def conjunction(values: list[Any]) -> Any:
    return False if False in values else None if None in values else True


ARITHMETIC: dict[str, Callable[[float, float], float | None]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y if y else None,
}
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda x, y: x == y,
    "!=": lambda x, y: x != y,
    "<": lambda x, y: x < y,
    ">=": lambda x, y: x >= y,
}
small_numbers = st.sampled_from([0.0, 1.0, 2.0, 0.5, 62.0, 227.0])
numbers = st.recursive(
    st.sampled_from(["volume", "bulk_modulus", "shear_modulus", "spacegroup"]).map(column)
    | small_numbers.map(lambda x: Generated(repr(x), lambda row: x)),
    lambda inner: (
        st.builds(
            lambda a, op, b: Generated(f"({a.text} {op} {b.text})", lift(ARITHMETIC[op], a, b)),
            inner,
            st.sampled_from(sorted(ARITHMETIC)),
            inner,
        )
        | inner.map(lambda a: Generated(f"(- {a.text})", lift(lambda x: -x, a)))
    ),
    max_leaves=4,
)
texts = st.sampled_from(["id", "crystal_system", "elements", "chemsys"]).map(column) | (
    st.sampled_from(["cubic", "", "mp-1", "O", "it's"]).map(
        lambda x: Generated("'" + x.replace("'", "''") + "'", lambda row: x)
    )
)


def compared(pair: st.SearchStrategy[Generated]) -> st.SearchStrategy[Generated]:
    return st.builds(
        lambda a, op, b: Generated(f"{a.text} {op} {b.text}", lift(COMPARISONS[op], a, b)),
        pair,
        st.sampled_from(sorted(COMPARISONS)),
        pair,
    ) | st.builds(
        lambda a, b, c: Generated(
            f"{a.text} BETWEEN {b.text} AND {c.text}",
            lambda row: conjunction(
                [
                    lift(lambda x, y: x >= y, a, b)(row),
                    lift(lambda x, y: x <= y, a, c)(row),
                ]
            ),
        ),
        pair,
        pair,
        pair,
    )


conditions = st.recursive(
    compared(numbers)
    | compared(texts)
    | st.just(column("is_metal"))
    | numbers.map(lambda a: Generated(f"{a.text} IS KNOWN", lambda r: a.value(r) is not None)),
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map(
            lambda parts: Generated(
                "(" + " AND ".join(part.text for part in parts) + ")",
                lambda row: conjunction([part.value(row) for part in parts]),
            )
        )
        | st.lists(inner, min_size=2, max_size=3).map(
            lambda parts: Generated(
                "(" + " or ".join(f"not ({part.text})" for part in parts) + ")",
                lambda row: {True: False, False: True, None: None}[
                    conjunction([part.value(row) for part in parts])
                ],
            )
        )
    ),
    max_leaves=5,
)


@given(generated=conditions)
def test_generated_expressions_agree_with_python(
    database: duckdb.DuckDBPyConnection, generated: Generated
) -> None:
    condition = parse_where(generated.text, COLUMNS)
    assert found(database, condition) == filtered(generated.value)


WORDS = (
    "AND OR NOT BETWEEN IN LIKE IS NULL KNOWN UNKNOWN TRUE FALSE HAS ALL ANY ONLY CONTAINS STARTS "
    'WITH ENDS LENGTH = == != < >= + - * / ( ) , ; . \' " -- 1 2.5 1e5 \'Ti\' "O" "id" volume '
    "bulk_modulus is_metal elements id n_elements SELECT getenv( é"
)
soup = st.lists(st.sampled_from(WORDS.split()), max_size=9).map(" ".join)
likely = st.tuples(
    st.sampled_from(["volume", "is_metal", "elements", "id", "1", "'a'", "(volume)", "- 1"]),
    st.sampled_from(["=", "<", "IN (", "IS", "HAS", "LIKE", "NOT LIKE", "LENGTH", "+ 1 >", ""]),
    st.sampled_from(["volume", "NULL", "'Ti'", '"Ti", "O"', "2", "1, 2)", "TRUE", "id", ""]),
).map(" ".join)


@given(expression=st.text(max_size=40) | soup | likely)
@example(expression="1 = 1")
@example(expression="TRUE")
@example(expression="'a' IS NULL")
@example(expression="id = '\x00'")
def test_any_text_runs_or_is_a_query_error(
    database: duckdb.DuckDBPyConnection, expression: str
) -> None:
    try:
        condition = parse_where(expression, COLUMNS)
    except QueryError:
        return
    assert condition.sql.count("?") == len(condition.parameters)
    found(database, condition)


# --- ranges, elements, formulas -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("24:112", lambda x: 24 <= x <= 112),
        (" 24 : 112.5 ", lambda x: 24 <= x <= 112.5),
        ("112:", lambda x: x >= 112),
        (":112", lambda x: x <= 112),
        ("112", lambda x: x == 112),
        ("-1.5:0", lambda x: -1.5 <= x <= 0),
        ("1e2:2.1E+2", lambda x: 100 <= x <= 210),
        ("112:112", lambda x: x == 112),
    ],
)
def test_range(
    database: duckdb.DuckDBPyConnection, text: str, keep: Callable[[float], bool]
) -> None:
    expected = filtered(holds("bulk_modulus", keep))
    assert expected
    assert found(database, parse_range("bulk_modulus", text)) == expected


@pytest.mark.parametrize(
    "text",
    ["200:100", "", ":", " : ", "a", "1:b", "1:2:3", "nan:1", ":inf", "1-2", "1_0", "\uff11"],
)
def test_bad_range(text: str) -> None:
    with pytest.raises(QueryError, match=r"^volume: .*(100:200|empty)"):
        parse_range("volume", text)


@given(text=st.text(max_size=12) | st.text("0123456789:.eE+- ", max_size=12))
def test_any_range_runs_or_is_a_query_error(database: duckdb.DuckDBPyConnection, text: str) -> None:
    try:
        condition = parse_range("volume", text)
    except QueryError:
        return
    found(database, condition)


def test_elements(database: duckdb.DuckDBPyConnection) -> None:
    def search(*arguments: list[str]) -> list[str]:
        return found(database, elements_condition(*arguments))

    assert search(["O", "Ti"]) == filtered(lambda r: {"O", "Ti"} <= elements(r))
    assert search([], ["Ti", "Si"]) == filtered(lambda r: not {"Ti", "Si"} & elements(r))
    assert search(["Ti"], ["Na"]) == ["mp-2657", "mp-390", "mp-1"]
    assert search(["C"]) == ["mp-66"], "C is not Cl"
    assert elements_condition([], []) == Condition()


def test_bad_elements() -> None:
    with pytest.raises(QueryError, match='"ti" is not an element; did you mean Ti'):
        elements_condition(["ti"], [])
    with pytest.raises(QueryError, match="not an element"):
        elements_condition([], [""])
    with pytest.raises(QueryError, match="Ti cannot be both"):
        elements_condition(["Ti", "O"], ["Ti"])


def test_chemsys(database: duckdb.DuckDBPyConnection) -> None:
    assert found(database, chemsys_condition("Ti-O")) == ["mp-2657", "mp-390"]
    assert found(database, chemsys_condition("Si")) == ["mp-149"]
    for text in ("Ti-Xx", "Ti,O", "", "Ti-", "*"):
        with pytest.raises(QueryError, match="written as in Ti-O"):
            chemsys_condition(text)


@pytest.mark.parametrize("text", ["TiO2", "O2Ti", "Ti2O4", " (TiO2)3 ", "OTiO", "(O)2Ti1"])
def test_formula(database: duckdb.DuckDBPyConnection, text: str) -> None:
    assert canonical_formula(text) == "O2Ti"
    assert found(database, formula_condition(text)) == ["mp-2657", "mp-390"]


def test_canonical_formula() -> None:
    assert canonical_formula("Ca(OH)2") == "CaH2O2"
    assert canonical_formula("Al2(Si(O2)2)3") == "Al2O12Si3"
    assert canonical_formula("Co") == "Co"
    assert canonical_formula("CO") == "CO"
    assert canonical_formula("Si8") == "Si"
    for symbol in chemical_symbols[1:]:
        assert canonical_formula(symbol + "3") == symbol


@pytest.mark.parametrize(
    "text",
    [
        *("", "tio2", "Xx2", "X", "Ti0", "Ti02", "Ti9999999", "2Ti", "Fe0.5"),
        *("Ti)", "(Ti", "()", "(" * 200 + "Ti" + ")" * 200),
        *("Ti-O", "Ti O", "Ti²"),
    ],
)
def test_bad_formula(text: str) -> None:
    with pytest.raises(QueryError, match=r"chemical formula|not an element"):
        canonical_formula(text)


@given(text=st.text(max_size=20) | st.text("TiONa()0123", max_size=20))
def test_canonical_formula_is_a_fixed_point(text: str) -> None:
    try:
        formula = canonical_formula(text)
    except QueryError:
        return
    assert canonical_formula(formula) == formula


# --- conditions -----------------------------------------------------------------------------


def test_conditions_join(database: duckdb.DuckDBPyConnection) -> None:
    either = parse_where("n_atoms = 1 OR n_atoms = 6", COLUMNS)
    joined = Condition() & parse_range("volume", "20:") & either & elements_condition(["Ti"])
    assert found(database, joined) == ["mp-2657", "mp-390"]
    assert Condition() & Condition() == Condition()
    assert either & Condition() == either == Condition() & either


def test_importing_costs_nothing_but_the_standard_library() -> None:
    heavy = {"numpy", "pandas", "duckdb", "sqlglot", "ase", "torch", "spglib"}
    code = f"import sys, chgdb.query; print({heavy!r} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "set()"


def test_a_condition_knows_which_columns_it_asks_for() -> None:
    condition = parse_where("bulk_modulus > 1 AND id <> 'volume'", COLUMNS)
    condition &= parse_range("n_atoms", "1:")
    assert all(condition.asks([name]) for name in ("bulk_modulus", "id", "n_atoms"))
    assert not condition.asks(["volume", "shear_modulus"])
    assert condition.asks(["volume", "id"])
    assert not Condition().asks(COLUMNS)

"""What a search asks for; tests/test_database.py holds the filters against a store."""

from __future__ import annotations

import pytest

from chgdb.errors import QueryError
from chgdb.filters import column_named, columns_named, condition_of, listed
from chgdb.query import Condition


def test_nothing_asked_is_no_condition() -> None:
    assert condition_of() == Condition()


@pytest.mark.parametrize(
    ("text", "names"),
    [("Ti,O", ["Ti", "O"]), (" Ti , O,,Ti", ["Ti", "O"]), (["O", " Ti"], ["O", "Ti"]), ("", [])],
)
def test_lists_may_be_text(text: str | list[str], names: list[str]) -> None:
    assert listed(text) == names


@pytest.mark.parametrize("name", ["bulk_modulus", "Bulk-Modulus", "BULK_MODULUS"])
def test_columns_go_by_many_names(name: str) -> None:
    assert column_named(name) == "bulk_modulus"
    assert columns_named(f"{name},id,{name}") == ["bulk_modulus", "id"]


def test_an_unknown_column_is_told_with_the_nearest() -> None:
    with pytest.raises(QueryError, match="did you mean bulk_modulus"):
        column_named("bulk_modulos")
    with pytest.raises(QueryError, match="no columns to show"):
        columns_named(" , ")


@pytest.mark.parametrize(
    ("source", "condition"),
    [
        ("dft", Condition("source = ?", ("dft",))),
        ("Charge3Net", Condition("source = ?", ("charge3net",))),
        ("none", Condition("source IS NULL")),
    ],
)
def test_source(source: str, condition: Condition) -> None:
    assert condition_of(source=source) == condition


@pytest.mark.parametrize("source", ["vasp", "", "dft'"])
def test_a_source_that_there_is_not(source: str) -> None:
    with pytest.raises(QueryError, match="use dft, charge3net or none"):
        condition_of(source=source)


@pytest.mark.parametrize(
    ("bounds", "parameters"),
    [((100, None), (100.0,)), ("100:200", (100.0, 200.0)), (4, (4.0,)), ((None, 3.5), (3.5,))],
)
def test_ranges(bounds: object, parameters: tuple[float, ...]) -> None:
    condition = condition_of(ranges={"volume": bounds})  # type: ignore[dict-item]
    assert condition.parameters == parameters


def test_a_range_needs_numbers() -> None:
    with pytest.raises(QueryError, match="a range needs a column of numbers"):
        condition_of(ranges={"formula": "1:2"})

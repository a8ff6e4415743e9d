"""The table of elements."""

from ase.data import chemical_symbols

from chgdb.elements import SYMBOLS


def test_symbols_are_those_of_ase() -> None:
    assert list(SYMBOLS) == chemical_symbols[1:]

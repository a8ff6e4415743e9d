"""The table of elements."""

from ase.data import chemical_symbols

from chgdb.elements import SYMBOLS, formula_rank


def test_symbols_are_those_of_ase() -> None:
    assert list(SYMBOLS) == chemical_symbols[1:]


def test_elements_sort_as_chemists_write_them() -> None:
    for formula in ("Si O", "Na Cl", "Ga As", "C H O", "Cu Rh O", "Cd Er Rh", "Si C", "N H", "B N"):
        symbols = formula.split()
        assert sorted(set(symbols), key=formula_rank) == symbols

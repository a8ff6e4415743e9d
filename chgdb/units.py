"""Unit conventions and physical constants (CODATA 2018).

Inside chgdb lengths are in Angstrom, densities in e/A^3 and volumes in A^3.
"""

__all__ = ["ATOMIC_MASS_PER_A3", "BOHR", "RYDBERG"]

BOHR = 0.529177210903
"""Bohr radius in Angstrom."""

RYDBERG = 13.605693122994
"""Rydberg energy in eV."""

ATOMIC_MASS_PER_A3 = 1.66053906660
"""One atomic mass unit per A^3 in g/cm^3."""

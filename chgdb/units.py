"""Unit conventions and physical constants (CODATA 2018).

Inside chgdb lengths are in Angstrom, densities in e/A^3 and volumes in A^3.
"""

__all__ = ["ATOMIC_MASS_PER_A3", "BOHR", "HBAR_PER_BOLTZMANN", "RYDBERG"]

BOHR = 0.529177210903
"""Bohr radius in Angstrom."""

RYDBERG = 13.605693122994
"""Rydberg energy in eV."""

ATOMIC_MASS_PER_A3 = 1.66053906660
"""One atomic mass unit per A^3 in g/cm^3."""

HBAR_PER_BOLTZMANN = 1.054571817e-34 / 1.380649e-23
"""The reduced Planck constant over the Boltzmann constant, K s."""

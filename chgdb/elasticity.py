"""What the isotropic elastic moduli of a solid imply: stiffness, sound, the Debye temperature.

Everywhere in one unit system: moduli in GPa, volume in A^3 per atom, mass in u per atom. A modulus,
volume or mass that is not positive and finite has no answer, which is nan: an elastically unstable
lattice, as some tables list, has no sound velocity.

Scalars give a float, arrays are broadcast against each other and give an array.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from chgdb.units import ATOMIC_MASS_PER_A3, HBAR_PER_BOLTZMANN

__all__ = ["debye_temperature", "poisson_ratio", "sound_velocities", "youngs_modulus"]

_N = TypeVar("_N", float, NDArray[np.float64])


def youngs_modulus(bulk: _N, shear: _N) -> _N:
    """E = 9 K G / (3 K + G) of an isotropic solid, GPa.

    Landau and Lifshitz, Theory of Elasticity, section 5.

    Args:
        bulk: K, GPa.
        shear: G, GPa.
    """
    with np.errstate(all="ignore"):
        k, g = _positive(bulk, shear)
        result: _N = _result(9 * k * g / (3 * k + g))
    return result


def poisson_ratio(bulk: _N, shear: _N) -> _N:
    """(3 K - 2 G) / (2 (3 K + G)) of an isotropic solid, between -1 and 1/2.

    Landau and Lifshitz, Theory of Elasticity, section 5.

    Args:
        bulk: K, GPa.
        shear: G, GPa.
    """
    with np.errstate(all="ignore"):
        k, g = _positive(bulk, shear)
        result: _N = _result((3 * k - 2 * g) / (2 * (3 * k + g)))
    return result


def sound_velocities(bulk: _N, shear: _N, volume_per_atom: _N, mass_per_atom: _N) -> tuple[_N, _N]:
    """Of transverse and of longitudinal waves, sqrt(G/rho) and sqrt((K + 4G/3)/rho), m/s.

    Landau and Lifshitz, Theory of Elasticity, section 22.

    Args:
        bulk: K, GPa.
        shear: G, GPa.
        volume_per_atom: A^3.
        mass_per_atom: u.
    """
    with np.errstate(all="ignore"):
        transverse, longitudinal = _velocities(
            *_positive(bulk, shear, volume_per_atom, mass_per_atom)
        )
        results: tuple[_N, _N] = _result(transverse), _result(longitudinal)
    return results


def debye_temperature(bulk: _N, shear: _N, volume_per_atom: _N, mass_per_atom: _N) -> _N:
    """The Debye temperature of an isotropic elastic continuum with three modes for each atom, K.

    (hbar / k_B) (6 pi^2 / V)^(1/3) v, with the mean velocity v = ((2/v_t^3 + 1/v_l^3) / 3)^(-1/3):
    O. L. Anderson, J. Phys. Chem. Solids 24, 909 (1963).

    Args:
        bulk: K, GPa.
        shear: G, GPa.
        volume_per_atom: V, A^3.
        mass_per_atom: u.
    """
    with np.errstate(all="ignore"):
        k, g, volume, mass = _positive(bulk, shear, volume_per_atom, mass_per_atom)
        transverse, longitudinal = _velocities(k, g, volume, mass)
        # the ratio of the velocities, at least sqrt(4/3), stays in range where their cubes do not
        ratio = transverse / longitudinal
        mean = transverse * ((2 + ratio**3) / 3) ** (-1 / 3)
        wave_number = np.cbrt(6 * np.pi**2 / volume) * 1e10
        result: _N = _result(HBAR_PER_BOLTZMANN * wave_number * mean)
    return result


def _velocities(
    k: NDArray[np.float64],
    g: NDArray[np.float64],
    volume: NDArray[np.float64],
    mass: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Transverse and longitudinal, m/s."""
    density = mass / volume * (ATOMIC_MASS_PER_A3 * 1e3)  # kg/m^3
    return np.sqrt(1e9 * g / density), np.sqrt(1e9 * (k + 4 / 3 * g) / density)


def _positive(*values: float | NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Arrays of one shape, nan where any of them is not positive and finite."""
    arrays = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in values))
    good = np.all([(array > 0) & np.isfinite(array) for array in arrays], axis=0)
    return [np.where(good, array, np.nan) for array in arrays]


def _result(values: Any) -> Any:
    """A float for one number; nan where the numbers were beyond the range of floats."""
    finite = np.where(np.isfinite(values), values, np.nan)
    return float(finite) if finite.ndim == 0 else finite

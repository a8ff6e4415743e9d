"""Elastic moduli and what follows from them: textbook, laws, the tabulated values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_data import pydemi_bundle

from chgdb.composition import mass_per_atom, parse_formula, reference_valence
from chgdb.elasticity import (
    debye_temperature,
    poisson_ratio,
    sound_velocities,
    youngs_modulus,
)
from chgdb.scores import score

MODULUS = st.floats(0.1, 1000)
VOLUME = st.floats(3, 100)
MASS = st.floats(1, 300)

# K and G in GPa (Voigt-Reuss-Hill, room temperature), V in A^3, m in u; elastic Debye
# temperature of the element in K, C. Kittel, Introduction to Solid State Physics, 8th ed., p. 116
SOLIDS = {
    "Al": (76.1, 26.1, 16.60, 26.98, 428),
    "Si": (97.8, 66.6, 20.02, 28.09, 645),
    "Cu": (137.0, 47.7, 11.81, 63.55, 343),
    "W": (310.0, 160.0, 15.86, 183.84, 400),
    "C": (443.0, 535.0, 5.67, 12.01, 2230),
}


@pytest.mark.parametrize("element", SOLIDS)
def test_the_debye_temperatures_of_the_textbook(element: str) -> None:
    """Within what the moduli of 0 K and of 300 K differ by."""
    *numbers, expected = SOLIDS[element]
    assert debye_temperature(*numbers) == pytest.approx(expected, rel=0.05)


def test_aluminium_in_longhand() -> None:
    """In SI units from the formula of Anderson's paper: h/k (3 N rho / 4 pi M)^(1/3) v."""
    k, g, volume, mass = 76.1e9, 26.1e9, 16.60e-30, 26.98 * 1.66053906660e-27
    transverse = math.sqrt(g / (mass / volume))
    longitudinal = math.sqrt((k + 4 * g / 3) / (mass / volume))
    mean = (1 / 3 * (2 / transverse**3 + 1 / longitudinal**3)) ** (-1 / 3)
    theta = 6.62607015e-34 / 1.380649e-23 * (3 / (4 * math.pi * volume)) ** (1 / 3) * mean
    assert (transverse, longitudinal) == pytest.approx((3110, 6410), abs=1)
    assert sound_velocities(76.1, 26.1, 16.60, 26.98) == pytest.approx((transverse, longitudinal))
    assert debye_temperature(76.1, 26.1, 16.60, 26.98) == pytest.approx(theta, rel=1e-9)


def test_a_cauchy_solid() -> None:
    """K = 5 G / 3 gives a Poisson ratio of 1/4, E = 5 G / 2 and velocities of ratio sqrt 3."""
    assert poisson_ratio(50.0, 30.0) == pytest.approx(0.25)
    assert youngs_modulus(50.0, 30.0) == pytest.approx(75.0)
    transverse, longitudinal = sound_velocities(50.0, 30.0, 20.0, 30.0)
    assert longitudinal / transverse == pytest.approx(math.sqrt(3))


@settings(deadline=None)
@given(bulk=MODULUS, shear=MODULUS)
def test_the_four_constants_agree(bulk: float, shear: float) -> None:
    young, poisson = youngs_modulus(bulk, shear), poisson_ratio(bulk, shear)
    assert -1 < poisson < 0.5
    assert young == pytest.approx(2 * shear * (1 + poisson), rel=1e-12)
    assert young == pytest.approx(3 * bulk * (1 - 2 * poisson), rel=1e-9)


@settings(deadline=None)
@given(bulk=MODULUS, shear=MODULUS, volume=VOLUME, mass=MASS, factor=st.floats(0.1, 10))
def test_how_the_debye_temperature_scales(
    bulk: float, shear: float, volume: float, mass: float, factor: float
) -> None:
    """With the root of the moduli, of the inverse mass, and with V^(1/6)."""
    theta = debye_temperature(bulk, shear, volume, mass)
    stiffer = debye_temperature(factor * bulk, factor * shear, volume, mass)
    assert stiffer == pytest.approx(math.sqrt(factor) * theta)
    heavier = debye_temperature(bulk, shear, volume, factor * mass)
    assert heavier == pytest.approx(theta / math.sqrt(factor))
    larger = debye_temperature(bulk, shear, factor * volume, mass)
    assert larger == pytest.approx(factor ** (1 / 6) * theta)


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("bad", [0.0, -0.0, -3.0, math.nan, math.inf, -math.inf, 1e308, 1e-320])
def test_what_has_no_answer_is_nan_or_a_number(position: int, bad: float) -> None:
    """Warnings are errors here, so there are none."""
    numbers = [100.0, 50.0, 20.0, 30.0]
    numbers[position] = bad
    results = [debye_temperature(*numbers), *sound_velocities(*numbers)]
    if position < 2:
        results += [youngs_modulus(*numbers[:2]), poisson_ratio(*numbers[:2])]
    for result in results:
        assert type(result) is float
        assert not math.isinf(result)
        if not 0 < bad < math.inf:
            assert math.isnan(result)


def test_arrays_give_arrays_and_numbers_give_numbers() -> None:
    bulk = np.array([100.0, -1.0, 80.0])
    shear = np.array([50.0, 20.0, np.nan])
    volume, mass = np.full(3, 20.0), np.full(3, 30.0)
    columns = [
        youngs_modulus(bulk, shear),
        poisson_ratio(bulk, shear),
        debye_temperature(bulk, shear, volume, mass),
        *sound_velocities(bulk, shear, volume, mass),
    ]
    numbers = [
        youngs_modulus(100.0, 50.0),
        poisson_ratio(100.0, 50.0),
        debye_temperature(100.0, 50.0, 20.0, 30.0),
        *sound_velocities(100.0, 50.0, 20.0, 30.0),
    ]
    for column, number in zip(columns, numbers, strict=True):
        assert type(number) is float
        np.testing.assert_array_equal(column, [number, np.nan, np.nan])
    assert bulk[1] == -1.0
    assert youngs_modulus(bulk[:, None], shear[None]).shape == (3, 3)


@pytest.fixture(scope="module")
def tabulated(shared: Path) -> pd.DataFrame:
    """The reference properties with volume and mass per atom.

    The volume does not come from them: it is the number of valence electrons over the mean density
    of the authors' VASP runs.
    """
    bundle = pydemi_bundle()
    descriptors = pd.DataFrame(bundle["dataset"]["X"], columns=bundle["features"], dtype=float)
    mean_density = descriptors["rho_min"] / descriptors["rho_min_ratio"]
    counts = [parse_formula(formula) for formula in bundle["dataset"]["formula"]]
    added = pd.DataFrame(
        {
            "material_id": bundle["dataset"]["material_id"],
            "volume": [reference_valence(c) for c in counts] / mean_density,
            "mass": [mass_per_atom(c) for c in counts],
        }
    )
    table = pd.read_csv(shared / "data" / "properties_6059.csv.gz")
    return table.merge(added, on="material_id", validate="one_to_one")


def test_the_tabulated_debye_temperatures(tabulated: pd.DataFrame) -> None:
    numbers = tabulated[["bulk_modulus", "shear_modulus", "volume", "mass"]].to_numpy(float).T
    theta = debye_temperature(*numbers)
    rows = np.isfinite(theta)
    assert rows.sum() > 5900
    result = score(tabulated["debye_temperature"][rows], theta[rows])
    assert result.n > 5900
    assert result.r2 > 0.999


def test_the_tabulated_velocities(tabulated: pd.DataFrame) -> None:
    """They scale with V^(1/2), the Debye temperature with V^(1/6): the volumes differ a little."""
    numbers = tabulated[["bulk_modulus", "shear_modulus", "volume", "mass"]].to_numpy(float).T
    transverse, longitudinal = sound_velocities(*numbers)
    known = tabulated["sound_velocity_transverse"], tabulated["sound_velocity_longitudinal"]
    assert score(known[0], transverse).r2 > 0.998
    assert score(known[1], longitudinal).r2 > 0.998
    assert np.nanmedian(np.abs(longitudinal / transverse / (known[1] / known[0]) - 1)) < 1e-4


def test_the_tabulated_moduli(tabulated: pd.DataFrame) -> None:
    """But for a few rows whose table contradicts itself, such as MnBe2 and YFe5."""
    bulk, shear = tabulated["bulk_modulus"].to_numpy(), tabulated["shear_modulus"].to_numpy()
    stiffness = np.abs(youngs_modulus(bulk, shear) / tabulated["youngs_modulus"] - 1)
    poisson = np.abs(poisson_ratio(bulk, shear) - tabulated["poisson_ratio"])
    assert (stiffness < 0.01).mean() > 0.99
    assert (poisson < 0.005).mean() > 0.99

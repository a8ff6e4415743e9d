"""Errors of densities."""

from __future__ import annotations

import numpy as np
import pytest
from analytic import SKEW, crystal

from chgdb.density import ChargeDensity
from chgdb.errors import InputError
from chgdb.metrics import compare, compare_cells, nmae


def test_nmae_by_hand() -> None:
    reference = np.array([[[1.0, -1.0], [2.0, 4.0]]])
    values = np.array([[[1.5, -1.0], [2.0, 3.0]]])
    assert nmae(values, reference) == pytest.approx(100 * 1.5 / 8)
    assert nmae(reference, reference) == 0.0


def test_nmae_does_not_change_with_the_unit() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 4, 5, 6))
    assert nmae(first * 40, second * 40) == pytest.approx(nmae(first, second))


def test_nmae_refuses_what_has_no_value() -> None:
    with pytest.raises(InputError, match="cannot compare grids"):
        nmae(np.ones((2, 2, 2)), np.ones((2, 2, 3)))
    with pytest.raises(InputError, match="zero everywhere"):
        nmae(np.ones((2, 2, 2)), np.zeros((2, 2, 2)))


def test_compare() -> None:
    reference = crystal()
    values = reference.values.copy()
    values[1, 2, 3] += 0.5
    error = compare(ChargeDensity(values, reference.structure), reference)
    assert error.max_error == pytest.approx(0.5)
    assert error.nmae == pytest.approx(100 * 0.5 / reference.values.sum())
    voxel = reference.structure.volume / reference.values.size
    assert error.electron_error == pytest.approx(0.5 * voxel)


def test_grids_of_one_cell_compare_on_that_of_the_reference() -> None:
    error = compare_cells(crystal((24, 25, 27)), crystal((30, 32, 36)))
    assert error.nmae < 1e-3
    assert abs(error.electron_error) < 1e-6
    same = crystal((20, 24, 27))
    assert compare_cells(same, same).nmae == 0.0


def test_cells_must_agree_to_the_decimals_of_a_chgcar() -> None:
    rounded = crystal(lattice=np.round(SKEW + 4e-6, 6))
    assert compare_cells(rounded, crystal()).nmae < 0.01
    with pytest.raises(InputError, match="lattices differ"):
        compare_cells(crystal(lattice=SKEW * 1.001), crystal())

from __future__ import annotations

import numpy as np
import pytest
from feature_tables import feature_table

from chgdb.composition import FRACTIONS
from chgdb.descriptors import CORE_BLIND, DESCRIPTORS
from chgdb.errors import InputError
from chgdb.inputs import GRID_BOUND, INPUT_SETS, InputSet, input_names, is_foreign, make_inputs


@pytest.mark.parametrize("kind", INPUT_SETS)
def test_names_and_columns_agree(kind: InputSet) -> None:
    table = feature_table(7)
    before = table.copy(deep=True)
    inputs = make_inputs(table, kind)
    assert inputs.values.shape == (7, len(input_names(kind)))
    assert inputs.fractions.shape == (7, len(FRACTIONS))
    np.testing.assert_allclose(inputs.fractions.sum(axis=1), 1)
    assert len(set(input_names(kind))) == len(input_names(kind))
    assert table.equals(before)
    one = make_inputs(table.iloc[3:4], kind)
    np.testing.assert_array_equal(one.values[0], inputs.values[3])
    assert len(make_inputs(table.iloc[:0], kind)) == 0


def test_every_column_is_what_its_name_says() -> None:
    table = feature_table(5)
    names = input_names("full")
    values = make_inputs(table, "full").values
    for name in ("zeta", "rho_int_mean", "fisher_information", "volume_per_atom"):
        np.testing.assert_array_equal(values[:, names.index(name)], table[name])
    iron = table.iloc[:1].assign(formula="Fe", volume_per_atom=11.5)
    row = make_inputs(iron, "full").values[0]
    assert row[names.index("mass_density")] == pytest.approx(8.06, abs=0.02)
    assert row[names.index("interstitial_charge")] == pytest.approx(11.5 * iron["rho_int_mean"][0])
    assert row[names.index("reference_density")] == pytest.approx(8 / 11.5)


def test_no_model_sees_extrema_of_the_grid() -> None:
    for kind in INPUT_SETS:
        assert not set(GRID_BOUND) & set(input_names(kind))


def test_core_blind_inputs_do_not_move_with_the_core() -> None:
    table = feature_table(6)
    core = [name for name in DESCRIPTORS if name not in (*CORE_BLIND, "f_int")]
    other = table.copy()
    other[core] = other[core] * 3 + 1
    # semicore electrons: more of them, and the same number between the atoms
    other["electrons_per_atom"] *= 2
    other["f_int"] /= 2
    one, two = (make_inputs(t, "core_blind").values for t in (table, other))
    np.testing.assert_allclose(one, two)
    one, two = (make_inputs(t, "full").values for t in (table, other))
    assert not np.allclose(one, two)


def test_foreign_is_seen_in_the_electrons() -> None:
    table = feature_table(4)
    table.loc[1, "electrons_per_atom"] += 0.02
    table.loc[2, "electrons_per_atom"] += 0.005
    assert is_foreign(table).tolist() == [False, True, False, False]
    unknown = table.iloc[:1].assign(formula="Es")
    assert is_foreign(unknown).tolist() == [True]


def test_symmetry_may_be_unknown() -> None:
    import pandas as pd

    table = feature_table(3)
    table["spacegroup"] = pd.array([225, None, 2], dtype="Int64")
    values = make_inputs(table, "composition").values[:, :2]
    np.testing.assert_array_equal(values, [[225, 6], [np.nan, np.nan], [2, 0]])


def test_a_formula_that_is_none_is_told() -> None:
    table = feature_table(2)
    table.loc[1, "formula"] = "Xx2"
    with pytest.raises(InputError, match="Xx"):
        make_inputs(table, "full")

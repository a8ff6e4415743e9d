"""Histograms of a selection among all materials."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from chgdb.database import Database
from chgdb.distributions import SHOWN, distributions
from chgdb.errors import QueryError

SHIPPED = ROOT / "store"


def test_counts_are_those_of_the_values() -> None:
    database = Database(SHIPPED)
    found = distributions(database, where="bulk_modulus > 200", elements="O")
    whole = database.search(columns=[*SHOWN, "crystal_system"])
    chosen = database.search(
        columns=[*SHOWN, "crystal_system"], where="bulk_modulus > 200", elements="O"
    )
    assert (found.total, found.selected) == (len(whole), len(chosen))
    for histogram in found.histograms:
        values = whole[histogram.column].dropna().to_numpy(float)
        edges = np.array(histogram.edges)
        inside = (values >= edges[0]) & (values <= edges[-1])
        assert histogram.known == len(values)
        assert sum(histogram.all) == inside.sum()
        assert histogram.outside == (~inside).sum()
        assert 0 < histogram.outside < 0.011 * len(values)
        assert len(histogram.all) == len(histogram.selected) == len(edges) - 1
        np.testing.assert_allclose(np.diff(edges), np.diff(edges)[0])
        third = chosen[histogram.column].between(edges[2], edges[3], inclusive="left")
        assert histogram.selected[2] == third.sum()
        assert all(
            part <= all_ for part, all_ in zip(histogram.selected, histogram.all, strict=True)
        )
    assert [h.column for h in found.histograms] == list(SHOWN)
    systems = {s.name: (s.all, s.selected) for s in found.crystal_systems}
    assert systems["cubic"] == tuple(
        (frame["crystal_system"] == "cubic").sum() for frame in (whole, chosen)
    )
    assert sum(count for count, _ in systems.values()) == len(whole)
    assert sum(count for _, count in systems.values()) == len(chosen)


def test_without_a_filter_everything_is_selected() -> None:
    found = distributions(Database(SHIPPED))
    assert found.total == found.selected
    assert all(h.all == h.selected for h in found.histograms)


def test_an_empty_store_has_empty_histograms(tmp_path: Path) -> None:
    database = Database(SHIPPED).sibling(tmp_path / "store")
    found = distributions(database)
    assert found.total == 0
    assert all(h.edges == h.all == h.selected == [] for h in found.histograms)
    assert [s.name for s in found.crystal_systems][-1] == "cubic"


def test_one_value_is_a_histogram(tmp_path: Path) -> None:
    database = Database(SHIPPED).sibling(tmp_path / "store")
    database.import_materials({"a": {"formula": "Si", "bulk_modulus": 90.0}})
    (histogram, *_) = distributions(database, where="bulk_modulus > 0").histograms
    assert sum(histogram.all) == sum(histogram.selected) == 1


def test_a_mistake_is_told() -> None:
    with pytest.raises(QueryError, match="bulk_modulus"):
        distributions(Database(SHIPPED), where="bulk_modulos > 1")

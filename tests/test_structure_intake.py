"""Structure files on their way into a store: predicted, resumed, and never in the place of DFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from conftest import gaussian_density

from chgdb.adding import AddReport
from chgdb.charge3net import PredictedDensity
from chgdb.cli import main
from chgdb.database import Database
from chgdb.density import Structure
from chgdb.errors import InputError, MissingExtraError
from chgdb.formats import write_density
from chgdb.structure_files import StructureEntry
from chgdb.structure_intake import read_entries

CUBE = np.eye(3) * 3.0


class FakeNetwork:
    """Predicts a peak at every atom, and nothing of polonium."""

    name = "fake"
    weights_sha256 = "f" * 64
    nmae = 0.75

    def __init__(self, device: str = "auto") -> None:
        self.predicted: list[str] = []

    def predict(
        self, structure: Structure, *, progress: Callable[[int, int], None] | None = None
    ) -> PredictedDensity:
        if "Po" in structure.species:
            raise InputError("Po: not among the elements")
        self.predicted.append(structure.formula)
        density = gaussian_density(structure.species, grid=(16, 16, 16))
        if progress:
            progress(1, 1)
        return PredictedDensity(density.values, structure, raw_electrons=15.9)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> FakeNetwork:
    network = FakeNetwork()
    monkeypatch.setattr("chgdb.charge3net.Charge3Net", lambda device: network)
    return network


def entry(id_: str, numbers: list[int], scale: float = 1.0) -> dict[str, Any]:
    positions = [[0.1 + 0.5 * (i % 2), 0.5 * (i // 2), 0.2] for i in range(len(numbers))]
    cell = (CUBE * scale).tolist()
    return {"id": id_, "cell": cell, "scaled_positions": positions, "numbers": numbers}


def listed(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "structures.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def sources(database: Database) -> dict[str, str]:
    return {row["id"]: row["source"] for row in database.select()}


def told(report: AddReport) -> tuple[list[str], list[str], list[str]]:
    return (
        [row["id"] for row in report.added],
        [why for _, why in report.skipped],
        [why for _, why in report.failed],
    )


def test_a_structure_becomes_a_record_that_says_so(
    database: Database, network: FakeNetwork, tmp_path: Path
) -> None:
    path = tmp_path / "si.vasp"
    write(path, bulk("Si"), format="vasp")
    (row,) = database.add(path).added
    assert row["id"] == "si"
    assert (row["source"], row["source_nmae"]) == ("charge3net", network.nmae)
    assert row["source_format"] == "charge3net " + "f" * 12
    assert row["source_file"] == "si.vasp"
    assert row["spacegroup_symbol"] == "Fd-3m"
    assert row["payload_nmae"] <= 0.1
    assert "si" not in [found["id"] for found in database.select(source="dft")]
    assert [found["id"] for found in database.select(source="charge3net")] == ["si"]
    assert database["si"].density().nmae == row["payload_nmae"]


def test_densities_and_structures_in_one_call_the_smallest_cell_first(
    database: Database, network: FakeNetwork, tmp_path: Path
) -> None:
    path = listed(
        tmp_path,
        entry("big", [3, 3, 9, 9], 2.0),
        entry("bad", [84]),
        entry("middle", [11, 17], 1.5),
        {**entry("short", [3]), "cell": [[1, 0, 0]]},
        entry("small", [3]),
    )
    density = tmp_path / "mp-7.CHGCAR"
    write_density(density, gaussian_density(("Fe",)), "chgcar")
    done: list[tuple[int, int]] = []
    report = database.add([path, density], progress=lambda *at: done.append(at))
    added, skipped, failed = told(report)
    assert added == ["mp-7", "small", "middle", "big"]
    assert network.predicted == ["Li", "NaCl", "LiF"]
    assert not skipped
    assert sorted(failed) == [
        f"{path}: bad: Po: not among the elements",
        f"{path}: entry 4 ('short'): a lattice has shape (3, 3), not (1, 3)",
    ]
    assert done[-1] == (6, 6)
    assert done == sorted(done)


def test_what_is_stored_is_not_predicted_again(
    database: Database, network: FakeNetwork, tmp_path: Path
) -> None:
    first = listed(tmp_path, entry("a", [3]))
    assert told(database.add(first))[0] == ["a"]
    both = listed(tmp_path, entry("a", [3]), entry("b", [11]))
    assert told(database.add(both)) == (["b"], ["stored already as a"], [])
    assert network.predicted == ["Li", "Na"]


def test_an_interrupt_loses_only_what_is_not_yet_committed(
    database: Database, network: FakeNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = listed(tmp_path, entry("a", [3]), entry("b", [11]), entry("c", [19]))
    monkeypatch.setattr("chgdb.adding.PATIENCE", -1.0)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.add(path, progress=stop)
    assert "b" in database
    monkeypatch.undo()
    assert "c" not in database
    monkeypatch.setattr("chgdb.charge3net.Charge3Net", lambda device: network)
    assert told(database.add(path))[0] == ["c"]


@pytest.mark.parametrize("conflict", ["error", "skip", "replace"])
def test_a_density_from_dft_is_never_replaced(
    database: Database, network: FakeNetwork, tmp_path: Path, conflict: Any
) -> None:
    before = database["mp-4"].row
    path = listed(tmp_path, entry("mp-4", [26]), entry("mp-3", [3]))
    added, skipped, failed = told(database.add(path, on_conflict=conflict))
    assert not added
    assert "mp-4 has a density from DFT, which a predicted one does not replace" in skipped
    assert network.predicted == ["Li"]  # the id of sodium chloride
    assert len(failed) == (conflict != "skip")
    assert all("id mp-3 is taken by a record of NaCl" in why for why in failed)
    assert database["mp-4"].row == before
    assert set(sources(database).values()) == {"dft"}


def test_a_density_from_dft_takes_the_place_of_a_predicted_one(
    database: Database, network: FakeNetwork, tmp_path: Path
) -> None:
    database.import_materials({"mp-77": {"formula": "Fe", "bulk_modulus": 170.0}})
    assert sources(database)["mp-77"] is None
    assert told(database.add(listed(tmp_path, entry("mp-77", [26]))))[0] == ["mp-77"]
    assert sources(database)["mp-77"] == "charge3net"
    density = tmp_path / "mp-77.npz"
    write_density(density, gaussian_density(("Fe",)), "npz")
    assert told(database.add(density))[0] == ["mp-77"]
    row = database["mp-77"].row
    assert (row["source"], row["source_nmae"], row["bulk_modulus"]) == ("dft", None, 170.0)


def test_an_id_is_for_a_file_of_one_structure(
    database: Database, network: FakeNetwork, tmp_path: Path
) -> None:
    poscar = tmp_path / "POSCAR"
    write(poscar, bulk("Si"), format="vasp")
    assert told(database.add(poscar, ids=["mine"]))[0] == ["mine"]
    path = listed(tmp_path, entry("a", [3]), entry("b", [11]))
    assert "a list of structures" in told(database.add(path, ids=["mine-2"]))[2][0]


def test_entries_of_files(tmp_path: Path) -> None:
    path, missing = listed(tmp_path, entry("b", [11], 2.0), entry("a", [3])), tmp_path / "x.cif"
    missing.write_text("data_x\n_cell_length_a 1\n")
    entries = read_entries([missing, path])
    assert [file for file, _ in entries] == [missing, path, path]
    assert isinstance(entries[0][1], InputError)
    assert [one.id for _, one in entries if isinstance(one, StructureEntry)] == ["a", "b"]


def test_a_missing_extra_is_told_before_any_work(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pydemi")
    monkeypatch.setattr("pydemi.ml.missing", lambda: ["e3nn"])
    density = tmp_path / "mp-8.npz"
    write_density(density, gaussian_density(("Fe",)), "npz")
    with pytest.raises(MissingExtraError, match=r"chgdb\[ml-density\]"):
        database.add([density, listed(tmp_path, entry("a", [3]))])
    assert "mp-8" not in database


def test_the_command_predicts(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the real network: lithium, one atom."""
    pytest.importorskip("e3nn")
    path = tmp_path / "lithium.cif"
    write(path, bulk("Li", a=3.4))
    with pytest.raises(SystemExit) as stopped:
        main(["add", str(path), "--store", str(store), "--device", "cpu"])
    assert stopped.value.code == 0
    out = capfd.readouterr().out
    assert "lithium: predicted by charge3net, NMAE of about 0.83 % against DFT" in out
    assert "1.0000 electrons" in out

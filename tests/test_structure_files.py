from __future__ import annotations

import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from conftest import gaussian_density

from chgdb.density import Structure
from chgdb.errors import InputError
from chgdb.formats import file_sha256, write_density
from chgdb.structure_files import StructureEntry, holds_structures, read_structures

SHARED = Path(__file__).parents[2] / "shared"
COORDINATE = 1e-6
"""Rounding of the coordinates in a file."""

LI = {"id": "li", "cell": np.eye(3).tolist(), "scaled_positions": [[0, 0, 0]], "numbers": [3]}


def entry_of(path: Path, **options: Any) -> StructureEntry:
    (entry,) = read_structures(path, **options)
    assert isinstance(entry, StructureEntry)
    return entry


@pytest.fixture
def silicon() -> Structure:
    return Structure.from_ase(bulk("Si"))


def poscar(path: Path, structure: Structure) -> Path:
    write(path, structure.to_ase(), format="vasp", direct=True)
    return path


@pytest.mark.parametrize("name", ["POSCAR", "si.vasp", "CONTCAR", "si.poscar", "si.cif"])
def test_a_file_gives_its_structure(tmp_path: Path, silicon: Structure, name: str) -> None:
    path = tmp_path / name
    write(path, silicon.to_ase(), format="cif" if name.endswith("cif") else "vasp")
    assert holds_structures(path)
    entry = entry_of(path)
    assert entry.structure.species == silicon.species
    ours, theirs = entry.structure, silicon
    np.testing.assert_allclose(  # a CIF knows lengths and angles, not directions
        ours.lattice @ ours.lattice.T, theirs.lattice @ theirs.lattice.T, atol=10 * COORDINATE
    )
    np.testing.assert_allclose(ours.frac_coords, theirs.frac_coords, atol=COORDINATE)
    assert entry.sha256 == file_sha256(path)
    expected = f"Si-{entry.sha256[:8]}" if name in ("POSCAR", "CONTCAR") else "si"
    assert entry.id.startswith(expected)


def test_a_compressed_poscar_with_velocities(tmp_path: Path, silicon: Structure) -> None:
    text = poscar(tmp_path / "POSCAR", silicon).read_text()
    path = tmp_path / "mp-149.vasp.gz"
    path.write_bytes(gzip.compress((text + "\n  0.0E+00  0.0E+00  0.1E-02\n" * 2).encode()))
    assert holds_structures(path)
    assert entry_of(path).id == "mp-149"


def test_species_of_a_vasp_4_header_are_given_or_asked_for(
    tmp_path: Path, silicon: Structure
) -> None:
    path = poscar(tmp_path / "POSCAR", silicon)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5] + lines[6:]))
    with pytest.raises(InputError, match=r"VASP 4 header.*--species"):
        read_structures(path)
    assert entry_of(path, species=["Ge"]).structure.formula == "Ge"


@pytest.mark.parametrize("name", ["CHGCAR", "a.vasp", "a.npz", "CHG.gz"])
def test_a_density_is_not_taken_for_its_header(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_density(path, gaussian_density(), "npz" if name.endswith("npz") else "chgcar")
    assert not holds_structures(path)
    if not name.endswith("npz"):
        with pytest.raises(InputError, match="holds a density"):
            read_structures(path)


def test_a_chgcar_that_was_cut_after_its_header_is_no_poscar(
    tmp_path: Path, silicon: Structure
) -> None:
    assert not holds_structures(poscar(tmp_path / "CHGCAR", silicon))
    assert not holds_structures(poscar(tmp_path / "mp-1.CHGCAR.vasp", silicon))


CIF = """\
data_test
_cell_length_a 3.0
_cell_length_b 3.0
_cell_length_c 3.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Cs1 Cs 0 0 0 1
Cl1 Cl 0.5 0.5 0.5 1
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.5 0.5 0.5 1", "0.5 0.5 0.5 0.7(1)", "Cl1 has the occupancy 0.7"),
        ("Cl1 Cl", "Xq1 Xq", "'Xq' is not an element"),
        ("_cell_length_a 3.0", "", "without a cell"),
        ("Cl 0.5 0.5 0.5", "Cl 0.0 0.0 0.01", r"atoms 1 \(Cs\) and 2 \(Cl\) are less than 0.5 A"),
        ("_atom_site_fract_x", "_atom_site_x", "without a structure"),
        ("_cell_length_a 3.0", "_cell_length_a long", "not a readable CIF"),
        ("Cl1 Cl 0.5", "Cl1 Cl", "not a readable CIF"),
        ("data_test", CIF + "data_two", "2 structures"),
    ],
)
def test_a_bad_cif_is_told_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "x.cif"
    assert old in CIF
    path.write_text(CIF.replace(old, new, 1))
    assert holds_structures(path)
    with pytest.raises(InputError, match=message) as caught:
        read_structures(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_symmetry_of_a_cif_makes_all_atoms(tmp_path: Path) -> None:
    path = tmp_path / "cscl.cif"
    group = "_symmetry_space_group_name_H-M 'I m -3 m'\n"
    path.write_text(CIF.replace("Cl1 Cl 0.5 0.5 0.5 1\n", group))
    assert entry_of(path).structure.species == ("Cs", "Cs")


def test_a_list_gives_every_entry_or_its_error(tmp_path: Path) -> None:
    bad: list[tuple[Any, str]] = [
        ({**LI, "id": "x/y"}, "x/y"),
        ({**LI, "id": 3}, "an id is a text"),
        ({**LI, "numbers": [0]}, "atomic numbers"),
        ({**LI, "numbers": [3, 3]}, "coordinates of shape"),
        ({**LI, "cell": [[1, 0, 0], [2, 0, 0], [0, 0, 1]]}, "no volume"),
        ({**LI, "cell": [["a", 0, 0], [2, 0, 0], [0, 0, 1]]}, "real numbers"),
        ({**LI, "scaled_positions": [[0, 0, float("nan")]]}, "not a finite number"),
        ({key: LI[key] for key in ("id", "cell", "numbers")}, "has no scaled_positions"),
        ({**LI, "numbers": [], "scaled_positions": []}, ""),
        (LI, "twice"),
        ([1], "not an object"),
    ]
    path = tmp_path / "structures.json.gz"
    path.write_bytes(gzip.compress(json.dumps([LI, *(item for item, _ in bad)]).encode()))
    assert holds_structures(path)
    first, *others = read_structures(path)
    assert isinstance(first, StructureEntry)
    assert first.id == "li"
    for number, (error, (_, message)) in enumerate(zip(others, bad, strict=True), start=2):
        assert isinstance(error, InputError)
        assert re.search(message, str(error)), str(error)
        assert f"{path}: entry {number}" in str(error)


def test_the_hash_is_of_the_entry_not_of_the_list(tmp_path: Path) -> None:
    one, two, other = (tmp_path / f"{name}.json" for name in "abc")
    one.write_text(json.dumps([LI]))
    two.write_text(json.dumps([{**LI, "id": "x"}, {**LI, "formula": "Li"}]))
    other.write_text(json.dumps([{**LI, "numbers": [11]}]))
    hashes = [
        [entry.sha256 for entry in read_structures(path) if isinstance(entry, StructureEntry)]
        for path in (one, two, other)
    ]
    assert hashes[0][0] == hashes[1][1]
    assert len({hashes[0][0], hashes[1][0], hashes[2][0]}) == 3


@pytest.mark.parametrize("content", [b"", b"[{", b"\x1f\x8b\x08broken", b"nothing of this kind"])
def test_another_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "POSCAR"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(path))):
        read_structures(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": [[0.01, 0, 0], [0, 0.01, 0], [0, 0, 0.01]]}, "repeats after 0.01 A"),
        ({"cell": [[1e-5, 0, 0], [0, 1e4, 0], [0, 0, 1e2]]}, "repeats after 1e-05 A"),
        ({"cell": [[2, 0, 0], [0, 1e5, 0], [0, 0, 2]]}, "a lattice vector of 1e[+]05 A"),
        ({"cell": [[1e200, 0, 0], [0, 1e5, 0], [0, 0, 2]]}, "a lattice vector|too long"),
    ],
)
def test_cells_without_a_meaning_are_refused_at_once(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{**LI, **changes}]))
    (error,) = read_structures(tmp_path / "a.json")
    assert isinstance(error, InputError)
    assert re.search(message, str(error)), str(error)


def test_skewed_cells_and_far_positions_are_read(tmp_path: Path) -> None:
    two = {"numbers": [3, 3], "scaled_positions": [[1e6, 0, 0], [-1000.5, 0.5, 0.5]]}
    skewed = {**LI, **two, "cell": [[3, 0, 0], [300, 3, 0], [0, -900, 3]]}
    (tmp_path / "a.json").write_text(json.dumps([skewed]))
    assert isinstance(read_structures(tmp_path / "a.json")[0], StructureEntry)
    close = {**skewed, "scaled_positions": [[0, 0, 0], [0, 0.0, 5.0]]}
    (tmp_path / "a.json").write_text(json.dumps([close]))
    assert "less than 0.5 A apart" in str(read_structures(tmp_path / "a.json")[0])


@pytest.mark.parametrize("content", [b"[{" + b"[" * 10**6, b"[" + b'{"a":' * 10**5, b"[{}" * 10**5])
def test_deep_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="not a readable JSON list"):
        read_structures(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"\n" * 2**20, b" " * 2**20, b" \n" * 2**19])
def test_blank_files_are_known_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "blank.json.xz").write_bytes(lzma.compress(content))
    assert not holds_structures(tmp_path / "blank.json.xz")
    with pytest.raises(InputError, match=r"blank\.json\.xz: header, line"):
        read_structures(tmp_path / "blank.json.xz")


def test_a_list_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(b"[{}" + b" " * 2**25 + b"]"))
    with pytest.raises(InputError, match=r"holds more than [0-9]+ bytes; refused"):
        read_structures(tmp_path / "bomb.json.gz")


def test_what_a_cif_names_is_told_in_printable_text(tmp_path: Path) -> None:
    for old, new in (("Cl1 Cl 0.5 0.5 0.5 1", "\x1b[1m Cl 0.5 0.5 0.5 0.7"), ("loop_", "\x91 1")):
        (tmp_path / "x.cif").write_text(CIF.replace(old, new), encoding="utf-8")
        with pytest.raises(InputError) as caught:
            read_structures(tmp_path / "x.cif")
        assert str(caught.value).isprintable()


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_the_shared_structures_are_all_read() -> None:
    entries = read_structures(SHARED / "data" / "structures.json.gz")
    assert len(entries) == 2253
    assert all(isinstance(entry, StructureEntry) for entry in entries)
    assert not holds_structures(SHARED / "chgcar" / "li_nospin.CHGCAR.gz")

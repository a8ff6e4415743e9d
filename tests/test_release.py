"""The release as files: what is taken, and that everything else is told of and stops nothing."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chgdb.elasticity import poisson_ratio, youngs_modulus
from chgdb.errors import InputError
from chgdb.release import (
    LATENT_SHAPE,
    Finding,
    Material,
    ReleaseTable,
    find_latents,
    read_latent,
    read_table,
)
from chgdb.symmetry import Symmetry

SILICON = {
    "material_id": "mp-149",
    "formula_pretty": "Si",
    "crystal_system": "Cubic",
    "crystal_symbol": "Fd-3m",
    "space_group_number": "227",
    "poisson_ratio": "0.204",
    "bulk_voigt": "88.9",
    "bulk_hill": "88.916",
    "shear_voigt": "66.0",
    "shear_hill": "65.2",
    "youngs_modulus": "157.18",
    "debye_temperature": "642.1",
    "formula_sp": "Si_227",
    "formation_energy_per_atom": "-4.63",
}
DIAMOND = Symmetry(227, "Fd-3m", "cubic")
LATENT: NDArray[np.float32] = np.arange(16**4, dtype=np.float32).reshape(
    16, 16, 16, 16
) / np.float32(8)
"""Channels last."""


def table(path: Path, *changes: dict[str, str]) -> Path:
    """A table of silicon, once for each set of changes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(SILICON), extrasaction="ignore")
    writer.writeheader()
    writer.writerows([SILICON | change for change in changes])
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def read(folder: Path, *changes: dict[str, str]) -> ReleaseTable:
    return read_table(table(folder / "table.csv", *changes))


# --- the table --------------------------------------------------------------------------------


def test_a_row(tmp_path: Path) -> None:
    content = read(tmp_path, {})
    properties = {
        "bulk_modulus": 88.916,
        "shear_modulus": 65.2,
        "youngs_modulus": 157.18,
        "poisson_ratio": 0.204,
        "debye_temperature": 642.1,
        "cohesive_energy": -4.63,
    }
    material = Material("mp-149", "Si", "Si_227", DIAMOND, properties)
    assert content == ReleaseTable([material], [], 1)


def test_gaps_are_told_and_left_empty(tmp_path: Path) -> None:
    gaps = ("crystal_system", "crystal_symbol", "debye_temperature", "formation_energy_per_atom")
    content = read(tmp_path, dict.fromkeys(gaps, ""))
    assert [finding.kind for finding in content.findings] == [
        "no crystal_system",
        "no crystal_symbol",
        "no debye_temperature",
        "no cohesive_energy",
    ]
    assert {finding.subject for finding in content.findings} == {"mp-149"}
    (material,) = content.materials
    assert material.symmetry == DIAMOND  # of space group 227
    assert material.properties.keys() == {
        "bulk_modulus",
        "shear_modulus",
        "youngs_modulus",
        "poisson_ratio",
    }


@pytest.mark.parametrize(
    ("column", "value", "kinds"),
    [
        ("formation_energy_per_atom", "-8946770.646", {"cohesive_energy"}),
        ("formation_energy_per_atom", "0.001", {"cohesive_energy"}),
        ("formation_energy_per_atom", "-inf", {"cohesive_energy"}),
        ("debye_temperature", "0", {"debye_temperature"}),
        ("debye_temperature", "3001", {"debye_temperature"}),
        ("debye_temperature", "x", {"debye_temperature"}),
        ("poisson_ratio", "0.5", {"poisson_ratio"}),
        ("poisson_ratio", "-1", {"poisson_ratio"}),
        ("poisson_ratio", "0.22", {"poisson_ratio"}),
        ("youngs_modulus", "160", {"youngs_modulus"}),
        ("youngs_modulus", "-157.18", {"youngs_modulus"}),
        ("bulk_hill", "0", {"bulk_modulus"}),
        ("shear_hill", "-65", {"shear_modulus"}),
        ("shear_hill", "inf", {"shear_modulus"}),
        ("shear_hill", "60", {"youngs_modulus", "poisson_ratio"}),
        ("crystal_system", "Hexagonal", {"crystal_system"}),
        ("crystal_symbol", "Fd-3c", {"crystal_symbol"}),
    ],
)
def test_what_cannot_be_is_told_and_left_empty(
    tmp_path: Path, column: str, value: str, kinds: set[str]
) -> None:
    content = read(tmp_path, {column: value})
    assert {finding.kind for finding in content.findings} == {f"implausible {k}" for k in kinds}
    assert content.materials[0].properties.keys().isdisjoint(kinds)
    assert content.materials[0].symmetry == DIAMOND


@given(k=st.floats(0.1, 500), g=st.floats(0.1, 500))
def test_isotropic_moduli_pass(
    k: float, g: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    values = {
        "bulk_hill": f"{k}",
        "shear_hill": f"{g}",
        "youngs_modulus": f"{youngs_modulus(k, g)}",
        "poisson_ratio": f"{poisson_ratio(k, g):.3f}",
    }
    content = read(folder, values)
    assert all(
        f.subject == "mp-149" and values["poisson_ratio"] == "0.500" for f in content.findings
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"material_id": "../x"}, "cannot be a material id"),
        ({"material_id": ""}, "cannot be a material id"),
        ({"formula_pretty": "Xx"}, "Xx"),
        ({"space_group_number": "231"}, "no space group '231'"),
        ({"space_group_number": "9" * 5000}, "no space group"),
        ({"space_group_number": "227.0"}, "no space group"),
        ({"formula_sp": "Ge_227"}, "'Ge_227', not that of Si in space group 227"),
        ({}, "mp-149 is there twice"),
    ],
)
def test_a_bad_row_stops_no_other(tmp_path: Path, change: dict[str, str], message: str) -> None:
    content = read(tmp_path, {}, change)
    assert [material.id for material in content.materials] == ["mp-149"]
    (finding,) = content.findings
    assert (finding.kind, finding.subject) == ("bad row", "line 3")
    assert message in finding.detail
    assert content.n_rows == 2


def test_a_row_with_another_number_of_cells(tmp_path: Path) -> None:
    path = table(tmp_path / "table.csv", {})
    path.write_text(path.read_text() + "mp-1,Ge\n")
    content = read_table(path)
    assert len(content.materials) == 1
    assert content.findings[0].detail.startswith("another number of columns")


def test_materials_of_one_name_are_not_guessed(tmp_path: Path) -> None:
    content = read(tmp_path, {}, {"material_id": "mp-2"}, {"material_id": "mp-3"})
    assert content.materials == []
    assert [(f.kind, f.subject) for f in content.findings] == [
        ("ambiguous", "mp-149"),
        ("ambiguous", "mp-2"),
        ("ambiguous", "mp-3"),
    ]


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a readable table|cannot be read"):
        read_table(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"not a readable table|cannot be read"):
        read_table(tmp_path / "binary.csv")
    (tmp_path / "other.csv").write_text("material_id,formula_pretty\n")
    with pytest.raises(InputError, match="no table of the release; it lacks space_group_number"):
        read_table(tmp_path / "other.csv")


def test_the_real_table(shared: Path) -> None:
    content = read_table(shared / "data" / "latentmatfusion_6059_data.csv")
    assert len(content.materials) == content.n_rows == 6059
    assert Counter(finding.kind for finding in content.findings) == {
        "no crystal_system": 1156,
        "no crystal_symbol": 1156,
        "no debye_temperature": 1156,
        "no cohesive_energy": 198,
        "implausible youngs_modulus": 37,
        "implausible poisson_ratio": 37,
        "implausible cohesive_energy": 5,
    }


# --- the latents ------------------------------------------------------------------------------


def materials(*keys: str) -> list[Material]:
    return [Material(f"mp-{i}", "", key, DIAMOND, {}) for i, key in enumerate(keys)]


def test_missing_and_extra_files(tmp_path: Path) -> None:
    for name in ("Y(SiCu)2_139", "C_194", "Ge_227"):
        np.save(tmp_path / f"{name}_latent.npy", LATENT)
    for name in ("decoder.h5", "notes.txt", ".hidden"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder").mkdir()
    wanted = materials("C_194", "Si_227", "Y(SiCu)2_139")
    latents, findings = find_latents(tmp_path, wanted, [tmp_path / "decoder.h5"])
    assert {name: path.name for name, path in latents.items()} == {
        "mp-0": "C_194_latent.npy",
        "mp-2": "Y(SiCu)2_139_latent.npy",
    }
    assert [(finding.kind, finding.subject) for finding in findings] == [
        ("missing latent", "mp-1"),
        ("extra file", "Ge_227_latent.npy"),
        ("extra file", "notes.txt"),
    ]
    assert findings[0].detail == "there is no Si_227_latent.npy"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a readable folder of latents"):
        find_latents(tmp_path / "missing", [])


names = st.text("ABCabc123()_.-+", min_size=1, max_size=12).filter(lambda name: name[0] != ".")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(there=st.sets(names), asked=st.sets(names))
@example(there={"Co_1", "Si_227"}, asked={"Co_1", "Si_227_latent"})
def test_every_file_is_a_latent_or_told_of(
    tmp_path_factory: pytest.TempPathFactory, there: set[str], asked: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    for name in there:
        (folder / f"{name}_latent.npy").touch()
    latents, findings = find_latents(folder, materials(*sorted(asked)))
    found = {path.name.removesuffix("_latent.npy") for path in latents.values()}
    assert found == there & asked
    kinds = Counter(finding.kind for finding in findings)
    assert kinds["extra file"] == len(there - asked)
    assert kinds["missing latent"] == len(asked - there)


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_latent_has_its_channels_first(tmp_path: Path, dtype: str, order: Any) -> None:
    np.save(tmp_path / "a.npy", LATENT.astype(dtype, order=order))
    values = read_latent(tmp_path / "a.npy")
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.float32
    assert values.shape == LATENT_SHAPE
    np.testing.assert_array_equal(values[3], LATENT[..., 3])


def with_value(value: float) -> NDArray[np.float32]:
    latent = LATENT.copy()
    latent[1, 2, 3, 4] = value
    return latent


@pytest.mark.parametrize(
    ("content", "kind", "detail"),
    [
        (LATENT[:8], "wrong shape", "(8, 16, 16, 16), not (16, 16, 16, 16)"),
        (LATENT[None], "wrong shape", "(1, 16, 16, 16, 16)"),
        (np.float32(1), "wrong shape", "()"),
        (LATENT.astype(np.float64), "wrong dtype", "float64, not float32"),
        (LATENT.astype(np.float16), "wrong dtype", "float16, not float32"),
        (LATENT.astype(np.int32), "wrong dtype", "int32, not float32"),
        (np.array([{}], dtype=object), "unreadable file", ""),
        (with_value(np.nan), "not finite", "1 of 65536 numbers"),
        (with_value(-np.inf), "not finite", "1 of 65536 numbers"),
        (np.zeros_like(LATENT), "all zero", ""),
    ],
)
def test_a_bad_latent_is_told_of(tmp_path: Path, content: Any, kind: str, detail: str) -> None:
    np.save(tmp_path / "a.npy", content)
    finding = read_latent(tmp_path / "a.npy")
    assert isinstance(finding, Finding)
    assert (finding.kind, finding.subject) == (kind, "a.npy")
    assert detail in finding.detail


def test_what_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", LATENT)
    (tmp_path / "empty.npy").touch()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}" % 10**15
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n")
    for name in ("a.npz", "empty.npy", "huge.npy", "missing.npy", "."):
        finding = read_latent(tmp_path / name)
        assert isinstance(finding, Finding)
        assert finding.kind == "unreadable file"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_a_finding(tmp_path: Path, data: st.DataObject) -> None:
    """Cut short or with a byte of its header changed, a file is a latent or a finding."""
    path = tmp_path / "a.npy"
    if not (tmp_path / "good.npy").exists():
        np.save(tmp_path / "good.npy", LATENT)
    content = bytearray((tmp_path / "good.npy").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, 127))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    values = read_latent(path)
    if isinstance(values, Finding):
        assert "\n" not in values.detail
    else:
        assert values.shape == LATENT_SHAPE
        assert len(content) >= LATENT.nbytes

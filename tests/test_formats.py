from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io.cube import read_cube
from conftest import ROOT, MakeFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chgdb import files
from chgdb.chgcar import read_chgcar
from chgdb.density import ChargeDensity, Structure
from chgdb.errors import InputError
from chgdb.formats import (
    default_id,
    densities_by_sha256,
    file_sha256,
    find_densities,
    read_density,
    write_density,
)
from chgdb.units import BOHR

SHARED = Path(__file__).parents[2] / "shared"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)
FLOAT32 = 1e-7
"""Relative rounding of float32."""
CUBE_VALUE = 1e-6
"""Relative rounding of the cube's %e."""
CUBE_LENGTH = 1e-5
"""Rounding in A of a cell of six decimals per grid step."""


def make_density(components: int = 0) -> ChargeDensity:
    rng = np.random.default_rng(components)
    structure = Structure(
        lattice=np.array([[4.0, 0.1, 0.0], [0.3, 5.0, 0.0], [0.2, 0.0, 6.0]]),
        species=("Ti", "O", "O", "Ti"),
        frac_coords=rng.random((4, 3)) - 0.25,
    )
    grid = (3, 4, 5)
    return ChargeDensity(
        values=rng.normal(size=grid),
        structure=structure,
        magnetization=rng.normal(size=(components, *grid)) if components else None,
    )


def assert_same(read: ChargeDensity, written: ChargeDensity, rtol: float) -> None:
    assert read.structure.species == written.structure.species
    np.testing.assert_allclose(read.structure.lattice, written.structure.lattice, rtol=1e-12)
    np.testing.assert_allclose(
        read.structure.frac_coords, written.structure.frac_coords, atol=1e-12
    )
    np.testing.assert_allclose(read.values, written.values, rtol=rtol)
    assert (read.magnetization is None) == (written.magnetization is None)
    if read.magnetization is not None and written.magnetization is not None:
        np.testing.assert_allclose(read.magnetization, written.magnetization, rtol=rtol)


# --- reading and writing --------------------------------------------------------------------


@pytest.mark.parametrize("components", [0, 1, 3])
def test_npz_reads_back(tmp_path: Path, components: int) -> None:
    density = make_density(components)
    write_density(tmp_path / "a.npz", density, "npz", comment="made\nhere")
    read, file_format = read_density(tmp_path / "a.npz")
    assert file_format == "npz"
    assert_same(read, density, FLOAT32)
    write_density(tmp_path / "b.npz", read, "npz")
    again, _ = read_density(tmp_path / "b.npz")
    np.testing.assert_array_equal(again.values, read.values)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["density"].dtype == np.float32
        assert arrays["numbers"].tolist() == [22, 8, 8, 22]
        assert arrays["n_electrons"] == pytest.approx(density.n_electrons)
        assert arrays["comment"] == "made here"


@pytest.mark.parametrize("components", [0, 1, 3])
@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_chgcar_reads_back(tmp_path: Path, components: int, suffix: str) -> None:
    path = tmp_path / f"CHGCAR{suffix}"
    write_density(path, make_density(components), "chgcar", comment="from here")
    read, file_format = read_density(path)
    assert file_format == "chgcar"
    np.testing.assert_allclose(read.values, make_density(components).values, rtol=1e-9)
    text = read_chgcar(path).header.splitlines()[0]
    assert "from here" in text


def test_cube_is_read_by_ase(tmp_path: Path) -> None:
    density = make_density()
    write_density(tmp_path / "a.cube", density, "cube", comment="titania\n2 atoms")
    with (tmp_path / "a.cube").open() as file:
        cube = read_cube(file)
    np.testing.assert_allclose(cube["data"] / BOHR**3, density.values, rtol=CUBE_VALUE)
    np.testing.assert_allclose(
        cube["atoms"].cell.array, density.structure.lattice, atol=CUBE_LENGTH
    )
    np.testing.assert_allclose(cube["atoms"].positions, density.atoms.positions, atol=CUBE_LENGTH)
    assert cube["atoms"].get_chemical_symbols() == list(density.structure.species)
    first_line = (tmp_path / "a.cube").read_text().splitlines()[0]
    assert first_line == "titania 2 atoms, e/Bohr^3"


def test_cube_integrates_to_the_electrons(tmp_path: Path) -> None:
    density = make_density()
    write_density(tmp_path / "a.cube", density, "cube")
    with (tmp_path / "a.cube").open() as file:
        cube = read_cube(file)
    volume = abs(np.linalg.det(cube["spacing"] / BOHR))
    assert cube["data"].sum() * volume == pytest.approx(density.n_electrons, rel=1e-4)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_content_tells_the_format_not_the_name(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    density = make_density()
    write_density(tmp_path / "CHGCAR", density, "npz")
    assert read_density(tmp_path / "CHGCAR")[1] == "npz"
    (tmp_path / "packed").write_bytes(compress((tmp_path / "CHGCAR").read_bytes()))
    read, file_format = read_density(tmp_path / "packed")
    assert file_format == "npz"
    assert_same(read, density, FLOAT32)
    write_density(tmp_path / "a.npz", density, "chgcar", comment="PK fools nobody")
    assert read_density(tmp_path / "a.npz")[1] == "chgcar"


def test_species_name_what_the_header_does_not(tmp_path: Path) -> None:
    write_density(tmp_path / "CHGCAR", make_density(), "chgcar")
    lines = (tmp_path / "CHGCAR").read_text().splitlines(keepends=True)
    del lines[5]
    (tmp_path / "CHGCAR").write_text("".join(lines))
    with pytest.raises(InputError):
        read_density(tmp_path / "CHGCAR")
    read, _ = read_density(tmp_path / "CHGCAR", species=["Ti", "O", "Ti"])
    assert read.structure.species == make_density().structure.species


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_the_shared_files_read() -> None:
    density, file_format = read_density(SHARED / "densities" / "mp-149.npz")
    assert file_format == "npz"
    assert density.structure.formula == "Si"
    assert density.n_electrons == pytest.approx(8.0, abs=1e-3)
    density, file_format = read_density(SHARED / "chgcar" / "li_spin.CHGCAR.gz")
    assert file_format == "chgcar"
    assert density.magnetization is not None


def test_writing_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    density = make_density()
    with pytest.raises(InputError, match="'xsf'; known are chgcar, cube, npz"):
        write_density(tmp_path / "a.xsf", density, "xsf")
    with pytest.raises(InputError, match=r"npz files are not compressed; drop \.gz"):
        write_density(tmp_path / "a.npz.gz", density, "npz")
    with pytest.raises(InputError, match="cannot be written"):
        write_density(tmp_path / "no" / "a.npz", density, "npz")
    with pytest.raises(InputError, match="not a regular file"):
        write_density(tmp_path, density, "cube")
    huge = ChargeDensity(np.full((2, 2, 2), 1e39), density.structure)
    with pytest.raises(InputError, match="float32"):
        write_density(tmp_path / "a.npz", huge, "npz")
    unknown = ChargeDensity(np.ones((2, 2, 2)), Structure(np.eye(3), ("X",), np.zeros((1, 3))))
    for file_format in ("npz", "cube"):
        with pytest.raises(InputError, match="'X' is not an element"):
            write_density(tmp_path / "a", unknown, file_format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file_format", ["chgcar", "cube", "npz"])
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match="No space left on device"):
        write_density(path, make_density(), file_format)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- malformed archives ---------------------------------------------------------------------


def good_arrays() -> dict[str, Any]:
    density = make_density(1)
    return {
        "density": density.values.astype(np.float32),
        "cell": np.array(density.structure.lattice),
        "scaled_positions": np.array(density.structure.frac_coords),
        "numbers": np.array([22, 8, 8, 22]),
        "magnetization": np.array(density.magnetization),
    }


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays.pop(name)


def with_array(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays.update({name: value})


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (without("density"), "no array 'density'"),
        (without("cell"), "no array 'cell'"),
        (without("numbers"), "no array 'numbers'"),
        (without("scaled_positions"), "no array 'scaled_positions'"),
        (with_array("density", np.ones((3, 4))), "density must have 3 dimensions"),
        (with_array("density", np.ones((3, 0, 4))), "density has shape"),
        (with_array("density", np.full((3, 4, 5), np.nan)), "not a finite number"),
        (with_array("density", np.ones((3, 4, 5), complex)), "real numbers, not complex128"),
        (with_array("density", np.full((3, 4, 5), "a")), "real numbers, not str"),
        (with_array("density", np.full((3, 4, 5), None)), "real numbers, not object"),
        (with_array("density", np.zeros((3, 4, 5), [("a", "f8")])), "real numbers, not void"),
        (with_array("cell", np.eye(2)), "lattice has shape"),
        (with_array("cell", np.zeros((3, 3))), "no volume"),
        (with_array("cell", np.full((3, 3), np.inf)), "not a finite number"),
        (with_array("scaled_positions", np.zeros((3, 3))), "species need coordinates"),
        (with_array("numbers", np.array([22, 8, 8, 0])), "0, which is not an atomic number"),
        (with_array("numbers", np.array([22, 8, 8, 119])), "119, which is not an atomic number"),
        (with_array("numbers", np.array([22, 8, 8, -1])), "-1, which is not an atomic number"),
        (with_array("numbers", np.array([22.0, 8, 8, 22])), "must hold integers, not float64"),
        (with_array("numbers", np.array(22)), "numbers must have 1 dimensions"),
        (with_array("magnetization", np.ones((2, 3, 4, 5))), "magnetization"),
        (with_array("magnetization", np.ones((1, 3, 4, 6))), "magnetization"),
    ],
)
def test_bad_arrays_are_named(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], object], problem: str
) -> None:
    arrays = good_arrays()
    spoil(arrays)
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=problem) as raised:
        read_density(path)
    assert str(raised.value).startswith(str(path))
    assert str(raised.value).isprintable()


def test_extra_arrays_are_not_even_looked_at(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", extra=np.array([None]), **good_arrays())
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("notes.txt", "not an array")
    assert_same(read_density(tmp_path / "a.npz")[0], make_density(1), FLOAT32)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """An npy file that announces float32 values of this shape and has none."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def test_an_array_cannot_announce_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    arrays = good_arrays()
    del arrays["density"]
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("density.npy", npy_header((100_000, 100_000, 100_000)))
    with pytest.raises(InputError, match="density is shorter or longer than its header says"):
        read_density(path)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_zip_bomb_is_refused_by_its_declared_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Callable[[bytes], bytes]
) -> None:
    arrays = good_arrays() | {"density": np.zeros((100, 100, 100), np.float32)}
    del arrays["magnetization"]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = tmp_path / "bomb.npz"
    path.write_bytes(compress(buffer.getvalue()))
    assert read_density(path)[0].grid == (100, 100, 100)
    monkeypatch.setattr(files, "_UNPACKED_AT_LEAST", 3_000_000)
    with pytest.raises(InputError, match=r"unpacks to more than [23] MiB; save it with savez"):
        read_density(path)
    monkeypatch.setattr(files, "_UNPACKED_AT_LEAST", 100)
    monkeypatch.setattr(files, "_UNPACKED_RATIO", 0)
    with pytest.raises(InputError, match="unpacks to more than"):
        read_density(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_without_a_bound_is_refused(tmp_path: Path, method: int) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **good_arrays())
    with (
        zipfile.ZipFile(buffer) as source,
        zipfile.ZipFile(tmp_path / "a.npz", "w", method) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(InputError, match="density is packed as NumPy does not"):
        read_density(tmp_path / "a.npz")


def test_what_can_be_read_only_once_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError, match=r"cannot be read \(not a regular file\)"):
            read_density(path)
        with pytest.raises(InputError, match=r"cannot be read \(not a regular file\)"):
            file_sha256(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data(), compressed=st.booleans())
def test_a_damaged_archive_is_an_input_error(
    tmp_path: Path, data: st.DataObject, compressed: bool
) -> None:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **good_arrays())
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(4, len(content)) | st.just(len(content))) :]
    path = tmp_path / "damaged.npz"
    path.write_bytes(content)
    try:
        read_density(path)
    except InputError as error:
        if not str(error).isprintable():
            raise AssertionError(f"not one printable line: {error!r}") from error


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x1f\x8bPK", b"BZh9", b"\xfd7zXZ\x00"])
def test_stumps_are_input_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npz"):
        read_density(tmp_path / "a.npz")


def test_what_is_no_file_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.npz"):
        with pytest.raises(InputError, match="cannot be read"):
            read_density(path)
        with pytest.raises(InputError, match="cannot be read"):
            file_sha256(path)


# --- finding --------------------------------------------------------------------------------


def touch(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def relative(directory: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(directory).as_posix() for path in paths]


def test_a_directory_is_searched(tmp_path: Path) -> None:
    densities = [
        *("CHGCAR", "CHGCAR.bz2", "CHGCAR_sum"),
        *("mp-9.npz", "mp-10.CHGCAR.xz", "mp-10.npz.gz", "run/2/CHGCAR", "run/10/CHGCAR"),
    ]
    others = ["AECCAR0", "AECCAR2.gz", "CHG", "CHG.gz", "PARCHG.0001"]  # of the same run
    others += [".CHGCAR", ".git/CHGCAR", "POSCAR", "CONTCAR", "mp-9.npy", "x.npz.zip", "chgcar"]
    touch(tmp_path, *densities, *others)
    (tmp_path / "CHGCAR.d").mkdir()
    assert relative(tmp_path, find_densities([tmp_path])) == densities


def test_a_named_file_may_have_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "whatever", ".hidden")
    paths = [tmp_path / "whatever", tmp_path / ".hidden"]
    assert find_densities([str(path) for path in paths]) == paths


def test_patterns_are_expanded(tmp_path: Path) -> None:
    touch(tmp_path, "mp-10.npz", "mp-9.npz", "a[1].npz", ".mp-1.npz", "run/x/CHGCAR", "run/x/INCAR")
    assert relative(tmp_path, find_densities([f"{tmp_path}/mp-*.npz"])) == ["mp-9.npz", "mp-10.npz"]
    assert relative(tmp_path, find_densities([tmp_path / "a[1].npz"])) == ["a[1].npz"]
    assert relative(tmp_path, find_densities([f"{tmp_path}/r*"])) == ["run/x/CHGCAR"]
    assert relative(tmp_path, find_densities([f"{tmp_path}/**/x"])) == ["run/x/CHGCAR"]


def test_each_file_comes_once_in_the_order_of_the_arguments(tmp_path: Path) -> None:
    touch(tmp_path, "a.npz", "b.npz", "c.npz")
    (tmp_path / "link.npz").symlink_to("b.npz")
    paths = [tmp_path / "c.npz", tmp_path, tmp_path / "." / "a.npz"]
    assert relative(tmp_path, find_densities(paths)) == ["c.npz", "a.npz", "b.npz"]
    assert find_densities([]) == []


def test_broken_links_are_no_densities(tmp_path: Path) -> None:
    (tmp_path / "CHGCAR").symlink_to("gone")
    assert find_densities([tmp_path]) == []


@pytest.mark.parametrize("name", ["missing", "*.npz", "missing/CHGCAR", "x" * 5000])
def test_a_missing_path_is_named(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.npz.zip")
    with pytest.raises(InputError, match=r"no such file|cannot be read"):
        find_densities([tmp_path / name])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(InputError, match="closed: cannot be read"):
        find_densities([tmp_path])


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mp-149.npz", "mp-149"),
        ("mp-149.CHGCAR.gz", "mp-149"),
        ("mp-149.CHGCAR", "mp-149"),
        ("mp-149.vasp", "mp-149"),
        ("mp-149.CHGCAR.vasp.xz", "mp-149"),
        ("mp-149", "mp-149"),
        ("mp-149.AECCAR0", "mp-149.AECCAR0"),
        ("TiO2 (rutile).npz", "TiO2--rutile-"),
        ("_5+6.b.npz", "5+6.b"),
        ("CHGCAR_sum", "CHGCAR_sum"),
        ("Lösung.npz", "L-sung"),
    ],
)
def test_an_id_is_made_from_the_name(name: str, expected: str) -> None:
    assert default_id(Path("nowhere") / name, make_density().structure) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("CHGCAR", "CHGCAR.gz", "CHG", "AECCAR0", "AECCAR2.bz2", "PARCHG.0001"),
        *("PARCHG.0001.ALLK", "CHGCAR.vasp", "CHGCAR.1", ".npz", "---.npz"),
    ],
)
def test_a_name_that_says_nothing_gives_formula_and_hash(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"some content")
    digest = hashlib.sha256(b"some content").hexdigest()
    assert file_sha256(tmp_path / name) == digest
    assert default_id(tmp_path / name, make_density().structure) == f"TiO-{digest[:8]}"


def test_long_names_stay_apart(tmp_path: Path) -> None:
    ids = set()
    for last in "ab":
        path = tmp_path / ("x" * 80 + last)
        path.write_text(last)
        ids.add(default_id(path, make_density().structure))
    assert len(ids) == 2
    assert all(ID.fullmatch(name) for name in ids)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1))
def test_every_default_id_is_valid(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name in (".", "..") or len(os.fsencode(name)) > 255:
        return
    path.write_text("content")
    assert ID.fullmatch(default_id(path, make_density().structure))
    path.unlink()


def test_the_hash_is_of_the_file_as_it_is(tmp_path: Path) -> None:
    write_density(tmp_path / "a.npz", make_density(), "npz")
    shutil.copy(tmp_path / "a.npz", tmp_path / "b.npz")
    assert file_sha256(tmp_path / "a.npz") == file_sha256(tmp_path / "b.npz")
    content = (tmp_path / "a.npz").read_bytes()
    assert file_sha256(tmp_path / "a.npz") == hashlib.sha256(content).hexdigest()


SILICON = ROOT / "examples" / "mp-149.CHGCAR.gz"


def test_originals_are_found_by_their_content(tmp_path: Path, make_file: MakeFile) -> None:
    shutil.copy(SILICON, tmp_path / "CHGCAR.renamed.gz")
    make_file("other.npz")
    told: list[tuple[int, int]] = []
    found = densities_by_sha256(tmp_path, lambda *step: told.append(step))
    assert set(found) == {file_sha256(SILICON), file_sha256(tmp_path / "other.npz")}
    assert told == [(1, 2), (2, 2)]
    with pytest.raises(InputError):
        densities_by_sha256(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no density files in it"):
        densities_by_sha256(tmp_path / "empty")

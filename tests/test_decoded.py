"""Densities that come out of a store and say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import MakeDensity

from chgdb.decoded import DecodedDensity, format_of
from chgdb.errors import InputError
from chgdb.formats import read_density


@pytest.fixture
def density(make_density: MakeDensity) -> DecodedDensity:
    plain = make_density()
    return DecodedDensity(
        plain.values, plain.structure, id="mp-1", origin="latent of tiny-16", nmae=1.234
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.cube", "cube"), ("a.NPZ", "npz"), ("CHGCAR", "chgcar"), ("a.CHGCAR.vasp.gz", "chgcar")],
)
def test_the_name_tells_the_format(name: str, expected: str) -> None:
    assert format_of(name) == expected


@pytest.mark.parametrize("name", ["CHGCAR", "a.vasp.gz", "a.npz"])
def test_what_is_written_is_read(density: DecodedDensity, tmp_path: Path, name: str) -> None:
    density.write(tmp_path / name)
    back, _ = read_density(tmp_path / name)
    np.testing.assert_allclose(back.values, density.values, rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_says_where_it_comes_from(density: DecodedDensity, tmp_path: Path) -> None:
    density.write(tmp_path / "CHGCAR")
    comment = "mp-1 from chgdb, latent of tiny-16, NMAE 1.23 %, no augmentation"
    assert (tmp_path / "CHGCAR").read_text().splitlines()[0] == comment
    density.write(tmp_path / "a.cube")
    assert (tmp_path / "a.cube").read_text().startswith(comment)


@pytest.mark.parametrize(
    ("nmae", "expected"),
    [(0.0, "0 %"), (0.09837, "0.0984 %"), (0.99999e-3, "0.001 %"), (1.234, "1.23 %"), (99, "99 %")],
)
def test_small_errors_are_told_with_their_digits(
    make_density: MakeDensity, nmae: float, expected: str
) -> None:
    plain = make_density()
    density = DecodedDensity(plain.values, plain.structure, id="a", origin="payload", nmae=nmae)
    assert density.comment == f"a from chgdb, payload, NMAE {expected}, no augmentation"


def test_a_chgcar_has_the_magnetization(make_density: MakeDensity, tmp_path: Path) -> None:
    plain = make_density(spin=1)
    density = DecodedDensity(
        plain.values, plain.structure, plain.magnetization, id="a", origin="payload", nmae=0.1
    )
    density.write(tmp_path / "CHGCAR")
    back, _ = read_density(tmp_path / "CHGCAR")
    assert back.magnetization is not None
    assert back.magnetic_moment == pytest.approx(density.magnetic_moment, rel=1e-6)


def test_a_format_that_is_asked_for_wins_over_the_name(
    density: DecodedDensity, tmp_path: Path
) -> None:
    density.write(tmp_path / "a.npz", format="chgcar")
    assert read_density(tmp_path / "a.npz")[1] == "chgcar"


def test_an_unknown_format_writes_nothing(density: DecodedDensity, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown format 'xsf'"):
        density.write(tmp_path / "a", format="xsf")
    with pytest.raises(InputError, match="cannot be written"):
        density.write(tmp_path / "absent" / "CHGCAR")
    assert not list(tmp_path.iterdir())


def test_xarray_has_the_provenance(density: DecodedDensity) -> None:
    array = density.to_xarray()
    assert array.dims == ("a", "b", "c")
    assert array.attrs["material_id"] == "mp-1"
    assert array.attrs["origin"] == "latent of tiny-16"
    assert array.attrs["nmae_percent"] == 1.234
    assert array.attrs["units"] == "e/angstrom^3"
    assert float(array.mean()) * density.structure.volume == pytest.approx(16.0)

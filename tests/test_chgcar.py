"""chgdb.chgcar: every quirk of the format, both directions, and agreement with ASE and pymatgen."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import stat
import tracemalloc
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chgdb import chgcar as module
from chgdb.chgcar import Chgcar, read_chgcar, write_chgcar
from chgdb.density import ChargeDensity, Structure
from chgdb.errors import ChgcarError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED = Path(__file__).parents[2] / "shared"
REAL = sorted((SHARED / "chgcar").glob("*CHGCAR*"))
PRINTED = 1e-10
"""Relative; eleven digits are printed."""
DOUBLE = 1e-14
"""Relative; a double survives dividing and multiplying by the volume."""

needs_shared = pytest.mark.skipif(not REAL, reason="needs ../shared")
real_files = pytest.mark.parametrize("path", REAL, ids=lambda p: p.name)
few = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

CUBIC = (
    "     2.000000    0.000000    0.000000\n"
    "     0.000000    2.000000    0.000000\n"
    "     0.000000    0.000000    2.000000\n"
)
VOLUME = 8.0
GRID = "    2    3    4\n"
N_VALUES = 24
STORED = np.arange(1, N_VALUES + 1) * 0.125
AUGMENTATION = (
    "augmentation occupancies   1   6\n"
    "  0.2743786E+00 -0.3307158E-01  0.0000000E+00  0.0000000E+00  0.0000000E+00\n"
    "  0.1033253E-02\n"
)
MOMENTS = "  0.600000000000E+00\n"


def lines_of(words: list[str], per_line: int = 5) -> str:
    return "".join(
        " " + " ".join(words[i : i + per_line]) + "\n" for i in range(0, len(words), per_line)
    )


def fortran(value: float) -> str:
    """One value as `E17.11` prints it."""
    text = f"{abs(value):.10E}"
    exponent = int(text[13:]) + 1 if value else 0
    letter = f"E{exponent:+03d}" if abs(exponent) < 100 else f"E{exponent:+04d}"
    return ("-" if value < 0 else "0") + "." + text[0] + text[2:12] + letter


BLOCK = lines_of([fortran(v) for v in STORED])


def make(
    *,
    comment: str = "a test",
    scale: str = "   1.00000000000000     ",
    lattice: str = CUBIC,
    species: str = "   Li\n     1\n",
    mode: str = "Direct\n",
    positions: str = "  0.250000  0.500000  0.000000\n",
    blank: str = " \n",
    rest: str = GRID + BLOCK,
) -> str:
    return f"{comment}\n{scale}\n{lattice}{species}{mode}{positions}{blank}{rest}"


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(content: str | bytes, name: str = "CHGCAR") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return save


@pytest.fixture(scope="module")
def pymatgen_chgcar() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("pymatgen.io.vasp.outputs").Chgcar


@pytest.fixture(scope="module")
def ase_reader() -> Any:
    return pytest.importorskip("ase.calculators.vasp").VaspChargeDensity


def stored(density: ChargeDensity) -> np.ndarray:
    """Values in file order times the volume, worked out independently of the module."""
    return density.values.flatten(order="F") * density.structure.volume


def silicon(values: np.ndarray, magnetization: np.ndarray | None = None) -> ChargeDensity:
    lattice = 2.73 * (np.ones((3, 3)) - np.eye(3))
    structure = Structure(lattice, ("Si", "Si"), np.array([[0.0] * 3, [0.25] * 3]))
    return ChargeDensity(values, structure, magnetization)


def test_all_is_tested_and_defined() -> None:
    assert module.__all__ == ["Chgcar", "read_chgcar", "read_header", "write_chgcar"]


# --- reading: the convention ----------------------------------------------------------------


def test_values_are_rho_times_volume_with_x_fastest(save: Callable[..., Path]) -> None:
    density = read_chgcar(save(make())).density
    assert density.grid == (2, 3, 4)
    assert density.values[1, 0, 0] == pytest.approx(0.25 / VOLUME, rel=DOUBLE)
    assert density.values[0, 1, 0] == pytest.approx(0.375 / VOLUME, rel=DOUBLE)
    assert density.values[0, 0, 1] == pytest.approx(0.875 / VOLUME, rel=DOUBLE)
    assert density.n_electrons == pytest.approx(STORED.mean(), rel=DOUBLE)
    assert density.magnetization is None
    assert not density.values.flags.writeable


def test_the_convention_is_one_inverse_pair() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 5))
    there = module._stored_from_density(values, 7.0)
    np.testing.assert_allclose(there, 7.0 * values.ravel(order="F"), rtol=DOUBLE)
    back = module._density_from_stored(there, (3, 4, 5), 7.0)
    np.testing.assert_allclose(back, values, rtol=DOUBLE)


def test_header_is_verbatim(save: Callable[..., Path]) -> None:
    text = make()
    chgcar = read_chgcar(save(text))
    assert chgcar.header == text[: text.index(" \n" + GRID)]
    assert chgcar.density.structure.species == ("Li",)
    np.testing.assert_array_equal(chgcar.density.structure.frac_coords, [[0.25, 0.5, 0.0]])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compression_is_seen_by_content(save: Callable[..., Path], pack: Any) -> None:
    chgcar = read_chgcar(save(pack(make().encode()), "plain_name"))
    np.testing.assert_allclose(stored(chgcar.density), STORED, rtol=DOUBLE)
    assert read_chgcar(save(make(), "not_packed.gz")).density.grid == (2, 3, 4)


# --- reading: header quirks -----------------------------------------------------------------


@pytest.mark.parametrize("word", ["Fe", "Fe/", "Fe_pv/1a2b3c", "Fe_sv_GW", "Fe.5"])
def test_species_are_cleaned(save: Callable[..., Path], word: str) -> None:
    chgcar = read_chgcar(save(make(species=f"   {word}\n     1\n")))
    assert chgcar.density.structure.species == ("Fe",)
    assert word in chgcar.header


def test_vasp_4_header_needs_species(save: Callable[..., Path], tmp_path: Path) -> None:
    path = save(make(comment="Li Na", species="     1     1\n", positions=" 0 0 0\n .5 .5 .5\n"))
    with pytest.raises(ChgcarError, match=r"header, line 6: .*pass --species with 2 symbols"):
        read_chgcar(path)
    chgcar = read_chgcar(path, species=["O", "H"])
    assert chgcar.density.structure.species == ("O", "H")
    write_chgcar(tmp_path / "again", chgcar)
    assert read_chgcar(tmp_path / "again").density.structure.species == ("O", "H")


def test_species_replace_an_unknown_label(save: Callable[..., Path]) -> None:
    path = save(make(species="   Xx\n     1\n"))
    with pytest.raises(ChgcarError, match=r"line 7: 'Xx' is not a chemical element; pass --spec"):
        read_chgcar(path)
    chgcar = read_chgcar(path, species=["Na"])
    assert chgcar.density.structure.species == ("Na",)
    assert "Xx" not in chgcar.header


@pytest.mark.parametrize(
    ("species", "message"),
    [
        (["Na"], "group 1 is Li in the file but Na"),
        (["Li", "Li"], "1 groups of atoms"),
        ("Li", "1 groups of atoms"),
        (["Zz"], "'Zz' is not a chemical element"),
    ],
)
def test_species_that_do_not_fit(save: Callable[..., Path], species: Any, message: str) -> None:
    with pytest.raises(ChgcarError, match=message):
        read_chgcar(save(make()), species=species)


def test_repeated_groups_keep_their_order(save: Callable[..., Path], tmp_path: Path) -> None:
    text = make(species="   Sr V  Sr O\n  1 2 1 3\n", positions=" 0.1 0.2 0.3\n" * 7)
    density = read_chgcar(save(text)).density
    assert density.structure.species == ("Sr", "V", "V", "Sr", "O", "O", "O")
    write_chgcar(tmp_path / "out", density)
    assert (tmp_path / "out").read_text().splitlines()[5].split() == ["Sr", "V", "Sr", "O"]
    assert read_chgcar(tmp_path / "out").density.structure.species == density.structure.species


def test_groups_over_several_lines(save: Callable[..., Path]) -> None:
    names = "   Fe   O\n" + "   Fe   O\n" * 11
    counts = "     1     1\n" * 12
    text = make(species=names + counts, positions=" 0 0 0\n" * 24)
    assert read_chgcar(save(text)).density.structure.species == ("Fe", "O") * 12


def test_selective_dynamics(save: Callable[..., Path]) -> None:
    text = make(mode="Selective dynamics\nDirect\n", positions=" 0.25 0.5 0.75 T F T\n")
    structure = read_chgcar(save(text)).density.structure
    np.testing.assert_array_equal(structure.frac_coords, [[0.25, 0.5, 0.75]])


@pytest.mark.parametrize("mode", ["Cartesian\n", "kartesisch\n", " c\n"])
def test_cartesian_positions(save: Callable[..., Path], mode: str) -> None:
    structure = read_chgcar(save(make(mode=mode, positions=" 0.5 1.0 -0.5\n"))).density.structure
    np.testing.assert_allclose(structure.frac_coords, [[0.25, 0.5, -0.25]], atol=DOUBLE)


@pytest.mark.parametrize(
    ("scale", "lengths"),
    [
        ("2.0", (4, 4, 4)),
        ("-64.0", (4, 4, 4)),
        ("1.0 2.0 3.0", (2, 4, 6)),
        ("2.0 a comment", (4, 4, 4)),
    ],
)
def test_scale_factors(save: Callable[..., Path], scale: str, lengths: tuple[int, ...]) -> None:
    text = make(scale=scale, mode="Cartesian\n", positions="  0.5 1.0 1.5\n")
    density = read_chgcar(save(text)).density
    np.testing.assert_allclose(density.structure.lattice, np.diag(lengths), atol=1e-12)
    np.testing.assert_allclose(density.structure.frac_coords, [[0.25, 0.5, 0.75]], atol=1e-12)
    np.testing.assert_allclose(stored(density), STORED, rtol=1e-12)


def test_negative_scale_of_a_left_handed_cell(save: Callable[..., Path]) -> None:
    lattice = " 0 1 0\n 1 0 0\n 0 0 1\n"
    structure = read_chgcar(save(make(scale="-27", lattice=lattice))).density.structure
    np.testing.assert_allclose(structure.lattice, 3 * np.eye(3)[[1, 0, 2]], atol=1e-12)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_comment_encodings(
    save: Callable[..., Path], tmp_path: Path, encoding: str, pymatgen_chgcar: Any
) -> None:
    chgcar = read_chgcar(save(make(comment="Grüße, 5 Å").encode(encoding)))
    assert chgcar.header.startswith("Grüße, 5 Å\n")
    write_chgcar(tmp_path / "again", chgcar)
    assert read_chgcar(tmp_path / "again").header == chgcar.header
    pymatgen_chgcar.from_file(str(tmp_path / "again"))


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends(save: Callable[..., Path], end: str) -> None:
    text = make(rest=GRID + BLOCK + AUGMENTATION)
    chgcar = read_chgcar(save(text.replace("\n", end).encode()))
    assert chgcar.header == read_chgcar(save(text)).header
    assert chgcar.augmentation == (AUGMENTATION,)
    np.testing.assert_allclose(stored(chgcar.density), STORED, rtol=DOUBLE)


@pytest.mark.parametrize("blank", ["\n", " \n", "   \n", " \n\n"])
def test_blank_line_before_the_grid(save: Callable[..., Path], blank: str) -> None:
    assert read_chgcar(save(make(blank=blank))).density.grid == (2, 3, 4)


# --- reading: values ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [
        BLOCK,
        BLOCK.rstrip("\n"),
        BLOCK.rstrip("\n") + "  \n",
        BLOCK.rstrip("\n") + " " * 18 + "\n",
        BLOCK + "\n",
        BLOCK.replace("\n", "  \n"),
        BLOCK.replace("E", "D"),
        BLOCK.replace("E", "e"),
        lines_of([f"{v:.10E}" for v in STORED]),
        lines_of([f"{v:#11.5G}" for v in STORED], 10),
        lines_of([str(v) for v in STORED], 1),
        lines_of([str(v) for v in STORED], N_VALUES),
    ],
)
def test_layouts_of_the_same_numbers(save: Callable[..., Path], block: str) -> None:
    density = read_chgcar(save(make(rest=GRID + block))).density
    np.testing.assert_allclose(stored(density), STORED, rtol=DOUBLE)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("0.12300000000-100", 0.123e-100),
        ("-.12300000000-100", -0.123e-100),
        ("0.12300000000+100", 0.123e100),
        ("0.123-100", 0.123e-100),
        ("0.123E-100", 0.123e-100),
        ("-.27330404989E-02", -0.27330404989e-2),
        ("0.12345678901E-11", 0.12345678901e-11),
        ("0.12345678901E-12", 0.12345678901e-12),
        ("0.12345678901E-99", 0.12345678901e-99),
        ("0.12345678901E+11", 0.12345678901e11),
        ("0.12345678901E+12", 0.12345678901e12),
        ("0.12345678901E+99", 0.12345678901e99),
        ("0.00000000000E+00", 0.0),
    ],
)
@pytest.mark.parametrize("place", [0, 7, 23])
def test_single_numbers(save: Callable[..., Path], word: str, value: float, place: int) -> None:
    words = [fortran(v) for v in STORED]
    words[place] = word
    lattice = " 1 0 0\n 0 1 0\n 0 0 1\n"
    density = read_chgcar(save(make(lattice=lattice, rest=GRID + lines_of(words)))).density
    assert density.values.flatten(order="F")[place] == value


@few
@given(
    values=arrays(
        np.float64,
        25,
        elements=st.floats(-9e97, 9e97, allow_subnormal=False).filter(
            lambda v: v == 0 or abs(v) > 1e-90
        ),
    ),
    ase=st.booleans(),
)
def test_fixed_rows_are_read_as_python_reads_them(values: np.ndarray, ase: bool) -> None:
    words = [f"{v:17.10E}" if ase else fortran(v) for v in values]
    data = lines_of(words).encode()
    text = module._Text("name", memoryview(data))
    out = np.empty(25)
    assert module._read_fixed_rows(text, out) == 25
    assert (text.position, text.line) == (len(data), 5)
    np.testing.assert_array_equal(out, [float(word) for word in words])


@few
@given(place=st.integers(0, 90), byte=st.integers(0, 255))
def test_a_wrong_byte_leaves_the_fast_path_or_is_a_number(place: int, byte: int) -> None:
    row = bytearray(BLOCK[:91].encode())
    row[place] = byte
    out = np.empty(5)
    if module._read_fixed_rows(module._Text("name", memoryview(row)), out):
        np.testing.assert_array_equal(out, [float(word) for word in row.split()])


# --- reading: blocks, augmentation, moments --------------------------------------------------


def test_spin(save: Callable[..., Path]) -> None:
    second = lines_of([fortran(-v) for v in STORED])
    rest = GRID + BLOCK + AUGMENTATION + MOMENTS + GRID + second + AUGMENTATION
    chgcar = read_chgcar(save(make(rest=rest)))
    assert chgcar.augmentation == (AUGMENTATION, AUGMENTATION)
    assert chgcar.moments == (MOMENTS, "")
    assert chgcar.density.magnetization is not None
    np.testing.assert_array_equal(chgcar.density.magnetization, -chgcar.density.values[None])


@pytest.mark.parametrize("between", ["", " \n", "\n\n"])
def test_parchg_holds_two_blocks_without_augmentation(
    save: Callable[..., Path], between: str
) -> None:
    chgcar = read_chgcar(save(make(rest=GRID + BLOCK + between + GRID + BLOCK), "PARCHG"))
    assert chgcar.density.magnetization is not None
    assert chgcar.augmentation == chgcar.moments == ("", "")


def test_noncollinear(save: Callable[..., Path]) -> None:
    blocks = [lines_of([fortran(v * k) for v in STORED]) for k in (1, -1, 2, 3)]
    rest = "".join(GRID + b + AUGMENTATION + MOMENTS for b in blocks).removesuffix(MOMENTS)
    chgcar = read_chgcar(save(make(rest=rest)))
    magnetization = chgcar.density.magnetization
    assert magnetization is not None
    for component, k in zip(magnetization, (-1, 2, 3), strict=True):
        np.testing.assert_allclose(component, k * chgcar.density.values, rtol=1e-9)
    assert chgcar.moments == (MOMENTS, MOMENTS, MOMENTS, "")


def test_augmentation_number_touches_the_word(save: Callable[..., Path]) -> None:
    n = 1000
    sections = [f"augmentation occupancies{i:4d}{2:4d}\n  0.1E+00  0.2E+00\n" for i in range(1, n)]
    sections.append("augmentation occupancies1000   2\n  0.1E+00  0.2E+00\n")
    moments = lines_of([f"{0.5:.12E}"] * n)
    rest = GRID + BLOCK + "".join(sections) + moments + GRID + BLOCK + "".join(sections)
    text = make(species=f"   Li\n  {n}\n", positions=" 0 0 0\n" * n, rest=rest)
    chgcar = read_chgcar(save(text))
    assert chgcar.augmentation == ("".join(sections),) * 2
    assert chgcar.moments == (moments, "")


def test_imaginary_augmentation(save: Callable[..., Path]) -> None:
    imaginary = AUGMENTATION.replace("occupancies", "occupancies (imaginary part)")
    rest = GRID + BLOCK + AUGMENTATION + imaginary + MOMENTS + GRID + BLOCK
    chgcar = read_chgcar(save(make(rest=rest)))
    assert chgcar.augmentation == (AUGMENTATION + imaginary, "")
    assert chgcar.moments == (MOMENTS, "")


def test_augmentation_without_sizes(save: Callable[..., Path]) -> None:
    odd = " augmentation occupancies\n 1 1 1 1\n"
    chgcar = read_chgcar(save(make(rest=(GRID + BLOCK + odd) * 2)))
    assert chgcar.augmentation == (odd, odd)


def test_augmentation_with_three_digit_exponents(save: Callable[..., Path]) -> None:
    odd = AUGMENTATION.replace("0.1033253E-02", "0.1033253-102")
    assert read_chgcar(save(make(rest=GRID + BLOCK + odd))).augmentation == (odd,)


@pytest.mark.parametrize("name", ["CHGCAR", "CHGCAR.gz", "CHGCAR.bz2", "CHGCAR.xz"])
def test_what_was_read_is_written_byte_for_byte(
    save: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    block = BLOCK.rstrip("\n") + "  \n"
    rest = GRID + block + AUGMENTATION + MOMENTS + GRID + block + AUGMENTATION
    text = make(scale="-8.0", species="   Fe_pv/1a\n     1\n", rest=rest)
    source = save(text)
    target = tmp_path / "out" / name
    target.parent.mkdir()
    write_chgcar(target, read_chgcar(source))
    opened: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(target.suffix, open)
    with opened(target, "rb") as file:
        assert file.read() == text.encode()


def test_augmentation_without_last_newline_is_written_as_lines(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    rest = GRID + BLOCK + AUGMENTATION.rstrip("\n")
    write_chgcar(tmp_path / "out", read_chgcar(save(make(rest=rest))))
    assert (tmp_path / "out").read_text().endswith(AUGMENTATION)


# --- malformed input ------------------------------------------------------------------------

WORDS = [fortran(v) for v in STORED]


def block_with(word: str, place: int = 6) -> str:
    return lines_of([*WORDS[:place], word, *WORDS[place + 1 :]])


MALFORMED = {
    "empty": ("", r"header, line 1: the file is empty"),
    "one word": ("hello", r"header, line 1: the file ends before the scale factor"),
    "prose": ("It was a dark\nand stormy night\n" * 9, r"header, line 2: expected one or three"),
    "poscar": (make(rest=""), r"header, line 10: the file ends before the grid"),
    "two scales": (make(scale="1.0 2.0"), r"line 2: expected one or three scale factors"),
    "zero scale": (make(scale="0.0"), r"line 2: a scale factor of 0.0"),
    "negative scales": (make(scale="1 -1 1"), r"line 2: a scale factor of -1.0"),
    "short vector": (make(lattice=" 1 0\n" * 3), r"line 3: expected a lattice vector"),
    "word in lattice": (make(lattice=" a 0 0\n" * 3), r"line 3: 'a' is not a number"),
    "nan in lattice": (make(lattice=" nan 0 0\n" * 3), r"line 3: 'nan' is not a finite number"),
    "flat": (make(lattice=" 1 0 0\n" * 3), r"line 5: the lattice vectors span no"),
    "endless": (
        make(lattice=CUBIC.replace("2.000000", "2.0E+200")),
        r"line 5: the lattice vectors span",
    ),
    "flat with volume": (make(scale="-9", lattice=" 1 0 0\n" * 3), r"line 5: the lattice vec"),
    "no species": (make(species="\n"), r"line 6: expected species or numbers of atoms"),
    "count is a word": (make(species=" Li O\n 1 x\n"), r"line 7: expected numbers of atoms"),
    "more counts": (make(species=" Li\n 1 1\n"), r"line 7: 1 species but 2 numbers"),
    "fewer counts": (make(species=" Li O\n 1\n"), r"line 8: expected numbers of atoms"),
    "no atoms": (make(species=" Li\n 0\n"), r"line 7: a species has no atoms"),
    "huge count": (make(species=" Li\n 99999999999999\n"), r"line 7: expected numbers of atoms"),
    "many atoms": (make(species=" Li\n 999999999\n"), r"line 10: expected the position of atom 2"),
    "neither direct": (make(mode="0 0 0\n"), r"line 8: expected 'Direct' or 'Cartesian'"),
    "bad position": (make(positions=" 0 0 *****\n"), r"line 9: '\*\*\*\*\*' is a number too lar"),
    "two in grid": (make(rest="  2 3\n" + BLOCK), r"line 11: expected the grid"),
    "float grid": (make(rest="  2. 3. 4.\n" + BLOCK), r"line 11: expected the grid"),
    "negative grid": (make(rest="  -2 3 4\n" + BLOCK), r"line 11: expected the grid"),
    "no points": (make(rest="  0 3 4\n" + BLOCK), r"line 11: the grid 0 3 4 has no points"),
    "no values": (make(rest=GRID), r"block 1 \(total\), line 11: the grid 2 3 4 needs 24 values"),
    "huge grid": (make(rest=" 99999 99999 99999\n" + BLOCK), r"line 11: the grid 99999 99999"),
    "too few": (make(rest=GRID + lines_of(WORDS[:22])), r"line 16: the file ends after 22 of 24"),
    "stars": (make(rest=GRID + block_with("*" * 17)), r"block 1 \(total\), line 13: '\*+' is a"),
    "nan": (make(rest=GRID + block_with("NaN")), r"line 13: 'NaN' is not a finite number"),
    "wide nan": (make(rest=GRID + block_with(f"{'NaN':>17}")), r"line 13: 'NaN' is not a finite"),
    "infinity": (make(rest=GRID + block_with("Infinity")), r"line 13: 'Infinity' is not a finite"),
    "overflow": (make(rest=GRID + block_with("0.1E+400")), r"line 13: '0.1E\+400' is not a fin"),
    "two points": (make(rest=GRID + block_with("0.12.34")), r"line 13: '0.12.34' is not a numb"),
    "glued": (make(rest=GRID + block_with("0.123-0.456")), r"line 13: '0.123-0.456' is not a nu"),
    "underscore": (make(rest=GRID + block_with("1_0.5")), r"line 13: '1_0.5' is not a finite num"),
    "no letter": (make(rest=GRID + block_with("0.123-10")), r"line 13: '0.123-10' is not a numb"),
    "hex": (make(rest=GRID + block_with("0x1p3")), r"line 13: '0x1p3' is not a number"),
    "early augmentation": (
        make(rest=GRID + lines_of(WORDS[:20]) + AUGMENTATION),
        r"line 16: augmentation occupancies after 20 of 24 values",
    ),
    "one too many": (make(rest=GRID + lines_of([*WORDS, "0.1"])), r"line 16: 5 more values after"),
    "a line too many": (make(rest=GRID + BLOCK + BLOCK), r"after block 1 \(total\), line 17: more"),
    "other grid": (make(rest=GRID + BLOCK + "  4 3 2\n" + BLOCK), r"line 17: a block with another"),
    "two images": (make() + make(), r"after block 1 \(total\), line 17: unexpected text 'a test'"),
    "short second": (
        make(rest=GRID + BLOCK + GRID + lines_of(WORDS[:20])),
        r"block 2 \(magnetization\), line 21: the file ends after 20 of 24 values",
    ),
    "three blocks": (make(rest=(GRID + BLOCK) * 3), r"line \d+: the file ends after 3 blocks"),
    "five blocks": (make(rest=(GRID + BLOCK) * 5), r"line 35: a fifth block of values"),
    "moments and end": (make(rest=GRID + BLOCK + AUGMENTATION + MOMENTS), r"line 20: magnetic mom"),
    "cut augmentation": (
        make(rest=GRID + BLOCK + AUGMENTATION.rsplit("  0.1033253", 1)[0]),
        r"augmentation of block 1 \(total\), line 18: 5 of 6 augmentation occupancies",
    ),
    "augmentation of nothing": (
        make(rest=GRID + BLOCK + "augmentation occupancies"),
        r"augmentation of block 1 \(total\), line 17: 0 of some augmentation occupancies",
    ),
    "long augmentation": (
        make(rest=GRID + BLOCK + AUGMENTATION.rstrip("\n") + " 0.1 0.2\n"),
        r"line 19: more augmentation occupancies than announced",
    ),
    "nan augmentation": (
        make(rest=GRID + BLOCK + AUGMENTATION.replace("0.1033253E-02", "NaN")),
        r"augmentation of block 1 \(total\), line 19: 'NaN' is not a finite number",
    ),
    "ions missing": (
        make(species="  Li\n 2\n", positions=" 0 0 0\n" * 2, rest=GRID + BLOCK + AUGMENTATION),
        r"line 20: augmentation of 1 of 2 ions",
    ),
    "endless scale": (make(scale="9" * 10**6), r"line 2: expected one or three scale factors"),
    "endless coordinate": (make(positions=" 0 0 " + "9" * 10**6), r"'9+\.\.\.' is not a finite"),
    "endless value": (make(rest=GRID + block_with("9" * 10**5)), r"'9+\.\.\.' is not a finite"),
    "cut mantissa": (make(rest=GRID + BLOCK[:-8]), r"line 16: the file ends inside the number"),
    "cut exponent": (make(rest=GRID + BLOCK[:-2]), r"line 16: the file ends inside the number"),
}


@pytest.mark.parametrize(("text", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(save: Callable[..., Path], text: str, message: str) -> None:
    path = save(text)
    with pytest.raises(ChgcarError, match=message) as caught:
        read_chgcar(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert re.search(r", line \d+: .+; .+", said)
    assert said.isprintable()
    assert len(said) < len(str(path)) + 200


def test_binary_is_not_a_chgcar(save: Callable[..., Path]) -> None:
    junk = np.random.default_rng(1).integers(0, 256, 10_000, np.uint8).tobytes()
    with pytest.raises(ChgcarError) as caught:
        read_chgcar(save(b"\x00" + junk))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_damaged_compression(save: Callable[..., Path], pack: Callable[[bytes], bytes]) -> None:
    whole = pack(make().encode())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], bytes(flipped), whole[:12]):
        with pytest.raises(
            ChgcarError, match=r"damaged \w+ data .*; copy the file again"
        ) as caught:
            read_chgcar(save(damaged))
        assert str(caught.value).isprintable()


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ChgcarError, match="is a directory; name the CHGCAR inside it"):
        read_chgcar(tmp_path)
    with pytest.raises(ChgcarError, match=r"nothing\\nhere.*: cannot be read \(No such file"):
        read_chgcar(tmp_path / "nothing\nhere")
    with pytest.raises(ChgcarError, match="cannot be read"):
        read_chgcar("nul\0byte")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(save: Callable[..., Path]) -> None:
    path = save(make())
    path.chmod(0)
    with pytest.raises(ChgcarError, match="Permission denied"):
        read_chgcar(path)


def test_pipes_can_be_read(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, make().encode())
    os.close(write_end)
    assert read_chgcar(f"/dev/fd/{read_end}").density.grid == (2, 3, 4)
    os.close(read_end)


def test_a_huge_grid_allocates_nothing(save: Callable[..., Path]) -> None:
    path = save(make(rest=" 999999999 999999999 999999999\n" + BLOCK))
    tracemalloc.start()
    with pytest.raises(ChgcarError, match="needs 999999997"):
        read_chgcar(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def packed_file(path: Path, head: str, filling: bytes, size: int) -> Path:
    """A compressed file of `size` bytes that repeat after `head`."""
    opened: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[path.suffix]
    options = {"preset": 0} if path.suffix == ".xz" else {"compresslevel": 1}
    piece = filling * (2**20 // len(filling))
    with opened(path, "wb", **options) as file:
        file.write(head.encode())
        for _ in range(0, size, len(piece)):
            file.write(piece)
    return path


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize(
    ("head", "filling", "message"),
    [
        (make(), b" ", "holds more than the [0-9]+ bytes that its grid and its atoms need"),
        (make(), b" 0.10000000000E+01\n", "holds more than the [0-9]+ bytes that its grid"),
        (make(rest="  400 400 400\n"), b" 0.1\n", "unpacks to more than [0-9]+ MiB; unpack it fi"),
        ("", b"\0", "header, line 1: a line of more than 1048576 bytes"),
        ("a\n", b" 1\n", "line 3: expected a lattice vector"),
        (make(rest=""), b"\n", "no grid in the first [0-9]+ bytes"),
        (
            make(species=" Li\n 9999999\n", blank="", rest=""),
            b" 0 0 0\n",
            "no grid in the first [0-9]+ bytes",
        ),
    ],
)
def test_what_unpacks_is_bounded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    head: str,
    filling: bytes,
    message: str,
) -> None:
    monkeypatch.setattr(module, "HEAD", 2**21)
    monkeypatch.setattr("chgdb.files._UNPACKED_AT_LEAST", 2**23)
    monkeypatch.setattr("chgdb.files._UNPACKED_RATIO", 1)
    path = packed_file(tmp_path / f"CHGCAR{suffix}", head, filling, 2**25)
    tracemalloc.start()
    with pytest.raises(ChgcarError, match=message):
        read_chgcar(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26


def test_plain_files_are_bounded_alike(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(make() + "\n" * 2**20)
    with pytest.raises(ChgcarError, match=r"holds more than the [0-9]+ bytes that its grid"):
        read_chgcar(path)
    whole = read_chgcar(save(make()))
    monkeypatch.setattr(module, "_LARGEST_AT_ONCE", 100)
    monkeypatch.setattr(module, "HEAD", 300)
    again = read_chgcar(save(make()))
    np.testing.assert_array_equal(again.density.values, whole.density.values)
    monkeypatch.setattr(module, "HEAD", 200)
    with pytest.raises(ChgcarError, match="no grid in the first 200 bytes"):
        read_chgcar(save(make()))


def test_an_endless_file_ends(tmp_path: Path) -> None:
    with pytest.raises(ChgcarError, match="line 1: a line of more than 1048576 bytes"):
        read_chgcar("/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.write(make().encode())
        file.truncate(2**40)
    with pytest.raises(ChgcarError, match=r"holds more than the [0-9]+ bytes that its grid"):
        read_chgcar(tmp_path / "sparse")


def test_lines_have_an_end(save: Callable[..., Path]) -> None:
    values = " 0.5" * 2**19
    path = save(make(rest=" 128 64 64\n" + values + "\n"))
    with pytest.raises(ChgcarError, match="line 11: a line of more than 1048576 bytes"):
        read_chgcar(path)


def test_text_after_a_block_has_an_end(save: Callable[..., Path]) -> None:
    text = make(rest=" 50 50 50\n" + (" 0.5" * 5 + "\n") * 25_000 + "\n" * 600_000)
    with pytest.raises(ChgcarError, match="more text than 1 ions need"):
        read_chgcar(save(text))


def test_every_cut_is_an_error_or_harmless(save: Callable[..., Path]) -> None:
    """Cut after any byte, a spin file is refused, or it is whole but for the last newline."""
    whole = make(rest=(GRID + BLOCK + AUGMENTATION + MOMENTS) + (GRID + BLOCK + AUGMENTATION))
    ends = (whole.index(BLOCK) + len(BLOCK), whole.index(AUGMENTATION) + len(AUGMENTATION))
    between = [*ends, whole.rindex(BLOCK) + len(BLOCK), len(whole)]
    harmless = {whole[:end].rstrip() for end in between}
    for cut in range(len(whole)):
        path = save(whole[:cut])
        if whole[:cut].rstrip() in harmless:
            read_chgcar(path)
        else:
            with pytest.raises(ChgcarError):
                pytest.fail(f"read {whole[:cut][-40:]!r} as {read_chgcar(path)}")


@few
@given(data=st.data())
def test_flipped_bytes_raise_only_chgcar_errors(save: Callable[..., Path], data: Any) -> None:
    whole = make(rest=(GRID + BLOCK + AUGMENTATION + MOMENTS) + (GRID + BLOCK + AUGMENTATION))
    broken = bytearray(whole.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        chgcar = read_chgcar(save(bytes(broken)))
    except ChgcarError as error:
        said = str(error)
    else:
        said = chgcar.density.structure.formula
    assert said.isprintable()


# --- writing --------------------------------------------------------------------------------


def test_vasp_prints_like_this(tmp_path: Path) -> None:
    more = " 0.10000000000E+01 -.12345600000E+03"
    values = np.zeros((2, 2, 3))
    numbers = [0.44143837606, -0.0027330404989, 0.0, 1.0, -123.456, 99999999999.5, 1e-20]
    values.ravel()[: len(numbers)] = numbers
    structure = Structure(np.eye(3), ("Li",), np.zeros((1, 3)))
    density = ChargeDensity(values.ravel().reshape((2, 2, 3), order="F"), structure)
    write_chgcar(tmp_path / "out", density)
    text = (tmp_path / "out").read_text()
    assert text[text.index("Direct") :].split("\n")[2:] == [
        " ",
        "    2    2    3",
        " 0.44143837606E+00 -.27330404989E-02 0.00000000000E+00" + more,
        " 0.10000000000E+12 0.10000000000E-19" + 3 * " 0.00000000000E+00",
        " 0.00000000000E+00 0.00000000000E+00  ",
        "",
    ]


def test_no_padding_when_the_last_line_is_full(tmp_path: Path) -> None:
    write_chgcar(tmp_path / "out", silicon(np.ones((5, 2, 1))))
    assert (tmp_path / "out").read_text().splitlines()[-1] == 5 * " 0.40692834000E+02"


finite = st.floats(allow_nan=False, allow_infinity=False)
near_ties = st.builds(
    lambda mantissa, exponent, nudge: float(f"{mantissa}.5e{exponent}") * (1 + nudge * 2.0**-52),
    st.integers(10**10, 10**11 - 1),
    st.integers(-300, 290),
    st.integers(-2, 2),
)
near_powers = st.builds(
    lambda exponent, steps: float(np.float64(f"1e{exponent}") * (1 + steps * 2.0**-52)),
    st.integers(-307, 307),
    st.integers(-4, 4),
)


@settings(max_examples=300, deadline=None)
@given(arrays(np.float64, st.integers(1, 12), elements=finite | near_ties | near_powers))
def test_digits_are_python_s(values: np.ndarray) -> None:
    assert module._formatted_chunk(values).split() == [fortran(v).encode() for v in values]


def test_digits_of_many_doubles() -> None:
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**64, 20_000, np.uint64).view(np.float64)
    usual = rng.normal(size=20_000) * 10.0 ** rng.integers(-14, 6, 20_000)
    for values in (bits[np.isfinite(bits)], usual, np.round(usual, 10), usual.astype(np.float32)):
        words = module._formatted_chunk(values.astype(np.float64)).split()
        assert words == [fortran(float(v)).encode() for v in values]


def test_chunks_join(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    density = silicon(np.random.default_rng(4).normal(size=(7, 5, 3)))
    write_chgcar(tmp_path / "whole", density)
    monkeypatch.setattr(module, "_ROWS_PER_CHUNK", 2)
    monkeypatch.setattr(module, "_BYTES_PER_CHUNK", 100)
    write_chgcar(tmp_path / "pieces", density)
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    again = read_chgcar(tmp_path / "pieces").density
    np.testing.assert_allclose(again.values, density.values, rtol=PRINTED)
    loose = (
        (tmp_path / "whole").read_text().replace("E", " E").replace(" E", "E").replace("0.", ".")
    )
    (tmp_path / "loose").write_text(loose)
    np.testing.assert_array_equal(read_chgcar(tmp_path / "loose").density.values, again.values)


@pytest.mark.parametrize("value", [1.5e-100, -2.5e-310, 3.5e150])
def test_wide_exponents_are_readable_by_all(
    tmp_path: Path, value: float, ase_reader: Any, pymatgen_chgcar: Any
) -> None:
    structure = Structure(np.eye(3), ("Li",), np.zeros((1, 3)))
    values = np.ones((3, 3, 3))
    values[1, 2, 0] = value
    path = tmp_path / "CHGCAR"
    write_chgcar(path, ChargeDensity(values, structure))
    for read in (
        read_chgcar(path).density.values,
        ase_reader(str(path)).chg[0],
        pymatgen_chgcar.from_file(str(path)).data["total"],
    ):
        np.testing.assert_allclose(read, values, rtol=PRINTED)


def test_overflow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="overflows"):
        write_chgcar(tmp_path / "CHGCAR", silicon(np.full((2, 2, 2), 1e308)))
    assert list(tmp_path.iterdir()) == []


cells = arrays(np.float64, (3, 3), elements=st.floats(-9.0, 9.0).map(lambda v: round(v, 6))).filter(
    lambda cell: abs(np.linalg.det(cell)) > 0.1
)
sizes = st.tuples(*[st.integers(1, 6)] * 3)
densities = st.floats(-1e3, 1e5).filter(lambda v: v == 0.0 or abs(v) > 1e-80)


@few
@given(data=st.data(), cell=cells, size=sizes, components=st.sampled_from([0, 1, 3]))
def test_round_trip(tmp_path: Path, data: Any, cell: Any, size: Any, components: int) -> None:
    blocks = data.draw(arrays(np.float64, (1 + components, *size), elements=densities))
    species = tuple(data.draw(st.lists(st.sampled_from(["H", "O", "Fe"]), min_size=1, max_size=5)))
    coords = data.draw(arrays(np.float64, (len(species), 3), elements=st.floats(-1.0, 2.0)))
    structure = Structure(cell, species, coords)
    density = ChargeDensity(blocks[0], structure, blocks[1:] if components else None)
    write_chgcar(tmp_path / "CHGCAR", density)
    again = read_chgcar(tmp_path / "CHGCAR")
    back = again.density
    np.testing.assert_allclose(back.structure.lattice, cell, atol=1e-15)
    np.testing.assert_allclose(back.structure.frac_coords, coords, atol=1e-15)
    assert back.structure.species == species
    np.testing.assert_allclose(back.values, blocks[0], rtol=PRINTED)
    assert (back.magnetization is None) == (components == 0)
    if back.magnetization is not None:
        np.testing.assert_allclose(back.magnetization, blocks[1:], rtol=PRINTED)
    write_chgcar(tmp_path / "again", again)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "CHGCAR").read_bytes()


def test_first_line_of_a_bare_density_says_what_it_lacks(tmp_path: Path) -> None:
    write_chgcar(tmp_path / "out", silicon(np.ones((2, 2, 2))))
    first = (tmp_path / "out").read_text().splitlines()[0]
    assert first == "Si chgdb: no augmentation occupancies"


@pytest.mark.parametrize("bare", [True, False])
def test_comments_are_made_safe(save: Callable[..., Path], tmp_path: Path, bare: bool) -> None:
    chgcar = read_chgcar(save(make()))
    comment = " Größe\n 1.0\r\n\x1b[31m \u2028" + 100 * "x"
    write_chgcar(tmp_path / "out", chgcar.density if bare else chgcar, comment=comment)
    lines = (tmp_path / "out").read_bytes().split(b"\n")
    assert lines[0].startswith(b"Gr??e 1.0 ?[31m xxx")
    assert len(lines[0]) == 80
    assert float(lines[1]) == 1.0
    assert read_chgcar(tmp_path / "out").density.grid == (2, 3, 4)


def test_empty_comment(tmp_path: Path, ase_reader: Any, pymatgen_chgcar: Any) -> None:
    path = tmp_path / "CHGCAR"
    write_chgcar(path, silicon(np.ones((2, 2, 2))), comment="")
    assert read_chgcar(path).density.grid == (2, 2, 2)
    assert ase_reader(str(path)).chg[0].shape == (2, 2, 2)
    assert pymatgen_chgcar.from_file(str(path)).dim == (2, 2, 2)


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_suffix_compresses(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"CHGCAR{suffix}"
    write_chgcar(path, silicon(np.ones((3, 3, 3))))
    first = path.read_bytes()
    magic = {"": b"Si", ".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ"}[suffix]
    assert first.startswith(magic)
    np.testing.assert_allclose(read_chgcar(path).density.values, 1.0, rtol=PRINTED)
    write_chgcar(path, silicon(np.ones((3, 3, 3))))
    assert path.read_bytes() == first


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "CHGCAR"
    path.write_text("old")

    def full_disk(stored: np.ndarray) -> Any:
        yield b"half"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_formatted", full_disk)
    with pytest.raises(InputError, match=r"CHGCAR: cannot be written \(No space left on device\)"):
        write_chgcar(path, silicon(np.ones((2, 2, 2))))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    density = silicon(np.ones((2, 2, 2)))
    with pytest.raises(InputError, match=r"cannot be written \(No such file or directory\)"):
        write_chgcar(tmp_path / "missing" / "CHGCAR", density)
    with pytest.raises(InputError, match="not a regular file"):
        write_chgcar(tmp_path, density)
    with pytest.raises(InputError, match="not a regular file"):
        write_chgcar("/dev/null", density)
    assert list(tmp_path.iterdir()) == []


def test_links_and_permissions_are_kept_sane(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    previous = os.umask(0o027)
    try:
        write_chgcar(tmp_path / "link", silicon(np.ones((2, 2, 2))))
    finally:
        os.umask(previous)
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640


def test_a_chgcar_without_header_gets_one(tmp_path: Path) -> None:
    density = silicon(np.ones((2, 2, 2)))
    write_chgcar(tmp_path / "out", Chgcar(density, augmentation=(AUGMENTATION,)))
    again = read_chgcar(save_two_ions(tmp_path))
    assert again.augmentation[0].startswith(AUGMENTATION)


def save_two_ions(tmp_path: Path) -> Path:
    """Adds the second ion that the two atoms of silicon call for."""
    path = tmp_path / "out"
    path.write_text(path.read_text() + AUGMENTATION.replace("   1   6", "   2   6"))
    return path


# --- other programs -------------------------------------------------------------------------


def check_against(ase: Any, pymatgen: Any, path: Path, plain: Path) -> None:
    """What ASE and pymatgen see in `plain` is what chgdb sees in `path`."""
    density = read_chgcar(path).density
    theirs = pymatgen.from_file(str(plain))
    volume = density.structure.volume
    np.testing.assert_allclose(theirs.data["total"] / volume, density.values, rtol=1e-14)
    np.testing.assert_allclose(theirs.structure.lattice.matrix, density.structure.lattice)
    assert tuple(s.specie.symbol for s in theirs.structure) == density.structure.species
    keys = {None: (), 1: ("diff",), 3: ("diff_x", "diff_y", "diff_z")}
    found = None if density.magnetization is None else len(density.magnetization)
    for i, key in enumerate(keys[found]):
        assert density.magnetization is not None
        np.testing.assert_allclose(
            theirs.data[key] / volume, density.magnetization[i], rtol=1e-14, atol=1e-300
        )
    seen = ase(str(plain))
    np.testing.assert_allclose(seen.chg[0], density.values, rtol=1e-13)
    np.testing.assert_allclose(seen.atoms[0].cell.array, density.structure.lattice, atol=1e-14)
    np.testing.assert_allclose(
        seen.atoms[0].get_scaled_positions(wrap=False), density.structure.frac_coords, atol=1e-12
    )
    if found:
        assert density.magnetization is not None
        np.testing.assert_allclose(seen.chgdiff[0], density.magnetization[0], rtol=1e-13)


@needs_shared
@real_files
def test_real_files_agree_and_come_back(
    path: Path, tmp_path: Path, ase_reader: Any, pymatgen_chgcar: Any
) -> None:
    plain, again = tmp_path / "CHGCAR", tmp_path / "CHGCAR_again"
    data = path.read_bytes()
    plain.write_bytes(gzip.decompress(data) if path.suffix == ".gz" else data)
    chgcar = read_chgcar(path)
    if "ncl" not in path.name:  # pymatgen wants sizes after "augmentation occupancies"
        check_against(ase_reader, pymatgen_chgcar, path, plain)
    write_chgcar(again, chgcar)
    if "ncl" not in path.name:  # printed as integers
        assert again.read_bytes() == plain.read_bytes()
        check_against(ase_reader, pymatgen_chgcar, path, again)
    reread = read_chgcar(again)
    assert (reread.header, reread.augmentation) == (chgcar.header, chgcar.augmentation)
    np.testing.assert_array_equal(reread.density.values, chgcar.density.values)


@needs_shared
@pytest.mark.parametrize(
    ("name", "grid", "species", "electrons", "blocks"),
    [
        ("li_nospin.CHGCAR.gz", (32, 32, 32), ("Li",), 1.0, 1),
        ("li_spin.CHGCAR.gz", (48, 48, 48), ("Li",), 1.0, 2),
        ("slash_species.CHGCAR.gz", (28, 28, 28), ("Fe",), 8.0, 1),
        ("ncl_tiny.CHGCAR", (3, 4, 5), ("Ni",), 30.5, 4),
    ],
)
def test_real_files(name: str, grid: Any, species: Any, electrons: float, blocks: int) -> None:
    chgcar = read_chgcar(SHARED / "chgcar" / name)
    assert chgcar.density.grid == grid
    assert chgcar.density.structure.species == species
    assert chgcar.density.n_electrons == pytest.approx(electrons, abs=1e-5)
    assert len(chgcar.augmentation) == len(chgcar.moments) == blocks
    assert all("augmentation occupancies" in text for text in chgcar.augmentation)


@needs_shared
@pytest.mark.parametrize("material", ["mp-592", "mp-79", "mp-8062"])
def test_densities_written_by_ase_and_by_chgdb(
    material: str, tmp_path: Path, ase_reader: Any, pymatgen_chgcar: Any
) -> None:
    from ase import Atoms

    raw = np.load(SHARED / "densities" / f"{material}.npz")
    atoms = Atoms(raw["numbers"], cell=raw["cell"], scaled_positions=raw["scaled_positions"])
    density = ChargeDensity(raw["density"], Structure.from_ase(atoms))
    writer = ase_reader(None)
    writer.atoms, writer.chg = [atoms], [np.array(density.values)]
    writer.write(str(tmp_path / "CHGCAR_ase"))
    write_chgcar(tmp_path / "CHGCAR", density)
    for name in ("CHGCAR_ase", "CHGCAR"):
        back = read_chgcar(tmp_path / name).density
        np.testing.assert_allclose(back.values, density.values, rtol=PRINTED)
        check_against(ase_reader, pymatgen_chgcar, tmp_path / name, tmp_path / name)
    structure = read_chgcar(tmp_path / "CHGCAR").density.structure
    np.testing.assert_allclose(structure.lattice, density.structure.lattice, atol=1e-15)


@pytest.mark.parametrize("components", [1, 3])
def test_generated_spin_densities_agree(
    components: int, tmp_path: Path, ase_reader: Any, pymatgen_chgcar: Any
) -> None:
    rng = np.random.default_rng(components)
    lattice = np.eye(3) * 3.0 + rng.normal(size=(3, 3))
    species = ("Sr", "V", "Sr", "O", "O")
    structure = Structure(lattice, species, rng.random((5, 3)))
    density = ChargeDensity(
        rng.random((3, 5, 7)), structure, rng.normal(size=(components, 3, 5, 7))
    )
    path = tmp_path / "CHGCAR"
    augmentation = "".join(AUGMENTATION.replace("   1   6", f"{i:4d}   6") for i in range(1, 6))
    moments = lines_of([f"{0.5:.12E}"] * 5)
    n = 1 + components
    write_chgcar(path, Chgcar(density, "", (augmentation,) * n, (moments,) + ("",) * components))
    check_against(ase_reader, pymatgen_chgcar, path, path)
    if components == 1:
        write_chgcar(path, density)
        check_against(ase_reader, pymatgen_chgcar, path, path)
    assert read_chgcar(path).density.structure.species == species


def test_pymatgen_s_own_file(tmp_path: Path, pymatgen_chgcar: Any) -> None:
    write_chgcar(tmp_path / "CHGCAR", silicon(np.random.default_rng(5).normal(size=(4, 5, 6))))
    theirs = pymatgen_chgcar.from_file(str(tmp_path / "CHGCAR"))
    theirs.write_file(str(tmp_path / "CHGCAR_theirs"))
    ours = read_chgcar(tmp_path / "CHGCAR").density
    again = read_chgcar(tmp_path / "CHGCAR_theirs").density
    np.testing.assert_allclose(again.values, ours.values, rtol=1e-6)  # its cell has 6 decimals


# --- speed ----------------------------------------------------------------------------------


def test_long_files_take_the_fast_path(save: Callable[..., Path], tmp_path: Path) -> None:
    values = 10.0 ** np.random.default_rng(6).uniform(-30, 3, (20, 20, 20))
    write_chgcar(tmp_path / "CHGCAR", silicon(values))
    data = (tmp_path / "CHGCAR").read_bytes()
    text = module._Text("name", memoryview(data))
    module._read_header(text, None)
    module._read_grid(text)
    assert module._read_fixed_rows(text, np.empty(8000)) == 8000

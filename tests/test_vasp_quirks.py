"""The table of docs/vasp.md: what chgdb, pymatgen and ASE make of every quirk of a CHGCAR.

Each quirk is a small file; what is right follows from how it was made. Where chgdb must read it, it
must read it rightly; what the others do is what the table says of them today.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from chgdb.chgcar import read_chgcar
from chgdb.errors import ChgcarError

PAGE = (Path(__file__).parent.parent / "docs" / "vasp.md").read_text(encoding="utf-8")
UPDATE = "update the table in docs/vasp.md and the expectation here"
PRINTED = 1e-9
VALUES = np.arange(1, 25) * 0.125
CUBIC = " 2.0 0.0 0.0\n 0.0 2.0 0.0\n 0.0 0.0 2.0\n"
GRID = "    2    3    4\n"
AUGMENTATION = "augmentation occupancies   1   6\n" + "  0.2743786E+00" * 5 + "\n  0.1033253E-02\n"
MOMENTS = "  0.600000000000E+00\n"


def fortran(value: float) -> str:
    """One value as `E17.11` prints it."""
    text = f"{abs(value):.10E}"
    exponent = int(text[13:]) + 1 if value else 0
    return ("-" if value < 0 else "0") + "." + text[0] + text[2:12] + f"E{exponent:+03d}"


def block(words: list[str] | None = None, per_line: int = 5, padding: str = "  ") -> str:
    words = words or [fortran(v) for v in VALUES]
    lines = [" " + " ".join(words[i : i + per_line]) for i in range(0, len(words), per_line)]
    return "\n".join(lines) + padding + "\n"


def with_word(word: str) -> str:
    words = [fortran(v) for v in VALUES]
    words[7] = word
    return block(words)


def make(
    *,
    comment: str = "a test",
    scale: str = "1.0",
    lattice: str = CUBIC,
    species: str = "   Li\n     1\n",
    positions: str = "Direct\n  0.250000  0.500000  0.000000\n",
    rest: str = GRID + block(),
) -> bytes:
    return f"{comment}\n{scale}\n{lattice}{species}{positions} \n{rest}".encode()


class Truth(NamedTuple):
    """What a file says."""

    stored: NDArray[Any] = VALUES
    difference: NDArray[Any] | None = None
    lattice: NDArray[Any] = 2.0 * np.eye(3)
    species: tuple[str, ...] = ("Li",)
    position: tuple[float, float, float] = (0.25, 0.5, 0.0)


class Quirk(NamedTuple):
    """A row of the table.

    Attributes:
        fact: as in the table.
        content: of the file.
        truth: what it says; None where nothing should be read from it.
        chgdb: "right", or the pattern of its refusal.
        pymatgen: "right", "wrong" or "fails".
        ase: the same.
    """

    fact: str
    content: bytes
    truth: Truth | None
    chgdb: str
    pymatgen: str
    ase: str


def replaced(word: float) -> NDArray[Any]:
    values = VALUES.copy()
    values[7] = word
    return values


REPEATED = make(
    species="   Sr   V    Sr   O\n  1 1 1 1\n", positions="Direct\n" + " .25 .5 0\n" * 4
)
THOUSAND = "".join(
    f"augmentation occupancies{i:4d}   2\n  0.1000000E+00  0.2000000E+00\n" for i in range(1, 1001)
)
SPIN = GRID + block() + AUGMENTATION + MOMENTS + GRID + block([fortran(-v) for v in VALUES])
IMAGINARY = AUGMENTATION.replace("occupancies", "occupancies (imaginary part)")

QUIRKS = (
    Quirk(
        "values are rho * V, x fastest; a short last line is padded",
        make(),
        Truth(),
        "right",
        "right",
        "right",
    ),
    Quirk(
        "negative values without a zero, `-.27330404989E-02`",
        make(rest=GRID + with_word("-.27330404989E-02")),
        Truth(replaced(-0.27330404989e-2)),
        *("right", "right", "right"),
    ),
    Quirk(
        "CHG: ten values on a line, five digits",
        make(rest=GRID + block([f"{v:#11.5G}" for v in VALUES], 10)),
        Truth(),
        *("right", "right", "right"),
    ),
    Quirk(
        "no blank line after a full last line",
        make(
            lattice=CUBIC.replace("2.0", "1.0"),
            rest="    5    2    2\n"
            + block([fortran(v) for v in VALUES[:20]], 5, "")
            + AUGMENTATION,
        ),
        Truth(VALUES[:20], lattice=np.eye(3)),
        *("right", "right", "right"),
    ),
    Quirk(
        "overflow, `***********`",
        make(rest=GRID + with_word("*" * 17)),
        None,
        *("too large for its Fortran field", "fails", "fails"),
    ),
    Quirk(
        "exponents of three digits without a letter, `0.123-100`",
        make(rest=GRID + with_word("0.12300000000-100")),
        Truth(replaced(0.123e-100)),
        *("right", "wrong", "wrong"),
    ),
    Quirk(
        "augmentation of 1000 ions: the number touches the word",
        make(
            species="   Li\n  1000\n",
            positions="Direct\n" + " .25 .5 0\n" * 1000,
            rest=GRID + block() + THOUSAND,
        ),
        Truth(species=("Li",) * 1000),
        *("right", "fails", "right"),
    ),
    Quirk(
        "augmentation with an imaginary part",
        make(rest=GRID + block() + AUGMENTATION + IMAGINARY),
        Truth(),
        *("right", "right", "right"),
    ),
    Quirk(
        "spin: moments of the ions before the second block",
        make(rest=SPIN + AUGMENTATION),
        Truth(difference=-VALUES[None]),
        *("right", "right", "right"),
    ),
    Quirk(
        "spin in a PARCHG: two blocks, nothing between them",
        make(rest=GRID + block() + GRID + block([fortran(-v) for v in VALUES])),
        Truth(difference=-VALUES[None]),
        *("right", "right", "right"),
    ),
    Quirk(
        "noncollinear: four blocks",
        make(
            rest=(
                GRID
                + block()
                + "".join(
                    AUGMENTATION + MOMENTS + GRID + block([fortran(k * v) for v in VALUES])
                    for k in (-1, 2, 3)
                )
                + AUGMENTATION
            )
        ),
        Truth(difference=np.stack([-VALUES, 2 * VALUES, 3 * VALUES])),
        *("right", "right", "right"),
    ),
    Quirk(
        "a negative scale is the volume, positions Cartesian",
        make(scale="-64.0", positions="Cartesian\n  0.5 1.0 0.0\n"),
        Truth(lattice=4.0 * np.eye(3)),
        *("right", "wrong", "right"),
    ),
    Quirk(
        "three scales, one per axis, positions Cartesian",
        make(scale="1.0 2.0 3.0", positions="Cartesian\n  0.5 1.0 0.0\n"),
        Truth(lattice=np.diag([2.0, 4.0, 6.0])),
        *("right", "fails", "right"),
    ),
    Quirk(
        "VASP 4: no names of species",
        make(comment="a test", species="     1\n"),
        None,
        *("pass --species", "wrong", "fails"),
    ),
    Quirk(
        "VASP 6: `Fe/`",
        make(species="   Fe/\n     1\n"),
        Truth(species=("Fe",)),
        *("right", "right", "right"),
    ),
    Quirk(
        "VASP 6: `Fe_pv/1a2b3c`",
        make(species="   Fe_pv/1a2b3c\n     1\n"),
        Truth(species=("Fe",)),
        *("right", "right", "right"),
    ),
    Quirk(
        "groups that repeat, `Sr V Sr O`",
        REPEATED,
        Truth(species=("Sr", "V", "Sr", "O")),
        *("right", "right", "right"),
    ),
    Quirk(
        "a comment that is not UTF-8",
        make(comment="Gr\u00fc\u00dfe").decode().encode("latin-1"),
        Truth(),
        *("right", "fails", "fails"),
    ),
    Quirk("lines ended by CR LF", make().replace(b"\n", b"\r\n"), Truth(), *("right",) * 3),
    Quirk("an empty file", b"", None, "the file is empty", "fails", "fails"),
    Quirk(
        "a file cut inside its values",
        make()[:-100],
        None,
        *("the file ends", "fails", "fails"),
    ),
    Quirk(
        "a file cut inside its last number",
        make().rstrip()[:-1],
        None,
        *("ends inside the number", "wrong", "wrong"),
    ),
    Quirk(
        "peaks of 1e5 e/A^3 (AECCAR)",
        make(rest=GRID + with_word(fortran(8e5))),
        Truth(replaced(8e5)),
        *("right", "right", "right"),
    ),
    Quirk(
        "NaN among the values", make(rest=GRID + with_word("NaN")), None, "finite", "wrong", "wrong"
    ),
)


class Seen(NamedTuple):
    """What a reader makes of a file: densities in e/A^3, and the structure."""

    values: NDArray[Any]
    difference: NDArray[Any] | None
    lattice: NDArray[Any]
    species: tuple[str, ...]
    position: NDArray[Any]


def with_chgdb(path: Path) -> Seen:
    density = read_chgcar(path).density
    s = density.structure
    return Seen(density.values, density.magnetization, s.lattice, s.species, s.frac_coords[0])


def with_pymatgen(path: Path) -> Seen:
    from pymatgen.io.vasp.outputs import Chgcar

    chgcar = Chgcar.from_file(str(path))
    structure, data = chgcar.structure, chgcar.data
    keys: list[Any] = [key for key in ("diff_x", "diff_y", "diff_z") if key in data] or ["diff"]
    found = [data[key] / structure.volume for key in keys if key in data]
    return Seen(
        data["total"] / structure.volume,
        np.stack(found) if found else None,
        structure.lattice.matrix,
        tuple(site.specie.symbol for site in structure),
        structure.frac_coords[0],
    )


def with_ase(path: Path) -> Seen:
    from ase.calculators.vasp import VaspChargeDensity

    seen = VaspChargeDensity(str(path))
    (atoms,) = seen.atoms
    return Seen(
        seen.chg[0],
        np.stack(seen.chgdiff) if seen.chgdiff else None,
        atoms.cell.array,
        tuple(atoms.get_chemical_symbols()),
        atoms.get_scaled_positions(wrap=False)[0],
    )


def verdict(read: Callable[[Path], Seen], path: Path, truth: Truth | None) -> str:
    """What a reader does with a file: "right", "wrong", or "fails"."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seen = read(path)
    except Exception:  # noqa: BLE001  they raise a dozen types
        return "fails"
    return "right" if truth is not None and is_right(seen, truth) else "wrong"


def is_right(seen: Seen, truth: Truth) -> bool:
    volume = abs(float(np.linalg.det(truth.lattice)))
    pairs: list[tuple[Any, Any]] = [
        (seen.values.ravel(order="F"), truth.stored / volume),
        (seen.lattice, truth.lattice),
        (seen.position, np.array(truth.position)),
    ]
    if (seen.difference is None) != (truth.difference is None):
        return False
    if seen.difference is not None and truth.difference is not None:
        pairs.append(([d.ravel(order="F") for d in seen.difference], truth.difference / volume))
    same = all(
        np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=PRINTED, atol=1e-99) for a, b in pairs
    )
    return same and seen.species == truth.species


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda q: re.sub(r"\W+", "-", q.fact))
def test_chgdb_does_what_is_right(quirk: Quirk, tmp_path: Path) -> None:
    path = tmp_path / "CHGCAR"
    path.write_bytes(quirk.content)
    if quirk.truth is None:
        with pytest.raises(ChgcarError, match=quirk.chgdb):
            read_chgcar(path)
    else:
        assert quirk.chgdb == "right"
        assert is_right(with_chgdb(path), quirk.truth)


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda q: re.sub(r"\W+", "-", q.fact))
@pytest.mark.parametrize("name", ["pymatgen", "ase"])
def test_the_others_do_what_the_table_says(quirk: Quirk, name: str, tmp_path: Path) -> None:
    module = {"pymatgen": "pymatgen.io.vasp.outputs", "ase": "ase.calculators.vasp"}[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(module)
    path = tmp_path / "CHGCAR"
    path.write_bytes(quirk.content)
    found = verdict({"pymatgen": with_pymatgen, "ase": with_ase}[name], path, quirk.truth)
    expected = getattr(quirk, name)
    assert found == expected, f"{name} {version(name)}: {found}, not {expected}; {UPDATE}"


def row(quirk: Quirk) -> str:
    ours = "right" if quirk.truth is not None else "refused"
    return f"| {quirk.fact} | {ours} | {quirk.pymatgen} | {quirk.ase} |"


def test_the_table_is_in_the_docs() -> None:
    rows = "\n".join(row(quirk) for quirk in QUIRKS)
    assert rows in PAGE, f"put these lines into docs/vasp.md:\n{rows}"

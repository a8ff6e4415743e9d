"""Targets of benchmarks/fuzz.py: the files that users give, damaged in every way.

What chgdb makes of a damaged CHGCAR or POSCAR is held against `reference`, a slow reader of its own
that follows the facts of the format line by line. Where the reference reads what chgdb refuses, the
refusal must be one of `STRICTER`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import os
import re
import socket
import string
import zipfile
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fuzz import Outcome, Target, check_refusal, outcome

from chgdb.chgcar import Chgcar, read_chgcar, write_chgcar
from chgdb.density import ChargeDensity, Structure
from chgdb.elements import SYMBOLS
from chgdb.errors import ChgdbError
from chgdb.formats import default_id, file_sha256, find_densities, read_density
from chgdb.structure_files import StructureEntry, holds_structures, read_structures

Rng = np.random.Generator

SHARED = Path(__file__).parents[2] / "shared" / "chgcar"

STRICTER = re.compile(
    r"augmentation|magnetic moments|ends after 3 blocks|a fifth block|ends inside the number"
    r"|unexpected text|more values than|a block with another grid|keep one density per file"
    r"|after block|a line of more than|'[^']{32}\.\.\.' is not a|a scale factor"
    r"|scale factors, found '[^']{32}\."
    r"|no \(finite\) volume|correct the header|overflow"
)
"""Why chgdb refuses what a reader that looks for values alone would read."""


# --- the reference ----------------------------------------------------------------------------


class RefusedError(Exception):
    """The reference cannot read a text."""


class Reference(NamedTuple):
    """What a text says.

    Attributes:
        lattice: rows in A.
        species: of each atom, None where the text does not say.
        positions: as printed, times the scale if Cartesian.
        cartesian: what `positions` are.
        grid: points along each axis; None in a POSCAR.
        blocks: stored numbers of each block, x fastest.
    """

    lattice: list[list[float]]
    species: list[str | None]
    positions: list[list[float]]
    cartesian: bool
    grid: tuple[int, int, int] | None
    blocks: list[list[float]]

    @property
    def volume(self) -> float:
        """Of the cell, exact until the last rounding."""
        return abs(float(_determinant(self.lattice)))


_NUMBER = re.compile(rb"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eEdD]([+-]?\d+))?")
_NO_LETTER = re.compile(rb"([+-]?(?:\d+\.\d*|\.\d+))([+-]\d\d\d)")


def number(word: bytes) -> float:
    """One number as Fortran or C prints it."""
    match = _NUMBER.fullmatch(word) or _NO_LETTER.fullmatch(word)
    if match is None:
        raise RefusedError(f"{word!r} is no number")
    value = float(f"{match[1].decode()}e{(match[2] or b'0').decode()}")
    if math.isinf(value):
        raise RefusedError(f"{word!r} is not finite")
    return value


def _determinant(m: list[list[float]]) -> Fraction:
    a, b, c = ([Fraction(x) for x in row] for row in m)
    return (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        - a[1] * (b[0] * c[2] - b[2] * c[0])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )


def reference(text: bytes, *, poscar: bool = False) -> Reference:
    """Read a CHGCAR, or only its header, line by line.

    Raises:
        RefusedError: it is none.
    """
    if b"\r" in text[:4096]:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = iter(text.split(b"\n"))

    def words(*, bare: bool = True) -> list[bytes]:
        line = next(lines, None)
        if line is None:
            raise RefusedError("the text ends")
        return re.split(rb"[!#]", line)[0].split() if bare else line.split()

    def vector() -> list[float]:
        row = words()[:3]
        if len(row) < 3:
            raise RefusedError("no vector")
        return [number(word) for word in row]

    words()
    scale = []
    for word in words():
        try:
            scale.append(number(word))
        except RefusedError:
            break
    if len(scale) not in (1, 3):
        raise RefusedError("no scale")
    raw = [vector() for _ in range(3)]
    if scale[0] < 0:
        volume = abs(float(_determinant(raw)))
        if not volume:
            raise RefusedError("flat")
        scale = [(-scale[0] / volume) ** (1 / 3)]
    factors = scale * 3 if len(scale) == 1 else scale
    lattice = [[x * f for x, f in zip(row, factors, strict=True)] for row in raw]
    names: list[bytes] = []
    row = words()
    while row and not row[0].isdigit():
        names += row
        row = words()
    counts = [_count(word) for word in row]
    while len(counts) < len(names):
        row = words()
        if not row:
            raise RefusedError("no counts")
        counts += [_count(word) for word in row]
    if not counts or (names and len(counts) != len(names)):
        raise RefusedError("no counts")
    if sum(counts) > len(text):
        raise RefusedError("more atoms than text")
    species: list[str | None] = []
    for i, count in enumerate(counts):
        species += [_symbol(names[i]) if names else None] * count
    line = next(lines, b"").lstrip()
    if line[:1] in (b"s", b"S"):
        line = next(lines, b"").lstrip()
    if line[:1].lower() not in (b"d", b"c", b"k"):
        raise RefusedError("neither direct nor Cartesian")
    cartesian = line[:1].lower() != b"d"
    positions = [vector() for _ in range(sum(counts))]
    if cartesian:
        positions = [[x * f for x, f in zip(p, factors, strict=True)] for p in positions]
    if poscar:
        return Reference(lattice, species, positions, cartesian, None, [])
    row = words(bare=False)
    while not row:
        row = words(bare=False)
    n1, n2, n3 = (_count(word) for word in row) if len(row) == 3 else (0, 0, 0)
    if 0 in (n1, n2, n3):
        raise RefusedError("no grid")
    blocks = _reference_blocks(lines, row, n1 * n2 * n3, len(text))
    return Reference(lattice, species, positions, cartesian, (n1, n2, n3), blocks)


def _count(word: bytes) -> int:
    if not word.isdigit():
        raise RefusedError(f"{word!r} is no count")
    return int(word)


def _symbol(word: bytes) -> str | None:
    match = re.fullmatch(rb"([A-Z][a-z]?)(?:[._/].*)?", word)
    return match[1].decode() if match else None


def _reference_blocks(lines: Any, grid: list[bytes], count: int, size: int) -> list[list[float]]:
    if count > size:
        raise RefusedError("more points than text")
    grid = [str(int(word)).encode() for word in grid]
    blocks: list[list[float]] = []
    more = True
    while more:
        values: list[float] = []
        for line in lines:
            values += [number(word) for word in line.split()]
            if len(values) >= count:
                break
        if len(values) != count:
            raise RefusedError("too few or too many values")
        blocks.append(values)
        missing, more = 0, False
        for line in lines:
            row = line.split()
            if line.lstrip().startswith(b"augmentation occupancies"):
                match = re.fullmatch(rb".*?(\d+|\*+)\s+(\d+)", line.strip())
                missing = int(match[2]) if match else 0
            elif missing > 0:
                missing -= len(row)
            elif row == grid:
                more = True
                break
    return blocks


def check_structure(structure: Structure, told: Reference) -> None:
    """Hold that a structure is what the reference reads."""
    lattice = np.array(told.lattice)
    np.testing.assert_allclose(structure.lattice, lattice, rtol=1e-12, atol=1e-300)
    assert len(structure.species) == len(told.species), "another number of atoms"
    for symbol, word in zip(structure.species, told.species, strict=True):
        assert word is None or word == symbol or word not in SYMBOLS, f"{symbol} for {word}"
    positions = np.array(told.positions)
    if told.cartesian:
        back = structure.frac_coords @ structure.lattice
        # what dividing by the lattice and multiplying again leaves
        inverse = np.abs(np.linalg.inv(lattice))
        noise = 1e-13 * (np.abs(positions) @ inverse @ np.abs(lattice)).max()
        np.testing.assert_allclose(back, positions, rtol=1e-9, atol=noise + 1e-300)
    else:
        np.testing.assert_array_equal(structure.frac_coords, positions)


def check_density(density: ChargeDensity, told: Reference) -> None:
    """Hold that a density is what the reference reads."""
    check_structure(density.structure, told)
    assert density.grid == told.grid
    volume = density.structure.volume
    # of a nearly flat cell, doubles do not know the volume
    lengths = np.prod(np.linalg.norm(density.structure.lattice, axis=1))
    assert abs(volume - told.volume) <= 1e-13 * lengths, f"{volume} for {told.volume}"
    blocks = [density.values]
    if density.magnetization is not None:
        blocks.extend(density.magnetization)
    assert len(blocks) == len(told.blocks), "another number of blocks"
    for block, stored in zip(blocks, told.blocks, strict=True):
        expected = np.array(stored) / volume
        np.testing.assert_allclose(block.ravel(order="F"), expected, rtol=1e-15, atol=1e-320)


# --- mutations of text --------------------------------------------------------------------------

WORDS = (
    *(b"*" * n for n in (1, 11, 17)),
    *(b"NaN", b"nan", b"Infinity", b"-inf", b"1e999", b"-1E+400", b"0.1D+400", b"1e-999"),
    *(b"0.123-100", b"0.123+100", b"-.5E-300", b"0.12-10", b"0.1E+00-.2E+00", b"0.10.2"),
    *(b"1_0", b"0_0.5", b"\xd9\xa1", b"\xef\xbc\x91", b"0x10", b"1e", b".", b"-", b"+.5", b"5."),
    *(b"0", b"-0", b"1", b"2", b"3", b"4", b"00002", b"-3", b"99999", b"100000", b"999999999"),
    *(b"1" * 30, b"9" * 400, b"1e5", b"1D5", b"0.5d0", b"T", b"F", b"!", b"#", b"Li", b"Xx"),
    *(b"augmentation", b"occupancies", b"\x00", b"\xff\xfe", b"\x1b[31m", b"\x0b", b"\x1c"),
)


def _flip(rng: Rng, text: bytearray) -> None:
    for _ in range(int(rng.integers(1, 4))):
        text[int(rng.integers(len(text)))] = int(rng.integers(256))


def _bit(rng: Rng, text: bytearray) -> None:
    text[int(rng.integers(len(text)))] ^= 1 << int(rng.integers(8))


def _digit(rng: Rng, text: bytearray) -> None:
    """Put what numbers are made of into a place: what is misread most easily."""
    place = int(rng.integers(len(text)))
    text[place : place + int(rng.integers(2))] = rng.choice(
        list(b"0123456789.+-EeD \n*")
    ).tobytes()[:1]


def _cut(rng: Rng, text: bytearray) -> None:
    del text[int(rng.integers(len(text))) :]


def _remove(rng: Rng, text: bytearray) -> None:
    place = int(rng.integers(len(text)))
    del text[place : place + int(rng.integers(1, 40))]


def _lines(rng: Rng, text: bytearray) -> None:
    """Double, remove, swap or blank lines."""
    lines = bytes(text).split(b"\n")
    i, j = (int(rng.integers(len(lines))) for _ in range(2))
    match int(rng.integers(5)):
        case 0:
            lines.insert(i, lines[j])
        case 1:
            del lines[i]
        case 2:
            lines[i], lines[j] = lines[j], lines[i]
        case 3:
            lines.insert(i, b" " * int(rng.integers(3)))
        case 4:
            lines[i] = lines[i] + b" " + lines[j]
    text[:] = b"\n".join(lines)


def _word(rng: Rng, text: bytearray) -> None:
    """Put another word in the place of one, or join two."""
    places = [match.span() for match in re.finditer(rb"\S+", text)]
    if not places:
        return
    # the header, where a word means most, as often as all the rest
    most = len(places) if rng.random() < 0.5 else min(len(places), 40)
    start, end = places[int(rng.integers(most))]
    if rng.random() < 0.15:
        del text[end : end + 1]
    else:
        text[start:end] = WORDS[int(rng.integers(len(WORDS)))]


def _ends(rng: Rng, text: bytearray) -> None:
    text[:] = bytes(text).replace(b"\n", (b"\r\n", b"\r", b"\n\n", b" \n")[int(rng.integers(4))])


def _long(rng: Rng, text: bytearray) -> None:
    place = int(rng.integers(len(text)))
    text[place:place] = (b" ", b"0", b"\n", b"1 ", b"x")[int(rng.integers(5))] * int(
        10 ** rng.uniform(1, 5)
    )


_MUTATIONS = (_flip, _bit, _digit, _digit, _cut, _remove, _lines, _lines, _word, _word, _ends)


def mutated(rng: Rng, text: bytes) -> bytes:
    """A text after one to three mutations."""
    changed = bytearray(text)
    for _ in range(int(rng.integers(1, 4))):
        if changed:
            mutation = _long if rng.random() < 0.01 else _MUTATIONS[int(rng.integers(11))]
            mutation(rng, changed)
    return bytes(changed)


# --- CHGCAR -------------------------------------------------------------------------------------


class Files(NamedTuple):
    """What cases share: texts to damage, and the file that a case writes."""

    texts: list[bytes]
    path: Path


def example(rng: Rng, components: int = 0) -> ChargeDensity:
    """A small density of any sign."""
    grid = tuple(int(n) for n in rng.integers(2, 6, 3))
    species = tuple(rng.choice(["Li", "O", "Fe", "Sr", "V"], int(rng.integers(1, 5))))
    lattice = np.round(np.eye(3) * 3 + rng.normal(size=(3, 3)) * 0.3, 6)
    structure = Structure(lattice, species, np.round(rng.random((len(species), 3)), 6))
    blocks = rng.normal(0.2, 1.0, (1 + components, *grid)) * 10.0 ** rng.integers(-3, 4)
    return ChargeDensity(blocks[0], structure, blocks[1:] if components else None)


def chgcar_texts(folder: Path) -> list[bytes]:
    """CHGCARs with and without spin, augmentation, names of species, long exponents."""
    rng = np.random.default_rng(0)
    texts = []
    for components in (0, 0, 1, 3):
        density = example(rng, components)
        n = len(density.structure.species)
        write_chgcar(folder / "bare", density)
        texts.append((folder / "bare").read_bytes())
        sections = "".join(
            f"augmentation occupancies{i:4d}{6:4d}\n"
            + "  0.2743786E+00" * 5
            + "\n  0.1033253E-02\n"
            for i in range(1, n + 1)
        )
        moments = "".join("  0.600000000000E+00" for _ in range(n)) + "\n"
        spins = (moments,) * components + ("",)
        write_chgcar(folder / "full", Chgcar(density, "", (sections,) * (components + 1), spins))
        texts.append((folder / "full").read_bytes())
    first = texts[0]
    lines = first.split(b"\n")
    names = lines[5].split()
    texts += [
        b"\n".join([*lines[:5], *lines[6:]]),  # VASP 4
        first.replace(lines[5], b"".join(b"   " + name + b"_pv/1a2b" for name in names)),  # VASP 6
        first.replace(b"Direct", b"Selective dynamics\nCartesian"),
        first.replace(lines[1], b"  -27.0"),
        first.replace(lines[1], b"  1.0 1.1 0.9"),
        first.replace(b"\n", b"\r\n"),
        first.replace(b"E-01", b"-101").replace(b"E+01", b"D+01"),
        re.sub(rb"(?m)^( [0-]\.\d{10}\d?E...){5}$", lambda m: m[0].replace(b"  ", b" "), first),
        first.replace(b" ", b"\t"),
    ]
    real = SHARED / "ncl_tiny.CHGCAR"
    return [*texts, real.read_bytes()] if real.exists() else texts


def prepare_chgcar(folder: Path) -> Files:
    """The texts and a file."""
    return Files(chgcar_texts(folder), folder / "CHGCAR")


def _species(rng: Rng) -> list[str] | None:
    """What a user may add, at times."""
    return None if rng.random() < 0.8 else list(rng.choice(["Li", "O", "Fe"], rng.integers(1, 4)))


def check_chgcar(
    path: Path, text: bytes, species: list[str] | None, *, whole: bool = True
) -> Outcome:
    """Read a file, and hold it against what the reference makes of its text.

    Args:
        path: the file.
        text: what it holds, or held before it was damaged where it is not `whole`.
        species: what a user says.
        whole: whether it must be read if the reference reads its text.
    """
    told: Reference | None = None
    with suppress(RefusedError):
        told = reference(text)
    try:
        chgcar = read_chgcar(path, species=species)
    except ChgdbError as error:
        check_refusal(error)
        if whole and told is not None:
            _check_stricter(str(error), told)
        return "refused"
    assert told is not None, "read what cannot be read"
    check_density(chgcar.density, told)
    return "read"


def _check_stricter(message: str, told: Reference) -> None:
    """Hold that chgdb has a reason to refuse what the reference reads."""
    names = {name for name in told.species if name}
    unnamed = None in told.species or not names <= set(SYMBOLS) or "species" in message
    assert unnamed or STRICTER.search(message), f"refused what can be read: {message}"


def case_chgcar(rng: Rng, files: Files) -> Outcome:
    """A damaged CHGCAR."""
    text = mutated(rng, files.texts[int(rng.integers(len(files.texts)))])
    files.path.write_bytes(text)
    return check_chgcar(files.path, text, _species(rng))


PACKERS: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: gzip.compress(data, 1, mtime=0),
    lambda data: bz2.compress(data, 1),
    lambda data: lzma.compress(data, preset=0),
)


def case_packed(rng: Rng, files: Files) -> Outcome:
    """A compressed CHGCAR, damaged, cut, in several pieces, or compressed again.

    Compression has sums of its own, so what is read is the text as it was; bzip2 and xz ignore what
    follows their data.
    """
    text = files.texts[int(rng.integers(len(files.texts)))]
    pack = PACKERS[int(rng.integers(3))]
    match int(rng.integers(6)):
        case 0:
            packed = bytearray(pack(text))
            _flip(rng, packed)
        case 1:
            packed = bytearray(pack(text))
            _cut(rng, packed)
        case 2:  # members, which are one text
            place = int(rng.integers(len(text)))
            packed = bytearray(pack(text[:place]) + pack(text[place:]))
            files.path.write_bytes(packed)
            return check_chgcar(files.path, text, None)
        case 3:  # of two kinds, or with something behind it
            other = PACKERS[int(rng.integers(3))]
            packed = bytearray(pack(text) + (other(text) if rng.random() < 0.5 else rng.bytes(9)))
        case 4:
            packed = bytearray(PACKERS[int(rng.integers(3))](pack(text)))
        case _:
            text = mutated(rng, text)
            packed = bytearray(pack(text))
    files.path.write_bytes(packed)
    return check_chgcar(files.path, text, None, whole=False)


def case_bomb(rng: Rng, files: Files) -> Outcome:
    """A small file that unpacks to much, or a header that announces much."""
    text = files.texts[0]
    head = text[: text.index(b"\n \n") + 3]
    n = int(10 ** rng.uniform(0, 9))
    filling = (b"\0", b" ", b"\n", b" 0.10000000000E+01\n", b"0 ", b" 0 0 0\n", b"9")[
        int(rng.integers(7))
    ]
    grid = b" %d %d %d\n" % (n, int(10 ** rng.uniform(0, 5)), int(10 ** rng.uniform(0, 3)))
    start = (b"", b"x\n", b"x\n1.0\n", head, head + grid)[int(rng.integers(5))]
    if rng.random() < 0.2:
        start = start.replace(b"Direct", b"Direct", 1)
        start = re.sub(rb"(?m)^ +\d+( +\d+)*$", b"  %d" % n, start, count=1)
    body = start + filling * (int(10 ** rng.uniform(3, 6.5)) // len(filling))
    kind = int(rng.integers(4))
    if kind < 3:
        body = PACKERS[kind](body)
    files.path.write_bytes(body)
    result = outcome(lambda: read_density(files.path))
    outcome(lambda: read_structures(files.path))
    holds_structures(files.path)
    return result


# --- npz ----------------------------------------------------------------------------------------


def case_npz(rng: Rng, files: Files) -> Outcome:
    """An archive with an array, a header or some bytes that are not as they should be."""
    density = example(rng, int(rng.choice([0, 0, 1, 3])))
    arrays: dict[str, Any] = {
        "density": density.values,
        "cell": density.structure.lattice,
        "scaled_positions": density.structure.frac_coords,
        "numbers": np.array([SYMBOLS.index(symbol) + 1 for symbol in density.structure.species]),
    }
    if density.magnetization is not None:
        arrays["magnetization"] = density.magnetization
    name = str(rng.choice(list(arrays)))
    members: dict[str, bytes] = {}
    match int(rng.integers(10)):
        case 0:
            arrays[name] = np.asfortranarray(arrays[name])
        case 1:
            kinds = ["<f4", ">f8", "<f2", "<i8", "<u1", "<c16", "?", "S3", "U2", "<g", "M8[s]"]
            with np.errstate(all="ignore"):
                arrays[name] = np.nan_to_num(arrays[name]).astype(rng.choice(kinds))
        case 2:
            bad = (np.nan, np.inf, -np.inf, 1e308, 1e-308, -1, 0)
            flat = np.array(arrays[name], dtype=float).ravel()
            flat[int(rng.integers(flat.size))] = bad[int(rng.integers(7))]
            arrays[name] = flat.reshape(arrays[name].shape)
        case 3:
            shape = [int(10 ** rng.uniform(0, 6)) for _ in range(arrays[name].ndim)]
            if rng.random() < 0.3:
                shape[0] = int(rng.choice([0, -1, -4]))
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": "<f8", "fortran_order": False, "shape": tuple(shape)}
            )
            members[name] = header.getvalue() + arrays[name].tobytes()
        case 4:
            arrays[name] = np.zeros([int(n) for n in rng.integers(0, 4, rng.integers(0, 5))])
        case 5:
            del arrays[name]
        case 6:
            arrays["../../" + name] = arrays[name]
            arrays["extra"] = np.zeros(3)
        case 7:
            stored = io.BytesIO()
            np.lib.format.write_array(stored, np.asarray(arrays[name]))
            raw = bytearray(stored.getvalue())
            _flip(rng, memoryview(raw)[:128] if rng.random() < 0.5 else raw)  # type: ignore[arg-type]
            members[name] = bytes(raw)
        case _:
            pass
    buffer = io.BytesIO()
    method = int(rng.choice([0, 8, 8, 8, 12, 14]))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for key, array in arrays.items():
            content = members.get(key)
            if content is None:
                stored = io.BytesIO()
                np.lib.format.write_array(stored, np.asarray(array))
                content = stored.getvalue()
            archive.writestr(key + ".npy", content)
    packed = bytearray(buffer.getvalue())
    damage = rng.random()
    if damage < 0.3:
        _flip(rng, packed)
    elif damage < 0.4:
        _cut(rng, packed)
    elif damage < 0.5:
        packed[:] = rng.bytes(int(rng.integers(1, 99))) + packed
    content = bytes(packed) if rng.random() < 0.8 else PACKERS[int(rng.integers(3))](bytes(packed))
    files.path.write_bytes(content)
    read: list[ChargeDensity] = []
    result = outcome(lambda: read.append(read_density(files.path)[0]))
    if result == "read":
        with np.load(io.BytesIO(bytes(packed))) as archive:
            found = read[0]
            np.testing.assert_array_equal(found.values, archive["density"])
            np.testing.assert_array_equal(found.structure.lattice, archive["cell"])
            np.testing.assert_array_equal(found.structure.frac_coords, archive["scaled_positions"])
            symbols = tuple(SYMBOLS[n - 1] for n in archive["numbers"])
            assert found.structure.species == symbols
    return result


# --- structures ---------------------------------------------------------------------------------


def prepare_poscar(folder: Path) -> Files:
    """Headers of CHGCARs."""
    texts = [re.split(rb"\n\s*\n", text.replace(b"\r", b""))[0] for text in chgcar_texts(folder)]
    velocities = b"\n\n  0.1 0.2 0.3\n"
    return Files([*texts, texts[0] + velocities], folder / "POSCAR")


def case_poscar(rng: Rng, files: Files) -> Outcome:
    """A damaged POSCAR."""
    text = mutated(rng, files.texts[int(rng.integers(len(files.texts)))])
    files.path.write_bytes(text)
    holds_structures(files.path)
    species = _species(rng)
    read: list[StructureEntry | Any] = []
    result = outcome(lambda: read.extend(read_structures(files.path, species=species)))
    if result == "read":
        (entry,) = read
        check_structure(entry.structure, reference(text, poscar=True))
    return result


JSON_VALUES = (
    *("NaN", "Infinity", "1e999", "-1e999", "1e308", "1e-320", "9" * 400, "9" * 5000, "0", "-1"),
    *("null", "true", "[]", "{}", '""', '"\\u0000"', '"\\ud800"', '"../../x"', '"a\\nb"', "1.0"),
    *("[[[[[[1]]]]]]", "[1,2,3]", "[[1,0,0],[0,1,0],[0,0,1]]", '"1"', "1e400", "[[0,0,1e300]]"),
    *("[[1e-5,0,0],[0,1e5,0],[0,0,1e5]]", "[[1e150,0,0],[0,1,0],[0,0,1]]", "[null,1]"),
    *("[[0.01,0,0],[0,0.01,0],[0,0,0.01]]", "[[1,0,0],[1e6,1,0],[0,1e6,1]]", "1e5", "0.5"),
)


def prepare_json(folder: Path) -> Files:
    """Lists of one to three structures."""
    rng = np.random.default_rng(1)
    texts = []
    for count in (1, 2, 3):
        items = []
        for i in range(count):
            structure = example(rng).structure
            items.append(
                {
                    "id": f"a-{i}",
                    "cell": structure.lattice.tolist(),
                    "scaled_positions": structure.frac_coords.tolist(),
                    "numbers": [SYMBOLS.index(symbol) + 1 for symbol in structure.species],
                }
            )
        texts.append(json.dumps(items).encode())
    return Files(texts, folder / "list.json")


def case_json(rng: Rng, files: Files) -> Outcome:
    """A damaged list of structures."""
    text = files.texts[int(rng.integers(len(files.texts)))]
    for _ in range(int(rng.integers(1, 3))):
        match int(rng.integers(7)):
            case 0 | 1:  # a number, a text or a list of numbers becomes another value
                spots = list(re.finditer(rb'-?[\d.]+|"[^"]*"|\[[^][]*\]|\[\[.*?\]\]', text))
                if spots:
                    spot = spots[int(rng.integers(len(spots)))]
                    value = JSON_VALUES[int(rng.integers(len(JSON_VALUES)))].encode()
                    text = text[: spot.start()] + value + text[spot.end() :]
            case 2:
                depth = int(10 ** rng.uniform(1, 5.5))
                place = int(rng.integers(len(text)))
                opening = (b"[", b'{"a":', b"[{", b"]")[int(rng.integers(4))]
                text = text[:place] + opening * depth + text[place:]
            case 3:
                text = text.replace(
                    b'"id"', (b'"i\\u0064"', b'"ID"', b'"id":1,"id"')[rng.integers(3)]
                )
            case 4:
                text = text[:-1] + b"," + text[1:]
            case _:
                changed = bytearray(text)
                (_flip, _bit, _cut, _remove)[int(rng.integers(4))](rng, changed)
                text = bytes(changed) or b"["
    packed = text if rng.random() < 0.8 else PACKERS[int(rng.integers(3))](text)
    files.path.write_bytes(packed)
    holds_structures(files.path)
    read: list[StructureEntry | Any] = []
    result = outcome(lambda: read.extend(read_structures(files.path)))
    if result == "read" and text.lstrip()[:1] == b"[":
        items = json.loads(text)
        assert len(items) == len(read)
        for item, entry in zip(items, read, strict=True):
            if isinstance(entry, ChgdbError):
                check_refusal(entry)
                continue
            assert entry.id == item["id"]
            np.testing.assert_array_equal(entry.structure.lattice, np.array(item["cell"], float))
            np.testing.assert_array_equal(
                entry.structure.frac_coords, np.array(item["scaled_positions"], float)
            )
            symbols = tuple(SYMBOLS[n - 1] for n in item["numbers"])
            assert entry.structure.species == symbols
    return result


CIF = b"""\
data_test
_symmetry_space_group_name_H-M   'P 1'
_symmetry_Int_Tables_number  1
_cell_length_a 3.0
_cell_length_b 3.1
_cell_length_c 3.2(1)
_cell_angle_alpha 90
_cell_angle_beta 91
_cell_angle_gamma 90
loop_
_symmetry_equiv_pos_as_xyz
'x, y, z'
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

CIF_WORDS = (
    *(b"?", b".", b"'", b'"', b";", b"#", b"loop_", b"data_x", b"_cell_length_a", b"1e999"),
    *(b"nan", b"0", b"-1", b"1e-9", b"1e9", b"180", b"0.001", b"'x,y,z'", b"'-x,y+1/0,z'"),
    *(b"'" + b"x+" * 999 + b"y,y,z'", b"'I m -3 m'", b"229", b"999", b"3.0(", b"1(9)", b"\xff"),
    *(b"'x**9**9**9, y, z'", b"'__import__(1),y,z'", b"9" * 400, b"Xq", b"D", b"1_0"),
)


def prepare_cif(folder: Path) -> Files:
    """One CIF, with a group and without."""
    group = CIF.replace(b"'P 1'", b"'P m -3 m'").replace(b"number  1", b"number  221")
    group = group.replace(b"3.1\n", b"3.0\n").replace(b"3.2(1)", b"3.0").replace(b"91", b"90")
    return Files([CIF, group], folder / "a.cif")


def case_cif(rng: Rng, files: Files) -> Outcome:
    """A damaged CIF."""
    text = files.texts[int(rng.integers(2))]
    if rng.random() < 0.6:
        spots = list(re.finditer(rb"\S+", text))
        for spot in sorted(rng.choice(len(spots), int(rng.integers(1, 3)), replace=False))[::-1]:
            word = CIF_WORDS[int(rng.integers(len(CIF_WORDS)))]
            text = text[: spots[spot].start()] + word + text[spots[spot].end() :]
    else:
        text = mutated(rng, text)
    files.path.write_bytes(text)
    holds_structures(files.path)
    read: list[StructureEntry | Any] = []
    result = outcome(lambda: read.extend(read_structures(files.path)))
    if result == "read":
        (entry,) = read
        structure = entry.structure
        assert set(structure.species) <= set(SYMBOLS)
        assert len(structure.species) <= 10_000
        tags = re.findall(rb"(?m)^_cell_length_([abc]) (\d+\.?\d*)[ \n]", text)
        if sorted(tag for tag, _ in tags) == [b"a", b"b", b"c"] and not re.search(rb"[;\r]", text):
            found = sorted(np.linalg.norm(structure.lattice, axis=1))
            told = sorted(float(size) for _, size in tags)
            np.testing.assert_allclose(found, told, rtol=1e-6)
    return result


# --- what is no file, and odd names ---------------------------------------------------------------


def case_place(rng: Rng, files: Files) -> Outcome:
    """Directories, pipes, sockets, links, devices, and names that no message should repeat."""
    folder = files.path.parent / "place"
    folder.mkdir()
    letters = string.ascii_letters + "\n\r\t\x1b\x07'\"*?[]{}!\\ \udc80\udcff\u2028é"
    name = "".join(rng.choice(list(letters), int(rng.integers(1, 9))))
    name = str(rng.choice(["CHGCAR", "POSCAR", "a.npz", ""])) + name
    path = folder / name
    text = files.texts[0]
    try:
        match int(rng.integers(9)):
            case 0:
                path.mkdir()
            case 1:
                os.mkfifo(path)
            case 2:
                path.symlink_to(name)
            case 3:
                path.symlink_to("missing")
            case 4:
                path.symlink_to(
                    str(rng.choice(["/dev/zero", "/dev/full", "/dev/null", "/proc/self/mem"]))
                )
            case 5:
                with socket.socket(socket.AF_UNIX) as server:
                    here = os.open(folder, os.O_RDONLY)
                    server.bind(f"/proc/self/fd/{here}/{name}")
                    os.close(here)
            case 6:
                path.symlink_to(folder)
            case _:
                path.write_bytes(mutated(rng, text))
        result = outcome(lambda: [read_density(file) for file in find_densities([path])])
        outcome(lambda: find_densities([folder]))
        outcome(lambda: file_sha256(path))
        outcome(lambda: read_structures(path))
        holds_structures(path)
        if not path.is_fifo():
            outcome(lambda: read_chgcar(path))
        if path.is_file():
            structure = Structure(np.eye(3), ("Li",), np.zeros((1, 3)))
            names: list[str] = []
            outcome(lambda: names.append(default_id(path, structure)))
            assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", name) for name in names)
        return result
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        folder.rmdir()


TARGETS: tuple[Target, ...] = (
    Target("chgcar", prepare_chgcar, case_chgcar),
    Target("chgcar-packed", prepare_chgcar, case_packed),
    Target("bomb", prepare_chgcar, case_bomb),
    Target("npz", prepare_chgcar, case_npz),
    Target("poscar", prepare_poscar, case_poscar),
    Target("json", prepare_json, case_json),
    Target("cif", prepare_cif, case_cif),
    Target("place", prepare_chgcar, case_place),
)

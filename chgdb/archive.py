"""The archival codec: a density as a payload whose error was asked for, measured and recorded.

A field is written as functions about the atoms and plane waves (`crystal`) where that can reach
the tolerance, else as rounded values on the grid, else exactly; the shortest counts. What is
promised is measured on what the bytes decode to. docs/codec.md has the mathematics and the byte
layout.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numcodecs.zstd import compress, decompress
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from chgdb.crystal import Limits, NotReachedError, decode_field, encode_field
from chgdb.density import ChargeDensity, Grid, Structure
from chgdb.errors import InputError, StoreError
from chgdb.grid import fourier_resample
from chgdb.library import LATEST
from chgdb.metrics import DensityError, compare
from chgdb.multipoles import n_images
from chgdb.schema import LARGEST_GRID

__all__ = ["Payload", "Tolerance", "check", "decode", "encode"]

PAYLOAD_VERSION = 1

_LOSSLESS, _GRID, _CRYSTAL = 0, 1, 2
"""How a field is written; `_CRYSTAL` plus n - 1 for atom library n."""

_ZSTD_LEVEL = 19
_FEWEST_ELECTRONS = 0.5
"""In the cell; with fewer, `crystal` would keep their number less exactly than is promised."""

_DESCRIBED = (1e-30, 1e30)
"""e/A^3; the largest value of a field that is tried as functions about atoms and plane waves."""

_LEAST_ERROR = 1e-290
"""e/A^3; with a smaller one the density is kept exactly: such numbers have few digits."""

_LARGEST_CELL = 1e12
"""A^3."""

_MOST_IMAGES = 100_000

_NEGLIGIBLE = 1e-4
"""Part of the density below which a magnetization counts as this part, for its tolerance."""


@dataclass(frozen=True)
class Tolerance:
    """The largest error that a payload may have; both hold where both are given.

    Attributes:
        nmae: normalised mean absolute error, %; also of each magnetization component, or of 1e-4 of
            the density where a component is smaller than that on average.
        max_error: largest absolute error, e/A^3 (mu_B/A^3 for the magnetization).

    Raises:
        InputError: neither is given, or one is negative or not a number.
    """

    nmae: float | None = 0.1
    max_error: float | None = None

    def __post_init__(self) -> None:
        if self.nmae is None and self.max_error is None:
            raise InputError("a tolerance needs an NMAE or a largest error")
        for name, value in (("NMAE", self.nmae), ("largest error", self.max_error)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"tolerance: the {name} is {value}; give a number of 0 or more")


@dataclass(frozen=True)
class Payload:
    """An encoded density with the errors of what it decodes to.

    Attributes:
        data: the bytes.
        method: "crystal", "grid" or "lossless"; of the density and of the magnetization's
            components, where they differ, joined by "+".
        error: of the decoded density on the source's grid; its largest error is that of the
            magnetization where that is larger.
        magnetization_nmae: the largest over the magnetization's components, %, as `Tolerance`
            counts it; None without one.
    """

    data: bytes
    method: str
    error: DensityError
    magnetization_nmae: float | None = None


def encode(density: ChargeDensity, tolerance: Tolerance | None = None) -> Payload:
    """The shortest payload within the tolerance, with its errors as decoded.

    Electrons are kept to 4e-9.

    Args:
        density: with or without magnetization.
        tolerance: by default an NMAE of 0.1 %.

    Raises:
        InputError: the density is zero everywhere, or too large for sums over the cell.
    """
    # Sums in another order round otherwise; so one thread, and the same bytes everywhere.
    with threadpool_limits(1):
        return _encoded(density, tolerance or Tolerance())


def _encoded(density: ChargeDensity, tolerance: Tolerance) -> Payload:
    structure = density.structure
    if not density.values.any():
        raise InputError("the density is zero everywhere")
    if density.values.size > LARGEST_GRID:
        grid = " x ".join(map(str, density.grid))
        raise InputError(f"a grid of {grid} points is more than 512^3, as many as are kept")
    spins = () if density.magnetization is None else density.magnetization
    with np.errstate(over="ignore"):
        sums = [float(np.abs(values).sum()) for values in (density.values, *spins)]
    if not math.isfinite(max(sums) * structure.volume):
        peak = max(float(np.abs(values).max()) for values in (density.values, *spins))
        raise InputError(
            f"the density reaches {peak:.3g} e/A^3 in a cell of {structure.volume:.3g} A^3, which "
            "is no number of electrons; look at its units"
        )
    size = float(np.abs(density.values).mean())
    fields = []
    for values in (density.values, *spins):
        limits = _limits(tolerance, values, least=_NEGLIGIBLE * size)
        generic = values is not density.values
        fields.append(_encode(values, structure, limits, generic=generic))
    data = _packed(fields, density)
    back = decode(data, structure)
    largest = float(np.abs(back.values - density.values).max())
    if density.magnetization is not None and back.magnetization is not None:
        differences = np.abs(back.magnetization - density.magnetization)
        largest = max(largest, float(differences.max()))
    error = replace(compare(back, density), max_error=largest)
    names = dict.fromkeys(("lossless", "grid", "crystal")[min(tag, 2)] for tag, _ in fields)
    return Payload(data, "+".join(names), error, _spin_nmae(back, density))


def decode(data: bytes, structure: Structure, grid: Grid | None = None) -> ChargeDensity:
    """The density, and the magnetization if there was one, that a payload holds.

    Args:
        data: the payload.
        structure: the crystal whose density was encoded, to the last digit.
        grid: points along a, b, c; the source's by default, others by Fourier series.

    Raises:
        InputError: a grid that cannot be.
        StoreError: the payload is damaged, of a later version, or of another structure.
    """
    own, fields = _unpacked(data, structure)
    values = []
    for tag, body in fields:
        field = _decode(tag, body, structure, own)
        values.append(field if grid is None else fourier_resample(field, grid))
    return ChargeDensity(values[0], structure, np.stack(values[1:]) if values[1:] else None)


def check(data: bytes, structure: Structure) -> None:
    """Refuse a payload that is damaged, without decoding it.

    Raises:
        StoreError: as `decode`.
    """
    _unpacked(data, structure)


def _limits(tolerance: Tolerance, values: NDArray[np.float64], least: float) -> Limits:
    """The limits of one field, whose mean size counts as `least` if it is less."""
    nmae, largest = tolerance.nmae, tolerance.max_error
    sizes = np.abs(values)
    mean, peak = max(float(sizes.mean()), least), max(float(sizes.max()), least)
    return Limits(
        mean_error=math.inf if nmae is None else nmae / 100.0 * mean,
        max_error=math.inf if largest is None else min(largest, peak),
    )


def _spin_nmae(back: ChargeDensity, density: ChargeDensity) -> float | None:
    """The largest NMAE of the components, %; of 1e-4 of the density where they are less."""
    if density.magnetization is None or back.magnetization is None:
        return None
    least = _NEGLIGIBLE * float(np.abs(density.values).sum())
    sizes = np.maximum(np.abs(density.magnetization).sum(axis=(1, 2, 3)), least)
    errors = np.abs(back.magnetization - density.magnetization).sum(axis=(1, 2, 3))
    return float((100.0 * errors / sizes).max())


# ---------------------------------------------------------------------- one field


def _encode(
    values: NDArray[np.float64], structure: Structure, limits: Limits, *, generic: bool
) -> tuple[int, bytes]:
    """The shortest body of a field, and the tag that says how it is written."""
    candidates: list[tuple[int, bytes]] = []
    grid = (values.shape[0], values.shape[1], values.shape[2])
    if min(limits.mean_error, limits.max_error) >= _LEAST_ERROR:
        try:
            if not _is_described(values, structure):
                raise NotReachedError
            if not generic and abs(float(values.mean())) * structure.volume < _FEWEST_ELECTRONS:
                raise NotReachedError
            body = encode_field(values, structure, limits, generic=generic)
            candidates.append((_CRYSTAL + LATEST - 1, body))
        except NotReachedError:
            pass
        if not candidates or len(candidates[0][1]) > values.size // 4:
            candidates += [(_GRID, body) for body in _on_grid(values, limits)]
    if not candidates or len(candidates[0][1]) > values.size:
        candidates.append((_LOSSLESS, _planes(np.ascontiguousarray(values, dtype="<f8"))))
    candidates.sort(key=lambda candidate: len(candidate[1]))
    for tag, body in candidates:
        if tag == _LOSSLESS or limits.share(_decode(tag, body, structure, grid) - values) <= 1.0:
            return tag, body
    return _LOSSLESS, _planes(np.ascontiguousarray(values, dtype="<f8"))


def _is_described(values: NDArray[np.float64], structure: Structure) -> bool:
    """Whether a field is of a size, and its cell of a shape, that `crystal` is made for."""
    smallest, largest = _DESCRIBED
    peak = float(np.abs(values).max())
    is_usual = structure.volume <= _LARGEST_CELL and n_images(structure) <= _MOST_IMAGES
    return smallest <= peak <= largest and is_usual


def _decode(tag: int, body: bytes, structure: Structure, grid: Grid) -> NDArray[np.float64]:
    """One field on its own grid."""
    if tag >= _CRYSTAL:
        return decode_field(body, structure, grid, tag - _CRYSTAL + 1)
    return _exact(body, grid) if tag == _LOSSLESS else _from_grid(body, grid)


def _on_grid(values: NDArray[np.float64], limits: Limits) -> Iterator[bytes]:
    """The values as multiples of a step, each less what its neighbours predict; none if too large.

    The prediction is Lorenzo's: differences along a, b and c in turn, in whole numbers.
    """
    step = min(4.0 * limits.mean_error, 2.0 * limits.max_error) * (1 - 2.0**-20)
    for _ in range(40):
        if float(np.abs(values).max()) / step >= 2.0**57:
            return
        rounded = np.rint(values / step).astype(np.int64)
        mean = float(values.mean())
        if limits.share(_shifted(rounded, step, mean) - values) <= 1.0:
            for axis in range(3):
                rounded = np.diff(rounded, axis=axis, prepend=0)
            zigzag = (rounded << 1) ^ (rounded >> 63)
            width = next(w for w in (1, 2, 4, 8) if int(zigzag.max()) < 2 ** (8 * w))
            head = struct.pack("<ddB", step, mean, width)
            yield head + _planes(zigzag.astype(f"<u{width}"))
            return
        step *= 0.9


def _shifted(rounded: NDArray[np.int64], step: float, mean: float) -> NDArray[np.float64]:
    field = np.multiply(rounded, step, dtype=np.float64)
    field += mean - field.mean()
    return field


def _from_grid(body: bytes, grid: Grid) -> NDArray[np.float64]:
    try:
        step, mean, width = struct.unpack_from("<ddB", body)
        zigzag = _from_planes(body[17:], grid, f"<u{width}").astype(np.uint64)
    except (struct.error, TypeError) as error:
        raise StoreError(f"a payload is damaged ({error})") from error
    rounded = (zigzag >> np.uint64(1)).astype(np.int64) ^ -(zigzag & np.uint64(1)).astype(np.int64)
    for axis in range(3):
        rounded = rounded.cumsum(axis=axis)
    return _shifted(rounded, step, mean)


def _exact(body: bytes, grid: Grid) -> NDArray[np.float64]:
    return _from_planes(body, grid, "<f8").astype(np.float64)


def _planes(values: NDArray[np.generic]) -> bytes:
    """Zstandard of the first bytes of all values, then the second bytes ..."""
    size = values.dtype.itemsize
    planes = np.frombuffer(values.tobytes(), np.uint8).reshape(-1, size).T
    return bytes(compress(planes.tobytes(), _ZSTD_LEVEL))


def _from_planes(body: bytes, grid: Grid, dtype: str) -> NDArray[np.generic]:
    size = np.dtype(dtype).itemsize
    expected = math.prod(grid) * size
    try:
        planes = np.empty(expected, np.uint8)
        found = decompress(body, planes)
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"a payload is damaged ({error})") from error
    if len(found) != expected:
        raise StoreError("a payload is damaged: it does not fill its grid")
    return np.frombuffer(planes.reshape(size, -1).T.tobytes(), dtype).reshape(grid)


# ---------------------------------------------------------------------- bytes


def _packed(fields: list[tuple[int, bytes]], density: ChargeDensity) -> bytes:
    """Version, checksum of what follows and of the species, grid, number of fields, fields."""
    parts = [_varint(n) for n in (*density.grid, len(fields))]
    for index, (tag, body) in enumerate(fields):
        parts.append(_varint(tag))
        if index < len(fields) - 1:
            parts.append(_varint(len(body)))
        parts.append(body)
    content = b"".join(parts)
    return struct.pack("<BI", PAYLOAD_VERSION, _checksum(content, density.structure)) + content


def _checksum(content: bytes, structure: Structure) -> int:
    return zlib.crc32(content, zlib.crc32(" ".join(structure.species).encode()))


def _unpacked(data: bytes, structure: Structure) -> tuple[Grid, list[tuple[int, bytes]]]:
    """The grid and the fields of a payload."""
    if len(data) < 5:
        raise StoreError("a payload is damaged: it is too short")
    version, checksum = struct.unpack_from("<BI", data)
    content = data[5:]
    if _checksum(content, structure) != checksum:
        raise StoreError("a payload is damaged, or of another structure (checksum)")
    if version != PAYLOAD_VERSION:
        raise StoreError(
            f"a payload is of version {version}; this chgdb reads {PAYLOAD_VERSION}: "
            "pip install --upgrade chgdb"
        )
    try:
        (n1, n2, n3, n_fields), position = _varints(content, 0, 4)
        if min(n1, n2, n3) < 1 or n1 * n2 * n3 > LARGEST_GRID or n_fields not in (1, 2, 4):
            raise StoreError("a payload is damaged: its grid cannot be")
        fields = []
        for index in range(n_fields):
            (tag,), position = _varints(content, position, 1)
            stop = len(content)
            if index < n_fields - 1:
                (length,), position = _varints(content, position, 1)
                stop = position + length
            fields.append((tag, content[position:stop]))
            position = stop
    except IndexError as error:
        raise StoreError("a payload is damaged: it ends too early") from error
    return (n1, n2, n3), fields


def _varint(number: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first; the high bit says that more follow."""
    out = bytearray()
    while True:
        number, low = divmod(number, 128)
        out.append(low | (128 if number else 0))
        if not number:
            return bytes(out)


def _varints(content: bytes, position: int, n: int) -> tuple[list[int], int]:
    numbers = []
    for _ in range(n):
        number, place = 0, 0
        while True:
            byte = content[position]
            position += 1
            number |= (byte & 127) << place
            place += 7
            if byte < 128:
                break
        numbers.append(number)
    return numbers, position

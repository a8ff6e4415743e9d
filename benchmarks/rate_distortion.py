"""Bytes per density at the same measured NMAE: chgdb.archive, SPERR, SZ3, ZFP and simpler codecs.

usage: python benchmarks/rate_distortion.py [--every N] [--only FILE] [--processes N]
       python benchmarks/rate_distortion.py --speed

Needs `pip install 'chgdb[bench,ml,plot]'`; set OMP_NUM_THREADS=1 with more than one process.

Prints Markdown tables, writes every point as JSON and draws the curves. Data sets: the densities on
their native grids, the same on the grids that VASP would take, and files that VASP wrote (their
charge). A density is one HDF5 chunk in a file in memory; only the bytes of the chunk count, not the
grid, the type or the parameter, so the rivals get those for nothing; chgdb's payload is counted
whole. No codec is charged for the crystal structure.

Each rival gets the tolerance whose decoded NMAE is at most the target and at least 97 % of it,
found by bisection, or the nearest below where a small cell gives it only large steps. Of several
ways it gets the best for each density and target: float32 and float64; the density and its square
root (with the sign of the density); where it has two error controls, both. ZFP and BitRound know
only powers of two: ZFP is given the density in units of the tolerance, BitRound ends at a smaller
error than the target. "Decimated" means that the density, or its root, is first brought to the
coarsest Fourier grid that costs at most half of the target, which a user of these codecs would have
to write himself.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import hdf5plugin
import numpy as np
from numcodecs import BitRound, Shuffle, Zstd
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from store_ops import machine, supercell, table

from chgdb import archive, crystal
from chgdb.density import ChargeDensity, Grid, Structure
from chgdb.formats import default_id, find_densities, read_density
from chgdb.grid import (
    fourier_resample,
    half_frequencies,
    points_per_angstrom,
    spacing_grid,
    vasp_grid,
)
from chgdb.library import LATEST, read_library
from chgdb.metrics import nmae

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

TARGETS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""NMAE, %."""

WITHIN = 0.97
"""A rival's error is at least this part of the target, where its steps allow."""

SPACINGS = tuple(np.arange(2.0, 16.0, 0.5))
"""Points/A of the grids that decimation chooses from."""

COARSEST = 5.0
"""Points/A; a VASP file below it is a test of readers, not a density."""

OURS = "chgdb"

Field = NDArray[Any]
Compress = Callable[[Field, float], tuple[int, Field]]
"""A field whose mean magnitude is 1, and a tolerance -> bytes, and the field as it comes back."""


@dataclass(frozen=True)
class Point:
    """One codec on one density: the smallest size whose error is at most the target."""

    data: str
    id: str
    codec: str
    target: float
    nmae: float
    bytes: int
    encode_s: float | None = None
    decode_s: float | None = None


class View(NamedTuple):
    """A density as a codec sees it, and the way back."""

    field: Field
    restore: Callable[[Field], Field]


# --- codecs ---------------------------------------------------------------------------------


def _stored(field: Field, compression: Mapping[str, Any]) -> tuple[int, Field]:
    """Bytes of a field as one HDF5 chunk, and the field read from them.

    The file is closed in between: HDF5 would hand back the chunk it holds uncompressed.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        data = file.create_dataset("field", data=field, chunks=field.shape, **compression)
        file.flush()
        size = data.id.get_storage_size()
    with h5py.File(memory, "r") as file:
        return size, file["field"][...]


def sperr_psnr(field: Field, tolerance: float) -> tuple[int, Field]:
    ratio = max(float(np.ptp(field)) / tolerance, 1.01)  # it takes positive decibels only
    return _stored(field, hdf5plugin.Sperr(peak_signal_to_noise_ratio=20 * math.log10(ratio)))


def sperr_absolute(field: Field, tolerance: float) -> tuple[int, Field]:
    return _stored(field, hdf5plugin.Sperr(absolute=tolerance))


def sz3(field: Field, tolerance: float) -> tuple[int, Field]:
    return _stored(field, hdf5plugin.SZ3(absolute=tolerance))


def zfp(field: Field, tolerance: float) -> tuple[int, Field]:
    size, decoded = _stored(field / field.dtype.type(tolerance), hdf5plugin.Zfp(accuracy=1.0))
    return size, decoded * tolerance


def bitround(field: Field, tolerance: float) -> tuple[int, Field]:
    bits = {"float32": 23, "float64": 52}[field.dtype.name]
    kept = min(max(round(-math.log2(tolerance)), 1), bits)
    rounded = BitRound(keepbits=kept).encode(field).view(field.dtype)
    shuffled = Shuffle(field.itemsize).encode(rounded)
    return len(Zstd(level=19).encode(shuffled)), rounded.reshape(field.shape)


def fourier(field: Field, tolerance: float) -> tuple[int, Field]:
    """Fourier coefficients in steps, from low to high frequency up to the last that is not zero."""
    shape = field.shape
    coefficients = np.fft.rfftn(field, norm="forward")
    frequencies = np.ix_(*half_frequencies(shape))
    radii = sum(np.square(f / n) for f, n in zip(frequencies, shape, strict=True))
    order = np.argsort(radii, axis=None, kind="stable")
    step = tolerance / math.sqrt(field.size)
    steps = np.rint(coefficients.ravel()[order] / step)
    last = int(np.flatnonzero(steps).max(initial=0)) + 1
    planes = np.stack([steps[:last].real, steps[:last].imag])
    dtype = next(d for d in ("i1", "i2", "i4", "i8") if np.abs(planes).max() <= np.iinfo(d).max)
    packed = Shuffle(np.dtype(dtype).itemsize).encode(planes.astype(dtype))
    kept = np.zeros(coefficients.size, complex)
    kept[order] = steps * step
    decoded = np.fft.irfftn(kept.reshape(coefficients.shape), s=shape, axes=(0, 1, 2))
    return len(Zstd(level=19).encode(packed)), decoded * field.size


RIVALS: dict[str, tuple[Compress, ...]] = {
    "SPERR": (sperr_psnr, sperr_absolute),
    "SZ3": (sz3,),
    "ZFP": (zfp,),
}
BASELINES: dict[str, Compress] = {
    "BitRound + zstd": bitround,
    "Fourier + zstd": fourier,
}

CODECS = (
    OURS,
    *BASELINES,
    *(name + how for how in ("", ", decimated") for name in RIVALS),
)
"""In the order of the tables."""


# --- what a rival sees ----------------------------------------------------------------------


def root(values: Field) -> Field:
    """The square root, with the sign of the value."""
    return np.sign(values) * np.sqrt(np.abs(values))


def square(values: Field) -> Field:
    """The inverse of `root`."""
    return np.sign(values) * np.square(values)


def _unchanged(values: Field) -> Field:
    return values


def whole_views(values: Field) -> list[View]:
    """The density and its root, on the density's own grid."""
    return [View(values, _unchanged), View(root(values), square)]


def decimated_views(values: Field, lattice: Field, target: float) -> list[View]:
    """The root of the decimated density, and the decimated root, where they are coarser."""
    views = []
    grid = coarsest_grid(values, values, _unchanged, lattice, target)
    if grid != values.shape:
        coarse = root(fourier_resample(values, grid))
        views.append(View(coarse, lambda x: fourier_resample(square(x), values.shape)))
    grid = coarsest_grid(values, root(values), square, lattice, target)
    if grid != values.shape:
        coarse = fourier_resample(root(values), grid)
        views.append(View(coarse, lambda x: square(fourier_resample(x, values.shape))))
    return views


def coarsest_grid(
    values: Field,
    field: Field,
    back: Callable[[Field], Field],
    lattice: Field,
    target: float,
) -> Grid:
    """The coarsest grid for `field` whose error in the density is at most half of the target."""
    n1, n2, n3 = field.shape
    low, high = 0, len(SPACINGS)  # SPACINGS[high] does; at the end of them: the own grid
    while low < high:
        middle = (low + high) // 2
        grid = _capped(lattice, SPACINGS[middle], field.shape)
        restored = fourier_resample(fourier_resample(field, grid), field.shape)
        if nmae(back(restored), values) <= target / 2:
            high = middle
        else:
            low = middle + 1
    return _capped(lattice, SPACINGS[low], field.shape) if low < len(SPACINGS) else (n1, n2, n3)


def _capped(lattice: Field, spacing: float, largest: Sequence[int]) -> Grid:
    grid = spacing_grid(lattice, spacing)
    n1, n2, n3 = (min(n, most) for n, most in zip(grid, largest, strict=True))
    return n1, n2, n3


# --- measuring ------------------------------------------------------------------------------


def at_target(measure: Callable[[float], tuple[int, float]], target: float) -> tuple[int, float]:
    """The smallest size whose NMAE is at most the target, by bisection on the tolerance.

    Args:
        measure: a tolerance -> bytes and NMAE; the NMAE grows with it.
        target: NMAE, %.

    Raises:
        RuntimeError: no tolerance was found that reaches the target.
    """
    inside: list[tuple[float, float]] = []  # logarithms of the tolerance, of the error
    outside: list[tuple[float, float]] = []
    sizes: list[tuple[int, float]] = []
    guess = math.log(target / 100)
    for _ in range(16):
        size, error = measure(math.exp(guess))
        if error <= target:
            sizes.append((size, error))
            inside.append((guess, math.log(max(error, 1e-9))))
            if error >= WITHIN * target:
                break
        else:
            outside.append((guess, math.log(error)))
        guess = _next_guess(max(inside, default=None), min(outside, default=None), target)
    if not sizes:
        raise RuntimeError(f"no tolerance gives an NMAE of {target} %")
    return min(sizes)


def _next_guess(
    inside: tuple[float, float] | None, outside: tuple[float, float] | None, target: float
) -> float:
    """Between the two by linear interpolation, but never close to an end; beyond the only one."""
    aim = math.log(target * (1 + WITHIN) / 2)
    if inside and outside:
        part = (aim - inside[1]) / max(outside[1] - inside[1], 1e-9)
        return inside[0] + min(max(part, 0.1), 0.9) * (outside[0] - inside[0])
    if inside:
        return inside[0] + min(max(1.3 * (aim - inside[1]), 0.3), 3.0)
    if outside:
        return outside[0] - min(max(1.3 * (outside[1] - aim), 0.3), 3.0)
    raise ValueError("nothing measured yet")


def smallest(
    values: Field,
    views: Iterable[View],
    codecs: Iterable[Compress],
    dtypes: Iterable[str],
    target: float,
) -> tuple[int, float] | None:
    """The best of every combination: bytes and NMAE; None without a view."""
    found = []
    for view, compress, dtype in product(views, codecs, dtypes):
        scale = float(np.abs(view.field).mean())
        field = (view.field / scale).astype(dtype)

        def measure(
            tolerance: float,
            field: Field = field,
            view: View = view,
            compress: Compress = compress,
            scale: float = scale,
        ) -> tuple[int, float]:
            size, decoded = compress(field, tolerance)
            return size, nmae(view.restore(decoded.astype(np.float64) * scale), values)

        found.append(at_target(measure, target))
    return min(found, default=None)


def rival_points(data: str, id_: str, density: ChargeDensity) -> Iterator[Point]:
    """Every codec but chgdb's on one density."""
    values, lattice = density.values, density.structure.lattice
    whole, both = whole_views(values), ("f4", "f8")
    for target in TARGETS:
        for name, compress in BASELINES.items():
            dtypes = ("f8",) if compress is fourier else both
            found = smallest(values, whole[:1], [compress], dtypes, target)
            if found:
                yield Point(data, id_, name, target, found[1], found[0])
        decimated = decimated_views(values, lattice, target)
        for name, codecs in RIVALS.items():
            found = smallest(values, whole, codecs, both, target)
            coarse = smallest(values, decimated, codecs, both, target)
            if found:
                yield Point(data, id_, name, target, found[1], found[0])
                size, error = min(found, coarse or found)
                yield Point(data, id_, f"{name}, decimated", target, error, size)


def our_points(data: str, id_: str, density: ChargeDensity) -> Iterator[Point]:
    """chgdb's codec on one density, its error measured on what it decodes to."""
    for target in TARGETS:
        start = time.perf_counter()
        payload = archive.encode(density, archive.Tolerance(nmae=target))
        encoded = time.perf_counter()
        decoded = archive.decode(payload.data, density.structure)
        done = time.perf_counter()
        error = nmae(decoded.values, density.values)
        if error > target:
            raise RuntimeError(f"{id_}: chgdb promised {target} % and gave {error} %")
        size = len(payload.data)
        yield Point(data, id_, OURS, target, error, size, encoded - start, done - encoded)


# --- data -----------------------------------------------------------------------------------


class Job(NamedTuple):
    """One density to measure."""

    data: str
    path: Path
    rivals: bool


NATIVE, VASP_GRID, VASP_FILES = "native grids", "VASP-like grids", "VASP files"


def load(data: str, path: Path) -> ChargeDensity:
    """The charge of a file, on the grid that the data set asks for."""
    density, _ = read_density(path)
    values, structure = density.values, density.structure
    if data == VASP_GRID:
        values = fourier_resample(values, vasp_grid(structure.lattice))
    return ChargeDensity(values, structure)


def measure(job: Job) -> list[Point]:
    """Every codec on one density."""
    density = load(job.data, job.path)
    id_ = default_id(job.path, density.structure)
    points = list(our_points(job.data, id_, density))
    if job.rivals:
        points += rival_points(job.data, id_, density)
    return points


def jobs(arguments: argparse.Namespace) -> list[Job]:
    """What to measure, by the options."""
    files = sorted(arguments.densities.glob("*.npz"))
    wanted = set(arguments.ids or [])
    if arguments.only:
        wanted |= set(arguments.only.read_text(encoding="utf-8").split())
    if wanted:
        if missing := sorted(wanted - {path.stem for path in files}):
            raise SystemExit(f"not in {arguments.densities}: {', '.join(missing)}")
        files = [path for path in files if path.stem in wanted]
    files = files[:: arguments.every]
    rivals = arguments.rivals is None
    listed = [Job(data, path, rivals) for data in (NATIVE, VASP_GRID) for path in files]
    return listed + [Job(VASP_FILES, path, rivals) for path in vasp_files(arguments.vasp)]


def vasp_files(folder: Path) -> list[Path]:
    """Files of VASP whose grids are fine enough to be densities of a calculation."""
    paths = []
    for path in find_densities([folder]):
        density, _ = read_density(path)
        if points_per_angstrom(density.structure.lattice, density.grid) >= COARSEST:
            paths.append(path)
    return paths


def start_worker(library: Path | None) -> None:
    """Leave Ctrl-C to the main process; use another atom library if there is one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if library is not None:
        other = read_library(library.read_bytes(), LATEST)
        vars(crystal)["load_library"] = lambda _number: other


def measure_all(
    listed: Sequence[Job], processes: int, library: Path | None, points: list[Point]
) -> None:
    """All points, added to `points` density by density; Ctrl-C leaves those that were finished."""
    with get_context("spawn").Pool(processes, start_worker, (library,)) as pool:
        for done, some in enumerate(pool.imap_unordered(measure, listed), 1):
            points += some
            print(f"\r{done}/{len(listed)} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def rivals_from(file: Path, points: Sequence[Point]) -> list[Point]:
    """Points of the other codecs from an earlier run, for the densities of this one."""
    earlier = [Point(**point) for point in json.loads(file.read_text(encoding="utf-8"))["points"]]
    rivals = [point for point in earlier if point.codec != OURS]
    wanted = {(point.data, point.id) for point in points}
    if missing := wanted - {(point.data, point.id) for point in rivals}:
        data, id_ = min(missing)
        raise SystemExit(f"{file} has not all that is measured here: {id_}, {data}")
    return [point for point in rivals if (point.data, point.id) in wanted]


# --- showing --------------------------------------------------------------------------------


def by_data(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by data set, in the order of the tables."""
    listed = list(points)
    parts = {
        data: [point for point in listed if point.data == data]
        for data in (NATIVE, VASP_GRID, VASP_FILES)
    }
    return {data: part for data, part in parts.items() if part}


def mean_bytes(points: Iterable[Point]) -> dict[tuple[str, float], float]:
    """(codec, target) -> bytes per material."""
    sizes: dict[tuple[str, float], list[int]] = {}
    for point in points:
        sizes.setdefault((point.codec, point.target), []).append(point.bytes)
    return {key: float(np.mean(some)) for key, some in sizes.items()}


def tables(points: Sequence[Point]) -> str:
    """Bytes per material by data set, and how far the rivals are behind."""
    lines = []
    for data, part in by_data(points).items():
        means = mean_bytes(part)
        materials = len({point.id for point in part})
        lines.append(f"{data}, {materials} materials: mean bytes at an NMAE of\n")
        rows = []
        for codec in CODECS:
            if (codec, TARGETS[0]) not in means:
                continue
            sizes = [f"{means[codec, target]:,.0f}" for target in TARGETS]
            ratios = [f"{means[codec, t] / means[OURS, t]:.1f}" for t in (1.0, 0.1)]
            rows.append([codec, *sizes, *ratios])
        heading = ["codec", *(f"{target:g} %" for target in TARGETS)]
        lines.append(table([*heading, f"1 %: / {OURS}", f"0.1 %: / {OURS}"], rows))
    lines.append(f"{OURS}: bytes and seconds over the materials\n")
    lines.append(our_table(points))
    return "\n".join(lines)


def our_table(points: Sequence[Point]) -> str:
    """How chgdb's payloads spread, and the time they take."""
    rows = []
    for data, part in by_data(points).items():
        for target in (1.0, 0.1):
            ours = [point for point in part if (point.codec, point.target) == (OURS, target)]
            sizes = [point.bytes for point in ours]
            encode = [point.encode_s for point in ours if point.encode_s is not None]
            decode = [point.decode_s for point in ours if point.decode_s is not None]
            rows.append(
                [
                    data,
                    f"{target:g} %",
                    f"{np.mean(sizes):,.0f}",
                    f"{np.median(sizes):,.0f}",
                    f"{np.percentile(sizes, 90):,.0f}",
                    f"{max(sizes):,}",
                    max(ours, key=lambda point: point.bytes).id,
                    f"{np.median(encode):.3f} ({max(encode):.2f})",
                    f"{np.median(decode):.4f} ({max(decode):.3f})",
                ]
            )
    heading = ["data", "NMAE", "bytes, mean", "median", "90 %", "max", "largest"]
    return table([*heading, "encode, median (max) s", "decode, median (max) s"], rows)


def draw(points: Sequence[Point], path: Path) -> None:
    """Mean bytes against NMAE, one panel per data set; chgdb with its quartiles."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("agg")
    parts = by_data(points)
    figure, axes = plt.subplots(
        1, len(parts), figsize=(4.0 * len(parts), 4.2), sharey=True, squeeze=False, layout="tight"
    )
    for axis, (data, part) in zip(axes[0], parts.items(), strict=True):
        means = mean_bytes(part)
        for codec in CODECS:
            line = [means[codec, t] for t in TARGETS if (codec, t) in means]
            if line:
                axis.loglog(TARGETS, line, label=codec, **_look(codec))
        ours = [[p.bytes for p in part if (p.codec, p.target) == (OURS, t)] for t in TARGETS]
        low, high = (np.array([np.percentile(some, q) for some in ours]) for q in (25, 75))
        axis.fill_between(TARGETS, low, high, color="C3", alpha=0.2, linewidth=0)
        axis.set_title(f"{data} ({len({point.id for point in part})})", fontsize=10)
        axis.set_xlabel("NMAE (%)")
        axis.set_xticks(TARGETS, [f"{target:g}" for target in TARGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3, linewidth=0.6)
    axes[0][0].set_ylabel("mean bytes per material")
    axes[0][0].legend(fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _look(codec: str) -> dict[str, Any]:
    """One colour per codec; dashed on decimated grids, grey for the simple ones."""
    if codec == OURS:
        return {"color": "C3", "linewidth": 2.2, "marker": "o", "markersize": 4}
    name, _, decimated = codec.partition(",")
    colors = {"SPERR": "C0", "SZ3": "C2", "ZFP": "C1"}
    greys = dict(zip(BASELINES, ("0.35", "0.65"), strict=True))
    look = {"color": {**colors, **greys}[name], "linewidth": 1.3}
    return look | {"linestyle": "--" if decimated else "-"}


# --- speed ----------------------------------------------------------------------------------


class Speed(NamedTuple):
    """Time and memory of one density, in a process of its own."""

    bytes: int
    method: str
    first_s: float
    encode_s: float
    decode_s: float
    before_mb: float
    encode_mb: float
    decode_mb: float


def peak_memory() -> float:
    """Largest resident set since the last call of `forget_peak`, MB; Linux only."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def uneven(density: ChargeDensity, size: float = 0.01) -> ChargeDensity:
    """The crystal with its points and atoms moved by waves of `size` cells: no symmetry is left."""

    def moved(x: Field) -> Field:
        return x + size * np.sin(2 * np.pi * np.roll(x, 1, axis=0) + np.arange(3.0).reshape(wide))

    wide = (3, 1, 1, 1)
    points = np.stack(np.meshgrid(*(np.arange(n) / n for n in density.grid), indexing="ij"))
    steps = moved(points) * np.reshape(density.grid, wide)
    values = map_coordinates(density.values, steps, order=5, mode="grid-wrap")
    targets = density.structure.frac_coords.T.reshape(3, -1, 1, 1)
    atoms = targets
    for _ in range(30):
        atoms = atoms + targets - moved(atoms)
    structure = density.structure
    coords = atoms.reshape(3, -1).T
    return ChargeDensity(values, Structure(structure.lattice, structure.species, coords))


def speed_cases(folder: Path) -> dict[str, tuple[Path, int, bool]]:
    """Name -> the file, cells along an axis (0: one on the file's own grid), and if `uneven`."""
    small, large = folder / "mp-149.npz", folder / "mp-1487.npz"
    return {
        "Si, native grid": (small, 0, False),
        "Si, VASP-like": (small, 1, False),
        "AlNi 3 x 3 x 3, VASP-like": (large, 3, False),
        "the same, atoms moved to P1": (large, 3, True),
        "AlNi 5 x 5 x 5, VASP-like": (large, 5, False),
    }


def measure_speed(case: tuple[Path, int, bool]) -> tuple[str, Speed]:
    """One density, encoded to 0.1 % and decoded."""
    path, times, is_uneven = case
    density, _ = read_density(path)
    density = supercell(density, times) if times else density
    density = uneven(density) if is_uneven else density
    start = time.perf_counter()
    archive.encode(density)
    first = time.perf_counter() - start
    forget_peak()
    before = peak_memory()
    start = time.perf_counter()
    payload = archive.encode(density)
    encode = time.perf_counter() - start
    encode_mb = peak_memory()
    forget_peak()
    decode = []
    for _ in range(5):
        start = time.perf_counter()
        archive.decode(payload.data, density.structure)
        decode.append(time.perf_counter() - start)
    shape = " x ".join(map(str, density.grid))
    found = Speed(
        len(payload.data),
        payload.method,
        first,
        encode,
        float(np.median(decode)),
        before,
        encode_mb,
        peak_memory(),
    )
    return f"{len(density.structure.species)} atoms, {shape}", found


def speed_table(folder: Path) -> str:
    """Time and memory of the codec by size of the grid, at 0.1 %."""
    rows = []
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, case in speed_cases(folder).items():
            print(f"speed: {name}", file=sys.stderr)
            size, found = pool.apply(measure_speed, [case])
            seconds = [f"{s:.3f}" for s in (found.first_s, found.encode_s)]
            memory = [f"{mb:.0f}" for mb in (found.before_mb, found.encode_mb, found.decode_mb)]
            row = [name, size, found.method, f"{found.bytes:,}", *seconds]
            rows.append([*row, f"{found.decode_s:.4f}", *memory])
    heading = ["density", "size", "method", "bytes", "encode, first (s)", "later", "decode (s)"]
    return table([*heading, "memory before (MB)", "encode, peak", "decode, peak"], rows)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--densities", type=Path, default=SHARED / "densities", metavar="DIR")
    parser.add_argument("--vasp", type=Path, default=SHARED / "chgcar", metavar="DIR")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th density")
    parser.add_argument("--ids", nargs="+", metavar="ID", help="only these densities")
    parser.add_argument("--only", type=Path, metavar="FILE", help="only the ids listed there")
    parser.add_argument(
        "--library",
        type=Path,
        metavar="NPZ",
        help="an atom library that has not seen these densities (scripts/fit_library.py)",
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument(
        "--rivals", type=Path, metavar="JSON", help="take the other codecs from an earlier run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every point there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves there")
    parser.add_argument("--speed", action="store_true", help="time and memory instead")
    return parser


def main() -> None:
    """Measure, print and draw."""
    arguments = options().parse_args()
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    print(f"`{command}`\n\n{machine()}\n", flush=True)
    if arguments.speed:
        print(speed_table(arguments.densities))
        return
    points: list[Point] = []
    try:
        measure_all(jobs(arguments), arguments.processes, arguments.library, points)
    except KeyboardInterrupt:
        print("interrupted: these were finished", file=sys.stderr)
        print(tables(points))
        sys.exit(130)
    points.sort(key=lambda point: (point.data, point.id))
    if arguments.rivals:
        points += rivals_from(arguments.rivals, points)
    print(tables(points))
    if arguments.json:
        content = {"command": command, "machine": machine(), "points": [asdict(p) for p in points]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(points, arguments.plot)


if __name__ == "__main__":
    main()

"""Write small payloads of every kind, with what they decode to: `make_payloads.py FOLDER`.

A folder is written once, when a version of the payload is released, and never again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chgdb import __version__
from chgdb.archive import PAYLOAD_VERSION, Tolerance, decode, encode
from chgdb.density import ChargeDensity, Grid, Structure

README = """\
# Payloads of version {payload}

Written by `python tests/data/make_payloads.py {folder}` with chgdb {chgdb}. Later versions
of chgdb must read them: do not write them anew.

| file | content |
| --- | --- |
| `NAME.bin` | the payload |
| `NAME.json` | the structure to the last digit, grid, method, electrons, sha256 of the payload |
| `NAME.npz` | what it decoded to: `values`, and `magnetization` where there is one |
"""


def bumps(structure: Structure, grid: Grid, sharpness: float) -> NDArray[np.float64]:
    """A smooth periodic peak per atom, on a background."""
    points = np.stack(np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij"), axis=-1)
    metric = structure.lattice @ structure.lattice.T
    values = np.full(grid, 0.05)
    for place in structure.frac_coords:
        sine = np.sin(np.pi * (points - place)) / np.pi
        cosine = np.cos(np.pi * (points - place))
        # equals the square of the distance near the atom, and is periodic
        square = np.einsum("...i,ij,...j->...", sine * cosine, metric, sine * cosine)
        square += (sine**4 * np.pi**2 * np.diag(metric)).sum(axis=-1)
        values += np.exp(-sharpness * square)
    return values


def densities() -> dict[str, tuple[ChargeDensity, Tolerance]]:
    """The cases by name."""
    fcc = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    silicon = Structure(5.43 * fcc, ("Si", "Si"), np.array([[0.0] * 3, [0.25] * 3]))
    oxide = Structure(4.21 * fcc, ("Mg", "O"), np.array([[0.0] * 3, [0.5] * 3]))
    iron = Structure(2.87 * np.eye(3), ("Fe", "Fe"), np.array([[0.0] * 3, [0.5] * 3]))
    skew = Structure(
        np.array([[3.9, 0.0, 0.0], [1.3, 4.1, 0.0], [-0.7, 0.9, 5.2]]),
        ("C", "N", "Xx"),
        np.array([[0.1, 0.2, 0.3], [0.6, 0.7, 0.55], [0.3, 0.9, 0.8]]),
    )
    of_iron = bumps(iron, (10, 10, 10), 2.0)
    of_skew = bumps(skew, (8, 9, 11), 1.5)
    rough = 1.0 + 0.2 * np.random.default_rng(0).normal(size=(6, 5, 4))
    three = np.stack([0.2 * of_skew, np.zeros_like(of_skew), -0.01 * of_skew])
    return {
        "si": (ChargeDensity(bumps(silicon, (12, 12, 12), 1.0), silicon), Tolerance()),
        "mgo": (ChargeDensity(bumps(oxide, (11, 11, 11), 2.0), oxide), Tolerance(0.01)),
        "spin": (ChargeDensity(of_iron, iron, 0.3 * (of_iron - 0.05)[None]), Tolerance(0.5)),
        "noncollinear": (ChargeDensity(of_skew, skew, three), Tolerance(1.0)),
        "low": (ChargeDensity(of_skew, skew), Tolerance(None, 1e-2)),
        "grid": (ChargeDensity(rough, silicon), Tolerance(1.0)),
        "lossless": (ChargeDensity(rough, silicon, rough[None] / 3), Tolerance(0.0)),
    }


def write(folder: Path) -> None:
    """All cases into a new folder."""
    folder.mkdir(parents=True)
    for name, (density, tolerance) in densities().items():
        structure = density.structure
        payload = encode(density, tolerance)
        back = decode(payload.data, structure)
        (folder / f"{name}.bin").write_bytes(payload.data)
        expected = {
            "method": payload.method,
            "sha256": hashlib.sha256(payload.data).hexdigest(),
            "n_electrons": back.n_electrons,
            "grid": list(back.grid),
            "lattice": structure.lattice.tolist(),
            "species": list(structure.species),
            "frac_coords": structure.frac_coords.tolist(),
        }
        text = json.dumps(expected, indent=1)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        arrays = {"values": back.values}
        if back.magnetization is not None:
            arrays["magnetization"] = back.magnetization
        np.savez_compressed(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    text = README.format(payload=PAYLOAD_VERSION, chgdb=__version__, folder=folder)
    (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

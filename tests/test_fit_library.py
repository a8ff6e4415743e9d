"""scripts/fit_library.py: what densities were made of is what it finds."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from chgdb.density import ChargeDensity, Structure
from chgdb.formats import write_density
from chgdb.multipoles import GAUSSIANS, angular, n_radial, radial, sites, sphere_transform
from chgdb.stars import Operations, Stars

SCRIPT = Path(__file__).parent.parent / "scripts" / "fit_library.py"
N = 10
"""Densities."""

MEAN = {"Si": {11: 4.0}, "O": {9: 6.0}}
"""Amplitudes of the Gaussians, e."""

MODE = {4: 0.3, 7: -0.3}
"""What varies about Si, times a normally distributed number."""

G = np.arange(2.0, 12.0, 0.02)
"""|G| where these crystals have stars: below them, nothing tells what a function is."""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return import_module("fit_library")


def amplitudes(parts: dict[int, float]) -> NDArray[np.float64]:
    vector = np.zeros(len(GAUSSIANS[0]))
    for index, amplitude in parts.items():
        vector[index] = amplitude
    return vector


def density(edge: float, strength: float) -> ChargeDensity:
    """SiO as CsCl, of the functions above."""
    structure = Structure(np.eye(3) * edge, ("Si", "O"), np.array([[0.0] * 3, [0.5] * 3]))
    grid = (16, 16, 16)
    operations = Operations.identity()
    stars = Stars(structure, grid, operations)
    field = np.full(grid, 0.4)
    for site in sites(structure, operations, 0):
        parts = amplitudes(MEAN[site.element])
        if site.element == "Si":
            parts += strength * amplitudes(MODE)
        angle = angular(structure, stars, site, 0)[:, 0]
        field += stars.field_from_complex(angle * (radial(0, stars.g) @ parts))
    return ChargeDensity(field, structure)


def on_grid(function: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """An orthonormal picture of a radial function of l = 0, up to a factor."""
    n = len(GAUSSIANS[0])
    smooth = radial(0, G) @ function[:n]
    if len(function) > n:
        smooth = smooth + np.sqrt(4 * np.pi) * sphere_transform(G, radius) @ function[n:]
    return G * smooth


def test_what_densities_were_made_of_is_found(tmp_path: Path) -> None:
    strengths = np.random.default_rng(0).normal(size=N)
    for index, strength in enumerate(strengths):
        path = tmp_path / "densities" / f"mp-{index}.npz"
        path.parent.mkdir(exist_ok=True)
        write_density(path, density(3.6 + 0.1 * index, float(strength)), "npz")
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("mp-3\n")
    running = []
    outputs = [tmp_path / "atoms-1.npz", tmp_path / "atoms-2.npz"]
    for processes, output in enumerate(outputs, start=1):
        command = f"{tmp_path / 'densities'} --output {output} --hold-out {held_out}".split()
        command += ["--processes", str(processes), "--source", "made up"]
        running.append(
            subprocess.Popen([sys.executable, str(SCRIPT), *command], stdout=subprocess.DEVNULL)
        )
    assert [process.wait() for process in running] == [0, 0]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()

    with np.load(outputs[0], allow_pickle=False) as file:
        library = dict(file)
    assert library["elements"].tolist() == ["O", "Si", "X"]
    assert library["radius"].tolist() == [0.75, 0.75, 0.75]
    assert library["modes_0"].shape[2] == n_radial(0)
    assert library["residual"].shape == (40,)
    used = np.delete(strengths, 3)
    for index, element in ((0, "O"), (1, "Si")):
        true = amplitudes(MEAN[element])
        if element == "Si":
            true = true + used.mean() * amplitudes(MODE)
        found, expected = on_grid(library["mean"][index], 0.75), on_grid(true, 0.75)
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    # What varies where there are stars, sqrt(int G^2 R^2 dG / (2 pi)^3) in space
    unit = np.sqrt((G[1] - G[0]) / (2 * np.pi) ** 3)
    varying = []
    for modes, deviations in zip(library["modes_0"], library["deviations_0"], strict=True):
        functions = np.array([on_grid(mode, 0.75) for mode in modes])
        _, sizes, shapes = np.linalg.svd(functions * deviations[:, None] * unit)
        varying.append((shapes[0], sizes[0]))
    true = on_grid(amplitudes(MODE), 0.75) * unit
    (_, of_oxygen), (shape, of_silicon), _ = varying
    assert abs(shape @ true) > 0.98 * np.linalg.norm(true)
    assert of_silicon == pytest.approx(used.std() * np.linalg.norm(true), rel=0.25)
    assert of_oxygen < 0.5 * of_silicon

    card = json.loads((tmp_path / "atoms-1.json").read_text(encoding="utf-8"))
    assert card["sha256"] == sha256(outputs[0].read_bytes()).hexdigest()
    assert card["held_out"] == ["mp-3"]
    assert card["densities_per_element"] == {"O": N - 1, "Si": N - 1}
    assert card["source"] == "made up"


def test_folds_are_a_partition(module: ModuleType) -> None:
    ids = [f"mp-{i}" for i in range(17)]
    folds = [module.held_out(ids, None, f"{k}/4") for k in range(1, 5)]
    assert sorted(name for fold in folds for name in fold) == sorted(ids)
    assert module.held_out(ids[::-1], None, "2/4") == folds[1]
    assert len(module.held_out(ids, "5", None)) == 5
    assert module.held_out(ids, None, None) == []


@pytest.mark.parametrize("options", [("none.txt", None), (None, "0/4"), (None, "5/4"), (None, "x")])
def test_what_cannot_be_left_out_is_refused(
    module: ModuleType, options: tuple[str | None, str | None]
) -> None:
    with pytest.raises(SystemExit):
        module.held_out([f"mp-{i}" for i in range(17)], *options)


def test_an_operator_survives_the_way_to_a_basis_that_can_hold_it(module: ModuleType) -> None:
    # A Gaussian is in the span of every basis, whatever the radius of the spheres.
    function = radial(0, module.SAMPLED_G)[:, 10] * module.SAMPLED_G
    function /= np.linalg.norm(function)
    wide, narrow = (module.basis(0, radius).samples.T @ function for radius in (1.2, 0.75))
    moved = module.project_sum({1.2: np.outer(wide, wide)}, 0, 0.75)
    assert np.allclose(moved, np.outer(narrow, narrow), atol=1e-3)
    assert np.trace(moved) == pytest.approx(1.0, abs=1e-3)

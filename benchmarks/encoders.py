"""Errors and sizes of trained encoders on density files, as they come back from a store.

usage: python benchmarks/encoders.py MODEL... --densities DIR [--properties CSV] [--limit N]

Prints two Markdown tables. NMAE is over the true cell, on the file's own grid, after the latent was
packed as a store packs it; MSE and MAE are averages over the zero-padded 128^3 box. Parts: those of
the split (`test` unless --part names others), the same cells with their origin moved at random
(seed 0), and VASP's own files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numcodecs import Zstd

from chgdb import __version__
from chgdb.arrays import pack
from chgdb.codec import Codec, load_codec
from chgdb.density import ChargeDensity, Structure
from chgdb.formats import default_id, find_densities, read_density
from chgdb.grid import points_per_angstrom, shift_origin
from chgdb.train import Sample, evaluate_encoder, load_samples

COARSEST = 5.0
"""Points/A; a VASP file below it is a test of readers, not a density."""

ZSTD_LEVEL = 9
"""That of the store."""


def shifted(samples: Sequence[Sample], seed: int = 0) -> list[Sample]:
    """The same crystals, each with its origin moved by a random vector."""
    rng = np.random.default_rng(seed)
    moved = []
    for sample in samples:
        density, shift = sample.density, rng.random(3)
        structure = density.structure
        coordinates = (structure.frac_coords + shift) % 1.0
        values = shift_origin(density.values, shift)
        crystal = Structure(structure.lattice, structure.species, coordinates)
        moved.append(Sample(sample.id, ChargeDensity(values, crystal)))
    return moved


def vasp_samples(paths: Sequence[Path]) -> list[Sample]:
    """Densities that VASP wrote."""
    samples = []
    for path in find_densities(paths):
        density, _ = read_density(path)
        if points_per_angstrom(density.structure.lattice, density.grid) >= COARSEST:
            samples.append(Sample(default_id(path, density.structure), density))
    return samples


def stored_bytes(codec: Codec, samples: Iterable[Sample]) -> list[int]:
    """Bytes of each latent in a store."""
    zstd = Zstd(level=ZSTD_LEVEL)
    sizes = []
    for sample in samples:
        (latent,) = codec.encode([sample.density])
        packed = np.ascontiguousarray(pack(latent.values, *codec.storage))
        sizes.append(len(zstd.encode(packed.view(np.uint8).ravel())))
    return sizes


def statistics(values: Sequence[float]) -> dict[str, float]:
    """What the tables show of a distribution."""
    return {
        "min": float(np.min(values)),
        "median": float(np.median(values)),
        "mean": float(np.mean(values)),
        "p90": float(np.percentile(values, 90)),
        "max": float(np.max(values)),
    }


def measure(codec: Codec, samples: Sequence[Sample]) -> dict[str, Any]:
    """Errors over one part."""
    errors = evaluate_encoder(codec, samples)
    worst = max(errors, key=lambda name: errors[name]["nmae"])
    return {
        "materials": len(samples),
        "nmae": statistics([error["nmae"] for error in errors.values()]),
        "box_mse": float(np.mean([error["box_mse"] for error in errors.values()])),
        "box_mae": float(np.mean([error["box_mae"] for error in errors.values()])),
        "worst": worst,
    }


def measure_encoder(
    folder: Path, parts: dict[str, Sequence[Sample]], device: str
) -> dict[str, Any]:
    """Everything known of one encoder."""
    codec = load_codec(folder, device)
    start = time.perf_counter()
    measured = {name: measure(codec, samples) for name, samples in parts.items() if samples}
    first = next(iter(measured))
    return {
        "weights_sha256": codec.config.weights_sha256,
        "kind": codec.config.kind,
        "latent_shape": list(codec.config.latent_shape),
        "dtype": codec.storage[0],
        "parameters": sum(value.numel() for value in codec.net.parameters()),
        "parts": measured,
        "stored_bytes": {"part": first, **statistics(stored_bytes(codec, parts[first]))},
        "device": codec.device,
        "seconds": round(time.perf_counter() - start, 1),
    }


def machine() -> str:
    """The line above the tables."""
    return (
        f"chgdb {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"threads {torch.get_num_threads()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


def tables(results: dict[str, dict[str, Any]]) -> str:
    """Both tables."""
    lines = [
        "| encoder | part | materials | NMAE min (%) | median | mean | 90 % | max | worst |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        for part, row in result["parts"].items():
            numbers = " | ".join(f"{value:.2f}" for value in row["nmae"].values())
            lines.append(f"| {name} | {part} | {row['materials']} | {numbers} | {row['worst']} |")
    lines += [
        "",
        "| encoder | parameters | latent | stored as | bytes, mean | MSE (e^2/A^6) | MAE (e/A^3) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        first = next(iter(result["parts"].values()))
        shape = " x ".join(map(str, result["latent_shape"]))
        lines.append(
            f"| {name} | {result['parameters']:,} | {shape} | {result['dtype']} + zstd "
            f"| {result['stored_bytes']['mean']:,.0f} | {first['box_mse']:.2e} "
            f"| {first['box_mae']:.2e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="encoder folders")
    parser.add_argument("--densities", type=Path, nargs="+", required=True, metavar="PATH")
    parser.add_argument("--properties", type=Path, metavar="CSV", help="its column split decides")
    parser.add_argument("--part", nargs="+", default=["test"], choices=["train", "val", "test"])
    parser.add_argument("--vasp", type=Path, nargs="*", default=[], metavar="PATH")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N of each part")
    parser.add_argument("--no-shift", action="store_true", help="leave out the moved origins")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there")
    arguments = parser.parse_args()

    split = load_samples(arguments.densities, arguments.properties)
    parts: dict[str, Sequence[Sample]] = {}
    for part in arguments.part:
        samples = split[part][: arguments.limit]
        parts[part] = samples
        if not arguments.no_shift:
            parts[f"{part}, origin moved"] = shifted(samples)
    parts["VASP files"] = vasp_samples(arguments.vasp) if arguments.vasp else []
    results = {
        folder.name: measure_encoder(folder, parts, arguments.device) for folder in arguments.models
    }
    counts = {name: len(samples) for name, samples in split.items()}
    command = shlex.join(["python", *sys.argv])
    print(f"`{command}`\n\n{machine()}; {counts}\n\n{tables(results)}")
    if arguments.json:
        content = {"command": command, "machine": machine(), "split": counts, "encoders": results}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

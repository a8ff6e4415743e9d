"""What steps of refinement cost and gain: CPU time of encoding, and the NMAE of the stored latents.

usage: python benchmarks/refinement.py FOLDER [--each N] [--encoder periodic-16] [--steps 0 6 12 24]

One thread. "Small" are densities of at most 32^3 points. Prints Markdown.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from statistics import median

import torch
from store_ops import machine

from chgdb.codec import Codec, load_codec
from chgdb.density import ChargeDensity
from chgdb.formats import find_densities, read_density
from chgdb.metrics import compare
from chgdb.resources import find_model

SMALL = 32**3


def measure(codec: Codec, density: ChargeDensity) -> tuple[float, float]:
    """CPU seconds of encoding, and the NMAE in % of the latent as it is stored."""
    begun = time.process_time()
    (latent,) = codec.encode([density])
    seconds = time.process_time() - begun
    (decoded,) = codec.decode([codec.stored(latent)], [density.structure], [density.grid])
    return seconds, compare(decoded, density).nmae


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=1, help="take every n-th file")
    parser.add_argument("--encoder", default="periodic-16")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 6, 12, 24])
    options = parser.parse_args()
    torch.set_num_threads(1)
    densities = [
        read_density(path)[0] for path in find_densities([options.folder])[:: options.each]
    ]
    small = [math.prod(density.grid) <= SMALL for density in densities]
    base = load_codec(find_model(options.encoder), "cpu")
    measure(base, densities[0])  # torch warms up
    print(f"{len(densities)} densities, {sum(small)} of them small; {machine()}\n")
    print("| steps | CPU s | median NMAE (%) | CPU s, small | median NMAE (%), small |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for steps in options.steps:
        found = [measure(base.refining(steps), density) for density in densities]
        few = [pair for pair, is_small in zip(found, small, strict=True) if is_small]
        cells = [
            f"{text:.3f}"
            for chosen in (found, few)
            for text in (
                sum(seconds for seconds, _ in chosen) / max(len(chosen), 1),
                median(nmae for _, nmae in chosen) if chosen else math.nan,
            )
        ]
        print(f"| {steps} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
